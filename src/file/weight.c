/* See weight.h. */
#include "file/weight.h"

#include <stdlib.h>
#include <string.h>

/* The array at p with room for one more element of `size` bytes; NULL without memory, then the array is as it
 * was. */
static void *room(void *p, size_t n, size_t *cap, size_t size)
{
    if (n < *cap) return p;
    size_t want = *cap ? *cap * 2 : 64;
    void *q = realloc(p, want * size);
    if (q) *cap = want;
    return q;
}

void *weight_list_alloc(struct weight_list *l, size_t bytes)
{
    void *p = NULL, **own = room(l->own, l->n_own, &l->cap_own, sizeof *l->own);
    if (!own) return NULL;
    l->own = own;
    if (posix_memalign(&p, 64, bytes ? bytes : 1)) return NULL;
    return l->own[l->n_own++] = p;
}

int weight_list_add(struct weight_list *l, const char *name, size_t n_name, struct tensor t, const char *file,
                    struct err *e)
{
    if (n_name > WEIGHT_NAME_MAX || memchr(name, 0, n_name))
        return err_set(e, ERR_FORMAT, "'%s': a tensor's name is too long or holds a NUL", file);
    if (l->n >= WEIGHTS_MAX)
        return err_set(e, ERR_LIMIT, "'%s' holds more than %d tensors", file, WEIGHTS_MAX);
    char *copy = weight_list_alloc(l, n_name + 1);
    struct weight *at = room(l->at, l->n, &l->cap, sizeof *l->at);
    if (at) l->at = at;
    if (!copy || !at) return err_set(e, ERR_NOMEM, "no memory for a name");
    memcpy(copy, name, n_name);
    copy[n_name] = 0;
    if ((uintptr_t)t.p % dtype_bytes((enum dtype)t.type)) {
        void *data = weight_list_alloc(l, tensor_bytes(t));
        if (!data) return err_set(e, ERR_NOMEM, "'%s': no memory for tensor '%s'", file, copy);
        memcpy(data, t.p, tensor_bytes(t));
        t.p = data;
    }
    l->at[l->n++] = (struct weight){ copy, t, file };
    return 0;
}

void weight_list_fini(struct weight_list *l)
{
    for (size_t i = 0; i < l->n_own; i++) free(l->own[i]);
    free(l->own);
    free(l->at);
    *l = (struct weight_list){ 0 };
}
