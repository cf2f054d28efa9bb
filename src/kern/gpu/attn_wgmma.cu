/* Attention over prompts on sm_90a's matrix units, forward; see attn_mma.cu for what is computed. Two groups of four
 * warps have 64 queries each, four more warps copy keys and values into a ring (wgmma.h). A group's values are added up
 * while its next scores become exponentials, and the other group's products run meanwhile: they take turns.
 * arXiv:2407.08608 */
#include "kern/gpu/attn_rows.h"
#include "kern/gpu/wgmma.h"

#if GPU_HAS_WGMMA

enum { FWD_T = WG_GROUPS * 64, FWD_S = 128, STAGES = 4 };

bool attn_wgmma_takes(const struct attn *a) { return attn_mma_takes(a) && bulk_present(); }

/* Tiles: queries, then each stage's keys or values. */
template <int D> struct fwd_tiles {
    enum { QUERIES = FWD_T * D * 2, TILE = FWD_S * D * 2, BYTES = QUERIES + STAGES * TILE };
    __device__ static uint32_t item(uint32_t q, int n) { return q + QUERIES + (uint32_t)(n % STAGES) * TILE; }
};

/* A tile of 8 bits on its way: each thread's own pieces, and the words that their scales are in. */
template <int D> struct raw_tile {
    enum { PIECES = D / 8, STEP = WG_FILLERS / PIECES, N = FWD_S / STEP };
    uint2 q[N][WG_FILLERS];
    uint32_t scales[N][WG_FILLERS];
};

#    if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/* The tiles of keys that queries from t0 on see, one sequence after the other; mostly there is one. */
struct key_walk {
    reach see;
    int t0, t1, s0; /* this tile's first key */
    bool whole;     /* all the queries are of one sequence */
};

__device__ inline void walk_enter(const attn &a, key_walk &w, int first)
{
    w.see = warp_reach(a, first, w.t1);
    w.s0 = w.see.lo / FWD_S * FWD_S;
    w.whole = w.see.t0 == w.t0 && w.see.t1 == w.t1;
}
__device__ inline key_walk walk_start(const attn &a, int t0)
{
    key_walk w;
    w.t0 = t0, w.t1 = min(t0 + FWD_T, a.T);
    walk_enter(a, w, t0);
    return w;
}
/* The next tile; false behind the last. */
__device__ inline bool walk_on(const attn &a, key_walk &w)
{
    w.s0 += FWD_S;
    if (w.s0 < w.see.hi) return true;
    if (w.see.t1 == w.t1) return false;
    walk_enter(a, w, w.see.t1);
    return true;
}

/* Items: the first tile's keys, its values, the next tile's keys, ... The queries come with the first. */
template <class E, int D>
__device__ inline void fwd_fill(const attn &a, wg_ring<STAGES> *ring, uint32_t q, int head, key_walk w)
{
    typedef fwd_tiles<D> at;
    const int kv = head / (a.H / a.K);
    const int64_t stride = (int64_t)a.K * D;
    ring_filler<STAGES> f = { ring, 0, 0 };
    wg_copy<E, D, FWD_T>(q, (const E *)a.q.p + head * D, (int64_t)a.H * D, w.t0, 0, a.T);
    do {
        const int32_t *table = attn_table(a, w.see.t0);
#pragma unroll
        for (int values = 0; values < 2; values++) {
            const E *x = (const E *)(values ? a.v.p : a.k.p) + kv * D;
            filler_begin(f);
            wg_copy<E, D, FWD_S>(at::item(q, f.n), x, stride, w.s0, w.see.lo, w.see.hi, table);
            filler_end(f);
        }
    } while (walk_on(a, w));
    filler_put<0>(f);
}

