/* See gemv.h: decode on matrix units, for x and w of the same 16-bit type and any number of rows of x. A block has an
 * equal part of w's rows, in tiles of 8. Its groups of warps divide the columns; each streams its own through a ring in
 * shared memory, some columns of all rows of a pass at a time, with the same columns of x beside them. So w is read
 * once, x once a pass, what is under way does not wait for what is computed, and while one group waits the other
 * works. The rings are filled before the kernel waits for its predecessor.
 *
 * A group's warps share the tiles and, 16 at a time, the columns; all sums of one element are added in order.
 * Neither a pass's shape nor the number of rows changes a bit. A norm is a kernel of its own before it: done by every
 * block on the way in, it costs more than it saves. Scratch: the normed x. */
#include "kern/gpu/gemv.h"
#include "kern/gpu/mma.h"

#if GPU_HAS_MMA

enum {
    GROUPS = 2,
    MEMBERS = 128,                  /* threads of a group */
    THREADS = GROUPS * MEMBERS,
    BY_ROW = 2,                     /* warps of a group that share the tiles */
    BY_COLUMN = MEMBERS / 32 / BY_ROW, /* and the columns */
    STAGES = 3,
    RING = 200 << 10,               /* bytes of all rings at most */
    UNIT = 8,                       /* rows of w in a tile */
    GROUP = 8,                      /* pieces of 8 columns that are permuted among themselves */
    T_MAX = 64,
};

/* How a launch divides its work: tiles of a pass, log2 of the pieces that a stage has of each row, bytes of a stage, of
 * the sums and of all in front of the ring. */
struct ring_shape {
    int tiles, shift, stage, sums, front;
};

/* What a block has in shared memory: sums of a pass, where each row of w and x starts, the ring. */
struct ring {
    float *part;
    const char **row;
    uint32_t at;
    int first, last; /* tiles of the block */
    int from, to;    /* columns of the group */
    int end;         /* where it goes on to the next pass: all groups have equally many stages */
};

/* Where in a block's work a stage's columns are. */
struct ring_place {
    int tile, column;
};

__device__ inline void ring_advance(ring_place &p, const ring &g, const ring_shape &s)
{
    p.column += LANES << s.shift;
    if (p.column >= g.end) p.column = g.from, p.tile += s.tiles;
}

/* All of a group. The barriers' numbers are constants, so that a block has no more of them than these. */
__device__ inline void group_sync()
{
    static_assert(GROUPS == 2, "a barrier for each");
    if (threadIdx.x < MEMBERS)
        asm volatile("bar.sync 1, %0;" ::"n"((int)MEMBERS) : "memory");
    else
        asm volatile("bar.sync 2, %0;" ::"n"((int)MEMBERS) : "memory");
}

/* Columns of `n` rows into a stage from row `to` on, zeros beyond the last column. A piece's place in its row is
 * permuted by the row's number. */
__device__ inline void ring_copy(const ring &g, const char *const *row, uint32_t stage, int to, int n, int column,
                                 int shift)
{
    const int t = (int)threadIdx.x % MEMBERS, c = t & ((1 << shift) - 1), k = column + LANES * c;
    const bool there = k < g.to;
    stage += (uint32_t)to << (shift + 4);
#pragma unroll 4
    for (int r = t >> shift; r < n; r += MEMBERS >> shift)
        copy_16(stage + (uint32_t)(((r << shift) + (c ^ (r % GROUP))) * 16), row[r] + (there ? 2 * k : 0), there);
}

__device__ inline void ring_weights(const gemv_args &a, const ring &g, int slot, ring_place p, const ring_shape &s)
{
    ring_copy(g, g.row + a.T + UNIT * (p.tile - g.first), g.at + (uint32_t)(slot * s.stage), 0,
              UNIT * min(s.tiles, g.last - p.tile), p.column, s.shift);
}
__device__ inline void ring_inputs(const gemv_args &a, const ring &g, int slot, ring_place p, const ring_shape &s)
{
    ring_copy(g, g.row, g.at + (uint32_t)(slot * s.stage), UNIT * s.tiles, a.T, p.column, s.shift);
}

