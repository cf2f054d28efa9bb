/* See gemv.h. A block has a run of rows of w; its threads share the columns, 8 each, whose x they keep in
 * registers while the rows stream past: every byte of w is read once, in long runs, with several rows under
 * way. Sums go from lanes to warps by a transposing shuffle (9 steps for 8 sums), then through shared memory.
 * With a norm, x is multiplied by the norm's weight on the way in and the sum by rstd on the way out, so that
 * reading w does not wait for it. The order of every sum depends on shapes alone. Scratch: none. */
#include "kern/gpu/gemv.h"

enum { THREADS_MAX = 512, SUMS = 8 /* reduced together */ };

/* v[k] summed over the warp, for 8 k at once: lane l gets the sum of k = l / (GPU_WARP / 8). */
__device__ inline float warp_sum8(float (&v)[SUMS])
{
    const int lane = (int)threadIdx.x % GPU_WARP;
#pragma unroll
    for (int step = SUMS / 2, m = GPU_WARP / 2; step > 0; step /= 2, m /= 2) {
        const bool upper = lane & m;
#pragma unroll
        for (int k = 0; k < step; k++) {
            const float keep = upper ? v[k + step] : v[k], give = upper ? v[k] : v[k + step];
            v[k] = keep + gpu_shfl_xor(give, m);
        }
    }
    float s = v[0];
#pragma unroll
    for (int m = GPU_WARP / 16; m > 0; m /= 2) s += gpu_shfl_xor(s, m);
    return s;
}

/* x's 8 columns from c on for all T, times norm's if there is one; adds their squares to sq. */
template <int T>
__device__ inline void gemv_inputs(const gemv_args &a, float (&x)[T][LANES], float (&sq)[T], int c)
{
    float n[LANES];
    if (a.norm.p) load8(n, a.norm, c, a.I, a.wide);
#pragma unroll
    for (int t = 0; t < T; t++) {
        load8(x[t], view_at(a.x, (int64_t)t * a.I), c, a.I, a.wide);
#pragma unroll
        for (int j = 0; j < LANES; j++) {
            sq[t] += x[t][j] * x[t][j];
            if (a.norm.p) x[t][j] *= n[j];
        }
    }
}

/* The block's sums: part[warp][row * T + t], and behind its last row the T sums of squares. */
template <class W, int T>
__device__ inline void gemv_sums(const gemv_args &a, float *part, int first, int last)
{
    enum { R = T == 4 ? 4 : 8, GROUPS = R * T / SUMS }; /* rows under way */
    const int lane = (int)threadIdx.x % GPU_WARP, warp = (int)threadIdx.x / GPU_WARP;
    float *mine = part + warp * (a.rows_block + 1) * T, sq[T] = {};
    for (int c0 = 0; c0 < a.I; c0 += LANES * (int)blockDim.x) {
        const int c = c0 + LANES * (int)threadIdx.x, safe = c < a.I ? c : 0; /* beyond the columns x is 0 */
        float x[T][LANES];
        gemv_inputs(a, x, sq, c);
        for (int r = first; r < last; r += R) {
            gpu_pack<W> w[R];
#pragma unroll
            for (int i = 0; i < R; i++)
                w[i] = pack_load_once(gemv_row<W>(a, r + i < last ? r + i : last - 1) + safe);
#pragma unroll
            for (int g = 0; g < GROUPS; g++) {
                float s[SUMS];
#pragma unroll
                for (int k = 0; k < SUMS; k++) {
                    const int i = (g * SUMS + k) / T, t = (g * SUMS + k) % T;
                    s[k] = 0;
#pragma unroll
                    for (int j = 0; j < LANES; j++) s[k] += gpu_float(w[i].v[j]) * x[t][j];
                }
                const float sum = warp_sum8(s);
                const int k = g * SUMS + lane / (GPU_WARP / SUMS), at = (r - first) * T + k;
                if (lane % (GPU_WARP / SUMS) == 0 && at < (last - first) * T)
                    mine[at] = c0 ? mine[at] + sum : sum;
            }
        }
    }
#pragma unroll
    for (int t = 0; t < T; t++) {
        const float sum = warp_sum(sq[t]);
        if (lane == 0) mine[(last - first) * T + t] = sum;
    }
}

