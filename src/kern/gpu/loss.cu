/* Cross entropy over the vocabulary: a block has one row. Scratch: none. */
#include "kern/gpu/num.h"

/* The mean of x[v] less x[want]. */
template <class A>
static __device__ float mean_over(const A *logits, int64_t want, int64_t v, bool wide)
{
    float x[LANES], sum = 0;
    const float one = gpu_float(logits[want]);
    for (int64_t i = LANES * (int64_t)threadIdx.x; i < v; i += LANES * BLOCK) {
        load8(x, logits, i, v, wide);
#pragma unroll
        for (int j = 0; j < LANES; j++) sum += i + j < v ? x[j] - one : 0.0f;
    }
    return block_sum(sum) / (float)v;
}

/* The largest logit is left out of the sum, which is then added to its 1 by log1p: a loss near 0 keeps its
 * digits. */
template <class A>
__global__ __launch_bounds__(BLOCK) void xent(view loss, view lse, const A *logits, const int32_t *target,
                                              int64_t v, bool wide, float smooth)
{
    const int64_t row = blockIdx.x, want = target[row];
    float x[LANES], top = -INFINITY, sum = 0;
    int64_t at = v; /* of this thread's largest */
    logits += row * v;
    if (want < 0) { /* an ignored row has neither */
        if (threadIdx.x == 0) view_put(loss, row, 0), view_put(lse, row, 0);
        return;
    }
    for (int64_t i = LANES * (int64_t)threadIdx.x; i < v; i += LANES * BLOCK) {
        load8(x, logits, i, v, wide);
#pragma unroll
        for (int j = 0; j < LANES; j++)
            if (i + j < v && x[j] > top) top = x[j], at = i + j;
    }
    const float all = block_max(top);
    const int64_t first = (int64_t)-block_max(top == all ? -(float)at : -(float)v); /* v < 2^24 */
    for (int64_t i = LANES * (int64_t)threadIdx.x; i < v; i += LANES * BLOCK) {
        load8(x, logits, i, v, wide);
#pragma unroll
        for (int j = 0; j < LANES; j++) sum += i + j < v && i + j != first ? expf(x[j] - all) : 0.0f;
    }
    sum = log1pf(block_sum(sum));
    const float shared = smooth > 0 ? smooth * mean_over(logits, want, v, wide) : 0.0f;
    if (threadIdx.x) return;
    view_put(lse, row, all + sum);
    view_put(loss, row, all - gpu_float(logits[want]) + sum - shared);
}

void gpu_xent_fwd(struct kctx *kc, struct tensor loss, struct tensor lse, struct tensor logits,
                  struct tensor target, float smooth)
{
    const int64_t T = tensor_rows(logits), V = tensor_cols(logits);
    if (T)
        GPU_BY_TYPE(logits.type, A,
                    gpu_launch((xent<A>), dim3((unsigned)T), BLOCK, 0, stream_of(kc), view_of(loss),
                               view_of(lse), (const A *)logits.p, (const int32_t *)target.p, V,
                               is_wide(V, logits), smooth));
}

template <class A>
__global__ __launch_bounds__(BLOCK) void xent_back(A *dlogits, view dloss, const A *logits, view lse,
                                                   const int32_t *target, int64_t v, bool wide, bool fresh,
                                                   float smooth)
{
    const int64_t row = blockIdx.x, want = target[row],
                  i = LANES * ((int64_t)blockIdx.y * BLOCK + threadIdx.x);
    float x[LANES], d[LANES] = { 0 };
    if (i >= v) return;
    if (want < 0) {
        if (fresh) store8(dlogits + row * v, d, i, v, wide);
        return;
    }
    const float scale = view_get(dloss, row), l = view_get(lse, row), all = smooth / (float)v;
    load8(x, logits + row * v, i, v, wide);
    if (!fresh) load8(d, dlogits + row * v, i, v, wide);
#pragma unroll
    for (int j = 0; j < LANES; j++) d[j] += (expf(x[j] - l) - all - (i + j == want ? 1 - smooth : 0.0f)) * scale;
    store8(dlogits + row * v, d, i, v, wide);
}

void gpu_xent_bwd(struct kctx *kc, struct tensor dlogits, struct tensor dloss, struct tensor logits,
                  struct tensor lse, struct tensor target, float smooth)
{
    const int64_t T = tensor_rows(logits), V = tensor_cols(logits);
    const dim3 grid((unsigned)T, (unsigned)ceil_div(V, LANES * BLOCK));
    if (dlogits.p && T)
        GPU_BY_TYPE(logits.type, A,
                    gpu_launch((xent_back<A>), grid, BLOCK, 0, stream_of(kc), (A *)dlogits.p, view_of(dloss),
                               (const A *)logits.p, view_of(lse), (const int32_t *)target.p, V,
                               is_wide(V, logits, dlogits), is_fresh(dlogits), smooth));
}
