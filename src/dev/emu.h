/* A GPU on the CPU, for tests: slow, and exact about what a kernel may rely on. Included by gpu.h only.
 *
 * Each thread of a block is a fiber, blocks run one after another. With 64-wide warps threads and blocks run in
 * descending order, with 32-wide ones ascending: a missing barrier shows in one of the two. Found, and ended with a
 * message: threads that wait for each other, a warp primitive that not all lanes reach, reading a lane that has left.
 * Device memory has pages of its own, with an unmapped page behind each block, and cannot be touched outside of kernels
 * and copies.
 */
#pragma once
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include <functional>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__ static
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(...)
#define __grid_constant__
#define __forceinline__ inline
#define __align__(n) alignas(n)

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
static inline float2 make_float2(float x, float y) { return { x, y }; }
static inline float4 make_float4(float x, float y, float z, float w) { return { x, y, z, w }; }
static inline uint2 make_uint2(unsigned x, unsigned y) { return { x, y }; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return { x, y, z, w }; }
static inline int2 make_int2(int x, int y) { return { x, y }; }
static inline int4 make_int4(int x, int y, int z, int w) { return { x, y, z, w }; }
static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

/* ---- fibers */

enum { EMU_THREADS = 1024, EMU_STACK = 256 << 10, EMU_SHARED = 228 << 10, EMU_SLOT = 16 };
static const size_t EMU_MEMORY = (size_t)64 << 30, EMU_POISON = 1 << 20; /* of the card; of a block that is poisoned */

struct emu_barrier { unsigned arrived, live, turn; };
struct emu_thread {
    void *sp;            /* where it stopped */
    char *stack;
    dim3 id;
    emu_barrier *at;     /* that it waits at, or NULL */
    unsigned turn;       /* the barrier's when it came */
    const uint64_t *on;  /* a counting barrier whose turn `on_turn` it waits for, or NULL */
    int on_turn;
    bool done;
    unsigned turns;      /* exchanges of its warp that it took part in; the last two values are kept */
    char slot[2][EMU_SLOT];
};
struct emu_allocation { char *p, *base; size_t size; }; /* what was given out; its pages */
struct emu_graph { std::vector<std::function<void()>> step; };
struct emu_state {
    emu_thread thread[EMU_THREADS];
    emu_barrier block, warp[EMU_THREADS / GPU_WARP];
    std::function<void()> body;
    void *scheduler;     /* its stack pointer */
    unsigned now;        /* thread that runs */
    alignas(64) char shared[EMU_SHARED];
    std::vector<emu_allocation> memory;
    int open;            /* depth of kernels and copies: memory may be touched */
    emu_graph *capture;  /* being recorded, or NULL */
    void *fake;          /* the sanitizer's, of the scheduler */
    const void *stack_bottom;
    size_t stack_bytes;
    /* What tests set: how counting the cards ends, the driver's version; calls until one of those that a card's fault
     * ends fails, 0: none, and how. With emuErrorMemoryAllocation those count that take memory. */
    int count_rc = 0, driver = 1000, fails_in = 0, fails_with = 0;
};
inline emu_state emu;

/* Saves what a call must keep, stores the stack pointer in *from and goes on at `to`. */
__attribute__((naked, noinline)) inline void emu_switch(void **, void *)
{
    asm("push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
        "mov %rsp, (%rdi)\n mov %rsi, %rsp\n"
        "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret");
}

/* AddressSanitizer must know which stack is in use. */
static inline void emu_leave(void **fake, const void *bottom, size_t bytes)
{
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(fake, bottom, bytes);
#else
    (void)fake, (void)bottom, (void)bytes;
#endif
}
static inline void emu_arrive(void *fake, bool from_scheduler)
{
#if defined(__SANITIZE_ADDRESS__)
    if (from_scheduler) __sanitizer_finish_switch_fiber(fake, &emu.stack_bottom, &emu.stack_bytes);
    else __sanitizer_finish_switch_fiber(fake, NULL, NULL);
#else
    (void)fake, (void)from_scheduler;
#endif
}

static inline int emu_lane() { return (int)(emu.now % GPU_WARP); }

/* Back to the scheduler until the barrier has turned. */
static inline void emu_wait(emu_barrier *b)
{
    emu_thread *t = &emu.thread[emu.now];
    if (++b->arrived == b->live) {
        b->arrived = 0;
        b->turn++;
        return;
    }
    t->at = b;
    t->turn = b->turn;
    void *fake = NULL;
    emu_leave(&fake, emu.stack_bottom, emu.stack_bytes);
    emu_switch(&t->sp, emu.scheduler);
    emu_arrive(fake, true);
}
static inline void __syncthreads() { emu_wait(&emu.block); }
static inline void emu_sync_warp() { emu_wait(&emu.warp[emu.now / GPU_WARP]); }

