/* Decode with weights of 8 bits for one token, where the card's engine copies (bulk.h): a warp asks for units of one or
 * two whole rows, which come to slots of a ring in shared memory, and the others multiply a unit each by x and are done
 * with it. So no unit waits for another, and nobody computes addresses beside the sums.
 *
 * No more than AHEAD bytes are asked for at once: more only make everybody's words come later, x above all, which each
 * block reads and rounds for itself. The ring is larger: it fills while x is waited for. Its room leaves none for the
 * next kernel's block beside this one.
 *
 * Bits are those of gemv_quant.cu, as are x and the order of sums. Scratch: none. */
#include "kern/gpu/bulk.h"
#include "kern/gpu/gemv_quant.h"

#if GPU_HAS_BULK

enum { WORKERS = 640 / GPU_WARP, THREADS = (WORKERS + 1) * GPU_WARP, SLOTS = 2 * WORKERS };
enum { STEP = 16 * GPU_WARP /* bytes of a row that a warp multiplies at a time */ };
enum { SHARED = 226 << 10, AHEAD = 48 << 10 /* bytes */ };
enum { FEW_GROUPS = 128 /* of columns: units of two rows fill the ring evenly */ };

struct bulk_args {
    quant_args a;
    int units, steps;          /* all; of a row */
    int slots, workers, ahead; /* of the ring; warps that multiply, each in slots of its own; units asked for at once */
    int stride;                /* of a slot's rows, bytes */
};

/* In front of a block's shared memory: a slot's unit is there, or done with; x is rounded. */
struct alignas(16) bulk_shared {
    uint64_t full[SLOTS], empty[SLOTS], ready;
};

/* A block's units are [from, to). */
__device__ inline int units_before(const bulk_args &c, unsigned block)
{
    return (int)((int64_t)c.units * block / gridDim.x);
}

/* Where somebody is in the ring: in the slot for the turn-th time. */
struct ring_place {
    int slot, turn;
};
__device__ inline void place_move(ring_place &p, int by, int slots)
{
    for (p.slot += by; p.slot >= slots; p.slot -= slots) p.turn++;
}

/* By a warp: asks for all of a block's units, whose rows its lanes look up, GPU_WARP units at a time. */
template <int ROWS> __device__ inline void units_ask(const bulk_args &c, bulk_shared *s, char *ring)
{
    const int lane = (int)threadIdx.x % GPU_WARP, last = units_before(c, blockIdx.x + 1), pitch = (int)c.a.w.pitch;
    ring_place to = { 0, 0 }, there = { 0, 0 };
    int asked = 0;
    for (int first = units_before(c, blockIdx.x); first < last; first += GPU_WARP) {
        unsigned long long row[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            row[r] = (unsigned long long)quant_row_at(c.a, min((first + lane) * ROWS + r, c.a.g.rows - 1));
        for (int i = 0; i < min(GPU_WARP, last - first); i++, asked++) {
            if (to.turn) barrier_wait(&s->empty[to.slot], to.turn - 1);
            if (asked >= c.ahead) {
                barrier_wait(&s->full[there.slot], there.turn);
                place_move(there, 1, c.slots);
            }
            if (lane == 0) barrier_expect(&s->full[to.slot], ROWS * pitch);
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                const char *from = (const char *)gpu_shfl(row[r], i);
                if (lane == 0) bulk_copy(ring + (to.slot * ROWS + r) * c.stride, from, pitch, &s->full[to.slot]);
            }
            place_move(to, 1, c.slots);
        }
    }
    gpu_let_next();
}

/* Adds a step of a unit to this lane's sum, which is that of its chain in row lane % ROWS. */
template <int ROWS>
__device__ inline void step_multiply(float &sum, const bulk_args &c, const rounded &x, const char *rows, int step)
{
    const int lane = (int)threadIdx.x % GPU_WARP, q = lane % 4, group = step * CHAINS + lane / 4;
    const gpu_16bytes in = ((const gpu_16bytes *)x.q)[group * 4 + q];
    int d[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const gpu_16bytes b = ((const gpu_16bytes *)(rows + r * c.stride))[group * 4 + q];
        d[r] = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) d[r] = gpu_dot4(b.u[i], in.u[i], d[r]);
    }
    const round_scale s = x.s[group];
    const float scale = quant_scale(c.a.w, rows + q % ROWS * c.stride, group);
    sum = group_add(sum, quad_sum(d, q) + s.start, scale * s.s);
}

