/* Decode: few queries over long caches. The keys of a query are divided into shares of fixed length, so that the whole
 * device reads; of each share the maximum, the sum of exponentials and the weighted sum are kept, and the block that is
 * last, or a second kernel, puts a query's shares together, in order. All query heads of one key/value head are done in
 * one pass over it (G at a time). The blocks take a query's shares in turn; how many blocks there are changes no bit.
 *
 * A group of lanes has a key at a time, AT_ONCE of them in a round; what a thread will need of the next rounds is on
 * its way into places of its own in shared memory, beyond the end of a share too, so that nobody waits for anybody.
 * Scales of quantised rows come apart: where a head has its scales in one word, the lanes of a warp fetch those of its
 * keys together. Keys older than this call's tokens are asked for before the kernel in front has ended.
 *
 * Which shares there are depends on the range in device memory: a captured step stays right as the cache
 * grows. Scratch: the shares' results. */
#include "kern/gpu/attn.h"

enum {
    SHARES = 64,   /* of a query at most, if its store is full */
    SHARE = 128,   /* keys of a share at least */
    THREADS = 128,
    BLOCKS = 2048, /* enough to keep any device reading */
    AT_ONCE = 4,   /* keys of a group in a round */
    HEAD_MAX = LANES * 32,
};

/* What a type of keys and values asks for: a lane's columns, rounds under way; whether its rows have scales. */
struct q8 {};
template <class C> struct stored {
    enum { COLS = LANES, ROUNDS = GPU_COPIES ? 4 : 1 };
    static const bool SCALED = false;
};
template <> struct stored<q8> {
    enum { COLS = 2 * LANES, ROUNDS = GPU_COPIES ? 2 : 1 };
    static const bool SCALED = true;
};

/* Of quantised rows a lane's columns must have one scale. */
bool attn_split_takes(const struct attn *a)
{
    return a->D <= HEAD_MAX && (a->k.type != DT_Q8 || (a->wide && a->D % stored<q8>::COLS == 0));
}

struct shares {
    float *top, *sum, *acc; /* [T,H,n], [T,H,n], [T,H,n,D] */
    int n, length;          /* of a query at most; keys of one */
};

/* What a group of lanes has of its keys so far, for G queries; in powers of 2. */
template <int G, int COLS> struct partial {
    float top[G], sum[G], acc[G][COLS];
};

/* A lane's numbers of a row as they are stored. */
template <class C> struct piece {
    gpu_pack<C> p;
    __device__ float get(int j) const { return gpu_float(p.v[j]); }
};
template <> struct alignas(16) piece<q8> {
    uint32_t q[4];
    /* The bits of 2^23 + 128 + the number, less that. */
    __device__ float get(int j) const
    {
        return bits_float(gpu_bytes(q[j / 4] ^ 0x80808080u, 0x4b000000u, 0x7440u + (uint32_t)(j % 4))) - 8388736.0f;
    }
};

/* A round of keys: [key][k, v], THREADS apart, and the words that their scales are in. */
template <class C> struct round_of {
    piece<C> p[2 * AT_ONCE][THREADS];
    uint32_t scale[stored<C>::SCALED ? 2 * AT_ONCE : 1][stored<C>::SCALED ? (int)THREADS : 4];
};

/* How a block goes about a head's columns: lanes of a key, a power of two that covers them; this one's first column,
 * in the head and of all heads; together: a head's scales are in one word. */
struct split_shape {
    int lanes, c, col;
    bool together;
};

/* In 16-byte pieces. */
template <class C> __device__ inline piece<C> piece_load(const piece<C> &from)
{
    union {
        piece<C> p;
        gpu_16bytes b[sizeof(piece<C>) / 16];
    } u;
#pragma unroll
    for (int i = 0; i < (int)(sizeof u / 16); i++) u.b[i] = ((const gpu_16bytes *)&from)[i];
    return u.p;
}

