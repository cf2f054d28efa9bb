/* See arena.h. */
#define _GNU_SOURCE
#include "base/arena.h"

#include <string.h>
#include <sys/mman.h>

int arena_init(struct arena *a, size_t bytes, struct err *e)
{
    *a = (struct arena){ 0 };
    bytes = (bytes + 4095) & ~(size_t)4095;
    if (!bytes) return 0;
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return err_set(e, ERR_NOMEM, "no memory for %zu bytes", bytes);
    madvise(p, bytes, MADV_HUGEPAGE); /* fewer TLB misses for activations and caches; a hint only */
    a->base = p;
    a->cap = bytes;
    return 0;
}

void arena_init_counting(struct arena *a)
{
    *a = (struct arena){ .base = (char *)ARENA_ALIGN, .cap = SIZE_MAX / 2, .counting = true };
}

void arena_init_over(struct arena *a, void *base, size_t bytes, void (*release)(struct arena *), void *owner)
{
    *a = (struct arena){ .base = base, .cap = bytes, .release = release, .owner = owner };
}

void arena_fini(struct arena *a)
{
    if (a->release) a->release(a);
    else if (a->base && !a->counting) munmap(a->base, a->cap);
    *a = (struct arena){ 0 };
}

void *arena_take(struct arena *a, size_t bytes)
{
    if (bytes > SIZE_MAX / 4) BUG("arena: absurd size %zu", bytes);
    bytes = arena_aligned(bytes);
    if (bytes > a->cap - a->used)
        BUG("arena too small: %zu of %zu bytes used, %zu more wanted", a->used, a->cap, bytes);
    void *p = a->base + a->used;
    a->used += bytes;
    if (a->used > a->high) a->high = a->used;
    return p;
}
