/* Decode with quantised weights: x is rounded to 8 bits by groups (quant.h), a group's product is a sum of integers,
 * exact, and is scaled and added in f32.
 *
 * On matrix units a warp has a strip of w's rows for all tokens, and every 8th unit of columns, whose bytes go from
 * memory to registers, where 4 bits become 8, and on. The integers start from a number near 2^23, so that they end as
 * the bits of a float. Some units are asked for ahead, the first of them before x is there.
 *
 * For one token a block has one or a few strips, and a warp goes through them without a stop. Each block rounds (and
 * norms) x for itself; and of 4 bits a lane reads 16 bytes of one group, so that a unit's two groups meet x in two
 * columns of the matrix unit. More tokens are rounded by a kernel before it, in the same way. An element's sum is one
 * warp's over its units in order, then the warps' in order: how many tokens and strips there are changes no bit.
 *
 * Elsewhere a warp has one row. Scratch: rounded x. */
#include "kern/gpu/gemv.h"
#include "kern/gpu/mma.h"
#include "kern/gpu/quant.h"

struct quant_args {
    gemv_args g;
    quant_view w; /* but for its address, of every weight */
    rounded x;
};

__device__ inline const char *quant_row_at(const quant_args &a, int r)
{
    int row;
    const int i = gemv_place(a.g, r, &row);
    return (const char *)a.g.w[i] + row * a.w.pitch;
}

#if GPU_HAS_MMA

enum { WARPS = BLOCK / 32, TOKENS = 8 /* of a tile */, T_MAX = 64, MAGIC = 0x4b400000 /* bits of 1.5 * 2^23 */ };

/* A launch for many tokens: M tiles of 16 rows by N of 8 tokens. */
template <int TYPE_, int M_, int N_, int N_AHEAD_> struct quant_shape {
    static const int TYPE = TYPE_, M = M_, N = N_, N_AHEAD = N_AHEAD_, ROWS = 16 * M_, PARTS = 2 * M_;
    static const int WIDTH = N_ * TOKENS + 1 /* so that rows start in different banks */;
};

/* Groups of a unit: 16 bytes for each of the four lanes that share a row. */
template <int TYPE> struct quant_unit {
    enum { GROUPS = TYPE == DT_Q4 ? 2 : 1 };
};

/* What a lane reads of its row in one unit. */
struct quant_part {
    uint32_t code[4], scale; /* one or two f16 */
};

template <int TYPE>
__device__ inline void part_load(quant_part &p, const quant_args &a, const char *row, int unit, int q)
{
    if (TYPE == DT_Q4) {
        const char *at = row + unit * 2 * HALF + 8 * q;
        asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];"
                     : "=r"(p.code[0]), "=r"(p.code[1])
                     : "l"(at));
        asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];"
                     : "=r"(p.code[2]), "=r"(p.code[3])
                     : "l"(at + HALF));
        p.scale = __ldg((const unsigned *)(row + a.w.scales_at) + unit); /* a row's end is zeros up to whole words */
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

__device__ inline float scaled(int d, float s) { return (__int_as_float(d) - __int_as_float(MAGIC)) * s; }

/* acc[m][n] += a unit of a strip's rows times all tokens. */
template <class S>
__device__ inline void unit_multiply(float (&acc)[S::M][S::N][4], const quant_args &a,
                                     const quant_part (&p)[S::PARTS], int unit, int lane)
{
    enum { GROUPS = quant_unit<S::TYPE>::GROUPS };
#pragma unroll
    for (int k = 0; k < GROUPS; k++) {
        quant_inputs<S::N> in;
        inputs_load<S>(in, a, unit * GROUPS + k, lane);
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
                for (int i = 0; i < 4; i++) acc[m][n][i] += scaled(d[i], s[i / 2] * in.s[n].t[i % 2].s);
            }
        }
    }
}

