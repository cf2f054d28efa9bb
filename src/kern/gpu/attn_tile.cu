/* Attention in f32, for any head size up to 256 and any type: a block works on tiles of 16 queries and 16
 * keys, a thread on one pair of them, and then on one row and every 16th column of the result. The oracle of
 * the faster ways, and what devices without matrix units run. Scratch: none. */
#include "kern/gpu/attn.h"

enum { TILE = 16, COLS = 16, HEAD_MAX = TILE * COLS };
static_assert(TILE * TILE == BLOCK, "a thread has one pair");

/* rows[TILE][D + 1] = rows [at, at+TILE) of one head of t, by `table` if there is one; zeros outside [from,
 * to). */
__device__ inline void tile_load(float *rows, view t, int at, int from, int to, int width, int head, int D,
                                 const int32_t *table = NULL)
{
    for (int i = (int)threadIdx.x; i < TILE * D; i += BLOCK) {
        const int r = at + i / D, c = i % D;
        const bool there = r >= from && r < to;
        rows[i / D * (D + 1) + c] = there ? view_get(t, attn_row(table, r) * width + head * D + c) : 0.0f;
    }
}

/* The same of quantised rows. */
__device__ inline void tile_load_q8(float *rows, const quant_view &t, int at, int from, int to, int head, int D,
                                    const int32_t *table)
{
    for (int i = (int)threadIdx.x; i < TILE * D; i += BLOCK) {
        const int r = at + i / D, c = head * D + i % D;
        const char *row = t.p + (r >= from && r < to ? attn_row(table, r) : 0) * t.pitch;
        const float v = quant_scale(t, row, c / QUANT_GROUP) * (float)((const int8_t *)row)[c];
        rows[i / D * (D + 1) + i % D] = r >= from && r < to ? v : 0.0f;
    }
}

__device__ inline void tile_load_kv(float *rows, view t, const quant_view &q, int at, int from, int to, int width,
                                    int head, int D, const int32_t *table)
{
    if (t.type == DT_Q8)
        tile_load_q8(rows, q, at, from, to, head, D, table);
    else
        tile_load(rows, t, at, from, to, width, head, D, table);
}

/* The queries from t0 on that have one sequence, up to t1. */
__device__ inline reach tile_reach(const attn &a, int t0, int t1)
{
    reach r = { t0, t0, 0x7fffffff, 0, 0, 0x7fffffff };
    const int32_t *table = attn_table(a, t0);
    for (; r.t1 < t1 && r.t1 < a.T && attn_table(a, r.t1) == table; r.t1++) {
        const int2 range = attn_range(a, r.t1);
        r.lo = range.x < r.lo ? range.x : r.lo, r.in = range.x > r.in ? range.x : r.in;
        r.hi = range.y > r.hi ? range.y : r.hi, r.out = range.y < r.out ? range.y : r.out;
    }
    return r;
}

/* The first key of the tile that key s is in. */
__device__ inline int tile_floor(int s) { return s / TILE * TILE; }

__device__ inline float tile_dot(const float *a, const float *b, int D)
{
    float s[4] = { 0 }; /* several: shorter, so more exact */
    int i = 0;
    for (; i + 4 <= D; i += 4)
#pragma unroll
        for (int j = 0; j < 4; j++) s[j] += a[i + j] * b[i + j];
    for (; i < D; i++) s[0] += a[i] * b[i];
    return (s[0] + s[1]) + (s[2] + s[3]);
}

/* Over the 16 threads of one row. */
__device__ inline float row_sum(float v)
{
#pragma unroll
    for (int m = TILE / 2; m > 0; m /= 2) v += gpu_shfl_xor(v, m);
    return v;
}
__device__ inline float row_max(float v)
{
#pragma unroll
    for (int m = TILE / 2; m > 0; m /= 2) v = fmaxf(v, gpu_shfl_xor(v, m));
    return v;
}

