/* What the products of few tokens with quantised rows share: what they see, and how they add up. */
#pragma once
#include "kern/gpu/gemv.h"
#include "kern/gpu/quant.h"

enum { CHAINS = GPU_WARP / 4, MAGIC = 0x4b400000 /* bits of 1.5 * 2^23 */ };

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

/* sum + a group's product d, which began at MAGIC, times its scales s. */
__device__ inline float group_add(float sum, int d, float s)
{
    return fmaf(bits_float((uint32_t)d) - bits_float(MAGIC), s, sum);
}

/* The sum over four lanes of d[q % N], q being the lane's number among them. */
template <int N> __device__ inline int quad_sum(const int (&d)[N], int q)
{
    const bool odd = q & 1, upper = q & 2;
    int sum = d[0];
    if (N == 1) return sum += gpu_shfl_xor(sum, 1), sum + gpu_shfl_xor(sum, 2);
    sum = (odd ? d[1 % N] : d[0]) + gpu_shfl_xor(odd ? d[0] : d[1 % N], 1);
    if (N == 2) return sum + gpu_shfl_xor(sum, 2);
    const int more = (odd ? d[3 % N] : d[2 % N]) + gpu_shfl_xor(odd ? d[2 % N] : d[3 % N], 1);
    return (upper ? more : sum) + gpu_shfl_xor(upper ? sum : more, 2);
}

/* Bytes of one token's x in shared memory, and where it is there, which moves mem on. */
static inline int64_t rounded_bytes(int64_t groups)
{
    return groups * (int64_t)(sizeof(round_scale) + sizeof(float) + QUANT_GROUP) + 16;
}
__device__ inline rounded rounded_inside(rounded x, float *&mem)
{
    x.s = (round_scale *)mem, x.squares = (float *)(x.s + x.groups);
    x.q = (uint32_t *)(x.squares + x.groups + 4);
    mem = (float *)(x.q + x.groups * (QUANT_GROUP / 4));
    return x;
}

/* One token, where the card's engine copies: gemv_quant_bulk.cu. Of a all but x's memory. */
bool quant_bulk_takes(void);
void quant_bulk_run(struct kctx *kc, const struct quant_args *a);
