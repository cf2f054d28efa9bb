/* Attention's way back on sm_90a's matrix units, in two kernels as attn_mma.cu has it: one for keys and values (four
 * products), one for queries (three), so that each sum is one block's and has one order. Probabilities and their
 * gradients go from registers into the next product. Warps that copy and warps that compute: wgmma.h. */
#include "kern/gpu/attn_rows.h"
#include "kern/gpu/wgmma.h"

#if GPU_HAS_WGMMA

enum { STAGES = 4, Q_T = WG_GROUPS * 64, Q_S = 64 };
static_assert(BACK_S == WG_GROUPS * 64, "a group has 64 keys");

/* Tiles of the block that has a tile of keys: keys, values; of each stage queries, dy. */
template <int D> struct kv_tiles {
    enum { KEYS = BACK_S * D * 2, QUERIES = BACK_T * D * 2, BYTES = 2 * KEYS + STAGES * 2 * QUERIES };
};

/* And of the one that has a tile of queries: queries, dy; of each stage keys, values. */
template <int D> struct q_tiles {
    enum { QUERIES = Q_T * D * 2, KEYS = Q_S * D * 2, BYTES = 2 * QUERIES + STAGES * 2 * KEYS };
};

#    if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/* ---- dk and dv of a tile of keys */

enum sees { SOME, ALL, END }; /* how queries of a tile see the keys; or there is no tile any more */

struct kv_shared {
    wg_ring<STAGES> ring;
    back_columns columns[STAGES];
    sees sees[STAGES];
};

template <class E, int D>
__device__ inline void kv_fill(const attn_back &b, const back_tiles &tiles, int tile, int kv, kv_shared *sh, uint32_t k)
{
    typedef kv_tiles<D> at;
    const attn &a = b.a;
    const int s0 = tile * BACK_S, thread = (int)threadIdx.x - WG_READERS;
    const int64_t stride = (int64_t)a.K * D, q_stride = (int64_t)a.H * D;
    ring_filler<STAGES> f = { &sh->ring, 0, 0 };
    wg_copy<E, D, BACK_S>(k, (const E *)a.k.p + kv * D, stride, s0, 0, a.S);
    wg_copy<E, D, BACK_S>(k + at::KEYS, (const E *)a.v.p + kv * D, stride, s0, 0, a.S);
    query_walk w = walk_start(a, tiles, tile, kv);
    for (bool more = true; more;) {
        const int stage = f.n % STAGES, t0 = w.i * BACK_T;
        const uint32_t q = k + 2 * at::KEYS + (uint32_t)stage * 2 * at::QUERIES;
        more = !walk_ends(w);
        filler_begin(f);
        if (thread == 0) sh->sees[stage] = !more ? END : walk_sees_all(w, a.T) ? ALL : SOME;
        if (more) {
            wg_copy<E, D, BACK_T>(q, (const E *)a.q.p + w.head * D, q_stride, t0, 0, a.T);
            wg_copy<E, D, BACK_T>(q + at::QUERIES, (const E *)b.dy.p + w.head * D, q_stride, t0, 0, a.T);
            columns_copy<WG_FILLERS>(&sh->columns[stage], b, t0, w.head, thread);
            walk_to(w, w.i + 1);
        }
        filler_end(f);
    }
    filler_put<0>(f);
}