/* AT_ONCE keys more: s are their scores, -infinity where there is no key. */
template <int G, class C>
__device__ inline void partial_add(partial<G, stored<C>::COLS> &p, const float (&s)[G][AT_ONCE],
                                   const piece<C> (&v)[AT_ONCE], const float (&scale)[AT_ONCE])
{
#pragma unroll
    for (int g = 0; g < G; g++) {
        float top = p.top[g], e[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) top = fmaxf(top, s[g][i]);
        const float base = top > -INFINITY ? top : 0.0f, fade = exp2f(p.top[g] - base);
        p.top[g] = top, p.sum[g] *= fade;
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            p.sum[g] += e[i] = exp2f(s[g][i] - base);
            if (stored<C>::SCALED) e[i] *= scale[i];
        }
#pragma unroll
        for (int j = 0; j < stored<C>::COLS; j++) {
            p.acc[g][j] *= fade;
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) p.acc[g][j] += e[i] * v[i].get(j);
        }
    }
}

/* Row `at` of a store, this lane's columns. Without WIDE one by one, and zeros beyond the head; with it what is beyond
 * is something: q is 0 there, and what becomes of v is not read. */
template <bool WIDE, class C>
__device__ inline void row_copy(piece<C> *to, const attn &a, view t, const quant_view &, int64_t at,
                                const split_shape &h)
{
    const C *row = (const C *)t.p + at * a.K * a.D + (h.col - h.c);
    if constexpr (WIDE) {
        row += h.c < a.D ? h.c : 0;
#pragma unroll
        for (int i = 0; i < (int)(sizeof *to / 16); i++)
            bytes_copy((gpu_16bytes *)to + i, (const gpu_16bytes *)row + i);
    } else {
#pragma unroll
        for (int j = 0; j < LANES; j++) to->p.v[j] = h.c + j < a.D ? row[h.c + j] : gpu_from<C>(0.0f);
    }
}
__device__ inline int q8_column(const attn &a, const split_shape &h) { return h.c < a.D ? h.col : h.col - h.c; }
template <bool WIDE>
__device__ inline void row_copy(piece<q8> *to, const attn &a, view, const quant_view &t, int64_t at,
                                const split_shape &h)
{
    bytes_copy((gpu_16bytes *)to->q, t.p + at * t.pitch + q8_column(a, h));
}

/* Where row `at` has the word with a column's scale; which of its halves that is. */
__device__ inline const char *scale_word(const quant_view &t, int64_t at, int col)
{
    return t.p + at * t.pitch + t.scales_at + col / QUANT_GROUP / 2 * 4;
}
__device__ inline float scale_half(uint32_t word, int col)
{
    return gpu_float(gpu_f16{ (uint16_t)(word >> 16 * (col / QUANT_GROUP % 2)) });
}

/* Where a block is in its keys: the next round's first, the end of its share. */
struct keys_place {
    int share, at, to;
};

__device__ inline keys_place keys_from(int share, int length, int2 range)
{
    const int at = range.x + share * length;
    return { share, at, min(at + length, range.y) };
}

/* True if that was the last of a share. */
__device__ inline bool keys_advance(keys_place &p, int step, int length, int2 range)
{
    p.at += step;
    if (p.at < p.to) return false;
    p = keys_from(p.share + (int)gridDim.x, length, range);
    return true;
}

/* Key i of this thread in a round. */
__device__ inline int round_key(const keys_place &p, int thread, int i, int lanes)
{
    return p.at + thread / lanes + i * (THREADS / lanes);
}

/* The scales of a round; together: a lane fetches those of one key after the other, for all that share the key. */
__device__ inline void scales_copy(round_of<q8> *to, const attn &a, const keys_place &p, const split_shape &h,
                                   const int32_t *table)
{
    const int lane = (int)threadIdx.x % GPU_WARP, first = (int)threadIdx.x - lane;
    if (h.together && h.lanes <= GPU_WARP)
        for (int e = lane; e < 2 * AT_ONCE * (GPU_WARP / h.lanes); e += GPU_WARP) {
            const int i = e / 2 % AT_ONCE, thread = first + e / (2 * AT_ONCE) * h.lanes;
            const int64_t at = attn_row(table, min(round_key(p, thread, i, h.lanes), p.to - 1));
            words_copy<1>(&to->scale[2 * i + e % 2][thread], scale_word(e % 2 ? a.vq : a.kq, at, h.col - h.c));
        }
    else
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const int64_t at = attn_row(table, min(round_key(p, (int)threadIdx.x, i, h.lanes), p.to - 1));
            words_copy<1>(&to->scale[2 * i][threadIdx.x], scale_word(a.kq, at, q8_column(a, h)));
            words_copy<1>(&to->scale[2 * i + 1][threadIdx.x], scale_word(a.vq, at, q8_column(a, h)));
        }
}
template <class C>
__device__ inline void scales_copy(round_of<C> *, const attn &, const keys_place &, const split_shape &,
                                   const int32_t *)
{
}

