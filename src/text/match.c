/* See grammar.h. The machine: stacks are interned nodes (what comes next, and where to go on after it), a state is a
 * set of stacks whose tops read a byte; states, and where each byte leads, are kept. */
#include <stdlib.h>
#include <string.h>

#include "text/grammar_in.h"

enum { NODES_MAX = 1 << 18, NODE_BUCKETS = 1 << 16, STATE_BUCKETS = 1 << 12, STATES_BYTES = 16 << 20, WORD_MAX = 4096,
       WORK_FIRST = 1 << 23, WORK_TOKEN = 1 << 16, WORK_STEP = 1 << 15, DEAD = -1, UNKNOWN = -2 };

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
struct node {
    int32_t elem, below, next; /* next: in its hash chain */
    uint32_t seen;             /* the last set that it was found for */
};
struct state {
    int32_t *node; /* [n], rising; owned */
    int32_t n, next, lead[256];
    struct byte_set reads; /* what the tops read */
    uint64_t *mask;        /* of tokens; NULL: not asked yet */
};
struct match {
    const struct grammar *g;
    const struct vocabulary *v;
    struct node *node;
    int32_t n_nodes, cap_nodes, *node_bucket; /* [NODE_BUCKETS] 0: none */
    struct state *state;
    int32_t n_states, cap_states, now;
    int32_t state_bucket[STATE_BUCKETS]; /* number + 1 */
    size_t bytes;                        /* of states, at most STATES_BYTES */
    bool begun, failed;                  /* failed: there was no room, no memory, or work is spent */
    int64_t work, work_max;              /* stacks that were looked at, some 0.1 us each */
    int64_t work_now;                    /* where match_tokens is to stop */
    uint64_t *first;                     /* mask of the first token, whose space in front is not text */
    /* the set of stacks that is being found, and what is still to be looked at */
    uint32_t round;
    int32_t *top, n_top, cap_top;
    struct ahead { int32_t elem, below; } *ahead;
    int32_t n_ahead, cap_ahead;
};

/* Room for one more; false: there is none. */
static bool room(struct match *m, void **p, int32_t n, int32_t *cap, size_t size)
{
    if (n < *cap) return true;
    int32_t more = 2 * *cap + 256;
    void *q = more <= 2 * NODES_MAX ? realloc(*p, (size_t)more * size) : NULL;
    if (!q) return m->failed = true, false;
    *p = q;
    *cap = more;
    return true;
}

static int32_t node_get(struct match *m, int32_t elem, int32_t below)
{
    int32_t *b = &m->node_bucket[((uint32_t)elem * 2654435761u ^ (uint32_t)below * 40503u) % NODE_BUCKETS];
    for (int32_t i = *b; i > 0; i = m->node[i].next)
        if (m->node[i].elem == elem && m->node[i].below == below) return i;
    if (m->n_nodes == NODES_MAX || !room(m, (void **)&m->node, m->n_nodes, &m->cap_nodes, sizeof *m->node))
        return m->failed = true, 0;
    m->node[m->n_nodes] = (struct node){ .elem = elem, .below = below, .next = *b };
    return *b = m->n_nodes++;
}

/* Begins a set of stacks. */
static void set_begin(struct match *m)
{
    m->n_top = 0;
    if (++m->round) return;
    for (int32_t i = 0; i < m->n_nodes; i++) m->node[i].seen = 0;
    m->round = 1;
}

static void look_at(struct match *m, int32_t elem, int32_t below)
{
    if (room(m, (void **)&m->ahead, m->n_ahead, &m->cap_ahead, sizeof *m->ahead))
        m->ahead[m->n_ahead++] = (struct ahead){ elem, below };
}

