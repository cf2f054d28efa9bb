/* See grammar.h. The machine: stacks are interned nodes (what comes next, and where to go on after it), a state is a
 * set of stacks whose tops read a byte; states, and where each byte leads, are kept. */
#include <stdlib.h>
#include <string.h>

#include "text/grammar_in.h"

enum { NODES_MAX = 1 << 18, STATES_MAX = 1024, STACKS_MAX = 256, WORD_MAX = 4096, DEAD = -1, UNKNOWN = -2 };

/* ---- vocabulary */

struct word {
    const char *p;   /* in text */
    uint32_t n;
    uint32_t common; /* bytes in common with the word before */
    int32_t id;
};
struct vocabulary {
    struct buf text;
    struct word *word; /* [n] by bytes; none is empty */
    int32_t *of;       /* [size] index in word, or -1 */
    int32_t n, size;
};

static int word_order(const void *a, const void *b)
{
    const struct word *x = a, *y = b;
    int d = memcmp(x->p, y->p, x->n < y->n ? x->n : y->n);
    return d ? d : x->n != y->n ? (x->n < y->n ? -1 : 1) : x->id - y->id;
}

int vocabulary_new(struct vocabulary **ret, const struct tokenizer *t, int32_t size, struct err *e)
{
    struct vocabulary *v = calloc(1, sizeof *v);
    size_t *end = calloc((size_t)size + 1, sizeof *end);
    if (v) {
        v->text = buf_make((size_t)1 << 28);
        v->word = calloc((size_t)size + 1, sizeof *v->word);
        v->of = calloc((size_t)size + 1, sizeof *v->of);
        v->size = size;
    }
    for (int32_t i = 0; v && end && i < size; i++) {
        if (!tokenizer_is_special(t, i)) tokenizer_bytes(t, i, &v->text);
        end[i + 1] = v->text.n;
    }
    if (!v || !end || !v->word || !v->of || v->text.failed) {
        free(end);
        vocabulary_free(v);
        return err_set(e, ERR_NOMEM, "no memory for a vocabulary");
    }
    for (int32_t i = 0; i < size; i++) {
        size_t n = end[i + 1] - end[i];
        v->of[i] = -1;
        if (n > 0 && n <= WORD_MAX) v->word[v->n++] = (struct word){ v->text.p + end[i], (uint32_t)n, 0, i };
    }
    qsort(v->word, (size_t)v->n, sizeof *v->word, word_order);
    for (int32_t i = 0; i < v->n; i++) {
        struct word *w = &v->word[i];
        v->of[w->id] = i;
        while (i && w->common < w->n && w->common < w[-1].n && w->p[w->common] == w[-1].p[w->common]) w->common++;
    }
    free(end);
    *ret = v;
    return 0;
}

void vocabulary_free(struct vocabulary *v)
{
    if (!v) return;
    buf_free(&v->text);
    free(v->word);
    free(v->of);
    free(v);
}

/* ---- machine */

/* A stack: element `elem` comes next, and what lies below is another node; node 0 is the empty stack. */
struct node { int32_t elem, below, next; }; /* next: in its hash chain */
struct state {
    int32_t *node; /* [n], rising; owned */
    int32_t n, lead[256];
    uint64_t *mask; /* of tokens; NULL: not asked yet */
};
struct match {
    const struct grammar *g;
    const struct vocabulary *v;
    struct node *node;
    int32_t n_nodes, cap_nodes, *bucket; /* [NODES_MAX / 4] */
    struct state *state;                 /* [STATES_MAX] */
    int32_t n_states, now;
    bool begun, failed;
    uint64_t *first;                     /* mask of the first token, whose space in front is not text */
};
enum { BUCKETS = NODES_MAX / 4 };

static int32_t node_get(struct match *m, int32_t elem, int32_t below)
{
    int32_t *b = &m->bucket[((uint32_t)elem * 2654435761u ^ (uint32_t)below * 40503u) % BUCKETS];
    for (int32_t i = *b; i > 0; i = m->node[i].next)
        if (m->node[i].elem == elem && m->node[i].below == below) return i;
    if (m->n_nodes == m->cap_nodes) {
        int32_t cap = 2 * m->cap_nodes + 256;
        struct node *p = cap > NODES_MAX ? NULL : realloc(m->node, (size_t)cap * sizeof *p);
        if (!p) return m->failed = true, -1;
        m->node = p;
        m->cap_nodes = cap;
    }
    m->node[m->n_nodes] = (struct node){ elem, below, *b };
    return *b = m->n_nodes++;
}

