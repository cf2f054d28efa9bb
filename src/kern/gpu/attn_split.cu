/* Decode: few queries over long caches. The keys of a query are divided into shares of fixed length, so that
 * the whole device reads; of each share the maximum, the sum of exponentials and the weighted sum are kept,
 * and a second kernel puts the shares together, in order. All query heads of one key/value head are done in
 * one pass over it (G at a time). The blocks take a query's shares in turn; how many blocks there are changes
 * no bit.
 *
 * Which shares there are depends on the range in device memory: a captured step stays right as the cache
 * grows. Scratch: the shares' results. */
#include "kern/gpu/attn.h"

enum {
    SHARE = 64,    /* keys of a share at least: one round of loads */
    SHARES = 64,   /* of a query at most, if its store is full */
    BLOCKS = 1024, /* enough to keep any device reading */
    AT_ONCE = 4,   /* keys that a group of lanes has under way */
    HEAD_MAX = LANES * 32,
};

bool attn_split_takes(const struct attn *a) { return a->D <= HEAD_MAX; }

struct shares {
    float *top, *sum, *acc; /* [T,H,n], [T,H,n], [T,H,n,D] */
    int n, length;          /* of a query at most; keys of one */
};

/* One key's score for each of G queries, over the `lanes` that hold it. */
template <int G>
__device__ inline void score(float (&s)[G], const float (&q)[G][LANES], const float (&k)[LANES], int lanes)
{
#pragma unroll
    for (int g = 0; g < G; g++) {
        s[g] = 0;
#pragma unroll
        for (int j = 0; j < LANES; j++) s[g] += q[g][j] * k[j];
    }
    for (int m = lanes / 2; m > 0; m /= 2)
#pragma unroll
        for (int g = 0; g < G; g++) s[g] += gpu_shfl_xor(s[g], m);
}

/* What a group of lanes has of its keys so far, for G queries. */
template <int G> struct partial {
    float top[G], sum[G], acc[G][LANES];
};

template <int G>
__device__ inline void partial_add(partial<G> &p, const float (&s)[G], const float (&v)[LANES])
{
#pragma unroll
    for (int g = 0; g < G; g++) {
        const float higher = fmaxf(p.top[g], s[g]);
        const float fade = p.top[g] > -INFINITY ? expf(p.top[g] - higher) : 0.0f, e = expf(s[g] - higher);
        p.top[g] = higher;
        p.sum[g] = p.sum[g] * fade + e;
#pragma unroll
        for (int j = 0; j < LANES; j++) p.acc[g][j] = p.acc[g][j] * fade + e * v[j];
    }
}

/* The keys [from, to), every `groups`-th from `first` on. */
template <int G, class C>
__device__ inline void read_keys(partial<G> &p, const attn &a, const float (&q)[G][LANES], int kv, int from,
                                 int to, int first, int groups, int lanes, int lane, const int32_t *table)
{
    const C *k = (const C *)a.k.p + (int64_t)kv * a.D, *v = (const C *)a.v.p + (int64_t)kv * a.D;
    const int64_t row = (int64_t)a.K * a.D;
    for (int s0 = from; s0 < to; s0 += groups * AT_ONCE) { /* the same turns for all lanes of a warp */
        float kr[AT_ONCE][LANES], vr[AT_ONCE][LANES];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const int s = s0 + first + i * groups, safe = s < to ? s : to - 1;
            const int64_t at = attn_row(table, safe) * row;
            load8(kr[i], k + at, lane * LANES, a.D, a.wide);
            load8(vr[i], v + at, lane * LANES, a.D, a.wide);
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            float w[G];
            score(w, q, kr[i], lanes);
            if (s0 + first + i * groups < to) partial_add(p, w, vr[i]);
        }
    }
}

/* The groups' results of one query become the share's. mem: [groups][top, sum, acc[lanes * LANES]] */
__device__ inline void share_store(const attn &a, const shares &out, const float *mem, int groups, int width,
                                   int64_t at)
{
    float top = -INFINITY;
    for (int i = 0; i < groups; i++) top = fmaxf(top, mem[i * width]);
    for (int c = (int)threadIdx.x; c <= a.D; c += BLOCK) { /* column D is the sum */
        const int column = c == a.D ? 1 : 2 + c;
        float total = 0;
        for (int i = 0; i < groups; i++)
            if (mem[i * width] > -INFINITY) total += expf(mem[i * width] - top) * mem[i * width + column];
        if (c == a.D)
            out.sum[at] = total;
        else
            out.acc[at * a.D + c] = total;
    }
    if (threadIdx.x == 0) out.top[at] = top;
}

