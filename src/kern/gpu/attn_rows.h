/* Attention by matrix units: what becomes of the rows of numbers that a warp has in registers after a product. Both
 * kinds of units (attn_mma.cu, attn_wgmma.cu) leave them in the same places: x[m][n] is columns [8n, 8n + 8) of row
 * tile m, a thread having four of its numbers, as mma.h says of D. Of a thread's 2 M rows number h is row
 * 16 (h / 2) + g + 8 (h % 2) of the warp's. */
#pragma once
#include "kern/gpu/mma.h"

#if GPU_HAS_MMA

/* Over the 4 lanes of a row. */
__device__ inline float quad_max(float v)
{
    v = fmaxf(v, gpu_shfl_xor(v, 1));
    return fmaxf(v, gpu_shfl_xor(v, 2));
}
__device__ inline float quad_sum(float v)
{
    v += gpu_shfl_xor(v, 1);
    return v + gpu_shfl_xor(v, 2);
}

__device__ inline int warp_least(int v)
{
#pragma unroll
    for (int m = 16; m > 0; m /= 2) v = min(v, gpu_shfl_xor(v, m));
    return gpu_shfl(v, 0); /* shows the compiler that it is one number */
}

/* The queries from t0 on that have one sequence, up to t1; by a warp. */
__device__ inline reach warp_reach(const attn &a, int t0, int t1)
{
    reach r = { t0, min(t1, a.T), 0x7fffffff, 0, 0, 0x7fffffff };
    const int lane = (int)threadIdx.x % 32;
    if (a.pages) {
        int end = r.t1;
        for (int t = t0 + lane; t < r.t1; t += 32)
            if (attn_table(a, t) != attn_table(a, t0)) end = min(end, t);
        r.t1 = warp_least(end);
    }
    for (int t = t0 + lane; t < r.t1; t += 32) {
        const int2 range = attn_range(a, t);
        r.lo = min(r.lo, range.x), r.in = max(r.in, range.x);
        r.hi = max(r.hi, range.y), r.out = min(r.out, range.y);
    }
    r.lo = warp_least(r.lo), r.hi = -warp_least(-r.hi);
    r.in = -warp_least(-r.in), r.out = warp_least(r.out);
    return r;
}

/* Row h of this thread, from the warp's first. */
__device__ inline int row_of(int h) { return 16 * (h / 2) + (int)threadIdx.x % 32 / 4 + 8 * (h % 2); }

/* Scores of keys from s0 on that the queries, from `row` on, do not see become -infinity. */
template <int M, int N>
__device__ inline void rows_mask(const attn &a, const reach &see, float (&s)[M][N][4], int row, int s0)
{
#pragma unroll
    for (int h = 0; h < 2 * M; h++) {
        const int t = row + row_of(h), key = s0 + 2 * ((int)threadIdx.x % 4);
        const int2 range = t >= see.t0 && t < see.t1 ? attn_range(a, t) : make_int2(0, 0);
        const int from = range.x - key, to = range.y - key;
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 2; i++)
                if (8 * n + i < from || 8 * n + i >= to) s[h / 2][n][h % 2 * 2 + i] = -INFINITY;
    }
}

/* The next product's A: columns [16k, 16k + 16) of a row tile, lo and hi being n = 2k and 2k + 1. */
template <class E> __device__ inline void rows_pair(uint32_t (&a)[4], const float (&lo)[4], const float (&hi)[4])
{
    a[0] = mma_pair<E>(lo[0], lo[1]), a[1] = mma_pair<E>(lo[2], lo[3]);
    a[2] = mma_pair<E>(hi[0], hi[1]), a[3] = mma_pair<E>(hi[2], hi[3]);
}

/* The same of a whole row tile. */
template <class E, int N> __device__ inline void rows_pairs(uint32_t (&a)[N / 2][4], const float (&x)[N][4])
{
#pragma unroll
    for (int k = 0; k < N / 2; k++) rows_pair<E>(a[k], x[2 * k], x[2 * k + 1]);
}

/* ---- forward */

/* What a thread knows of its rows of queries so far. */
template <int M> struct fwd_rows {
    float top[2 * M], sum[2 * M]; /* sum: of this thread's columns */
};

template <int M> __device__ inline void rows_start(fwd_rows<M> &r)
{
#pragma unroll
    for (int h = 0; h < 2 * M; h++) r.top[h] = -INFINITY, r.sum[h] = 0;
}

