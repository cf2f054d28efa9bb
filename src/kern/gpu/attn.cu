/* Attention: which of attn.h's ways, rotary positions, and what the ways share. Scratch: delta in the
 * backward. */
#include "kern/gpu/attn.h"

/* 8 numbers each of two halves of a head, or of the angles' cosines and sines; all loads are under way at once. */
template <class A>
__device__ inline void load_pairs(float (&a)[LANES], float (&b)[LANES], const A *x, int i, int pairs, bool wide)
{
    if (wide) {
        const gpu_pack<A> pa = pack_load(x + i), pb = pack_load(x + pairs + i);
#pragma unroll
        for (int j = 0; j < LANES; j++) a[j] = gpu_float(pa.v[j]), b[j] = gpu_float(pb.v[j]);
    } else {
        load8(a, x, i, pairs, false);
        load8(b, x + pairs, i, pairs, false);
    }
}

/* A thread turns 8 pairs of one head: x_i and x_{i+D/2}. */
template <class A>
__global__ __launch_bounds__(BLOCK) void rotate(A *x, const int32_t *pos, const float *table, int64_t n,
                                                int heads, int pairs, float dir, bool wide)
{
    const int per_head = (pairs + LANES - 1) / LANES;
    const int64_t k = (int64_t)blockIdx.x * BLOCK + threadIdx.x, head = k / per_head;
    const int i = (int)(k % per_head) * LANES;
    float a[LANES], b[LANES], c[LANES], s[LANES], ra[LANES], rb[LANES];
    if (head >= n) return;
    A *at = x + head * 2 * pairs;
    load_pairs(c, s, table + (int64_t)pos[head / heads] * 2 * pairs, i, pairs, wide);
    load_pairs(a, b, at, i, pairs, wide);
#pragma unroll
    for (int j = 0; j < LANES; j++) {
        ra[j] = a[j] * c[j] - b[j] * s[j] * dir;
        rb[j] = b[j] * c[j] + a[j] * s[j] * dir;
    }
    store8(at, ra, i, pairs, wide);
    store8(at + pairs, rb, i, pairs, wide);
}

void gpu_rope(struct kctx *kc, struct tensor x, struct tensor pos, struct tensor table, int dir)
{
    const int64_t D = tensor_cols(table), n = tensor_count(x) / D, threads = n * ceil_div(D / 2, LANES);
    const bool wide = is_wide(D / 2, x, table);
    if (n)
        GPU_BY_TYPE(x.type, A,
                    gpu_launch(rotate<A>, dim3((unsigned)ceil_div(threads, BLOCK)), BLOCK, 0, stream_of(kc),
                               (A *)x.p, (const int32_t *)pos.p, (const float *)table.p, n,
                               (int)(tensor_cols(x) / D), (int)(D / 2), (float)dir, wide));
}

/* The part of rope_store that has no rotation: v's rows. And k's rotated, both into their stores. */
struct store {
    view k, v;
    const int32_t *idx;
};

