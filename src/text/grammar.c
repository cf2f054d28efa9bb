/* See grammar.h. From the notation to rules over bytes: groups and repetitions become rules of their own, classes with
 * characters beyond ASCII alternatives of byte ranges. */
#include <stdlib.h>
#include <string.h>

#include "text/grammar_in.h"
#include "text/utf8.h"

enum { NAME_MAX_BYTES = 128, NEST_MAX = 100, NAMES = 1 << 12 };

struct parser {
    struct grammar *g;
    const char *at, *end;
    int line, nest;
    struct err *e;
    int32_t named[NAMES]; /* by hash: number + 1 of a rule, others after it; 0: none */
};
/* A sequence on its way. */
struct seq_buf {
    struct elem *p;
    int32_t n, cap;
};

static int bad(struct parser *p, const char *what)
{
    return err_set(p->e, ERR_FORMAT, "grammar line %d: %s", p->line, what);
}

/* ---- growing */

static int grow(void **p, int32_t n, int32_t *cap, size_t size, struct err *e)
{
    if (n < *cap) return 0;
    if (n >= GRAMMAR_MAX)
        return err_set(e, ERR_LIMIT, "the grammar is too large: more than %d bytes and names", GRAMMAR_MAX);
    int32_t more = 2 * *cap + 16 < GRAMMAR_MAX ? 2 * *cap + 16 : GRAMMAR_MAX;
    void *q = realloc(*p, (size_t)more * size);
    if (!q) return err_set(e, ERR_NOMEM, "no memory for a grammar");
    *p = q;
    *cap = more;
    return 0;
}

static int seq_add(struct seq_buf *s, enum elem_kind kind, int32_t arg, struct err *e)
{
    int rc = grow((void **)&s->p, s->n, &s->cap, sizeof *s->p, e);
    if (rc >= 0) s->p[s->n++] = (struct elem){ kind, arg };
    return rc;
}

static int32_t rule_add(struct parser *p, const char *name, size_t n)
{
    struct grammar *g = p->g;
    int rc = grow((void **)&g->rule, g->n_rules, &g->cap_rules, sizeof *g->rule, p->e);
    if (rc < 0) return rc;
    struct rule *r = &g->rule[g->n_rules];
    *r = (struct rule){ .line = p->line };
    if (name && !(r->name = strndup(name, n))) return err_set(p->e, ERR_NOMEM, "no memory for a grammar");
    return g->n_rules++;
}

/* The rule of that name, made when it is named first. */
static int32_t rule_named(struct parser *p, const char *name, size_t n)
{
    uint32_t hash = 0;
    for (size_t i = 0; i < n; i++) hash = (hash ^ (unsigned char)name[i]) * 16777619u;
    int32_t *first = &p->named[(hash ^ hash >> 16) % NAMES];
    for (int32_t i = *first; i; i = p->g->rule[i - 1].next) {
        const char *other = p->g->rule[i - 1].name;
        if (strlen(other) == n && !memcmp(other, name, n)) return i - 1;
    }
    const int32_t rule = rule_add(p, name, n);
    if (rule < 0) return rule;
    p->g->rule[rule].next = *first;
    *first = rule + 1;
    return rule;
}

/* s becomes an alternative of a rule, and is empty again. */
static int alt_add(struct parser *p, int32_t rule, struct seq_buf *s)
{
    struct grammar *g = p->g;
    struct rule *r = &g->rule[rule];
    int rc = seq_add(s, ELEM_END, 0, p->e);
    if (rc < 0) return rc;
    int32_t *alt = realloc(r->alt, (size_t)(r->n_alts + 1) * sizeof *alt);
    if (!alt) return err_set(p->e, ERR_NOMEM, "no memory for a grammar");
    r->alt = alt;
    alt[r->n_alts++] = g->n_elems;
    for (int32_t i = 0; i < s->n && rc >= 0; i++) {
        rc = grow((void **)&g->elem, g->n_elems, &g->cap_elems, sizeof *g->elem, p->e);
        if (rc >= 0) g->elem[g->n_elems++] = s->p[i];
    }
    s->n = 0;
    return rc;
}

static int set_add(struct parser *p, struct seq_buf *s, struct byte_set set)
{
    struct grammar *g = p->g;
    int rc = grow((void **)&g->set, g->n_sets, &g->cap_sets, sizeof *g->set, p->e);
    if (rc < 0) return rc;
    g->set[g->n_sets] = set;
    return seq_add(s, ELEM_BYTES, g->n_sets++, p->e);
}

