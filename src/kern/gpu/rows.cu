/* Rows by index, and pictures cut into squares. Scratch: two numbers a row of
 * rows_put_add's result. */
#include "kern/gpu/quant.h"

/* Where the row that this block moves comes from and goes to: one of i and idx[i] each. */
enum way { GET, PUT };

/* dst[d] = src[s] (or += with ADD): GET d = i, s = idx[i]; PUT d = idx[i], s = i. Without a row (idx < 0),
 * GET writes zeros and the others do nothing. */
template <enum way WAY, bool ADD>
__global__ __launch_bounds__(BLOCK) void move_rows(view dst, view src, const int32_t *idx, int64_t c,
                                                   bool wide)
{
    gpu_let_next();
    gpu_wait_for_previous();
    const int64_t i = blockIdx.x, k = idx[i];
    const int64_t at = LANES * ((int64_t)blockIdx.y * BLOCK + threadIdx.x);
    float v[LANES] = { 0 }, old[LANES];
    if (at >= c || (k < 0 && (WAY == PUT || ADD))) return;
    dst = view_at(dst, (WAY == GET ? i : k) * c);
    if (k >= 0) load8(v, view_at(src, (WAY == GET ? k : i) * c), at, c, wide);
    if (ADD) {
        load8(old, dst, at, c, wide);
#pragma unroll
        for (int j = 0; j < LANES; j++) v[j] += old[j];
    }
    store8(dst, v, at, c, wide);
}

static dim3 row_grid(int64_t n, int64_t c) { return dim3((unsigned)n, (unsigned)ceil_div(c, LANES * BLOCK)); }

void gpu_rows_get(struct kctx *kc, struct tensor y, struct tensor x, struct tensor idx)
{
    const int64_t n = tensor_count(idx), C = tensor_cols(y);
    if (dtype_is_quant((enum dtype)x.type))
        quant_rows_get(kc, y, x, idx);
    else if (n && C)
        gpu_launch_early((move_rows<GET, false>), row_grid(n, C), BLOCK, 0, stream_of(kc), view_of(y), view_of(x),
                   (const int32_t *)idx.p, C, is_wide(C, y, x));
}

void gpu_rows_put(struct kctx *kc, struct tensor y, struct tensor idx, struct tensor x)
{
    const int64_t n = tensor_count(idx), C = tensor_cols(y);
    if (dtype_is_quant((enum dtype)y.type))
        quant_rows_put(kc, y, idx, x);
    else if (n && C)
        gpu_launch_early((move_rows<PUT, false>), row_grid(n, C), BLOCK, 0, stream_of(kc), view_of(y), view_of(x),
                   (const int32_t *)idx.p, C, is_wide(C, y, x));
}

void gpu_rows_get_add(struct kctx *kc, struct tensor y, struct tensor x, struct tensor idx)
{
    const int64_t n = tensor_count(idx), C = tensor_cols(y);
    if (y.p && n && C)
        gpu_launch_early((move_rows<GET, true>), row_grid(n, C), BLOCK, 0, stream_of(kc), view_of(y), view_of(x),
                   (const int32_t *)idx.p, C, is_wide(C, y, x));
}

enum { PUT_WARPS = BLOCK / GPU_WARP };

/* Of each row of y: how many rows of x go to it, and the first of them. */
struct sources {
    int32_t *count, *first;
};

__global__ __launch_bounds__(BLOCK) void no_sources(sources s, int64_t m)
{
    const int64_t k = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (k < m) s.count[k] = 0, s.first[k] = 0x7fffffff;
}

__global__ __launch_bounds__(BLOCK) void find_sources(sources s, const int32_t *idx, int64_t n)
{
    const int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i >= n || idx[i] < 0) return;
    atomicAdd(&s.count[idx[i]], 1);
    atomicMin(&s.first[idx[i]], (int)i);
}

