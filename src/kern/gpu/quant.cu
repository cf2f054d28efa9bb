/* Quantised rows to numbers and back, to the bit what tensor/quant.c makes of them; and x rounded for products. The
 * groups of Q8 belong to 8 threads, those of Q4, which are tried with many scales, to one. Scratch: none but what is
 * returned. */
#include "kern/gpu/quant.h"

/* ---- to numbers */

enum { ROWS_EACH = 4 /* whose bytes a thread has under way */ };

/* Block (some rows, 2,048 columns): y's row = x's row of that number or of idx; zeros where idx < 0. */
__global__ __launch_bounds__(BLOCK) void dequantise(view y, quant_view x, const int32_t *idx, int64_t rows, bool wide)
{
    const int64_t first = (int64_t)blockIdx.x * ROWS_EACH;
    const int i = LANES * ((int)blockIdx.y * BLOCK + (int)threadIdx.x), n = (int)(rows - first);
    float v[ROWS_EACH][LANES] = {};
    if (i >= x.cols) return;
#pragma unroll
    for (int r = 0; r < ROWS_EACH; r++) {
        const int64_t from = r >= n ? -1 : idx ? idx[first + r] : first + r;
        if (from >= 0) quant_load8(v[r], x, x.p + from * x.pitch, i);
    }
#pragma unroll
    for (int r = 0; r < ROWS_EACH; r++)
        if (r < n) store8(view_at(y, (first + r) * x.cols), v[r], i, x.cols, wide);
}

static void dequantise_launch(struct kctx *kc, struct tensor y, struct tensor x, const int32_t *idx)
{
    const int64_t rows = tensor_rows(y), cols = tensor_cols(y);
    if (rows && cols)
        gpu_launch(dequantise, dim3((unsigned)ceil_div(rows, ROWS_EACH), (unsigned)ceil_div(cols, LANES * BLOCK)),
                   BLOCK, 0, stream_of(kc), view_of(y), quant_view_of(x), idx, rows, is_wide(cols, y));
}

void quant_rows_get(struct kctx *kc, struct tensor y, struct tensor x, struct tensor idx)
{
    dequantise_launch(kc, y, x, (const int32_t *)idx.p);
}

/* ---- from numbers */

/* What follows the scales of a row. */
__device__ inline void fill_end(const quant_view &y, char *row, int threads)
{
    for (int i = y.scales_at + 2 * y.groups + (int)threadIdx.x; i < (int)y.pitch; i += threads) row[i] = 0;
}

/* Block (row, 2,048 columns): y's row of that number or of idx = x's row; nothing where idx < 0. */
__global__ __launch_bounds__(BLOCK) void quantise_8(quant_view y, view x, const int32_t *idx, bool wide)
{
    const int64_t row = blockIdx.x, to = idx ? idx[row] : row;
    const int i = LANES * ((int)blockIdx.y * BLOCK + (int)threadIdx.x), group = i / QUANT_GROUP;
    char *at = y.p + to * y.pitch;
    float v[LANES];
    uint32_t q[2];
    if (to < 0) return;
    load8(v, view_at(x, row * y.cols), i, y.cols, wide);
    const gpu_f16 h = group_to_8(q, v, most_of(v), GROUP_LANES);
    if (blockIdx.y == 0) fill_end(y, at, BLOCK);
    if (group >= y.groups) return;
    *(uint2 *)(at + i) = make_uint2(q[0], q[1]);
    if (threadIdx.x % GROUP_LANES == 0) ((gpu_f16 *)(at + y.scales_at))[group] = h;
}

/* The level nearest to x, by floor(2x) + 64: its code and itself. */
struct nearest {
    uint8_t code[128];
    int8_t level[128];
};

__device__ inline int level_at(const quant_view &y, int code)
{
    return (int)(y.level[code / 4] >> 8 * (code % 4) & 0xff) - QUANT4_ZERO;
}

__device__ inline void nearest_init(nearest &m, const quant_view &y, int i)
{
    int c = 0;
    while (c < 15 && i - 64 >= level_at(y, c) + level_at(y, c + 1)) c++;
    m.code[i] = (uint8_t)c;
    m.level[i] = (int8_t)level_at(y, c);
}

__device__ inline int nearest_at(float x) { return (int)fminf(fmaxf(gpu_add(gpu_mul(2.0f, x), 64.0f), 0.0f), 127.0f); }

/* The scale of least squares for the codes that `s` leads to; *gain: by how much they take from the squared sum. */
__device__ inline float refit(const nearest &m, const float (&x)[QUANT_GROUP], float s, float *gain)
{
    const float inverse = 1.0f / s;
    float xq = 0, qq = 0;
#pragma unroll
    for (int i = 0; i < QUANT_GROUP; i++) {
        const float q = m.level[nearest_at(gpu_mul(x[i], inverse))];
        xq = gpu_add(xq, gpu_mul(x[i], q));
        qq = gpu_add(qq, gpu_mul(q, q));
    }
    *gain = qq > 0 ? gpu_mul(xq, xq) / qq : 0.0f;
    return qq > 0 ? xq / qq : 0.0f;
}

/* quant.c's scale4. */
__device__ inline float best_scale(const nearest &m, const float (&x)[QUANT_GROUP], float top)
{
    float best = 0, most = -1, gain;
    for (int k = 0; k < 6; k++) {
        const float start = k % 3 == 0 ? 1 / 27.0f : k % 3 == 1 ? 1 / 31.0f : 1 / 36.0f;
        float s = gpu_mul(k < 3 ? top : -top, start);
        for (int again = 0; again < 2 && s != 0; again++) {
            const float next = refit(m, x, s, &gain);
            if (gain > most) most = gain, best = next;
            s = next;
        }
    }
    return best;
}

