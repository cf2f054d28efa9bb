/* Dropout, the size of gradients, and the optimiser's step. Scratch: sumsq's pieces. */
#include "kern/gpu/drop.h"
#include "kern/code8.h"

template <class A>
__global__ __launch_bounds__(BLOCK) void drop(A *y, const A *x, int64_t n, bool wide, dropping d)
{
    const int64_t i = LANES * ((int64_t)blockIdx.x * BLOCK + threadIdx.x);
    float v[LANES];
    if (i >= n) return;
    load8(v, x, i, n, wide);
    drop8(v, i, d);
    store8(y, v, i, n, wide);
}

void gpu_dropout(struct kctx *kc, struct tensor y, struct tensor x, float p, uint64_t key)
{
    const int64_t n = tensor_count(x);
    GPU_BY_TYPE(x.type, A,
                gpu_launch(drop<A>, blocks_for(n), BLOCK, 0, stream_of(kc), (A *)y.p, (const A *)x.p, n,
                           is_wide(LANES, y, x), dropping_of(p, key)));
}

template <class A>
__global__ __launch_bounds__(BLOCK) void drop_back(A *dx, const A *dy, int64_t n, bool wide, bool fresh,
                                                   dropping how)
{
    const int64_t i = LANES * ((int64_t)blockIdx.x * BLOCK + threadIdx.x);
    float d[LANES] = { 0 }, v[LANES];
    if (i >= n) return;
    if (!fresh) load8(d, dx, i, n, wide);
    load8(v, dy, i, n, wide);
    drop8(v, i, how);
#pragma unroll
    for (int j = 0; j < LANES; j++) d[j] += v[j];
    store8(dx, d, i, n, wide);
}

void gpu_dropout_bwd(struct kctx *kc, struct tensor dx, struct tensor dy, float p, uint64_t key)
{
    const int64_t n = tensor_count(dx);
    if (!dx.p) return;
    GPU_BY_TYPE(dx.type, A,
                gpu_launch(drop_back<A>, blocks_for(n), BLOCK, 0, stream_of(kc), (A *)dx.p, (const A *)dy.p, n,
                           is_wide(LANES, dx, dy), is_fresh(dx), dropping_of(p, key)));
}

enum { PIECES = (int)BLOCK }; /* a thread has one in the end */

__device__ inline double block_sum_double(double v)
{
    __shared__ double part[BLOCK];
    part[threadIdx.x] = v;
    for (int near = BLOCK / 2; near > 0; near /= 2) {
        __syncthreads();
        if ((int)threadIdx.x < near) part[threadIdx.x] += part[threadIdx.x + near];
    }
    __syncthreads();
    return part[0];
}

__global__ __launch_bounds__(BLOCK) void squares(double *piece, view x, int64_t n, bool wide)
{
    double sum = 0;
    float v[LANES];
    for (int64_t i = LANES * ((int64_t)blockIdx.x * BLOCK + threadIdx.x); i < n;
         i += (int64_t)LANES * BLOCK * PIECES) {
        load8(v, x, i, n, wide);
#pragma unroll
        for (int j = 0; j < LANES; j++) sum += (double)v[j] * (double)v[j];
    }
    sum = block_sum_double(sum);
    if (threadIdx.x == 0) piece[blockIdx.x] = sum;
}

__global__ __launch_bounds__(BLOCK) void squares_sum(view y, const double *piece)
{
    const double sum = block_sum_double(piece[threadIdx.x]);
    if (threadIdx.x == 0) view_put(y, 0, (float)sum);
}

void gpu_sumsq(struct kctx *kc, struct tensor y, struct tensor x)
{
    const size_t mark = arena_mark(kc->scratch);
    double *piece = (double *)arena_take(kc->scratch, PIECES * sizeof(double));
    gpu_launch(squares, PIECES, BLOCK, 0, stream_of(kc), piece, view_of(x), tensor_count(x),
               is_wide(LANES, x));
    gpu_launch(squares_sum, 1, BLOCK, 0, stream_of(kc), view_of(y), piece);
    arena_rewind(kc->scratch, mark);
}

__global__ __launch_bounds__(BLOCK) void adamw_step(float *w, float *m, float *v, view low, view g, int64_t n,
                                                    adamw a, bool wide)
{
    const int64_t i = LANES * ((int64_t)blockIdx.x * BLOCK + threadIdx.x);
    float wi[LANES], mi[LANES], vi[LANES], d[LANES];
    if (i >= n) return;
    load8(wi, w, i, n, wide);
    load8(mi, m, i, n, wide);
    load8(vi, v, i, n, wide);
    load8(d, g, i, n, wide);
#pragma unroll
    for (int j = 0; j < LANES; j++) {
        d[j] *= a.scale;
        mi[j] = a.beta1 * mi[j] + (1 - a.beta1) * d[j];
        vi[j] = a.beta2 * vi[j] + (1 - a.beta2) * d[j] * d[j];
        wi[j] = wi[j] * (1 - a.lr * a.decay) - a.lr / a.fix1 * mi[j] / (sqrtf(vi[j] / a.fix2) + a.eps);
    }
    store8(m, mi, i, n, wide);
    store8(v, vi, i, n, wide);
    store8(w, wi, i, n, wide);
    if (low.p) store8(low, wi, i, n, wide);
}