/* A thread's part of a round of keys. */
template <class C, bool WIDE>
__device__ inline void round_copy(round_of<C> *to, const attn &a, const keys_place &p, const split_shape &h,
                                  const int32_t *table)
{
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
        const int64_t at = attn_row(table, min(round_key(p, (int)threadIdx.x, i, h.lanes), p.to - 1));
        row_copy<WIDE>(&to->p[2 * i][threadIdx.x], a, a.k, a.kq, at, h);
        row_copy<WIDE>(&to->p[2 * i + 1][threadIdx.x], a, a.v, a.vq, at, h);
    }
    scales_copy(to, a, p, h, table);
}

/* The same when it is there. */
template <int G, class C>
__device__ inline void round_add(partial<G, stored<C>::COLS> &p, const round_of<C> &from,
                                 const float (&q)[G][stored<C>::COLS], const keys_place &place, const split_shape &h)
{
    enum { COLS = stored<C>::COLS };
    const int thread = (int)threadIdx.x, with_scale = h.together ? thread - thread % h.lanes : thread;
    float s[G][AT_ONCE], scale[AT_ONCE] = {};
    piece<C> v[AT_ONCE];
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
        const piece<C> k = piece_load(from.p[2 * i][thread]);
        v[i] = piece_load(from.p[2 * i + 1][thread]);
        if (stored<C>::SCALED) scale[i] = scale_half(from.scale[2 * i + 1][with_scale], h.col);
#pragma unroll
        for (int g = 0; g < G; g++) {
            s[g][i] = 0;
#pragma unroll
            for (int j = 0; j < COLS; j++) s[g][i] += q[g][j] * k.get(j);
            if (stored<C>::SCALED) s[g][i] *= scale_half(from.scale[2 * i][with_scale], h.col);
        }
    }
    for (int m = h.lanes / 2; m > 0; m /= 2)
#pragma unroll
        for (int g = 0; g < G; g++)
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) s[g][i] += gpu_shfl_xor(s[g][i], m);
#pragma unroll
    for (int g = 0; g < G; g++)
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            if (round_key(place, thread, i, h.lanes) >= place.to) s[g][i] = -INFINITY;
    partial_add<G, C>(p, s, v, scale);
}

template <int G, int COLS> __device__ inline void partial_clear(partial<G, COLS> &p)
{
#pragma unroll
    for (int g = 0; g < G; g++) {
        p.top[g] = -INFINITY, p.sum[g] = 0;
#pragma unroll
        for (int j = 0; j < COLS; j++) p.acc[g][j] = 0;
    }
}

/* The groups' results of query g become the share's. mem: top[groups], then [groups][sum, acc[lanes * COLS]] */
template <int G, int COLS>
__device__ inline void share_store(const attn &a, const shares &out, const partial<G, COLS> &p, int g, float *mem,
                                   int lanes, int64_t at)
{
    const int groups = THREADS / lanes, group = (int)threadIdx.x / lanes, lane = (int)threadIdx.x % lanes;
    const int width = lanes * COLS + 1;
    float *mine = mem + groups + group * width, top = -INFINITY;
    __syncthreads();
    if (lane == 0) mem[group] = p.top[g];
    __syncthreads();
    for (int i = 0; i < groups; i++) top = fmaxf(top, mem[i]);
    const float fade = exp2f(p.top[g] - top); /* a share has a key */
    if (lane == 0) mine[0] = p.sum[g] * fade;
#pragma unroll
    for (int j = 0; j < COLS; j++) mine[1 + lane * COLS + j] = p.acc[g][j] * fade;
    __syncthreads();
    for (int c = (int)threadIdx.x; c <= a.D; c += THREADS) { /* column 0 is the sum */
        float total = 0;
        for (int i = 0; i < groups; i++) total += mem[groups + i * width + c];
        if (c == 0)
            out.sum[at] = total;
        else
            out.acc[at * a.D + c - 1] = total;
    }
    if (threadIdx.x == 0) out.top[at] = top;
}

