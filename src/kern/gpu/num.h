/* What all GPU kernels share: numbers of any float type as floats, eight at a time; sums over warps and
 * blocks; views that kernels take as arguments; and how a launch chooses its types.
 *
 * A thread works on 8 neighbours. They are moved with 16-byte accesses where the host found that every row
 * starts on 16 bytes ("wide"), one by one otherwise, so one body serves odd sizes too. Activations are a
 * template type, since kernels are made of them; a weight, a gradient of a weight or a store may be of any
 * type and is looked at when it is read ("view"): the choice is the same for the whole launch, so it costs
 * nothing beside the memory. All sums and functions are f32. */
#pragma once
#include <math.h>

#include "dev/gpu.h"
#define KERN_FN static inline __host__ __device__
extern "C" {
#include "kern/kern.h"
}

enum { LANES = 8, BLOCK = 256 };

/* ---- eight numbers */

struct alignas(16) gpu_16bytes {
    uint32_t u[4];
};

template <class T> struct gpu_pack {
    T v[LANES];
};
static_assert(sizeof(gpu_bf16) == 2 && sizeof(gpu_f16) == 2, "types of two bytes");

/* p[0..8), aligned to 16 bytes, as they are. */
template <class T> __device__ inline gpu_pack<T> pack_load(const T *p)
{
    union {
        gpu_pack<T> t;
        gpu_16bytes b[sizeof(gpu_pack<T>) / 16];
    } u;
#pragma unroll
    for (int i = 0; i < (int)(sizeof u / 16); i++) u.b[i] = ((const gpu_16bytes *)p)[i];
    return u.t;
}

/* 16 bytes of memory that no kernel writes and that is read once: they need not stay in the first-level
 * cache. */
__device__ inline gpu_16bytes bytes_load_once(const void *p)
{
    gpu_16bytes b;
#if GPU_HAS_MMA
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(b.u[0]), "=r"(b.u[1]), "=r"(b.u[2]), "=r"(b.u[3])
                 : "l"(p));
#else
    b = *(const gpu_16bytes *)p;
#endif
    return b;
}

template <class T> __device__ inline gpu_pack<T> pack_load_once(const T *p)
{
    union {
        gpu_pack<T> t;
        gpu_16bytes b[sizeof(gpu_pack<T>) / 16];
    } u;
#pragma unroll
    for (int i = 0; i < (int)(sizeof u / 16); i++) u.b[i] = bytes_load_once((const gpu_16bytes *)p + i);
    return u.t;
}

template <class T> __device__ inline void pack_store(T *p, const gpu_pack<T> &v)
{
    union {
        gpu_pack<T> t;
        gpu_16bytes b[sizeof(gpu_pack<T>) / 16];
    } u;
    u.t = v;
#pragma unroll
    for (int i = 0; i < (int)(sizeof u / 16); i++) ((gpu_16bytes *)p)[i] = u.b[i];
}

/* v = p[i..i+8) of a row of n; zeros beyond its end. */
template <class T>
__device__ inline void load8(float (&v)[LANES], const T *p, int64_t i, int64_t n, bool wide)
{
    if (wide && i + LANES <= n) {
        const gpu_pack<T> b = pack_load(p + i);
#pragma unroll
        for (int j = 0; j < LANES; j++) v[j] = gpu_float(b.v[j]);
    } else {
#pragma unroll
        for (int j = 0; j < LANES; j++) v[j] = i + j < n ? gpu_float(p[i + j]) : 0.0f;
    }
}

template <class T>
__device__ inline void store8(T *p, const float (&v)[LANES], int64_t i, int64_t n, bool wide)
{
    if (wide && i + LANES <= n) {
        gpu_pack<T> b;
#pragma unroll
        for (int j = 0; j < LANES; j++) b.v[j] = gpu_from<T>(v[j]);
        pack_store(p + i, b);
    } else {
#pragma unroll
        for (int j = 0; j < LANES; j++)
            if (i + j < n) p[i + j] = gpu_from<T>(v[j]);
    }
}

/* ---- copies of 16 bytes from device to shared memory that do not pass through registers, where the card has such:
 * they are there when copy_wait has been called, and for other threads behind a barrier that follows. Each thread's
 * copies between two commits are a group. */

