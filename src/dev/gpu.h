/* The only file that knows which GPU language this is. Kernels are written once, in .cu files:
 *
 *   nvcc: CUDA            hipcc: HIP (AMD, Hygon)            g++ -DGPU_EMU: emulation on the CPU (emu.h)
 *
 * gpu(Name) is the runtime's function or type of that name. GPU_WARP is the number of lanes of a warp, a build flag and
 * never an architecture macro: the host pass does not see those, and the host computes grids with it. Every kernel
 * states __launch_bounds__: more than 256 threads without it is undefined on some cards. Warp primitives want all lanes
 * of the warp.
 *
 * GPU_HAS_MMA: there are NVIDIA's matrix units. GPU_HAS_WGMMA: sm_90a is among what is built (a build flag).
 * GPU_COPIES: copies into shared memory may be under way while a thread goes on (the emulator makes believe); else it
 * is not worth having room for many.
 */
#pragma once
#ifndef GPU_WARP
#error "pass -DGPU_WARP=32 or -DGPU_WARP=64"
#endif
#include <math.h>
#include <stdint.h>
#include <string.h>

extern "C" {
#include "base/err.h"
#include "dev/dev.h"
#include "tensor/tensor.h"
}

#if defined(GPU_EMU)
#include "dev/emu.h"
#define gpu(name) emu##name
#define GPU_KIND "emu"
#define GPU_HAS_MMA 0
#define GPU_HAS_WGMMA 0
#define GPU_COPIES 1
typedef emuDeviceProp gpu_properties;
static inline emuError_t gpu_host_alloc(void **p, size_t n)
{
    if (const emuError_t rc = emu_fault(true)) return rc;
    return (*p = malloc(n)) ? emuSuccess : emuErrorMemoryAllocation;
}
static inline emuError_t gpu_host_free(void *p) { return free(p), emuSuccess; }
#elif defined(__HIPCC__)
#include <hip/hip_runtime.h>
#define gpu(name) hip##name
#define GPU_KIND "hip"
#define GPU_HAS_MMA 0
#define GPU_HAS_WGMMA 0
#define GPU_COPIES 0
typedef hipDeviceProp_t gpu_properties;
#define hipErrorMemoryAllocation hipErrorOutOfMemory
static inline hipError_t gpu_host_alloc(void **p, size_t n) { return hipHostMalloc(p, n, hipHostMallocDefault); }
static inline hipError_t gpu_host_free(void *p) { return hipHostFree(p); }
#if defined(__HIP_DEVICE_COMPILE__) && defined(__AMDGCN_WAVEFRONT_SIZE) && __AMDGCN_WAVEFRONT_SIZE != GPU_WARP
#error "GPU_WARP is not this architecture's"
#endif
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define gpu(name) cuda##name
#define GPU_KIND "cuda"
#define GPU_HAS_MMA 1
#ifndef GPU_HAS_WGMMA
#define GPU_HAS_WGMMA 0
#endif
#define GPU_COPIES 1
typedef cudaDeviceProp gpu_properties;
static inline cudaError_t gpu_host_alloc(void **p, size_t n) { return cudaHostAlloc(p, n, cudaHostAllocDefault); }
static inline cudaError_t gpu_host_free(void *p) { return cudaFreeHost(p); }
#endif

/* ---- warps. lane < GPU_WARP. */

#if defined(GPU_EMU)
template <class T> static inline T gpu_shfl(T v, int lane) { return emu_exchange(v, lane); }
template <class T> static inline T gpu_shfl_xor(T v, int m) { return emu_exchange(v, emu_lane() ^ m); }
template <class T> static inline T gpu_shfl_down(T v, int n) { return emu_exchange(v, emu_lane() + n); }
static inline uint64_t gpu_ballot(bool b) { return emu_ballot(b); }
static inline void gpu_sync_warp() { emu_sync_warp(); }
#elif defined(__HIPCC__)
template <class T> __device__ inline T gpu_shfl(T v, int lane) { return __shfl(v, lane, GPU_WARP); }
template <class T> __device__ inline T gpu_shfl_xor(T v, int m) { return __shfl_xor(v, m, GPU_WARP); }
template <class T> __device__ inline T gpu_shfl_down(T v, int n) { return __shfl_down(v, (unsigned)n, GPU_WARP); }
__device__ inline uint64_t gpu_ballot(bool b) { return __ballot(b); }
__device__ inline void gpu_sync_warp() { __builtin_amdgcn_wave_barrier(); }
#else
template <class T> __device__ inline T gpu_shfl(T v, int lane) { return __shfl_sync(0xffffffffu, v, lane); }
template <class T> __device__ inline T gpu_shfl_xor(T v, int m) { return __shfl_xor_sync(0xffffffffu, v, m); }
template <class T> __device__ inline T gpu_shfl_down(T v, int n) { return __shfl_down_sync(0xffffffffu, v, n); }
__device__ inline uint64_t gpu_ballot(bool b) { return __ballot_sync(0xffffffffu, b); }
__device__ inline void gpu_sync_warp() { __syncwarp(); }
#endif

