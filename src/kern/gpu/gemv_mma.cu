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
 * What a stage costs besides its bytes counts, for its warps wait for each other: so all that is the same in all stages
 * is worked out once (ring_copies, ring_fragments), and loads from shared memory are asked for several at a time. Code
 * should be small: what a multiprocessor has not run lately it reads through the queue of the weights. A norm is a
 * kernel of its own before it: done by every block on the way in, it costs more than it saves. Scratch: the normed
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
    RING = 216 << 10, /* bytes of all rings at most */
    UNIT = 8,         /* rows of w in a tile */
    GROUP = 8,        /* pieces of 8 columns that are permuted among themselves */
    T_MAX = 64,
    T_FEW = 16, /* rows of x for which a block has both groups */
};

/* Of a block: its groups, their threads, warps of one that share the tiles. PAIR: the other group is another block. */
template <bool PAIR> struct groups {
    enum { N = PAIR ? 1 : HALVES, MEMBERS = THREADS / N, BY_ROW = MEMBERS / 32 / BY_COLUMN };
};

/* Sums of a row of w for 16 M rows of x, which start in different banks. */
template <int M> struct sums {
    enum { WIDTH = 16 * M + 1, ROW = WIDTH * (int)sizeof(float) };
};

/* How a launch divides its work: columns of a half, tiles of a pass, log2 of the pieces that a stage has of each row,
 * bytes of a stage and of w's rows in it, tiles whose sums a block makes results at once. Where in shared memory these
 * sums, the table of rows and the rings are. */
struct ring_shape {
    int half, tiles, shift, stage, inputs, share, sums, table, rings;
};

/* What a thread copies of a stage: the first row, how far it is to the next, the column, and where the first rows go. A
 * piece's place in its row is permuted by the row's number. */
struct ring_copies {
    enum { AT_ONCE = 4 }; /* after so many rows places are the same again */
    int first, step, column;
    uint32_t to[AT_ONCE];
};