void gpu_adamw(struct kctx *kc, struct tensor w, struct tensor m, struct tensor v, struct tensor low,
               struct tensor g, const struct adamw *a)
{
    const int64_t n = tensor_count(w);
    gpu_launch(adamw_step, blocks_for(n), BLOCK, 0, stream_of(kc), (float *)w.p, (float *)m.p, (float *)v.p,
               view_of(low), view_of(g), n, *a, is_wide(LANES, w, m, v, low, g));
}

/* A group of GROUP threads has one block of codes, LANES elements each. */
enum { GROUP = KERN_BLOCK8 / LANES };
static_assert(GROUP <= GPU_WARP && GPU_WARP % GROUP == 0, "a group exchanges within its warp");

__device__ inline float group_max(float v)
{
#pragma unroll
    for (int m = GROUP / 2; m > 0; m /= 2) v = fmaxf(v, gpu_shfl_xor(v, m));
    return v;
}

__device__ inline void codes_get(uint8_t (&c)[LANES], const uint8_t *p, int64_t i, int64_t n)
{
    if (i + LANES <= n) memcpy(c, __builtin_assume_aligned(p + i, LANES), LANES);
    else
        for (int j = 0; j < LANES; j++) c[j] = i + j < n ? p[i + j] : 0;
}

/* New codes of the group's moments, and their scale. */
__device__ inline void codes_put(uint8_t *p, float *scale, const float (&x)[LANES], int64_t i, int64_t n,
                                 bool is_signed)
{
    float most = 0;
    uint8_t c[LANES];
#pragma unroll
    for (int j = 0; j < LANES; j++) most = fmaxf(most, fabsf(x[j]));
    most = group_max(most);
    const float inverse = most > 0 ? 1 / most : 0;
#pragma unroll
    for (int j = 0; j < LANES; j++) c[j] = code8_of(x[j] * inverse, is_signed);
    if (i + LANES <= n) memcpy(__builtin_assume_aligned(p + i, LANES), c, LANES);
    else
        for (int j = 0; j < LANES && i + j < n; j++) p[i + j] = c[j];
    if (i < n && threadIdx.x % GROUP == 0) scale[i / KERN_BLOCK8] = most;
}

__global__ __launch_bounds__(BLOCK) void adamw8_step(view w, uint8_t *m, float *ms, uint8_t *v, float *vs, view g,
                                                     int64_t n, adamw a, bool wide)
{
    const int64_t i = LANES * ((int64_t)blockIdx.x * BLOCK + threadIdx.x);
    const int64_t at = i < n ? i : 0; /* those past the end stay: a group exchanges */
    float wi[LANES], mi[LANES], vi[LANES], d[LANES];
    uint8_t cm[LANES], cv[LANES];
    load8(wi, w, at, n, wide);
    load8(d, g, at, n, wide);
    codes_get(cm, m, at, n);
    codes_get(cv, v, at, n);
    const float sm = ms[at / KERN_BLOCK8], sv = vs[at / KERN_BLOCK8];
#pragma unroll
    for (int j = 0; j < LANES; j++) {
        const bool there = i + j < n;
        d[j] *= a.scale;
        mi[j] = there ? a.beta1 * sm * code8_value(cm[j], true) + (1 - a.beta1) * d[j] : 0;
        vi[j] = there ? a.beta2 * sv * code8_value(cv[j], false) + (1 - a.beta2) * d[j] * d[j] : 0;
        wi[j] = wi[j] * (1 - a.lr * a.decay) - a.lr / a.fix1 * mi[j] / (sqrtf(vi[j] / a.fix2) + a.eps);
    }
    codes_put(m, ms, mi, i, n, true);
    codes_put(v, vs, vi, i, n, false);
    if (w.type != DT_BF16) {
        store8(w, wi, i, n, wide && i < n);
        return;
    }
    for (int j = 0; j < LANES && i + j < n; j++)
        ((uint16_t *)w.p)[i + j] = kern_bf16_random(wi[j], kern_drop_hash(a.key, (uint32_t)(i + j)));
}

void gpu_adamw8(struct kctx *kc, struct tensor w, struct tensor m, struct tensor ms, struct tensor v, struct tensor vs,
                struct tensor g, const struct adamw *a)
{
    const int64_t n = tensor_count(w);
    gpu_launch(adamw8_step, blocks_for(n), BLOCK, 0, stream_of(kc), view_of(w), (uint8_t *)m.p, (float *)ms.p,
               (uint8_t *)v.p, (float *)vs.p, view_of(g), n, *a, is_wide(LANES, w, g));
}
