/* Decode: few queries over long caches. Queries and the tokens' own keys are rotated, keys and values stored, and
 * attention is taken over them, in one kernel. The keys of a query are divided into equal shares, so that the whole
 * device reads; of each share the maximum, the sum of exponentials and the weighted sum are kept, and put together in
 * order. How many shares there are depends on the heads and the device, where they are cut on the query's number of
 * keys, so how many blocks have them in turn changes no bit: one, which keeps their results; a cluster, whose first
 * block gets the results of all; or any, of which the last one finds the results in memory. All query heads of one
 * key/value head are done in one pass over it (G at a time).
 *
 * A group of lanes has a key at a time, AT_ONCE of them in a round; what a thread will need of the next rounds is on
 * its way into places of its own in shared memory, beyond the end of a share too, so that nobody waits for anybody.
 * Scales of quantised rows come apart: where a head has its scales in one word, the lanes of a warp fetch those of its
 * keys together. All keys but the token's own are older than what ran before, and are asked for before that has ended;
 * the token's own never comes from memory.
 *
 * Which shares there are depends on the range in device memory: a captured step stays right as the cache
 * grows. Scratch: the shares' results, if they are in memory. */
#include "kern/gpu/attn.h"

enum {
    SHARES = 16, /* of a query at most */
    BLOCKS = 2,  /* of all queries for each multiprocessor, if there are so many shares */
    CLUSTER_MOST = 8,
    COUNTED = 1 << 12,
    HEAD_MAX = LANES * 32,
    ROUND_MOST = 4, /* keys of a group in a round */
};

/* How a type of keys and values is read: threads of a block, a lane's columns, keys of a group that are added up
 * together; whether rows have scales. */
struct q8 {};
template <class C> struct stored {
    enum { THREADS = 256, COLS = LANES, TOGETHER = 4 };
    static const bool SCALED = false;
};
template <> struct stored<q8> {
    enum { THREADS = 128, COLS = 2 * LANES, TOGETHER = 2 };
    static const bool SCALED = true;
};
/* And, which changes no bit: keys of a group in a round, rounds under way, how many of a round's scales a lane fetches;
 * blocks of a multiprocessor that registers must do for, where a block has one query (0: the compiler's choice). */
template <class C_, int AT_ONCE_ = ROUND_MOST, int ROUNDS_ = 2, int BESIDE_ = 0> struct way {
    typedef C_ C;
    static const bool SCALED = stored<C>::SCALED;
    enum { THREADS = stored<C>::THREADS, WARPS = THREADS / GPU_WARP, COLS = stored<C>::COLS, AT_ONCE = AT_ONCE_,
           TOGETHER = stored<C>::TOGETHER, BESIDE = BESIDE_,
           ROUNDS = GPU_COPIES ? ROUNDS_ : 1, LEAST_LANES = QUANT_GROUP / COLS,
           SCALES = (2 * AT_ONCE + LEAST_LANES - 1) / LEAST_LANES };
};

/* Of quantised rows a token's heads must have scales of their own. */
bool attn_split_takes(const struct attn *a)
{
    return a->D <= HEAD_MAX && (a->k.type == a->q.type || (a->k.type == DT_Q8 && a->wide && a->D % QUANT_GROUP == 0));
}

/* How the blocks of a query meet. */
enum meeting { ALONE, CLUSTER, MEMORY };

struct shares {
    float *at; /* MEMORY: [T,H,n,D+2], of each share the weighted sum, the maximum, the sum */
    int n;     /* of a query at most */
    int meeting;
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

/* A lane's numbers of a query. Where keys have 8 bits and activations 16, the numbers are rounded to 15 bits of the
 * largest, q = scale (256 high + low), so that products are sums of integers. */
template <class C, bool ROUNDED> struct query {
    float q[stored<C>::COLS];
    __device__ void set(const float (&x)[stored<C>::COLS])
    {
#pragma unroll
        for (int j = 0; j < stored<C>::COLS; j++) q[j] = x[j];
    }
    __device__ float dot(const piece<C> &k) const
    {
        float s = 0;
#pragma unroll
        for (int j = 0; j < stored<C>::COLS; j++) s += q[j] * k.get(j);
        return s;
    }
};
template <> struct query<q8, true> {
    uint32_t high[4], low[4];
    float scale;
    __device__ void set(const float (&x)[16])
    {
        const float whole = 127 * 256;
        float most = 0;
#pragma unroll
        for (int j = 0; j < 16; j++) most = fabsf(x[j]) <= most ? most : fabsf(x[j]);
        const float inverse = most > 0x1p-100f ? whole / most : 0.0f;
        scale = inverse > 0 ? most / whole : most * 0.0f; /* NaN of what is not finite */
#pragma unroll
        for (int i = 0; i < 4; i++) high[i] = low[i] = 0;
#pragma unroll
        for (int j = 0; j < 16; j++) {
            const int n = (int)rintf(x[j] * inverse), h = (n + 128) >> 8;
            high[j / 4] |= (uint32_t)(h & 0xff) << 8 * (j % 4);
            low[j / 4] |= (uint32_t)((n - 256 * h) & 0xff) << 8 * (j % 4);
        }
    }
    __device__ float dot(const piece<q8> &k) const
    {
        int h = 0, l = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) h = gpu_dot4(high[i], k.q[i], h), l = gpu_dot4(low[i], k.q[i], l);
        return (float)(256 * h + l) * scale;
    }
};

