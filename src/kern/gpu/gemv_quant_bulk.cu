/* Decode with quantised weights for one token, where the card's engine copies (bulk.h): some warps ask for units of one
 * or two whole rows, which come to slots of a ring in shared memory, and the others multiply a unit each by x and are
 * done with it. So no unit waits for another, and nobody computes addresses beside the sums.
 *
 * Who asks must be quick: in 4 bits memory brings two rows in 230 ns, and one warp needs longer to ask for them; so
 * ASKERS share the slots, a unit each in turn. Each has two units of two rows under way, or one of one long row: more
 * only make everybody's words come later, x above all, which each block reads and rounds for itself. The ring is
 * larger: it fills while x is waited for. Its room leaves none for the next kernel's block beside this one.
 *
 * Bits are those of gemv_quant.cu, as are x and the order of sums. Scratch: none. */
#include "kern/gpu/bulk.h"
#include "kern/gpu/gemv_quant.h"

#if GPU_HAS_BULK

enum { WORKERS = 640 / GPU_WARP, ASKERS = 128 / GPU_WARP, THREADS = (WORKERS + ASKERS) * GPU_WARP };
enum { SLOTS = 2 * WORKERS, SHARED = 226 << 10 /* bytes */ };
enum { FEW_GROUPS = 128 /* of columns: units of two rows fill the ring evenly */ };

enum { STEP = 16 * GPU_WARP /* bytes of a row that a warp multiplies at a time */ };
/* Groups of a step, which a warp's lanes go through in turns. */
template <int TYPE> struct bulk_step {
    enum { TURNS = TYPE == DT_Q4 ? 2 : 1, GROUPS = CHAINS * TURNS };
};

struct bulk_args {
    quant_args a;
    int each, more, steps;     /* units of a block, and blocks that have one more; of a row */
    int slots, workers, ahead; /* of the ring; warps that multiply, each in slots of its own, as askers are; units that
                                  each of these has under way */
    int stride;                /* of a slot's rows, bytes */
};

/* In front of a block's shared memory: a slot's unit is there, or done with; x is rounded. */
struct alignas(16) bulk_shared {
    uint64_t full[SLOTS], empty[SLOTS], ready;
};

/* A block's units are [from, to). */
__device__ inline int units_before(const bulk_args &c, int block) { return block * c.each + min(block, c.more); }

/* Where somebody is in the ring: in the slot for the turn-th time. */
struct ring_place {
    int slot, turn;
};
__device__ inline void place_move(ring_place &p, int by, int slots)
{
    for (p.slot += by; p.slot >= slots; p.slot -= slots) p.turn++;
}

