/* Decode with quantised weights: x is rounded to 8 bits by groups (quant.h), a group's product is a sum of integers,
 * exact, and is scaled and added in f32. The integers start from a number near 2^23, so that they end as the bits of a
 * float.
 *
 * For one token, where the card's engine does not copy (else see gemv_quant_bulk.cu), a warp has some rows of w at a
 * time, whose bytes go through a ring of its own in shared memory; that is filled before x is there, and x rounded (and
 * normed) by each block for itself. Four lanes share a group, whose bytes are multiplied four at a time. Blocks have
 * equal parts of the rows, and as many warps as divide those evenly. The next kernel may start when the last bytes are
 * asked for: it asks for its own while they come.
 *
 * On matrix units a warp has a strip of w's rows for many tokens, and every CHAINS-th group, whose bytes go from memory
 * to registers, where 4 bits become 8, and on. Their x is rounded by a kernel before it, in the same way.
 *
 * An element's sum is that of CHAINS sums, in order, each of every CHAINS-th group, in order: how many tokens and rows
 * there are changes no bit. Scratch: rounded x. */
#include "kern/gpu/gemv_quant.h"
#include "kern/gpu/mma.h"

/* ---- a warp for some rows of w, T tokens */

enum { ROWS_WARPS = 640 / GPU_WARP /* of a block at most */, ROWS_LEAST = 256 / GPU_WARP, SHARED_SUMS = 12 << 10 };

/* What a warp reads at a time of ROWS rows: 16 bytes a lane and the scales. Blocks begin at multiples of SPLIT rows. */
template <int TYPE_, int ROWS_, int T_, int DEPTH_> struct rows_shape {
    static const int TYPE = TYPE_;
    enum { ROWS = ROWS_, T = T_, DEPTH = GPU_COPIES ? DEPTH_ : 1, SUMS = ROWS_ * T_ /* of a group */ };
    enum { TURNS = TYPE_ == DT_Q4 ? 2 : 1, GROUPS = CHAINS * TURNS, PIECES = GROUPS / LANES /* of scales, 16 bytes */ };
    enum { SPLIT = ROWS_ > 2 ? ROWS_ : 2 /* gate and up */ };
    struct alignas(16) slot {
        gpu_16bytes code[ROWS_][GPU_WARP];
        uint16_t scale[ROWS_][GROUPS];
    };
};

/* What a block has of a product; a unit is ROWS rows. */
struct rows_part {
    int first, rows, units, steps;
};

template <class S> __device__ inline rows_part rows_part_of(const quant_args &a)
{
    const int64_t all = (a.g.rows + S::SPLIT - 1) / S::SPLIT;
    const int first = (int)(all * blockIdx.x / gridDim.x) * S::SPLIT,
              last = min(a.g.rows, (int)(all * (blockIdx.x + 1) / gridDim.x) * S::SPLIT);
    return { first, last - first, (last - first + S::ROWS - 1) / S::ROWS, (a.w.groups + S::GROUPS - 1) / S::GROUPS };
}

/* Where a warp is in its work. */
struct rows_place {
    int unit, step;
};

/* The rows of a unit; behind the block's last one, that again. The first lanes have one piece of scales each. */
template <class S> struct rows_source {
    const char *row[S::ROWS], *scales;
};

template <class S>
__device__ inline void rows_find(rows_source<S> &from, const quant_args &a, const rows_part &p, int unit)
{
    const int lane = (int)threadIdx.x % GPU_WARP;
    const char *scales = NULL;
#pragma unroll
    for (int r = 0; r < S::ROWS; r++) {
        const char *row = quant_row_at(a, p.first + min(unit * S::ROWS + r, p.rows - 1));
        if (r == 0 || lane / S::PIECES == r) scales = row;
        from.row[r] = row;
    }
    from.scales = scales;
}

/* Zeros behind the last group. */
template <class S>
__device__ inline void slot_copy(typename S::slot &to, const quant_args &a, const rows_source<S> &from, int step)
{
    const int lane = (int)threadIdx.x % GPU_WARP, at = 16 * (step * GPU_WARP + lane);
#pragma unroll
    for (int r = 0; r < S::ROWS; r++) bytes_copy(&to.code[r][lane], from.row[r] + at, at < a.w.scales_at);
    if (lane < S::ROWS * S::PIECES) {
        const int s = a.w.scales_at + 16 * (step * S::PIECES + lane % S::PIECES);
        bytes_copy((gpu_16bytes *)to.scale + lane, from.scales + s, s < (int)a.w.pitch);
    }
}