/* How many of a token's and key/value head's shares are done; 0 between kernels. */
enum { COUNTED = 1 << 12, JOIN_T = 4 /* tokens whose shares are put together by the last block */ };
static __device__ unsigned shares_done[COUNTED];

/* True for the block that is the last of a token and head: then all shares can be read. By all threads. */
__device__ inline bool shares_all(unsigned *done, unsigned mine, unsigned all)
{
    __shared__ bool last;
    gpu_fence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(done, mine) + mine == all;
        if (last) *done = 0;
    }
    __syncthreads();
    gpu_fence();
    return last;
}

/* The shares of G heads from `head` on, in order. mem: weights [G][SHARES] and sums [G] */
template <int G>
__device__ inline void shares_join(const attn &a, const shares &in, int t, int head, int n, float *mem)
{
    const int lane = (int)threadIdx.x % GPU_WARP, warp = (int)threadIdx.x / GPU_WARP;
    const int64_t th = (int64_t)t * a.H + head;
    float *sums = mem + G * SHARES;
    for (int g = warp; g < G; g += THREADS / GPU_WARP) {
        const float *tops = in.top + (th + g) * in.n, *parts = in.sum + (th + g) * in.n;
        float top = -INFINITY, sum = 0;
        for (int i = lane; i < n; i += GPU_WARP) top = fmaxf(top, tops[i]);
        top = warp_max(top);
        for (int i = lane; i < n; i += GPU_WARP) sum += (mem[g * SHARES + i] = exp2f(tops[i] - top)) * parts[i];
        sum = warp_sum(sum);
        if (lane == 0) sums[g] = sum;
        if (lane == 0 && a.lse) a.lse[th + g] = LN2 * (top + log2f(sum));
    }
    __syncthreads();
    for (int e = (int)threadIdx.x; e < G * a.D; e += THREADS) {
        const int g = e / a.D, c = e % a.D;
        const float *acc = in.acc + (th + g) * in.n * a.D + c;
        float y = 0;
#pragma unroll 8
        for (int i = 0; i < n; i++) y += mem[g * SHARES + i] * acc[i * a.D];
        view_put(a.y, (th + g) * a.D + c, y / sums[g]);
    }
}

/* Block (turn, key/value head and its queries, token). lanes: see split_shape. */
template <int G, class C, bool WIDE>
__global__ __launch_bounds__(THREADS) void split(attn a, shares out, int lanes, bool joins)
{
    enum { COLS = stored<C>::COLS, ROUNDS = stored<C>::ROUNDS };
    GPU_SHARED(round_of<C>, mem);
    const int head = (int)blockIdx.y * G, kv = head / (a.H / a.K), t = (int)blockIdx.z;
    gpu_let_next();
    const int2 range = attn_range(a, t);
    const int32_t *table = attn_table(a, t);
    const int step = THREADS / lanes * AT_ONCE, c = (int)threadIdx.x % lanes * COLS;
    const split_shape h = { lanes, c, kv * a.D + c, 2 * QUANT_GROUP % a.D == 0 && lanes <= GPU_WARP };
    keys_place get = keys_from((int)blockIdx.x, out.length, range), put = get;
    float *sums = (float *)(mem + ROUNDS), q[G][COLS];
    partial<G, COLS> p;
    unsigned done = 0;
    bool waited = false;
    if (get.at >= range.y) return;
#pragma unroll
    for (int i = 0; i < ROUNDS; i++) {
        if (!waited && put.at < range.y && min(put.at + step, put.to) > range.y - a.T) {
            gpu_wait_for_previous(); /* some of these are new */
            waited = true;
        }
        if (put.at < range.y) round_copy<C, WIDE>(mem + i, a, put, h, table);
        copy_commit();
        keys_advance(put, step, out.length, range);
    }
    if (!waited) gpu_wait_for_previous();
#pragma unroll
    for (int g = 0; g < G; g++)
#pragma unroll
        for (int j0 = 0; j0 < COLS; j0 += LANES) {
            float some[LANES];
            load8(some, view_at(a.q, ((int64_t)t * a.H + head + g) * a.D), c + j0, a.D, a.wide);
#pragma unroll
            for (int j = 0; j < LANES; j++) q[g][j0 + j] = some[j] * (a.scale * LOG2E);
        }
    partial_clear(p);
    for (int slot = 0; get.at < range.y; slot = (slot + 1) % ROUNDS) {
        const int share = get.share;
        copy_wait<ROUNDS - 1>();
        if (stored<C>::SCALED) gpu_sync_warp();
        round_add<G, C>(p, mem[slot], q, get, h);
        if (stored<C>::SCALED) gpu_sync_warp();
        if (put.at < range.y) round_copy<C, WIDE>(mem + slot, a, put, h, table);
        copy_commit();
        keys_advance(put, step, out.length, range);
        if (!keys_advance(get, step, out.length, range)) continue;
#pragma unroll
        for (int g = 0; g < G; g++)
            share_store(a, out, p, g, sums, lanes, ((int64_t)t * a.H + head + g) * out.n + share);
        partial_clear(p);
        done++;
    }
    const int n = (range.y - range.x + out.length - 1) / out.length;
    if (joins && shares_all(&shares_done[blockIdx.z * gridDim.y + blockIdx.y], done, (unsigned)n))
        shares_join<G>(a, out, t, head, n, (float *)mem);
}