__global__ __launch_bounds__(BLOCK) void tile_fwd(attn a)
{
    GPU_SHARED(float, mem);
    __shared__ float prob[TILE][TILE + 1];
    const int D = a.D, t0 = (int)blockIdx.x * TILE, head = (int)blockIdx.y, kv = head / (a.H / a.K);
    const int r = (int)threadIdx.x / TILE, c = (int)threadIdx.x % TILE, t = t0 + r;
    const int2 range = attn_range(a, t);
    float *q = mem, *rows = mem + TILE * (D + 1), acc[COLS] = { 0 }, top = -INFINITY, sum = 0;
    reach see = tile_reach(a, t0, t0 + TILE);
    tile_load(q, a.q, t0, 0, a.T, a.H * D, head, D);
    for (int s0 = tile_floor(see.lo); s0 < see.hi; s0 += TILE) {
        const int32_t *table = attn_table(a, see.t0);
        __syncthreads();
        tile_load_kv(rows, a.k, a.kq, s0, see.lo, see.hi, a.K * D, kv, D, table);
        __syncthreads();
        const bool seen = t >= see.t0 && t < see.t1 && s0 + c >= range.x && s0 + c < range.y;
        const float s = seen ? a.scale * tile_dot(q + r * (D + 1), rows + c * (D + 1), D) : -INFINITY;
        const float higher = fmaxf(top, row_max(s));
        const float p = seen ? expf(s - higher) : 0.0f, fade = top > -INFINITY ? expf(top - higher) : 1.0f;
        sum = sum * fade + row_sum(p);
        top = higher;
        prob[r][c] = p;
        __syncthreads();
        tile_load_kv(rows, a.v, a.vq, s0, see.lo, see.hi, a.K * D, kv, D, table);
        __syncthreads();
#pragma unroll
        for (int j = 0; j < COLS; j++) {
            const int col = c + TILE * j;
            if (col >= D) break;
            float some = 0;
            for (int i = 0; i < TILE; i++) some += prob[r][i] * rows[i * (D + 1) + col];
            acc[j] = acc[j] * fade + some;
        }
        if (s0 + TILE >= see.hi && see.t1 < t0 + TILE && see.t1 < a.T) { /* on with the next sequence */
            see = tile_reach(a, see.t1, t0 + TILE);
            s0 = tile_floor(see.lo) - TILE;
        }
    }
    if (t >= a.T) return;
#pragma unroll
    for (int j = 0; j < COLS; j++)
        if (c + TILE * j < D) view_put(a.y, ((int64_t)t * a.H + head) * D + c + TILE * j, acc[j] / sum);
    if (a.lse && c == 0) a.lse[(int64_t)t * a.H + head] = top + logf(sum);
}

void attn_tile_fwd(struct kctx *kc, const struct attn *a)
{
    ASSERT(a->D <= HEAD_MAX);
    const dim3 grid((unsigned)ceil_div(a->T, TILE), (unsigned)a->H);
    gpu_launch(tile_fwd, grid, BLOCK, 2 * TILE * (size_t)(a->D + 1) * sizeof(float), stream_of(kc), *a);
}

/* ---- backward. With p = softmax and dp = dy . v, the score's gradient is p * (dp - delta), delta = dy . y.
 */

/* One pair's p and scaled score gradient, from the tiles; 0 where the query does not see the key. */
__device__ inline void tile_pair(const attn_back &b, const float *q, const float *dy, const float *k,
                                 const float *v, int t, int s, int head, float *p, float *ds)
{
    const attn &a = b.a;
    *p = *ds = 0;
    const int2 range = attn_range(a, t);
    if (s < range.x || s >= range.y) return;
    const int64_t th = (int64_t)t * a.H + head;
    *p = expf(a.scale * tile_dot(q, k, a.D) - a.lse[th]);
    *ds = a.scale * *p * (tile_dot(dy, v, a.D) - b.delta[th]);
}

