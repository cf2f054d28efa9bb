/* See gemv.h: decode on matrix units, for x and w of the same 16-bit type and any number of rows of x. A block has an
 * equal part of w's rows, in tiles of 8. Two groups of warps have a half of the columns each and stream it through a
 * ring in shared memory, some columns of all rows of a pass at a time, with the same columns of x beside them. So w is
 * read once, x once a pass, what is under way does not wait for what is computed, and while one group waits the other
 * works. The rings are filled but for their last stage before the kernel waits for its predecessor; that stage is asked
 * for behind the first columns of x, which wait for all that is under way, so that there is something behind them.
 *
 * For many rows of x each group is a block, and the two are a pair (a cluster) that has twice the rows: half as much of
 * x is read, and there is room for more of w. Cards without clusters do it as for few.
 *
 * A group's warps share the tiles and, 16 at a time, the columns; all sums of one element are added in order: for each
 * half of the columns those of its even and of its odd 16. Neither a pass's shape nor the number of rows changes a bit.
 *
 * A norm is a kernel of its own before it: done by every block on the way in, it costs more than it saves. Code should
 * be small: what a multiprocessor has not run lately it reads through the queue of the weights. Scratch: the normed
 * x. */
#include "kern/gpu/gemv.h"
#include "kern/gpu/mma.h"

#if GPU_HAS_MMA

enum {
    HALVES = 2,    /* of the columns: a group of warps each */
    THREADS = 256, /* of a block */
    BY_COLUMN = 2, /* warps of a group that share the columns */
    SEGMENTS = HALVES * BY_COLUMN,
    STAGES = 3,
    RING = 200 << 10, /* bytes of all rings at most */
    UNIT = 8,         /* rows of w in a tile */
    GROUP = 8,        /* pieces of 8 columns that are permuted among themselves */
    T_MAX = 64,
    T_FEW = 16, /* rows of x for which a block has both groups */
};

/* Of a block: its groups, their threads, warps of one that share the tiles. PAIR: the other group is another block. */
template <bool PAIR> struct groups {
    enum { N = PAIR ? 1 : HALVES, MEMBERS = THREADS / N, BY_ROW = MEMBERS / 32 / BY_COLUMN };
};

/* How a launch divides its work: columns of a half, tiles of a pass, log2 of the pieces that a stage has of each row,
 * bytes of a stage, of the sums and of all in front of the ring. */
