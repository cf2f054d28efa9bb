/* See index.h. */
#include "model/index.h"

#include <stdlib.h>
#include <string.h>

static int entry_order(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    int c = strcmp(x->name, y->name);
    return c ? c : x->rank - y->rank;
}

static int index_room(struct index *ix, size_t n, struct err *e)
{
    struct entry *at = realloc(ix->at, (ix->n + n + 1) * sizeof *at);
    if (!at) return err_set(e, ERR_NOMEM, "no memory for %zu names", n);
    ix->at = at;
    return 0;
}

/* Within index_room, before index_sort. */
static void index_put(struct index *ix, const struct weight *one)
{
    const char *name = one->name;
    if (!strncmp(name, "base_model.", 11)) { /* PEFT's wrapper around the model */
        name += 11;
        if (!strncmp(name, "model.", 6)) name += 6;
    }
    struct entry *en = &ix->at[ix->n];
    if (name_canonical(en->name, sizeof en->name, name) < 0) return;
    en->w = one;
    en->rank = ix->rank;
    ix->n++;
}

static void index_sort(struct index *ix)
{
    ix->rank++;
    qsort(ix->at, ix->n, sizeof *ix->at, entry_order);
    size_t k = 0;
    for (size_t i = 0; i < ix->n; i++)
        if (i + 1 == ix->n || strcmp(ix->at[i].name, ix->at[i + 1].name) != 0) ix->at[k++] = ix->at[i];
    ix->n = k;
}

int index_add(struct index *ix, const struct weights *w, struct err *e)
{
    size_t n = weights_count(w);
    int rc = index_room(ix, n, e);
    if (rc < 0) return rc;
    for (size_t i = 0; i < n; i++) index_put(ix, weights_at(w, i));
    index_sort(ix);
    return 0;
}

int index_rest(struct index *ix, const struct lora_set *set, struct err *e)
{
    int rc = index_room(ix, set->n_rest, e);
    if (rc < 0) return rc;
    for (size_t i = 0; i < set->n_rest; i++) index_put(ix, set->rest[i].w);
    index_sort(ix);
    return 0;
}

const struct weight *index_find(const struct index *ix, const char *name)
{
    size_t lo = 0, hi = ix->n;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        int c = strcmp(name, ix->at[mid].name);
        if (!c) return ix->at[mid].w;
        if (c < 0) hi = mid;
        else lo = mid + 1;
    }
    return NULL;
}
