/* Rows by index. Scratch: none. */
#include <string.h>

#include "kern/ref/real.h"

/* dst[d] = src[s], converted */
static void row_copy(struct tensor dst, int64_t d, struct tensor src, int64_t s)
{
    const int64_t C = tensor_cols(dst);
    const enum dtype to = (enum dtype)dst.type, from = (enum dtype)src.type;
    if (to == from) memcpy(tensor_row(dst, d), tensor_row(src, s), dtype_row_bytes(to, C));
    else if (dtype_is_quant(to)) quant_row(tensor_row(dst, d), to, tensor_row(src, s), from, C);
    else for (int64_t i = 0; i < C; i++) put(dst, d * C + i, at(src, s * C + i));
}

/* dst[d] += src[s] */
static void row_add(struct tensor dst, int64_t d, struct tensor src, int64_t s)
{
    const int64_t C = tensor_cols(dst);
    for (int64_t i = 0; i < C; i++) put_add(dst, d * C + i, at(src, s * C + i));
}

void ref_rows_get(struct kctx *kc, struct tensor y, struct tensor x, struct tensor idx)
{
    const int64_t n = tensor_count(idx), m = tensor_rows(x);
#pragma omp parallel for schedule(static) num_threads(kc->n_threads)
    for (int64_t i = 0; i < n; i++) {
        const int64_t k = ints(idx)[i];
        ASSERT(k < m);
        if (k >= 0) row_copy(y, i, x, k);
        else memset(tensor_row(y, i), 0, dtype_row_bytes((enum dtype)y.type, tensor_cols(y)));
    }
}

void ref_rows_put(struct kctx *kc, struct tensor y, struct tensor idx, struct tensor x)
{
    const int64_t n = tensor_count(idx), m = tensor_rows(y);
#pragma omp parallel for schedule(static) num_threads(kc->n_threads)
    for (int64_t i = 0; i < n; i++) {
        const int64_t k = ints(idx)[i];
        ASSERT(k < m);
        if (k >= 0) row_copy(y, k, x, i);
    }
}

void ref_rows_get_add(struct kctx *kc, struct tensor y, struct tensor x, struct tensor idx)
{
    if (!y.p) return;
    const int64_t n = tensor_count(idx), m = tensor_rows(x);
#pragma omp parallel for schedule(static) num_threads(kc->n_threads)
    for (int64_t i = 0; i < n; i++) {
        const int64_t k = ints(idx)[i];
        ASSERT(k < m);
        if (k >= 0) row_add(y, i, x, k);
    }
}

/* In one thread: indices may repeat, and are added in order. */
void ref_rows_put_add(struct kctx *kc, struct tensor y, struct tensor idx, struct tensor x)
{
    (void)kc;
    if (!y.p) return;
    const int64_t n = tensor_count(idx), m = tensor_rows(y);
    for (int64_t i = 0; i < n; i++) {
        const int64_t k = ints(idx)[i];
        ASSERT(k < m);
        if (k >= 0) row_add(y, k, x, i);
    }
}
