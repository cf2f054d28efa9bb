/* Element by element: activations, sums, conversions. Bound by memory; a thread moves 8 elements. Scratch:
 * none. */
#include "kern/gpu/drop.h"
#include "kern/gpu/quant.h"

/* y = op(inputs): as many inputs as the op's call has. y may be one of them. */
template <class A, class Op>
__global__ __launch_bounds__(BLOCK) void map1(A *y, const A *a, int64_t n, bool wide, Op op)
{
    gpu_let_next();
    gpu_wait_for_previous();
    const int64_t i = LANES * ((int64_t)blockIdx.x * BLOCK + threadIdx.x);
    float u[LANES];
    if (i >= n) return;
    load8(u, a, i, n, wide);
#pragma unroll
    for (int j = 0; j < LANES; j++) u[j] = op(u[j]);
    store8(y, u, i, n, wide);
}

template <class A, class Op>
__global__ __launch_bounds__(BLOCK) void map2(A *y, const A *a, const A *b, int64_t n, bool wide, Op op)
{
    gpu_let_next();
    gpu_wait_for_previous();
    const int64_t i = LANES * ((int64_t)blockIdx.x * BLOCK + threadIdx.x);
    float u[LANES], v[LANES];
    if (i >= n) return;
    load8(u, a, i, n, wide);
    load8(v, b, i, n, wide);
#pragma unroll
    for (int j = 0; j < LANES; j++) u[j] = op(u[j], v[j]);
    store8(y, u, i, n, wide);
}

template <class A, class Op>
__global__ __launch_bounds__(BLOCK) void map3(A *y, const A *a, const A *b, const A *c, int64_t n, bool wide,
                                              Op op)
{
    gpu_let_next();
    gpu_wait_for_previous();
    const int64_t i = LANES * ((int64_t)blockIdx.x * BLOCK + threadIdx.x);
    float u[LANES], v[LANES], w[LANES];
    if (i >= n) return;
    load8(u, a, i, n, wide);
    load8(v, b, i, n, wide);
    load8(w, c, i, n, wide);
#pragma unroll
    for (int j = 0; j < LANES; j++) u[j] = op(u[j], v[j], w[j]);
    store8(y, u, i, n, wide);
}

template <class Op> static void run1(struct kctx *kc, struct tensor y, struct tensor a, Op op)
{
    const int64_t n = tensor_count(y);
    const bool wide = is_wide(LANES, y, a);
    if (n)
        GPU_BY_TYPE(y.type, A,
                    gpu_launch_early((map1<A, Op>), blocks_for(n), BLOCK, 0, stream_of(kc), (A *)y.p,
                               (const A *)a.p, n, wide, op));
}

template <class Op>
static void run2(struct kctx *kc, struct tensor y, struct tensor a, struct tensor b, Op op)
{
    const int64_t n = tensor_count(y);
    const bool wide = is_wide(LANES, y, a, b);
    if (n)
        GPU_BY_TYPE(y.type, A,
                    gpu_launch_early((map2<A, Op>), blocks_for(n), BLOCK, 0, stream_of(kc), (A *)y.p,
                               (const A *)a.p, (const A *)b.p, n, wide, op));
}

/* y = op(y, a, b) */
template <class Op>
static void run3(struct kctx *kc, struct tensor y, struct tensor a, struct tensor b, Op op)
{
    const int64_t n = tensor_count(y);
    const bool wide = is_wide(LANES, y, a, b);
    if (n)
        GPU_BY_TYPE(y.type, A,
                    gpu_launch_early((map3<A, Op>), blocks_for(n), BLOCK, 0, stream_of(kc), (A *)y.p,
                               (const A *)y.p, (const A *)a.p, (const A *)b.p, n, wide, op));
}

/* ---- activations */

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

/* Phi(x) through erfc, which keeps its digits where 1 + erf cancels. */
__device__ inline float normal_cdf(float x) { return 0.5f * erfcf(-0.70710678f * x); }
__device__ inline float normal_pdf(float x) { return 0.39894228f * expf(-0.5f * x * x); }