/* acc[m][n] += x's tile m (16 rows) times w's tile of this warp's n-th, this warp's columns of a stage. */
template <class E, int M, int N>
__device__ inline void ring_multiply(const gemv_args &a, float (&acc)[M][N][4], uint32_t stage, int tiles,
                                     const ring_shape &s)
{
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x % MEMBERS / 32, mine = warp % BY_ROW;
    uint32_t x_row[M], w_row[N / 2], x_turn[M];
#pragma unroll
    for (int m = 0; m < M; m++) {
        const int r = min(16 * m + lane % 16, a.T - 1);
        x_row[m] = stage + ((uint32_t)(UNIT * s.tiles + r) << (s.shift + 4));
        x_turn[m] = (uint32_t)(lane / 16 ^ (r % GROUP));
    }
#pragma unroll
    for (int n = 0; n < N / 2; n++) {
        const int tile = min(mine + BY_ROW * (2 * n + lane / 16), tiles - 1);
        w_row[n] = stage + ((uint32_t)(UNIT * tile + lane % 8) << (s.shift + 4));
    }
    const uint32_t w_turn = (uint32_t)(lane / 8 % 2 ^ (lane % 8));
#pragma unroll 2
    for (uint32_t c = 2 * (uint32_t)(warp / BY_ROW); c < 1u << s.shift; c += 2 * BY_COLUMN) {
        uint32_t x[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) ldmatrix(x[m], x_row[m] + (c ^ x_turn[m]) * 16);
#pragma unroll
        for (int n = 0; n < N / 2; n++) {
            uint32_t w[4];
            if (mine + BY_ROW * 2 * n >= tiles) break;
            ldmatrix(w, w_row[n] + (c ^ w_turn) * 16);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma<E>(acc[m][2 * n], x[m], w[0], w[1]);
                mma<E>(acc[m][2 * n + 1], x[m], w[2], w[3]);
            }
        }
    }
}

/* The sums of a pass become results, and 0 again. part[rows][tokens] */
template <int M, int N>
__device__ inline void ring_finish(const gemv_args &a, float (&acc)[M][N][4], float *part, int tile, int tiles)
{
    enum { WIDTH = 16 * M + 1 /* so that rows start in different banks */ };
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, g = lane / 4, q = lane % 4;
    __syncthreads(); /* the other group has read the pass before this */
    for (int turn = 0; turn < GROUPS * BY_COLUMN; turn++) {
        if (warp / BY_ROW == turn)
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int m = 0; m < M; m++)
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        const int t = warp % BY_ROW + BY_ROW * n, token = 16 * m + g + i / 2 * 8;
                        float *to = part + (UNIT * t + 2 * q + i % 2) * WIDTH + token;
                        if (t < tiles && token < a.T) *to = turn ? *to + acc[m][n][i] : acc[m][n][i];
                        acc[m][n][i] = 0;
                    }
        __syncthreads();
    }
    const int first = UNIT * tile, rows = min(UNIT * tiles, a.rows - first);
    gemv_finish(a, part, NULL, first, rows, WIDTH, 1, 0, 0, gemv_added(a, first, rows, (int)threadIdx.x));
}

/* Rows of x, then the block's rows of w; behind the last row of all, that one again. */
template <class E> __device__ inline void ring_rows(const gemv_args &a, const ring &g)
{
    for (int i = (int)threadIdx.x; i < a.T + UNIT * (g.last - g.first); i += THREADS) {
        const int r = UNIT * g.first + i - a.T;
        g.row[i] = (const char *)(i < a.T ? (const E *)a.x.p + (int64_t)i * a.I : gemv_row<E>(a, min(r, a.rows - 1)));
    }
    __syncthreads();
}

template <class E, int M, int N>
__global__ __launch_bounds__(THREADS, M == 1 ? 3 : 2) void gemv_mma(gemv_args a, ring_shape s)
{
    GPU_SHARED(float, mem);
    const int units = (a.rows + UNIT - 1) / UNIT, group = (int)threadIdx.x / MEMBERS;
    const int columns = (a.I + GROUPS * 64 - 1) / (GROUPS * 64) * 64, from = group * columns;
    const ring g = { mem,
                     (const char **)((char *)mem + s.sums),
                     shared_at(mem) + (uint32_t)(s.front + group * STAGES * s.stage),
                     (int)((int64_t)units * blockIdx.x / gridDim.x),
                     (int)((int64_t)units * (blockIdx.x + 1) / gridDim.x),
                     from,
                     min(a.I, from + columns),
                     from + columns };
    float acc[M][N][4] = {};
    ring_place put = { g.first, from }, get = put;
    gpu_let_next();
    ring_rows<E>(a, g);
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) {
        if (put.tile < g.last) ring_weights(a, g, i, put, s);
        ring_advance(put, g, s);
    }
    gpu_wait_for_previous();
    put = get;
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) {
        if (put.tile < g.last) ring_inputs(a, g, i, put, s);
        ring_advance(put, g, s);
    }
    copy_commit();
    copy_wait<0>();
    for (int slot = 0; get.tile < g.last; slot = (slot + 1) % STAGES) {
        copy_wait<STAGES - 2>();
        group_sync(); /* the stage is there; the one before it is free */
        if (put.tile < g.last) {
            const int free = (slot + STAGES - 1) % STAGES;
            ring_weights(a, g, free, put, s);
            ring_inputs(a, g, free, put, s);
            ring_advance(put, g, s);
        }
        copy_commit();
        const int tile = get.tile, tiles = min(s.tiles, g.last - tile);
        ring_multiply<E, M, N>(a, acc, g.at + (uint32_t)(slot * s.stage), tiles, s);
        ring_advance(get, g, s);
        if (get.tile != tile) ring_finish<M, N>(a, acc, g.part, tile, tiles);
    }
}

