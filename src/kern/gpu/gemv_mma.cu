/* See gemv.h: decode on matrix units, for x and w of the same 16-bit type and any number of rows of x. A
 * block has 16 M rows of w, its warps share the columns, 32 at a time: what a lane reads, 16 bytes of each of
 * its rows, are its parts of two fragments, since a product may number its columns as it likes. Weights go
 * from memory to registers to the matrix unit; x, much smaller, comes through the first-level cache. One
 * warp's sums run in the order of its columns, the warps' are added in their order: M, and how many rows of x
 * there are, change no bit. A norm is a kernel of its own before it: done by every block on the way in, it
 * costs more than it saves. Scratch: the normed x. */
#include "kern/gpu/gemv.h"
#include "kern/gpu/mma.h"

#if GPU_HAS_MMA

enum { WARPS = BLOCK / 32, COLUMNS = 32 /* of a step of a warp */, TOKENS = 8 /* of a tile */, T_MAX = 64 };

bool gemv_mma_takes(const struct gemv *g)
{
    const int type = g->x.type;
    return (type == DT_BF16 || type == DT_F16) && g->w[0].type == type && g->w[0].n[1] % COLUMNS == 0;
}

/* Steps whose loads are under way together. */
template <int M, int N> struct gemv_steps {
    enum { N_STEPS = M * N >= 16 ? 1 : M * N >= 8 ? 2 : 4 };
};

/* This lane's weights of the steps from column k on: w has its rows at its first column. */
template <class E, int M, int U>
__device__ inline void load_weights(gpu_16bytes (&part)[U][2 * M], const E *const (&w)[2 * M], int k, int I)
{
#pragma unroll
    for (int u = 0; u < U; u++)
#pragma unroll
        for (int m = 0; m < 2 * M; m++)
            if (k + u * WARPS * COLUMNS < I) part[u][m] = bytes_load_once(w[m] + k + u * WARPS * COLUMNS);
}

/* A warp's sums of its columns. */
template <class E, int M, int N>
__device__ inline void gemv_columns(const gemv_args &a, float (&acc)[M][N][4], const E *const (&w)[2 * M],
                                    int warp)
{
    enum { U = gemv_steps<M, N>::N_STEPS, STEP = WARPS * COLUMNS };
    const int lane = (int)threadIdx.x % 32, g = lane / 4, first = LANES * (lane % 4);
    const E *x = (const E *)a.x.p + (int64_t)g * a.I + first;
    gpu_16bytes part[U][2 * M];
    load_weights<E, M, U>(part, w, warp * COLUMNS, a.I);
    gpu_wait_for_previous();
    for (int k0 = warp * COLUMNS; k0 < a.I; k0 += U * STEP) {
        gpu_16bytes in[U][N];
#pragma unroll
        for (int u = 0; u < U; u++) {
            const int k = k0 + u * STEP < a.I ? k0 + u * STEP : k0;
#pragma unroll
            for (int n = 0; n < N; n++) {
                in[u][n] = {};
                if (g + n * TOKENS < a.T)
                    in[u][n] = *(const gpu_16bytes *)(x + (int64_t)n * TOKENS * a.I + k);
            }
        }
#pragma unroll
        for (int u = 0; u < U; u++) {
            if (k0 + u * STEP >= a.I) break;
#pragma unroll
            for (int n = 0; n < N; n++) {
#pragma unroll
                for (int m = 0; m < M; m++) {
                    const uint32_t *lo = part[u][2 * m].u, *hi = part[u][2 * m + 1].u, *b = in[u][n].u;
                    const uint32_t a0[4] = { lo[0], hi[0], lo[1], hi[1] },
                                   a1[4] = { lo[2], hi[2], lo[3], hi[3] };
                    mma<E>(acc[m][n], a0, b[0], b[1]);
                    mma<E>(acc[m][n], a1, b[2], b[3]);
                }
            }
        }
        load_weights<E, M, U>(part, w, k0 + U * STEP, a.I);
    }
}

/* part[warp][16 M rows][tokens] */
template <class E, int M, int N> __global__ __launch_bounds__(BLOCK) void gemv_mma(gemv_args a)
{
    GPU_SHARED(float, part);
    enum {
        ROWS = 16 * M,
        WIDTH = N * TOKENS + 1 /* so that rows start in different banks */,
        TILE = ROWS * WIDTH
    };
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int first = (int)blockIdx.x * ROWS, rows = min((int)ROWS, a.rows - first);
    const E *w[2 * M];
    float acc[M][N][4] = {};
#pragma unroll
    for (int m = 0; m < 2 * M; m++) w[m] = gemv_row<E>(a, first + min(8 * m + g, rows - 1)) + LANES * q;
    gpu_let_next();
    gemv_columns<E, M, N>(a, acc, w, warp);
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                part[warp * TILE + (16 * m + g + i / 2 * 8) * WIDTH + n * TOKENS + 2 * q + i % 2] =
                    acc[m][n][i];
    }
    __syncthreads();
    gemv_finish(a, part, NULL, first, rows, WIDTH, WARPS, TILE, 0);
}

template <class E, int M, int N> static void gemv_mma_launch(struct kctx *kc, const struct gemv_args *a)
{
    enum { ROWS = 16 * M, SUMS = ROWS * (N * TOKENS + 1) };
    gpu_launch_early(gemv_mma<E, M, N>, dim3((unsigned)ceil_div(a->rows, ROWS)), BLOCK,
                     WARPS * SUMS * sizeof(float), stream_of(kc), *a);
}

/* More rows of w to a block where there are many tokens, whose x would else be read too often, as long as the
 * device is full. */
template <class E> static void gemv_mma_tokens(struct kctx *kc, const struct gemv_args *a)
{
    const bool many = a->rows >= 64 * dev_units(kc->dev);
    if (a->T <= TOKENS)
        gemv_mma_launch<E, 1, 1>(kc, a);
    else if (a->T <= 2 * TOKENS)
        gemv_mma_launch<E, 2, 2>(kc, a);
    else if (a->T <= 4 * TOKENS)
        (many ? gemv_mma_launch<E, 4, 4> : gemv_mma_launch<E, 2, 4>)(kc, a);
    else
        gemv_mma_launch<E, 2, 8>(kc, a);
}

void gemv_mma_run(struct kctx *kc, const struct gemv *g)
{
    const int T = (int)tensor_rows(g->x);
    const size_t mark = arena_mark(kc->scratch);
    struct gemv h = *g;
    if (g->norm.p) {
        h.x.p = arena_take(kc->scratch, tensor_bytes(g->x));
        gpu_rmsnorm_fwd(kc, h.x, tensor{}, g->x, g->norm, g->eps);
        h.norm.p = NULL;
    }
    for (int t = 0; t < T; t += T_MAX) {
        const struct gemv_args a = gemv_args_of(&h, t, T - t < T_MAX ? T - t : T_MAX);
        if (g->x.type == DT_BF16)
            gemv_mma_tokens<gpu_bf16>(kc, &a);
        else
            gemv_mma_tokens<gpu_f16>(kc, &a);
    }
    arena_rewind(kc->scratch, mark);
}

#else

bool gemv_mma_takes(const struct gemv *) { return false; }
void gemv_mma_run(struct kctx *, const struct gemv *) {}

#endif