/* Block (8 pairs of a head each thread, token): q's heads, then k's, then copies of v's halves. */
template <class A>
__global__ __launch_bounds__(BLOCK) void rotate_store(A *q, A *k, const A *v, store s, const int32_t *pos,
                                                      const float *table, int H, int K, int pairs, bool wide)
{
    const int per_head = (pairs + LANES - 1) / LANES, job = (int)(blockIdx.x * BLOCK + threadIdx.x),
              head = job / per_head;
    const int i = job % per_head * LANES, D = 2 * pairs, kv = head < H ? 0 : (head - H) % K;
    const int64_t t = blockIdx.y, to = s.idx[t];
    float a[LANES], b[LANES], c[LANES], n[LANES], ra[LANES], rb[LANES];
    gpu_let_next();
    load_pairs(c, n, table + (int64_t)pos[t] * D, i, pairs, wide);
    gpu_wait_for_previous();
    if (head >= H + 2 * K) return;
    const bool is_v = head >= H + K;
    A *at = head < H ? q + (t * H + head) * D : is_v ? (A *)v + (t * K + kv) * D : k + (t * K + kv) * D;
    load_pairs(a, b, at, i, pairs, wide);
#pragma unroll
    for (int j = 0; j < LANES; j++) {
        ra[j] = is_v ? a[j] : gpu_float(gpu_from<A>(a[j] * c[j] - b[j] * n[j]));
        rb[j] = is_v ? b[j] : gpu_float(gpu_from<A>(b[j] * c[j] + a[j] * n[j]));
    }
    if (!is_v) {
        store8(at, ra, i, pairs, wide);
        store8(at + pairs, rb, i, pairs, wide);
    }
    if (head < H || to < 0) return;
    const view row = view_at(is_v ? s.v : s.k, (to * K + kv) * D);
    store8(row, ra, i, pairs, wide);
    store8(view_at(row, pairs), rb, i, pairs, wide);
}

/* rotate_store for stores of 8 bits and heads of 64 or 128: the 4 or 8 threads of a head have one or two groups, a
 * thread 8 numbers of its lower half and 8 of its upper. */
template <class A>
__global__ __launch_bounds__(BLOCK) void rotate_store_q8(A *q, A *k, const A *v, quant_view k_store, quant_view v_store,
                                                         const int32_t *idx, const int32_t *pos, const float *table,
                                                         int H, int K, int pairs)
{
    const int per_head = pairs / LANES, job = (int)(blockIdx.x * BLOCK + threadIdx.x), n = (H + 2 * K) * per_head;
    const int head = (job < n ? job : n - 1) / per_head, i = job % per_head * LANES, D = 2 * pairs;
    const int kv = head < H ? 0 : (head - H) % K;
    const int64_t t = blockIdx.y, to = idx[t];
    const bool is_v = head >= H + K, two = D / QUANT_GROUP == 2, mine = job < n;
    float a[LANES], b[LANES], c[LANES], s[LANES];
    A *at = head < H ? q + (t * H + head) * D : is_v ? (A *)v + (t * K + kv) * D : k + (t * K + kv) * D;
    gpu_let_next();
    load_pairs(c, s, table + (int64_t)pos[t] * D, i, pairs, true);
    gpu_wait_for_previous();
    load_pairs(a, b, at, i, pairs, true);
#pragma unroll
    for (int j = 0; j < LANES; j++) {
        const float x = a[j], y = b[j];
        a[j] = is_v ? x : gpu_float(gpu_from<A>(x * c[j] - y * s[j]));
        b[j] = is_v ? y : gpu_float(gpu_from<A>(y * c[j] + x * s[j]));
    }
    const uint32_t low = most_of(a), high = most_of(b);
    uint32_t qa[2], qb[2];
    const gpu_f16 sa = group_to_8(qa, a, two ? low : low > high ? low : high, per_head),
                  sb = group_to_8(qb, b, two ? high : low > high ? low : high, per_head);
    __syncthreads(); /* all have read */
    if (!mine) return;
    if (!is_v) {
        store8(at, a, i, pairs, true);
        store8(at + pairs, b, i, pairs, true);
    }
    if (head < H || to < 0) return;
    const quant_view &store = is_v ? v_store : k_store;
    char *row = store.p + to * store.pitch;
    gpu_f16 *scales = (gpu_f16 *)(row + store.scales_at) + kv * D / QUANT_GROUP;
    *(uint2 *)(row + kv * D + i) = make_uint2(qa[0], qa[1]);
    *(uint2 *)(row + kv * D + pairs + i) = make_uint2(qb[0], qb[1]);
    if (i == 0) scales[0] = sa;
    if (i == 0 && two) scales[1] = sb;
}