/* ---- numbers of 16 bits: storage only; arithmetic is float's. Rounding is to nearest, ties to even. */

struct gpu_bf16 { uint16_t bits; };
struct gpu_f16 { uint16_t bits; };

__device__ inline float gpu_float(float x) { return x; }
template <class T> __device__ inline T gpu_from(float x);
template <> __device__ inline float gpu_from<float>(float x) { return x; }
#if defined(GPU_EMU)
static inline float gpu_float(gpu_bf16 x) { return bf16_to_f32(x.bits); }
static inline float gpu_float(gpu_f16 x) { return f16_to_f32(x.bits); }
template <> inline gpu_bf16 gpu_from<gpu_bf16>(float x) { return { f32_to_bf16(x) }; }
template <> inline gpu_f16 gpu_from<gpu_f16>(float x) { return { f32_to_f16(x) }; }
#elif defined(__HIPCC__)
__device__ inline float gpu_float(gpu_bf16 x) { return __uint_as_float((uint32_t)x.bits << 16); }
__device__ inline float gpu_float(gpu_f16 x) { return (float)__builtin_bit_cast(_Float16, x.bits); }
template <> __device__ inline gpu_bf16 gpu_from<gpu_bf16>(float x)
{
    const uint32_t u = __float_as_uint(x), even = u >> 16 & 1;
    return { (uint16_t)(x != x ? u >> 16 | 0x40 : (u + 0x7fff + even) >> 16) };
}
template <> __device__ inline gpu_f16 gpu_from<gpu_f16>(float x)
{
    return { __builtin_bit_cast(uint16_t, (_Float16)x) };
}
#else
__device__ inline float gpu_float(gpu_bf16 x) { return __uint_as_float((uint32_t)x.bits << 16); }
__device__ inline float gpu_float(gpu_f16 x) { return __half2float(__ushort_as_half(x.bits)); }
template <> __device__ inline gpu_bf16 gpu_from<gpu_bf16>(float x)
{
    return { __bfloat16_as_ushort(__float2bfloat16_rn(x)) };
}
template <> __device__ inline gpu_f16 gpu_from<gpu_f16>(float x) { return { __half_as_ushort(__float2half_rn(x)) }; }
#endif

/* ---- four bytes in a word, the lowest first, and sums that another processor must give too
 *
 * gpu_lookup4   byte k is byte i_k of the 16 in t, i_k being the k-th 4 bits of `at`, of which the low 16 bits
 *               count; all of t's are below 128
 * gpu_bytes     byte k is byte i_k of a and b, of which a has the lower four, i_k being the k-th 4 bits of `at`
 * gpu_dot4      c + a . b, signed
 * gpu_dot4_of   c + gpu_lookup4(t, at) . b
 * gpu_mul, gpu_add: rounded one by one, never joined */

