/* Memory that is planned once and handed out in order.
 *
 * An arena is one block. arena_take moves a mark forward; arena_rewind moves it back. Nothing is freed singly.
 * A counting arena has no block: it hands out addresses that must not be read or written, and remembers the highest
 * mark. Running a step against one tells how large the real arena has to be.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct arena {
    char *base;
    size_t cap, used, high; /* bytes */
    bool counting;
    void (*release)(struct arena *); /* NULL: arena_init's own block */
    void *owner;                     /* release's */
};

enum { ARENA_ALIGN = 64 };
/* What arena_take moves the mark by. */
static inline size_t arena_aligned(size_t bytes) { return (bytes + ARENA_ALIGN - 1) & ~(size_t)(ARENA_ALIGN - 1); }

/* Takes `bytes` of zero pages from the system (they cost memory when first touched). */
int arena_init(struct arena *a, size_t bytes, struct err *e);
void arena_init_counting(struct arena *a);
/* Over a block of somebody else's (a device's memory); release, if not NULL, is called by arena_fini. */
void arena_init_over(struct arena *a, void *base, size_t bytes, void (*release)(struct arena *), void *owner);
void arena_fini(struct arena *a); /* accepts a zeroed arena */

/* 64-byte aligned; never NULL: an arena that is too small is a bug in the plan. The memory is not cleared. */
void *arena_take(struct arena *a, size_t bytes);

static inline size_t arena_mark(const struct arena *a) { return a->used; }
static inline void arena_rewind(struct arena *a, size_t mark) { a->used = mark; }