/* Bytes that a block may have. */
static int shared_most(void)
{
    int device = 0, n = 0;
    gpu_check(gpu(GetDevice)(&device));
    gpu_check(gpu(DeviceGetAttribute)(&n, gpu(DevAttrMaxSharedMemoryPerBlockOptin), device));
    return n;
}

/* As many blocks as there are multiprocessors, each with a whole number of passes: as many tiles as the warps have room
 * for, if 64 columns of them and of x fit the ring; of few tiles longer runs are read. */
template <class E, int M, int N> static void gemv_mma_launch(struct kctx *kc, const struct gemv_args *a)
{
    enum { ROW_SUMS = UNIT * (16 * M + 1) * (int)sizeof(float), SHIFT_MOST = 6 };
    const int64_t units = ceil_div(a->rows, UNIT), blocks = least(units, dev_units(kc->dev)),
                  each = ceil_div(units, blocks), table = (a->T + UNIT * each) * (int64_t)sizeof(char *);
    const int64_t room = least(RING, shared_most() - N * BY_ROW * ROW_SUMS - table - 128) / (STAGES * GROUPS * 16);
    int shift = a->T <= 16 && (room >> 4) - a->T >= 3 * UNIT ? 4 : 3;
    const int64_t most = least(least(N * BY_ROW, each), ((room >> shift) - a->T) / UNIT);
    const int tiles = (int)ceil_div(each, ceil_div(each, most)), rows = UNIT * tiles + a->T;
    while (shift < SHIFT_MOST && rows << (shift + 1) <= room) shift++;
    struct ring_shape s = { tiles, shift, (rows << shift) * 16, tiles * ROW_SUMS, 0 };
    s.front = (int)ceil_div(s.sums + table, 128) * 128;
    gpu_launch_early(gemv_mma<E, M, N>, dim3((unsigned)blocks), THREADS,
                     (size_t)(s.front + s.stage * STAGES * GROUPS), stream_of(kc), *a, s);
}

template <class E> static void gemv_mma_tokens(struct kctx *kc, const struct gemv_args *a)
{
    if (a->T <= 16)
        gemv_mma_launch<E, 1, 4>(kc, a);
    else if (a->T <= 32)
        gemv_mma_launch<E, 2, 8>(kc, a);
    else
        gemv_mma_launch<E, 4, 4>(kc, a);
}

bool gemv_mma_takes(const struct gemv *g)
{
    const int type = g->x.type;
    return (type == DT_BF16 || type == DT_F16) && g->w[0].type == type && g->w[0].n[1] % LANES == 0;
}

void gemv_mma_run(struct kctx *kc, const struct gemv *g)
{
    const int T = (int)tensor_rows(g->x);
    const size_t mark = arena_mark(kc->scratch);
    struct gemv h = *g;
    if (g->norm.p) {
        h.x.p = arena_take(kc->scratch, tensor_bytes(g->x));
        gpu_rmsnorm_fwd(kc, h.x, tensor{}, g->x, g->norm, g->eps);
        h.norm.p = NULL;
    }
    for (int t = 0; t < T; t += T_MAX) {
        const struct gemv_args a = gemv_args_of(&h, t, T - t < T_MAX ? T - t : T_MAX);
        if (g->x.type == DT_BF16)
            gemv_mma_tokens<gpu_bf16>(kc, &a);
        else
            gemv_mma_tokens<gpu_f16>(kc, &a);
    }
    arena_rewind(kc->scratch, mark);
}

#else

bool gemv_mma_takes(const struct gemv *) { return false; }
void gemv_mma_run(struct kctx *, const struct gemv *) {}

#endif