/* A round of keys: [key][k, v], THREADS apart, and the words that their scales are in. */
template <class W> struct round_of {
    piece<typename W::C> p[2 * W::AT_ONCE][W::THREADS];
    uint32_t scale[W::SCALED ? 2 * W::AT_ONCE : 1][W::SCALED ? (int)W::THREADS : 4];
};

/* The token's own key and value, and their scales. */
template <class W> struct own_key {
    piece<typename W::C> p[2][HEAD_MAX / W::COLS];
    gpu_f16 scale[2][HEAD_MAX / W::COLS];
};

/* How a block goes about a head's columns: 2^bits lanes of a key cover them; this one's number, and its group's among
 * all groups; its first column in the head; together: a head's scales are in one word; half: this one's in a word. */
struct split_shape {
    int bits, lane, group, groups, c, half;
    bool together;
};

template <class W> __device__ inline split_shape shape_of(const attn &a, int kv, int bits)
{
    const int thread = (int)threadIdx.x, lane = thread & ((1 << bits) - 1), c = lane * W::COLS;
    return { bits, lane, thread >> bits, W::THREADS >> bits, c, (kv * a.D + c) / QUANT_GROUP % 2 * 16,
             2 * QUANT_GROUP % a.D == 0 };
}

__device__ inline float scale_half(uint32_t word, const split_shape &h)
{
    return gpu_float(gpu_f16{ (uint16_t)(word >> h.half) });
}

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

/* TOGETHER keys more, from `first` on: s are scores, -infinity where there is no key. */
template <int G, class W>
__device__ inline void partial_add(partial<G, W::COLS> &p, int first, const float (&s)[G][W::AT_ONCE],
                                   const piece<typename W::C> (&v)[W::AT_ONCE], const float (&scale)[W::AT_ONCE])
{
#pragma unroll
    for (int g = 0; g < G; g++) {
        float top = p.top[g], e[W::TOGETHER];
#pragma unroll
        for (int i = 0; i < W::TOGETHER; i++) top = fmaxf(top, s[g][first + i]);
        const float base = top > -INFINITY ? top : 0.0f, fade = exp2_fast(p.top[g] - base);
        p.top[g] = top, p.sum[g] *= fade;
#pragma unroll
        for (int i = 0; i < W::TOGETHER; i++) {
            p.sum[g] += e[i] = exp2_fast(s[g][first + i] - base);
            if (W::SCALED) e[i] *= scale[first + i];
        }
#pragma unroll
        for (int j = 0; j < W::COLS; j++) {
            p.acc[g][j] *= fade;
#pragma unroll
            for (int i = 0; i < W::TOGETHER; i++) p.acc[g][j] += e[i] * v[first + i].get(j);
        }
    }
}

/* What a thread reads of the stores' first rows: its columns, and the words with scales, its own or, together, its
 * head's. Columns beyond the head are others in their place: q is 0 there, and what becomes of v is not read. */
struct stores {
    const char *k, *v, *k_scale, *v_scale;
    int pitch; /* bytes of a row */
};

template <class W, bool WIDE>
__device__ inline stores stores_of(const attn &a, int kv, const split_shape &h)
{
    const int head = kv * a.D, col = head + (!WIDE || h.c < a.D ? h.c : 0);
    if constexpr (W::SCALED) {
        const int word = a.kq.scales_at + (h.together ? head : col) / QUANT_GROUP / 2 * 4;
        return { a.kq.p + col, a.vq.p + col, a.kq.p + word, a.vq.p + word, (int)a.kq.pitch };
    }
    const int size = (int)sizeof(typename W::C);
    return { (const char *)a.k.p + col * size, (const char *)a.v.p + col * size, NULL, NULL, a.K * a.D * size };
}

