/* The matrix units of NVIDIA's sm_90a, four warps at a time: D[64,N] (+)= A[64,16] B[16,N] in bf16 or f16 with f32
 * sums, B and often A read from shared memory by the unit itself, while the warps go on (PTX ISA, "wgmma").
 *
 * A thread has of D rows g and g + 8 of its warp's 16, as mma.h has it: d[n] are columns [8n, 8n + 8). Between wg_begin
 * and wg_end D is not to be touched.
 *
 * Tiles in shared memory are aligned to 1,024 bytes: [D/64][rows][64], the 16-byte pieces of 128 bytes permuted by the
 * row's number (the unit's "128B swizzle"). */
#pragma once
#include "kern/gpu/bulk.h"
#include "kern/gpu/mma.h"

#if GPU_HAS_WGMMA

#define WG_REGS4(d, i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define WG_REGS16(d, i) WG_REGS4(d, i), WG_REGS4(d, i + 1), WG_REGS4(d, i + 2), WG_REGS4(d, i + 3)
#define WG_REGS32(d) WG_REGS16(d, 0), WG_REGS16(d, 4)
#define WG_REGS64(d) WG_REGS16(d, 0), WG_REGS16(d, 4), WG_REGS16(d, 8), WG_REGS16(d, 12)
#define WG_REGS88(d) WG_REGS64(d), WG_REGS16(d, 16), WG_REGS4(d, 20), WG_REGS4(d, 21)
#define WG_REGS108(d) WG_REGS88(d), WG_REGS16(d, 22), WG_REGS4(d, 26)
#define WG_REGS128(d) WG_REGS64(d), WG_REGS16(d, 16), WG_REGS16(d, 20), WG_REGS16(d, 24), WG_REGS16(d, 28)
#define WG_NAMES32                                                                                       \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "    \
    "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define WG_NAMES64                                                                                       \
    WG_NAMES32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, " \
               "%49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WG_NAMES88 WG_NAMES64 \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80" \
    ", %81, %82, %83, %84, %85, %86, %87"
#define WG_NAMES108 WG_NAMES88 \
    ", %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103" \
    ", %104, %105, %106, %107"
#define WG_NAMES128 WG_NAMES108 \
    ", %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121" \
    ", %122, %123, %124, %125, %126, %127"

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

/* Where a tile is, and a part of it so many bytes on: 8 rows are 1,024 bytes; `next`: bytes to the next 64 columns,
 * where they are not summed over. */
__device__ inline uint32_t wg_tile(uint32_t at, uint32_t next) { return at >> 4 | next >> 4 << 16; }
__device__ inline uint64_t wg_part(uint32_t tile, uint32_t bytes)
{
    return (uint64_t)(1024 >> 4 | 1u << 30) << 32 | (tile + (bytes >> 4));
}

/* d (+)= a b^T, both from shared memory, 64 rows of a, 8 N of b, 16 columns; add: 0 or 1. */
#define WG_ABT(type, shape, names, regs, ia, ib, iadd)                                                           \
    asm volatile("{.reg .pred p; setp.ne.b32 p, %" iadd ", 0; wgmma.mma_async.sync.aligned." shape ".f32." type  \
                 " {" names "}, %" ia ", %" ib ", p, 1, 1, 0, 0;}"                                               \
                 : regs(d)                                                                                       \
                 : "l"(a), "l"(b), "r"(add))
template <class E> __device__ inline void wg_abt16(float (&d)[16][4], uint64_t a, uint64_t b, int add)
{
    if constexpr (mma_type<E>::BF16)
        WG_ABT("bf16.bf16", "m64n128k16", WG_NAMES64, WG_REGS64, "64", "65", "66");
    else
        WG_ABT("f16.f16", "m64n128k16", WG_NAMES64, WG_REGS64, "64", "65", "66");
}
template <class E> __device__ inline void wg_abt16(float (&d)[8][4], uint64_t a, uint64_t b, int add)
{
    if constexpr (mma_type<E>::BF16)
        WG_ABT("bf16.bf16", "m64n64k16", WG_NAMES32, WG_REGS32, "32", "33", "34");
    else
        WG_ABT("f16.f16", "m64n64k16", WG_NAMES32, WG_REGS32, "32", "33", "34");
}

