/* Choosing tokens: a block has one row, in passes over its logits, which lie in the second-level cache. The steps are
 * those of kern/ref/choose.c, with integers alone, so the token is the same. Scratch: none. */
#include "kern/gpu/num.h"

extern "C" {
#include "kern/choose.h"
}

enum { CHOOSERS = 512, BINS = 1 << CHOOSE_DIGIT, PARTS = 4, PART = 10 /* bits of a part of a weight */ };
static_assert(BINS == CHOOSERS, "a thread has a bin");
/* A bin's parts are added with 32 bits: (2^PART - 1) V fits. */
static_assert((uint64_t)CHOOSE_V_MAX << PART <= (uint64_t)1 << 32, "parts do not overflow");

struct chooser_shared {
    unsigned part[PARTS][BINS];
    uint64_t warp[CHOOSERS / 32], all, at, before;
    float most[CHOOSERS / 32];
    int id[CHOOSERS / 32];
    int bad, token;
};

/* The sum of v over the threads before this one; *all: over all. */
__device__ inline uint64_t sum_before(chooser_shared *s, uint64_t v, uint64_t *all)
{
    const int lane = (int)threadIdx.x % GPU_WARP, warp = (int)threadIdx.x / GPU_WARP;
    uint64_t sum = v;
    for (int n = 1; n < GPU_WARP; n *= 2) {
        const uint64_t other = gpu_shfl(sum, lane < n ? lane : lane - n);
        sum += lane < n ? 0 : other;
    }
    __syncthreads(); /* an earlier call may still be reading */
    if (lane == GPU_WARP - 1) s->warp[warp] = sum;
    __syncthreads();
    uint64_t before = sum - v, total = 0;
    for (int w = 0; w < CHOOSERS / GPU_WARP; w++) {
        before += w < warp ? s->warp[w] : 0;
        total += s->warp[w];
    }
    *all = total;
    return before;
}

/* The largest, the first of equals; -1: some are no numbers, or none is possible. */
__device__ inline int largest(chooser_shared *s, const float *x, int n, float *most)
{
    float best = -INFINITY;
    int at = n, bad = 0;
    if (threadIdx.x == 0) s->bad = 0;
    for (int i = (int)threadIdx.x; i < n; i += CHOOSERS) {
        bad |= !(x[i] < INFINITY);
        if (x[i] > best || at == n) best = x[i], at = i;
    }
    for (int m = GPU_WARP / 2; m; m /= 2) {
        const float b = gpu_shfl_xor(best, m);
        const int a = gpu_shfl_xor(at, m);
        if (b > best || (b == best && a < at)) best = b, at = a;
    }
    if (threadIdx.x % GPU_WARP == 0) s->most[threadIdx.x / GPU_WARP] = best, s->id[threadIdx.x / GPU_WARP] = at;
    __syncthreads();
    if (bad) atomicMax(&s->bad, 1);
    __syncthreads();
    for (int w = 0; w < CHOOSERS / GPU_WARP; w++)
        if (s->most[w] > best || (s->most[w] == best && s->id[w] < at)) best = s->most[w], at = s->id[w];
    *most = best;
    return s->bad || !(best > -INFINITY) ? -1 : at;
}

struct chooser {
    chooser_shared *s;
    const float *x;
    int n;
    float most;
    double scale;
    uint64_t at, n_at; /* kept are distances below `at`, and of those equal to it the last n_at by id */
    __device__ uint64_t distance(int i) const { return choose_distance(x[i], most, scale); }
};

/* The distance at which the running sum from the likeliest on, of ones or of weights, reaches target, into s->at; what
 * is nearer, into s->before. False: all together do not reach it. */
__device__ inline bool reach(const chooser &c, bool weights, uint64_t target)
{
    chooser_shared *s = c.s;
    uint64_t at = 0, past = 0, all;
    for (int digit = CHOOSE_DIGITS - 1; digit >= 0; digit--) {
        const int shift = digit * CHOOSE_DIGIT;
        __syncthreads();
        for (int p = 0; p < PARTS; p++) s->part[p][threadIdx.x] = 0;
        __syncthreads();
        for (int i = (int)threadIdx.x; i < c.n; i += CHOOSERS) {
            const uint64_t d = c.distance(i);
            if (d > c.at || d >= CHOOSE_OUT || (d ^ at) >> shift >> CHOOSE_DIGIT) continue;
            const unsigned bin = (unsigned)(d >> shift) % BINS;
            const uint64_t w = weights ? choose_weight(d) : 1;
            for (int p = 0; p < PARTS; p++)
                if (weights || p == 0) atomicAdd(&s->part[p][bin], (unsigned)(w >> p * PART) % (1u << PART));
        }
        __syncthreads();
        uint64_t mine = 0;
        for (int p = 0; p < PARTS; p++) mine += (uint64_t)s->part[p][threadIdx.x] << p * PART;
        const uint64_t before = past + sum_before(s, mine, &all);
        if (past + all < target) return false; /* in the first digit only */
        if (before < target && before + mine >= target) {
            s->at = at | (uint64_t)threadIdx.x << shift;
            s->before = before;
        }
        __syncthreads();
        at = s->at;
        past = s->before;
    }
    return true;
}