#if defined(GPU_EMU)
static inline uint32_t gpu_lookup4(const uint32_t (&t)[4], uint32_t at)
{
    uint32_t r = 0;
    for (int k = 0; k < 4; k++) r |= (t[at >> (4 * k + 2) & 3] >> 8 * (at >> 4 * k & 3) & 0xff) << 8 * k;
    return r;
}
static inline uint32_t gpu_bytes(uint32_t a, uint32_t b, uint32_t at)
{
    uint32_t r = 0;
    for (int k = 0; k < 4; k++) r |= (uint32_t)(((uint64_t)b << 32 | a) >> 8 * (at >> 4 * k & 7) & 0xff) << 8 * k;
    return r;
}
static inline int gpu_dot4(uint32_t a, uint32_t b, int c)
{
    for (int k = 0; k < 32; k += 8) c += (int)(int8_t)(a >> k) * (int8_t)(b >> k);
    return c;
}
static inline int gpu_dot4_of(const uint32_t (&t)[4], uint32_t at, uint32_t b, int c)
{
    return gpu_dot4(gpu_lookup4(t, at), b, c);
}
static inline float gpu_mul(float a, float b) { return a * b; }
static inline float gpu_add(float a, float b) { return a + b; }
#elif defined(__HIPCC__)
__device__ inline uint32_t gpu_lookup4(const uint32_t (&t)[4], uint32_t at)
{
    const uint32_t pairs = (at | at << 8) & 0x00ff00ffu, i = (pairs | pairs << 4) & 0x0f0f0f0fu, low = i & 0x07070707u;
    const uint32_t upper = (i >> 3 & 0x01010101u) * 0xffu;
    return (__builtin_amdgcn_perm(t[1], t[0], low) & ~upper) | (__builtin_amdgcn_perm(t[3], t[2], low) & upper);
}
__device__ inline uint32_t gpu_bytes(uint32_t a, uint32_t b, uint32_t at)
{
    return __builtin_amdgcn_perm(b, a, (at & 7) | (at & 0x70) << 4 | (at & 0x700) << 8 | (at & 0x7000) << 12);
}
__device__ inline int gpu_dot4(uint32_t a, uint32_t b, int c)
{
#pragma unroll
    for (int k = 0; k < 32; k += 8) c += (int)(int8_t)(a >> k) * (int8_t)(b >> k);
    return c;
}
__device__ inline int gpu_dot4_of(const uint32_t (&t)[4], uint32_t at, uint32_t b, int c)
{
    return gpu_dot4(gpu_lookup4(t, at), b, c);
}
__device__ inline float gpu_mul(float a, float b)
{
#pragma clang fp contract(off)
    return a * b;
}
__device__ inline float gpu_add(float a, float b)
{
#pragma clang fp contract(off)
    return a + b;
}
#else
/* Where the upper of its 4 bits is set a selector gives the sign of a byte, here 0. */
__device__ inline uint32_t gpu_lookup4_low(const uint32_t (&t)[4], uint32_t at)
{
    uint32_t r;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(t[0]), "r"(t[1]), "r"(at));
    return r;
}
__device__ inline uint32_t gpu_lookup4_high(const uint32_t (&t)[4], uint32_t at)
{
    uint32_t r;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(t[2]), "r"(t[3]), "r"(at ^ 0x88888888u));
    return r;
}
__device__ inline uint32_t gpu_lookup4(const uint32_t (&t)[4], uint32_t at)
{
    return gpu_lookup4_low(t, at) | gpu_lookup4_high(t, at);
}
__device__ inline uint32_t gpu_bytes(uint32_t a, uint32_t b, uint32_t at) { return __byte_perm(a, b, at); }
__device__ inline int gpu_dot4(uint32_t a, uint32_t b, int c) { return __dp4a((int)a, (int)b, c); }
/* The products, on another unit than lookups, add up what belongs to either half of t. */
__device__ inline int gpu_dot4_of(const uint32_t (&t)[4], uint32_t at, uint32_t b, int c)
{
    return gpu_dot4(gpu_lookup4_high(t, at), b, gpu_dot4(gpu_lookup4_low(t, at), b, c));
}
__device__ inline float gpu_mul(float a, float b) { return __fmul_rn(a, b); }
__device__ inline float gpu_add(float a, float b) { return __fadd_rn(a, b); }
#endif

/* What this thread wrote before, others read after it. */
#if defined(GPU_EMU)
static inline void gpu_fence() {}
#else
__device__ inline void gpu_fence() { __threadfence(); }
#endif

/* ---- shared memory whose size the launch gives: GPU_SHARED(float, part) declares part[], aligned to 16 bytes, on
 * a card to 128 */

#if defined(GPU_EMU)
#define GPU_SHARED(T, name) T *name = (T *)(void *)emu.shared
#else
#define GPU_SHARED(T, name)                                           \
    extern __shared__ __align__(128) unsigned char gpu_shared_bytes[]; \
    T *name = (T *)(void *)gpu_shared_bytes
#endif

/* ---- launching */

/* A fault of the machine: one line and exit 70. */
[[noreturn]] void gpu_lost(const char *why);
/* A runtime call that cannot fail otherwise. */
void gpu_check_at(gpu(Error_t) rc, const char *what);
#define gpu_check(call) gpu_check_at((call), #call)

static inline gpu(Stream_t) gpu_stream_of(struct dev *d) { return (gpu(Stream_t))dev_stream(d); }

#if !defined(GPU_EMU)
/* Lets a block of the kernel have so many bytes. */
static inline void gpu_share(const void *kernel, size_t shared)
{
    enum { FREE = 48 << 10 }; /* what it gets without asking */
    if (shared > FREE)
        gpu_check(gpu(FuncSetAttribute)(kernel, gpu(FuncAttributeMaxDynamicSharedMemorySize), (int)shared));
}
#endif

