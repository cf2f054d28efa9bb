/* Copies by sm_90's own engine, and the barriers in shared memory that say when they are there: such a barrier counts
 * arrivals and bytes, turn after turn, of which the first has the number 0 (PTX ISA, "mbarrier", "cp.async.bulk"). The
 * emulator has them too. */
#pragma once
#include "kern/gpu/num.h"

#if defined(GPU_EMU) || GPU_HAS_WGMMA
#    define GPU_HAS_BULK 1
#else
#    define GPU_HAS_BULK 0
#endif

#if GPU_HAS_BULK
#    if defined(GPU_EMU)

static inline bool bulk_present(void) { return true; }
static inline void barrier_start(uint64_t *b, int arrivals) { emu_counting_start(b, arrivals); }
static inline void barrier_started() {}
static inline bool barrier_passed(const uint64_t *b, int turn) { return emu_counting_passed(b, turn); }
static inline void barrier_wait(const uint64_t *b, int turn) { emu_counting_wait(b, turn); }
static inline void barrier_arrive(uint64_t *b) { emu_counting_add(b, 1, 0); }
static inline void barrier_expect(uint64_t *b, int bytes) { emu_counting_add(b, 1, bytes); }
static inline void bulk_copy(char *to, const char *from, int bytes, uint64_t *b)
{
    memcpy(to, from, (size_t)bytes);
    emu_counting_add(b, 0, -bytes);
}

#    else

/* Is the current device one that code for sm_90a is compiled for? */
static inline bool bulk_present(void)
{
    int device = 0, major = 0;
    gpu_check(gpu(GetDevice)(&device));
    gpu_check(gpu(DeviceGetAttribute)(&major, gpu(DevAttrComputeCapabilityMajor), device));
    return major == 9;
}

/* By one thread; barrier_started: before a barrier of the block. */
__device__ inline void barrier_start(uint64_t *b, int arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_at(b)), "r"(arrivals) : "memory");
}
__device__ inline void barrier_started() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ inline bool barrier_passed(const uint64_t *b, int turn)
{
    uint32_t passed;
    asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                 : "=r"(passed)
                 : "r"(shared_at(b)), "r"(turn & 1)
                 : "memory");
    return passed;
}
__device__ inline void barrier_wait(const uint64_t *b, int turn)
{
    while (!barrier_passed(b, turn)) {}
}
__device__ inline void barrier_arrive(uint64_t *b)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_at(b)) : "memory");
}
/* Arrives; so many bytes have to come too. */
__device__ inline void barrier_expect(uint64_t *b, int bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_at(b)), "r"(bytes) : "memory");
}
/* A run of bytes, from and to multiples of 16, a multiple of 16 long, is on its way to `to`; b counts it. By one
 * thread. */
__device__ inline void bulk_copy(char *to, const char *from, int bytes, uint64_t *b)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_at(to)),
                 "l"(from), "r"(bytes), "r"(shared_at(b))
                 : "memory");
}

#    endif
#endif
