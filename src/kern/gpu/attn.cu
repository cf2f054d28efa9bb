/* Attention: which of attn.h's ways, rotary positions, and what the ways share. Scratch: delta in the
 * backward. */
#include "kern/gpu/attn.h"

/* A thread turns 8 pairs of one head: x_i and x_{i+D/2}. */
template <class A>
__global__ __launch_bounds__(BLOCK) void rotate(A *x, const int32_t *pos, const float *table, int64_t n,
                                                int heads, int pairs, float dir, bool wide)
{
    const int per_head = (pairs + LANES - 1) / LANES;
    const int64_t k = (int64_t)blockIdx.x * BLOCK + threadIdx.x, head = k / per_head;
    const int i = (int)(k % per_head) * LANES;
    float a[LANES], b[LANES], c[LANES], s[LANES], ra[LANES], rb[LANES];
    if (head >= n) return;
    A *at = x + head * 2 * pairs;
    const float *angle = table + (int64_t)pos[head / heads] * 2 * pairs;
    load8(a, at, i, pairs, wide);
    load8(b, at + pairs, i, pairs, wide);
    load8(c, angle, i, pairs, wide);
    load8(s, angle + pairs, i, pairs, wide);
#pragma unroll
    for (int j = 0; j < LANES; j++) {
        ra[j] = a[j] * c[j] - b[j] * s[j] * dir;
        rb[j] = b[j] * c[j] + a[j] * s[j] * dir;
    }
    store8(at, ra, i, pairs, wide);
    store8(at + pairs, rb, i, pairs, wide);
}

void gpu_rope(struct kctx *kc, struct tensor x, struct tensor pos, struct tensor table, int dir)
{
    const int64_t D = tensor_cols(table), n = tensor_count(x) / D, threads = n * ceil_div(D / 2, LANES);
    const bool wide = is_wide(D / 2, x, table);
    if (n)
        GPU_BY_TYPE(x.type, A,
                    gpu_launch(rotate<A>, dim3((unsigned)ceil_div(threads, BLOCK)), BLOCK, 0, stream_of(kc),
                               (A *)x.p, (const int32_t *)pos.p, (const float *)table.p, n,
                               (int)(tensor_cols(x) / D), (int)(D / 2), (float)dir, wide));
}

static struct attn attn_of(struct tensor y, struct tensor lse, struct tensor q, struct tensor k,
                           struct tensor v, struct tensor range, struct tensor pages, int heads, float scale)
{
    const int D = (int)tensor_cols(q) / heads, per_table = pages.p ? (int)tensor_cols(pages) : 0;
    struct attn a = { view_of(q),
                      view_of(k),
                      view_of(v),
                      view_of(y),
                      (float *)lse.p,
                      (const int32_t *)range.p,
                      (const int32_t *)pages.p,
                      per_table,
                      (int)tensor_rows(q),
                      pages.p ? per_table * KV_PAGE : (int)tensor_rows(k),
                      heads,
                      (int)tensor_cols(k) / D,
                      D,
                      scale,
                      is_wide(D, q, k, v, y) };
    return a;
}

void gpu_attn_fwd(struct kctx *kc, struct tensor y, struct tensor lse, struct tensor q, struct tensor k,
                  struct tensor v, struct tensor range, struct tensor pages, int heads, float scale)
{
    const struct attn a = attn_of(y, lse, q, k, v, range, pages, heads, scale);
    if (!a.T) return;
    if (kc->decode && attn_split_takes(&a))
        attn_split_fwd(kc, &a);
    else if (attn_mma_takes(&a))
        attn_mma_fwd(kc, &a);
    else
        attn_tile_fwd(kc, &a);
}

/* delta[t,h] = dy . y of that head: one warp each. */
__global__ __launch_bounds__(BLOCK) void dy_dot_y(attn_back b)
{
    const int64_t th = ((int64_t)blockIdx.x * BLOCK + threadIdx.x) / GPU_WARP, n = (int64_t)b.a.T * b.a.H;
    const int lane = (int)threadIdx.x % GPU_WARP;
    float d[LANES], y[LANES], sum = 0;
    if (th >= n) return; /* the whole warp */
    for (int i = lane * LANES; i < b.a.D; i += GPU_WARP * LANES) {
        load8(d, view_at(b.dy, th * b.a.D), i, b.a.D, b.a.wide);
        load8(y, view_at(b.a.y, th * b.a.D), i, b.a.D, b.a.wide);
#pragma unroll
        for (int j = 0; j < LANES; j++) sum += d[j] * y[j];
    }
    sum = warp_sum(sum);
    if (lane == 0) b.delta[th] = sum;
}

void gpu_attn_bwd(struct kctx *kc, struct tensor dq, struct tensor dk, struct tensor dv, struct tensor dy,
                  struct tensor y, struct tensor lse, struct tensor q, struct tensor k, struct tensor v,
                  struct tensor range, int heads, float scale)
{
    struct attn_back b = { attn_of(y, lse, q, k, v, range, tensor{}, heads, scale),
                           view_of(dy),
                           view_of(dq),
                           view_of(dk),
                           view_of(dv),
                           NULL };
    const int64_t n = (int64_t)b.a.T * b.a.H;
    const size_t mark = arena_mark(kc->scratch);
    if (!b.a.T || (!dq.p && !dk.p && !dv.p)) return;
    b.a.wide = b.a.wide && is_wide(b.a.D, dy, dq, dk, dv);
    b.delta = (float *)arena_take(kc->scratch, (size_t)n * sizeof(float));
    gpu_launch(dy_dot_y, dim3((unsigned)ceil_div(n * GPU_WARP, BLOCK)), BLOCK, 0, stream_of(kc), b);
    if (attn_mma_takes(&b.a))
        attn_mma_bwd(kc, &b);
    else
        attn_tile_bwd(kc, &b);
    arena_rewind(kc->scratch, mark);
}
