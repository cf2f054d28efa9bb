/* Attention on matrix units: 16-bit types, heads of 64 and 128. Scores and results stay in registers; the
 * scores' layout is that of the next product's input. Tiles of keys (or queries) are copied while the one
 * before is worked on. Tiles that no query sees are skipped; where all see all, nothing is compared. Rows of
 * k and v inside a tile are multiplied by 0 where they are not seen, so they must hold numbers.
 * arXiv:2307.08691, with a backward in two kernels, so that no sum depends on the order of blocks. Scratch:
 * reach of the tiles of queries, in the backward. */
#include "kern/gpu/attn.h"
#include "kern/gpu/mma.h"

#if GPU_HAS_MMA

bool attn_mma_takes(const struct attn *a)
{
    const int type = a->q.type;
    return (type == DT_BF16 || type == DT_F16) && (a->k.type == type || a->k.type == DT_Q8) && a->wide &&
           (a->D == 64 || a->D == 128);
}

enum { ALIGN = 128 };

/* The first tile in shared memory. */
__device__ inline uint32_t tiles_at(const void *mem)
{
    return (shared_at(mem) + ALIGN - 1) & ~(uint32_t)(ALIGN - 1);
}

enum { FWD_T = 128, FWD_S = 64, FWD_THREADS = 128, TILES = 2 /* of 16 queries, of a warp */ };

/* s = q k^T: M row tiles of q from tile_lane on, N pairs of column tiles, which are rows of k from
 * tile_lane_b on. */
