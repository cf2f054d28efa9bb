/* See tensor.h. */
#include "tensor/tensor.h"

#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "tensor/quant.h"

struct tensor tensor_slice(struct tensor t, int64_t from, int64_t count)
{
    ASSERT(from >= 0 && count >= 0 && from + count <= t.n[0]);
    struct tensor before = t;
    before.n[0] = from;
    t.p = (char *)t.p + tensor_bytes(before);
    t.n[0] = count;
    t.id = 0;
    return t;
}

void tensor_convert(struct tensor to, struct tensor from)
{
    const enum dtype t = (enum dtype)to.type, f = (enum dtype)from.type;
    const int64_t rows = tensor_rows(to), cols = tensor_cols(to);
    ASSERT(tensor_same_shape(to, from) && (t == f || !dtype_is_quant(f) || t == DT_F32));
    if (t != f && (dtype_is_quant(t) || dtype_is_quant(f))) {
#pragma omp parallel for schedule(static)
        for (int64_t r = 0; r < rows; r++)
            if (dtype_is_quant(t)) quant_row(tensor_row(to, r), t, tensor_row(from, r), f, cols);
            else dequant_row(tensor_row(to, r), f, tensor_row(from, r), cols);
    } else if (dtype_is_quant(t)) {
        memmove(to.p, from.p, tensor_bytes(to));
    } else {
        dtype_convert(to.p, t, from.p, f, tensor_count(to));
    }
}

int tensor_same_shape(struct tensor a, struct tensor b)
{
    if (a.nd != b.nd) return 0;
    for (int i = 0; i < a.nd; i++)
        if (a.n[i] != b.n[i]) return 0;
    return 1;
}

char *tensor_shape(struct tensor t, char *s)
{
    int k = snprintf(s, TENSOR_SHAPE_MAX, "[");
    for (int i = 0; i < t.nd; i++)
        k += snprintf(s + k, (size_t)(TENSOR_SHAPE_MAX - k), i ? ", %lld" : "%lld", (long long)t.n[i]);
    snprintf(s + k, (size_t)(TENSOR_SHAPE_MAX - k), "]");
    return s;
}
