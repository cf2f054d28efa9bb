/* Quantised rows on a GPU, as tensor/quant.h has them in files: rows of w are read where they lie. And rows of x
 * rounded to 8 bits in the same groups, so that a group's product is a sum of integers. */
#pragma once
#include "kern/gpu/num.h"
extern "C" {
#include "tensor/quant.h"
}

enum { HALF = QUANT_GROUP / 2, GROUP_LANES = QUANT_GROUP / LANES /* threads that share a group */ };

/* A quantised matrix as kernels see it. */
struct quant_view {
    char *p;
    int64_t pitch;     /* bytes of a row */
    int type, scales_at, groups, cols;
    uint32_t level[4]; /* Q4's levels + QUANT4_ZERO, four to a word */
};

static inline struct quant_view quant_view_of(struct tensor t)
{
    const enum dtype type = (enum dtype)t.type;
    const int64_t n = tensor_cols(t);
    struct quant_view v = { (char *)t.p, (int64_t)quant_row_bytes(type, n), t.type, (int)quant_scales_at(type, n),
                            (int)quant_groups(n), (int)n, {} };
    memcpy(v.level, quant_unsigned, sizeof v.level);
    return v;
}

__device__ inline float quant_scale(const quant_view &a, const char *row, int group)
{
    return gpu_float(((const gpu_f16 *)(row + a.scales_at))[group]);
}

__device__ inline float byte_float(uint32_t word, int k) { return (float)(int)(int8_t)(word >> 8 * k); }

/* v = a row's 8 elements from i on; i is a multiple of 8 and inside the row's groups. */
__device__ inline void quant_load8(float (&v)[LANES], const quant_view &a, const char *row, int i)
{
    const int group = i / QUANT_GROUP, in = i % QUANT_GROUP;
    const float s = quant_scale(a, row, group);
    if (a.type == DT_Q8) {
        const uint2 b = *(const uint2 *)(row + i);
#pragma unroll
        for (int j = 0; j < LANES; j++) v[j] = s * byte_float(j < 4 ? b.x : b.y, j % 4);
    } else { /* a byte has two elements, HALF apart */
        const uint2 b = *(const uint2 *)(row + group * HALF + in % HALF);
        const int upper = in >= HALF;
#pragma unroll
        for (int j = 0; j < LANES; j += 2) {
            const uint32_t two = gpu_lookup4(a.level, (j < 4 ? b.x : b.y) >> 8 * (j % 4));
            v[j] = s * (float)((int)(two >> 8 * upper & 0xff) - QUANT4_ZERO);
            v[j + 1] = s * (float)((int)(two >> (16 + 8 * upper) & 0xff) - QUANT4_ZERO);
        }
    }
}

/* ---- x, rounded */

/* Of a group: s with x = s q, and what a sum of levels with q starts from: Q4's levels are unsigned. */
struct round_scale {
    float s;
    int start;
};

/* How rounded rows lie in memory: q [T][groups][64], s [groups][stride], groups being a multiple of ROUND_GROUPS;
 * those behind the last are 0, and so are tokens behind the last in s. squares [groups + 1][stride]: where x is normed,
 * sums of a group's x^2, and their sum; q has x times the norm's weight, and the root is left to the product. */
enum { ROUND_GROUPS = GPU_WARP / 2 };
struct rounded {
    uint32_t *q;
    round_scale *s;
    float *squares;
    int groups, stride;
    bool levels; /* for Q4: q's elements i and i + HALF are neighbours, as a byte of w has them */
    int start;   /* added to every start */
};

/* The largest magnitude, as bits, over the lanes that share a group. */
__device__ inline uint32_t group_most(uint32_t v, int lanes)
{
    for (int m = lanes / 2; m > 0; m /= 2) {
        const uint32_t other = gpu_shfl_xor(v, m);
        v = other > v ? other : v;
    }
    return v;
}

__device__ inline uint32_t float_bits(float x)
{
    union {
        float f;
        uint32_t u;
    } v = { x };
    return v.u;
}
__device__ inline float bits_float(uint32_t x)
{
    union {
        uint32_t u;
        float f;
    } v = { x };
    return v.f;
}