/* What this lane has of a row in one turn, times x there. */
template <class S>
__device__ inline int piece_dot(const uint32_t (&level)[4], const typename S::slot &w, int r, int turn,
                                const gpu_16bytes &x)
{
    const int lane = (int)threadIdx.x % GPU_WARP;
    int d = 0;
    if (S::TYPE == DT_Q8) {
        const gpu_16bytes b = w.code[r][lane];
#pragma unroll
        for (int i = 0; i < 4; i++) d = gpu_dot4(b.u[i], x.u[i], d);
    } else {
        const uint2 b = ((const uint2 *)w.code[r])[turn * GPU_WARP + lane];
        d = gpu_dot4_of(level, b.x, x.u[0], d), d = gpu_dot4_of(level, b.x >> 16, x.u[1], d);
        d = gpu_dot4_of(level, b.y, x.u[2], d), d = gpu_dot4_of(level, b.y >> 16, x.u[3], d);
    }
    return d;
}

/* Adds a step to this lane's sum, which is that of row q / T of the unit and token q % T. */
template <class S>
__device__ inline void slot_multiply(float &sum, const quant_args &a, const rounded &x, const typename S::slot &w,
                                     int step)
{
    const int lane = (int)threadIdx.x % GPU_WARP, chain = lane / 4;
    const int q = lane % 4 % S::SUMS, t = min(q % S::T, a.g.T - 1);
    const uint32_t level[4] = { a.w.level[0], a.w.level[1], a.w.level[2], a.w.level[3] };
#pragma unroll
    for (int turn = 0; turn < S::TURNS; turn++) {
        const int group = (step * S::TURNS + turn) * CHAINS + chain;
        int d[S::SUMS];
#pragma unroll
        for (int i = 0; i < S::T; i++) {
            const gpu_16bytes in =
                ((const gpu_16bytes *)x.q)[((int64_t)min(i, a.g.T - 1) * x.groups + group) * 4 + lane % 4];
#pragma unroll
            for (int r = 0; r < S::ROWS; r++) d[r * S::T + i] = piece_dot<S>(level, w, r, turn, in);
        }
        const round_scale s = x.s[group * x.stride + t];
        const float scale = gpu_float(gpu_f16{ w.scale[q / S::T][turn * CHAINS + chain] });
        sum = group_add(sum, quad_sum(d, lane % 4) + s.start, scale * s.s);
    }
}

template <class S> __global__ __launch_bounds__(ROWS_WARPS *GPU_WARP) void gemv_quant_rows(quant_args a)
{
    GPU_SHARED(float, part); /* [chain][row][token]; x, if not rounded yet; the warps' rings */
    const int warp = (int)threadIdx.x / GPU_WARP, warps = (int)blockDim.x / GPU_WARP,
              lane = (int)threadIdx.x % GPU_WARP, stride = a.g.rows_block * S::T;
    const rows_part p = rows_part_of<S>(a);
    float *end = part + CHAINS * stride, sum = 0, g[LANES];
    const rounded x = S::T == 1 ? rounded_inside(a.x, end) : a.x;
    typename S::slot *ring = (typename S::slot *)end + warp * S::DEPTH;
    rows_place put = { warp, 0 }, get = put;
    rows_source<S> from;
    const auto ask = [&](typename S::slot &to) {
        if (put.unit < p.units) {
            if (put.step == 0) rows_find<S>(from, a, p, put.unit);
            slot_copy<S>(to, a, from, put.step);
            if (++put.step == p.steps) put = { put.unit + warps, 0 };
            if (put.unit >= p.units) gpu_let_next();
        }
        copy_commit();
    };
#pragma unroll
    for (int i = 0; i < S::DEPTH; i++) ask(ring[i]);
    if (S::T == 1) round_ahead(g, a.g.norm, a.g.I, a.g.wide);
    gpu_wait_for_previous();
    const float added = gemv_added(a.g, p.first, p.rows, (int)threadIdx.x);
    if (S::T == 1) {
        round_row(x, 0, a.g.x, a.g.norm, g, a.g.I, a.g.wide, (int)blockDim.x);
        __syncthreads();
        if (a.g.norm.p && warp == warps - 1) round_squares(x, 0);
    }
    for (int at = 0; get.unit < p.units; at = at + 1 < S::DEPTH ? at + 1 : 0) {
        copy_wait<S::DEPTH - 1>();
        gpu_sync_warp();
        slot_multiply<S>(sum, a, x, ring[at], get.step);
        gpu_sync_warp();
        ask(ring[at]);
        if (++get.step < p.steps) continue;
        const int row = get.unit * S::ROWS + lane % 4 / S::T;
        if (lane % 4 < S::SUMS && row < p.rows) part[lane / 4 * stride + row * S::T + lane % 4 % S::T] = sum;
        sum = 0, get = { get.unit + warps, 0 };
    }
    __syncthreads();
    gemv_finish(a.g, part, x.squares + x.groups * x.stride, p.first, p.rows, S::T, CHAINS, stride, 0, added);
}

