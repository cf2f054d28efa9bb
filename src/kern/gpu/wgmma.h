/* The matrix units of NVIDIA's sm_90a, four warps at a time: D[64,N] (+)= A[64,16] B[16,N] in bf16 or f16 with f32
 * sums, B and often A read from shared memory by the unit itself, while the warps go on (PTX ISA, "wgmma").
 *
 * A thread has of D rows g and g + 8 of its warp's 16, as mma.h has it: d[n] are columns [8n, 8n + 8). Between wg_begin
 * and wg_end D is not to be touched.
 *
 * Tiles in shared memory are aligned to 1,024 bytes: [D/64][rows][64], the 16-byte pieces of 128 bytes permuted by the
 * row's number (the unit's "128B swizzle"). */
#pragma once
#include "kern/gpu/mma.h"

#if GPU_HAS_WGMMA

#define WG_REGS4(d, i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define WG_REGS16(d, i) WG_REGS4(d, i), WG_REGS4(d, i + 1), WG_REGS4(d, i + 2), WG_REGS4(d, i + 3)
#define WG_REGS32(d) WG_REGS16(d, 0), WG_REGS16(d, 4)
#define WG_REGS64(d) WG_REGS16(d, 0), WG_REGS16(d, 4), WG_REGS16(d, 8), WG_REGS16(d, 12)
#define WG_NAMES32                                                                                       \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "    \
    "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define WG_NAMES64                                                                                       \
    WG_NAMES32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, " \
               "%49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

__device__ inline void wg_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wg_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/* Until at most n groups are under way. */
template <int n> __device__ inline void wg_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(n) : "memory");
}
/* d is read or written behind here only. */
template <int N> __device__ inline void wg_pin(float (&d)[N][4])
{
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : WG_REGS4(d, i)::"memory");
}
/* What copies have written to shared memory is seen by the units, after a barrier. */
__device__ inline void wg_publish() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/* Where a tile's part is: 8 rows are 1,024 bytes; `next`: bytes to the next 64 columns, where they are not summed
 * over. */
__device__ inline uint64_t wg_tile(uint32_t at, uint32_t next)
{
    return (uint64_t)((at & 0x3ffff) >> 4) | (uint64_t)(next >> 4) << 16 | (uint64_t)(1024 >> 4) << 32 | 1ull << 62;
}

/* d (+)= a b^T, both from shared memory, 64 rows of a, 8 N of b; add: 0 or 1. */
#define WG_SCORES(type)                                                                                          \
    asm volatile("{.reg .pred p; setp.ne.b32 p, %66, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32." type       \
                 " {" WG_NAMES64 "}, %64, %65, p, 1, 1, 0, 0;}"                                                  \
                 : WG_REGS64(d)                                                                                  \
                 : "l"(a), "l"(b), "r"(add))
template <class E> __device__ inline void wg_scores(float (&d)[16][4], uint64_t a, uint64_t b, int add)
{
    if constexpr (mma_type<E>::BF16)
        WG_SCORES("bf16.bf16");
    else
        WG_SCORES("f16.f16");
}

/* d += a b, a from registers, 16 rows of b. */
#define WG_WEIGH(type, shape, names, regs, a0, a1, a2, a3, tile)                                                 \
    asm volatile("wgmma.mma_async.sync.aligned." shape ".f32." type " {" names "}, {%" a0 ", %" a1 ", %" a2      \
                 ", %" a3 "}, %" tile ", 1, 1, 1, 1;"                                                            \
                 : regs(d)                                                                                       \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
template <class E> __device__ inline void wg_weigh(float (&d)[16][4], const uint32_t (&a)[4], uint64_t b)
{
    if constexpr (mma_type<E>::BF16)
        WG_WEIGH("bf16.bf16", "m64n128k16", WG_NAMES64, WG_REGS64, "64", "65", "66", "67", "68");
    else
        WG_WEIGH("f16.f16", "m64n128k16", WG_NAMES64, WG_REGS64, "64", "65", "66", "67", "68");
}
template <class E> __device__ inline void wg_weigh(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b)
{
    if constexpr (mma_type<E>::BF16)
        WG_WEIGH("bf16.bf16", "m64n64k16", WG_NAMES32, WG_REGS32, "32", "33", "34", "35", "36");
    else
        WG_WEIGH("f16.f16", "m64n64k16", WG_NAMES32, WG_REGS32, "32", "33", "34", "35", "36");
}

/* As copy_rows, into a tile. */
template <class E, int D, int ROWS, int THREADS>
__device__ inline void wg_copy(uint32_t tile, const E *x, int64_t stride, int at, int from, int to,
                               const int32_t *table = NULL)
{
    enum { PIECES = D / 8, STEP = THREADS / PIECES };
    const int r = (int)threadIdx.x / PIECES, c = (int)threadIdx.x % PIECES;
    static_assert(STEP % 8 == 0, "a thread's pieces have one place in all its rows");
    const uint32_t first = tile + (uint32_t)(c / 8 * ROWS * 128 + r * 128 + ((c % 8) ^ (r % 8)) * 16);
    copy_rows<E, ROWS, STEP, 128>(first, r, c, x, stride, at, from, to, table);
}

#endif