/* Of a row from a thread's first column on. Without WIDE one by one, and zeros beyond the head. */
template <bool WIDE, class C>
__device__ inline void row_copy(piece<C> *to, const char *row, const split_shape &h, int D)
{
    if constexpr (WIDE)
#pragma unroll
        for (int i = 0; i < (int)(sizeof *to / 16); i++) bytes_copy((gpu_16bytes *)to + i, row + 16 * i);
    else
#pragma unroll
        for (int j = 0; j < LANES; j++) to->p.v[j] = h.c + j < D ? ((const C *)row)[j] : gpu_from<C>(0.0f);
}

/* The keys of a query: the last one is the token's own; keys of a share. */
struct keys {
    int from, own, length;
};

/* A share is whole rounds, the largest that there are, but for the last: a round that is not full takes as long as one
 * that is. step: keys of such a round, a power of two. */
__device__ inline keys keys_of(int2 range, int shares, int step)
{
    const int n = range.y - range.x, each = (n + shares - 1) / shares;
    return { range.x, range.y - 1, (each + step - 1) & -step };
}

/* Where a block is in its keys: the next round's first, the end of its share. */
struct keys_place {
    int share, at, to;
};

__device__ inline keys_place keys_from(int share, const keys &k)
{
    const int at = k.from + share * k.length;
    return { share, at, min(at + k.length, k.own + 1) };
}

/* True if that was the last of a share. */
__device__ inline bool keys_advance(keys_place &p, int step, const keys &k)
{
    p.at += step;
    if (p.at < p.to) return false;
    p = keys_from(p.share + (int)gridDim.x, k);
    return true;
}

/* Key i of a group in a round. */
__device__ inline int round_key(const keys_place &p, int i, int group, const split_shape &h)
{
    return p.at + group + i * h.groups;
}

/* The rows of the store that a thread asks for in a round. They are looked up together, and early: to look one up takes
 * as long as to get what is asked for. */
template <class W> struct round_rows {
    int at[W::AT_ONCE], scale[W::SCALED ? (int)W::SCALES : 1];
};

/* Where a head's scales are in one word, the lanes of a warp fetch those of its keys, this one these: whether there is
 * one, whose, of which of its keys and of the value or the key, by the group's first thread. */
struct scale_turn {
    bool there;
    int group, key, of, thread;
};

template <class W> __device__ inline scale_turn scale_turn_of(int i, const split_shape &h)
{
    const int lane = (int)threadIdx.x % GPU_WARP + i * GPU_WARP, turn = lane / (2 * W::AT_ONCE);
    const int first = (int)threadIdx.x / GPU_WARP * GPU_WARP;
    return { lane < 2 * W::AT_ONCE * GPU_WARP >> h.bits, (first >> h.bits) + turn, lane / 2 % W::AT_ONCE, lane % 2,
             first + (turn << h.bits) };
}

template <class W>
__device__ inline void round_find(round_rows<W> &r, const keys &k, const keys_place &p, const split_shape &h,
                                  const int32_t *table)
{
    const int last = max(min(p.to, k.own) - 1, k.from);
#pragma unroll
    for (int i = 0; i < W::AT_ONCE; i++) r.at[i] = (int)attn_row(table, min(round_key(p, i, h.group, h), last));
#pragma unroll
    for (int i = 0; W::SCALED && i < W::SCALES; i++) {
        const scale_turn s = scale_turn_of<W>(i, h);
        if (h.together && s.there) r.scale[i] = (int)attn_row(table, min(round_key(p, s.key, s.group, h), last));
    }
}

template <class W>
__device__ inline void scales_copy(round_of<W> *to, const stores &from, const round_rows<W> &r, const split_shape &h)
{
    if (h.together)
#pragma unroll
        for (int i = 0; i < W::SCALES; i++) {
            const scale_turn s = scale_turn_of<W>(i, h);
            if (s.there)
                words_copy<1>(&to->scale[2 * s.key + s.of][s.thread],
                              (s.of ? from.v_scale : from.k_scale) + (int64_t)r.scale[i] * from.pitch);
        }
    else
#pragma unroll
        for (int i = 0; i < W::AT_ONCE; i++) {
            const int64_t at = (int64_t)r.at[i] * from.pitch;
            words_copy<1>(&to->scale[2 * i][threadIdx.x], from.k_scale + at);
            words_copy<1>(&to->scale[2 * i + 1][threadIdx.x], from.v_scale + at);
        }
}