static struct byte_set bytes_between(unsigned lo, unsigned hi)
{
    struct byte_set set = { { 0 } };
    for (unsigned b = lo; b <= hi; b++) set.bit[b / 64] |= (uint64_t)1 << (b % 64);
    return set;
}

/* ---- characters */

/* Alternatives of `rule` for the characters lo..hi, all of n bytes: split until each byte has a range of its own. */
static int range_alts(struct parser *p, int32_t rule, uint32_t lo, uint32_t hi, int n)
{
    int rc = 0;
    for (int i = 1; i < n; i++) {
        const uint32_t m = (1u << (6 * i)) - 1;
        if ((lo & ~m) == (hi & ~m)) continue;
        uint32_t cut = (lo & m) ? lo | m : (hi & m) != m ? (hi & ~m) - 1 : 0;
        if (!cut) continue;
        rc = range_alts(p, rule, lo, cut, n);
        return rc < 0 ? rc : range_alts(p, rule, cut + 1, hi, n);
    }
    char a[4], b[4];
    struct seq_buf s = { 0 };
    utf8_put(a, lo);
    utf8_put(b, hi);
    for (int i = 0; i < n && rc >= 0; i++) rc = set_add(p, &s, bytes_between((unsigned char)a[i], (unsigned char)b[i]));
    if (rc >= 0) rc = alt_add(p, rule, &s);
    free(s.p);
    return rc;
}

static int char_range(struct parser *p, int32_t rule, uint32_t lo, uint32_t hi)
{
    static const uint32_t last[] = { 0x7f, 0x7ff, 0xd7ff, 0xdfff, 0xffff, 0x10ffff };
    static const int bytes[] = { 1, 2, 3, 0, 3, 4 }; /* 0: surrogates are no characters */
    int rc = 0;
    for (int i = 0; i < 6 && rc >= 0 && lo <= hi; i++) {
        if (lo > last[i]) continue;
        uint32_t to = hi < last[i] ? hi : last[i];
        if (bytes[i]) rc = range_alts(p, rule, lo, to, bytes[i]);
        lo = to + 1;
    }
    return rc;
}

/* One character of a literal or class, escapes resolved. */
static int character(struct parser *p, uint32_t *c)
{
    size_t len;
    if (p->at >= p->end || *p->at == '\n') return bad(p, "a literal or class does not end");
    if (*p->at != '\\') {
        if (utf8_next(p->at, (size_t)(p->end - p->at), c, &len) != UTF8_OK) return bad(p, "not UTF-8");
        p->at += len;
        return 0;
    }
    if (++p->at >= p->end) return bad(p, "a lone backslash");
    static const char from[] = "nrt\"\\[]-^", to[] = "\n\r\t\"\\[]-^";
    const char kind = *p->at++, *known = strchr(from, kind);
    if (kind && known) return *c = (unsigned char)to[known - from], 0;
    int digits = kind == 'x' ? 2 : kind == 'u' ? 4 : kind == 'U' ? 8 : 0;
    if (!digits || p->end - p->at < digits) return bad(p, "an unknown escape");
    *c = 0;
    for (; digits; digits--, p->at++) {
        const char *hex = "0123456789abcdef0123456789ABCDEF", *d = strchr(hex, *p->at);
        if (!*p->at || !d) return bad(p, "an escape without its digits");
        *c = *c << 4 | (uint32_t)((d - hex) % 16);
    }
    return *c <= 0x10ffff ? 0 : bad(p, "no such character");
}

static int literal(struct parser *p, struct seq_buf *s)
{
    int rc = 0;
    char b[4];
    uint32_t c;
    for (p->at++; p->at < p->end && *p->at != '"';) {
        if ((rc = character(p, &c)) < 0) return rc;
        const size_t n = utf8_put(b, c);
        for (size_t i = 0; i < n; i++)
            if ((rc = set_add(p, s, bytes_between((unsigned char)b[i], (unsigned char)b[i]))) < 0) return rc;
    }
    if (p->at >= p->end) return bad(p, "a literal does not end");
    p->at++;
    return rc;
}

struct range { uint32_t lo, hi; };
static int range_order(const void *a, const void *b)
{
    const struct range *x = a, *y = b;
    return x->lo < y->lo ? -1 : x->lo > y->lo;
}