/* Adds the stack to the set if it reads a byte next, else has what its rule may begin with looked at. */
static void close_one(struct match *m, struct ahead at)
{
    const struct elem *x = &m->g->elem[at.elem];
    m->failed |= ++m->work > m->work_max;
    while (x->kind == ELEM_END && at.below) { /* the rule is over: what comes after it */
        x = &m->g->elem[m->node[at.below].elem];
        at.below = m->node[at.below].below;
    }
    const int32_t node = x->kind == ELEM_END ? 0 : node_get(m, (int32_t)(x - m->g->elem), at.below);
    if (m->failed || m->node[node].seen == m->round) return;
    m->node[node].seen = m->round;
    if (x->kind != ELEM_RULE) {
        if (room(m, (void **)&m->top, m->n_top, &m->cap_top, sizeof *m->top)) m->top[m->n_top++] = node;
        return;
    }
    if (x[1].kind != ELEM_END) /* else the last call leaves nothing behind */
        at.below = node_get(m, (int32_t)(x + 1 - m->g->elem), at.below);
    const struct rule *r = &m->g->rule[x->arg];
    for (int32_t a = 0; a < r->n_alts && !m->failed; a++) look_at(m, r->alt[a], at.below);
}

/* Adds the stacks that read a byte next, when `elem` comes next above `below`. */
static void close_over(struct match *m, int32_t elem, int32_t below)
{
    m->n_ahead = 0;
    look_at(m, elem, below);
    while (m->n_ahead && !m->failed) close_one(m, m->ahead[--m->n_ahead]);
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
    memset(m->state_bucket, 0, sizeof m->state_bucket);
    m->n_states = 0;
    m->bytes = 0;
}

/* A state of the stacks that were found; DEAD: no room. */
static int32_t state_new(struct match *m, int32_t *bucket)
{
    const size_t bytes = (size_t)m->n_top * sizeof *m->top;
    struct state s = { .n = m->n_top, .next = *bucket, .node = malloc(bytes) };
    m->bytes += sizeof s + bytes;
    if (!s.node || m->bytes > STATES_BYTES
        || !room(m, (void **)&m->state, m->n_states, &m->cap_states, sizeof *m->state)) {
        free(s.node);
        return m->failed = true, DEAD;
    }
    memcpy(s.node, m->top, bytes);
    for (int32_t i = 0; i < s.n; i++)
        for (int k = 0; k < 4 && s.node[i]; k++)
            s.reads.bit[k] |= m->g->set[m->g->elem[m->node[s.node[i]].elem].arg].bit[k];
    for (int b = 0; b < 256; b++) s.lead[b] = UNKNOWN;
    m->state[m->n_states] = s;
    *bucket = ++m->n_states;
    return m->n_states - 1;
}

/* The number of the state with the stacks that were found; DEAD: there are none, or no room. */
static int32_t state_get(struct match *m)
{
    if (m->failed || !m->n_top) return DEAD;
    qsort(m->top, (size_t)m->n_top, sizeof *m->top, number_order);
    uint32_t hash = 0;
    for (int32_t i = 0; i < m->n_top; i++) hash = (hash ^ (uint32_t)m->top[i]) * 2654435761u;
    int32_t *bucket = &m->state_bucket[(hash ^ hash >> 16) % STATE_BUCKETS];
    for (int32_t i = *bucket; i; i = m->state[i - 1].next) {
        const struct state *s = &m->state[i - 1];
        if (s->n == m->n_top && !memcmp(s->node, m->top, (size_t)s->n * sizeof *s->node)) return i - 1;
    }
    return state_new(m, bucket);
}

static int32_t state_after(struct match *m, int32_t from, unsigned char b)
{
    const struct state *s = &m->state[from];
    if (s->lead[b] != UNKNOWN) return s->lead[b];
    const int32_t *nodes = s->node, n = set_has(&s->reads, b) ? s->n : 0;
    set_begin(m);
    m->work += n;
    m->failed |= m->work > m->work_max;
    for (int32_t i = 0; i < n && !m->failed; i++) {
        const struct node at = m->node[nodes[i]];
        if (nodes[i] && set_has(&m->g->set[m->g->elem[at.elem].arg], b)) close_over(m, at.elem + 1, at.below);
    }
    int32_t to = state_get(m);
    if (!m->failed) m->state[from].lead[b] = to;
    return to;
}