/* d += a b, 16 columns of a from registers, as many rows of b. */
#define WG_AB(type, shape, names, regs, a0, a1, a2, a3, tile)                                                 \
    asm volatile("wgmma.mma_async.sync.aligned." shape ".f32." type " {" names "}, {%" a0 ", %" a1 ", %" a2      \
                 ", %" a3 "}, %" tile ", 1, 1, 1, 1;"                                                            \
                 : regs(d)                                                                                       \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
template <class E> __device__ inline void wg_ab16(float (&d)[16][4], const uint32_t (&a)[4], uint64_t b)
{
    if constexpr (mma_type<E>::BF16)
        WG_AB("bf16.bf16", "m64n128k16", WG_NAMES64, WG_REGS64, "64", "65", "66", "67", "68");
    else
        WG_AB("f16.f16", "m64n128k16", WG_NAMES64, WG_REGS64, "64", "65", "66", "67", "68");
}
template <class E> __device__ inline void wg_ab16(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b)
{
    if constexpr (mma_type<E>::BF16)
        WG_AB("bf16.bf16", "m64n64k16", WG_NAMES32, WG_REGS32, "32", "33", "34", "35", "36");
    else
        WG_AB("f16.f16", "m64n64k16", WG_NAMES32, WG_REGS32, "32", "33", "34", "35", "36");
}

/* d += a b^T, 16 columns of both, a from registers. The bits of an element do not depend on N. */
#define WG_RBT(type, shape, names, regs, a0, a1, a2, a3, tile)                                                \
    asm volatile("wgmma.mma_async.sync.aligned." shape ".f32." type " {" names "}, {%" a0 ", %" a1 ", %" a2      \
                 ", %" a3 "}, %" tile ", 1, 1, 1, 0;"                                                            \
                 : regs(d)                                                                                       \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
#define WG_RBT_OF(N, shape, names, regs, ...)                                                                    \
    template <class E> __device__ inline void wg_rbt16(float (&d)[N][4], const uint32_t (&a)[4], uint64_t b)     \
    {                                                                                                            \
        if constexpr (mma_type<E>::BF16)                                                                         \
            WG_RBT("bf16.bf16", shape, names, regs, __VA_ARGS__);                                                \
        else                                                                                                     \
            WG_RBT("f16.f16", shape, names, regs, __VA_ARGS__);                                                  \
    }
WG_RBT_OF(8, "m64n64k16", WG_NAMES32, WG_REGS32, "32", "33", "34", "35", "36")
WG_RBT_OF(16, "m64n128k16", WG_NAMES64, WG_REGS64, "64", "65", "66", "67", "68")
WG_RBT_OF(22, "m64n176k16", WG_NAMES88, WG_REGS88, "88", "89", "90", "91", "92")
WG_RBT_OF(27, "m64n216k16", WG_NAMES108, WG_REGS108, "108", "109", "110", "111", "112")
WG_RBT_OF(32, "m64n256k16", WG_NAMES128, WG_REGS128, "128", "129", "130", "131", "132")

/* d = a b^T, 64 rows of a tile of A_ROWS, all B_ROWS = 8 N of one, both D wide. Under way until it is waited for. */
template <class E, int D, int A_ROWS, int N> __device__ inline void wg_abt(float (&d)[N][4], uint32_t a, uint32_t b)
{
    const uint32_t a_tile = wg_tile(a, 16), b_tile = wg_tile(b, 16);
    wg_begin();
#pragma unroll
    for (int c = 0; c < D / 16; c++)
        wg_abt16<E>(d, wg_part(a_tile, c / 4 * A_ROWS * 128 + c % 4 * 32),
                    wg_part(b_tile, c / 4 * N * 8 * 128 + c % 4 * 32), c > 0);
    wg_commit();
}

/* d += a b, all 16 K rows of b. a must stay as it is until that is waited for. */
template <class E, int K, int N> __device__ inline void wg_ab(float (&d)[N][4], const uint32_t (&a)[K][4], uint32_t b)
{
    const uint32_t tile = wg_tile(b, K * 16 * 128);
    wg_begin();
#pragma unroll
    for (int k = 0; k < K; k++) wg_ab16<E>(d, a[k], wg_part(tile, k * 16 * 128));
    wg_commit();
}

/* ---- which block does what
 *
 * Blocks start in order. A group of heads comes after the other, as many as keep the card busy twice over: what they
 * read stays in its cache. Of these the tiles with the most work come first, so that all end together: tile 0, or the
 * last. */
struct wg_order {
    int tiles, heads, group;
};
static inline wg_order order_of(const struct kctx *kc, int64_t tiles, int64_t heads)
{
    const int64_t groups = tiles * heads / (2 * dev_units(kc->dev));
    return { (int)tiles, (int)heads, (int)ceil_div(heads, groups ? groups : 1) };
}
static inline dim3 order_grid(const wg_order &o) { return dim3((unsigned)(o.tiles * o.heads)); }
/* This block's tile and head. */
__device__ inline int2 order_here(const wg_order &o)
{
    const int i = (int)blockIdx.x, first = i / (o.group * o.tiles) * o.group, n = min(o.group, o.heads - first);
    return make_int2((i - first * o.tiles) / n, first + (i - first * o.tiles) % n);
}

/* ---- who fills tiles, and who reads them
 *
 * The last four warps of a block fill a ring of N stages, item after item, and GROUPS times four warps read them, each
 * at its own pace. Item i is in stage i % N. Two barriers a stage: `full` when all who fill have put it there, `free`
 * when each warp that reads has given it back (bulk.h). */

enum { WG_GROUPS = 2, WG_READERS = WG_GROUPS * 128, WG_FILLERS = 128, WG_THREADS = WG_READERS + WG_FILLERS };

template <int N> struct wg_ring {
    uint64_t full[N], free[N];
};

/* By one thread, before a barrier of the block; so many threads fill. */
template <int N> __device__ inline void ring_start(wg_ring<N> *r, int fillers = WG_FILLERS)
{
    for (int i = 0; i < N; i++) {
        barrier_start(r->full + i, fillers);
        barrier_start(r->free + i, WG_READERS / 32);
    }
    barrier_started();
}

/* Which of the groups of readers; in a way that shows the compiler that all of a warp are in one. */
__device__ inline int wg_group() { return gpu_shfl((int)threadIdx.x / 128, 0); }

/* A reader waits for item i, and gives it back when it has waited for its products. */
template <int N> __device__ inline void ring_await(wg_ring<N> *r, int i) { barrier_wait(r->full + i % N, i / N); }
template <int N> __device__ inline void ring_free(wg_ring<N> *r, int i)
{
    gpu_sync_warp();
    if (threadIdx.x % 32 == 0) barrier_arrive(r->free + i % N);
}

/* A thread that fills: items [0, put) are there for all it knows, those up to n have been begun. */
template <int N> struct ring_filler {
    wg_ring<N> *r;
    int n, put;
};
/* All but the last `left` items have been copied. */
template <int left, int N> __device__ inline void filler_put(ring_filler<N> &f)
{
    copy_wait<left>();
    wg_publish();
    for (; f.put < f.n - left; f.put++) barrier_arrive(f.r->full + f.put % N);
}
/* Item n may be copied. */
template <int N> __device__ inline void filler_begin(ring_filler<N> &f)
{
    const uint64_t *free = f.r->free + f.n % N;
    if (f.n < N || barrier_passed(free, f.n / N - 1)) return;
    filler_put<0>(f); /* nobody waits for these meanwhile */
    barrier_wait(free, f.n / N - 1);
}
/* It is under way; the one before it is waited for. */
template <int N> __device__ inline void filler_end(ring_filler<N> &f)
{
    copy_commit();
    f.n++;
    filler_put<1>(f);
}
/* It was written by this thread, and is there, as are all before it. */
template <int N> __device__ inline void filler_wrote(ring_filler<N> &f)
{
    wg_publish();
    barrier_arrive(f.r->full + f.n++ % N);
    f.put = f.n;
}

/* So many registers for a thread from here on; those of all threads are what the launch gave them. */
template <int n> __device__ inline void wg_fewer_registers()
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(n));
}
template <int n> __device__ inline void wg_more_registers()
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(n));
}

