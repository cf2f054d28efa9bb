/* A tensor is a view: address, type, shape. It never owns memory. Row-major and contiguous; n[0] is outermost.
 *
 * 48 bytes, passed by value; model code reads like algebra. No strides: an op that wants another layout says so.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "tensor/dtype.h"

enum { TENSOR_DIMS = 4 };
enum { TENSOR_FRESH = -1 }; /* holds nothing yet: what is added to it is written (kern.h, fresh) */

struct tensor {
    void *p;      /* NULL: no tensor (an optional argument that is absent, a gradient that nobody wants) */
    int8_t type;  /* enum dtype */
    int8_t nd;    /* 1..4; a 0-d file tensor is read as [1] */
    int32_t id;   /* gradient slot on the tape, 0: none wanted; of a gradient itself: 0, or TENSOR_FRESH */
    int64_t n[TENSOR_DIMS];
};

static inline struct tensor tensor_1d(void *p, enum dtype t, int64_t a)
{
    return (struct tensor){ p, (int8_t)t, 1, 0, { a, 1, 1, 1 } };
}
static inline struct tensor tensor_2d(void *p, enum dtype t, int64_t a, int64_t b)
{
    return (struct tensor){ p, (int8_t)t, 2, 0, { a, b, 1, 1 } };
}

/* Elements. */
static inline int64_t tensor_count(struct tensor t)
{
    int64_t c = 1;
    for (int i = 0; i < t.nd; i++) c *= t.n[i];
    return c;
}

/* Last dimension, and the product of the others: any tensor seen as [rows, cols]. */
static inline int64_t tensor_cols(struct tensor t) { return t.n[t.nd - 1]; }
static inline int64_t tensor_rows(struct tensor t) { return tensor_cols(t) ? tensor_count(t) / tensor_cols(t) : 0; }

static inline size_t tensor_bytes(struct tensor t)
{
    return (size_t)tensor_rows(t) * dtype_row_bytes((enum dtype)t.type, tensor_cols(t));
}
/* Row r of t seen as [rows, cols]: its address. */
static inline void *tensor_row(struct tensor t, int64_t r)
{
    return (char *)t.p + (size_t)r * dtype_row_bytes((enum dtype)t.type, tensor_cols(t));
}

/* The elements of `from` in the type and place of `to`, which has the same shape. Float types to any; quantised ones
 * to themselves and to F32. Uses all threads. */
void tensor_convert(struct tensor to, struct tensor from);

/* Rows [from, from+count) of the outermost dimension. Keeps no gradient slot. */
struct tensor tensor_slice(struct tensor t, int64_t from, int64_t count);
int tensor_same_shape(struct tensor a, struct tensor b);

/* "[4096, 1024]" into s (enough: TENSOR_SHAPE_MAX); returns s. */
enum { TENSOR_SHAPE_MAX = 96 };
char *tensor_shape(struct tensor t, char *s);