static void rope_store_q8(struct kctx *kc, struct tensor q, struct tensor k, struct tensor v, struct tensor pos,
                          struct tensor table, struct tensor k_store, struct tensor v_store, struct tensor idx)
{
    const int64_t T = tensor_rows(q), D = tensor_cols(table), H = tensor_cols(q) / D, K = tensor_cols(k) / D;
    const int64_t jobs = (H + 2 * K) * (D / 2 / LANES);
    if ((D != 64 && D != 128) || !is_wide(D / 2, q, k, v, table)) {
        gpu_rope(kc, q, pos, table, 1);
        gpu_rope(kc, k, pos, table, 1);
        quant_rows_put(kc, k_store, idx, k);
        quant_rows_put(kc, v_store, idx, v);
        return;
    }
    GPU_BY_TYPE(q.type, A,
                gpu_launch_early(rotate_store_q8<A>, dim3((unsigned)ceil_div(jobs, BLOCK), (unsigned)T), BLOCK, 0,
                                 stream_of(kc), (A *)q.p, (A *)k.p, (const A *)v.p, quant_view_of(k_store),
                                 quant_view_of(v_store), (const int32_t *)idx.p, (const int32_t *)pos.p,
                                 (const float *)table.p, (int)H, (int)K, (int)(D / 2)));
}

void gpu_rope_store(struct kctx *kc, struct tensor q, struct tensor k, struct tensor v, struct tensor pos,
                    struct tensor table, struct tensor k_store, struct tensor v_store, struct tensor idx)
{
    const int64_t T = tensor_rows(q), D = tensor_cols(table), H = tensor_cols(q) / D, K = tensor_cols(k) / D;
    const int64_t jobs = (H + 2 * K) * ceil_div(D / 2, LANES);
    if (k_store.type == DT_Q8) {
        rope_store_q8(kc, q, k, v, pos, table, k_store, v_store, idx);
        return;
    }
    const store s = { view_of(k_store), view_of(v_store), (const int32_t *)idx.p };
    const bool wide = is_wide(D / 2, q, k, v, table, k_store, v_store);
    GPU_BY_TYPE(q.type, A,
                gpu_launch_early(rotate_store<A>, dim3((unsigned)ceil_div(jobs, BLOCK), (unsigned)T), BLOCK,
                                 0, stream_of(kc), (A *)q.p, (A *)k.p, (const A *)v.p, s,
                                 (const int32_t *)pos.p, (const float *)table.p, (int)H, (int)K, (int)(D / 2),
                                 wide));
}

static struct attn attn_of(struct tensor y, struct tensor lse, struct tensor q, struct tensor k,
                           struct tensor v, struct tensor range, struct tensor pages, int heads, float scale)
{
    const int D = (int)tensor_cols(q) / heads, per_table = pages.p ? (int)tensor_cols(pages) : 0;
    struct attn a = { view_of(q),
                      view_of(k),
                      view_of(v),
                      view_of(y),
                      (float *)lse.p,
                      (const int32_t *)range.p,
                      (const int32_t *)pages.p,
                      per_table,
                      (int)tensor_rows(q),
                      pages.p ? per_table * KV_PAGE : (int)tensor_rows(k),
                      heads,
                      (int)tensor_cols(k) / D,
                      D,
                      scale,
                      is_wide(D, q, k, v, y),
                      {},
                      {} };
    if (k.type == DT_Q8) a.kq = quant_view_of(k), a.vq = quant_view_of(v);
    return a;
}

void gpu_attn_fwd(struct kctx *kc, struct tensor y, struct tensor lse, struct tensor q, struct tensor k,
                  struct tensor v, struct tensor range, struct tensor pages, int heads, float scale)
{
    const struct attn a = attn_of(y, lse, q, k, v, range, pages, heads, scale);
    if (!a.T) return;
    if (attn_wgmma_takes(&a))
        attn_wgmma_fwd(kc, &a);
    else if (attn_mma_takes(&a))
        attn_mma_fwd(kc, &a);
    else if (attn_gemm_takes(kc, &a, false))
        attn_gemm_fwd(kc, &a);
    else
        attn_tile_fwd(kc, &a);
}