/* Block (key/value head and its queries, token): where many blocks would each wait for their last words to arrive. */
template <int G> __global__ __launch_bounds__(THREADS) void join(attn a, shares in)
{
    __shared__ float mem[G * (SHARES + 1)];
    const int t = (int)blockIdx.y;
    gpu_let_next();
    const int2 range = attn_range(a, t);
    gpu_wait_for_previous();
    shares_join<G>(a, in, t, (int)blockIdx.x * G, (range.y - range.x + in.length - 1) / in.length, mem);
}

template <class C>
static void split_launch(struct kctx *kc, const struct attn *a, int group, int blocks,
                         const struct shares *out)
{
    enum { COLS = stored<C>::COLS };
    int lanes = 1;
    while (lanes * COLS < a->D) lanes *= 2;
    const size_t shared = stored<C>::ROUNDS * sizeof(round_of<C>) +
                          (size_t)(THREADS / lanes * (lanes * COLS + 2)) * sizeof(float);
    const dim3 grid((unsigned)blocks, (unsigned)(a->H / group), (unsigned)a->T);
    void (*kernel)(attn, shares, int, bool) = a->wide ? split<1, C, true> : split<1, C, false>;
    if (group == 2) kernel = a->wide ? split<2, C, true> : split<2, C, false>;
    if (group == 4) kernel = a->wide ? split<4, C, true> : split<4, C, false>;
    gpu_launch_early(kernel, grid, THREADS, shared, stream_of(kc), *a, *out, lanes, a->T <= JOIN_T);
}

void attn_split_fwd(struct kctx *kc, const struct attn *a)
{
    const int64_t n_heads = (int64_t)a->T * a->H;
    ASSERT(a->T > JOIN_T || n_heads <= COUNTED);
    const int group = a->H / a->K % 4 == 0 ? 4 : a->H / a->K % 2 == 0 ? 2 : 1;
    const size_t mark = arena_mark(kc->scratch);
    struct shares s;
    s.length = (int)ceil_div(ceil_div(a->S, SHARES), SHARE) * SHARE;
    s.n = (int)ceil_div(a->S, s.length);
    s.top = (float *)arena_take(kc->scratch, (size_t)(n_heads * s.n) * sizeof(float));
    s.sum = (float *)arena_take(kc->scratch, (size_t)(n_heads * s.n) * sizeof(float));
    s.acc = (float *)arena_take(kc->scratch, (size_t)(n_heads * s.n * a->D) * sizeof(float));
    const int blocks = (int)least(s.n, ceil_div(BLOCKS * group, n_heads));
    if (a->k.type == DT_Q8)
        split_launch<q8>(kc, a, group, blocks, &s);
    else
        GPU_BY_TYPE(a->k.type, C, split_launch<C>(kc, a, group, blocks, &s));
    const dim3 grid((unsigned)(a->H / group), (unsigned)a->T);
    if (a->T > JOIN_T)
        gpu_launch_early(group == 1 ? join<1> : group == 2 ? join<2> : join<4>, grid, THREADS, 0, stream_of(kc), *a, s);
    arena_rewind(kc->scratch, mark);
}
