/* What the files of products with quantised weights share: x rounded to int8, group by group. */
#pragma once
#include "kern/cpu/isa.h"
#include "tensor/quant.h"

/* Rows of x as q*scale. Groups are counted up to a multiple of VW, those behind the last are zeros. */
struct xq {
    int8_t *q;     /* [T][groups][64] */
    float *scale;  /* [T][groups] max|x|/127; NaN where the group holds what is not finite */
    int32_t *sum;  /* [T][groups] of q */
    int64_t groups;
};
/* In scratch. */
struct xq ISA(cpu_xq)(struct kctx *kc, const float *x, int64_t tokens, int64_t in);

/* A product with few tokens, and one with many; y, bias, res as in kern.h. */
struct cpu_quant {
    struct tensor w;
    struct xq x;
    float *y;
    const float *bias, *res; /* or NULL */
    int64_t tokens, in, out;
};
void ISA(cpu_quant_gemm)(struct kctx *kc, const struct cpu_quant *g);
