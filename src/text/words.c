/* See words.h. A table of pointers with open addressing: an entry is written once, before its pointer is, and a place
 * that is taken stays so. */
#include "text/words.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { PLACES = 1 << 18, TRIES = 8, TEXT_MAX = 64, IDS_AT_MOST = 32 };

struct word {
    uint64_t hash;
    unsigned char n_text, n_ids, begins;
    int32_t ids[]; /* then the text */
};

struct words {
    const struct spm *first, *rest;
    bool alone[128];
    struct word *_Atomic place[PLACES];
};

struct words *words_new(const struct spm *first, const struct spm *rest, const bool alone[128])
{
    struct words *w = calloc(1, sizeof *w); /* pages are taken when touched; a NULL pointer is all zeros */
    if (!w) return NULL;
    w->first = first;
    w->rest = rest;
    memcpy(w->alone, alone, sizeof w->alone);
    return w;
}

void words_free(struct words *w)
{
    for (size_t i = 0; w && i < PLACES; i++) free(atomic_load_explicit(&w->place[i], memory_order_relaxed));
    free(w);
}

static char *text_of(struct word *w) { return (char *)(w->ids + w->n_ids); }

static uint64_t hash_of(struct span s, bool begins)
{
    uint64_t h = s.n * 2 + begins, v;
    for (; s.n >= sizeof v; s.p += sizeof v, s.n -= sizeof v) {
        memcpy(&v, s.p, sizeof v);
        h = (h ^ v) * 0xff51afd7ed558ccdu;
        h ^= h >> 32;
    }
    v = 0;
    memcpy(&v, s.p, s.n);
    h = (h ^ v) * 0xff51afd7ed558ccdu;
    return h ^ h >> 29;
}

static void put(void *ctx, int32_t id) { ids_add(ctx, id); }

static struct word *make(struct span s, bool begins, uint64_t hash, const int32_t *ids, size_t n)
{
    struct word *w = malloc(sizeof *w + n * sizeof *ids + s.n);
    if (!w) return NULL;
    *w = (struct word){ .hash = hash, .n_text = (unsigned char)s.n, .n_ids = (unsigned char)n, .begins = begins };
    memcpy(w->ids, ids, n * sizeof *ids);
    memcpy(text_of(w), s.p, s.n);
    return w;
}

/* Encodes a word and keeps it at the place, if nobody else has taken that. */
static int learn(struct words *w, struct span s, bool begins, uint64_t hash, struct word *_Atomic *at, struct ids *out)
{
    const size_t before = out->n;
    if (spm_encode(begins ? w->first : w->rest, s.p, s.n, put, out) < 0) return -1;
    if (!at || out->failed || out->n - before > IDS_AT_MOST) return 0;
    struct word *new = make(s, begins, hash, out->p + before, out->n - before), *none = NULL;
    if (new && !atomic_compare_exchange_strong_explicit(at, &none, new, memory_order_release, memory_order_relaxed))
        free(new);
    return 0;
}

static int encode_word(struct words *w, struct span s, bool begins, struct ids *out)
{
    if (s.n > TEXT_MAX) return learn(w, s, begins, 0, NULL, out);
    const uint64_t hash = hash_of(s, begins);
    for (size_t i = 0; i < TRIES; i++) {
        struct word *_Atomic *at = &w->place[(hash + i) % PLACES];
        struct word *x = atomic_load_explicit(at, memory_order_acquire);
        if (!x) return learn(w, s, begins, hash, at, out);
        if (x->hash != hash || x->n_text != s.n || x->begins != begins || memcmp(text_of(x), s.p, s.n) != 0) continue;
        ids_add_n(out, x->ids, x->n_ids);
        return 0;
    }
    return learn(w, s, begins, hash, NULL, out);
}

/* Where the word at the start of s ends. */
static size_t word_end(const struct words *w, struct span s)
{
    const unsigned char *p = (const unsigned char *)s.p;
    const unsigned char inside = 0x81; /* a U+2581 of the text's own is a space too: its last byte */
    size_t i = 1;
    if (p[0] < 128 && w->alone[p[0]]) return 1;
    for (; i < s.n; i++) {
        if (p[i] == ' ' && p[i - 1] != ' ' && p[i - 1] != inside) break;
        if (p[i] < 128 && w->alone[p[i]]) break;
    }
    return i;
}

int words_encode(struct words *w, struct span s, bool begins, struct ids *out)
{
    while (s.n) {
        const size_t n = word_end(w, s);
        if (encode_word(w, (struct span){ s.p, n }, begins, out) < 0) return -1;
        s = (struct span){ s.p + n, s.n - n };
        begins = false;
    }
    return 0;
}
