/* Attention on matrix units: 16-bit types, heads of 64 and 128. Scores and results stay in registers; the
 * scores' layout is that of the next product's input. Tiles of keys (or queries) are copied while the one
 * before is worked on. Tiles that no query sees are skipped; where all see all, nothing is compared. Rows of
 * k and v inside a tile are multiplied by 0 where they are not seen, so they must hold numbers.
 * arXiv:2307.08691, with a backward in two kernels, so that no sum depends on the order of blocks. Scratch:
 * reach of the tiles of queries, in the backward. */
#include "kern/gpu/attn_rows.h"

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
        for (int m = 0; m < M; m++) rows_pair<E>(a[m], p[m][2 * k], p[m][2 * k + 1]);
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
    fwd_rows<TILES> r;
    float acc[TILES][D / 8][4] = {}, fade[2 * TILES];
    tile_copy<E, D, FWD_T, FWD_THREADS>(q, (const E *)a.q.p + head * D, (int64_t)a.H * D, t0, 0, a.T);
    rows_start(r);
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
            if (!whole || s0 < see.in || s0 + FWD_S > see.out) rows_mask(a, see, s, t0 + row, s0);
            rows_softmax(r, fade, s, a.scale * LOG2E);
            rows_fade(acc, fade);
            copy_wait<0>();
            __syncthreads(); /* v is there, k is free */
            if (s0 + FWD_S < see.hi) tile_keys<E, D, Q8>(k, a, a.k, a.kq, kv, s0 + FWD_S, see, table);
            copy_commit();
            weigh<E, D, TILES, FWD_S / 16>(acc, s, v_lane);
        }
        first = see.t1;
    }
    rows_store<E, D>(a, r, acc, t0 + row, head);
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
    KV_THREADS = 256, /* dk, dv: a warp has 16 keys; queries pass by */
    Q_T = 128,
    Q_S = 32,
    Q_THREADS = 128, /* dq: a warp has 32 queries; keys pass by */
};

/* Of each tile of BACK_T queries. */
__global__ __launch_bounds__(32) void find_reach(reach *r, attn a)
{
    const reach one = warp_reach(a, (int)blockIdx.x * BACK_T, (int)(blockIdx.x + 1) * BACK_T);
    if (threadIdx.x == 0) r[blockIdx.x] = one;
}

/* Of each tile of BACK_S keys: the first tile of queries that sees one of them, and the one behind the last. */
__global__ __launch_bounds__(32) void find_bounds(int2 *bounds, const reach *r, int n)
{
    const int s0 = (int)blockIdx.x * BACK_S;
    int first = n, last = -1;
    for (int i = (int)threadIdx.x; i < n; i += 32) {
        if (r[i].lo >= s0 + BACK_S || r[i].hi <= s0) continue;
        first = first < i ? first : i;
        last = i;
    }
    first = warp_least(first);
    last = -warp_least(-last);
    if (threadIdx.x == 0) bounds[blockIdx.x] = make_int2(first, last + 1);
}

back_tiles back_find(struct kctx *kc, const struct attn *a)
{
    const int n = (int)ceil_div(a->T, BACK_T), n_keys = (int)ceil_div(a->S, BACK_S);
    reach *reaches = (reach *)arena_take(kc->scratch, (size_t)n * sizeof(reach));
    int2 *bounds = (int2 *)arena_take(kc->scratch, (size_t)n_keys * sizeof(int2));
    gpu_launch(find_reach, dim3((unsigned)n), 32, 0, stream_of(kc), reaches, *a);
    gpu_launch(find_bounds, dim3((unsigned)n_keys), 32, 0, stream_of(kc), bounds, reaches, n);
    return { reaches, bounds };
}

/* A tile of queries and dy, the one behind the other, and their numbers. */
template <class E, int D>
__device__ inline void query_copy(const attn_back &b, uint32_t q, back_columns *x, int t0, int head)
{
    const attn &a = b.a;
    const int64_t stride = (int64_t)a.H * D;
    tile_copy<E, D, BACK_T, KV_THREADS>(q, (const E *)a.q.p + head * D, stride, t0, 0, a.T);
    tile_copy<E, D, BACK_T, KV_THREADS>(q + BACK_T * D * 2, (const E *)b.dy.p + head * D, stride, t0, 0, a.T);
    columns_copy<KV_THREADS>(x, b, t0, head, (int)threadIdx.x);
    copy_commit();
}

/* One query tile for a warp's 16 keys from `key` on: p = softmax, transposed, then its gradient; dv += p dy,
 * dk += ds q. */
template <class E, int D>
__device__ inline void kv_step(const attn &a, uint32_t q, const back_columns *x, uint32_t k, uint32_t v, int key,
                               bool all, float (&dk)[1][D / 8][4], float (&dv)[1][D / 8][4])
{
    const uint32_t dy = q + BACK_T * D * 2;
    float p[1][BACK_T / 8][4], ds[1][BACK_T / 8][4], of_columns[BACK_T / 8][2];
    scores<E, D, 1, BACK_T / 16>(p, k, tile_lane_b<D>(q));
    scores<E, D, 1, BACK_T / 16>(ds, v, tile_lane_b<D>(dy));
    if (!all) columns_mask(p[0], x, key);
    columns_load(of_columns, x->lse);
    columns_probs(p[0], of_columns, a.scale * LOG2E);
    columns_load(of_columns, x->delta);
    columns_grads(ds[0], p[0], of_columns);
    weigh<E, D, 1, BACK_T / 16>(dv, p, tile_lane<D>(dy, 0));
    weigh<E, D, 1, BACK_T / 16>(dk, ds, tile_lane<D>(q, 0));
}