/* Runs kernel(args...) on the stream; shared: bytes of GPU_SHARED. A launch that the card refuses is our bug. */
template <class... P, class... A>
static inline void gpu_launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, gpu(Stream_t) stream,
                              A... args)
{
    static_assert(sizeof...(P) == sizeof...(A), "a kernel gets all of its arguments");
    if (!grid.x || !grid.y || !grid.z) return;
#if defined(GPU_EMU)
    emu_launch(grid, block, shared, [=] { kernel(static_cast<P>(args)...); });
    (void)stream;
#else
    gpu_share((const void *)kernel, shared);
    kernel<<<grid, block, shared, stream>>>(static_cast<P>(args)...);
    gpu_check(gpu(GetLastError)());
#endif
}

/* A chain of short kernels: one that is launched early starts while its predecessor in the stream ends, where the card
 * can do that (sm_90), and must call gpu_wait_for_previous before it reads what others wrote or writes anything; until
 * then it may read what no kernel writes, such as weights. gpu_let_next, called early, is what the next one needs. */
#if !defined(GPU_EMU) && !defined(__HIPCC__)
__device__ inline void gpu_wait_for_previous()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ inline void gpu_let_next()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
/* Clusters of blocks, neighbours in a row of the grid, that run at the same time (sm_90): gpu_rank, which of them this
 * block is; gpu_meet, where all threads of all wait for each other and, if `put`, then see what was put before; else
 * all have what they read before. gpu_arrive and gpu_wait, the two halves of the former, one that has left having
 * arrived; gpu_peer, the place in the shared memory of block `rank`, which has started, that p is in this one's. */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
__device__ inline int gpu_rank() { return 0; }
__device__ inline void gpu_meet(bool) {}
__device__ inline void gpu_arrive() {}
__device__ inline void gpu_wait() {}
template <class T> __device__ inline T *gpu_peer(T *p, int) { return p; }
#else
__device__ inline int gpu_rank()
{
    uint32_t r;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
    return (int)r;
}
__device__ inline void gpu_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ inline void gpu_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
__device__ inline void gpu_meet(bool put)
{
    if (put)
        gpu_arrive();
    else
        asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
    gpu_wait();
}
template <class T> __device__ inline T *gpu_peer(T *p, int rank)
{
    asm("mapa.u64 %0, %0, %1;" : "+l"(p) : "r"(rank));
    return p;
}
#endif
static inline bool gpu_is_sm90(void)
{
    int device = 0, major = 0;
    gpu_check(cudaGetDevice(&device));
    gpu_check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    return major >= 9;
}
/* Early, in clusters of so many blocks: more than 1 only where the card can. */
template <class... P, class... A>
static inline void gpu_launch_clusters(void (*kernel)(P...), unsigned blocks, dim3 grid, dim3 block, size_t shared,
                                       cudaStream_t stream, A... args)
{
    if (!gpu_is_sm90()) {
        gpu_launch(kernel, grid, block, shared, stream, args...);
        return;
    }
    if (!grid.x || !grid.y || !grid.z) return;
    gpu_share((const void *)kernel, shared);
    cudaLaunchAttribute how[2] = {};
    cudaLaunchConfig_t config = {};
    how[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    how[0].val.programmaticStreamSerializationAllowed = 1;
    how[1].id = cudaLaunchAttributeClusterDimension;
    how[1].val.clusterDim.x = blocks, how[1].val.clusterDim.y = how[1].val.clusterDim.z = 1;
    config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = shared, config.stream = stream;
    config.attrs = how, config.numAttrs = blocks > 1 ? 2 : 1;
    gpu_check(cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...));
}
#else
__device__ inline void gpu_wait_for_previous() {}
__device__ inline void gpu_let_next() {}
__device__ inline void gpu_arrive() {}
__device__ inline void gpu_wait() {}
template <class T> __device__ inline T *gpu_peer(T *p, int) { return p; }
static inline bool gpu_is_sm90(void) { return false; }
template <class... P, class... A>
static inline void gpu_launch_clusters(void (*kernel)(P...), unsigned, dim3 grid, dim3 block, size_t shared,
                                       gpu(Stream_t) stream, A... args)
{
    gpu_launch(kernel, grid, block, shared, stream, args...);
}
#endif
template <class... P, class... A>
static inline void gpu_launch_early(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, gpu(Stream_t) stream,
                                    A... args)
{
    gpu_launch_clusters(kernel, 1, grid, block, shared, stream, args...);
}