struct ring_shape {
    int half, tiles, shift, stage, sums, front;
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
template <bool PAIR> __device__ inline void group_sync()
{
    enum { MEMBERS = groups<PAIR>::MEMBERS };
    if (PAIR)
        __syncthreads();
    else if (threadIdx.x < MEMBERS)
        asm volatile("bar.sync 1, %0;" ::"n"((int)MEMBERS) : "memory");
    else
        asm volatile("bar.sync 2, %0;" ::"n"((int)MEMBERS) : "memory");
}

/* Columns of `n` rows into a stage from row `to` on, zeros beyond the last column. A piece's place in its row is
 * permuted by the row's number. */
template <bool PAIR>
__device__ inline void ring_copy(const ring &g, const char *const *row, uint32_t stage, int to, int n, int column,
                                 int shift)
{
    enum { MEMBERS = groups<PAIR>::MEMBERS };
    const int t = (int)threadIdx.x % MEMBERS, c = t & ((1 << shift) - 1), k = column + LANES * c;
    const bool there = k < g.to;
    stage += (uint32_t)to << (shift + 4);
#pragma unroll 4
    for (int r = t >> shift; r < n; r += MEMBERS >> shift)
        copy_16(stage + (uint32_t)(((r << shift) + (c ^ (r % GROUP))) * 16), row[r] + (there ? 2 * k : 0), there);
}

template <bool PAIR>
__device__ inline void ring_weights(const gemv_args &a, const ring &g, int slot, ring_place p, const ring_shape &s)
{
    ring_copy<PAIR>(g, g.row + a.T + UNIT * (p.tile - g.first), g.at + (uint32_t)(slot * s.stage), 0,
                    UNIT * min(s.tiles, g.last - p.tile), p.column, s.shift);
}
template <bool PAIR>
__device__ inline void ring_inputs(const gemv_args &a, const ring &g, int slot, ring_place p, const ring_shape &s)
{
    ring_copy<PAIR>(g, g.row, g.at + (uint32_t)(slot * s.stage), UNIT * s.tiles, a.T, p.column, s.shift);
}

/* acc[m][n] += x's tile m (16 rows) times w's tile of this warp's n-th, this warp's columns of a stage. */
template <class E, int M, int N, bool PAIR>
__device__ inline void ring_multiply(const gemv_args &a, float (&acc)[M][N][4], uint32_t stage, int tiles,
                                     const ring_shape &s)
{
    enum { BY_ROW = groups<PAIR>::BY_ROW, MEMBERS = groups<PAIR>::MEMBERS };
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

/* f(row, token, sum) for each of this thread's sums of a pass, which are 0 then. */
template <int M, int N, bool PAIR, class F>
__device__ inline void ring_each(const gemv_args &a, float (&acc)[M][N][4], int tiles, F f)
{
    enum { BY_ROW = groups<PAIR>::BY_ROW };
    const int lane = (int)threadIdx.x % 32, mine = (int)threadIdx.x / 32 % BY_ROW, g = lane / 4, q = lane % 4;
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int t = mine + BY_ROW * n, token = 16 * m + g + i / 2 * 8;
                if (t < tiles && token < a.T) f(UNIT * t + 2 * q + i % 2, token, acc[m][n][i]);
                acc[m][n][i] = 0;
            }
}

/* part[segment][row][token] of a pass, or, where that is too much, part[row][token], to which segments are added by
 * turns. Rows start in different banks. */
template <int M, bool PAIR> struct sums {
    enum { WIDTH = 16 * M + 1, ROW = WIDTH * (int)sizeof(float), APART = PAIR || M == 1 };
};

/* The sums of a pass become results. */
template <int M, int N>
__device__ inline void ring_finish(const gemv_args &a, float (&acc)[M][N][4], const ring &g, int tile,
                                   const ring_shape &s)
{
    typedef sums<M, false> S;
    const int tiles = min(s.tiles, g.last - tile), first = UNIT * tile, rows = min(UNIT * tiles, a.rows - first),
              segment = (int)threadIdx.x / 32 / groups<false>::BY_ROW, stride = UNIT * s.tiles * S::WIDTH;
    __syncthreads(); /* the other group has read the pass before this */
    if (S::APART) {
        ring_each<M, N, false>(a, acc, tiles, [&](int row, int token, float sum) {
            g.part[segment * stride + row * S::WIDTH + token] = sum;
        });
        const float added = gemv_added(a, first, rows, (int)threadIdx.x);
        __syncthreads();
        gemv_finish(a, g.part, NULL, first, rows, S::WIDTH, SEGMENTS, stride, 0, added);
    } else {
        for (int turn = 0; turn < SEGMENTS; turn++) {
            if (segment == turn)
                ring_each<M, N, false>(a, acc, tiles, [&](int row, int token, float sum) {
                    float *to = g.part + row * S::WIDTH + token;
                    *to = (turn ? *to : 0.0f) + sum;
                });
            __syncthreads();
        }
        gemv_finish(a, g.part, NULL, first, rows, S::WIDTH, 1, 0, 0, gemv_added(a, first, rows, (int)threadIdx.x));
    }
}

/* The same of a pair, whose blocks give the results of one half of the tiles each. */
template <int M, int N>
__device__ inline void pair_finish(const gemv_args &a, float (&acc)[M][N][4], const ring &g, int tile,
                                   const ring_shape &s)
{
    typedef sums<M, true> S;
    const int tiles = min(s.tiles, g.last - tile), first = UNIT * tile, rows = min(UNIT * tiles, a.rows - first),
              rank = gpu_rank(), lower = min(rows, UNIT * ((tiles + 1) / 2)),
              from = rank ? lower : 0, n = (rank ? rows : lower) - from, stride = UNIT * ((s.tiles + 1) / 2) * S::WIDTH;
    float *mine = g.part + (BY_COLUMN * rank + (int)threadIdx.x / 32 / groups<true>::BY_ROW) * stride;
    gpu_meet(); /* the pass before this is read */
    ring_each<M, N, true>(a, acc, tiles, [&](int row, int token, float sum) {
        const bool upper = row >= UNIT * ((tiles + 1) / 2);
        gpu_put(mine + (upper ? row - lower : row) * S::WIDTH + token, upper, sum);
    });
    const float added = gemv_added(a, first + from, n, (int)threadIdx.x);
    gpu_meet();
    gemv_finish(a, g.part, NULL, first + from, n, S::WIDTH, SEGMENTS, stride, 0, added);
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

/* What a block has to do, and where. */
template <bool PAIR> __device__ inline ring ring_of(const gemv_args &a, const ring_shape &s, float *mem)
{
    const int units = (a.rows + UNIT - 1) / UNIT, group = (int)threadIdx.x / groups<PAIR>::MEMBERS,
              half = PAIR ? gpu_rank() : group;
    const int blocks = (int)gridDim.x >> PAIR, block = (int)blockIdx.x >> PAIR;
    return { mem,
             (const char **)((char *)mem + s.sums),
             shared_at(mem) + (uint32_t)(s.front + group * STAGES * s.stage),
             (int)((int64_t)units * block / blocks),
             (int)((int64_t)units * (block + 1) / blocks),
             half * s.half,
             min(a.I, (half + 1) * s.half),
             (half + 1) * s.half };
}

template <class E, int M, int N, bool PAIR>
__global__ __launch_bounds__(THREADS, M == 1 ? 3 : 2) void gemv_mma(gemv_args a, ring_shape s)
{
    GPU_SHARED(float, mem);
    const ring g = ring_of<PAIR>(a, s, mem);
    float acc[M][N][4] = {};
    ring_place put = { g.first, g.from }, get = put;
    gpu_let_next();
    ring_rows<E>(a, g);
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) {
        if (put.tile < g.last) ring_weights<PAIR>(a, g, i, put, s);
        ring_advance(put, g, s);
    }
    gpu_wait_for_previous();
    put = get;
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) {
        if (put.tile < g.last) ring_inputs<PAIR>(a, g, i, put, s);
        ring_advance(put, g, s);
    }
    copy_commit();
    if (put.tile < g.last) {
        ring_weights<PAIR>(a, g, STAGES - 1, put, s);
        ring_inputs<PAIR>(a, g, STAGES - 1, put, s);
        ring_advance(put, g, s);
    }
    copy_commit();
    bool full = true;
    copy_wait<1>();
    for (int slot = 0; get.tile < g.last; slot = (slot + 1) % STAGES) {
        copy_wait<STAGES - 2>();
        group_sync<PAIR>(); /* the stage is there; the one before it is free */
        if (!full) {
            if (put.tile < g.last) {
                const int free = (slot + STAGES - 1) % STAGES;
                ring_weights<PAIR>(a, g, free, put, s);
                ring_inputs<PAIR>(a, g, free, put, s);
                ring_advance(put, g, s);
            }
            copy_commit();
        }
        full = false;
        const int tile = get.tile, tiles = min(s.tiles, g.last - tile);
        ring_multiply<E, M, N, PAIR>(a, acc, g.at + (uint32_t)(slot * s.stage), tiles, s);
        ring_advance(get, g, s);
        if (get.tile == tile) continue;
        if (PAIR)
            pair_finish<M, N>(a, acc, g, tile, s);
        else
            ring_finish<M, N>(a, acc, g, tile, s);
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
template <class E, int M, int N, bool PAIR> static void gemv_mma_launch(struct kctx *kc, const struct gemv_args *a)
{
    typedef groups<PAIR> G;
    typedef sums<M, PAIR> S;
    enum { SHIFT_MOST = 6, BLOCKS = PAIR ? 2 : 1,
           TILE_SUMS = UNIT * S::ROW * (S::APART ? SEGMENTS / BLOCKS : 1) /* of a block; an even number of them */ };
    const int64_t units = ceil_div(a->rows, UNIT), parts = least(units, dev_units(kc->dev) / BLOCKS),
                  each = ceil_div(units, parts), table = (a->T + UNIT * each) * (int64_t)sizeof(char *);
    const int64_t room = least(RING, shared_most() - N * G::BY_ROW * TILE_SUMS - table - 128) / (STAGES * G::N * 16);
    int shift = a->T <= 16 && (room >> 4) - a->T >= 3 * UNIT ? 4 : 3;
    const int64_t most = least(least(N * G::BY_ROW, each), ((room >> shift) - a->T) / UNIT);
    const int tiles = (int)ceil_div(each, ceil_div(each, most)), rows = UNIT * tiles + a->T;
    while (shift < SHIFT_MOST && rows << (shift + 1) <= room) shift++;
    struct ring_shape s = { (int)ceil_div(a->I, HALVES * 64) * 64, tiles, shift, (rows << shift) * 16,
                            (tiles + tiles % 2) * TILE_SUMS, 0 };
    s.front = (int)ceil_div(s.sums + table, 128) * 128;
    gpu_launch_clusters(gemv_mma<E, M, N, PAIR>, PAIR ? 2 : 1, dim3((unsigned)(parts * BLOCKS)), THREADS,
                        (size_t)(s.front + s.stage * STAGES * G::N), stream_of(kc), *a, s);
}

template <class E> static void gemv_mma_tokens(struct kctx *kc, const struct gemv_args *a)
{
    const bool pairs = gpu_is_sm90();
    if (a->T <= T_FEW)
        gemv_mma_launch<E, 1, 4, false>(kc, a);
    else if (a->T <= 32 && pairs)
        gemv_mma_launch<E, 2, 4, true>(kc, a);
    else if (a->T <= 32)
        gemv_mma_launch<E, 2, 8, false>(kc, a);
    else if (pairs)
        gemv_mma_launch<E, 4, 4, true>(kc, a);
    else
        gemv_mma_launch<E, 4, 4, false>(kc, a);
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