/* Where this lane's parts of fragments are in a stage: of x's tiles of 16 rows and of this warp's first of w. */
template <int M> struct ring_fragments {
    uint32_t x[M], w;
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

template <bool PAIR> __device__ inline ring_copies copies_of(const ring_shape &s)
{
    enum { MEMBERS = groups<PAIR>::MEMBERS };
    const int t = (int)threadIdx.x % MEMBERS, c = t & ((1 << s.shift) - 1);
    ring_copies p = { t >> s.shift, MEMBERS >> s.shift, LANES * c, {} };
#pragma unroll
    for (int i = 0; i < ring_copies::AT_ONCE; i++) {
        const int r = p.first + i * p.step;
        p.to[i] = (uint32_t)((r << s.shift) + (c ^ (r % GROUP))) * 16;
    }
    return p;
}

/* Columns of `n` rows to `to`, zeros beyond the last column. Where rows start is read for several of them at a time,
 * beyond the last one too, for nothing is read before a copy that stands in front of it. */
template <bool PAIR>
__device__ inline void ring_copy(const ring &g, const ring_copies &p, const char *const *row, uint32_t to, int n,
                                 int column)
{
    enum { AT_ONCE = ring_copies::AT_ONCE, BYTES = AT_ONCE * groups<PAIR>::MEMBERS * 16 };
    const int k = column + p.column;
    const bool there = k < g.to;
    const int64_t from = there ? 2 * k : 0;
    for (int r = p.first; r < n; r += AT_ONCE * p.step, to += BYTES) {
        const char *at[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) at[i] = row[r + i * p.step];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            if (r + i * p.step < n) copy_16(to + p.to[i], at[i] + from, there);
    }
}

template <bool PAIR>
__device__ inline void ring_weights(const gemv_args &a, const ring &g, const ring_copies &c, int slot, ring_place p,
                                    const ring_shape &s)
{
    ring_copy<PAIR>(g, c, g.row + a.T + UNIT * (p.tile - g.first), g.at + (uint32_t)(slot * s.stage),
                    UNIT * min(s.tiles, g.last - p.tile), p.column);
}
template <bool PAIR>
__device__ inline void ring_inputs(const gemv_args &a, const ring &g, const ring_copies &c, int slot, ring_place p,
                                   const ring_shape &s)
{
    ring_copy<PAIR>(g, c, g.row, g.at + (uint32_t)(slot * s.stage + s.inputs), a.T, p.column);
}

/* For rows and tiles that are not there it is that of others. */
template <int M, bool PAIR>
__device__ inline ring_fragments<M> fragments_of(const gemv_args &a, const ring_shape &s)
{
    enum { BY_ROW = groups<PAIR>::BY_ROW };
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x % groups<PAIR>::MEMBERS / 32,
              c = 2 * (warp / BY_ROW), row = s.shift + 4, w = warp % BY_ROW < s.tiles ? warp % BY_ROW : 0;
    ring_fragments<M> f;
#pragma unroll
    for (int m = 0; m < M; m++) {
        const int r = 16 * m + lane % 16 < a.T ? 16 * m + lane % 16 : min(lane % GROUP, a.T - 1);
        f.x[m] = (uint32_t)(s.inputs + (r << row) + (c ^ lane / 16 ^ (r % GROUP)) * 16);
    }
    f.w = (uint32_t)(((UNIT * w + lane % UNIT) << row) + (c ^ lane / 8 % 2 ^ (lane % UNIT)) * 16);
    return f;
}

/* acc[m][n] += x's tile m (16 rows) times w's tile of this warp's n-th, this warp's columns of a stage. Where the
 * second of a pair of tiles is missing, the first is taken for it, for sums that nobody reads. All fragments of two
 * steps are asked for before one is used. Conditions are short, to become predicates: sums stay in their registers. */
template <class E, int M, int N, bool PAIR>
__device__ inline void ring_multiply(float (&acc)[M][N][4], const ring_fragments<M> &f, uint32_t stage, int tiles,
                                     const ring_shape &s)
{
    enum { AT_ONCE = 2, STEP = 16 * 2 * BY_COLUMN, BY_ROW = groups<PAIR>::BY_ROW, PAIRS = N / 2 };
    const int mine = (int)threadIdx.x / 32 % BY_ROW, upper = (int)threadIdx.x % 32 / 16 * BY_ROW;
    uint32_t w_at[PAIRS];
#pragma unroll
    for (int n = 0; n < PAIRS; n++) {
        const int t = 2 * n * BY_ROW, tile = mine + t + upper < tiles ? t + upper : t;
        w_at[n] = f.w + ((uint32_t)(UNIT * tile) << (s.shift + 4));
    }
#pragma unroll 1
    for (uint32_t c = 0; c < 16u << s.shift; c += STEP * AT_ONCE, stage += STEP * AT_ONCE) {
        uint32_t x[AT_ONCE][M][4], w[AT_ONCE][PAIRS][4];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
#pragma unroll
            for (int m = 0; m < M; m++) ldmatrix(x[i][m], (stage + f.x[m]) ^ STEP * i);
#pragma unroll
        for (int n = 0; n < PAIRS; n++)
            if (n == 0 || mine + 2 * n * BY_ROW < tiles)
#pragma unroll
                for (int i = 0; i < AT_ONCE; i++) ldmatrix(w[i][n], (stage + w_at[n]) ^ STEP * i);
#pragma unroll
        for (int n = 0; n < PAIRS; n++)
            if (n == 0 || mine + 2 * n * BY_ROW < tiles)
#pragma unroll
                for (int i = 0; i < AT_ONCE; i++)
#pragma unroll
                    for (int m = 0; m < M; m++) {
                        mma<E>(acc[m][2 * n], x[i][m], w[i][n][0], w[i][n][1]);
                        mma<E>(acc[m][2 * n + 1], x[i][m], w[i][n][2], w[i][n][3]);
                    }
    }
}

/* All threads that give a result together. `put`: what they put is seen then. */
template <bool PAIR> __device__ inline void ring_meet(bool put)
{
    if (PAIR)
        gpu_meet(put);
    else
        __syncthreads();
}

/* The sums of a pass become results and are 0 then: part[segment][row][token], some tiles at a time, each block of a
 * pair those of one half of them. */
template <int M, int N, bool PAIR>
__device__ inline void ring_finish(const gemv_args &a, float (&acc)[M][N][4], const ring &g, int tile,
                                   const ring_shape &s)
{
    enum { WIDTH = sums<M>::WIDTH, BY_ROW = groups<PAIR>::BY_ROW };
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, mine = warp % BY_ROW,
              rank = PAIR ? gpu_rank() : 0, segment = BY_COLUMN * rank + warp / BY_ROW,
              tiles = min(s.tiles, g.last - tile), stride = UNIT * s.share * WIDTH, all = s.share << PAIR;
    float *const put = g.part + segment * stride + 2 * (lane % 4) * WIDTH + lane / 4;
    for (int from = 0; from < tiles; from += all) {
        ring_meet<PAIR>(false); /* what was there is read */
#pragma unroll
        for (int n = 0; n < N; n++) {
            const int t = mine + BY_ROW * n - from, owner = PAIR && t >= s.share;
            if (t < 0 || t >= min(all, tiles - from)) continue;
            float *to = put + (t - owner * s.share) * UNIT * WIDTH;
            if (PAIR) to = gpu_peer(to, owner);
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    if (16 * m + lane / 4 + i / 2 * 8 < a.T) to[i % 2 * WIDTH + 16 * m + i / 2 * 8] = acc[m][n][i];
        }
        const int first = tile + from + rank * s.share, n = min(s.share, tile + tiles - first),
                  rows = min(UNIT * n, a.rows - UNIT * first);
        const float added = gemv_added(a, UNIT * first, rows, (int)threadIdx.x);
        ring_meet<PAIR>(true);
        gemv_finish(a, g.part, NULL, UNIT * first, rows, WIDTH, SEGMENTS, stride, 0, added);
    }
    memset(acc, 0, sizeof acc);
}

/* Rows of x, then the block's rows of w; behind the last row of all, that one again. */
template <class E> __device__ inline void ring_rows(const gemv_args &a, const ring &g)
{
#pragma unroll 1
    for (int i = (int)threadIdx.x; i < a.T + UNIT * (g.last - g.first); i += THREADS) {
        const int r = UNIT * g.first + i - a.T;
        g.row[i] = (const char *)(i < a.T ? (const E *)a.x.p + (int64_t)i * a.I : gemv_row<E>(a, min(r, a.rows - 1)));
    }
    __syncthreads();
}

/* What a block has to do, and where. */
template <bool PAIR> __device__ inline ring ring_of(const gemv_args &a, const ring_shape &s, char *mem)
{
    const unsigned units = (unsigned)(a.rows + UNIT - 1) / UNIT, blocks = gridDim.x >> PAIR, block = blockIdx.x >> PAIR;
    const int group = (int)threadIdx.x / groups<PAIR>::MEMBERS, half = PAIR ? gpu_rank() : group;
    return { (float *)(mem + s.sums),
             (const char **)(mem + s.table),
             shared_at(mem) + (uint32_t)(s.rings + group * STAGES * s.stage),
             (int)(units * block / blocks),
             (int)(units * (block + 1) / blocks),
             half * s.half,
             min(a.I, (half + 1) * s.half),
             (half + 1) * s.half };
}

template <class E, int M, int N, bool PAIR>
__global__ __launch_bounds__(THREADS, M == 1 ? 3 : 1) void gemv_mma(gemv_args a, ring_shape s)
{
    GPU_SHARED(char, mem);
    const ring g = ring_of<PAIR>(a, s, mem);
    const ring_copies c = copies_of<PAIR>(s);
    const ring_fragments<M> f = fragments_of<M, PAIR>(a, s);
    float acc[M][N][4] = {};
    ring_place put = { g.first, g.from }, get = put;
    gpu_let_next();
    ring_rows<E>(a, g);
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) {
        if (put.tile < g.last) ring_weights<PAIR>(a, g, c, i, put, s);
        ring_advance(put, g, s);
    }
    gpu_wait_for_previous();
    put = get;
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) {
        if (put.tile < g.last) ring_inputs<PAIR>(a, g, c, i, put, s);
        ring_advance(put, g, s);
    }
    copy_commit();
    if (put.tile < g.last) {
        ring_weights<PAIR>(a, g, c, STAGES - 1, put, s);
        ring_inputs<PAIR>(a, g, c, STAGES - 1, put, s);
        ring_advance(put, g, s);
    }
    copy_commit();
    bool full = true;
    copy_wait<1>();
    for (int slot = 0; get.tile < g.last; slot = slot < STAGES - 1 ? slot + 1 : 0) {
        copy_wait<STAGES - 2>();
        group_sync<PAIR>(); /* the stage is there; the one before it is free */
        if (!full) {
            if (put.tile < g.last) {
                const int free = slot ? slot - 1 : STAGES - 1;
                ring_weights<PAIR>(a, g, c, free, put, s);
                ring_inputs<PAIR>(a, g, c, free, put, s);
                ring_advance(put, g, s);
            }
            copy_commit();
        }
        full = false;
        const int tile = get.tile, tiles = min(s.tiles, g.last - tile);
        ring_multiply<E, M, N, PAIR>(acc, f, g.at + (uint32_t)(slot * s.stage), tiles, s);
        ring_advance(get, g, s);
        if (get.tile == tile) continue;
        ring_finish<M, N, PAIR>(a, acc, g, tile, s);
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

/* How many blocks, or pairs, divide w's rows: as many as there is room for. */
static int64_t parts_of(const struct kctx *kc, const struct gemv_args *a, int blocks)
{
    return least(ceil_div(a->rows, UNIT), dev_units(kc->dev) / blocks);
}

/* Each block or pair has a whole number of passes: as many tiles as the warps have room for, if 128 columns of them and
 * of x fit the ring, or, where that is too few tiles, 64; of few tiles longer runs are read. The sums of an only pass
 * are where the ring was. */
template <class E, int M, int N, bool PAIR> static void gemv_mma_launch(struct kctx *kc, const struct gemv_args *a)
{
    typedef groups<PAIR> G;
    enum { SHIFT_MOST = 6, BLOCKS = PAIR ? 2 : 1, RINGS = G::N * STAGES, TILES_LEAST = M == 1 ? 3 : 8, SHARE = 16 / M,
           TILE_SUMS = UNIT * sums<M>::ROW * SEGMENTS,
           BEYOND = (ring_copies::AT_ONCE - 1) * (G::MEMBERS >> 3) /* looked up behind the last row */ };
    const int64_t parts = parts_of(kc, a, BLOCKS), each = ceil_div(ceil_div(a->rows, UNIT), parts),
                  table = (a->T + UNIT * each + BEYOND) * (int64_t)sizeof(char *), most = shared_most();
    struct ring_shape s = {};
    int64_t rows, room;
    for (int64_t passes = ceil_div(each, N * G::BY_ROW);; passes++) {
        s.tiles = (int)ceil_div(each, passes), s.share = (int)least(ceil_div(s.tiles, BLOCKS), SHARE);
        s.table = passes == 1 ? 0 : s.share * TILE_SUMS, s.rings = (int)ceil_div(s.table + table, 128) * 128;
        room = least(RING, most - s.rings) / (RINGS * 16), rows = UNIT * s.tiles + a->T;
        s.shift = (room >> 4) - a->T >= UNIT * TILES_LEAST ? 4 : 3;
        if (rows << s.shift <= room) break;
    }
    while (s.shift < SHIFT_MOST && rows << (s.shift + 1) <= room) s.shift++;
    s.half = (int)ceil_div(a->I, HALVES * 64) * 64, s.stage = (int)(rows << s.shift) * 16;
    s.inputs = UNIT * s.tiles << (s.shift + 4);
    if (!s.table) s.sums = s.rings, s.share = (int)least(ceil_div(s.tiles, BLOCKS), s.stage * RINGS / TILE_SUMS);
    gpu_launch_clusters(gemv_mma<E, M, N, PAIR>, BLOCKS, dim3((unsigned)(parts * BLOCKS)), THREADS,
                        (size_t)(s.rings + s.stage * RINGS), stream_of(kc), *a, s);
}

/* A pair whose warps have all their tiles in one pass anyway gets no room for more. */
template <class E> static void gemv_mma_tokens(struct kctx *kc, const struct gemv_args *a)
{
    enum { FEW_TILES = 4 * groups<true>::BY_ROW };
    const bool pairs = gpu_is_sm90();
    if (a->T <= T_FEW)
        gemv_mma_launch<E, 1, 4, false>(kc, a);
    else if (a->T <= 32 && pairs && a->rows <= FEW_TILES * UNIT * parts_of(kc, a, 2))
        gemv_mma_launch<E, 2, 4, true>(kc, a);
    else if (a->T <= 32 && pairs)
        gemv_mma_launch<E, 2, 8, true>(kc, a);
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