template <int D, bool PAGED>
__device__ inline void raw_rows(raw_tile<D> *to, const quant_view &x, int col, const key_walk &w, const int32_t *table)
{
    typedef raw_tile<D> t;
    const int i = (int)threadIdx.x % WG_FILLERS;
    col += i % t::PIECES * 8;
    const int scale = x.scales_at + col / QUANT_GROUP / 2 * 4;
#pragma unroll
    for (int n = 0; n < t::N; n++) {
        const int row = w.s0 + i / t::PIECES + n * t::STEP;
        const bool there = row >= w.see.lo && row < w.see.hi;
        const int seen = min(max(row, w.see.lo), w.see.hi - 1);
        const char *p = x.p + (PAGED ? attn_row(table, seen) : seen) * x.pitch;
        copy_small<8>(shared_at(&to->q[n][i]), p + col, there);
        copy_small<4>(shared_at(&to->scales[n][i]), p + scale, there);
    }
}

template <int D>
__device__ inline void raw_copy(raw_tile<D> *to, const attn &a, const quant_view &x, int col, const key_walk &w)
{
    const int32_t *table = attn_table(a, w.see.t0);
    if (table)
        raw_rows<D, true>(to, x, col, w, table);
    else
        raw_rows<D, false>(to, x, col, w, NULL);
}

/* Into a tile of numbers. */
template <class E, int D> __device__ inline void raw_round(uint32_t tile, const raw_tile<D> *from, int col)
{
    enum { SOME = 8 };
    typedef raw_tile<D> t;
    const int i = (int)threadIdx.x % WG_FILLERS, c = i % t::PIECES, upper = (col / 8 + c) * 8 / QUANT_GROUP % 2;
    const uint32_t first = wg_piece<FWD_S>(tile, i / t::PIECES, c);
#pragma unroll
    for (int n0 = 0; n0 < t::N; n0 += SOME) {
        uint2 q[SOME];
        gpu_f16 s[SOME];
#pragma unroll
        for (int n = 0; n < SOME; n++) {
            q[n] = from->q[n0 + n][i];
            s[n] = { (uint16_t)(from->scales[n0 + n][i] >> 16 * upper) };
        }
#pragma unroll
        for (int n = 0; n < SOME; n++)
            q8_store<E>(first + (uint32_t)((n0 + n) * t::STEP * 128), q[n], gpu_float(s[n]));
    }
}

/* As fwd_fill where keys and values are stored in 8 bits: an item's bytes are copied while those before become
 * numbers. */
template <class E, int D>
__device__ inline void fwd_fill_q8(const attn &a, wg_ring<STAGES> *ring, uint32_t q, raw_tile<D> *raw, int head,
                                   key_walk w)
{
    typedef fwd_tiles<D> at;
    const int col = head / (a.H / a.K) * D;
    ring_filler<STAGES> f = { ring, 0, 0 };
    wg_copy<E, D, FWD_T>(q, (const E *)a.q.p + head * D, (int64_t)a.H * D, w.t0, 0, a.T);
    raw_copy(raw, a, a.kq, col, w);
    copy_commit();
    for (bool more = true; more;) {
        const bool values = f.n % 2; /* the next item's bytes are keys then, of another tile */
        if (values) more = walk_on(a, w);
        if (more) raw_copy(raw + (f.n + 1) % 2, a, values ? a.kq : a.vq, col, w);
        copy_commit();
        copy_wait<1>();
        filler_begin(f);
        raw_round<E, D>(at::item(q, f.n), raw + f.n % 2, col);
        filler_wrote(f);
    }
}

/* Scores of one tile, as far as its queries see its keys, become exponentials. */
__device__ inline void fwd_weights(const attn &a, const key_walk &w, fwd_rows<1> &r, float (&fade)[2],
                                   float (&s)[1][FWD_S / 8][4], int row)
{
    if (!w.whole || w.s0 < w.see.in || w.s0 + FWD_S > w.see.out) rows_mask(a, w.see, s, row, w.s0);
    rows_softmax(r, fade, s, a.scale * LOG2E);
}

