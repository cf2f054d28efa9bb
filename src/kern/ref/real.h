/* What all reference kernels share: elements and rows of any float or quantised type as numbers to count with.
 *
 * Single elements are read and written as double. Rows are held as `real`: float, so that F32 tensors are
 * used where they lie, or double (-DREAL=double), so that F64 tensors lose nothing. Every sum and every
 * function is double in both builds and is rounded once, when it is stored: no other backend is more
 * exact. */
#pragma once
#include <omp.h>

#include "kern/kern.h"
#include "tensor/quant.h"

#ifndef REAL
#define REAL float
#endif
typedef REAL real;

/* The kernels by family; contracts are in kern.h. The table below is the only user of these names. */
#define REF_MAP(XX)                                                                                        \
    XX(matmul) XX(matmul_dx) XX(matmul_dw)                                                                 \
    XX(rmsnorm_fwd) XX(rmsnorm_bwd) XX(layernorm_fwd) XX(layernorm_bwd)                                    \
    XX(rope) XX(attn_fwd) XX(attn_bwd)                                                                     \
    XX(swiglu_fwd) XX(swiglu_bwd) XX(gelu_fwd) XX(gelu_bwd) XX(quick_gelu_fwd) XX(quick_gelu_bwd)          \
    XX(add) XX(axpy) XX(cast) XX(zero)                                                                     \
    XX(rows_get) XX(rows_put) XX(rows_get_add) XX(rows_put_add)                                            \
    XX(patchify_fwd) XX(patchify_bwd) XX(xent_fwd) XX(xent_bwd)                                            \
    XX(choose) XX(tokens_get)                                                                              \
    XX(dropout) XX(dropout_bwd) XX(sumsq) XX(adamw) XX(adamw8)

/* Declares ref_NAME with the signature of its pointer in struct kern. */
#define XX(name) __typeof__(*(((struct kern *)0)->name)) ref_##name;
REF_MAP(XX)
#undef XX

/* Element i of t, counted over the whole tensor. */
static inline double at(struct tensor t, int64_t i)
{
    switch (t.type) {
    case DT_F32: return ((const float *)t.p)[i];
    case DT_F64: return ((const double *)t.p)[i];
    case DT_F16: return f16_to_f32(((const uint16_t *)t.p)[i]);
    case DT_BF16: return bf16_to_f32(((const uint16_t *)t.p)[i]);
    case DT_Q8:
    case DT_Q4:
        return quant_at(tensor_row(t, i / tensor_cols(t)), (enum dtype)t.type, tensor_cols(t), i % tensor_cols(t));
    default: BUG("%s is not a float type", dtype_name((enum dtype)t.type));
    }
}

static inline void put(struct tensor t, int64_t i, double v)
{
    switch (t.type) {
    case DT_F32: ((float *)t.p)[i] = (float)v; break;
    case DT_F64: ((double *)t.p)[i] = v; break;
    case DT_F16: ((uint16_t *)t.p)[i] = f32_to_f16((float)v); break;
    case DT_BF16: ((uint16_t *)t.p)[i] = f32_to_bf16((float)v); break;
    default: BUG("%s is not a float type", dtype_name((enum dtype)t.type));
    }
}

static inline void put_add(struct tensor t, int64_t i, double v) { put(t, i, at(t, i) + v); }

static inline const int32_t *ints(struct tensor t) { return t.p; }

/* Elements [from, from+n) of t as reals: where they lie when they are reals already, else copied into buf. */
const real *reals_span(struct tensor t, int64_t from, int64_t n, real *buf);

/* All of t as reals: t's own memory, or a copy in scratch. */
const real *reals(struct kctx *kc, struct tensor t);

/* One buffer per thread: taken before a parallel region, found inside it with lane(). */
struct lanes {
    char *p;
    size_t stride; /* bytes, a multiple of ARENA_ALIGN: no two threads write to one cache line */
};
struct lanes lanes_take(struct kctx *kc, size_t bytes);
static inline void *lane(struct lanes l) { return l.p + l.stride * (size_t)omp_get_thread_num(); }

/* Eight sums side by side: the compiler may put them in one register, and the order is still fixed. */
static inline double dot(const real *a, const real *b, int64_t n)
{
    double s[8] = { 0 };
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int j = 0; j < 8; j++) s[j] += (double)a[i + j] * (double)b[i + j];
    for (; i < n; i++) s[0] += (double)a[i] * (double)b[i];
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

/* acc += c * x */
static inline void accumulate(double *acc, double c, const real *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) acc[i] += c * (double)x[i];
}
