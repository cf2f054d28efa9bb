/* Attention on a GPU: five ways to the same result, chosen in attn.cu by type and head size.
 *
 *   attn_split.cu  decode, with rope and store: the keys of a query are divided among blocks, whose results are put
 *                  together
 *   attn_wgmma*.cu sm_90a, 16-bit types, heads of 64 and 128: larger tiles on its own matrix units
 *   attn_mma.cu    16-bit types, heads of 64 and 128: tiles on the matrix units (only where there are any)
 *   attn_gemm.cu   where there are none: heads of 64 and 128, by the vendor's products; in pages, if extents are known
 *   attn_tile.cu   anything: tiles in f32
 *
 * A query's result has the same bits whatever the other queries are: pieces of keys start at fixed places,
 * and what a query does not see changes nothing (a factor 1, a sum with 0). */
#pragma once
#include "kern/gpu/quant.h"

#define LOG2E 1.44269504f
#define LN2 0.69314718f

/* One attention as kernels see it. */
struct attn {
    view q, k, v, y;
    float *lse;           /* [T,H] or NULL */
    const int32_t *range; /* [T,2], or [T,3] with pages */
    const int32_t *pages; /* [B,per_table] or NULL */
    int per_table;
    int T, S, H, K, D; /* S: keys of a sequence at most */
    float scale;
    bool wide;
    quant_view kq, vq; /* k and v where their rows are quantised */
};

/* What is rotated and stored in decode. */
struct tokens {
    view q, k, v; /* [T,H*D], [T,K*D], [T,K*D] */
    const int32_t *pos, *idx;
    const float *table;
};

/* What is added to; fresh: there is nothing yet. */
struct gradient {
    view to;
    bool fresh;
};
__device__ inline void gradient_add(const gradient &g, int64_t i, float v)
{
    view_put(g.to, i, g.fresh ? v : view_get(g.to, i) + v);
}

/* The gradients, and what they are made from. */
struct attn_back {
    struct attn a; /* y and lse of the forward */
    view dy;
    gradient dq, dk, dv;
    float *delta; /* [T,H]: dy . y */
};

bool attn_split_takes(const struct attn *a);
void attn_split_fwd(struct kctx *kc, const struct attn *a, const struct tokens *in);

bool attn_mma_takes(const struct attn *a);
void attn_mma_fwd(struct kctx *kc, const struct attn *a);
void attn_mma_bwd(struct kctx *kc, const struct attn_back *b);

bool attn_wgmma_takes(const struct attn *a);
void attn_wgmma_fwd(struct kctx *kc, const struct attn *a);
void attn_wgmma_bwd(struct kctx *kc, const struct attn_back *b);

/* back: of the backward. What it says holds while scratch is as it is. */
bool attn_gemm_takes(struct kctx *kc, const struct attn *a, bool back);
void attn_gemm_fwd(struct kctx *kc, const struct attn *a);
void attn_gemm_bwd(struct kctx *kc, const struct attn_back *b);

void attn_tile_fwd(struct kctx *kc, const struct attn *a);
void attn_tile_bwd(struct kctx *kc, const struct attn_back *b);

/* Query t's keys [x, y), 0 and 0 behind the last query; its table of pages, NULL if there are none. */
__device__ inline int2 attn_range(const attn &a, int t)
{
    const int32_t *r = a.range + (int64_t)t * (a.pages ? 3 : 2);
    return t < a.T ? make_int2(r[0], r[1]) : make_int2(0, 0);
}
__device__ inline const int32_t *attn_table(const attn &a, int t)
{
    return a.pages ? a.pages + (int64_t)a.range[3 * (int64_t)t + 2] * a.per_table : NULL;
}
/* Where key s of a sequence is in the store. */
__device__ inline int64_t attn_row(const int32_t *table, int s)
{
    const unsigned at = (unsigned)s; /* so that to divide is to shift */
    return table ? (int64_t)table[at / KV_PAGE] * KV_PAGE + at % KV_PAGE : s;
}

/* Queries [t0, t1) of one sequence: at least one of them sees each of the keys [lo, hi), all see [in, out).
 */
struct reach {
    int t0, t1, lo, hi, in, out;
};