template <class E, int D>
__device__ inline void kv_read(const attn_back &b, int tile, int kv, kv_shared *sh, uint32_t tiles)
{
    typedef kv_tiles<D> at;
    const attn &a = b.a;
    const int row = tile * BACK_S + (int)threadIdx.x / 32 * 16;
    const uint32_t k = tiles + (uint32_t)wg_group() * 64 * 128, v = k + at::KEYS;
    float dk[1][D / 8][4] = {}, dv[1][D / 8][4] = {};
    wg_pin(dk[0]);
    wg_pin(dv[0]);
    for (int n = 0;; n++) {
        const int stage = n % STAGES;
        const uint32_t q = tiles + 2 * at::KEYS + (uint32_t)stage * 2 * at::QUERIES, dy = q + at::QUERIES;
        const back_columns *columns = &sh->columns[stage];
        float p[BACK_T / 8][4], ds[BACK_T / 8][4], of_columns[BACK_T / 8][2];
        uint32_t p16[BACK_T / 16][4], ds16[BACK_T / 16][4];
        ring_await(&sh->ring, n);
        const sees seen = sh->sees[stage];
        if (seen == END) break;
        wg_abt<E, D, BACK_S>(p, k, q);
        wg_abt<E, D, BACK_S>(ds, v, dy);
        columns_load(of_columns, columns->lse);
        wg_wait<1>(); /* for the scores, and what is left of the tile before */
        wg_pin(p);
        if (n) ring_free(&sh->ring, n - 1);
        if (seen == SOME) columns_mask(p, columns, row);
        columns_probs(p, of_columns, a.scale * LOG2E);
        columns_load(of_columns, columns->delta);
        rows_pairs<E>(p16, p);
        wg_ab<E>(dv[0], p16, dy);
        wg_wait<0>(); /* for all: dv may not run any longer, or registers are short */
        wg_pin(dv[0]);
        wg_pin(ds);
        columns_grads(ds, p, of_columns);
        rows_pairs<E>(ds16, ds);
        wg_ab<E>(dk[0], ds16, q);
    }
    wg_wait<0>();
    wg_pin(dk[0]);
    wg_pin(dv[0]);
    rows_add<E, D>(b.dk, dk, row, a.S, (int64_t)a.K * D, kv, a.scale);
    rows_add<E, D>(b.dv, dv, row, a.S, (int64_t)a.K * D, kv, 1.0f);
}

/* ---- dq of a tile of queries */

template <class E, int D>
__device__ inline void q_fill(const attn_back &b, const reach &see, int head, wg_ring<STAGES> *ring, uint32_t q)
{
    typedef q_tiles<D> at;
    const attn &a = b.a;
    const int kv = head / (a.H / a.K);
    const int64_t stride = (int64_t)a.K * D, q_stride = (int64_t)a.H * D;
    ring_filler<STAGES> f = { ring, 0, 0 };
    wg_copy<E, D, Q_T>(q, (const E *)a.q.p + head * D, q_stride, see.t0, 0, a.T);
    wg_copy<E, D, Q_T>(q + at::QUERIES, (const E *)b.dy.p + head * D, q_stride, see.t0, 0, a.T);
    for (int s0 = see.lo; s0 < see.hi; s0 += Q_S) {
        const uint32_t k = q + 2 * at::QUERIES + (uint32_t)(f.n % STAGES) * 2 * at::KEYS;
        filler_begin(f);
        wg_copy<E, D, Q_S>(k, (const E *)a.k.p + kv * D, stride, s0, see.lo, see.hi);
        wg_copy<E, D, Q_S>(k + at::KEYS, (const E *)a.v.p + kv * D, stride, s0, see.lo, see.hi);
        filler_end(f);
    }
    filler_put<0>(f);
}

template <class E, int D>
__device__ inline void q_read(const attn_back &b, const reach &see, int head, wg_ring<STAGES> *ring, uint32_t tiles)
{
    typedef q_tiles<D> at;
    const attn &a = b.a;
    const int row = see.t0 + (int)threadIdx.x / 32 * 16;
    const uint32_t q = tiles + (uint32_t)wg_group() * 64 * 128, dy = q + at::QUERIES;
    const bool whole = see.t0 + Q_T <= a.T;
    float dq[1][D / 8][4] = {};
    back_rows<1> r;
    rows_load(r, b, row, head);
    wg_pin(dq[0]);
    for (int n = 0, s0 = see.lo; s0 < see.hi; n++, s0 += Q_S) {
        const uint32_t k = tiles + 2 * at::QUERIES + (uint32_t)(n % STAGES) * 2 * at::KEYS, v = k + at::KEYS;
        float p[1][Q_S / 8][4], ds[1][Q_S / 8][4];
        uint32_t ds16[Q_S / 16][4];
        ring_await(ring, n);
        wg_abt<E, D, Q_T>(p[0], q, k);
        wg_abt<E, D, Q_T>(ds[0], dy, v);
        wg_wait<1>();
        wg_pin(p[0]);
        if (n) ring_free(ring, n - 1);
        if (!whole || s0 < see.in || s0 + Q_S > see.out) rows_mask(a, see, p, row, s0);
        rows_probs(p, r, a.scale * LOG2E);
        wg_wait<0>();
        wg_pin(ds[0]);
        rows_grads(ds, p, r);
        rows_pairs<E>(ds16, ds[0]);
        wg_ab<E>(dq[0], ds16, k);
    }
    wg_wait<0>();
    wg_pin(dq[0]);
    rows_add<E, D>(b.dq, dq, row, a.T, (int64_t)a.H * D, head, a.scale);
}