/* By a warp: asks for every ASKERS-th of a block's units, whose rows its lanes look up, GPU_WARP units at a time. */
template <int ROWS> __device__ inline void units_ask(const bulk_args &c, bulk_shared *s, char *ring, int asker)
{
    const int lane = (int)threadIdx.x % GPU_WARP, last = units_before(c, (int)blockIdx.x + 1), pitch = (int)c.a.w.pitch;
    ring_place to = { asker, 0 }, there = to;
    int asked = 0;
    for (int first = units_before(c, (int)blockIdx.x) + asker; first < last; first += ASKERS * GPU_WARP) {
        const char *row[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            row[r] = quant_row_at(c.a, min((first + ASKERS * lane) * ROWS + r, c.a.g.rows - 1));
        for (int i = 0; i < GPU_WARP && first + ASKERS * i < last; i++, asked++) {
            if (to.turn) barrier_wait(&s->empty[to.slot], to.turn - 1);
            if (asked >= c.ahead) {
                barrier_wait(&s->full[there.slot], there.turn);
                place_move(there, ASKERS, c.slots);
            }
            if (lane == i) {
                barrier_expect(&s->full[to.slot], ROWS * pitch);
#pragma unroll
                for (int r = 0; r < ROWS; r++)
                    bulk_copy(ring + (to.slot * ROWS + r) * c.stride, row[r], pitch, &s->full[to.slot]);
            }
            place_move(to, ASKERS, c.slots);
        }
    }
    gpu_let_next();
}

/* What this lane has of a row's group, times x there. */
template <int TYPE>
__device__ inline int group_dot(const uint32_t (&level)[4], const char *row, int at, const gpu_16bytes &x)
{
    int d = 0;
    if (TYPE == DT_Q8) {
        const gpu_16bytes b = ((const gpu_16bytes *)row)[at];
#pragma unroll
        for (int i = 0; i < 4; i++) d = gpu_dot4(b.u[i], x.u[i], d);
    } else {
        const uint2 b = ((const uint2 *)row)[at];
        d = gpu_dot4_of(level, b.x, x.u[0], d), d = gpu_dot4_of(level, b.x >> 16, x.u[1], d);
        d = gpu_dot4_of(level, b.y, x.u[2], d), d = gpu_dot4_of(level, b.y >> 16, x.u[3], d);
    }
    return d;
}

/* Adds a step of a unit to this lane's sum, which is that of its chain in row lane % ROWS. */
template <int TYPE, int ROWS>
__device__ inline void step_multiply(float &sum, const uint32_t (&level)[4], const bulk_args &c, const rounded &x,
                                     const char *rows, int step)
{
    const int lane = (int)threadIdx.x % GPU_WARP, q = lane % 4;
#pragma unroll
    for (int turn = 0; turn < bulk_step<TYPE>::TURNS; turn++) {
        const int group = (step * bulk_step<TYPE>::TURNS + turn) * CHAINS + lane / 4;
        const gpu_16bytes in = ((const gpu_16bytes *)x.q)[group * 4 + q];
        int d[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) d[r] = group_dot<TYPE>(level, rows + r * c.stride, group * 4 + q, in);
        const round_scale s = x.s[group];
        const float scale = quant_scale(c.a.w, rows + q % ROWS * c.stride, group);
        sum = group_add(sum, quad_sum(d, q) + s.start, scale * s.s);
    }
}

/* By a warp: multiplies every workers-th unit of the block. Sums of as many units as lanes have a row each become
 * results together. */
template <int TYPE, int ROWS>
__device__ inline void units_multiply(const bulk_args &c, bulk_shared *s, const rounded &x, const char *ring, int warp)
{
    enum { UNITS = GPU_WARP / ROWS };
    const int lane = (int)threadIdx.x % GPU_WARP, last = units_before(c, (int)blockIdx.x + 1);
    const uint32_t level[4] = { c.a.w.level[0], c.a.w.level[1], c.a.w.level[2], c.a.w.level[3] };
    ring_place at = { warp, 0 };
    for (int first = units_before(c, (int)blockIdx.x) + warp; first < last; first += UNITS * c.workers) {
        const int unit = first + lane / ROWS * c.workers, r = unit * ROWS + lane % ROWS;
        const bool mine = unit < last && r < c.a.g.rows && !(c.a.g.glu && lane % 2);
        const float added = mine ? gemv_added(c.a.g, r, 0) : 0.0f;
        float total = 0;
        for (int i = 0; i < UNITS && first + i * c.workers < last; i++) {
            const char *rows = ring + at.slot * ROWS * c.stride;
            float sum = 0, of_row = 0;
            barrier_wait(&s->full[at.slot], at.turn);
#pragma unroll 2
            for (int step = 0; step < c.steps; step++) step_multiply<TYPE, ROWS>(sum, level, c, x, rows, step);
            gpu_sync_warp();
            if (lane == 0) barrier_arrive(&s->empty[at.slot]);
#pragma unroll
            for (int k = 0; k < CHAINS; k++) of_row += gpu_shfl(sum, 4 * k + lane % ROWS);
            if (lane / ROWS == i) total = of_row;
            place_move(at, c.workers, c.slots);
        }
        const float rstd = gemv_rstd(c.a.g, c.a.g.norm.p ? round_square(x, 0) : 0.0f);
        const float up = gpu_shfl(total, (lane + 1) % GPU_WARP);
        if (mine) gemv_result(c.a.g, r, 0, rstd, total, up, added);
    }
}

/* Zeros between the ring's rows: scales behind the last group's. */
__device__ inline void pads_clear(const bulk_args &c, char *ring, int rows)
{
    for (int i = (int)threadIdx.x; i < rows; i += THREADS)
        for (int at = (int)c.a.w.pitch; at < c.stride; at += 4) *(uint32_t *)(ring + i * c.stride + at) = 0;
}

/* X: how x and the norm are read. */
template <int TYPE, int ROWS, class X>
__global__ __launch_bounds__(THREADS, 1) void gemv_quant_bulk(const __grid_constant__ bulk_args c)
{
#    if defined(GPU_EMU) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
    GPU_SHARED(float, mem); /* barriers, rounded x, slots */
    bulk_shared *s = (bulk_shared *)mem;
    float *end = (float *)(s + 1), g[LANES];
    const rounded x = rounded_inside(c.a.x, end);
    const X from = row_as<X>(c.a.g.x), norm = row_as<X>(c.a.g.norm);
    char *ring = (char *)end;
    const int warp = gpu_shfl((int)threadIdx.x / GPU_WARP, 0);
    for (int i = (int)threadIdx.x; i < c.slots; i += THREADS) {
        barrier_start(&s->full[i], 1);
        barrier_start(&s->empty[i], 1);
    }
    if (threadIdx.x == 0) barrier_start(&s->ready, WORKERS);
    barrier_started();
    pads_clear(c, ring, c.slots * ROWS);
    __syncthreads();
    if (warp >= WORKERS) {
        units_ask<ROWS>(c, s, ring, warp - WORKERS);
        return;
    }
    round_ahead(g, norm, c.a.g.I, c.a.g.wide);
    gpu_wait_for_previous();
    round_row(x, 0, from, norm, g, c.a.g.I, c.a.g.wide, WORKERS * GPU_WARP);
    gpu_sync_warp();
    if (threadIdx.x % GPU_WARP == 0) barrier_arrive(&s->ready);
    barrier_wait(&s->ready, 0);
    if (warp < c.workers) units_multiply<TYPE, ROWS>(c, s, x, ring, warp);
#    endif
}

bool quant_bulk_takes(void) { return bulk_present(); }

template <int TYPE, int ROWS> static void bulk_launch(struct kctx *kc, const struct quant_args *a)
{
    struct bulk_args c = {};
    const int64_t units = ceil_div(a->g.rows, ROWS), blocks = least(units, dev_units(kc->dev)),
                  steps = ceil_div(a->w.groups, bulk_step<TYPE>::GROUPS),
                  scales_end = a->w.scales_at + (int64_t)sizeof(uint16_t) * steps * bulk_step<TYPE>::GROUPS,
                  stride = ceil_div(scales_end > a->w.pitch ? scales_end : a->w.pitch, 16) * 16,
                  behind = STEP, /* that the last row's last step may read */
                  front = (int64_t)sizeof(bulk_shared) + rounded_bytes(a->x.groups) + behind,
                  slots = least(SLOTS, (SHARED - front) / (ROWS * stride));
    ASSERT(slots >= ASKERS);
    c.a = *a, c.each = (int)(units / blocks), c.more = (int)(units % blocks), c.steps = (int)steps;
    c.workers = (int)least(WORKERS, slots / ASKERS * ASKERS);
    c.slots = (int)(slots / c.workers) * c.workers;
    c.ahead = (int)least(ROWS, c.slots / ASKERS);
    c.stride = (int)stride;
    const bool bf16 = a->g.wide && a->g.x.type == DT_BF16 && (!a->g.norm.p || a->g.norm.type == DT_BF16);
    gpu_launch_early(bf16 ? gemv_quant_bulk<TYPE, ROWS, plain_row<gpu_bf16>> : gemv_quant_bulk<TYPE, ROWS, view>,
                     dim3((unsigned)blocks), THREADS, (size_t)(front + c.slots * ROWS * stride), stream_of(kc), c);
}

template <int TYPE> static void bulk_run(struct kctx *kc, const struct quant_args *a)
{
    (a->g.glu || a->w.groups < FEW_GROUPS ? bulk_launch<TYPE, 2> : bulk_launch<TYPE, 1>)(kc, a);
}

void quant_bulk_run(struct kctx *kc, const struct quant_args *a)
{
    (a->w.type == DT_Q4 ? bulk_run<DT_Q4> : bulk_run<DT_Q8>)(kc, a);
}

#else

bool quant_bulk_takes(void) { return false; }
void quant_bulk_run(struct kctx *, const struct quant_args *) {}

#endif