/* Scores become exponentials. fade: what the results so far are to be multiplied by. */
template <int M, int N>
__device__ inline void rows_softmax(fwd_rows<M> &r, float (&fade)[2 * M], float (&s)[M][N][4], float scale2)
{
#pragma unroll
    for (int h = 0; h < 2 * M; h++) {
        float top = r.top[h];
#pragma unroll
        for (int n = 0; n < N; n++) top = fmaxf(top, fmaxf(s[h / 2][n][h % 2 * 2], s[h / 2][n][h % 2 * 2 + 1]));
        top = quad_max(top);
        const bool any = top > -INFINITY; /* else all is 0, and stays so */
        const float base = any ? top * scale2 : 0.0f;
        fade[h] = any ? exp2_fast((r.top[h] - top) * scale2) : 1.0f; /* exactly 1 if the top stays */
        r.top[h] = top;
        r.sum[h] *= fade[h];
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float *v = &s[h / 2][n][h % 2 * 2 + i];
                *v = exp2_fast(*v * scale2 - base);
                r.sum[h] += *v;
            }
    }
}

template <int M, int N> __device__ inline void rows_fade(float (&acc)[M][N][4], const float (&fade)[2 * M])
{
#pragma unroll
    for (int h = 0; h < 2 * M; h++)
#pragma unroll
        for (int n = 0; n < N; n++) {
            acc[h / 2][n][h % 2 * 2] *= fade[h];
            acc[h / 2][n][h % 2 * 2 + 1] *= fade[h];
        }
}

template <class E, int D, int M>
__device__ inline void rows_store(const attn &a, fwd_rows<M> &r, float (&acc)[M][D / 8][4], int row, int head)
{
    const int q = (int)threadIdx.x % 4;
#pragma unroll
    for (int h = 0; h < 2 * M; h++) {
        const int t = row + row_of(h);
        const float sum = quad_sum(r.sum[h]), scale = 1.0f / sum;
        if (t >= a.T) continue;
        uint32_t *y = (uint32_t *)((E *)a.y.p + ((int64_t)t * a.H + head) * D);
#pragma unroll
        for (int n = 0; n < D / 8; n++)
            y[4 * n + q] = mma_pair<E>(acc[h / 2][n][h % 2 * 2] * scale, acc[h / 2][n][h % 2 * 2 + 1] * scale);
        if (a.lse && q == 0) a.lse[(int64_t)t * a.H + head] = r.top[h] * a.scale + LN2 * log2f(sum);
    }
}

/* ---- backward: p = exp(scale s - lse), ds = p (dp - delta). Where queries are rows, their numbers are a row's; where
 * they are columns, the numbers lie in shared memory. */

enum { BACK_S = 128, BACK_T = 64 }; /* tiles of keys, and of queries that pass by */

template <int M> struct back_rows {
    float lse2[2 * M], delta[2 * M]; /* lse in powers of 2 */
};

template <int M> __device__ inline void rows_load(back_rows<M> &r, const attn_back &b, int row, int head)
{
#pragma unroll
    for (int h = 0; h < 2 * M; h++) {
        const int t = row + row_of(h);
        const int64_t th = (int64_t)t * b.a.H + head;
        r.lse2[h] = t < b.a.T ? b.a.lse[th] * LOG2E : 0.0f;
        r.delta[h] = t < b.a.T ? b.delta[th] : 0.0f;
    }
}

template <int M, int N>
__device__ inline void rows_probs(float (&p)[M][N][4], const back_rows<M> &r, float scale2)
{
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) p[m][n][i] = exp2_fast(p[m][n][i] * scale2 - r.lse2[2 * m + i / 2]);
}

/* dp becomes ds. */
template <int M, int N>
__device__ inline void rows_grads(float (&dp)[M][N][4], const float (&p)[M][N][4], const back_rows<M> &r)
{
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) dp[m][n][i] = p[m][n][i] * (dp[m][n][i] - r.delta[2 * m + i / 2]);
}

/* Of a tile of queries, in shared memory; zeros behind the last query. */
struct back_columns {
    float lse[BACK_T], delta[BACK_T];
    int2 range[BACK_T];
};

/* By thread i of THREADS, each of which waits for its copies as for those of tiles. */
template <int THREADS>
__device__ inline void columns_copy(back_columns *x, const attn_back &b, int t0, int head, int i)
{
    static_assert(THREADS >= 2 * BACK_T, "a thread has one query at most");
    const int t = t0 + i % BACK_T;
    const bool there = t < b.a.T;
    const int64_t th = there ? (int64_t)t * b.a.H + head : 0;
    if (i < BACK_T) {
        copy_small<4>(shared_at(x->lse + i), b.a.lse + th, there);
        copy_small<8>(shared_at(x->range + i), b.a.range + 2 * (int64_t)(there ? t : 0), there);
    } else if (i < 2 * BACK_T) {
        copy_small<4>(shared_at(x->delta + i - BACK_T), b.delta + th, there);
    }
}