/* y[idx[i]] += the rows with that index, in order. The block of the first of them adds them all. */
__global__ __launch_bounds__(BLOCK) void put_add(view y, view x, sources all, const int32_t *idx, int64_t n, int64_t c,
                                                 bool wide)
{
    __shared__ uint64_t found[PUT_WARPS]; /* which of BLOCK indices are ours, a bit each */
    const int64_t i = blockIdx.x, k = idx[i];
    const int64_t at = LANES * ((int64_t)blockIdx.y * BLOCK + threadIdx.x);
    float sum[LANES] = { 0 }, v[LANES];
    if (k < 0 || all.first[k] != (int)i) return;
    int left = all.count[k];
    if (left == 1 && at < c) load8(sum, view_at(x, i * c), at, c, wide);
    for (int64_t from = i / BLOCK * BLOCK; left > 1 && from < n; from += BLOCK) {
        const int64_t mine = from + threadIdx.x;
        const uint64_t bits = gpu_ballot(mine < n && idx[mine] == k);
        __syncthreads();
        if (threadIdx.x % GPU_WARP == 0) found[threadIdx.x / GPU_WARP] = bits;
        __syncthreads();
        for (int w = 0; w < PUT_WARPS; w++) {
            int64_t s = from + w * GPU_WARP;
            for (uint64_t rest = found[w]; rest; rest >>= 1, s++) {
                if (!(rest & 1) || at >= c) continue;
                load8(v, view_at(x, s * c), at, c, wide);
#pragma unroll
                for (int j = 0; j < LANES; j++) sum[j] += v[j];
            }
        }
    }
    if (at >= c) return;
    load8(v, view_at(y, k * c), at, c, wide);
#pragma unroll
    for (int j = 0; j < LANES; j++) v[j] += sum[j];
    store8(view_at(y, k * c), v, at, c, wide);
}

void gpu_rows_put_add(struct kctx *kc, struct tensor y, struct tensor idx, struct tensor x)
{
    const int64_t n = tensor_count(idx), C = tensor_cols(x), m = tensor_rows(y);
    if (!y.p || !n || !C) return;
    const size_t mark = arena_mark(kc->scratch);
    sources s;
    s.count = (int32_t *)arena_take(kc->scratch, (size_t)m * sizeof(int32_t));
    s.first = (int32_t *)arena_take(kc->scratch, (size_t)m * sizeof(int32_t));
    gpu_launch(no_sources, dim3((unsigned)ceil_div(m, BLOCK)), BLOCK, 0, stream_of(kc), s, m);
    gpu_launch(find_sources, dim3((unsigned)ceil_div(n, BLOCK)), BLOCK, 0, stream_of(kc), s, (const int32_t *)idx.p, n);
    gpu_launch(put_add, row_grid(n, C), BLOCK, 0, stream_of(kc), view_of(y), view_of(x), s, (const int32_t *)idx.p,
               n, C, is_wide(C, y, x));
    arena_rewind(kc->scratch, mark);
}

/* ---- pictures [N, chans, size, size], patches [N*g*g, chans*p*p] */

struct squares {
    int64_t chans, size, p, g;
};

/* Which element of the pictures is element k of the patches. */
__device__ inline int64_t pixel_of(squares s, int64_t k)
{
    const int64_t p = s.p, g = s.g;
    const int64_t col = k % p, row = k / p % p, chan = k / (p * p) % s.chans, patch = k / (p * p * s.chans);
    const int64_t picture = patch / (g * g), down = patch / g % g * p + row, right = patch % g * p + col;
    return ((picture * s.chans + chan) * s.size + down) * s.size + right;
}

template <class A> __global__ __launch_bounds__(BLOCK) void patchify(A *y, const A *x, squares s, int64_t n)
{
    gpu_let_next();
    gpu_wait_for_previous();
    const int64_t k = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (k < n) y[k] = x[pixel_of(s, k)];
}

/* Squares do not overlap, so no two threads meet. */
template <class A>
__global__ __launch_bounds__(BLOCK) void patchify_back(A *dx, const A *dy, squares s, int64_t n)
{
    const int64_t k = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (k >= n) return;
    const int64_t i = pixel_of(s, k);
    dx[i] = gpu_from<A>(gpu_float(dx[i]) + gpu_float(dy[k]));
}

void gpu_patchify_fwd(struct kctx *kc, struct tensor y, struct tensor x, int p)
{
    const int64_t n = tensor_count(y);
    const squares s = { x.n[1], x.n[3], p, x.n[3] / p };
    if (n)
        GPU_BY_TYPE(y.type, A,
                    gpu_launch_early((patchify<A>), dim3((unsigned)ceil_div(n, BLOCK)), BLOCK, 0, stream_of(kc),
                               (A *)y.p, (const A *)x.p, s, n));
}

void gpu_patchify_bwd(struct kctx *kc, struct tensor dx, struct tensor dy, int p)
{
    const int64_t n = tensor_count(dy);
    const squares s = { dx.n[1], dx.n[3], p, dx.n[3] / p };
    if (dx.p && n)
        GPU_BY_TYPE(dx.type, A,
                    gpu_launch((patchify_back<A>), dim3((unsigned)ceil_div(n, BLOCK)), BLOCK, 0,
                               stream_of(kc), (A *)dx.p, (const A *)dy.p, s, n));
}