#define QUICK 1.702f

struct swiglu_op {
    __device__ float operator()(float g, float u) const { return g * sigmoid(g) * u; }
};
struct gelu_op {
    __device__ float operator()(float x) const { return x * normal_cdf(x); }
};
struct quick_gelu_op {
    __device__ float operator()(float x) const { return x * sigmoid(QUICK * x); }
};
struct gelu_back_op {
    __device__ float operator()(float dx, float dy, float x) const
    {
        return dx + dy * (normal_cdf(x) + x * normal_pdf(x));
    }
};
struct quick_gelu_back_op {
    __device__ float operator()(float dx, float dy, float x) const
    {
        return dx + dy * sigmoid(QUICK * x) * (1.0f + QUICK * x * sigmoid(-QUICK * x));
    }
};

void gpu_swiglu_fwd(struct kctx *kc, struct tensor y, struct tensor g, struct tensor u)
{
    run2(kc, y, g, u, swiglu_op());
}

template <class A>
__global__ __launch_bounds__(BLOCK) void swiglu_dropped(A *y, A *yd, const A *g, const A *u, int64_t n, bool wide,
                                                        dropping d)
{
    const int64_t i = LANES * ((int64_t)blockIdx.x * BLOCK + threadIdx.x);
    const swiglu_op op{};
    float v[LANES], up[LANES];
    if (i >= n) return;
    load8(v, g, i, n, wide);
    load8(up, u, i, n, wide);
#pragma unroll
    for (int j = 0; j < LANES; j++) v[j] = op(v[j], up[j]);
    if (y) store8(y, v, i, n, wide);
    round8<A>(v);
    drop8(v, i, d);
    store8(yd, v, i, n, wide);
}

void gpu_swiglu_drop(struct kctx *kc, struct tensor y, struct tensor yd, struct tensor g, struct tensor u, float p,
                     uint64_t key)
{
    const int64_t n = tensor_count(yd);
    const bool wide = is_wide(LANES, y, yd, g, u);
    if (n)
        GPU_BY_TYPE(yd.type, A,
                    gpu_launch((swiglu_dropped<A>), blocks_for(n), BLOCK, 0, stream_of(kc), (A *)y.p, (A *)yd.p,
                               (const A *)g.p, (const A *)u.p, n, wide, dropping_of(p, key)));
}

void gpu_gelu_fwd(struct kctx *kc, struct tensor y, struct tensor x) { run1(kc, y, x, gelu_op()); }

void gpu_quick_gelu_fwd(struct kctx *kc, struct tensor y, struct tensor x)
{
    run1(kc, y, x, quick_gelu_op());
}

void gpu_gelu_bwd(struct kctx *kc, struct tensor dx, struct tensor dy, struct tensor x)
{
    if (dx.p) run3(kc, dx, dy, x, gelu_back_op());
}

void gpu_quick_gelu_bwd(struct kctx *kc, struct tensor dx, struct tensor dy, struct tensor x)
{
    if (dx.p) run3(kc, dx, dy, x, quick_gelu_back_op());
}

template <class A>
__global__ __launch_bounds__(BLOCK) void swiglu_back(A *dg, A *du, const A *dy, const A *g, const A *u,
                                                     int64_t n, bool wide, bool new_g, bool new_u)
{
    const int64_t i = LANES * ((int64_t)blockIdx.x * BLOCK + threadIdx.x);
    float d[LANES], x[LANES], up[LANES], a[LANES] = { 0 }, b[LANES] = { 0 };
    if (i >= n) return;
    load8(d, dy, i, n, wide);
    load8(x, g, i, n, wide);
    load8(up, u, i, n, wide);
    if (dg && !new_g) load8(a, dg, i, n, wide);
    if (du && !new_u) load8(b, du, i, n, wide);
#pragma unroll
    for (int j = 0; j < LANES; j++) {
        const float e = expf(-fabsf(x[j])), most = 1.0f / (1.0f + e), least = e * most; /* sigmoids of |x| and -|x| */
        const float s = x[j] < 0 ? least : most, rest = x[j] < 0 ? most : least; /* 1 - s would cancel */
        if (dg) a[j] += d[j] * up[j] * s * (1.0f + x[j] * rest);
        if (du) b[j] += d[j] * x[j] * s;
    }
    if (dg) store8(dg, a, i, n, wide);
    if (du) store8(du, b, i, n, wide);
}

