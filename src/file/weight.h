/* A named tensor in a file, and a list of them: what the parsers of safetensors and torch files fill, and
 * what the writers of both take. */
#pragma once
#include <stddef.h>

#include "base/err.h"
#include "tensor/tensor.h"

struct weight {
    const char *name; /* "model.norm.weight" */
    struct tensor t;  /* a view; from a parser, of the file's bytes (read-only), aligned for its type */
    const char *file; /* path of the file it is from, for messages; writers do not read it */
};

struct weight_list {
    struct weight *at;
    size_t n, cap;
    void **own; /* names, and copies of tensors that the file holds misaligned or with strides */
    size_t n_own, cap_own;
};

enum { WEIGHTS_MAX = 1 << 20, WEIGHT_NAME_MAX = 4096 }; /* tensors in one file; bytes in a name */

/* Appends a row. The name is copied; `file` is borrowed. Data that is not aligned for its type is copied. */
int weight_list_add(struct weight_list *l, const char *name, size_t n_name, struct tensor t, const char *file,
                    struct err *e);
/* Memory that lives as long as the list, 64-byte aligned; NULL when there is none. */
void *weight_list_alloc(struct weight_list *l, size_t bytes);
void weight_list_fini(struct weight_list *l); /* accepts a zeroed list */

/* How a writer gets a tensor's bytes: the address on the host, valid until the next call (a device copy, a
 * conversion); < 0 stops the writer with that error. A writer that is given no function reads w->t.p. */
typedef int weight_fetch_fn(const void **ret, void *ctx, const struct weight *w, struct err *e);