/* Barriers in shared memory that count arrivals and bytes, as sm_90 has them: a turn ends when all have arrived and all
 * bytes that were expected have come. Whoever waits names the turn, of which the lowest bit counts. */
struct emu_counting { uint16_t of, left; int bytes : 31; unsigned turn : 1; };
static inline void emu_counting_add(uint64_t *b, int arrivals, int bytes)
{
    emu_counting c;
    memcpy(&c, b, sizeof c);
    if (arrivals > c.left) BUG("emulator: a barrier that %d arrive at one too often", c.of);
    c.left = (uint16_t)(c.left - arrivals);
    c.bytes += bytes;
    if (c.left == 0 && c.bytes == 0) c.left = c.of, c.turn ^= 1;
    memcpy(b, &c, sizeof c);
}
static inline void emu_counting_start(uint64_t *b, int arrivals)
{
    const emu_counting c = { (uint16_t)arrivals, (uint16_t)arrivals, 0, 0 };
    memcpy(b, &c, sizeof c);
}
static inline bool emu_counting_passed(const uint64_t *b, int turn)
{
    emu_counting c;
    memcpy(&c, b, sizeof c);
    return c.turn != (turn & 1u);
}
static inline void emu_counting_wait(const uint64_t *b, int turn)
{
    emu_thread *t = &emu.thread[emu.now];
    if (emu_counting_passed(b, turn)) return;
    t->on = b;
    t->on_turn = turn;
    void *fake = NULL;
    emu_leave(&fake, emu.stack_bottom, emu.stack_bytes);
    emu_switch(&t->sp, emu.scheduler);
    emu_arrive(fake, true);
}

/* Puts v where the warp finds it; the number of the exchange. */
static inline unsigned emu_deposit(const void *v, size_t bytes)
{
    emu_thread *t = &emu.thread[emu.now];
    memcpy(t->slot[++t->turns % 2], v, bytes);
    const unsigned turn = t->turns;
    emu_sync_warp();
    return turn;
}
/* What a lane of this warp put in; NULL if it is not there or did not take part. */
static inline const char *emu_slot(int lane, unsigned turn)
{
    const unsigned i = emu.now - (unsigned)emu_lane() + (unsigned)lane, n = blockDim.x * blockDim.y * blockDim.z;
    return lane >= 0 && lane < GPU_WARP && i < n && emu.thread[i].turns >= turn ? emu.thread[i].slot[turn % 2] : NULL;
}

/* v of another lane; the own one where there is no such lane. */
template <class T> static inline T emu_exchange(T v, int lane)
{
    static_assert(sizeof(T) <= EMU_SLOT, "too large to be exchanged");
    const char *from = emu_slot(lane, emu_deposit(&v, sizeof v));
    if (lane < 0 || lane >= GPU_WARP) return v;
    if (!from) BUG("emulator: lane %d reads lane %d, which is not there", emu_lane(), lane);
    memcpy(&v, from, sizeof v);
    return v;
}
static inline uint64_t emu_ballot(bool b)
{
    const unsigned turn = emu_deposit(&b, sizeof b);
    uint64_t bits = 0;
    for (int i = 0; i < GPU_WARP; i++) {
        const char *from = emu_slot(i, turn);
        if (from && *from) bits |= (uint64_t)1 << i;
    }
    return bits;
}
static inline int atomicAdd(int *p, int v) { int old = *p; *p += v; return old; }
static inline unsigned atomicAdd(unsigned *p, unsigned v) { unsigned old = *p; *p += v; return old; }
static inline unsigned atomicInc(unsigned *p, unsigned most)
{
    unsigned old = *p;
    *p = old >= most ? 0 : old + 1;
    return old;
}
static inline int atomicMax(int *p, int v) { int old = *p; *p = old > v ? old : v; return old; }
static inline int atomicMin(int *p, int v) { int old = *p; *p = old < v ? old : v; return old; }
static inline void __threadfence() {}
static inline void __threadfence_block() {}

static inline void emu_left(emu_barrier *b) /* one thread fewer to wait for */
{
    if (--b->live && b->arrived == b->live) {
        b->arrived = 0;
        b->turn++;
    }
}

static inline void emu_thread_main()
{
    emu_arrive(NULL, true);
    emu.body();
    emu_thread *t = &emu.thread[emu.now];
    t->done = true;
    emu_left(&emu.block);
    emu_left(&emu.warp[emu.now / GPU_WARP]);
    emu_leave(NULL, emu.stack_bottom, emu.stack_bytes);
    emu_switch(&t->sp, emu.scheduler);
    abort(); /* a thread that is done is not resumed */
}