/* A set of nodes while it is found; `seen` are also those that were only passed through. */
struct found {
    int32_t top[STACKS_MAX], seen[4 * STACKS_MAX];
    int n, n_seen;
};

/* Adds the stacks that read a byte next, when `elem` comes next above `below`. */
static void close_over(struct match *m, struct found *f, int32_t elem, int32_t below)
{
    const struct elem *x = &m->g->elem[elem];
    while (x->kind == ELEM_END && below) { /* the rule is over: what comes after it */
        elem = m->node[below].elem;
        below = m->node[below].below;
        x = &m->g->elem[elem];
    }
    int32_t node = x->kind == ELEM_END ? 0 : node_get(m, elem, below);
    for (int i = 0; i < f->n_seen; i++)
        if (f->seen[i] == node) return;
    if (m->failed || f->n_seen == 4 * STACKS_MAX || f->n == STACKS_MAX) {
        m->failed = true;
        return;
    }
    f->seen[f->n_seen++] = node;
    if (x->kind != ELEM_RULE) {
        f->top[f->n++] = node;
        return;
    }
    if (x[1].kind != ELEM_END) below = node_get(m, elem + 1, below); /* else the last call leaves nothing behind */
    const struct rule *r = &m->g->rule[x->arg];
    for (int32_t a = 0; a < r->n_alts && !m->failed; a++) close_over(m, f, r->alt[a], below);
}

static int number_order(const void *a, const void *b)
{
    const int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return x < y ? -1 : x > y;
}

static void states_free(struct match *m)
{
    for (int32_t i = 0; i < m->n_states; i++) {
        free(m->state[i].node);
        free(m->state[i].mask);
    }
    m->n_states = 0;
}

/* The number of the state with these stacks; DEAD: there are none, or no memory. */
static int32_t state_get(struct match *m, struct found *f)
{
    if (m->failed || !f->n) return DEAD;
    qsort(f->top, (size_t)f->n, sizeof f->top[0], number_order);
    const size_t bytes = (size_t)f->n * sizeof f->top[0];
    for (int32_t i = 0; i < m->n_states; i++)
        if (m->state[i].n == f->n && !memcmp(m->state[i].node, f->top, bytes)) return i;
    struct state s = { .node = malloc(bytes), .n = f->n };
    if (!s.node || m->n_states == STATES_MAX) {
        free(s.node);
        return m->failed = true, DEAD;
    }
    memcpy(s.node, f->top, bytes);
    for (int b = 0; b < 256; b++) s.lead[b] = UNKNOWN;
    m->state[m->n_states] = s;
    return m->n_states++;
}

static int32_t state_after(struct match *m, int32_t from, unsigned char b)
{
    if (m->state[from].lead[b] != UNKNOWN) return m->state[from].lead[b];
    struct found f = { .n = 0 };
    for (int32_t i = 0; i < m->state[from].n; i++) {
        const struct node at = m->node[m->state[from].node[i]];
        if (m->state[from].node[i] == 0 || !set_has(&m->g->set[m->g->elem[at.elem].arg], b)) continue;
        close_over(m, &f, at.elem + 1, at.below);
    }
    int32_t to = state_get(m, &f);
    if (!m->failed) m->state[from].lead[b] = to;
    return to;
}

/* Forgets all states but the one that the text is in. */
static bool states_begin_anew(struct match *m)
{
    struct found f = { .n = m->state[m->now].n };
    memcpy(f.top, m->state[m->now].node, (size_t)f.n * sizeof f.top[0]);
    states_free(m);
    m->failed = false;
    m->now = state_get(m, &f);
    return m->now != DEAD;
}

/* ---- tokens */