template <class E, int D, int M, int N>
__device__ inline void scores(float (&s)[M][2 * N][4], uint32_t q, uint32_t k)
{
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < 2 * N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) s[m][n][i] = 0;
#pragma unroll
    for (int c = 0; c < D / 16; c++) {
        uint32_t a[M][4], b[4];
#pragma unroll
        for (int m = 0; m < M; m++) tile_a<D>(a[m], q, m, c);
#pragma unroll
        for (int n = 0; n < N; n++) {
            tile_b<D>(b, k, n, c);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma<E>(s[m][2 * n], a[m], b[0], b[1]);
                mma<E>(s[m][2 * n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

/* acc += p v: p [16 M, 16 N] from registers, v the rows from tile_lane on. */
template <class E, int D, int M, int N>
__device__ inline void weigh(float (&acc)[M][D / 8][4], const float (&p)[M][2 * N][4], uint32_t v)
{
#pragma unroll
    for (int k = 0; k < N; k++) {
        uint32_t a[M][4], b[4];
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                a[m][i] = mma_pair<E>(p[m][2 * k + i / 2][i % 2 * 2], p[m][2 * k + i / 2][i % 2 * 2 + 1]);
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            tile_bt<D>(b, v, k, n);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma<E>(acc[m][2 * n], a[m], b[0], b[1]);
                mma<E>(acc[m][2 * n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

/* What a thread knows of its rows of queries: for row tile m, [2m] is row g and [2m+1] is row g + 8. */
struct fwd_rows {
    float top[2 * TILES], sum[2 * TILES]; /* sum: of this thread's columns */
};

/* What is not seen becomes -infinity. `row`: the warp's first query. */
__device__ inline void mask(const attn &a, const reach &see, float (&s)[TILES][FWD_S / 8][4], int row, int s0)
{
#pragma unroll
    for (int h = 0; h < 2 * TILES; h++) {
        const int t = row + 16 * (h / 2) + (int)threadIdx.x % 32 / 4 + 8 * (h % 2),
                  key = s0 + 2 * ((int)threadIdx.x % 4);
        const int2 range = t >= see.t0 && t < see.t1 ? attn_range(a, t) : make_int2(0, 0);
        const int from = range.x - key, to = range.y - key;
#pragma unroll
        for (int n = 0; n < FWD_S / 8; n++)
#pragma unroll
            for (int i = 0; i < 2; i++)
                if (8 * n + i < from || 8 * n + i >= to) s[h / 2][n][h % 2 * 2 + i] = -INFINITY;
    }
}

/* Scores become exponentials; what there is so far fades. */
template <int D>
__device__ inline void softmax_step(fwd_rows &r, float (&s)[TILES][FWD_S / 8][4],
                                    float (&acc)[TILES][D / 8][4], float scale2)
{
#pragma unroll
    for (int h = 0; h < 2 * TILES; h++) {
        float top = r.top[h];
#pragma unroll
        for (int n = 0; n < FWD_S / 8; n++)
            top = fmaxf(top, fmaxf(s[h / 2][n][h % 2 * 2], s[h / 2][n][h % 2 * 2 + 1]));
        top = quad_max(top);
        const bool any = top > -INFINITY; /* else all is 0, and stays so */
        const float base = any ? top * scale2 : 0.0f;
        const float fade = any ? exp2_fast((r.top[h] - top) * scale2) : 1.0f; /* exactly 1 if the top stays */
        r.top[h] = top;
        r.sum[h] *= fade;
#pragma unroll
        for (int n = 0; n < FWD_S / 8; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float *v = &s[h / 2][n][h % 2 * 2 + i];
                *v = exp2_fast(*v * scale2 - base);
                r.sum[h] += *v;
            }
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            acc[h / 2][n][h % 2 * 2] *= fade;
            acc[h / 2][n][h % 2 * 2 + 1] *= fade;
        }
    }
}

template <class E, int D>
__device__ inline void fwd_store(const attn &a, fwd_rows &r, float (&acc)[TILES][D / 8][4], int row, int head)
{
    const int g = (int)threadIdx.x % 32 / 4, q = (int)threadIdx.x % 4;
#pragma unroll
    for (int h = 0; h < 2 * TILES; h++) {
        const int t = row + 16 * (h / 2) + g + 8 * (h % 2);
        const float sum = quad_sum(r.sum[h]), scale = 1.0f / sum;
        if (t >= a.T) continue;
        uint32_t *y = (uint32_t *)((E *)a.y.p + ((int64_t)t * a.H + head) * D);
#pragma unroll
        for (int n = 0; n < D / 8; n++)
            y[4 * n + q] =
                mma_pair<E>(acc[h / 2][n][h % 2 * 2] * scale, acc[h / 2][n][h % 2 * 2 + 1] * scale);
        if (a.lse && q == 0) a.lse[(int64_t)t * a.H + head] = r.top[h] * a.scale + LN2 * log2f(sum);
    }
}

/* A tile of keys or values; Q8: they are stored so. */
template <class E, int D, bool Q8>
__device__ inline void tile_keys(uint32_t tile, const attn &a, view x, const quant_view &q, int kv, int s0,
                                 const reach &see, const int32_t *table)
{
    if (Q8)
        tile_copy_q8<E, D, FWD_S, FWD_THREADS>(tile, q, kv * D, s0, see.lo, see.hi, table);
    else
        tile_copy<E, D, FWD_S, FWD_THREADS>(tile, (const E *)x.p + kv * D, (int64_t)a.K * D, s0, see.lo, see.hi, table);
}

/* Block (head, tile of queries): those with the most keys, if attention is causal, come first. */
template <class E, int D, bool Q8> __global__ __launch_bounds__(FWD_THREADS, 2) void mma_fwd(attn a)
{
    GPU_SHARED(E, mem);
    const int head = (int)blockIdx.x, kv = head / (a.H / a.K), t0 = (int)(gridDim.y - 1 - blockIdx.y) * FWD_T;
    const int row = (int)threadIdx.x / 32 * 16 * TILES;
    const uint32_t q = tiles_at(mem), k = q + FWD_T * D * 2, v = k + FWD_S * D * 2;
    const uint32_t q_lane = tile_lane<D>(q, row), k_lane = tile_lane_b<D>(k), v_lane = tile_lane<D>(v, 0);
    fwd_rows r;
    float acc[TILES][D / 8][4] = {};
    tile_copy<E, D, FWD_T, FWD_THREADS>(q, (const E *)a.q.p + head * D, (int64_t)a.H * D, t0, 0, a.T);
#pragma unroll
    for (int h = 0; h < 2 * TILES; h++) r.top[h] = -INFINITY, r.sum[h] = 0;
    for (int first = t0;
         first < min(t0 + FWD_T, a.T);) { /* one sequence after the other; mostly there is one */
        const reach see = warp_reach(a, first, t0 + FWD_T);
        const int32_t *table = attn_table(a, first);
        const bool whole = see.t0 == t0 && see.t1 == min(t0 + FWD_T, a.T);
        tile_keys<E, D, Q8>(k, a, a.k, a.kq, kv, see.lo / FWD_S * FWD_S, see, table);
        copy_commit();
        for (int s0 = see.lo / FWD_S * FWD_S; s0 < see.hi; s0 += FWD_S) {
            float s[TILES][FWD_S / 8][4];
            copy_wait<0>();
            __syncthreads(); /* k is there, v is free */
            tile_keys<E, D, Q8>(v, a, a.v, a.vq, kv, s0, see, table);
            copy_commit();
            scores<E, D, TILES, FWD_S / 16>(s, q_lane, k_lane);
            if (!whole || s0 < see.in || s0 + FWD_S > see.out) mask(a, see, s, t0 + row, s0);
            softmax_step<D>(r, s, acc, a.scale * LOG2E);
            copy_wait<0>();
            __syncthreads(); /* v is there, k is free */
            if (s0 + FWD_S < see.hi) tile_keys<E, D, Q8>(k, a, a.k, a.kq, kv, s0 + FWD_S, see, table);
            copy_commit();
            weigh<E, D, TILES, FWD_S / 16>(acc, s, v_lane);
        }
        first = see.t1;
    }
    fwd_store<E, D>(a, r, acc, t0 + row, head);
}

template <class E, int D> static void fwd_launch(struct kctx *kc, const struct attn *a)
{
    const dim3 grid((unsigned)a->H, (unsigned)ceil_div(a->T, FWD_T));
    gpu_launch(a->k.type == DT_Q8 ? mma_fwd<E, D, true> : mma_fwd<E, D, false>, grid, FWD_THREADS,
               ALIGN + (FWD_T + 2 * FWD_S) * D * sizeof(E), stream_of(kc), *a);
}

void attn_mma_fwd(struct kctx *kc, const struct attn *a)
{
    if (a->q.type == DT_BF16)
        (a->D == 64 ? fwd_launch<gpu_bf16, 64> : fwd_launch<gpu_bf16, 128>)(kc, a);
    else
        (a->D == 64 ? fwd_launch<gpu_f16, 64> : fwd_launch<gpu_f16, 128>)(kc, a);
}

/* ---- backward */

enum {
    KV_S = 128,
    KV_T = 64,
    KV_THREADS = 256, /* dk, dv: a warp has 16 keys; queries pass by */
    Q_T = 128,
    Q_S = 32,
    Q_THREADS = 128, /* dq: a warp has 32 queries; keys pass by */
};

/* Of each tile of KV_T queries. */
__global__ __launch_bounds__(32) void find_reach(reach *r, attn a)
{
    const reach one = warp_reach(a, (int)blockIdx.x * KV_T, (int)(blockIdx.x + 1) * KV_T);
    if (threadIdx.x == 0) r[blockIdx.x] = one;
}

/* Of each tile of KV_S keys: the first tile of queries that sees one of them, and the one behind the last. */
__global__ __launch_bounds__(32) void find_bounds(int2 *bounds, const reach *r, int n)
{
    const int s0 = (int)blockIdx.x * KV_S;
    int first = n, last = -1;
    for (int i = (int)threadIdx.x; i < n; i += 32) {
        if (r[i].lo >= s0 + KV_S || r[i].hi <= s0) continue;
        first = first < i ? first : i;
        last = i;
    }
    first = warp_least(first);
    last = -warp_least(-last);
    if (threadIdx.x == 0) bounds[blockIdx.x] = make_int2(first, last + 1);
}

/* A tile of queries in shared memory, and its numbers. */
struct query_tile {
    uint32_t q, dy;      /* tiles */
    float *lse2, *delta; /* lse in powers of 2 */
    int *from, *to;
};

template <class E, int D, int ROWS, int THREADS>
__device__ inline void query_copy(const attn_back &b, const query_tile &x, int t0, int head)
{
    const attn &a = b.a;
    tile_copy<E, D, ROWS, THREADS>(x.q, (const E *)a.q.p + head * D, (int64_t)a.H * D, t0, 0, a.T);
    tile_copy<E, D, ROWS, THREADS>(x.dy, (const E *)b.dy.p + head * D, (int64_t)a.H * D, t0, 0, a.T);
    copy_commit();
    for (int i = (int)threadIdx.x; i < ROWS; i += THREADS) {
        const int t = t0 + i;
        const int64_t th = (int64_t)t * a.H + head;
        x.lse2[i] = t < a.T ? a.lse[th] * LOG2E : 0.0f;
        x.delta[i] = t < a.T ? b.delta[th] : 0.0f;
        x.from[i] = attn_range(a, t).x;
        x.to[i] = attn_range(a, t).y;
    }
}

/* One query tile for a warp's 16 keys from `key` on: p = softmax, transposed, then its gradient; dv += p dy,
 * dk += ds q. */
template <class E, int D>
__device__ inline void kv_step(const attn &a, const query_tile &x, uint32_t k, uint32_t v, int key, bool all,
                               float (&dk)[1][D / 8][4], float (&dv)[1][D / 8][4])
{
    const int g = (int)threadIdx.x % 32 / 4, q = (int)threadIdx.x % 4;
    float p[1][KV_T / 8][4], ds[1][KV_T / 8][4];
    scores<E, D, 1, KV_T / 16>(p, k, tile_lane_b<D>(x.q));
    scores<E, D, 1, KV_T / 16>(ds, v, tile_lane_b<D>(x.dy));
#pragma unroll
    for (int n = 0; n < KV_T / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int t = 8 * n + 2 * q + i % 2, s = key + g + i / 2 * 8;
            const bool seen = all || (s >= x.from[t] && s < x.to[t]);
            const float e = seen ? exp2_fast(p[0][n][i] * a.scale * LOG2E - x.lse2[t]) : 0.0f;
            p[0][n][i] = e;
            ds[0][n][i] = e * (ds[0][n][i] - x.delta[t]);
        }
    weigh<E, D, 1, KV_T / 16>(dv, p, tile_lane<D>(x.dy, 0));
    weigh<E, D, 1, KV_T / 16>(dk, ds, tile_lane<D>(x.q, 0));
}

/* grad[rows row.., head] += acc * scale */
template <class E, int D>
__device__ inline void grad_add(view grad, const float (&acc)[D / 8][4], int row, int n_rows, int64_t stride,
                                int head, float scale)
{
    const int g = (int)threadIdx.x % 32 / 4, q = (int)threadIdx.x % 4;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int r = row + g + 8 * h;
        if (r >= n_rows || !grad.p) continue;
        uint32_t *y = (uint32_t *)((E *)grad.p + r * stride + head * D);
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            union {
                uint32_t u;
                E e[2];
            } old;
            old.u = y[4 * n + q];
            y[4 * n + q] = mma_pair<E>(gpu_float(old.e[0]) + acc[n][2 * h] * scale,
                                       gpu_float(old.e[1]) + acc[n][2 * h + 1] * scale);
        }
    }
}

/* The next tile of queries, from i on, that sees one of the keys [s0, s0 + KV_S); n if there is none. */
__device__ inline int next_tile(const reach *r, int i, int n, int s0)
{
    while (i < n && (r[i].lo >= s0 + KV_S || r[i].hi <= s0)) i++;
    return i;
}

/* Block (key/value head, tile of keys). Two tiles of queries are in memory: one is copied while the other is
 * worked on. */
template <class E, int D>
__global__ __launch_bounds__(KV_THREADS, 1) void mma_bwd_kv(attn_back b, const reach *reaches, const int2 *bounds)
{
    GPU_SHARED(E, mem);
    __shared__ float lse2[2][KV_T], delta[2][KV_T];
    __shared__ int from[2][KV_T], to[2][KV_T];
    const attn &a = b.a;
    const int kv = (int)blockIdx.x, s0 = (int)blockIdx.y * KV_S, group = a.H / a.K,
              row = (int)threadIdx.x / 32 * 16;
    const int first = bounds[blockIdx.y].x, n_tiles = bounds[blockIdx.y].y;
    const int64_t stride = (int64_t)a.K * D;
    const uint32_t k = tiles_at(mem), v = k + KV_S * D * 2, tiles = v + KV_S * D * 2;
    const uint32_t k_lane = tile_lane<D>(k, row), v_lane = tile_lane<D>(v, row);
    float dk[1][D / 8][4] = {}, dv[1][D / 8][4] = {};
    tile_copy<E, D, KV_S, KV_THREADS>(k, (const E *)a.k.p + kv * D, stride, s0, 0, a.S);
    tile_copy<E, D, KV_S, KV_THREADS>(v, (const E *)a.v.p + kv * D, stride, s0, 0, a.S);
    auto tile = [&](int which) {
        const uint32_t at = tiles + (uint32_t)which * 2 * KV_T * D * 2;
        return query_tile{ at, at + KV_T * D * 2, lse2[which], delta[which], from[which], to[which] };
    };
    int head = kv * group, i = first < n_tiles ? first : n_tiles, which = 0;
    if (i < n_tiles) query_copy<E, D, KV_T, KV_THREADS>(b, tile(0), i * KV_T, head);
    while (i < n_tiles) {
        const reach see = reaches[i];
        const bool all = see.in <= s0 && see.out >= s0 + KV_S && (i + 1) * KV_T <= a.T;
        int next = next_tile(reaches, i + 1, n_tiles, s0), next_head = head;
        if (next == n_tiles && head + 1 < (kv + 1) * group)
            next = first, next_head++;
        copy_wait<0>();
        __syncthreads();
        if (next < n_tiles) query_copy<E, D, KV_T, KV_THREADS>(b, tile(which ^ 1), next * KV_T, next_head);
        kv_step<E, D>(a, tile(which), k_lane, v_lane, s0 + row, all, dk, dv);
        i = next, head = next_head, which ^= 1;
    }
    grad_add<E, D>(b.dk, dk[0], s0 + row, a.S, stride, kv, a.scale);
    grad_add<E, D>(b.dv, dv[0], s0 + row, a.S, stride, kv, 1.0f);
}

/* Block (head, tile of queries): dq. */
template <class E, int D> __global__ __launch_bounds__(Q_THREADS, 2) void mma_bwd_q(attn_back b)
{
    GPU_SHARED(E, mem);
    __shared__ float lse2[Q_T], delta[Q_T];
    __shared__ int from[Q_T], to[Q_T];
    const attn &a = b.a;
    const int head = (int)blockIdx.x, kv = head / (a.H / a.K), t0 = (int)(gridDim.y - 1 - blockIdx.y) * Q_T;
    const int row = (int)threadIdx.x / 32 * 16 * TILES, g = (int)threadIdx.x % 32 / 4,
              q = (int)threadIdx.x % 4;
    const int64_t stride = (int64_t)a.K * D;
    const E *k_head = (const E *)a.k.p + kv * D, *v_head = (const E *)a.v.p + kv * D;
    const uint32_t base = tiles_at(mem), tiles = base + 2 * Q_T * D * 2;
    const query_tile x = { base, base + Q_T * D * 2, lse2, delta, from, to };
    const uint32_t q_lane = tile_lane<D>(x.q, row), dy_lane = tile_lane<D>(x.dy, row);
    const reach see = warp_reach(a, t0, t0 + Q_T);
    float acc[TILES][D / 8][4] = {};
    int which = 0;
    tile_copy<E, D, Q_S, Q_THREADS>(tiles, k_head, stride, see.lo, see.lo, see.hi);
    tile_copy<E, D, Q_S, Q_THREADS>(tiles + Q_S * D * 2, v_head, stride, see.lo, see.lo, see.hi);
    query_copy<E, D, Q_T, Q_THREADS>(b, x, t0, head);
    for (int s0 = see.lo; s0 < see.hi; s0 += Q_S, which ^= 1) {
        const uint32_t k = tiles + (uint32_t)which * 2 * Q_S * D * 2, v = k + Q_S * D * 2;
        const uint32_t k_next = tiles + (uint32_t)(which ^ 1) * 2 * Q_S * D * 2;
        const bool all = s0 >= see.in && s0 + Q_S <= see.out && t0 + Q_T <= a.T;
        float p[TILES][Q_S / 8][4], ds[TILES][Q_S / 8][4];
        copy_wait<0>();
        __syncthreads();
        if (s0 + Q_S < see.hi) {
            tile_copy<E, D, Q_S, Q_THREADS>(k_next, k_head, stride, s0 + Q_S, see.lo, see.hi);
            tile_copy<E, D, Q_S, Q_THREADS>(k_next + Q_S * D * 2, v_head, stride, s0 + Q_S, see.lo, see.hi);
            copy_commit();
        }
        scores<E, D, TILES, Q_S / 16>(p, q_lane, tile_lane_b<D>(k));
        scores<E, D, TILES, Q_S / 16>(ds, dy_lane, tile_lane_b<D>(v));
#pragma unroll
        for (int m = 0; m < TILES; m++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int t = row + 16 * m + g + i / 2 * 8;
                const float l = lse2[t], d = delta[t];
                const int first = from[t], last = to[t];
#pragma unroll
                for (int n = 0; n < Q_S / 8; n++) {
                    const int key = s0 + 8 * n + 2 * q + i % 2;
                    const float e = all || (key >= first && key < last)
                                      ? exp2_fast(p[m][n][i] * a.scale * LOG2E - l)
                                      : 0.0f;
                    ds[m][n][i] = e * (ds[m][n][i] - d);
                }
            }
        weigh<E, D, TILES, Q_S / 16>(acc, ds, tile_lane<D>(k, 0));
    }
#pragma unroll
    for (int m = 0; m < TILES; m++)
        grad_add<E, D>(b.dq, acc[m], t0 + row + 16 * m, a.T, (int64_t)a.H * D, head, a.scale);
}

template <class E, int D> static void bwd_launch(struct kctx *kc, const struct attn_back *b)
{
    const struct attn *a = &b->a;
    const size_t mark = arena_mark(kc->scratch);
    const unsigned n_tiles = (unsigned)ceil_div(a->T, KV_T);
    const dim3 grid_kv((unsigned)a->K, (unsigned)ceil_div(a->S, KV_S)),
        grid_q((unsigned)a->H, (unsigned)ceil_div(a->T, Q_T));
    reach *reaches = (reach *)arena_take(kc->scratch, n_tiles * sizeof(reach));
    int2 *bounds = (int2 *)arena_take(kc->scratch, grid_kv.y * sizeof(int2));
    if (b->dk.p || b->dv.p) {
        gpu_launch(find_reach, n_tiles, 32, 0, stream_of(kc), reaches, *a);
        gpu_launch(find_bounds, grid_kv.y, 32, 0, stream_of(kc), bounds, reaches, (int)n_tiles);
        gpu_launch(mma_bwd_kv<E, D>, grid_kv, KV_THREADS, ALIGN + (2 * KV_S + 4 * KV_T) * D * sizeof(E),
                   stream_of(kc), *b, reaches, bounds);
    }
    if (b->dq.p)
        gpu_launch(mma_bwd_q<E, D>, grid_q, Q_THREADS, ALIGN + (2 * Q_T + 4 * Q_S) * D * sizeof(E),
                   stream_of(kc), *b);
    arena_rewind(kc->scratch, mark);
}

void attn_mma_bwd(struct kctx *kc, const struct attn_back *b)
{
    if (b->a.q.type == DT_BF16)
        (b->a.D == 64 ? bwd_launch<gpu_bf16, 64> : bwd_launch<gpu_bf16, 128>)(kc, b);
    else
        (b->a.D == 64 ? bwd_launch<gpu_f16, 64> : bwd_launch<gpu_f16, 128>)(kc, b);
}

#else

bool attn_mma_takes(const struct attn *) { return false; }
void attn_mma_fwd(struct kctx *, const struct attn *) {}
void attn_mma_bwd(struct kctx *, const struct attn_back *) {}

#endif