/* Block (key/value head, tile of keys). Two tiles of queries are in memory: one is copied while the other is
 * worked on. */
template <class E, int D>
__global__ __launch_bounds__(KV_THREADS, 1) void mma_bwd_kv(attn_back b, back_tiles tiles)
{
    enum { KEYS = BACK_S * D * 2, QUERIES = 2 * BACK_T * D * 2 };
    GPU_SHARED(E, mem);
    __shared__ back_columns columns[2];
    const attn &a = b.a;
    const int kv = (int)blockIdx.x, s0 = (int)blockIdx.y * BACK_S, row = (int)threadIdx.x / 32 * 16;
    const int64_t stride = (int64_t)a.K * D;
    const uint32_t k = tiles_at(mem), v = k + KEYS, q = v + KEYS;
    const uint32_t k_lane = tile_lane<D>(k, row), v_lane = tile_lane<D>(v, row);
    float dk[1][D / 8][4] = {}, dv[1][D / 8][4] = {};
    tile_copy<E, D, BACK_S, KV_THREADS>(k, (const E *)a.k.p + kv * D, stride, s0, 0, a.S);
    tile_copy<E, D, BACK_S, KV_THREADS>(v, (const E *)a.v.p + kv * D, stride, s0, 0, a.S);
    query_walk w = walk_start(a, tiles, (int)blockIdx.y, kv);
    if (!walk_ends(w)) query_copy<E, D>(b, q, &columns[0], w.i * BACK_T, w.head);
    for (int which = 0; !walk_ends(w); which ^= 1) {
        const bool all = walk_sees_all(w, a.T);
        walk_to(w, w.i + 1);
        copy_wait<0>();
        __syncthreads();
        if (!walk_ends(w))
            query_copy<E, D>(b, q + (uint32_t)(which ^ 1) * QUERIES, &columns[which ^ 1], w.i * BACK_T, w.head);
        kv_step<E, D>(a, q + (uint32_t)which * QUERIES, &columns[which], k_lane, v_lane, s0 + row, all, dk, dv);
    }
    copy_wait<0>();
    rows_add<E, D>(b.dk, dk, s0 + row, a.S, stride, kv, a.scale);
    rows_add<E, D>(b.dv, dv, s0 + row, a.S, stride, kv, 1.0f);
}

/* Block (head, tile of queries): dq. */
template <class E, int D> __global__ __launch_bounds__(Q_THREADS, 2) void mma_bwd_q(attn_back b)
{
    GPU_SHARED(E, mem);
    const attn &a = b.a;
    const int head = (int)blockIdx.x, kv = head / (a.H / a.K), t0 = (int)(gridDim.y - 1 - blockIdx.y) * Q_T;
    const int row = (int)threadIdx.x / 32 * 16 * TILES;
    const int64_t stride = (int64_t)a.K * D, q_stride = (int64_t)a.H * D;
    const E *k_head = (const E *)a.k.p + kv * D, *v_head = (const E *)a.v.p + kv * D;
    const uint32_t q = tiles_at(mem), dy = q + Q_T * D * 2, tiles = dy + Q_T * D * 2;
    const uint32_t q_lane = tile_lane<D>(q, row), dy_lane = tile_lane<D>(dy, row);
    const reach see = warp_reach(a, t0, t0 + Q_T);
    float acc[TILES][D / 8][4] = {};
    back_rows<TILES> r;
    int which = 0;
    rows_load(r, b, t0 + row, head);
    tile_copy<E, D, Q_S, Q_THREADS>(tiles, k_head, stride, see.lo, see.lo, see.hi);
    tile_copy<E, D, Q_S, Q_THREADS>(tiles + Q_S * D * 2, v_head, stride, see.lo, see.lo, see.hi);
    tile_copy<E, D, Q_T, Q_THREADS>(q, (const E *)a.q.p + head * D, q_stride, t0, 0, a.T);
    tile_copy<E, D, Q_T, Q_THREADS>(dy, (const E *)b.dy.p + head * D, q_stride, t0, 0, a.T);
    copy_commit();
    for (int s0 = see.lo; s0 < see.hi; s0 += Q_S, which ^= 1) {
        const uint32_t k = tiles + (uint32_t)which * 2 * Q_S * D * 2, v = k + Q_S * D * 2;
        const uint32_t k_next = tiles + (uint32_t)(which ^ 1) * 2 * Q_S * D * 2;
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
        if (s0 < see.in || s0 + Q_S > see.out || t0 + Q_T > a.T) rows_mask(a, see, p, t0 + row, s0);
        rows_probs(p, r, a.scale * LOG2E);
        rows_grads(ds, p, r);
        weigh<E, D, TILES, Q_S / 16>(acc, ds, tile_lane<D>(k, 0));
    }
    rows_add<E, D>(b.dq, acc, t0 + row, a.T, q_stride, head, a.scale);
}

template <class E, int D> static void bwd_launch(struct kctx *kc, const struct attn_back *b)
{
    const struct attn *a = &b->a;
    const size_t mark = arena_mark(kc->scratch);
    const dim3 grid_kv((unsigned)a->K, (unsigned)ceil_div(a->S, BACK_S)),
        grid_q((unsigned)a->H, (unsigned)ceil_div(a->T, Q_T));
    if (b->dk.to.p || b->dv.to.p)
        gpu_launch(mma_bwd_kv<E, D>, grid_kv, KV_THREADS, ALIGN + (2 * BACK_S + 4 * BACK_T) * D * sizeof(E),
                   stream_of(kc), *b, back_find(kc, a));
    if (b->dq.to.p)
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