/* Scores of keys, from `key` on, that their column's query does not see become -infinity. */
__device__ inline void columns_mask(float (&s)[BACK_T / 8][4], const back_columns *x, int key)
{
    const int q = 2 * ((int)threadIdx.x % 4);
#pragma unroll
    for (int n = 0; n < BACK_T / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int2 range = x->range[8 * n + q + i % 2];
            const int at = key + row_of(i / 2);
            if (at < range.x || at >= range.y) s[n][i] = -INFINITY;
        }
}

/* This thread's columns of x: two for each n. */
__device__ inline void columns_load(float (&v)[BACK_T / 8][2], const float *x)
{
    const float2 *at = (const float2 *)(x + 2 * ((int)threadIdx.x % 4));
#pragma unroll
    for (int n = 0; n < BACK_T / 8; n++) v[n][0] = at[4 * n].x, v[n][1] = at[4 * n].y;
}

__device__ inline void columns_probs(float (&p)[BACK_T / 8][4], const float (&lse)[BACK_T / 8][2], float scale2)
{
#pragma unroll
    for (int n = 0; n < BACK_T / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) p[n][i] = exp2_fast(p[n][i] * scale2 - lse[n][i % 2] * LOG2E);
}

__device__ inline void columns_grads(float (&dp)[BACK_T / 8][4], const float (&p)[BACK_T / 8][4],
                                     const float (&delta)[BACK_T / 8][2])
{
#pragma unroll
    for (int n = 0; n < BACK_T / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) dp[n][i] = p[n][i] * (dp[n][i] - delta[n][i % 2]);
}

/* grad[rows row.., head] += acc * scale */
template <class E, int D, int M>
__device__ inline void rows_add(const gradient &grad, const float (&acc)[M][D / 8][4], int row, int n_rows,
                                int64_t stride, int head, float scale)
{
    const int q = (int)threadIdx.x % 4;
    if (!grad.to.p) return;
#pragma unroll
    for (int h = 0; h < 2 * M; h++) {
        const int r = row + row_of(h);
        if (r >= n_rows) continue;
        uint32_t *y = (uint32_t *)((E *)grad.to.p + r * stride + head * D);
        union {
            uint32_t u;
            E e[2];
        } old[D / 8];
#pragma unroll
        for (int n = 0; n < D / 8; n++) old[n].u = grad.fresh ? 0 : y[4 * n + q]; /* all of them before one is needed */
#pragma unroll
        for (int n = 0; n < D / 8; n++)
            y[4 * n + q] = mma_pair<E>(gpu_float(old[n].e[0]) + acc[h / 2][n][h % 2 * 2] * scale,
                                       gpu_float(old[n].e[1]) + acc[h / 2][n][h % 2 * 2 + 1] * scale);
    }
}

/* ---- backward: which tiles of queries see a tile of keys */

/* Of each tile of BACK_T queries its reach; of each tile of BACK_S keys the first tile of queries that sees one of
 * them, and the one behind the last. */
struct back_tiles {
    const reach *reach;
    const int2 *bounds;
};
/* In scratch (attn_mma.cu). */
back_tiles back_find(struct kctx *kc, const struct attn *a);

/* The tiles of queries that see keys of [s0, s0 + BACK_S), head after head of those that read them. */
struct query_walk {
    const reach *reach;
    int s0, first, end; /* bounds */
    int i, head, heads; /* this tile, its head, the one behind the last */
    struct reach see;   /* this tile's */
};

__device__ inline bool walk_ends(const query_walk &w) { return w.head == w.heads; }
/* Tile i, or the first behind it that sees a key; or the first of the next head. */
__device__ inline void walk_to(query_walk &w, int i)
{
    for (w.i = i; w.i < w.end; w.i++) {
        w.see = w.reach[w.i];
        if (w.see.lo < w.s0 + BACK_S && w.see.hi > w.s0) return;
    }
    if (++w.head == w.heads) return;
    w.i = w.first;
    w.see = w.reach[w.i];
}
__device__ inline query_walk walk_start(const attn &a, const back_tiles &tiles, int tile, int kv)
{
    const int group = a.H / a.K;
    const int2 bounds = tiles.bounds[tile];
    query_walk w = { tiles.reach, tile * BACK_S, bounds.x, bounds.y, bounds.x, kv * group, (kv + 1) * group, {} };
    if (bounds.x < bounds.y)
        walk_to(w, bounds.x);
    else
        w.head = w.heads;
    return w;
}
/* Do all queries of the tile see all the keys? */
__device__ inline bool walk_sees_all(const query_walk &w, int T)
{
    return w.see.in <= w.s0 && w.see.out >= w.s0 + BACK_S && (w.i + 1) * BACK_T <= T;
}

#endif