#if GPU_HAS_MMA
__device__ inline uint32_t shared_at(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

/* Or zeros. */
__device__ inline void copy_16(uint32_t to, const void *from, bool there)
{
    const int n = there ? 16 : 0;
    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(n) : "memory");
}
__device__ inline void bytes_copy(gpu_16bytes *to, const void *from, bool there = true)
{
    copy_16(shared_at(to), from, there);
}
/* 1, 2 or 4 words. */
template <int n> __device__ inline void words_copy(uint32_t *to, const void *from)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_at(to)), "l"(from), "n"(4 * n) : "memory");
}
__device__ inline void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/* Until at most n of this thread's groups are under way. */
template <int n> __device__ inline void copy_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
}
#else
__device__ inline void bytes_copy(gpu_16bytes *to, const void *from, bool there = true)
{
    *to = there ? *(const gpu_16bytes *)from : gpu_16bytes{};
}
template <int n> __device__ inline void words_copy(uint32_t *to, const void *from)
{
    for (int i = 0; i < n; i++) to[i] = ((const uint32_t *)from)[i];
}
__device__ inline void copy_commit() {}
template <int n> __device__ inline void copy_wait() {}
#endif

/* 2^x; what is too small for a normal number may be 0. */
__device__ inline float exp2_fast(float x)
{
#if GPU_HAS_MMA
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}

/* ---- numbers of a type that is known at run time. p NULL: absent */

struct view {
    char *p;
    int type;
};

static inline bool is_fresh(struct tensor t) { return t.id == TENSOR_FRESH; }
static inline view view_of(struct tensor t) { return { (char *)t.p, t.type }; }

/* Element i and what follows it. */
__device__ inline view view_at(view a, int64_t i) { return { a.p + i * (a.type == DT_F32 ? 4 : 2), a.type }; }

__device__ inline float view_get(view a, int64_t i)
{
    if (a.type == DT_F32) return ((const float *)a.p)[i];
    if (a.type == DT_BF16) return gpu_float(((const gpu_bf16 *)a.p)[i]);
    return gpu_float(((const gpu_f16 *)a.p)[i]);
}

__device__ inline void view_put(view a, int64_t i, float v)
{
    if (a.type == DT_F32)
        ((float *)a.p)[i] = v;
    else if (a.type == DT_BF16)
        ((gpu_bf16 *)a.p)[i] = gpu_from<gpu_bf16>(v);
    else
        ((gpu_f16 *)a.p)[i] = gpu_from<gpu_f16>(v);
}

__device__ inline void load8(float (&v)[LANES], view a, int64_t i, int64_t n, bool wide)
{
    if (a.type == DT_F32)
        load8(v, (const float *)a.p, i, n, wide);
    else if (a.type == DT_BF16)
        load8(v, (const gpu_bf16 *)a.p, i, n, wide);
    else
        load8(v, (const gpu_f16 *)a.p, i, n, wide);
}

/* Numbers of a known type, in rows that may be moved 16 bytes at a time. */
template <class T> struct plain_row {
    const T *p;
};
template <class T> __device__ inline void load8(float (&v)[LANES], plain_row<T> a, int64_t i, int64_t n, bool)
{
    load8(v, a.p, i, n, true);
}
template <class X> __device__ inline X row_as(view a) { return { (decltype(X::p))a.p }; }
template <> __device__ inline view row_as<view>(view a) { return a; }

__device__ inline void store8(view a, const float (&v)[LANES], int64_t i, int64_t n, bool wide)
{
    if (a.type == DT_F32)
        store8((float *)a.p, v, i, n, wide);
    else if (a.type == DT_BF16)
        store8((gpu_bf16 *)a.p, v, i, n, wide);
    else
        store8((gpu_f16 *)a.p, v, i, n, wide);
}

/* ---- sums and maxima; every thread gets the result. Blocks are whole warps, at most 1,024 threads */

__device__ inline float warp_sum(float v)
{
#pragma unroll
    for (int m = GPU_WARP / 2; m > 0; m /= 2) v += gpu_shfl_xor(v, m);
    return v;
}

__device__ inline float warp_max(float v)
{
#pragma unroll
    for (int m = GPU_WARP / 2; m > 0; m /= 2) v = fmaxf(v, gpu_shfl_xor(v, m));
    return v;
}