/* Magnitudes of v as bits: NaN is above infinity, which is above all numbers. */
__device__ inline uint32_t most_of(const float (&v)[LANES])
{
    uint32_t most = 0;
#pragma unroll
    for (int j = 0; j < LANES; j++) {
        const uint32_t b = float_bits(v[j]) & 0x7fffffffu;
        most = b > most ? b : most;
    }
    return most;
}

/* A scale as a row keeps it: never infinite. */
__device__ inline gpu_f16 scale_put(float s) { return gpu_from<gpu_f16>(fminf(fmaxf(s, -65504.0f), 65504.0f)); }

/* Of a group whose largest magnitude is `most`, as bits: its scale as a row of 8 bits keeps it, and one over that. */
__device__ inline gpu_f16 scale_to_8(uint32_t most, float &inverse)
{
    const gpu_f16 h = most < 0x7f800000u ? scale_put(bits_float(most) / 127.0f) : gpu_f16{ QUANT_FAULT };
    const float s = gpu_float(h);
    inverse = s > 0 ? 1.0f / s : 0.0f;
    return h;
}
__device__ inline uint32_t byte_to_8(float v, float inverse)
{
    return (uint32_t)(int)fminf(fmaxf(rintf(gpu_mul(v, inverse)), -127.0f), 127.0f) & 0xff;
}

/* Rows of 8 bits: this thread's 8 numbers v of a group become q times the scale that is returned; most: the largest
 * magnitude, as bits, of those that this thread has of the group; `lanes` share it. */
__device__ inline gpu_f16 group_to_8(uint32_t (&q)[2], const float (&v)[LANES], uint32_t most, int lanes)
{
    float inverse;
    const gpu_f16 h = scale_to_8(group_most(most, lanes), inverse);
    q[0] = q[1] = 0;
#pragma unroll
    for (int j = 0; j < LANES; j++) q[j / 4] |= byte_to_8(v[j], inverse) << 8 * (j % 4);
    return h;
}

/* The 8 numbers of each of the lanes that share a group become q s; r.s is NaN where one is not finite. */
__device__ inline round_scale round_group(uint32_t (&q)[2], const float (&v)[LANES], bool levels)
{
    const uint32_t bits = group_most(most_of(v), GROUP_LANES), ones = 0x01010101u;
    const float most = bits_float(bits), inverse = bits < 0x7f800000u && most > 0x1p-120f ? 127.0f / most : 0.0f;
    round_scale r = { inverse != 0 ? gpu_mul(most, 1 / 127.0f) : gpu_mul(most, 0.0f), 0 };
#pragma unroll
    for (int k = 0; k < 2; k++) { /* the low byte of 1.5 * 2^23 + n is n's */
        uint32_t n[4];
#pragma unroll
        for (int j = 0; j < 4; j++) n[j] = float_bits(fmaf(v[4 * k + j], inverse, 12582912.0f));
        q[k] = gpu_bytes(gpu_bytes(n[0], n[1], 0x0040), gpu_bytes(n[2], n[3], 0x0040), 0x5410);
    }
    if (!levels) return r;
    r.start = gpu_dot4(q[0], ones, gpu_dot4(q[1], ones, 0)) * -QUANT4_ZERO;
#pragma unroll
    for (int m = GROUP_LANES / 2; m > 0; m /= 2) r.start += gpu_shfl_xor(r.start, m);
    return r;
}

