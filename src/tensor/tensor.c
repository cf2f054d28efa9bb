/* See tensor.h. */
#include "tensor/tensor.h"

#include <stdio.h>

#include "base/err.h"

struct tensor tensor_slice(struct tensor t, int64_t from, int64_t count)
{
    ASSERT(from >= 0 && count >= 0 && from + count <= t.n[0]);
    int64_t inner = t.n[0] ? tensor_count(t) / t.n[0] : 0;
    t.p = (char *)t.p + (size_t)(from * inner) * dtype_bytes((enum dtype)t.type);
    t.n[0] = count;
    t.id = 0;
    return t;
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