/* Two groups take turns: each waits for its own, and gives the other its. */
__device__ inline void turn_wait(int group)
{
    asm volatile("bar.sync %0, %1;" ::"r"(1 + group), "n"((int)WG_READERS) : "memory");
}
__device__ inline void turn_give(int group)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(1 + (group ^ 1)), "n"((int)WG_READERS) : "memory");
}

enum { WG_ALIGN = 1024 };
/* The first tile in shared memory. */
__device__ inline uint32_t wg_align(const void *mem)
{
    return (shared_at(mem) + WG_ALIGN - 1) & ~(uint32_t)(WG_ALIGN - 1);
}
/* Where piece c of row r is. */
template <int ROWS> __device__ inline uint32_t wg_piece(uint32_t tile, int r, int c)
{
    return tile + (uint32_t)(c / 8 * ROWS * 128 + r * 128 + ((c % 8) ^ (r % 8)) * 16);
}

/* As copy_rows, into a tile, by those who fill. */
template <class E, int D, int ROWS>
__device__ inline void wg_copy(uint32_t tile, const E *x, int64_t stride, int at, int from, int to,
                               const int32_t *table = NULL)
{
    enum { PIECES = D / 8, STEP = WG_FILLERS / PIECES };
    const int i = (int)threadIdx.x % WG_FILLERS, r = i / PIECES, c = i % PIECES;
    static_assert(STEP % 8 == 0, "a thread's pieces have one place in all its rows");
    copy_rows<E, ROWS, STEP, 128>(wg_piece<ROWS>(tile, r, c), r, c, x, stride, at, from, to, table);
}

#endif
