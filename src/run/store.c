/* See store.h. */
#include "run/store.h"

#include <stdlib.h>

int store_init(struct store *s, const struct engine *g, int64_t positions, struct err *e)
{
    *s = (struct store){ .free = -1, .child = -1, .n_pages = store_pages(positions) };
    int rc = cache_init(&s->cache, g, s->n_pages * KV_PAGE, e);
    if (rc < 0) return rc;
    s->page = calloc((size_t)s->n_pages, sizeof *s->page);
    if (!s->page) return err_set(e, ERR_NOMEM, "no memory for the pages of a cache");
    for (int i = s->n_pages - 1; i >= 0; i--) {
        s->page[i] = (struct page){ .parent = -1, .child = -1, .next = s->free };
        s->free = i;
    }
    s->n_free = s->n_pages;
    return 0;
}

void store_fini(struct store *s)
{
    cache_fini(&s->cache);
    free(s->page);
    *s = (struct store){ 0 };
}

static int *children(struct store *s, int node) { return node == STORE_ROOT ? &s->child : &s->page[node].child; }

static int common_keys(const struct page *p, const struct position *at, int n)
{
    int same = 0;
    while (same < n && same < p->n && p->key[same] == at[same].key) same++;
    return same;
}

int store_closest(const struct store *s, int node, const struct position *at, int n, int *common)
{
    int best = -1;
    *common = 0;
    for (int i = node == STORE_ROOT ? s->child : s->page[node].child; i >= 0; i = s->page[i].next) {
        int same = common_keys(&s->page[i], at, n);
        if (same <= *common) continue;
        *common = same;
        best = i;
    }
    return best;
}

int store_follow(struct store *s, int node, const struct position *at)
{
    int common, page = store_closest(s, node, at, KV_PAGE, &common);
    if (common < KV_PAGE) return -1;
    store_hold(s, page);
    return page;
}

void store_hold(struct store *s, int page)
{
    struct page *p = &s->page[page];
    s->n_held += p->users++ == 0;
    p->used = ++s->clock;
}

static void make_free(struct store *s, int page)
{
    s->page[page] = (struct page){ .parent = -1, .child = -1, .next = s->free };
    s->free = page;
    s->n_free++;
}

void store_drop(struct store *s, int page)
{
    struct page *p = &s->page[page];
    ASSERT(p->users > 0);
    if (--p->users) return;
    s->n_held--;
    p->used = ++s->clock;
    if (!p->known) make_free(s, page);
}

/* Forgets the leaf that nobody holds and that was used least recently. */
static void evict(struct store *s)
{
    int oldest = -1;
    for (int i = 0; i < s->n_pages; i++) {
        const struct page *p = &s->page[i];
        if (p->known && !p->users && p->child < 0 && (oldest < 0 || p->used < s->page[oldest].used)) oldest = i;
    }
    ASSERT(oldest >= 0);
    int *link = children(s, s->page[oldest].parent);
    while (*link != oldest) link = &s->page[*link].next;
    *link = s->page[oldest].next;
    make_free(s, oldest);
}

int store_take(struct store *s)
{
    if (s->free < 0) evict(s);
    int page = s->free;
    s->free = s->page[page].next;
    s->n_free--;
    s->page[page].next = -1;
    store_hold(s, page);
    return page;
}

bool store_know(struct store *s, int node, int page, const struct position *at, int n)
{
    struct page *p = &s->page[page];
    int common;
    ASSERT(!p->known && p->users > 0 && n > 0 && n <= KV_PAGE);
    store_closest(s, node, at, n, &common);
    if (common == n) return false;
    int *first = children(s, node);
    p->known = true;
    p->parent = node;
    p->next = *first;
    p->n = n;
    for (int i = 0; i < n; i++) p->key[i] = at[i].key;
    *first = page;
    return true;
}