/* The characters of ranges, or all others, as a set where that is enough, else as a rule. */
static int ranges(struct parser *p, struct seq_buf *s, struct range *r, int n, bool others)
{
    int32_t rule = rule_add(p, NULL, 0);
    uint32_t next = 0;
    int rc = rule;
    qsort(r, (size_t)n, sizeof *r, range_order);
    for (int i = 0; i < n && rc >= 0; i++) {
        if (r[i].lo < next && r[i].hi < next) continue;
        uint32_t lo = r[i].lo > next ? r[i].lo : next;
        if (others && lo > next) rc = char_range(p, rule, next, lo - 1);
        if (!others) rc = char_range(p, rule, lo, r[i].hi);
        next = r[i].hi + 1;
    }
    if (rc >= 0 && others && next <= 0x10ffff) rc = char_range(p, rule, next, 0x10ffff);
    if (rc >= 0 && !p->g->rule[rule].n_alts) rc = bad(p, "a class without characters");
    return rc < 0 ? rc : seq_add(s, ELEM_RULE, rule, p->e);
}

static int class(struct parser *p, struct seq_buf *s)
{
    struct range r[256];
    int n = 0, rc = 0;
    bool others = ++p->at < p->end && *p->at == '^';
    p->at += others;
    for (; p->at < p->end && *p->at != ']'; n++) {
        if (n == 256) return bad(p, "a class of more than 256 ranges");
        if ((rc = character(p, &r[n].lo)) < 0) return rc;
        r[n].hi = r[n].lo;
        if (p->end - p->at < 2 || p->at[0] != '-' || p->at[1] == ']') continue;
        p->at++;
        if ((rc = character(p, &r[n].hi)) < 0) return rc;
        if (r[n].hi < r[n].lo) return bad(p, "a range that falls");
    }
    if (p->at >= p->end) return bad(p, "a class does not end");
    p->at++;
    return ranges(p, s, r, n, others);
}

/* ---- sequences */

static bool is_name(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
}

static void skip(struct parser *p)
{
    for (; p->at < p->end; p->at++) {
        if (*p->at == '#')
            while (p->at + 1 < p->end && p->at[1] != '\n') p->at++;
        else if (*p->at == '\n') p->line++;
        else if (*p->at != ' ' && *p->at != '\t' && *p->at != '\r') return;
    }
}

static size_t name_length(const struct parser *p)
{
    size_t n = 0;
    while (p->at + n < p->end && is_name(p->at[n])) n++;
    return n;
}

/* At the `name ::=` of the next rule? */
static bool at_rule(const struct parser *p)
{
    struct parser q = *p;
    q.at += name_length(p);
    if (q.at == p->at) return false;
    skip(&q);
    return q.end - q.at >= 3 && !memcmp(q.at, "::=", 3);
}

static int alternatives(struct parser *p, int32_t rule);

/* s[from..) at least `least` times and at most `most`, or any number (most < 0). */
static int repeat(struct parser *p, struct seq_buf *s, int32_t from, int least, int most)
{
    const int32_t n = s->n - from;
    struct elem *item = malloc(((size_t)n + 1) * sizeof *item);
    struct seq_buf one = { 0 };
    int rc = 0;
    int32_t rest = -1;
    if (!item) return err_set(p->e, ERR_NOMEM, "no memory for a grammar");
    if (n) memcpy(item, s->p + from, (size_t)n * sizeof *item);
    s->n = from;
    for (int k = 0; k < least && rc >= 0; k++)
        for (int32_t i = 0; i < n && rc >= 0; i++) rc = seq_add(s, item[i].kind, item[i].arg, p->e);
    const int rules = most < 0 ? 1 : most - least;
    for (int k = 0; k < rules && rc >= 0; k++) { /* rest: nothing, or one and then the rest before (or itself) */
        int32_t rule = rc = rule_add(p, NULL, 0);
        for (int32_t i = 0; i < n && rc >= 0; i++) rc = seq_add(&one, item[i].kind, item[i].arg, p->e);
        if (rc >= 0 && (rest >= 0 || most < 0)) rc = seq_add(&one, ELEM_RULE, most < 0 ? rule : rest, p->e);
        if (rc >= 0) rc = alt_add(p, rule, &one);
        if (rc >= 0) rc = alt_add(p, rule, &one);
        rest = rule;
    }
    if (rc >= 0 && rest >= 0) rc = seq_add(s, ELEM_RULE, rest, p->e);
    free(one.p);
    free(item);
    return rc;
}

static int number(struct parser *p)
{
    int v = 0;
    if (p->at >= p->end || *p->at < '0' || *p->at > '9') return bad(p, "a repetition without a number");
    for (; p->at < p->end && *p->at >= '0' && *p->at <= '9'; p->at++)
        if ((v = 10 * v + *p->at - '0') > GRAMMAR_REPEAT_MAX) return bad(p, "a repetition that is too long");
    return v;
}