enum { THREADS_4 = 128 };

/* Block (row, 128 groups). */
__global__ __launch_bounds__(THREADS_4) void quantise_4(quant_view y, view x, const int32_t *idx, bool wide)
{
    __shared__ nearest m;
    const int64_t row = blockIdx.x, to = idx ? idx[row] : row;
    const int group = (int)(blockIdx.y * THREADS_4 + threadIdx.x);
    char *at = y.p + to * y.pitch;
    nearest_init(m, y, (int)threadIdx.x);
    __syncthreads();
    if (to < 0) return;
    if (blockIdx.y == 0) fill_end(y, at, THREADS_4);
    if (group >= y.groups) return;
    uint32_t bits = 0;
    float v[QUANT_GROUP];
#pragma unroll
    for (int i = 0; i < QUANT_GROUP; i += LANES) {
        float part[LANES];
        load8(part, view_at(x, row * y.cols), group * QUANT_GROUP + i, y.cols, wide);
#pragma unroll
        for (int j = 0; j < LANES; j++) v[i + j] = part[j];
        const uint32_t most = most_of(part);
        bits = most > bits ? most : bits;
    }
    const float top = bits_float(bits);
    const gpu_f16 h = bits >= 0x7f800000u ? gpu_f16{ QUANT_FAULT }
                                          : scale_put(top > 0x1p-100f ? best_scale(m, v, top) : 0.0f);
    const float s = gpu_float(h), inverse = s != 0 ? 1.0f / s : 0.0f;
    uint32_t *codes = (uint32_t *)(at + group * HALF);
#pragma unroll
    for (int i = 0; i < HALF; i += 4) {
        uint32_t word = 0;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const uint32_t low = m.code[nearest_at(gpu_mul(v[i + j], inverse))],
                           high = m.code[nearest_at(gpu_mul(v[i + j + HALF], inverse))];
            word |= (low | high << 4) << 8 * j;
        }
        codes[i / 4] = word;
    }
    ((gpu_f16 *)(at + y.scales_at))[group] = h;
}

static void quantise_launch(struct kctx *kc, struct tensor y, struct tensor x, const int32_t *idx)
{
    const int64_t rows = tensor_rows(x), cols = tensor_cols(x), groups = quant_groups(cols);
    const quant_view to = quant_view_of(y);
    const bool wide = is_wide(cols, x);
    if (!rows || !cols) return;
    if (y.type == DT_Q8)
        gpu_launch(quantise_8, dim3((unsigned)rows, (unsigned)ceil_div(groups, BLOCK / GROUP_LANES)), BLOCK, 0,
                   stream_of(kc), to, view_of(x), idx, wide);
    else
        gpu_launch(quantise_4, dim3((unsigned)rows, (unsigned)ceil_div(groups, THREADS_4)), THREADS_4, 0,
                   stream_of(kc), to, view_of(x), idx, wide);
}

void quant_rows_put(struct kctx *kc, struct tensor y, struct tensor idx, struct tensor x)
{
    quantise_launch(kc, y, x, (const int32_t *)idx.p);
}

void quant_cast(struct kctx *kc, struct tensor y, struct tensor x)
{
    ASSERT(!dtype_is_quant((enum dtype)y.type) || !dtype_is_quant((enum dtype)x.type));
    if (dtype_is_quant((enum dtype)y.type))
        quantise_launch(kc, y, x, NULL);
    else
        dequantise_launch(kc, y, x, NULL);
}

/* ---- x for products */

/* Block: token. Behind the last one scales alone, 0. */
__global__ __launch_bounds__(BLOCK) void round_rows(rounded r, view x, view norm, int T, int I, bool wide)
{
    const int t = (int)blockIdx.x;
    float g[LANES];
    gpu_let_next();
    round_ahead(g, norm, I, wide);
    gpu_wait_for_previous();
    if (t < T)
        round_row(r, t, view_at(x, (int64_t)t * I), norm, g, I, wide, BLOCK);
    else
        for (int k = (int)threadIdx.x; k < r.groups; k += BLOCK) r.s[k * r.stride + t] = { 0, 0 };
    __syncthreads();
    if (t < T && norm.p && threadIdx.x < GPU_WARP) round_squares(r, t);
}

struct rounded quant_round(struct kctx *kc, struct tensor x, struct tensor norm, bool levels, int start, int tokens)
{
    const int64_t T = tensor_rows(x), I = tensor_cols(x), stride = ceil_div(T, tokens) * tokens;
    const int64_t groups = ceil_div(quant_groups(I), ROUND_GROUPS) * ROUND_GROUPS;
    struct rounded r = { NULL, NULL, NULL, (int)groups, (int)stride, levels, start };
    r.q = (uint32_t *)arena_take(kc->scratch, (size_t)(T * groups * QUANT_GROUP));
    r.s = (round_scale *)arena_take(kc->scratch, (size_t)(groups * stride) * sizeof *r.s);
    if (norm.p) r.squares = (float *)arena_take(kc->scratch, (size_t)((groups + 1) * stride) * sizeof(float));
    gpu_launch_early(round_rows, dim3((unsigned)stride), BLOCK, 0, stream_of(kc), r, view_of(x), view_of(norm), (int)T,
                     (int)I, is_wide(I, x, norm));
    return r;
}