static inline void emu_thread_init(unsigned i, dim3 block)
{
    emu_thread *t = &emu.thread[i];
    if (!t->stack) {
        const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        t->stack = (char *)mmap(NULL, EMU_STACK, PROT_READ | PROT_WRITE, flags, -1, 0);
        if (t->stack == MAP_FAILED) BUG("emulator: no memory for a stack");
    }
    t->id = dim3(i % block.x, i / block.x % block.y, i / block.x / block.y);
    t->done = false;
    t->turns = 0;
    t->at = NULL;
    t->on = NULL;
    void **top = (void **)(void *)(t->stack + EMU_STACK) - 1; /* a called function finds the stack 8 off 16 */
    *top = NULL;
    *--top = (void *)emu_thread_main;
    t->sp = top - 6;
}

static inline void emu_resume(unsigned i)
{
    emu_thread *t = &emu.thread[i];
    void *fake = NULL;
    emu.now = i;
    threadIdx = t->id;
    emu_leave(&fake, t->stack, EMU_STACK);
    emu_switch(&emu.scheduler, t->sp);
    emu_arrive(fake, false);
}

static inline void emu_run_block(unsigned n, size_t shared)
{
    emu.block = { 0, n, 0 };
    for (unsigned w = 0, first = 0; first < n; w++, first += GPU_WARP)
        emu.warp[w] = { 0, n - first < GPU_WARP ? n - first : GPU_WARP, 0 };
    memset(emu.shared, 0xff, shared); /* nobody has written it yet: NaN */
    for (unsigned i = 0; i < n; i++) emu_thread_init(i, blockDim);
    while (emu.block.live) {
        bool moved = false;
        for (unsigned k = 0; k < n; k++) {
            const unsigned i = GPU_WARP == 64 ? n - 1 - k : k;
            emu_thread *t = &emu.thread[i];
            if (t->done || (t->at && t->at->turn == t->turn) || (t->on && !emu_counting_passed(t->on, t->on_turn)))
                continue;
            t->at = NULL, t->on = NULL;
            moved = true;
            emu_resume(i);
        }
        if (!moved) BUG("emulator: threads of a block wait at barriers or warp primitives that not all reach");
    }
}

/* ---- memory */

static inline void emu_memory_open(bool open)
{
    emu.open += open ? 1 : -1;
    if (emu.open != (open ? 1 : 0)) return;
    for (const emu_allocation &m : emu.memory)
        if (mprotect(m.base, m.size, open ? PROT_READ | PROT_WRITE : PROT_NONE)) BUG("emulator: cannot protect memory");
}

/* Now, or into the graph that is being recorded. */
template <class F> static inline void emu_do(F f)
{
    auto run = [=] {
        emu_memory_open(true);
        f();
        emu_memory_open(false);
    };
    if (emu.capture) emu.capture->step.push_back(run);
    else run();
}

template <class F> static inline void emu_launch(dim3 grid, dim3 block, size_t shared, F body)
{
    const unsigned n = block.x * block.y * block.z, blocks = grid.x * grid.y * grid.z;
    if (!n || n > EMU_THREADS || shared > EMU_SHARED) BUG("emulator: a block of %u threads, %zu bytes", n, shared);
    emu_do([=] {
        gridDim = grid;
        blockDim = block;
        emu.body = body;
        for (unsigned k = 0; k < blocks; k++) {
            const unsigned i = GPU_WARP == 64 ? blocks - 1 - k : k;
            blockIdx = dim3(i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y);
            emu_run_block(n, shared);
        }
    });
}

/* ---- the runtime, as far as gpu.cu calls it. Only memory can be short. */

typedef int emuError_t;
typedef struct emu_stream *emuStream_t;
typedef struct emu_event { double s; } *emuEvent_t;
typedef emu_graph *emuGraph_t, *emuGraphExec_t;
struct emuDeviceProp { char name[256]; int multiProcessorCount; };

enum { emuSuccess, emuErrorInvalidValue, emuErrorMemoryAllocation, emuErrorInvalidConfiguration };
enum { emuErrorInsufficientDriver = 35, emuErrorNoDevice = 100, emuErrorLaunchFailure = 719 };
enum { emuMemcpyHostToDevice, emuMemcpyDeviceToHost, emuMemcpyDeviceToDevice };
enum { emuStreamNonBlocking, emuStreamCaptureModeThreadLocal };