void gpu_swiglu_bwd(struct kctx *kc, struct tensor dg, struct tensor du, struct tensor dy, struct tensor g,
                    struct tensor u)
{
    const int64_t n = tensor_count(dy);
    const bool wide = is_wide(LANES, dg, du, dy, g, u);
    if (!n || (!dg.p && !du.p)) return;
    GPU_BY_TYPE(dy.type, A,
                gpu_launch((swiglu_back<A>), blocks_for(n), BLOCK, 0, stream_of(kc), (A *)dg.p, (A *)du.p,
                           (const A *)dy.p, (const A *)g.p, (const A *)u.p, n, wide, is_fresh(dg), is_fresh(du)));
}

/* ---- sums */

struct add_op {
    __device__ float operator()(float a, float b) const { return a + b; }
};
struct scale_op {
    float a;
    __device__ float operator()(float x) const { return a * x; }
};
struct axpy_op {
    float a;
    __device__ float operator()(float y, float x) const { return y + a * x; }
};

void gpu_add(struct kctx *kc, struct tensor y, struct tensor a, struct tensor b)
{
    run2(kc, y, a, b, add_op());
}

void gpu_axpy(struct kctx *kc, struct tensor y, struct tensor x, float a)
{
    if (is_fresh(y))
        run1(kc, y, x, scale_op{ a });
    else
        run2(kc, y, y, x, axpy_op{ a });
}

/* ---- conversions, copies, zeros */

__global__ __launch_bounds__(BLOCK) void convert(view y, view x, int64_t n, bool wide)
{
    gpu_let_next();
    gpu_wait_for_previous();
    const int64_t i = LANES * ((int64_t)blockIdx.x * BLOCK + threadIdx.x);
    float v[LANES];
    if (i >= n) return;
    load8(v, x, i, n, wide);
    store8(y, v, i, n, wide);
}

/* n bytes, 16 to a thread. x NULL: zeros */
__global__ __launch_bounds__(BLOCK) void copy_bytes(char *y, const char *x, int64_t n, bool wide)
{
    gpu_let_next();
    gpu_wait_for_previous();
    const int64_t i = 16 * ((int64_t)blockIdx.x * BLOCK + threadIdx.x);
    if (wide && i + 16 <= n) {
        const gpu_16bytes none = { { 0, 0, 0, 0 } };
        *(gpu_16bytes *)(y + i) = x ? *(const gpu_16bytes *)(x + i) : none;
    } else {
        for (int64_t j = i; j < i + 16 && j < n; j++) y[j] = x ? x[j] : 0;
    }
}

static void copy(struct kctx *kc, struct tensor y, struct tensor x)
{
    const int64_t n = (int64_t)tensor_bytes(y);
    const bool wide = is_wide(LANES, y, x);
    if (n)
        gpu_launch_early(copy_bytes, dim3((unsigned)ceil_div(n, 16 * BLOCK)), BLOCK, 0, stream_of(kc),
                         (char *)y.p, (const char *)x.p, n, wide);
}

void gpu_cast(struct kctx *kc, struct tensor y, struct tensor x)
{
    const int64_t n = tensor_count(y);
    const bool wide = is_wide(LANES, y, x);
    if (y.type == x.type)
        copy(kc, y, x);
    else if (dtype_is_quant((enum dtype)y.type) || dtype_is_quant((enum dtype)x.type))
        quant_cast(kc, y, x);
    else if (n)
        gpu_launch_early(convert, blocks_for(n), BLOCK, 0, stream_of(kc), view_of(y), view_of(x), n, wide);
}

void gpu_zero(struct kctx *kc, struct tensor y)
{
    struct tensor none = {};
    copy(kc, y, none);
}
