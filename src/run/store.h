/* The store: keys and values of many sequences, in pages of KV_PAGE rows, and what of them may be used again.
 *
 * A page is held by the sequences that use it (`users`). When its rows are computed it becomes known: a node of a tree
 * in which a path from the root spells the keys of a prompt's positions, KV_PAGE a node, the last one maybe fewer. A
 * sequence starts by following its prompt down that tree; what it finds costs nothing. Pages that nobody holds stay
 * known until their memory is needed: the one that was used least recently goes first, leaves before what they hang on.
 *
 * Not safe for several threads: a store belongs to one sched.
 */
#pragma once
#include "run/prompt.h"

enum { STORE_ROOT = -1 };

struct page {
    uint64_t key[KV_PAGE];
    int n;                   /* keys known; children only where n is KV_PAGE */
    int users;
    bool known;
    int parent, child, next; /* in the tree: page numbers, -1 none; next: sibling, or next free page */
    uint64_t used;           /* when, for the least recently used */
};

struct store {
    struct cache cache;
    struct page *page;
    int n_pages, n_free, n_held; /* free: nobody's and unknown; held: users > 0 */
    int free, child;             /* first free page; first child of the root */
    uint64_t clock;
};
int store_init(struct store *s, const struct engine *g, int64_t positions, struct err *e);
void store_fini(struct store *s);

static inline int store_pages(int64_t positions) { return (int)((positions + KV_PAGE - 1) / KV_PAGE); }
/* Pages that store_take can still give. */
static inline int store_available(const struct store *s) { return s->n_pages - s->n_held; }

/* The child of `node` that holds exactly at[0..KV_PAGE), now held once more; or -1. */
int store_follow(struct store *s, int node, const struct position *at);
/* The child of `node` with the longest beginning in common with at[0..n), and how long that is; -1 if none. */
int store_closest(const struct store *s, int node, const struct position *at, int n, int *common);
/* A page for writing, held once. There must be one: store_available. */
int store_take(struct store *s);
/* Another sequence holds it. */
void store_hold(struct store *s, int page);
void store_drop(struct store *s, int page);
/* Page's first n rows are computed and hold at[0..n), behind `node`. False: the tree has that already, and the page
 * stays unknown. */
bool store_know(struct store *s, int node, int page, const struct position *at, int n);