/* dq of a tile of queries */
__global__ __launch_bounds__(BLOCK) void tile_bwd_q(attn_back b)
{
    GPU_SHARED(float, mem);
    __shared__ float ds[TILE][TILE + 1];
    const attn &a = b.a;
    const int D = a.D, row = D + 1, t0 = (int)blockIdx.x * TILE, head = (int)blockIdx.y,
              kv = head / (a.H / a.K);
    const int r = (int)threadIdx.x / TILE, c = (int)threadIdx.x % TILE;
    float *q = mem, *dy = q + TILE * row, *k = dy + TILE * row, *v = k + TILE * row, acc[COLS] = { 0 }, p, d;
    const reach see = tile_reach(a, t0, t0 + TILE);
    tile_load(q, a.q, t0, 0, a.T, a.H * D, head, D);
    tile_load(dy, b.dy, t0, 0, a.T, a.H * D, head, D);
    for (int s0 = tile_floor(see.lo); s0 < see.hi; s0 += TILE) {
        __syncthreads();
        tile_load(k, a.k, s0, see.lo, see.hi, a.K * D, kv, D);
        tile_load(v, a.v, s0, see.lo, see.hi, a.K * D, kv, D);
        __syncthreads();
        tile_pair(b, q + r * row, dy + r * row, k + c * row, v + c * row, t0 + r, s0 + c, head, &p, &d);
        ds[r][c] = d;
        __syncthreads();
#pragma unroll
        for (int j = 0; j < COLS; j++)
            for (int i = 0; i < TILE && c + TILE * j < D; i++) acc[j] += ds[r][i] * k[i * row + c + TILE * j];
    }
#pragma unroll
    for (int j = 0; j < COLS; j++) {
        const int64_t at = ((int64_t)(t0 + r) * a.H + head) * D + c + TILE * j;
        if (t0 + r < a.T && c + TILE * j < D) gradient_add(b.dq, at, acc[j]);
    }
}

/* dk and dv of a tile of keys, over all queries of all heads that read it. */
__global__ __launch_bounds__(BLOCK) void tile_bwd_kv(attn_back b)
{
    GPU_SHARED(float, mem);
    __shared__ float prob[TILE][TILE + 1], ds[TILE][TILE + 1];
    const attn &a = b.a;
    const int D = a.D, row = D + 1, s0 = (int)blockIdx.x * TILE, kv = (int)blockIdx.y, group = a.H / a.K;
    const int r = (int)threadIdx.x / TILE, c = (int)threadIdx.x % TILE;
    float *q = mem, *dy = q + TILE * row, *k = dy + TILE * row, *v = k + TILE * row;
    float acc_k[COLS] = { 0 }, acc_v[COLS] = { 0 };
    tile_load(k, a.k, s0, 0, a.S, a.K * D, kv, D);
    tile_load(v, a.v, s0, 0, a.S, a.K * D, kv, D);
    for (int t0 = 0; t0 < a.T; t0 += TILE) {
        const reach see = tile_reach(a, t0, t0 + TILE);
        if (see.lo >= s0 + TILE || see.hi <= s0) continue;
        for (int head = kv * group; head < (kv + 1) * group; head++) {
            __syncthreads();
            tile_load(q, a.q, t0, 0, a.T, a.H * D, head, D);
            tile_load(dy, b.dy, t0, 0, a.T, a.H * D, head, D);
            __syncthreads();
            tile_pair(b, q + r * row, dy + r * row, k + c * row, v + c * row, t0 + r, s0 + c, head,
                      &prob[r][c], &ds[r][c]);
            __syncthreads();
#pragma unroll
            for (int j = 0; j < COLS; j++)
                for (int i = 0; i < TILE && c + TILE * j < D; i++) { /* here r is the key's row */
                    acc_k[j] += ds[i][r] * q[i * row + c + TILE * j];
                    acc_v[j] += prob[i][r] * dy[i * row + c + TILE * j];
                }
        }
    }
#pragma unroll
    for (int j = 0; j < COLS; j++) {
        const int64_t at = ((int64_t)(s0 + r) * a.K + kv) * D + c + TILE * j;
        if (s0 + r >= a.S || c + TILE * j >= D) continue;
        if (b.dk.to.p) gradient_add(b.dk, at, acc_k[j]);
        if (b.dv.to.p) gradient_add(b.dv, at, acc_v[j]);
    }
}

void attn_tile_bwd(struct kctx *kc, const struct attn_back *b)
{
    const struct attn *a = &b->a;
    const size_t shared = 4 * TILE * (size_t)(a->D + 1) * sizeof(float);
    ASSERT(a->D <= HEAD_MAX);
    if (b->dq.to.p)
        gpu_launch(tile_bwd_q, dim3((unsigned)ceil_div(a->T, TILE), (unsigned)a->H), BLOCK, shared,
                   stream_of(kc), *b);
    if (b->dk.to.p || b->dv.to.p)
        gpu_launch(tile_bwd_kv, dim3((unsigned)ceil_div(a->S, TILE), (unsigned)a->K), BLOCK, shared,
                   stream_of(kc), *b);
}