template <class W, int T> __global__ __launch_bounds__(THREADS_MAX) void gemv_kernel(gemv_args a)
{
    GPU_SHARED(float, part);
    const int first = (int)blockIdx.x * a.rows_block;
    const int last = first + a.rows_block < a.rows ? first + a.rows_block : a.rows, n = last - first;
    gemv_sums<W, T>(a, part, first, last);
    __syncthreads();
    const int stride = (a.rows_block + 1) * T;
    gemv_finish(a, part, part + n * T, first, n, T, (int)blockDim.x / GPU_WARP, stride, stride,
                gemv_added(a, first, n, (int)threadIdx.x));
}

bool gemv_takes(struct tensor x, struct tensor w) { return is_wide(w.n[1], w, x); }

/* Rows [from, from+n) of x and of what belongs to them. */
struct gemv_args gemv_args_of(const struct gemv *g, int from, int n)
{
    struct gemv_args a = {};
    struct tensor x = tensor_slice(g->x, from, n);
    a.x = view_of(x), a.norm = view_of(g->norm), a.eps = g->eps, a.glu = g->glu;
    a.T = n, a.I = (int)tensor_cols(x), a.wide = is_wide(a.I, x, g->norm);
    for (int i = 0; i < g->n; i++) {
        a.w[i] = g->w[i].p;
        a.b[i] = view_of(g->b[i]);
        if (g->y[i].p) a.y[i] = view_of(tensor_slice(g->y[i], from, n));
        if (g->res[i].p) a.res[i] = view_of(tensor_slice(g->res[i], from, n));
        a.rows += (int)g->w[i].n[0];
        a.end[i] = g->glu ? (int)g->w[0].n[0] : a.rows;
    }
    for (int i = g->n; i < GEMV_WEIGHTS; i++) a.end[i] = a.rows;
    return a;
}

/* Threads: a whole number of warps that divides the columns into equal turns. Blocks: as many as run at once,
 * so that all end together; more where their sums would not fit. */
template <class W, int T> static void gemv_launch(struct kctx *kc, struct gemv_args *a)
{
    enum { SHARED = 48 << 10, ENOUGH = 512 /* threads that keep a multiprocessor reading */ };
    const int64_t chunks = a->I / LANES, turns = ceil_div(chunks, THREADS_MAX);
    const int64_t threads = ceil_div(ceil_div(chunks, turns), GPU_WARP) * GPU_WARP,
                  warps = threads / GPU_WARP;
    const int64_t rows_most = SHARED / (int64_t)sizeof(float) / warps / T - 1;
    int64_t blocks = dev_units(kc->dev) * (threads < ENOUGH ? ENOUGH / threads : 1);
    int64_t rows = ceil_div(a->rows, blocks);
    rows = least(a->glu ? ceil_div(rows, 2) * 2 : rows, a->glu ? rows_most / 2 * 2 : rows_most);
    a->rows_block = (int)rows;
    gpu_launch(gemv_kernel<W, T>, dim3((unsigned)ceil_div(a->rows, rows)), dim3((unsigned)threads),
               (size_t)(warps * (rows + 1) * T) * sizeof(float), stream_of(kc), *a);
}

void gemv_run(struct kctx *kc, const struct gemv *g)
{
    if (gemv_mma_takes(g)) {
        gemv_mma_run(kc, g);
        return;
    }
    const int T = (int)tensor_rows(g->x);
    for (int t = 0; t < T; t += GEMV_T) {
        const int n = T - t < GEMV_T ? T - t : GEMV_T;
        struct gemv_args a = gemv_args_of(g, t, n);
        GPU_BY_TYPE(
            g->w[0].type, W, switch (n) {
                case 1: gemv_launch<W, 1>(kc, &a); break;
                case 2: gemv_launch<W, 2>(kc, &a); break;
                case 3: gemv_launch<W, 3>(kc, &a); break;
                default: gemv_launch<W, 4>(kc, &a); break;
            });
    }
}