/* A thread's part of a round of keys, if there is one. The token's own is not among them. */
template <class W, bool WIDE>
__device__ inline void round_copy(round_of<W> *to, const stores &from, const keys &k, const keys_place &p,
                                  const round_rows<W> &r, const split_shape &h, int D)
{
    if (p.at >= min(p.to, k.own)) return;
#pragma unroll
    for (int i = 0; i < W::AT_ONCE; i++) {
        const int64_t at = (int64_t)r.at[i] * from.pitch;
        row_copy<WIDE>(&to->p[2 * i][threadIdx.x], from.k + at, h, D);
        row_copy<WIDE>(&to->p[2 * i + 1][threadIdx.x], from.v + at, h, D);
    }
    if constexpr (W::SCALED) scales_copy<W>(to, from, r, h);
}

/* A thread's part of the first rounds, and the rows of the one behind them. */
template <class W, bool WIDE>
__device__ inline void rounds_begin(round_of<W> *mem, round_rows<W> &next, const stores &from, const keys &k,
                                    keys_place &put, const split_shape &h, const int32_t *table, int D)
{
    keys_place place[W::ROUNDS];
    round_rows<W> rows[W::ROUNDS];
#pragma unroll
    for (int i = 0; i < W::ROUNDS; i++) {
        place[i] = put;
        round_find<W>(rows[i], k, put, h, table);
        keys_advance(put, h.groups * W::AT_ONCE, k);
    }
#pragma unroll
    for (int i = 0; i < W::ROUNDS; i++) {
        round_copy<W, WIDE>(mem + i, from, k, place[i], rows[i], h, D);
        copy_commit();
    }
    round_find<W>(next, k, put, h, table);
}

/* The token's own key in its place in a round, and in those behind it, which count for nothing. By the threads that
 * read it, when the round is there. */
template <class W>
__device__ inline void round_own(round_of<W> &to, const own_key<W> &own, const keys &k, const keys_place &place,
                                 const split_shape &h, int D)
{
    const int thread = (int)threadIdx.x, lane = h.c < D ? h.lane : 0;
    if (place.to <= k.own) return;
#pragma unroll
    for (int i = 0; i < W::AT_ONCE; i++) {
        if (round_key(place, i, h.group, h) < k.own) continue;
#pragma unroll
        for (int of = 0; of < 2; of++) {
            to.p[2 * i + of][thread] = own.p[of][lane];
            if constexpr (W::SCALED) {
                const int first = h.together ? 0 : lane, last = h.together ? (1 << h.bits) - 1 : lane;
                to.scale[2 * i + of][h.together ? thread - h.lane : thread] =
                    own.scale[of][first].bits | (uint32_t)own.scale[of][last].bits << 16;
            }
        }
    }
}