static inline const char *emuGetErrorString(emuError_t rc) { return rc ? "an error" : "no error"; }
static inline emuError_t emuGetLastError() { return emuSuccess; }
static inline emuError_t emuGetDeviceCount(int *n) { return *n = !emu.count_rc, emu.count_rc; }
static inline emuError_t emuDriverGetVersion(int *v) { return *v = emu.driver, emuSuccess; }
static inline emuError_t emuRuntimeGetVersion(int *v) { return *v = 1000, emuSuccess; }
static inline emuError_t emu_fault(bool takes = false)
{
    if (!takes && emu.fails_with == emuErrorMemoryAllocation) return emuSuccess;
    return emu.fails_in > 0 && --emu.fails_in == 0 ? emu.fails_with : emuSuccess;
}
static inline emuError_t emuSetDevice(int) { return emu_fault(); }
static inline emuError_t emuGetDeviceProperties(emuDeviceProp *p, int)
{
    snprintf(p->name, sizeof p->name, "emulator with warps of %d", GPU_WARP);
    p->multiProcessorCount = 4;
    return emu_fault();
}
static inline emuError_t emuMemGetInfo(size_t *free_bytes, size_t *total)
{
    size_t used = 0;
    for (const emu_allocation &m : emu.memory) used += m.size;
    *total = EMU_MEMORY;
    *free_bytes = EMU_MEMORY - used;
    return emuSuccess;
}

static inline emuError_t emuMalloc(void **ret, size_t bytes)
{
    if (const emuError_t rc = emu_fault(true)) return rc;
    const size_t page = 4096, size = (bytes + page - 1) / page * page;
    size_t left, total;
    emuMemGetInfo(&left, &total);
    if (size > left) return emuErrorMemoryAllocation;
    char *base = (char *)mmap(NULL, size + page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return emuErrorMemoryAllocation;
    char *p = base + (size - bytes) / 64 * 64; /* so that its end is that of the page, as far as alignment allows */
    emu.memory.push_back({ p, base, size });
    emu_memory_open(true);
    memset(p, 0xff, bytes < EMU_POISON ? bytes : EMU_POISON); /* not cleared: NaN, where tests are small */
    emu_memory_open(false);
    *ret = p;
    return emuSuccess;
}
static inline emuError_t emuFree(void *p)
{
    for (size_t i = 0; i < emu.memory.size(); i++)
        if (emu.memory[i].p == p) {
            munmap(emu.memory[i].base, emu.memory[i].size + 4096);
            emu.memory.erase(emu.memory.begin() + (long)i);
            return emuSuccess;
        }
    BUG("emulator: %p was not allocated", p);
}

static inline emuError_t emuMemcpyAsync(void *dst, const void *src, size_t n, int, emuStream_t)
{
    if (const emuError_t rc = emu_fault()) return rc;
    emu_do([=] { memmove(dst, src, n); });
    return emuSuccess;
}
static inline emuError_t emuMemsetAsync(void *dst, int byte, size_t n, emuStream_t)
{
    emu_do([=] { memset(dst, byte, n); });
    return emuSuccess;
}

static inline emuError_t emuStreamCreateWithFlags(emuStream_t *s, int) { return *s = NULL, emu_fault(); }
static inline emuError_t emuStreamDestroy(emuStream_t) { return emuSuccess; }
static inline emuError_t emuStreamSynchronize(emuStream_t) { return emu_fault(); }
static inline emuError_t emuStreamWaitEvent(emuStream_t, emuEvent_t, unsigned) { return emuSuccess; }
static inline emuError_t emuEventCreate(emuEvent_t *e) { return *e = new emu_event(), emuSuccess; }
static inline emuError_t emuEventDestroy(emuEvent_t e) { return delete e, emuSuccess; }
static inline emuError_t emuEventSynchronize(emuEvent_t) { return emuSuccess; }
static inline emuError_t emuEventRecord(emuEvent_t e, emuStream_t)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    e->s = (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
    return emuSuccess;
}
static inline emuError_t emuEventElapsedTime(float *ms, emuEvent_t a, emuEvent_t b)
{
    return *ms = (float)(1e3 * (b->s - a->s)), emuSuccess;
}

static inline emuError_t emuStreamBeginCapture(emuStream_t, int) { return emu.capture = new emu_graph(), emuSuccess; }
static inline emuError_t emuStreamEndCapture(emuStream_t, emuGraph_t *g)
{
    *g = emu.capture;
    emu.capture = NULL;
    return emuSuccess;
}
static inline emuError_t emuGraphGetNodes(emuGraph_t g, void *, size_t *n) { return *n = g->step.size(), emuSuccess; }
static inline emuError_t emuGraphInstantiateWithFlags(emuGraphExec_t *x, emuGraph_t g, int)
{
    return *x = new emu_graph(*g), emuSuccess;
}
static inline emuError_t emuGraphDestroy(emuGraph_t g) { return delete g, emuSuccess; }
static inline emuError_t emuGraphExecDestroy(emuGraphExec_t x) { return delete x, emuSuccess; }
static inline emuError_t emuGraphLaunch(emuGraphExec_t x, emuStream_t)
{
    for (auto &step : x->step) step();
    return emuSuccess;
}