/* Block (turn, key/value head and its queries, token). `lanes`: a power of two that covers a head. */
template <int G, class C> __global__ __launch_bounds__(BLOCK) void split(attn a, shares out, int lanes)
{
    GPU_SHARED(float, mem);
    const int groups = BLOCK / lanes, group = (int)threadIdx.x / lanes, lane = (int)threadIdx.x % lanes;
    const int head = (int)blockIdx.y * G, kv = head / (a.H / a.K), t = (int)blockIdx.z,
              width = lanes * LANES + 2;
    const int2 range = attn_range(a, t);
    float q[G][LANES], *mine = mem + group * width;
#pragma unroll
    for (int g = 0; g < G; g++) {
        load8(q[g], view_at(a.q, ((int64_t)t * a.H + head + g) * a.D), lane * LANES, a.D, a.wide);
#pragma unroll
        for (int j = 0; j < LANES; j++) q[g][j] *= a.scale;
    }
    for (int share = (int)blockIdx.x; range.x + share * out.length < range.y; share += (int)gridDim.x) {
        const int from = range.x + share * out.length,
                  to = from + out.length < range.y ? from + out.length : range.y;
        partial<G> p;
#pragma unroll
        for (int g = 0; g < G; g++) {
            p.top[g] = -INFINITY, p.sum[g] = 0;
#pragma unroll
            for (int j = 0; j < LANES; j++) p.acc[g][j] = 0;
        }
        read_keys<G, C>(p, a, q, kv, from, to, group, groups, lanes, lane, attn_table(a, t));
#pragma unroll
        for (int g = 0; g < G; g++) {
            __syncthreads();
            if (lane == 0) mine[0] = p.top[g], mine[1] = p.sum[g];
#pragma unroll
            for (int j = 0; j < LANES; j++) mine[2 + lane * LANES + j] = p.acc[g][j];
            __syncthreads();
            share_store(a, out, mem, groups, width, ((int64_t)t * a.H + head + g) * out.n + share);
        }
    }
}

/* Block (head, token): the shares in order. */
__global__ __launch_bounds__(BLOCK) void join(attn a, shares in)
{
    const int2 range = attn_range(a, (int)blockIdx.y);
    const int n = (range.y - range.x + in.length - 1) / in.length;
    const int64_t th = (int64_t)blockIdx.y * a.H + blockIdx.x, first = th * in.n;
    float top = -INFINITY, sum = 0;
    for (int i = 0; i < n; i++) top = fmaxf(top, in.top[first + i]);
    for (int i = 0; i < n; i++) sum += expf(in.top[first + i] - top) * in.sum[first + i];
    for (int c = (int)threadIdx.x; c < a.D; c += (int)blockDim.x) {
        float y = 0;
        for (int i = 0; i < n; i++) y += expf(in.top[first + i] - top) * in.acc[(first + i) * a.D + c];
        view_put(a.y, th * a.D + c, y / sum);
    }
    if (a.lse && threadIdx.x == 0) a.lse[th] = top + logf(sum);
}

template <class C>
static void split_launch(struct kctx *kc, const struct attn *a, int group, int blocks,
                         const struct shares *out, int lanes)
{
    const size_t shared = (size_t)(BLOCK / lanes) * (size_t)(lanes * LANES + 2) * sizeof(float);
    const dim3 grid((unsigned)blocks, (unsigned)(a->H / group), (unsigned)a->T);
    switch (group) {
    case 1: gpu_launch(split<1, C>, grid, BLOCK, shared, stream_of(kc), *a, *out, lanes); break;
    case 2: gpu_launch(split<2, C>, grid, BLOCK, shared, stream_of(kc), *a, *out, lanes); break;
    default: gpu_launch(split<4, C>, grid, BLOCK, shared, stream_of(kc), *a, *out, lanes); break;
    }
}

void attn_split_fwd(struct kctx *kc, const struct attn *a)
{
    const int64_t n_heads = (int64_t)a->T * a->H;
    const int group = a->H / a->K % 4 == 0 ? 4 : a->H / a->K % 2 == 0 ? 2 : 1;
    const size_t mark = arena_mark(kc->scratch);
    struct shares s;
    int lanes = 1;
    while (lanes * LANES < a->D) lanes *= 2;
    s.length = (int)ceil_div(ceil_div(a->S, SHARES), SHARE) * SHARE;
    s.n = (int)ceil_div(a->S, s.length);
    s.top = (float *)arena_take(kc->scratch, (size_t)(n_heads * s.n) * sizeof(float));
    s.sum = (float *)arena_take(kc->scratch, (size_t)(n_heads * s.n) * sizeof(float));
    s.acc = (float *)arena_take(kc->scratch, (size_t)(n_heads * s.n * a->D) * sizeof(float));
    const int blocks = (int)least(s.n, ceil_div(BLOCKS * group, n_heads));
    GPU_BY_TYPE(a->k.type, C, split_launch<C>(kc, a, group, blocks, &s, lanes));
    gpu_launch(join, dim3((unsigned)a->H, (unsigned)a->T), BLOCK / 2, 0, stream_of(kc), *a, s);
    arena_rewind(kc->scratch, mark);
}