/* Blocks with equal parts, of which the multiprocessors run one each; but no more than their sums have room for. Warps
 * that take equal turns; or some more, which have nothing in the last of them, if they round x in fewer. */
template <class S> static void rows_launch(struct kctx *kc, struct quant_args *a)
{
    const int64_t parts = ceil_div(a->g.rows, S::SPLIT), of_units = S::SPLIT / S::ROWS,
                  most = SHARED_SUMS / (int)sizeof(float) / (CHAINS * S::SPLIT * S::T), few = ceil_div(parts, most);
    const int64_t blocks = least(parts, few > dev_units(kc->dev) ? few : dev_units(kc->dev)),
                  each = ceil_div(parts, blocks), turns = ceil_div(each * of_units, ROWS_WARPS),
                  even = ceil_div(each * of_units, turns), pieces = ceil_div(a->g.I, LANES * GPU_WARP),
                  rounding = S::T == 1 ? ceil_div(pieces, ceil_div(pieces, ROWS_WARPS)) : 1;
    int64_t warps = even > rounding ? even : rounding;
    if (warps < ROWS_LEAST) warps = ROWS_LEAST;
    a->g.rows_block = (int)(each * S::SPLIT);
    const size_t x = S::T > 1 ? 0 : (size_t)rounded_bytes(a->x.groups);
    gpu_launch_early(gemv_quant_rows<S>, dim3((unsigned)blocks), dim3((unsigned)(warps * GPU_WARP)),
                     (size_t)(CHAINS * a->g.rows_block * S::T) * sizeof(float) + x +
                         (size_t)(warps * S::DEPTH) * sizeof(typename S::slot),
                     stream_of(kc), *a);
}

#if GPU_HAS_MMA

enum { WARPS = BLOCK / 32, TOKENS = 8 /* of a tile */, T_MAX = 64 };
static_assert((int)WARPS == (int)CHAINS, "a warp adds up one chain");

/* A launch for many tokens: M tiles of 16 rows by N of 8 tokens. */
template <int TYPE_, int M_, int N_, int N_AHEAD_> struct quant_shape {
    static const int TYPE = TYPE_, M = M_, N = N_, N_AHEAD = N_AHEAD_, ROWS = 16 * M_, PARTS = 2 * M_;
    static const int WIDTH = N_ * TOKENS + 1 /* so that rows start in different banks */;
};

/* Groups of a unit: 16 bytes for each of the four lanes that share a row. They are CHAINS apart. */
template <int TYPE> struct quant_unit {
    enum { GROUPS = TYPE == DT_Q4 ? 2 : 1 };
};
template <int TYPE> __device__ inline int unit_group(int unit, int k)
{
    return TYPE == DT_Q4 ? 2 * unit - unit % CHAINS + k * CHAINS : unit;
}

/* What a lane reads of its row in one unit. */
struct quant_part {
    uint32_t code[4], scale; /* one or two f16 */
};

template <int TYPE>
__device__ inline void part_load(quant_part &p, const quant_args &a, const char *row, int unit, int q)
{
    if (TYPE == DT_Q4) {
        const int group = unit_group<TYPE>(unit, 0), next = min(group + CHAINS, a.w.groups - 1); /* or x is 0 */
        const unsigned short *s = (const unsigned short *)(row + a.w.scales_at);
        asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];"
                     : "=r"(p.code[0]), "=r"(p.code[1])
                     : "l"(row + group * HALF + 8 * q));
        asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];"
                     : "=r"(p.code[2]), "=r"(p.code[3])
                     : "l"(row + next * HALF + 8 * q));
        p.scale = __ldg(s + group) | (uint32_t)__ldg(s + next) << 16;
    } else {
        const gpu_16bytes b = bytes_load_once(row + unit * QUANT_GROUP + 16 * q);
#pragma unroll
        for (int i = 0; i < 4; i++) p.code[i] = b.u[i];
        p.scale = __ldg((const unsigned short *)(row + a.w.scales_at) + unit);
    }
}