/* By a warp: multiplies every workers-th unit of the block. */
template <int ROWS>
__device__ inline void units_multiply(const bulk_args &c, bulk_shared *s, const rounded &x, const char *ring, int warp)
{
    const int lane = (int)threadIdx.x % GPU_WARP, last = units_before(c, blockIdx.x + 1);
    const float rstd = gemv_rstd(c.a.g, c.a.g.norm.p ? round_square(x, 0) : 0.0f);
    ring_place at = { warp, 0 };
    for (int unit = units_before(c, blockIdx.x) + warp; unit < last; unit += c.workers) {
        const int r = unit * ROWS + lane;
        const bool mine = lane < ROWS && r < c.a.g.rows && !(c.a.g.glu && lane);
        const float added = mine ? gemv_added(c.a.g, r, 0) : 0.0f;
        float sum = 0, total = 0;
        barrier_wait(&s->full[at.slot], at.turn);
#pragma unroll 2
        for (int step = 0; step < c.steps; step++)
            step_multiply<ROWS>(sum, c, x, ring + at.slot * ROWS * c.stride, step);
        gpu_sync_warp();
        if (lane == 0) barrier_arrive(&s->empty[at.slot]);
#pragma unroll
        for (int i = 0; i < CHAINS; i++) total += gpu_shfl(sum, 4 * i + lane % ROWS);
        const float up = gpu_shfl(total, 1);
        if (mine) gemv_result(c.a.g, r, 0, rstd, total, up, added);
        place_move(at, c.workers, c.slots);
    }
}

/* Zeros between the ring's rows: scales behind the last group's. */
__device__ inline void pads_clear(const bulk_args &c, char *ring, int rows)
{
    const int pad = (c.stride - (int)c.a.w.pitch) / 4;
    for (int i = (int)threadIdx.x; i < pad * rows; i += THREADS)
        *(uint32_t *)(ring + i / pad * c.stride + c.a.w.pitch + 4 * (i % pad)) = 0;
}

template <int ROWS> __global__ __launch_bounds__(THREADS, 1) void gemv_quant_bulk(const __grid_constant__ bulk_args c)
{
#    if defined(GPU_EMU) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
    GPU_SHARED(float, mem); /* barriers, rounded x, slots */
    bulk_shared *s = (bulk_shared *)mem;
    float *end = (float *)(s + 1), g[LANES];
    const rounded x = rounded_inside(c.a.x, end);
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
    if (warp == WORKERS) {
        units_ask<ROWS>(c, s, ring);
        return;
    }
    round_ahead(g, c.a.g.norm, c.a.g.I, c.a.g.wide);
    gpu_wait_for_previous();
    round_row(x, 0, c.a.g.x, c.a.g.norm, g, c.a.g.I, c.a.g.wide, WORKERS * GPU_WARP);
    gpu_sync_warp();
    if (threadIdx.x % GPU_WARP == 0) barrier_arrive(&s->ready);
    barrier_wait(&s->ready, 0);
    if (warp < c.workers) units_multiply<ROWS>(c, s, x, ring, warp);
#    endif
}

bool quant_bulk_takes(const struct quant_args *a) { return a->w.type == DT_Q8 && bulk_present(); }

template <int ROWS> static void bulk_launch(struct kctx *kc, const struct quant_args *a)
{
    struct bulk_args c = {};
    c.a = *a, c.units = (int)ceil_div(a->g.rows, ROWS), c.steps = (int)ceil_div(a->w.groups, CHAINS);
    const int64_t scales_end = a->w.scales_at + (int64_t)sizeof(uint16_t) * c.steps * CHAINS,
                  stride = ceil_div(scales_end > a->w.pitch ? scales_end : a->w.pitch, 16) * 16,
                  behind = STEP, /* that the last row's last step may read */
                  front = (int64_t)sizeof(bulk_shared) + rounded_bytes(a->x.groups) + behind;
    c.slots = (int)least(SLOTS, (SHARED - front) / (ROWS * stride));
    c.workers = (int)least(WORKERS, c.slots);
    c.slots = c.slots / c.workers * c.workers;
    c.ahead = (int)least(c.slots, AHEAD / (2 * stride) > 2 ? AHEAD / (2 * stride) : 2);
    c.stride = (int)stride;
    gpu_launch_early(gemv_quant_bulk<ROWS>, dim3((unsigned)least(c.units, dev_units(kc->dev))), THREADS,
                     (size_t)(front + c.slots * ROWS * stride), stream_of(kc), c);
}

void quant_bulk_run(struct kctx *kc, const struct quant_args *a)
{
    (a->g.glu || a->w.groups < FEW_GROUPS ? bulk_launch<2> : bulk_launch<1>)(kc, a);
}

#else

bool quant_bulk_takes(const struct quant_args *) { return false; }
void quant_bulk_run(struct kctx *, const struct quant_args *) {}

#endif
