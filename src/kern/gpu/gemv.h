/* Products of a few rows with weights, bound by reading the weights: decode. Up to three weights with the
 * same input are one launch, with the norm before them and SwiGLU behind them if wanted. */
#pragma once
#include "kern/gpu/num.h"

enum { GEMV_WEIGHTS = 3, GEMV_T = 4 /* rows of x in one launch at most */ };

/* y[i] = h w[i]^T + b[i] + res[i] with h = x, or x normed; b, res may be absent. glu: y[0] = silu(h w[0]^T) *
 * (h w[1]^T). x[T,I], w[i][O_i,I] all of one type; y[i], res[i] [T,O_i]. */
struct gemv {
    struct tensor x, norm; /* norm[I], p NULL: none */
    float eps;
    struct tensor w[GEMV_WEIGHTS], b[GEMV_WEIGHTS], y[GEMV_WEIGHTS], res[GEMV_WEIGHTS];
    int n; /* weights */
    bool glu;
};

/* Whether rows of w can be read in 16-byte pieces. */
bool gemv_takes(struct tensor x, struct tensor w);
void gemv_run(struct kctx *kc, const struct gemv *g);