/* Group k of a unit as four words of 8 bits. */
template <int TYPE>
__device__ inline void part_bytes(uint32_t (&b)[4], const quant_args &a, const quant_part &p, int k)
{
#pragma unroll
    for (int i = 0; i < 4; i++)
        b[i] = TYPE == DT_Q4 ? gpu_lookup4(a.w.level, p.code[2 * k + i / 2] >> 16 * (i % 2)) : p.code[i];
}

__device__ inline float part_scale(const quant_part &p, int k)
{
    return __half2float(__ushort_as_half((unsigned short)(p.scale >> 16 * k)));
}

/* x of a group, for N tiles of tokens: this lane's words, and two tokens' scales. */
template <int N> struct quant_inputs {
    gpu_16bytes q[N];
    struct alignas(16) {
        round_scale t[2];
    } s[N];
};

template <class S>
__device__ inline void inputs_load(quant_inputs<S::N> &in, const quant_args &a, int group, int lane)
{
    const int t = lane / 4, q = lane % 4;
#pragma unroll
    for (int n = 0; n < S::N; n++) {
        in.q[n] = {};
        if (t + n * TOKENS < a.g.T)
            in.q[n] = ((const gpu_16bytes *)a.x.q)[((t + n * TOKENS) * a.x.groups + group) * 4 + q];
        *(gpu_16bytes *)in.s[n].t = *(const gpu_16bytes *)(a.x.s + group * a.x.stride + n * TOKENS + 2 * q);
    }
}

/* acc[m][n] += a unit of a strip's rows times all tokens. */
template <class S>
__device__ inline void unit_multiply(float (&acc)[S::M][S::N][4], const quant_args &a,
                                     const quant_part (&p)[S::PARTS], int unit, int lane)
{
    enum { GROUPS = quant_unit<S::TYPE>::GROUPS };
#pragma unroll
    for (int k = 0; k < GROUPS; k++) {
        quant_inputs<S::N> in;
        inputs_load<S>(in, a, unit_group<S::TYPE>(unit, k), lane);
#pragma unroll
        for (int m = 0; m < S::M; m++) {
            uint32_t lo[4], hi[4];
            part_bytes<S::TYPE>(lo, a, p[2 * m], k);
            part_bytes<S::TYPE>(hi, a, p[2 * m + 1], k);
            const float s[2] = { part_scale(p[2 * m], k), part_scale(p[2 * m + 1], k) };
#pragma unroll
            for (int n = 0; n < S::N; n++) {
                int d[4];
#pragma unroll
                for (int i = 0; i < 4; i++) d[i] = in.s[n].t[i % 2].start;
                mma_8<S::TYPE == DT_Q4>(d, lo[0], hi[0], lo[1], hi[1], in.q[n].u[0], in.q[n].u[1]);
                mma_8<S::TYPE == DT_Q4>(d, lo[2], hi[2], lo[3], hi[3], in.q[n].u[2], in.q[n].u[3]);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float &sum = acc[m][n][i];
                    sum = group_add(sum, d[i], s[i / 2] * in.s[n].t[i % 2].s);
                }
            }
        }
    }
}

