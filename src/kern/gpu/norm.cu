/* RMSNorm and LayerNorm; the formulas of the backwards are in ref/norm.c. A block has one row; sums of dw and
 * db run over the rows in a fixed order: pieces of the rows first, then the pieces. Scratch: those pieces. */
#include "kern/gpu/drop.h"

/* For each i of a row that this thread has, eight at a time. */
#define FOR_ROW(i, c) for (int64_t i = LANES * (int64_t)threadIdx.x; i < (c); i += LANES * blockDim.x)

/* Threads of a row's block: a short row needs few, and more blocks are at work. */
static unsigned row_threads(int64_t c) { return (unsigned)least(ceil_div(c, LANES * GPU_WARP) * GPU_WARP, BLOCK); }

/* Where the k-th eight of this thread's are. */
__device__ inline int64_t row_at(int k) { return LANES * ((int64_t)threadIdx.x + k * (int64_t)blockDim.x); }

/* yd, with DROPS: y dropped; then y may be absent. A thread holds HELD eights of its row: x is read once, and all of
 * it at once. The weights, which the kernel before does not write, are there when x is. */
template <class A, bool DROPS, int HELD>
__global__ __launch_bounds__(BLOCK) void rmsnorm(A *y, A *yd, float *rstd, const A *x, view w, int64_t c, float eps,
                                                 bool wide, dropping d)
{
    float v[HELD][LANES], g[HELD][LANES], sq = 0;
    const int64_t row = (int64_t)blockIdx.x * c;
    gpu_let_next();
#pragma unroll
    for (int k = 0; k < HELD; k++) load8(g[k], w, row_at(k), c, wide);
    gpu_wait_for_previous();
#pragma unroll
    for (int k = 0; k < HELD; k++) load8(v[k], x + row, row_at(k), c, wide);
#pragma unroll
    for (int k = 0; k < HELD; k++)
#pragma unroll
        for (int j = 0; j < LANES; j++) sq += v[k][j] * v[k][j];
    const float r = 1.0f / sqrtf(block_sum(sq) / (float)c + eps);
    if (rstd && threadIdx.x == 0) rstd[blockIdx.x] = r;
#pragma unroll
    for (int k = 0; k < HELD; k++) {
#pragma unroll
        for (int j = 0; j < LANES; j++) v[k][j] *= g[k][j] * r;
        if (!DROPS || y) store8(y + row, v[k], row_at(k), c, wide);
        if (!DROPS || row_at(k) >= c) continue;
        round8<A>(v[k]);
        drop8(v[k], row + row_at(k), d);
        store8(yd + row, v[k], row_at(k), c, wide);
    }
}

template <bool DROPS>
static void rmsnorm_launch(struct kctx *kc, struct tensor y, struct tensor yd, struct tensor rstd, struct tensor x,
                           struct tensor w, float eps, dropping d)
{
    const int64_t T = tensor_rows(x), C = tensor_cols(x), eights = ceil_div(C, LANES * BLOCK);
    const bool wide = is_wide(C, y, yd, x, w);
    if (!T) return;
    ASSERT(eights <= 8);
    GPU_BY_TYPE(x.type, A, {
        void (*kernel)(A *, A *, float *, const A *, view, int64_t, float, bool, dropping) = rmsnorm<A, DROPS, 8>;
        if (eights <= 4) kernel = rmsnorm<A, DROPS, 4>;
        if (eights <= 3) kernel = rmsnorm<A, DROPS, 3>;
        if (eights <= 2) kernel = rmsnorm<A, DROPS, 2>;
        if (eights <= 1) kernel = rmsnorm<A, DROPS, 1>;
        gpu_launch_early(kernel, dim3((unsigned)T), row_threads(C), 0, stream_of(kc), (A *)y.p, (A *)yd.p,
                         (float *)rstd.p, (const A *)x.p, view_of(w), C, eps, wide, d);
    });
}

void gpu_rmsnorm_fwd(struct kctx *kc, struct tensor y, struct tensor rstd, struct tensor x, struct tensor w,
                     float eps)
{
    rmsnorm_launch<false>(kc, y, tensor{}, rstd, x, w, eps, dropping{});
}

void gpu_rmsnorm_drop(struct kctx *kc, struct tensor y, struct tensor yd, struct tensor rstd, struct tensor x,
                      struct tensor w, float eps, float p, uint64_t key)
{
    rmsnorm_launch<true>(kc, y, yd, rstd, x, w, eps, dropping_of(p, key));
}