template <class E, int D>
__device__ inline void fwd_read(const attn &a, wg_ring<STAGES> *ring, uint32_t q, int head, key_walk w)
{
    typedef fwd_tiles<D> at;
    const int group = wg_group(), row = w.t0 + (int)threadIdx.x / 32 * 16;
    const uint32_t mine = q + (uint32_t)group * 64 * 128;
    float acc[1][D / 8][4] = {}, s[1][FWD_S / 8][4], fade[2];
    uint32_t p[FWD_S / 16][4];
    fwd_rows<1> r;
    int n = 1; /* tiles begun */
    rows_start(r);
    if (group == 1) turn_give(group);
    ring_await(ring, 0);
    wg_abt<E, D, FWD_T>(s[0], mine, at::item(q, 0));
    wg_wait<0>();
    wg_pin(s[0]);
    ring_free(ring, 0);
    fwd_weights(a, w, r, fade, s, row);
    rows_pairs<E>(p, s[0]);
    for (bool more = walk_on(a, w); more; n++) {
        ring_await(ring, 2 * n);
        turn_wait(group);
        wg_abt<E, D, FWD_T>(s[0], mine, at::item(q, 2 * n));
        ring_await(ring, 2 * n - 1);
        wg_ab<E>(acc[0], p, at::item(q, 2 * n - 1));
        turn_give(group);
        wg_wait<1>();
        wg_pin(s[0]);
        ring_free(ring, 2 * n);
        fwd_weights(a, w, r, fade, s, row);
        wg_wait<0>();
        wg_pin(acc[0]);
        ring_free(ring, 2 * n - 1);
        rows_fade(acc, fade);
        rows_pairs<E>(p, s[0]);
        more = walk_on(a, w);
    }
    if (group == 0) turn_wait(group);
    ring_await(ring, 2 * n - 1);
    wg_ab<E>(acc[0], p, at::item(q, 2 * n - 1));
    wg_wait<0>();
    wg_pin(acc[0]);
    rows_store<E, D>(a, r, acc, row, head);
}

#    endif

/* A block has a tile of queries of one head. Q8: keys and values are
 * stored so. */
template <class E, int D, bool Q8> __global__ __launch_bounds__(WG_THREADS, 1) void wgmma_fwd(attn a, wg_order order)
{
#    if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    GPU_SHARED(E, mem);
    __shared__ wg_ring<STAGES> ring;
    const uint32_t q = wg_align(mem);
    const int2 at = order_here(order);
    const key_walk w = walk_start(a, (order.tiles - 1 - at.x) * FWD_T);
    if (threadIdx.x == 0) ring_start(&ring);
    __syncthreads();
    if (threadIdx.x >= WG_READERS) {
        wg_fewer_registers<72>();
        if (Q8)
            fwd_fill_q8<E, D>(a, &ring, q, (raw_tile<D> *)((char *)mem + (q - shared_at(mem)) + fwd_tiles<D>::BYTES),
                              at.y, w);
        else
            fwd_fill<E, D>(a, &ring, q, at.y, w);
    } else {
        wg_more_registers<216>();
        fwd_read<E, D>(a, &ring, q, at.y, w);
    }
#    else
    (void)a, (void)order;
    __trap(); /* attn_wgmma_takes has seen a card that this is not compiled for */
#    endif
}

template <class E, int D> static void fwd_launch(struct kctx *kc, const struct attn *a)
{
    const wg_order order = order_of(kc, ceil_div(a->T, FWD_T), a->H);
    const dim3 grid = order_grid(order);
    if (a->k.type == DT_Q8)
        gpu_launch(wgmma_fwd<E, D, true>, grid, WG_THREADS, WG_ALIGN + fwd_tiles<D>::BYTES + 2 * sizeof(raw_tile<D>),
                   stream_of(kc), *a, order);
    else
        gpu_launch(wgmma_fwd<E, D, false>, grid, WG_THREADS, WG_ALIGN + fwd_tiles<D>::BYTES, stream_of(kc), *a, order);
}

void attn_wgmma_fwd(struct kctx *kc, const struct attn *a)
{
    if (a->q.type == DT_BF16)
        (a->D == 64 ? fwd_launch<gpu_bf16, 64> : fwd_launch<gpu_bf16, 128>)(kc, a);
    else
        (a->D == 64 ? fwd_launch<gpu_f16, 64> : fwd_launch<gpu_f16, 128>)(kc, a);
}

#else

bool attn_wgmma_takes(const struct attn *) { return false; }
void attn_wgmma_fwd(struct kctx *, const struct attn *) {}

#endif