/* { m }, { m, }, { m, n } */
static int braces(struct parser *p, struct seq_buf *s, int32_t from)
{
    p->at++;
    skip(p);
    int least = number(p), most = least;
    if (least < 0) return least;
    skip(p);
    if (p->at < p->end && *p->at == ',') {
        p->at++;
        skip(p);
        const bool open = p->at < p->end && *p->at == '}';
        most = open ? -1 : number(p);
        if (!open && most < 0) return most;
        skip(p);
    }
    if (p->at >= p->end || *p->at != '}') return bad(p, "a repetition without '}'");
    if (most >= 0 && most < least) return bad(p, "a repetition that falls");
    p->at++;
    return repeat(p, s, from, least, most);
}

static int suffix(struct parser *p, struct seq_buf *s, int32_t from)
{
    switch (p->at < p->end ? *p->at : 0) {
    case '*': p->at++; return repeat(p, s, from, 0, -1);
    case '+': p->at++; return repeat(p, s, from, 1, -1);
    case '?': p->at++; return repeat(p, s, from, 0, 1);
    case '{': return braces(p, s, from);
    default: return 1;
    }
}

static int group(struct parser *p, struct seq_buf *s)
{
    if (++p->nest > NEST_MAX) return bad(p, "groups that are nested too deep");
    p->at++;
    int32_t rule = rule_add(p, NULL, 0);
    int rc = rule < 0 ? rule : alternatives(p, rule);
    if (rc < 0) return rc;
    if (p->at >= p->end || *p->at != ')') return bad(p, "a group without ')'");
    p->at++;
    p->nest--;
    return seq_add(s, ELEM_RULE, rule, p->e);
}

static int item(struct parser *p, struct seq_buf *s)
{
    const size_t n = name_length(p);
    if (*p->at == '"') return literal(p, s);
    if (*p->at == '[') return class(p, s);
    if (*p->at == '(') return group(p, s);
    if (*p->at == '.') return p->at++, ranges(p, s, (struct range[]){ { 0, 0x10ffff } }, 1, false);
    if (!n) return bad(p, "something that is no literal, class, name or group");
    if (n > NAME_MAX_BYTES) return bad(p, "a name that is too long");
    int32_t rule = rule_named(p, p->at, n);
    p->at += n;
    return rule < 0 ? rule : seq_add(s, ELEM_RULE, rule, p->e);
}

static int sequence(struct parser *p, struct seq_buf *s)
{
    int rc = 0;
    for (;;) {
        skip(p);
        if (p->at >= p->end || *p->at == '|' || *p->at == ')' || at_rule(p)) return 0;
        int32_t from = s->n;
        if ((rc = item(p, s)) < 0) return rc;
        while ((rc = suffix(p, s, from)) == 0) {}
        if (rc < 0) return rc;
    }
}

static int alternatives(struct parser *p, int32_t rule)
{
    struct seq_buf s = { 0 };
    int rc;
    for (;;) {
        if ((rc = sequence(p, &s)) < 0 || (rc = alt_add(p, rule, &s)) < 0) break;
        if (p->at >= p->end || *p->at != '|') break;
        p->at++;
    }
    free(s.p);
    return rc;
}

/* ---- whole grammars */

/* Rules that may be nothing, on their way to being found: an alternative waits at the first rule in it that is not
 * known to be one, and goes on when that turns out to be. So each element is looked at once. */
struct empties {
    const struct grammar *g;
    bool *empty;                              /* [rules] */
    struct wait { int32_t next, rule; } *wait; /* [elements] the alternative of `rule` waits here; next + 1 does too */
    int32_t *first;                           /* [rules] element + 1 of an alternative that waits for it */
    int32_t *todo, n_todo;                    /* [rules] found, and not yet told to who waits */
};

static void go_on(struct empties *s, int32_t rule, int32_t at)
{
    const struct elem *x = &s->g->elem[at];
    while (x->kind == ELEM_RULE && s->empty[x->arg]) x++;
    if (x->kind == ELEM_RULE) {
        at = (int32_t)(x - s->g->elem);
        s->wait[at] = (struct wait){ s->first[x->arg], rule };
        s->first[x->arg] = at + 1;
    } else if (x->kind == ELEM_END && !s->empty[rule]) {
        s->empty[rule] = true;
        s->todo[s->n_todo++] = rule;
    }
}

