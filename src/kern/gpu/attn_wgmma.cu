/* Attention over prompts on sm_90a's matrix units: as attn_mma.cu, with tiles twice as large. Two groups of four warps
 * have 64 queries each. While a tile's scores become exponentials, the next tile's are computed; what the tile after
 * that needs is being copied. arXiv:2407.08608 */
#include "kern/gpu/wgmma.h"

#if GPU_HAS_WGMMA

enum { GROUPS = 2, THREADS = GROUPS * 128, FWD_T = GROUPS * 64, FWD_S = 128, ALIGN = 1024 };

bool attn_wgmma_takes(const struct kctx *kc, const struct attn *a)
{
    int device = 0, major = 0;
    if (!attn_mma_takes(a) || a->k.type != a->q.type) return false; /* quantised rows pass through registers */
    gpu_check(gpu(GetDevice)(&device));
    gpu_check(gpu(DeviceGetAttribute)(&major, gpu(DevAttrComputeCapabilityMajor), device));
    (void)kc;
    return major == 9;
}

#    if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/* What a thread knows of its rows g and g + 8. */
struct fwd_rows {
    float top[2], sum[2]; /* sum: of this thread's columns */
};

/* s = q k^T of this group: rows of the tiles from q and k on. */
template <class E, int D> __device__ inline void scores(float (&s)[FWD_S / 8][4], uint32_t q, uint32_t k)
{
    wg_begin();
#pragma unroll
    for (int c = 0; c < D / 16; c++)
        wg_scores<E>(s, wg_tile(q + c / 4 * FWD_T * 128 + c % 4 * 32, 16),
                     wg_tile(k + c / 4 * FWD_S * 128 + c % 4 * 32, 16), c > 0);
    wg_commit();
}

/* acc += p v; p must stay as it is until that is waited for. */
template <class E, int D>
__device__ inline void weigh(float (&acc)[D / 8][4], const uint32_t (&p)[FWD_S / 16][4], uint32_t v)
{
    wg_begin();
#pragma unroll
    for (int k = 0; k < FWD_S / 16; k++) wg_weigh<E>(acc, p[k], wg_tile(v + k * 16 * 128, FWD_S * 128));
    wg_commit();
}

/* What is not seen becomes -infinity. `row`: the warp's first query. */
__device__ inline void mask(const attn &a, const reach &see, float (&s)[FWD_S / 8][4], int row, int s0)
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int t = row + (int)threadIdx.x % 32 / 4 + 8 * h, key = s0 + 2 * ((int)threadIdx.x % 4);
        const int2 range = t >= see.t0 && t < see.t1 ? attn_range(a, t) : make_int2(0, 0);
        const int from = range.x - key, to = range.y - key;
#pragma unroll
        for (int n = 0; n < FWD_S / 8; n++)
#pragma unroll
            for (int i = 0; i < 2; i++)
                if (8 * n + i < from || 8 * n + i >= to) s[n][h * 2 + i] = -INFINITY;
    }
}

/* Scores become exponentials, in 16 bits; what there is so far fades. */
template <class E, int D>
__device__ inline void softmax_step(fwd_rows &r, float (&s)[FWD_S / 8][4], float (&acc)[D / 8][4],
                                    uint32_t (&p)[FWD_S / 16][4], float scale2)
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float top = r.top[h];
#pragma unroll
        for (int n = 0; n < FWD_S / 8; n++) top = fmaxf(top, fmaxf(s[n][h * 2], s[n][h * 2 + 1]));
        top = quad_max(top);
        const bool any = top > -INFINITY; /* else all is 0, and stays so */
        const float base = any ? top * scale2 : 0.0f;
        const float fade = any ? exp2_fast((r.top[h] - top) * scale2) : 1.0f; /* exactly 1 if the top stays */
        r.top[h] = top;
        r.sum[h] *= fade;
#pragma unroll
        for (int n = 0; n < FWD_S / 8; n++) {
            const float x = exp2_fast(s[n][h * 2] * scale2 - base), y = exp2_fast(s[n][h * 2 + 1] * scale2 - base);
            r.sum[h] += x + y;
            p[n / 2][n % 2 * 2 + h] = mma_pair<E>(x, y);
        }
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            acc[n][h * 2] *= fade;
            acc[n][h * 2 + 1] *= fade;
        }
    }
}

template <class E, int D>
__device__ inline void fwd_store(const attn &a, fwd_rows &r, float (&acc)[D / 8][4], int row, int head)
{
    const int g = (int)threadIdx.x % 32 / 4, q = (int)threadIdx.x % 4;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int t = row + g + 8 * h;
        const float sum = quad_sum(r.sum[h]), scale = 1.0f / sum;
        if (t >= a.T) continue;
        uint32_t *y = (uint32_t *)((E *)a.y.p + ((int64_t)t * a.H + head) * D);
#pragma unroll
        for (int n = 0; n < D / 8; n++) y[4 * n + q] = mma_pair<E>(acc[n][h * 2] * scale, acc[n][h * 2 + 1] * scale);
        if (a.lse && q == 0) a.lse[(int64_t)t * a.H + head] = r.top[h] * a.scale + LN2 * log2f(sum);
    }
}