__device__ inline float block_sum(float v)
{
    __shared__ float part[1024 / 32];
    const int lane = (int)threadIdx.x % GPU_WARP, warp = (int)threadIdx.x / GPU_WARP;
    v = warp_sum(v);
    __syncthreads(); /* an earlier call may still be reading */
    if (lane == 0) part[warp] = v;
    __syncthreads();
    return warp_sum(lane < (int)blockDim.x / GPU_WARP ? part[lane] : 0.0f);
}

__device__ inline float block_max(float v)
{
    __shared__ float part[1024 / 32];
    const int lane = (int)threadIdx.x % GPU_WARP, warp = (int)threadIdx.x / GPU_WARP;
    v = warp_max(v);
    __syncthreads();
    if (lane == 0) part[warp] = v;
    __syncthreads();
    return warp_max(lane < (int)blockDim.x / GPU_WARP ? part[lane] : -INFINITY);
}

/* ---- the host's side of a launch */

static inline gpu(Stream_t) stream_of(const struct kctx *kc) { return gpu_stream_of(kc->dev); }

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Blocks for n elements, LANES to a thread. */
static inline dim3 blocks_for(int64_t n) { return dim3((unsigned)ceil_div(n, LANES * BLOCK)); }

/* Whether rows of `cols` elements may be moved 16 bytes at a time in each of these tensors. */
static inline bool is_wide(int64_t cols) { return cols % LANES == 0; }
template <class... R> static inline bool is_wide(int64_t cols, struct tensor t, R... rest)
{
    return (uintptr_t)t.p % 16 == 0 && is_wide(cols, rest...);
}

/* Runs the statement with A as the C++ type of `type`. */
#define GPU_BY_TYPE(type, A, ...)                                                        \
    do {                                                                                 \
        switch ((int)(type)) {                                                           \
        case DT_F32: {                                                                   \
            typedef float A;                                                             \
            __VA_ARGS__;                                                                 \
            break;                                                                       \
        }                                                                                \
        case DT_BF16: {                                                                  \
            typedef gpu_bf16 A;                                                          \
            __VA_ARGS__;                                                                 \
            break;                                                                       \
        }                                                                                \
        case DT_F16: {                                                                   \
            typedef gpu_f16 A;                                                           \
            __VA_ARGS__;                                                                 \
            break;                                                                       \
        }                                                                                \
        default: BUG("%s is not a type of this device", dtype_name((enum dtype)(type))); \
        }                                                                                \
    } while (0)

/* ---- the kernels by file; contracts are in kern.h, the table is in table.cu */

#define GPU_MAP(XX)    \
    XX(matmul)         \
    XX(matmul_dx)      \
    XX(matmul_dw)      \
    XX(rmsnorm_fwd)    \
    XX(rmsnorm_bwd)    \
    XX(layernorm_fwd)  \
    XX(layernorm_bwd)  \
    XX(rope)           \
    XX(attn_fwd)       \
    XX(attn_bwd)       \
    XX(swiglu_fwd)     \
    XX(swiglu_bwd)     \
    XX(gelu_fwd)       \
    XX(gelu_bwd)       \
    XX(quick_gelu_fwd) \
    XX(quick_gelu_bwd) \
    XX(add)            \
    XX(axpy)           \
    XX(cast)           \
    XX(zero)           \
    XX(rows_get)       \
    XX(rows_put)       \
    XX(rows_get_add)   \
    XX(rows_put_add)   \
    XX(patchify_fwd)   \
    XX(patchify_bwd)   \
    XX(xent_fwd)       \
    XX(xent_bwd)       \
    XX(choose)         \
    XX(tokens_get)     \
    XX(dropout)        \
    XX(dropout_bwd)    \
    XX(sumsq)          \
    XX(adamw)          \
    XX(adamw8)         \
    XX(rmsnorm_drop)   \
    XX(swiglu_drop)    \
    XX(norm_matmul)    \
    XX(norm_glu)       \
    XX(matmul_each)    \
    XX(rope_store)     \
    XX(rope_attn)

#define XX(name) __typeof__(*(((struct kern *)0)->name)) gpu_##name;
GPU_MAP(XX)
#undef XX