int match_new(struct match **ret, const struct grammar *g, const struct vocabulary *v, struct err *e)
{
    *ret = NULL;
    struct match *m = calloc(1, sizeof *m);
    if (m) {
        m->g = g;
        m->v = v;
        m->bucket = calloc(BUCKETS, sizeof *m->bucket);
        m->state = calloc(STATES_MAX, sizeof *m->state);
        m->node = calloc(256, sizeof *m->node);
        m->cap_nodes = m->node ? 256 : 0;
        m->n_nodes = 1; /* the empty stack */
    }
    if (!m || !m->bucket || !m->state || !m->node) {
        match_free(m);
        return err_set(e, ERR_NOMEM, "no memory for a grammar's machine");
    }
    struct found f = { .n = 0 };
    const struct rule *root = &g->rule[g->root];
    for (int32_t a = 0; a < root->n_alts; a++) close_over(m, &f, root->alt[a], 0);
    if ((m->now = state_get(m, &f)) == DEAD) {
        match_free(m);
        return err_set(e, ERR_LIMIT, "the grammar has too many ways to begin");
    }
    *ret = m;
    return 0;
}

void match_free(struct match *m)
{
    if (!m) return;
    states_free(m);
    free(m->state);
    free(m->node);
    free(m->bucket);
    free(m->first);
    free(m);
}

static int32_t walk(struct match *m, int32_t s, const char *p, size_t n)
{
    for (size_t i = 0; i < n && s != DEAD; i++) s = state_after(m, s, (unsigned char)p[i]);
    return s;
}

static size_t space_of_first(const struct match *m, const char *p) { return !m->begun && p[0] == ' '; }

/* Which words lead anywhere from state `from`: each goes on from the bytes that it shares with the one before. */
static void mask_fill(struct match *m, uint64_t *mask, int32_t from)
{
    int32_t at[WORD_MAX + 1];
    uint32_t known = 0; /* at[0..known] are right for the word before; at[known] may be DEAD */
    at[0] = from;
    for (int32_t i = 0; i < m->v->n && !m->failed; i++) {
        const struct word *w = &m->v->word[i];
        const size_t skip = space_of_first(m, w->p);
        if (skip) {
            if (w->n > 1 && walk(m, from, w->p + 1, w->n - 1) != DEAD) mask[w->id / 64] |= (uint64_t)1 << (w->id % 64);
            known = 0;
            continue;
        }
        if (w->common < known) known = w->common;
        while (known < w->n && at[known] != DEAD) {
            at[known + 1] = state_after(m, at[known], (unsigned char)w->p[known]);
            known++;
        }
        if (known == w->n && at[known] != DEAD) mask[w->id / 64] |= (uint64_t)1 << (w->id % 64);
    }
}

const uint64_t *match_tokens(struct match *m)
{
    for (int again = 0; again < 2; again++) {
        uint64_t **mask = m->begun ? &m->state[m->now].mask : &m->first;
        if (*mask) return *mask;
        uint64_t *p = calloc(((size_t)m->v->size + 63) / 64 + 1, sizeof *p);
        if (!p) return NULL;
        mask_fill(m, p, m->now);
        if (!m->failed) return *(m->begun ? &m->state[m->now].mask : &m->first) = p;
        free(p);
        if (!states_begin_anew(m)) return NULL; /* there were too many: once more with room */
    }
    return NULL;
}

bool match_push(struct match *m, int32_t token)
{
    if (token < 0 || token >= m->v->size || m->v->of[token] < 0) return false;
    const struct word *w = &m->v->word[m->v->of[token]];
    const size_t skip = space_of_first(m, w->p);
    int32_t to = walk(m, m->now, w->p + skip, w->n - skip);
    if (m->failed && states_begin_anew(m)) to = walk(m, m->now, w->p + skip, w->n - skip);
    if (to == DEAD) return false;
    m->now = to;
    m->begun = true;
    return true;
}

bool match_may_end(const struct match *m) { return m->state[m->now].node[0] == 0; }

size_t match_bytes(struct match *m, const char *text, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        int32_t to = state_after(m, m->now, (unsigned char)text[i]);
        if (to == DEAD) return i;
        m->now = to;
        m->begun = true;
    }
    return n;
}