/* Keys that are seen by queries of one sequence, added to what there is. The tiles k, v: two of each. */
template <class E, int D>
__device__ inline void fwd_keys(const attn &a, const reach &see, bool whole, fwd_rows &r, float (&acc)[D / 8][4],
                                uint32_t q, uint32_t k, int row, int kv)
{
    enum { TILE = FWD_S * D * 2 };
    const E *k_head = (const E *)a.k.p + kv * D, *v_head = (const E *)a.v.p + kv * D;
    const int64_t stride = (int64_t)a.K * D;
    const int32_t *table = attn_table(a, see.t0);
    const uint32_t v = k + 2 * TILE;
    float s[FWD_S / 8][4], next[FWD_S / 8][4];
    int s0 = see.lo / FWD_S * FWD_S;
    wg_copy<E, D, FWD_S, THREADS>(k, k_head, stride, s0, see.lo, see.hi, table);
    copy_commit();
    wg_copy<E, D, FWD_S, THREADS>(k + TILE, k_head, stride, s0 + FWD_S, see.lo, see.hi, table);
    wg_copy<E, D, FWD_S, THREADS>(v, v_head, stride, s0, see.lo, see.hi, table);
    copy_commit();
    copy_wait<1>();
    wg_publish();
    __syncthreads();
    scores<E, D>(s, q, k);
    wg_wait<0>();
    wg_pin(s);
    for (uint32_t which = 0; s0 < see.hi; s0 += FWD_S, which ^= 1) {
        uint32_t p[FWD_S / 16][4];
        copy_wait<0>();
        wg_publish();
        __syncthreads(); /* the next keys and these values are there; these keys and the values before are free */
        wg_copy<E, D, FWD_S, THREADS>(k + which * TILE, k_head, stride, s0 + 2 * FWD_S, see.lo, see.hi, table);
        wg_copy<E, D, FWD_S, THREADS>(v + (which ^ 1) * TILE, v_head, stride, s0 + FWD_S, see.lo, see.hi, table);
        copy_commit();
        scores<E, D>(next, q, k + (which ^ 1) * TILE);
        if (!whole || s0 < see.in || s0 + FWD_S > see.out) mask(a, see, s, row, s0);
        softmax_step<E, D>(r, s, acc, p, a.scale * LOG2E);
        weigh<E, D>(acc, p, v + which * TILE);
        wg_wait<0>();
        wg_pin(next);
        wg_pin(acc);
#pragma unroll
        for (int n = 0; n < FWD_S / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) s[n][i] = next[n][i];
    }
    copy_wait<0>();
    __syncthreads(); /* all tiles are free */
}

#    endif

/* Block (head, tile of queries): those with the most keys, if attention is causal, come first. */
template <class E, int D> __global__ __launch_bounds__(THREADS, 1) void wgmma_fwd(attn a)
{
#    if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    GPU_SHARED(E, mem);
    const int head = (int)blockIdx.x, kv = head / (a.H / a.K), t0 = (int)(gridDim.y - 1 - blockIdx.y) * FWD_T;
    const int group = (int)threadIdx.x / 128, row = t0 + (int)threadIdx.x / 32 * 16, last = min(t0 + FWD_T, a.T);
    const uint32_t q = (shared_at(mem) + ALIGN - 1) & ~(uint32_t)(ALIGN - 1);
    fwd_rows r = { { -INFINITY, -INFINITY }, { 0, 0 } };
    float acc[D / 8][4] = {};
    wg_copy<E, D, FWD_T, THREADS>(q, (const E *)a.q.p + head * D, (int64_t)a.H * D, t0, 0, a.T);
    for (int first = t0; first < last;) { /* one sequence after the other; mostly there is one */
        const reach see = warp_reach(a, first, t0 + FWD_T);
        fwd_keys<E, D>(a, see, see.t0 == t0 && see.t1 == last, r, acc, q + (uint32_t)group * 64 * 128,
                       q + FWD_T * D * 2, row, kv);
        first = see.t1;
    }
    fwd_store<E, D>(a, r, acc, row, head);
#    else
    (void)a;
    __trap(); /* attn_wgmma_takes has seen a card that this is not compiled for */
#    endif
}

template <class E, int D> static void fwd_launch(struct kctx *kc, const struct attn *a)
{
    const dim3 grid((unsigned)a->H, (unsigned)ceil_div(a->T, FWD_T));
    gpu_launch(wgmma_fwd<E, D>, grid, THREADS, ALIGN + (FWD_T + 4 * FWD_S) * D * sizeof(E), stream_of(kc), *a);
}

void attn_wgmma_fwd(struct kctx *kc, const struct attn *a)
{
    if (a->q.type == DT_BF16)
        (a->D == 64 ? fwd_launch<gpu_bf16, 64> : fwd_launch<gpu_bf16, 128>)(kc, a);
    else
        (a->D == 64 ? fwd_launch<gpu_f16, 64> : fwd_launch<gpu_f16, 128>)(kc, a);
}

#else

bool attn_wgmma_takes(const struct kctx *, const struct attn *) { return false; }
void attn_wgmma_fwd(struct kctx *, const struct attn *) {}

#endif