template <class A>
__global__ __launch_bounds__(BLOCK) void layernorm(A *y, float *mean, float *rstd, const A *x, view w, view b,
                                                   int64_t c, float eps, bool wide)
{
    gpu_let_next();
    gpu_wait_for_previous();
    float v[LANES], g[LANES], h[LANES] = { 0 }, sum = 0, sq = 0;
    x += (int64_t)blockIdx.x * c;
    y += (int64_t)blockIdx.x * c;
    FOR_ROW(i, c)
    {
        load8(v, x, i, c, wide);
#pragma unroll
        for (int j = 0; j < LANES; j++) sum += v[j];
    }
    const float m = block_sum(sum) / (float)c;
    FOR_ROW(i, c)
    {
        load8(v, x, i, c, wide);
#pragma unroll
        for (int j = 0; j < LANES; j++) sq += i + j < c ? (v[j] - m) * (v[j] - m) : 0.0f;
    }
    const float r = 1.0f / sqrtf(block_sum(sq) / (float)c + eps);
    if (mean && threadIdx.x == 0) mean[blockIdx.x] = m;
    if (rstd && threadIdx.x == 0) rstd[blockIdx.x] = r;
    FOR_ROW(i, c)
    {
        load8(v, x, i, c, wide);
        load8(g, w, i, c, wide);
        if (b.p) load8(h, b, i, c, wide);
#pragma unroll
        for (int j = 0; j < LANES; j++) v[j] = (v[j] - m) * r * g[j] + h[j];
        store8(y, v, i, c, wide);
    }
}

void gpu_layernorm_fwd(struct kctx *kc, struct tensor y, struct tensor mean, struct tensor rstd,
                       struct tensor x, struct tensor w, struct tensor b, float eps)
{
    const int64_t T = tensor_rows(x), C = tensor_cols(x);
    const bool wide = is_wide(C, y, x, w, b);
    if (T)
        GPU_BY_TYPE(x.type, A,
                    gpu_launch_early((layernorm<A>), dim3((unsigned)T), row_threads(C), 0, stream_of(kc), (A *)y.p,
                               (float *)mean.p, (float *)rstd.p, (const A *)x.p, view_of(w), view_of(b), C,
                               eps, wide));
}

/* ---- backwards; mean NULL: RMSNorm */

template <class A>
__global__ __launch_bounds__(BLOCK) void norm_dx(A *dx, const A *dy, const A *x, view w, const float *mean,
                                                 const float *rstd, int64_t c, bool wide)
{
    const int64_t row = blockIdx.x;
    const float m = mean ? mean[row] : 0.0f, r = rstd[row];
    float d[LANES], v[LANES], g[LANES], out[LANES], g_sum = 0, gx_sum = 0;
    dx += row * c, dy += row * c, x += row * c;
    FOR_ROW(i, c)
    {
        load8(d, dy, i, c, wide);
        load8(v, x, i, c, wide);
        load8(g, w, i, c, wide);
#pragma unroll
        for (int j = 0; j < LANES; j++) { /* beyond the row's end d is 0 */
            const float gd = gpu_mul(g[j], d[j]);
            g_sum += gd;
            gx_sum += gd * (v[j] - m) * r;
        }
    }
    const float gx_mean = block_sum(gx_sum) / (float)c, g_mean = mean ? block_sum(g_sum) / (float)c : 0.0f;
    FOR_ROW(i, c)
    {
        load8(d, dy, i, c, wide);
        load8(v, x, i, c, wide);
        load8(g, w, i, c, wide);
        load8(out, dx, i, c, wide);
#pragma unroll
        for (int j = 0; j < LANES; j++) /* gpu_mul: the very product that the mean has: one column leaves nothing */
            out[j] += r * (gpu_mul(g[j], d[j]) - g_mean - (v[j] - m) * r * gx_mean);
        store8(dx, out, i, c, wide);
    }
}

enum { DW_COLS = LANES * GPU_WARP, DW_WARPS = BLOCK / GPU_WARP };

/* Columns of one warp's width, rows [from, to) of the block's piece; each warp takes every DW_WARPS-th row.
 * piece[0][s] and piece[1][s] are the sums of dw and db over piece s. */