/* A block has one strip. */
template <class S> __global__ __launch_bounds__(BLOCK) void gemv_quant_many(quant_args a)
{
    GPU_SHARED(float, part); /* [warp][row][token] */
    enum { GROUPS = quant_unit<S::TYPE>::GROUPS, STRIDE = S::ROWS * S::WIDTH };
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, units = (a.w.groups + GROUPS - 1) / GROUPS;
    const int first = (int)blockIdx.x * S::ROWS, rows = min((int)S::ROWS, a.g.rows - first), g = lane / 4, q = lane % 4;
    quant_part ring[S::N_AHEAD][S::PARTS];
    const char *row[S::PARTS];
    float acc[S::M][S::N][4] = {};
    auto load = [&](quant_part(&p)[S::PARTS], int unit) {
#pragma unroll
        for (int m = 0; m < S::PARTS; m++)
            if (unit < units) part_load<S::TYPE>(p[m], a, row[m], unit, q);
    };
    gpu_let_next();
#pragma unroll
    for (int m = 0; m < S::PARTS; m++) row[m] = quant_row_at(a, first + min(8 * m + g, rows - 1));
#pragma unroll
    for (int i = 0; i < S::N_AHEAD; i++) load(ring[i], warp + i * WARPS);
    gpu_wait_for_previous();
    for (int unit = warp; unit < units;) {
#pragma unroll
        for (int i = 0; i < S::N_AHEAD; i++, unit += WARPS) {
            if (unit >= units) break;
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
    gemv_finish(a.g, part, a.x.squares, first, rows, S::WIDTH, WARPS, STRIDE, a.x.stride);
}

template <class S> static void many_launch(struct kctx *kc, const struct quant_args *a)
{
    gpu_launch_early(gemv_quant_many<S>, dim3((unsigned)ceil_div(a->g.rows, S::ROWS)), BLOCK,
                     (size_t)(WARPS * S::ROWS * S::WIDTH) * sizeof(float), stream_of(kc), *a);
}

/* ---- one token */

enum { STRIP = 16, ONE_AHEAD = 4, ONE_BLOCKS = 3 /* of a multiprocessor */ };

/* 16 bytes of a unit of a row: of 4 bits they are half a group. */
template <int TYPE>
__device__ inline void part_load_one(quant_part &p, const quant_args &a, const char *row, int unit, int q)
{
    const gpu_16bytes b = bytes_load_once(row + unit * QUANT_GROUP + 16 * q);
#pragma unroll
    for (int i = 0; i < 4; i++) p.code[i] = b.u[i];
    if (TYPE == DT_Q4)
        p.scale = __ldg((const unsigned *)(row + a.w.scales_at) + unit);
    else
        p.scale = __ldg((const unsigned short *)(row + a.w.scales_at) + unit);
}

/* Which unit of its block's strips a warp asks for, or multiplies. */
struct one_place {
    int strip, unit;
};

/* acc += a unit of this lane's two rows times x, which is in column g of the matrix unit for group g of the unit: the
 * lanes that have that group's bytes have it there, all others 0. Right where the lane has column 0. */
template <int TYPE>
__device__ inline void one_multiply(float (&acc)[2], const quant_args &a, const rounded &x, const quant_part (&p)[2],
                                    int unit, int lane)
{
    enum { GROUPS = quant_unit<TYPE>::GROUPS, LANES_EACH = 4 / GROUPS, TURNS = GROUPS };
    const int g = lane / 4, q = lane % 4;
    const gpu_16bytes *from = (const gpu_16bytes *)x.q + (unit * GROUPS + g) * 4 + q % LANES_EACH * TURNS;
    const bool mine = g == q / LANES_EACH;
    const round_scale *xs = x.s + unit * GROUPS;
    int d[4] = { xs[0].start, xs[GROUPS - 1].start, xs[0].start, xs[GROUPS - 1].start };
#pragma unroll
    for (int k = 0; k < TURNS; k++) {
        uint32_t lo[4], hi[4];
        gpu_16bytes in = {};
        if (mine) in = from[k];
        part_bytes<TYPE>(lo, a, p[0], k);
        part_bytes<TYPE>(hi, a, p[1], k);
        mma_8<TYPE == DT_Q4>(d, lo[0], hi[0], lo[1], hi[1], in.u[0], in.u[1]);
        mma_8<TYPE == DT_Q4>(d, lo[2], hi[2], lo[3], hi[3], in.u[2], in.u[3]);
    }
#pragma unroll
    for (int k = 0; k < GROUPS; k++) {
        acc[0] += scaled(d[k], part_scale(p[0], k) * xs[k].s);
        acc[1] += scaled(d[2 + k], part_scale(p[1], k) * xs[k].s);
    }
}

/* A block has rows_block rows, whole strips. */
template <int TYPE> __global__ __launch_bounds__(BLOCK, ONE_BLOCKS) void gemv_quant_one(quant_args a)
{
    GPU_SHARED(float, part); /* [warp][row], then x */
    enum { GROUPS = quant_unit<TYPE>::GROUPS };
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, units = (a.w.groups + GROUPS - 1) / GROUPS;
    const int stride = a.g.rows_block, first = (int)blockIdx.x * stride, rows = min(stride, a.g.rows - first),
              strips = (rows + STRIP - 1) / STRIP;
    rounded x = a.x;
    x.s = (round_scale *)(part + WARPS * stride);
    x.squares = (float *)(x.s + x.groups);
    x.q = (uint32_t *)(x.squares + ROUND_WARPS);
    quant_part ring[ONE_AHEAD][2];
    one_place get = { warp < units ? 0 : strips, warp }, put = get;
    const char *row[2];
    float acc[2] = { 0 };
    auto load = [&](quant_part(&p)[2]) {
        if (get.strip >= strips) return;
#pragma unroll
        for (int m = 0; m < 2; m++) {
            const int r = min(get.strip * STRIP + 8 * m + lane / 4, rows - 1);
            if (get.unit == warp) row[m] = quant_row_at(a, first + r);
            part_load_one<TYPE>(p[m], a, row[m], get.unit, lane % 4);
        }
        get.unit += WARPS;
        if (get.unit >= units) get.unit = warp, get.strip++;
    };
    gpu_let_next();
#pragma unroll
    for (int i = 0; i < ONE_AHEAD; i++) load(ring[i]);
    for (int i = lane; warp >= units && i < stride; i += 32) part[warp * stride + i] = 0;
    gpu_wait_for_previous();
    round_row(x, 0, a.g.x, a.g.norm, a.g.I, a.g.wide);
    __syncthreads();
    while (put.strip < strips) {
#pragma unroll
        for (int i = 0; i < ONE_AHEAD; i++) {
            if (put.strip >= strips) break;
            one_multiply<TYPE>(acc, a, x, ring[i], put.unit, lane);
            load(ring[i]);
            put.unit += WARPS;
            if (put.unit < units) continue;
            float *to = part + warp * stride + put.strip * STRIP + lane / 4;
            if (lane % 4 == 0) to[0] = acc[0], to[8] = acc[1];
            acc[0] = acc[1] = 0, put.unit = warp, put.strip++;
        }
    }
    __syncthreads();
    gemv_finish(a.g, part, x.squares, first, rows, 1, WARPS, stride, 1);
}

/* As many blocks as run at once, all with the same number of strips. */
template <int TYPE> static void one_launch(struct kctx *kc, struct quant_args *a)
{
    const int64_t strips = ceil_div(a->g.rows, STRIP), each = ceil_div(strips, ONE_BLOCKS * dev_units(kc->dev));
    a->g.rows_block = (int)(each * STRIP);
    const size_t bytes = (size_t)(WARPS * a->g.rows_block + ROUND_WARPS) * sizeof(float) +
                         (size_t)a->x.groups * (sizeof(round_scale) + QUANT_GROUP);
    gpu_launch_early(gemv_quant_one<TYPE>, dim3((unsigned)ceil_div(strips, each)), BLOCK, bytes, stream_of(kc), *a);
}

/* More rows of w to a block where there are many tokens, whose x would else be read too often. */
template <int TYPE> static void mma_tokens(struct kctx *kc, struct quant_args *a)
{
    const bool many = a->g.rows >= 64 * dev_units(kc->dev);
    if (a->g.T == 1)
        one_launch<TYPE>(kc, a);
    else if (a->g.T <= TOKENS)
        many_launch<quant_shape<TYPE, 1, 1, 4>>(kc, a);
    else if (a->g.T <= 2 * TOKENS)
        many_launch<quant_shape<TYPE, 2, 2, 2>>(kc, a);
    else if (a->g.T <= 4 * TOKENS)
        (many ? many_launch<quant_shape<TYPE, 4, 4, 1>> : many_launch<quant_shape<TYPE, 2, 4, 2>>)(kc, a);
    else
        many_launch<quant_shape<TYPE, 2, 8, 1>>(kc, a);
}

static void run_rows(struct kctx *kc, struct quant_args *a, const struct gemv *g, int from, int n)
{
    const bool levels = g->w[0].type == DT_Q4;
    const int64_t groups = ceil_div(a->w.groups, ROUND_GROUPS) * ROUND_GROUPS;
    a->x = { NULL, NULL, NULL, (int)groups, 1, levels, MAGIC };
    if (n > 1) a->x = quant_round(kc, tensor_slice(g->x, from, n), g->norm, levels, MAGIC, TOKENS);
    (levels ? mma_tokens<DT_Q4> : mma_tokens<DT_Q8>)(kc, a);
}

#else

enum { WARPS = BLOCK / GPU_WARP, T_MAX = 4 };

/* The product of 16 bytes of a row with x's elements there, of group k; `piece` of those that a group has. */
template <int TYPE>
__device__ inline int piece_dot(const quant_args &a, const gpu_16bytes &b, const uint32_t *x, int piece)
{
    int sum = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (TYPE == DT_Q8) {
            sum = gpu_dot4(b.u[i], x[4 * piece + i], sum);
        } else {
            sum = gpu_dot4(gpu_lookup4(a.w.level, b.u[i]), x[8 * piece + 2 * i], sum);
            sum = gpu_dot4(gpu_lookup4(a.w.level, b.u[i] >> 16), x[8 * piece + 2 * i + 1], sum);
        }
    }
    return sum;
}

template <int TYPE, int T> __global__ __launch_bounds__(BLOCK) void gemv_quant_plain(quant_args a)
{
    __shared__ float part[WARPS * T];
    enum { PIECES = TYPE == DT_Q8 ? 4 : 2 /* of 16 bytes, of a group */ };
    const int lane = (int)threadIdx.x % GPU_WARP, warp = (int)threadIdx.x / GPU_WARP;
    const int first = (int)blockIdx.x * WARPS, rows = a.g.rows - first < WARPS ? a.g.rows - first : WARPS;
    const char *row = quant_row_at(a, first + (warp < rows ? warp : 0));
    float sum[T] = {};
    for (int i = lane; i < a.w.groups * PIECES; i += GPU_WARP) {
        const int group = i / PIECES, piece = i % PIECES;
        const gpu_16bytes b = *(const gpu_16bytes *)(row + 16 * i);
        const float s = quant_scale(a.w, row, group);
#pragma unroll
        for (int t = 0; t < T; t++) {
            const uint32_t *x = a.x.q + ((int64_t)t * a.x.groups + group) * (QUANT_GROUP / 4);
            const round_scale r = a.x.s[group * a.x.stride + t];
            sum[t] += (float)(piece_dot<TYPE>(a, b, x, piece) + (piece ? 0 : r.start)) * (s * r.s);
        }
    }
#pragma unroll
    for (int t = 0; t < T; t++) {
        const float total = warp_sum(sum[t]);
        if (lane == 0) part[warp * T + t] = total;
    }
    __syncthreads();
    gemv_finish(a.g, part, a.x.squares + ROUND_WARPS * a.x.stride, first, rows, T, 1, 0, 0);
}

template <int TYPE, int T> static void plain_launch(struct kctx *kc, const struct quant_args *a)
{
    gpu_launch(gemv_quant_plain<TYPE, T>, dim3((unsigned)ceil_div(a->g.rows, WARPS)), BLOCK, 0, stream_of(kc), *a);
}

template <int TYPE> static void plain_tokens(struct kctx *kc, const struct quant_args *a)
{
    switch (a->g.T) {
    case 1: plain_launch<TYPE, 1>(kc, a); break;
    case 2: plain_launch<TYPE, 2>(kc, a); break;
    case 3: plain_launch<TYPE, 3>(kc, a); break;
    default: plain_launch<TYPE, 4>(kc, a); break;
    }
}

static void run_rows(struct kctx *kc, struct quant_args *a, const struct gemv *g, int from, int n)
{
    const bool levels = g->w[0].type == DT_Q4;
    a->x = quant_round(kc, tensor_slice(g->x, from, n), g->norm, levels, 0, 1);
    (levels ? plain_tokens<DT_Q4> : plain_tokens<DT_Q8>)(kc, a);
}

#endif

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
        run_rows(kc, &a, g, t, n);
        arena_rewind(kc->scratch, mark);
    }
}