/* The 8 numbers v from i on, of a row's token t, into r. All lanes of a group call it. */
__device__ inline void round_store(const rounded &r, int t, const float (&v)[LANES], int i)
{
    const int lane = (int)threadIdx.x % GROUP_LANES, group = i / QUANT_GROUP;
    uint32_t q[2], other[2], *to = r.q + ((int64_t)t * r.groups + group) * (QUANT_GROUP / 4);
    const round_scale s = round_group(q, v, r.levels);
#pragma unroll
    for (int k = 0; k < 2; k++) other[k] = gpu_shfl_xor(q[k], GROUP_LANES / 2);
    if (group >= r.groups) return;
    if (r.levels) { /* lanes 0 to 3 have the lower halves of the pairs, and write the first of their two words */
        const bool second = lane >= GROUP_LANES / 2;
        const uint32_t a = second ? other[1] : q[0], b = second ? q[1] : other[0];
        to += 4 * (lane % (GROUP_LANES / 2)) + 2 * second;
        to[0] = gpu_bytes(a, b, 0x5140), to[1] = gpu_bytes(a, b, 0x7362);
    } else {
        to[2 * lane] = q[0], to[2 * lane + 1] = q[1];
    }
    if (lane == 0) r.s[group * r.stride + t] = { s.s, s.start + r.start };
}

/* The norm's weights for a thread's first 8 numbers, if it is there: they need not wait for x. X is view or, for less
 * code, plain_row. */
template <class X> __device__ inline void round_ahead(float (&g)[LANES], X norm, int I, bool wide)
{
    if (norm.p) load8(g, norm, LANES * (int)threadIdx.x, I, wide);
}

/* A row x of I numbers, times norm if that is there, becomes token t of r: by a block's first `threads`. How many those
 * are changes no bit. g: round_ahead's. */
template <class X>
__device__ inline void round_row(const rounded &r, int t, X x, X norm, float (&g)[LANES], int I, bool wide, int threads)
{
    const int n = r.groups * QUANT_GROUP, step = LANES * threads;
    float v[LANES], next[LANES];
    load8(next, x, LANES * (int)threadIdx.x, I, wide);
    for (int i0 = 0; i0 < n; i0 += step) { /* the same turns for all */
        const int i = i0 + LANES * (int)threadIdx.x, group = i / QUANT_GROUP;
        float sq = 0;
#pragma unroll
        for (int j = 0; j < LANES; j++) v[j] = next[j];
        if (i0 + step < n) load8(next, x, i + step, I, wide);
#pragma unroll
        for (int j = 0; j < LANES; j++) {
            sq += v[j] * v[j];
            if (norm.p) v[j] *= g[j];
        }
        round_store(r, t, v, i);
        if (!norm.p) continue;
        if (i0 + step < n) load8(g, norm, i + step, I, wide);
#pragma unroll
        for (int m = GROUP_LANES / 2; m > 0; m /= 2) sq += gpu_shfl_xor(sq, m);
        if (threadIdx.x % GROUP_LANES == 0 && group < r.groups) r.squares[group * r.stride + t] = sq;
    }
}

/* Behind a barrier after that: the sum of all squares, by a warp; and kept. */
__device__ inline float round_square(const rounded &r, int t)
{
    float sum = 0;
    for (int g = (int)threadIdx.x % GPU_WARP; g < r.groups; g += GPU_WARP) sum += r.squares[g * r.stride + t];
    return warp_sum(sum);
}
__device__ inline void round_squares(const rounded &r, int t)
{
    const float sum = round_square(r, t);
    if (threadIdx.x % GPU_WARP == 0) r.squares[r.groups * r.stride + t] = sum;
}

/* y = x where one of them, or both, are quantised rows; idx: see rows.cu's ways. */
void quant_cast(struct kctx *kc, struct tensor y, struct tensor x);
void quant_rows_get(struct kctx *kc, struct tensor y, struct tensor x, struct tensor idx);
void quant_rows_put(struct kctx *kc, struct tensor y, struct tensor idx, struct tensor x);
/* x (times norm if that is there) in scratch, all tokens up to a multiple of `tokens`. */
struct rounded quant_round(struct kctx *kc, struct tensor x, struct tensor norm, bool levels, int start, int tokens);

/* y[i] = x w[i]^T + b[i] + res, i < n <= 3, all of one shape and type; res with n = 1 alone; not in decode:
 * quant_wgmma.cu, where the card has what it needs. */
bool quant_many_takes(const struct kctx *kc, struct tensor y, struct tensor x, struct tensor w, struct tensor res);
void quant_many_run(struct kctx *kc, const struct tensor *y, struct tensor x, const struct tensor *w,
                    const struct tensor *b, struct tensor res, int n);