/* Which rules may be nothing: [rules], the caller's to free; NULL: no memory. */
static bool *find_empty(const struct grammar *g)
{
    const size_t n = (size_t)g->n_rules;
    struct empties s = { g, calloc(n, 1), malloc((size_t)g->n_elems * sizeof *s.wait), calloc(n, sizeof *s.first),
                         malloc(n * sizeof *s.todo), 0 };
    const bool ok = s.empty && s.wait && s.first && s.todo;
    for (int32_t r = 0; r < g->n_rules && ok; r++)
        for (int32_t a = 0; a < g->rule[r].n_alts; a++) go_on(&s, r, g->rule[r].alt[a]);
    while (s.n_todo)
        for (int32_t at = s.first[s.todo[--s.n_todo]], next; at; at = next) {
            next = s.wait[at - 1].next;
            go_on(&s, s.wait[at - 1].rule, at);
        }
    free(s.wait);
    free(s.first);
    free(s.todo);
    if (ok) return s.empty;
    free(s.empty);
    return NULL;
}

/* Does a rule come back to itself before any byte was read? state: 0 not seen, 1 on the way, 2 done. A rule that calls
 * itself last is a loop, which match.c walks once. */
static bool turns_left(const struct grammar *g, const bool *empty, char *state, int32_t r, int depth)
{
    if (state[r] || depth > NEST_MAX * NEST_MAX) return state[r] != 2;
    state[r] = 1;
    for (int32_t a = 0; a < g->rule[r].n_alts; a++) {
        const struct elem *x = &g->elem[g->rule[r].alt[a]];
        for (; x->kind == ELEM_RULE; x++) {
            const bool loop = x->arg == r && x[1].kind == ELEM_END && x > &g->elem[g->rule[r].alt[a]];
            if (!loop && turns_left(g, empty, state, x->arg, depth + 1)) return true;
            if (!empty[x->arg]) break;
        }
    }
    state[r] = 2;
    return false;
}

static int check(struct parser *p)
{
    struct grammar *g = p->g;
    g->root = -1;
    for (int32_t r = 0; r < g->n_rules; r++) {
        if (!g->rule[r].n_alts)
            return err_set(p->e, ERR_FORMAT, "grammar line %d: no rule '%s'", g->rule[r].line, g->rule[r].name);
        if (g->rule[r].name && !strcmp(g->rule[r].name, "root")) g->root = r;
    }
    if (g->root < 0) return err_set(p->e, ERR_FORMAT, "a grammar without a rule 'root'");
    bool *empty = find_empty(g);
    char *state = calloc((size_t)g->n_rules, 1);
    int rc = empty && state ? 0 : err_set(p->e, ERR_NOMEM, "no memory for a grammar");
    for (int32_t r = 0; r < g->n_rules && rc >= 0; r++)
        if (turns_left(g, empty, state, r, 0))
            rc = err_set(p->e, ERR_FORMAT, "grammar line %d: a rule that begins with itself", g->rule[r].line);
    free(empty);
    free(state);
    return rc;
}

static int rules(struct parser *p)
{
    for (skip(p); p->at < p->end; skip(p)) {
        if (!at_rule(p)) return bad(p, "no rule begins here");
        const size_t n = name_length(p);
        if (n > NAME_MAX_BYTES) return bad(p, "a name that is too long");
        int32_t rule = rule_named(p, p->at, n);
        if (rule < 0) return rule;
        if (p->g->rule[rule].n_alts) return bad(p, "a rule that was there before");
        p->g->rule[rule].line = p->line;
        p->at += n;
        skip(p);
        p->at += 3;
        int rc = alternatives(p, rule);
        if (rc < 0) return rc;
        if (p->at < p->end && *p->at == ')') return bad(p, "')' without '('");
    }
    return check(p);
}

int grammar_parse(struct grammar **ret, const char *text, size_t n, struct err *e)
{
    *ret = NULL;
    struct grammar *g = calloc(1, sizeof *g);
    if (!g) return err_set(e, ERR_NOMEM, "no memory for a grammar");
    struct parser p = { .g = g, .at = text, .end = text + n, .line = 1, .e = e };
    int rc = rules(&p);
    if (rc < 0) grammar_free(g);
    else *ret = g;
    return rc < 0 ? rc : 0;
}

void grammar_free(struct grammar *g)
{
    if (!g) return;
    for (int32_t i = 0; i < g->n_rules; i++) {
        free(g->rule[i].name);
        free(g->rule[i].alt);
    }
    free(g->rule);
    free(g->elem);
    free(g->set);
    free(g);
}