/* The first id in [from, to), of those kept, at which the running sum of weights, `seen` before, passes `want`; skip:
 * so many of those at c.at are left out first. */
__device__ inline int walk(const chooser &c, int from, int to, uint64_t skip, uint64_t seen, uint64_t want)
{
    for (int i = from; i < to; i++) {
        const uint64_t d = c.distance(i);
        if (d > c.at || (d == c.at && skip && skip--)) continue;
        if ((seen += choose_weight(d)) > want) return i;
    }
    return -1;
}

/* Draws one of those that are kept: each thread has neighbours. */
__device__ inline int draw(const chooser &c, uint64_t sum, uint64_t bits)
{
    const int per = (c.n + CHOOSERS - 1) / CHOOSERS, from = (int)threadIdx.x * per;
    const int to = from + per < c.n ? from + per : c.n;
    uint64_t ties = 0, mine = 0, all;
    for (int i = from; i < to; i++) {
        const uint64_t d = c.distance(i);
        ties += d == c.at;
        mine += d < c.at ? choose_weight(d) : 0;
    }
    const uint64_t earlier = sum_before(c.s, ties, &all);
    const uint64_t out = all > c.n_at ? all - c.n_at : 0;  /* ties left out, the first ones */
    const uint64_t skip = out > earlier ? (out - earlier < ties ? out - earlier : ties) : 0;
    mine += (ties - skip) * choose_weight(c.at);
    const uint64_t seen = sum_before(c.s, mine, &all), want = choose_below(sum, bits);
    if (seen <= want && want < seen + mine) c.s->token = walk(c, from, to, skip, seen, want);
    __syncthreads();
    return c.s->token;
}

__global__ __launch_bounds__(CHOOSERS) void choose(int32_t *token, const float *logits, const choice *hows, int n)
{
    __shared__ chooser_shared s;
    const choice how = hows[blockIdx.x];
    chooser c = { &s, logits + (int64_t)blockIdx.x * n, n, 0, how.scale, CHOOSE_OUT, UINT64_MAX };
    if (how.slot < 0) return;
    int best = largest(&s, c.x, n, &c.most);
    if (best >= 0 && how.scale > 0) {
        uint64_t sum, mine = 0;
        if (how.top_k > 0 && reach(c, false, (uint64_t)how.top_k)) c.at = s.at;
        for (int i = (int)threadIdx.x; i < n; i += CHOOSERS) {
            const uint64_t d = c.distance(i);
            mine += d <= c.at ? choose_weight(d) : 0;
        }
        sum_before(&s, mine, &sum);
        if (how.rest > 0) {
            const uint64_t target = choose_target(sum, how.rest);
            reach(c, true, target);
            const uint64_t w = choose_weight(s.at);
            c.at = s.at;
            c.n_at = (target - s.before + w - 1) / w;
            sum = s.before + c.n_at * w;
        }
        best = draw(c, sum, how.draw);
    }
    if (threadIdx.x == 0) token[how.slot] = best;
}

void gpu_choose(struct kctx *kc, struct tensor token, struct tensor logits, struct tensor how)
{
    const int64_t T = tensor_rows(logits), V = tensor_cols(logits);
    ASSERT(logits.type == DT_F32 && V <= CHOOSE_V_MAX);
    gpu_launch(choose, dim3((unsigned)T), CHOOSERS, 0, stream_of(kc), (int32_t *)token.p, (const float *)logits.p,
               (const choice *)how.p, (int)V);
}

__global__ __launch_bounds__(BLOCK) void tokens_get(int32_t *y, const int32_t *chosen, const int32_t *idx, int n)
{
    const int i = (int)(blockIdx.x * BLOCK + threadIdx.x);
    if (i < n) y[i] = idx[i] < -1 ? chosen[-2 - idx[i]] : idx[i];
}

void gpu_tokens_get(struct kctx *kc, struct tensor y, struct tensor chosen, struct tensor idx)
{
    const int64_t n = tensor_count(idx);
    gpu_launch(tokens_get, dim3((unsigned)ceil_div(n, BLOCK)), BLOCK, 0, stream_of(kc), (int32_t *)y.p,
               (const int32_t *)chosen.p, (const int32_t *)idx.p, (int)n);
}