/* A block has one strip. */
template <class S> __global__ __launch_bounds__(BLOCK) void gemv_quant_many(quant_args a)
{
    GPU_SHARED(float, part); /* [warp][row][token] */
    enum { STRIDE = S::ROWS * S::WIDTH };
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    const int first = (int)blockIdx.x * S::ROWS, rows = min((int)S::ROWS, a.g.rows - first), g = lane / 4, q = lane % 4;
    quant_part ring[S::N_AHEAD][S::PARTS];
    const char *row[S::PARTS];
    float acc[S::M][S::N][4] = {};
    const auto there = [&](int unit) { return unit_group<S::TYPE>(unit, 0) < a.w.groups; };
    const auto load = [&](quant_part(&p)[S::PARTS], int unit) {
#pragma unroll
        for (int m = 0; m < S::PARTS; m++)
            if (there(unit)) part_load<S::TYPE>(p[m], a, row[m], unit, q);
    };
    gpu_let_next();
#pragma unroll
    for (int m = 0; m < S::PARTS; m++) row[m] = quant_row_at(a, first + min(8 * m + g, rows - 1));
#pragma unroll
    for (int i = 0; i < S::N_AHEAD; i++) load(ring[i], warp + i * WARPS);
    gpu_wait_for_previous();
    const float added = gemv_added(a.g, first, rows, (int)threadIdx.x);
    for (int unit = warp; there(unit);) {
#pragma unroll
        for (int i = 0; i < S::N_AHEAD; i++, unit += WARPS) {
            if (!there(unit)) break;
            unit_multiply<S>(acc, a, ring[i], unit, lane);
            load(ring[i], unit + S::N_AHEAD * WARPS);
        }
    }
#pragma unroll
    for (int m = 0; m < S::M; m++)
#pragma unroll
        for (int n = 0; n < S::N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                part[warp * STRIDE + (16 * m + g + i / 2 * 8) * S::WIDTH + n * TOKENS + 2 * q + i % 2] = acc[m][n][i];
    __syncthreads();
    gemv_finish(a.g, part, a.x.squares + a.x.groups * a.x.stride, first, rows, S::WIDTH, WARPS, STRIDE, 0, added);
}

template <class S> static void many_launch(struct kctx *kc, const struct quant_args *a)
{
    gpu_launch_early(gemv_quant_many<S>, dim3((unsigned)ceil_div(a->g.rows, S::ROWS)), BLOCK,
                     (size_t)(WARPS * S::ROWS * S::WIDTH) * sizeof(float), stream_of(kc), *a);
}

/* More rows of w to a block where there are many tokens, whose x would else be read too often. */
template <int TYPE> static void many_tokens(struct kctx *kc, const struct quant_args *a)
{
    const bool many = a->g.rows >= 64 * dev_units(kc->dev);
    if (a->g.T <= TOKENS)
        many_launch<quant_shape<TYPE, 1, 1, 4>>(kc, a);
    else if (a->g.T <= 2 * TOKENS)
        many_launch<quant_shape<TYPE, 1, 2, 4>>(kc, a);
    else if (a->g.T <= 4 * TOKENS)
        (many ? many_launch<quant_shape<TYPE, 4, 4, 1>> : many_launch<quant_shape<TYPE, 2, 4, 2>>)(kc, a);
    else
        many_launch<quant_shape<TYPE, 2, 8, 1>>(kc, a);
}

#else

enum { TOKENS = 1, T_MAX = 4 };

template <int TYPE> static void many_tokens(struct kctx *kc, struct quant_args *a)
{
    rows_launch<rows_shape<TYPE, 1, 4, 4>>(kc, a);
}

#endif

/* Rows [from, from+n) of x. One is rounded by each block if that has room. */
template <int TYPE> static void run_rows(struct kctx *kc, struct quant_args *a, const struct gemv *g, int from, int n)
{
    enum { INSIDE = 1 << 14 /* columns; with the rings in what sm_89 and AMD's cards have */, DEPTH = 3 };
    const int64_t groups = ceil_div(a->w.groups, ROUND_GROUPS) * ROUND_GROUPS;
    if (n == 1 && a->g.I <= INSIDE) {
        a->x = { NULL, NULL, NULL, (int)groups, 1, TYPE == DT_Q4, MAGIC };
        if (quant_bulk_takes())
            quant_bulk_run(kc, a);
        else
            rows_launch<rows_shape<TYPE, 2, 1, DEPTH>>(kc, a);
    } else {
        a->x = quant_round(kc, tensor_slice(g->x, from, n), g->norm, TYPE == DT_Q4, MAGIC, TOKENS);
        many_tokens<TYPE>(kc, a);
    }
}

bool gemv_quant_takes(const struct kctx *kc, struct tensor x, struct tensor w)
{
    return dtype_is_quant((enum dtype)w.type) && x.type != DT_F32 && kc->product == DT_Q8;
}

void gemv_quant_run(struct kctx *kc, const struct gemv *g)
{
    const size_t mark = arena_mark(kc->scratch);
    const int T = (int)tensor_rows(g->x);
    for (int t = 0; t < T; t += T_MAX) {
        const int n = T - t < T_MAX ? T - t : T_MAX;
        struct quant_args a = { gemv_args_of(g, t, n), quant_view_of(g->w[0]), {} };
        (a.w.type == DT_Q4 ? run_rows<DT_Q4> : run_rows<DT_Q8>)(kc, &a, g, t, n);
        arena_rewind(kc->scratch, mark);
    }
}
