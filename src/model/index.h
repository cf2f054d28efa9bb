/* Tensors by their canonical names, whatever names their files have: names.c translates. */
#pragma once
#include "model/lora.h"

struct entry {
    char name[NAME_MAX_BYTES];
    const struct weight *w;
    int rank; /* of two entries with one name, the higher wins */
};
struct index {
    struct entry *at; /* sorted by name; the caller's, to free() */
    size_t n;
    int rank;
};
/* Adds the names of a set; of two with one name the later set's wins. ERR_NOMEM. */
int index_add(struct index *ix, const struct weights *w, struct err *e);
int index_rest(struct index *ix, const struct lora_set *set, struct err *e); /* the whole tensors of an adapter */
const struct weight *index_find(const struct index *ix, const char *name);   /* NULL: none */