#    endif

/* A block has a tile of keys of one of their heads. */
template <class E, int D>
__global__ __launch_bounds__(WG_THREADS, 1) void wgmma_bwd_kv(attn_back b, back_tiles tiles, wg_order order)
{
#    if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    GPU_SHARED(E, mem);
    __shared__ kv_shared sh;
    const uint32_t first = wg_align(mem);
    const int2 at = order_here(order);
    if (threadIdx.x == 0) ring_start(&sh.ring);
    __syncthreads();
    if (threadIdx.x >= WG_READERS) {
        wg_fewer_registers<24>();
        kv_fill<E, D>(b, tiles, at.x, at.y, &sh, first);
    } else {
        wg_more_registers<240>();
        kv_read<E, D>(b, at.x, at.y, &sh, first);
    }
#    else
    (void)b, (void)tiles, (void)order;
    __trap();
#    endif
}

/* A block has a tile of queries of one head. */
template <class E, int D> __global__ __launch_bounds__(WG_THREADS, 1) void wgmma_bwd_q(attn_back b, wg_order order)
{
#    if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    GPU_SHARED(E, mem);
    __shared__ wg_ring<STAGES> ring;
    const uint32_t first = wg_align(mem);
    const int2 at = order_here(order);
    const int t0 = (order.tiles - 1 - at.x) * Q_T;
    const reach see = warp_reach(b.a, t0, t0 + Q_T);
    if (threadIdx.x == 0) ring_start(&ring);
    __syncthreads();
    if (threadIdx.x >= WG_READERS) {
        wg_fewer_registers<40>();
        q_fill<E, D>(b, see, at.y, &ring, first);
    } else {
        wg_more_registers<232>();
        q_read<E, D>(b, see, at.y, &ring, first);
    }
#    else
    (void)b, (void)order;
    __trap();
#    endif
}

template <class E, int D> static void bwd_launch(struct kctx *kc, const struct attn_back *b)
{
    const struct attn *a = &b->a;
    const size_t mark = arena_mark(kc->scratch);
    const wg_order kv = order_of(kc, ceil_div(a->S, BACK_S), a->K), q = order_of(kc, ceil_div(a->T, Q_T), a->H);
    if (b->dk.to.p || b->dv.to.p)
        gpu_launch(wgmma_bwd_kv<E, D>, order_grid(kv), WG_THREADS, WG_ALIGN + kv_tiles<D>::BYTES, stream_of(kc), *b,
                   back_find(kc, a), kv);
    if (b->dq.to.p)
        gpu_launch(wgmma_bwd_q<E, D>, order_grid(q), WG_THREADS, WG_ALIGN + q_tiles<D>::BYTES, stream_of(kc), *b, q);
    arena_rewind(kc->scratch, mark);
}

void attn_wgmma_bwd(struct kctx *kc, const struct attn_back *b)
{
    if (b->a.q.type == DT_BF16)
        (b->a.D == 64 ? bwd_launch<gpu_bf16, 64> : bwd_launch<gpu_bf16, 128>)(kc, b);
    else
        (b->a.D == 64 ? bwd_launch<gpu_f16, 64> : bwd_launch<gpu_f16, 128>)(kc, b);
}

#else

void attn_wgmma_bwd(struct kctx *, const struct attn_back *) {}

#endif
