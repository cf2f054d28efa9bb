/* Sums, copies and zeros. Scratch: none. */
#include <string.h>

#include "kern/ref/real.h"

void ref_add(struct kctx *kc, struct tensor y, struct tensor a, struct tensor b)
{
    const int64_t n = tensor_count(y);
#pragma omp parallel for schedule(static) num_threads(kc->n_threads)
    for (int64_t i = 0; i < n; i++) put(y, i, at(a, i) + at(b, i));
}

void ref_axpy(struct kctx *kc, struct tensor y, struct tensor x, float a)
{
    const int64_t n = tensor_count(y);
#pragma omp parallel for schedule(static) num_threads(kc->n_threads)
    for (int64_t i = 0; i < n; i++) put_add(y, i, (double)a * at(x, i));
}

void ref_cast(struct kctx *kc, struct tensor y, struct tensor x)
{
    const int64_t rows = tensor_rows(y), cols = tensor_cols(y), n = tensor_count(y);
    const enum dtype to = (enum dtype)y.type, from = (enum dtype)x.type;
    if (to == from) {
        memcpy(y.p, x.p, tensor_bytes(y));
    } else if (dtype_is_quant(to)) {
#pragma omp parallel for schedule(static) num_threads(kc->n_threads)
        for (int64_t r = 0; r < rows; r++) quant_row(tensor_row(y, r), to, tensor_row(x, r), from, cols);
    } else if (dtype_is_quant(from)) {
        for (int64_t i = 0; i < n; i++) put(y, i, at(x, i));
    } else {
        dtype_convert(y.p, to, x.p, from, n);
    }
}

void ref_zero(struct kctx *kc, struct tensor y)
{
    (void)kc;
    memset(y.p, 0, tensor_bytes(y));
}
