/* A grammar as a machine: what grammar.c makes of its text and match.c runs. */
#pragma once
#include "text/grammar.h"

enum elem_kind { ELEM_END, ELEM_BYTES, ELEM_RULE };
struct elem {
    enum elem_kind kind;
    int32_t arg; /* BYTES: a set; RULE: a rule */
};
struct byte_set { uint64_t bit[4]; };
/* Alternatives are runs of elements that stop at an END; `alt` holds where they start. */
struct rule {
    char *name;  /* owned; NULL: one that the parser made */
    int32_t *alt;
    int32_t n_alts, line, next; /* next: the parser's */
};
struct grammar {
    struct elem *elem;
    struct byte_set *set;
    struct rule *rule;
    int32_t n_elems, cap_elems, n_sets, cap_sets, n_rules, cap_rules, root;
};
static inline bool set_has(const struct byte_set *s, unsigned char b) { return s->bit[b / 64] >> (b % 64) & 1; }