template <class A>
__global__ __launch_bounds__(BLOCK) void norm_dw(float *piece, const A *dy, const A *x, const float *mean,
                                                 const float *rstd, int64_t rows, int64_t rows_piece,
                                                 int64_t c, bool wide)
{
    __shared__ float part[2][DW_WARPS][DW_COLS];
    const int lane = (int)threadIdx.x % GPU_WARP, warp = (int)threadIdx.x / GPU_WARP;
    const int64_t col = (int64_t)blockIdx.x * DW_COLS, i = col + LANES * lane;
    const int64_t from = blockIdx.y * rows_piece, to = from + rows_piece < rows ? from + rows_piece : rows;
    float d[LANES], v[LANES], sw[LANES] = { 0 }, sb[LANES] = { 0 };
    for (int64_t t = from + warp; t < to && i < c; t += DW_WARPS) {
        const float m = mean ? mean[t] : 0.0f, r = rstd[t];
        load8(d, dy + t * c, i, c, wide);
        load8(v, x + t * c, i, c, wide);
#pragma unroll
        for (int j = 0; j < LANES; j++) {
            sw[j] += d[j] * (v[j] - m) * r;
            sb[j] += d[j];
        }
    }
#pragma unroll
    for (int j = 0; j < LANES; j++) {
        part[0][warp][LANES * lane + j] = sw[j];
        part[1][warp][LANES * lane + j] = sb[j];
    }
    __syncthreads();
    for (int k = (int)threadIdx.x; k < 2 * DW_COLS; k += BLOCK) {
        const int which = k / DW_COLS, at = k % DW_COLS;
        float sum = 0;
        for (int s = 0; s < DW_WARPS; s++) sum += part[which][s][at];
        if (col + at < c) piece[(which * gridDim.y + blockIdx.y) * c + col + at] = sum;
    }
}

/* dw += sum of its n pieces, and the same for db */
__global__ __launch_bounds__(BLOCK) void norm_dw_sum(view dw, view db, const float *piece, int n, int64_t c)
{
    const int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    float sw = 0, sb = 0;
    if (i >= c) return;
    for (int s = 0; s < n; s++) {
        sw += piece[s * c + i];
        sb += piece[(n + s) * c + i];
    }
    if (dw.p) view_put(dw, i, view_get(dw, i) + sw);
    if (db.p) view_put(db, i, view_get(db, i) + sb);
}

static void norm_bwd(struct kctx *kc, struct tensor dx, struct tensor dw, struct tensor db, struct tensor dy,
                     struct tensor x, struct tensor w, struct tensor mean, struct tensor rstd)
{
    const int64_t T = tensor_rows(x), C = tensor_cols(x);
    const bool wide = is_wide(C, dx, dy, x, w);
    gpu(Stream_t) stream = stream_of(kc);
    if (!T) return;
    if (dx.p)
        GPU_BY_TYPE(x.type, A,
                    gpu_launch((norm_dx<A>), dim3((unsigned)T), row_threads(C), 0, stream, (A *)dx.p, (const A *)dy.p,
                               (const A *)x.p, view_of(w), (const float *)mean.p, (const float *)rstd.p, C,
                               wide));
    if (!dw.p && !db.p) return;
    const int64_t across = ceil_div(C, DW_COLS), most = least(64 * ceil_div(8, across), 256);
    const int64_t pieces = least(ceil_div(T, 2 * DW_WARPS), most), rows = ceil_div(T, pieces);
    const dim3 grid((unsigned)across, (unsigned)pieces);
    const size_t mark = arena_mark(kc->scratch);
    float *piece = (float *)arena_take(kc->scratch, (size_t)(2 * pieces * C) * sizeof(float));
    GPU_BY_TYPE(x.type, A,
                gpu_launch((norm_dw<A>), grid, BLOCK, 0, stream, piece, (const A *)dy.p, (const A *)x.p,
                           (const float *)mean.p, (const float *)rstd.p, T, rows, C, wide));
    gpu_launch(norm_dw_sum, dim3((unsigned)ceil_div(C, BLOCK)), BLOCK, 0, stream, view_of(dw), view_of(db),
               (const float *)piece, (int)pieces, C);
    arena_rewind(kc->scratch, mark);
}

void gpu_rmsnorm_bwd(struct kctx *kc, struct tensor dx, struct tensor dw, struct tensor dy, struct tensor x,
                     struct tensor w, struct tensor rstd)
{
    const struct tensor none = {};
    norm_bwd(kc, dx, dw, none, dy, x, w, none, rstd);
}

void gpu_layernorm_bwd(struct kctx *kc, struct tensor dx, struct tensor dw, struct tensor db,
                       struct tensor dy, struct tensor x, struct tensor w, struct tensor mean,
                       struct tensor rstd)
{
    norm_bwd(kc, dx, dw, db, dy, x, w, mean, rstd);
}