void gpu_rope_attn(struct kctx *kc, struct tensor y, struct tensor q, struct tensor k, struct tensor v,
                   struct tensor pos, struct tensor table, struct tensor k_store, struct tensor v_store,
                   struct tensor idx, struct tensor range, struct tensor pages, float scale)
{
    const int64_t D = tensor_cols(table);
    const int heads = (int)(tensor_cols(q) / D);
    struct attn a = attn_of(y, tensor{}, q, k_store, v_store, range, pages, heads, scale);
    a.wide = a.wide && is_wide(D / 2, k, v, table);
    if (!a.T) return;
    if (attn_split_takes(&a)) {
        const tokens in = { view_of(q), view_of(k), view_of(v), (const int32_t *)pos.p, (const int32_t *)idx.p,
                            (const float *)table.p };
        attn_split_fwd(kc, &a, &in);
        return;
    }
    gpu_rope_store(kc, q, k, v, pos, table, k_store, v_store, idx);
    gpu_attn_fwd(kc, y, tensor{}, q, k_store, v_store, range, pages, heads, scale);
}

/* delta[t,h] = dy . y of that head: `lanes` lanes of a warp each. */
__global__ __launch_bounds__(BLOCK) void dy_dot_y(attn_back b, int lanes)
{
    const int64_t th = ((int64_t)blockIdx.x * BLOCK + threadIdx.x) / lanes, n = (int64_t)b.a.T * b.a.H;
    const int lane = (int)threadIdx.x % lanes;
    float d[LANES], y[LANES], sum = 0;
    for (int i = lane * LANES; th < n && i < b.a.D; i += lanes * LANES) {
        load8(d, view_at(b.dy, th * b.a.D), i, b.a.D, b.a.wide);
        load8(y, view_at(b.a.y, th * b.a.D), i, b.a.D, b.a.wide);
#pragma unroll
        for (int j = 0; j < LANES; j++) sum += d[j] * y[j];
    }
    for (int m = lanes / 2; m > 0; m /= 2) sum += gpu_shfl_xor(sum, m);
    if (th < n && lane == 0) b.delta[th] = sum;
}

void gpu_attn_bwd(struct kctx *kc, struct tensor dq, struct tensor dk, struct tensor dv, struct tensor dy,
                  struct tensor y, struct tensor lse, struct tensor q, struct tensor k, struct tensor v,
                  struct tensor range, int heads, float scale)
{
    struct attn_back b = { attn_of(y, lse, q, k, v, range, tensor{}, heads, scale),
                           view_of(dy),
                           { view_of(dq), is_fresh(dq) },
                           { view_of(dk), is_fresh(dk) },
                           { view_of(dv), is_fresh(dv) },
                           NULL };
    const int64_t n = (int64_t)b.a.T * b.a.H;
    const size_t mark = arena_mark(kc->scratch);
    if (!b.a.T || (!dq.p && !dk.p && !dv.p)) return;
    b.a.wide = b.a.wide && is_wide(b.a.D, dy, dq, dk, dv);
    b.delta = (float *)arena_take(kc->scratch, (size_t)n * sizeof(float));
    int lanes = 1; /* that have something to do; a power of two */
    while (lanes < GPU_WARP && lanes * LANES < b.a.D) lanes *= 2;
    gpu_launch(dy_dot_y, dim3((unsigned)ceil_div(n * lanes, BLOCK)), BLOCK, 0, stream_of(kc), b, lanes);
    if (attn_wgmma_takes(&b.a))
        attn_wgmma_bwd(kc, &b);
    else if (attn_mma_takes(&b.a))
        attn_mma_bwd(kc, &b);
    else if (attn_gemm_takes(kc, &b.a, true))
        attn_gemm_bwd(kc, &b);
    else
        attn_tile_bwd(kc, &b);
    arena_rewind(kc->scratch, mark);
}