/* A round of keys when it is there. */
template <int G, class W, class Q>
__device__ inline void round_add(partial<G, W::COLS> &p, const round_of<W> &from, const Q (&q)[G],
                                 const keys_place &place, const split_shape &h)
{
    const int thread = (int)threadIdx.x, with_scale = h.together ? thread - h.lane : thread;
    float s[G][W::AT_ONCE], scale[W::AT_ONCE] = {};
    piece<typename W::C> v[W::AT_ONCE];
#pragma unroll
    for (int i = 0; i < W::AT_ONCE; i++) {
        const piece<typename W::C> key = piece_load(from.p[2 * i][thread]);
        v[i] = piece_load(from.p[2 * i + 1][thread]);
        if (W::SCALED) scale[i] = scale_half(from.scale[2 * i + 1][with_scale], h);
#pragma unroll
        for (int g = 0; g < G; g++) {
            s[g][i] = q[g].dot(key);
            if (W::SCALED) s[g][i] *= scale_half(from.scale[2 * i][with_scale], h);
        }
    }
    for (int m = 1 << h.bits >> 1; m > 0; m >>= 1)
#pragma unroll
        for (int g = 0; g < G; g++)
#pragma unroll
            for (int i = 0; i < W::AT_ONCE; i++) s[g][i] += gpu_shfl_xor(s[g][i], m);
#pragma unroll
    for (int g = 0; g < G; g++)
#pragma unroll
        for (int i = 0; i < W::AT_ONCE; i++)
            if (round_key(place, i, h.group, h) >= place.to) s[g][i] = -INFINITY;
#pragma unroll
    for (int i = 0; i < W::AT_ONCE; i += W::TOGETHER) partial_add<G, W>(p, i, s, v, scale);
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

/* What a warp's groups have of query g becomes the first one's. */
template <int G, int COLS> __device__ inline void partial_gather(partial<G, COLS> &p, int g, int bits)
{
    for (int m = 1 << bits; m < GPU_WARP; m *= 2) {
        const float other = gpu_shfl_xor(p.top[g], m), top = fmaxf(p.top[g], other);
        const float base = top > -INFINITY ? top : 0.0f;
        const float mine = exp2_fast(p.top[g] - base), its = exp2_fast(other - base);
        p.top[g] = top;
        p.sum[g] = p.sum[g] * mine + gpu_shfl_xor(p.sum[g], m) * its;
#pragma unroll
        for (int j = 0; j < COLS; j++) p.acc[g][j] = p.acc[g][j] * mine + gpu_shfl_xor(p.acc[g][j], m) * its;
    }
}

/* Results of n parts of a query, `width` floats apart: column c of their weighted sum, and their sum, for `top`. */
struct sums_of {
    float column, sum, top;
};

__device__ inline sums_of parts_add(const float *parts, int n, int width, int c, int D)
{
    sums_of r = { 0, 0, -INFINITY };
#pragma unroll 8
    for (int i = 0; i < n; i++) r.top = fmaxf(r.top, parts[i * width + D + 1]);
    const float base = r.top > -INFINITY ? r.top : 0.0f;
#pragma unroll 8
    for (int i = 0; i < n; i++) {
        const float w = exp2_fast(parts[i * width + D + 1] - base);
        r.column += w * parts[i * width + c], r.sum += w * parts[i * width + D];
    }
    return r;
}

/* The warps' results of query g become the share's. mem: [warp][D + 2] */
template <int G, class W>
__device__ inline void share_store(const attn &a, float *to, partial<G, W::COLS> &p, int g, float *mem,
                                   const split_shape &h)
{
    const int width = a.D + 2, warp = (int)threadIdx.x / GPU_WARP;
    float *mine = mem + warp * width;
    partial_gather(p, g, h.bits);
    __syncthreads();
    if ((int)threadIdx.x % GPU_WARP < 1 << h.bits) {
#pragma unroll
        for (int j = 0; j < W::COLS; j++)
            if (h.c + j < a.D) mine[h.c + j] = p.acc[g][j];
        if (h.lane == 0) mine[a.D] = p.sum[g], mine[a.D + 1] = p.top[g];
    }
    __syncthreads();
    for (int c = (int)threadIdx.x; c < a.D; c += W::THREADS) {
        const sums_of r = parts_add(mem, W::WARPS, width, c, a.D);
        to[c] = r.column;
        if (c == 0) to[a.D] = r.sum, to[a.D + 1] = r.top;
    }
}

/* How many of a token's and head's shares are done; 0 between kernels. */
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

/* The cosines and sines of a thread's columns, sines with the sign that a column's other one has in the rotation. */
template <int COLS> struct angles {
    float c[COLS], s[COLS];
};

template <int COLS, bool WIDE>
__device__ inline void angles_load(angles<COLS> &n, const float *table, const split_shape &h, int D)
{
#pragma unroll
    for (int j0 = 0; j0 < COLS; j0 += LANES) {
        const int i = h.c + j0, half = D / 2;
        float c[LANES], s[LANES];
        if (WIDE) {
            load8(c, table, i < half ? i : i - half, i < D ? half : 0, true);
            load8(s, table + half, i < half ? i : i - half, i < D ? half : 0, true);
        }
#pragma unroll
        for (int j = 0; j < LANES; j++) {
            const int k = i + j, at = k < half ? k : k - half;
            if (!WIDE) c[j] = k < D ? table[at] : 0.0f, s[j] = k < D ? table[half + at] : 0.0f;
            n.c[j0 + j] = c[j], n.s[j0 + j] = k < half ? -s[j] : s[j];
        }
    }
}

/* A thread's columns of a head, and those that they are rotated with, as they come from memory: all loads of a thread
 * are under way before one is looked at. Something beyond the head, where the angles are 0. */
template <class A, int COLS> struct pairs {
    gpu_pack<A> own[COLS / LANES], other[COLS / LANES];
};

template <bool WIDE, class A, int COLS>
__device__ inline void pairs_load(pairs<A, COLS> &p, const A *x, const split_shape &h, int D)
{
#pragma unroll
    for (int n = 0; n < COLS / LANES; n++) {
        const int half = D / 2, i = h.c + n * LANES, at = i < D ? i : 0;
        if constexpr (WIDE)
            p.own[n] = pack_load(x + at), p.other[n] = pack_load(x + (at < half ? at + half : at - half));
        else
#pragma unroll
            for (int j = 0; j < LANES; j++) {
                const int k = i + j < D ? i + j : 0;
                p.own[n].v[j] = x[k], p.other[n].v[j] = x[k < half ? k + half : k - half];
            }
    }
}

/* Rotated, as an activation has them; zeros beyond the head. */
template <class A, int COLS>
__device__ inline void rotated(float (&r)[COLS], const pairs<A, COLS> &p, const angles<COLS> &n)
{
#pragma unroll
    for (int j = 0; j < COLS; j++)
        r[j] = gpu_float(gpu_from<A>(gpu_float(p.own[j / LANES].v[j % LANES]) * n.c[j] +
                                     gpu_float(p.other[j / LANES].v[j % LANES]) * n.s[j]));
}

/* A token's own key (of = 0) or value (1), by a warp: OWN_COLUMNS of a head at a time, a lane having every GPU_WARP-th,
 * `N` of them. */
enum { OWN_COLUMNS = 128, OWN_N = OWN_COLUMNS / GPU_WARP, OF_GROUP = QUANT_GROUP / GPU_WARP };
struct own_place {
    int of, lane, kv, column; /* column: this lane's first */
    int64_t row;              /* of the store, if there is one */
};

/* Of a key rotated; behind the head its last column. */
template <class A>
__device__ inline void own_load(float (&v)[OWN_N], const attn &a, const tokens &in, int t, const own_place &p)
{
    const A *x = (const A *)(p.of ? in.v : in.k).p + ((int64_t)t * a.K + p.kv) * a.D;
    const float *angle = in.table + (int64_t)in.pos[t] * a.D;
    const int half = a.D / 2;
    A own[OWN_N], other[OWN_N];
    float c[OWN_N], s[OWN_N];
#pragma unroll
    for (int i = 0; i < OWN_N; i++) {
        const int e = min(p.column + i * GPU_WARP, a.D - 1), pair = e < half ? e : e - half;
        own[i] = x[e], other[i] = x[e < half ? e + half : pair];
        c[i] = angle[pair], s[i] = e < half ? -angle[half + pair] : angle[half + pair];
    }
#pragma unroll
    for (int i = 0; i < OWN_N; i++) {
        const float x0 = gpu_float(own[i]), turned = x0 * c[i] + gpu_float(other[i]) * s[i];
        v[i] = p.of ? x0 : gpu_float(gpu_from<A>(turned));
    }
}

template <class W, class C>
__device__ inline void own_store(own_key<W> &own, const attn &a, const float (&v)[OWN_N], const own_place &p,
                                 const piece<C> *)
{
    C *to = (C *)(p.of ? a.v : a.k).p + (p.row * a.K + p.kv) * a.D;
#pragma unroll
    for (int i = 0; i < OWN_N; i++) {
        const int e = p.column + i * GPU_WARP;
        const C x = gpu_from<C>(v[i]);
        if (e >= a.D) return;
        own.p[p.of][e / W::COLS].p.v[e % W::COLS] = x;
        if (p.row >= 0) to[e] = x;
    }
}
template <class W>
__device__ inline void own_store(own_key<W> &own, const attn &a, const float (&v)[OWN_N], const own_place &p,
                                 const piece<q8> *)
{
    const quant_view &store = p.of ? a.vq : a.kq;
    char *row = store.p + p.row * store.pitch, *to = row + p.kv * a.D;
#pragma unroll
    for (int g = 0; g < OWN_N / OF_GROUP; g++) {
        const int first = p.column + g * QUANT_GROUP, group = first / QUANT_GROUP;
        uint32_t most = 0;
        float inverse;
#pragma unroll
        for (int i = 0; i < OF_GROUP; i++) most = max(most, float_bits(v[g * OF_GROUP + i]) & 0x7fffffffu);
        const gpu_f16 scale = scale_to_8(group_most(most, GPU_WARP), inverse);
        if (first >= a.D) return;
#pragma unroll
        for (int i = 0; i < OF_GROUP; i++) {
            const char q = (char)byte_to_8(v[g * OF_GROUP + i], inverse);
            ((char *)own.p[p.of])[first + i * GPU_WARP] = q;
            if (p.row >= 0) to[first + i * GPU_WARP] = q;
        }
        if (p.lane < W::LEAST_LANES) own.scale[p.of][group * W::LEAST_LANES + p.lane] = scale;
        if (p.row >= 0 && p.lane == 0) ((gpu_f16 *)(row + store.scales_at))[p.kv * a.D / QUANT_GROUP + group] = scale;
    }
}

/* The key by the first warp, the value by the second: for this block, and into the store if `row` is there. A barrier
 * follows. */
template <class W, class A>
__device__ inline void own_make(own_key<W> &own, const attn &a, const tokens &in, int t, int kv, int64_t row)
{
    const int of = (int)threadIdx.x / GPU_WARP, lane = (int)threadIdx.x % GPU_WARP;
    float v[OWN_N];
    if (of > 1) return;
    for (int column = lane; column - lane < a.D; column += OWN_COLUMNS) {
        const own_place p = { of, lane, kv, column, row };
        own_load<A>(v, a, in, t, p);
        own_store<W>(own, a, v, p, own.p[of]);
    }
}

/* A thread's part of a token's queries from `head` on. */
template <int G, class W, class A, bool WIDE, class Q>
__device__ inline void queries_load(Q (&q)[G], const attn &a, const tokens &in, int t, int head,
                                    const angles<W::COLS> &turn, const split_shape &h)
{
    pairs<A, W::COLS> from[G];
#pragma unroll
    for (int g = 0; g < G; g++)
        pairs_load<WIDE>(from[g], (const A *)in.q.p + ((int64_t)t * a.H + head + g) * a.D, h, a.D);
#pragma unroll
    for (int g = 0; g < G; g++) {
        float x[W::COLS];
        rotated(x, from[g], turn);
#pragma unroll
        for (int j = 0; j < W::COLS; j++) x[j] *= a.scale * LOG2E;
        q[g].set(x);
    }
}

/* True for the block that puts the shares together, when all of them are there. done: this block's. By all threads. */
__device__ inline bool shares_meet(const shares &out, int done, int all)
{
    if (out.meeting == MEMORY)
        return shares_all(&shares_done[blockIdx.z * gridDim.y + blockIdx.y], (unsigned)done, (unsigned)all);
    if (out.meeting == ALONE) {
        __syncthreads();
        return true;
    }
    gpu_arrive();
    if (blockIdx.x) return false;
    gpu_wait();
    return true;
}

/* The shares of G heads from `head` on, in order. */
template <int G, class W>
__device__ inline void shares_join(const attn &a, const float *parts, int most, int t, int head, int n)
{
    const int width = a.D + 2;
    for (int e = (int)threadIdx.x; e < G * a.D; e += W::THREADS) {
        const int g = e / a.D, col = e % a.D;
        const sums_of y = parts_add(parts + g * most * width, n, width, col, a.D);
        view_put(a.y, ((int64_t)t * a.H + head + g) * a.D + col, y.column / y.sum);
    }
}

/* Block (turn, key/value head and its queries, token). bits: see split_shape. */
template <int G, class W, class A, bool WIDE>
__global__ __launch_bounds__(W::THREADS, G == 1 ? W::BESIDE : 0) void split(attn a, tokens in, shares out, int bits)
{
    __shared__ own_key<W> own;
    GPU_SHARED(round_of<W>, mem);
    const int head = (int)blockIdx.y * G, kv = head / (a.H / a.K), t = (int)blockIdx.z, width = a.D + 2;
    if (out.meeting == CLUSTER) gpu_arrive();
    const split_shape h = shape_of<W>(a, kv, bits);
    const int step = h.groups * W::AT_ONCE;
    const keys k = keys_of(attn_range(a, t), out.n, h.groups * ROUND_MOST);
    const stores from = stores_of<W, WIDE>(a, kv, h);
    const int32_t *table = attn_table(a, t);
    const int n = (k.own - k.from + k.length) / k.length; /* shares that there are */
    keys_place get = keys_from((int)blockIdx.x, k), put = get;
    float *sums = (float *)(mem + W::ROUNDS), *parts = sums + W::WARPS * width;
    query<typename W::C, W::SCALED && sizeof(A) == 2> q[G];
    angles<W::COLS> turn;
    round_rows<W> next;
    partial<G, W::COLS> p;
    int done = 0;
    if (out.meeting == MEMORY && get.share >= n) return;
    rounds_begin<W, WIDE>(mem, next, from, k, put, h, table, a.D);
    const int64_t row = head % (a.H / a.K) == 0 ? in.idx[t] : -1;
    angles_load<W::COLS, WIDE>(turn, in.table + (int64_t)in.pos[t] * a.D, h, a.D);
    gpu_wait_for_previous();
    if ((n - 1) % (int)gridDim.x == (int)blockIdx.x) own_make<W, A>(own, a, in, t, kv, row);
    queries_load<G, W, A, WIDE>(q, a, in, t, head, turn, h);
    __syncthreads();
    gpu_let_next();
    if (out.meeting == MEMORY) parts = out.at + ((int64_t)t * a.H + head) * out.n * width;
    if (out.meeting == CLUSTER) {
        gpu_wait(); /* the first block is there */
        parts = gpu_peer(parts, 0);
    }
    partial_clear(p);
    for (int slot = 0; get.share < n; slot = (slot + 1) % W::ROUNDS) {
        const int share = get.share;
        copy_wait<W::ROUNDS - 1>();
        if (W::SCALED) gpu_sync_warp();
        round_own<W>(mem[slot], own, k, get, h, a.D);
        round_add<G, W>(p, mem[slot], q, get, h);
        if (W::SCALED) gpu_sync_warp();
        round_copy<W, WIDE>(mem + slot, from, k, put, next, h, a.D);
        copy_commit();
        keys_advance(put, step, k);
        round_find<W>(next, k, put, h, table);
        if (!keys_advance(get, step, k)) continue;
#pragma unroll
        for (int g = 0; g < G; g++) share_store<G, W>(a, parts + (g * out.n + share) * width, p, g, sums, h);
        partial_clear(p);
        done++;
    }
    if (shares_meet(out, done, n)) shares_join<G, W>(a, parts, out.n, t, head, n);
}

template <class W, class A>
static void split_launch(struct kctx *kc, const struct attn *a, const tokens *in, int group, int blocks,
                         const struct shares *out)
{
    int bits = 0;
    while (W::COLS << bits < a->D) bits++;
    const int parts = W::WARPS + (out->meeting == MEMORY ? 0 : group * out->n);
    const size_t shared = W::ROUNDS * sizeof(round_of<W>) + (size_t)(parts * (a->D + 2)) * sizeof(float);
    const dim3 grid((unsigned)blocks, (unsigned)(a->H / group), (unsigned)a->T);
    void (*kernel)(attn, tokens, shares, int) = split<1, W, A, true>;
    if (group == 2) kernel = split<2, W, A, true>;
    if (group == 4) kernel = split<4, W, A, true>;
    if constexpr (!W::SCALED)
        if (!a->wide) kernel = split<1, W, A, false>;
    gpu_launch_clusters(kernel, out->meeting == CLUSTER ? (unsigned)blocks : 1, grid, W::THREADS, shared, stream_of(kc),
                        *a, *in, *out, bits);
}

void attn_split_fwd(struct kctx *kc, const struct attn *a, const struct tokens *in)
{
    const int of_key = a->H / a->K, group = !a->wide ? 1 : of_key % 4 == 0 ? 4 : of_key % 2 == 0 ? 2 : 1;
    const int64_t heads = a->H / group, units = dev_units(kc->dev);
    const size_t mark = arena_mark(kc->scratch);
    struct shares s = { NULL, (int)least(SHARES, ceil_div(3 * units, 2 * heads)), ALONE };
    const int64_t turns = ceil_div(s.n, ceil_div(BLOCKS * units, heads * a->T));
    const int blocks = (int)ceil_div(s.n, turns);
    if (blocks > 1) s.meeting = gpu_is_sm90() && blocks <= CLUSTER_MOST ? CLUSTER : MEMORY;
    if (s.meeting == MEMORY) {
        ASSERT(a->T * heads <= COUNTED);
        s.at = (float *)arena_take(kc->scratch, (size_t)(a->T * a->H * s.n * (a->D + 2)) * sizeof(float));
    }
    if (a->k.type == DT_Q8 && blocks > 1) /* of few blocks each has more under way */
        GPU_BY_TYPE(a->q.type, A, split_launch<way<q8, 4, 4>, A>(kc, a, in, group, blocks, &s));
    else if (a->k.type == DT_Q8 && heads * a->T >= 4 * units)
        GPU_BY_TYPE(a->q.type, A, split_launch<way<q8, 2, 2, 5>, A>(kc, a, in, group, blocks, &s));
    else if (a->k.type == DT_Q8)
        GPU_BY_TYPE(a->q.type, A, split_launch<way<q8>, A>(kc, a, in, group, blocks, &s));
    else
        GPU_BY_TYPE(a->q.type, A, split_launch<way<A>, A>(kc, a, in, group, blocks, &s));
    arena_rewind(kc->scratch, mark);
}