/* Forgets all states but the one that the text is in. */
static bool states_begin_anew(struct match *m)
{
    if (m->work > m->work_max) return false;
    set_begin(m);
    m->failed = false;
    for (int32_t i = 0; i < m->state[m->now].n; i++) {
        if (!room(m, (void **)&m->top, m->n_top, &m->cap_top, sizeof *m->top)) return false;
        m->top[m->n_top++] = m->state[m->now].node[i];
    }
    states_free(m);
    m->now = state_get(m);
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
        m->work_max = WORK_FIRST;
        m->work_now = INT64_MAX;
        m->node_bucket = calloc(NODE_BUCKETS, sizeof *m->node_bucket);
    }
    if (!m || !m->node_bucket || !room(m, (void **)&m->node, 0, &m->cap_nodes, sizeof *m->node)) {
        match_free(m);
        return err_set(e, ERR_NOMEM, "no memory for a grammar's machine");
    }
    m->node[m->n_nodes++] = (struct node){ 0 }; /* the empty stack */
    const struct rule *root = &g->rule[g->root];
    set_begin(m);
    for (int32_t a = 0; a < root->n_alts; a++) close_over(m, root->alt[a], 0);
    if ((m->now = state_get(m)) == DEAD) {
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
    free(m->node_bucket);
    free(m->top);
    free(m->ahead);
    free(m->first);
    free(m);
}

static int32_t walk(struct match *m, int32_t s, const char *p, size_t n)
{
    for (size_t i = 0; i < n && s != DEAD && m->work <= m->work_now; i++) s = state_after(m, s, (unsigned char)p[i]);
    return s;
}

static size_t space_of_first(const struct match *m, const char *p) { return !m->begun && p[0] == ' '; }

/* Which words lead anywhere from state `from`: each goes on from the bytes that it shares with the one before. */
static void mask_fill(struct match *m, uint64_t *mask, int32_t from)
{
    int32_t at[WORD_MAX + 1];
    uint32_t known = 0; /* at[0..known] are right for the word before; at[known] may be DEAD */
    at[0] = from;
    for (int32_t i = 0; i < m->v->n && !m->failed && m->work <= m->work_now; i++) {
        const struct word *w = &m->v->word[i];
        const size_t skip = space_of_first(m, w->p);
        if (skip) {
            if (w->n > 1 && walk(m, from, w->p + 1, w->n - 1) != DEAD) mask[w->id / 64] |= (uint64_t)1 << (w->id % 64);
            known = 0;
            continue;
        }
        if (w->common < known) known = w->common;
        while (known < w->n && at[known] != DEAD && m->work <= m->work_now) {
            at[known + 1] = state_after(m, at[known], (unsigned char)w->p[known]);
            known++;
        }
        if (known == w->n && at[known] != DEAD) mask[w->id / 64] |= (uint64_t)1 << (w->id % 64);
    }
}

const uint64_t *match_tokens(struct match *m)
{
    const size_t n = ((size_t)m->v->size + 63) / 64 + 1;
    for (int again = 0; again < 2 && m->now != DEAD; again++) {
        uint64_t *known = m->begun ? m->state[m->now].mask : m->first;
        if (known) return known;
        uint64_t *p = calloc(n, sizeof *p);
        if (!p) return NULL;
        m->bytes += n * sizeof *p;
        mask_fill(m, p, m->now);
        if (!m->failed && m->work <= m->work_now) return *(m->begun ? &m->state[m->now].mask : &m->first) = p;
        free(p);
        if (!m->failed) m->bytes -= n * sizeof *p;
        if (!m->failed || again || m->n_nodes == NODES_MAX || !states_begin_anew(m)) return NULL;
        /* there were too many states: once more with room */
    }
    return NULL;
}

bool match_ready(struct match *m)
{
    m->work_now = m->work + WORK_STEP;
    const bool ready = match_tokens(m) || m->failed || m->work <= m->work_now;
    m->work_now = INT64_MAX;
    return ready;
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
    m->work_max += WORK_TOKEN;
    return true;
}

void match_follow(struct match *m) { m->begun = true; }

bool match_may_end(const struct match *m) { return m->now != DEAD && m->state[m->now].node[0] == 0; }

bool match_failed(const struct match *m) { return m->failed; }

size_t match_bytes(struct match *m, const char *text, size_t n)
{
    for (size_t i = 0; i < n && m->now != DEAD; i++) {
        int32_t to = state_after(m, m->now, (unsigned char)text[i]);
        if (to == DEAD) return i;
        m->now = to;
        m->begun = true;
    }
    return n;
}
