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

/* Quantised weights, if x may be rounded to 8 bits: gemv_quant.cu. */
bool gemv_quant_takes(const struct kctx *kc, struct tensor x, struct tensor w);
void gemv_quant_run(struct kctx *kc, const struct gemv *g);

/* On matrix units: gemv_mma.cu. */
bool gemv_mma_takes(const struct gemv *g);
void gemv_mma_run(struct kctx *kc, const struct gemv *g);

/* ---- for both */

/* What a kernel sees. Rows of all weights are numbered through; with glu, row 2i is gate's i and 2i+1 is
 * up's. */
struct gemv_args {
    view x, norm, y[GEMV_WEIGHTS], b[GEMV_WEIGHTS], res[GEMV_WEIGHTS];
    const void *w[GEMV_WEIGHTS];
    int end[GEMV_WEIGHTS]; /* first row behind weight i */
    int rows, rows_block;  /* of all weights; of a block */
    int T, I;
    float eps;
    bool glu, wide; /* wide: of x and norm */
};

/* Which weight row r belongs to, and which of its rows it is. */
__device__ inline int gemv_place(const gemv_args &a, int r, int *row)
{
    if (a.glu) return *row = r / 2, r % 2;
    const int i = r < a.end[0] ? 0 : r < a.end[1] ? 1 : 2;
    return *row = i ? r - a.end[i - 1] : r, i;
}

template <class W> __device__ inline const W *gemv_row(const gemv_args &a, int r)
{
    int row;
    const int i = gemv_place(a, r, &row);
    return (const W *)a.w[i] + (int64_t)row * a.I;
}

/* Rows [from, from+n) of x and of what belongs to them. */
struct gemv_args gemv_args_of(const struct gemv *g, int from, int n);

/* A block's sums become results: `parts` sums each of the rows [first, first + rows) of w for all T, at [row
 * * width + t] and `stride` apart, and of the squares of x, at [t] and `square_stride` apart, or, if that is 0, their
 * sum; added in order. */
__device__ inline float gemv_total(const float *part, int parts, int stride, int at)
{
    float sum = 0;
    for (int i = 0; i < parts; i++) sum += part[i * stride + at];
    return sum;
}

/* A block's e-th result is of its row r and token t. */
__device__ inline int gemv_element(const gemv_args &a, int rows, int e, int *t)
{
    const int step = a.glu ? 2 : 1;
    *t = e / (rows / step);
    return e % (rows / step) * step;
}

/* What is added to row r's product for token t: bias and res, or 0. It need not wait for the sums. */
__device__ inline float gemv_added(const gemv_args &a, int r, int t)
{
    int row;
    const int i = gemv_place(a, r, &row);
    const int64_t width = a.glu || i == 0 ? a.end[0] : a.end[i] - a.end[i - 1];
    const float b = a.b[i].p ? view_get(a.b[i], row) : 0.0f;
    return a.res[i].p ? gpu_add(b, view_get(a.res[i], t * width + row)) : b;
}

/* 1 over the root of the mean of x's squares, whose sum is given; 1 without a norm. */
__device__ inline float gemv_rstd(const gemv_args &a, float squares)
{
    return a.norm.p ? 1.0f / sqrtf(squares / (float)a.I + a.eps) : 1.0f;
}

/* The result of row r for token t from its sum; with glu r is gate's, and `up` is up's. */
__device__ inline void gemv_result(const gemv_args &a, int r, int t, float rstd, float total, float up, float added)
{
    int row;
    const int i = gemv_place(a, r, &row);
    const int64_t width = a.glu || i == 0 ? a.end[0] : a.end[i] - a.end[i - 1];
    float v = gpu_mul(rstd, total);
    if (a.glu) v = v / (1.0f + expf(-v)) * gpu_mul(rstd, up);
    view_put(a.y[i], t * width + row, gpu_add(v, added));
}

/* The same for a thread's e-th result of a block, where there is one. */
__device__ inline float gemv_added(const gemv_args &a, int first, int rows, int e)
{
    int t;
    if (e >= rows / (a.glu ? 2 : 1) * a.T) return 0;
    const int r = gemv_element(a, rows, e, &t);
    return gemv_added(a, first + r, t);
}

__device__ inline void gemv_finish(const gemv_args &a, const float *part, const float *squares, int first,
                                   int rows, int width, int parts, int stride, int square_stride, float added)
{
    for (int e = (int)threadIdx.x; e < rows / (a.glu ? 2 : 1) * a.T;) {
        int t;
        const int r = gemv_element(a, rows, e, &t);
        const float square = a.norm.p ? gemv_total(squares, square_stride ? parts : 1, square_stride, t) : 0.0f,
                    up = a.glu ? gemv_total(part, parts, stride, (r + 1) * width + t) : 0.0f;
        gemv_result(a, first + r, t, gemv_rstd(a, square), gemv_total(part, parts, stride, r * width + t), up, added);
        e += (int)blockDim.x;
        added = gemv_added(a, first, rows, e);
    }
}
