/* Attention by the vendor's products: for cards whose matrix units no kernel here knows. A tile of queries of one
 * sequence meets one chunk of its keys after the other; scores, of all heads of the part that is worked on, are in
 * scratch for that long. Keys and values that lie in pages, or are of another type, are copied there first. All tiles
 * and chunks have one size, and what is missing at the end is padded with zeros, so that every product has the same
 * shape and a query the same bits in any company. What no query sees is multiplied too, up to the last row that the
 * host knows to be seen (kctx.extent). The backward adds up in f32 and rounds once. Scratch: see plan. */
#include "kern/gpu/attn.h"
#include "kern/gpu/blas.h"

#if !GPU_HAS_MMA

#    if defined(GPU_EMU)
enum { TILE_T = 32, CHUNK_S = 64, MOST_HEADS = 2 }; /* so that tests have several */
#    else
enum { TILE_T = 256, CHUNK_S = 512, MOST_HEADS = 64 };
#    endif

/* The sizes of one attention, and its scratch. Parts of `heads` key/value heads are worked on after one another. */
struct plan {
    struct kctx *kc;
    const struct attn *a;
    int heads, group;
    int64_t tiles, chunks;
    enum dtype type;
    bool gathers;           /* k and v are copies of all chunks, else of the last one */
    float *s, *dp;          /* [heads*group, TILE_T, CHUNK_S]: scores, and the gradients of what becomes of them */
    void *p, *ds;           /* the same in `type` */
    void *q, *dy, *k, *v;   /* padded: [TILE_T, H*D], [CHUNK_S or all, K*D] */
    float *y, *top, *sum;   /* [heads*group, TILE_T, D]; [heads*group, TILE_T] */
    float *dq, *dk, *dv;    /* [heads*group, tiles*TILE_T, D]; [heads, CHUNK_S, D] */
};

/* Takes bytes of scratch, or only counts them where `at` is NULL. */
template <class P> static void take(struct plan *x, P **at, size_t bytes, size_t *sum)
{
    *sum += arena_aligned(bytes);
    if (at) *at = (P *)arena_take(x->kc->scratch, bytes);
}

/* The bytes that parts of x->heads heads need; taken too if `really`. */
static size_t plan_take(struct plan *x, bool back, bool really)
{
    const struct attn *a = x->a;
    const size_t n = (size_t)x->heads * (size_t)x->group, one = dtype_bytes(x->type), D = (size_t)a->D;
    const size_t scores = n * TILE_T * CHUNK_S, queries = (size_t)TILE_T * (size_t)a->H * D * one,
                 keys = (size_t)(x->gathers ? x->chunks : 1) * CHUNK_S * (size_t)a->K * D * one;
    size_t sum = 0;
#    define TAKE(what, bytes) take(x, really ? &x->what : NULL, bytes, &sum)
    TAKE(s, scores * sizeof(float)), TAKE(p, scores * one);
    TAKE(q, queries), TAKE(k, keys), TAKE(v, keys);
    if (back) {
        TAKE(dp, scores * sizeof(float)), TAKE(ds, scores * one), TAKE(dy, queries);
        TAKE(dq, n * (size_t)x->tiles * TILE_T * D * sizeof(float));
        TAKE(dk, (size_t)x->heads * CHUNK_S * D * sizeof(float));
        TAKE(dv, (size_t)x->heads * CHUNK_S * D * sizeof(float));
    } else {
        TAKE(y, n * TILE_T * D * sizeof(float));
        TAKE(top, n * TILE_T * sizeof(float)), TAKE(sum, n * TILE_T * sizeof(float));
    }
#    undef TAKE
    return sum;
}

/* As many heads at once as scratch has room for; none: false. The count depends on sizes alone. */
static bool plan_make(struct plan *x, struct kctx *kc, const struct attn *a, bool back)
{
    const struct arena *s = kc->scratch;
    *x = {};
    x->kc = kc, x->a = a;
    x->group = a->H / a->K;
    x->tiles = ceil_div(a->T, TILE_T), x->chunks = ceil_div(a->S, CHUNK_S);
    x->type = (enum dtype)a->q.type;
    x->gathers = a->pages || a->k.type != a->q.type;
    for (x->heads = a->K < MOST_HEADS ? a->K : MOST_HEADS;
         x->heads > 0 && (a->K % x->heads || plan_take(x, back, false) > s->cap - s->used);)
        x->heads--;
    return x->heads > 0;
}

bool attn_gemm_takes(struct kctx *kc, const struct attn *a, bool back)
{
    struct plan x;
    const bool same = a->k.type == a->q.type, exact = same || a->q.type == DT_F32 || a->k.type == DT_Q8;
    return (!a->pages || kc->n_extents) && (back ? same : exact) && (a->D == 64 || a->D == 128) &&
           blas_has_batched(kc) && plan_make(&x, kc, a, back);
}

/* ---- pieces */

/* y[rows, width] = x from row `at` on, zeros behind its n rows. */
template <class A>
__global__ __launch_bounds__(BLOCK) void pad_rows(A *y, const A *x, int64_t at, int64_t rows, int64_t n, int64_t width)
{
    const int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i < rows * width) y[i] = at + i / width < n ? x[at * width + i] : gpu_from<A>(0.0f);
}

/* Rows [at, at + rows) of x[n, width]: where they are, or a padded copy. */
static const void *rows_at(const struct plan *x, view t, void *room, int64_t at, int64_t rows, int64_t n, int64_t width)
{
    const size_t first = (size_t)(at * width) * dtype_bytes(x->type);
    if (at + rows <= n) return t.p + first;
    GPU_BY_TYPE(x->type, A,
                gpu_launch(pad_rows<A>, dim3((unsigned)ceil_div(rows * width, BLOCK)), BLOCK, 0, stream_of(x->kc),
                           (A *)room, (const A *)t.p, at, rows, n, width));
    return room;
}

static const void *queries_at(const struct plan *x, view t, void *room, int64_t at)
{
    return rows_at(x, t, room, at, TILE_T, x->a->T, (int64_t)x->a->H * x->a->D);
}

/* y[rows, width] = the first n rows of a sequence, zeros behind them. A thread has 8 numbers. */
template <class A>
__global__ __launch_bounds__(BLOCK) void gather(A *y, view t, quant_view quant, const int32_t *table, int64_t rows,
                                                int n, int width, bool wide)
{
    const int64_t i = ((int64_t)blockIdx.x * BLOCK + threadIdx.x) * LANES, row = i / width;
    const int at = (int)(i % width);
    float v[LANES] = {};
    if (row >= rows) return;
    const int64_t from = row < n ? attn_row(table, (int)row) : 0;
    if (row < n && t.type == DT_Q8)
        quant_load8(v, quant, quant.p + from * quant.pitch, at);
    else if (row < n)
        load8(v, view_at(t, from * width), at, width, wide);
    store8(y + row * width, v, at, width, true);
}

static void gather_all(const struct plan *x, void *to, view t, const quant_view &quant, const struct kv_extent &e)
{
    const struct attn *a = x->a;
    const int64_t rows = x->chunks * CHUNK_S, width = (int64_t)a->K * a->D;
    const int32_t *table = a->pages ? a->pages + (int64_t)e.seq * a->per_table : NULL;
    GPU_BY_TYPE(x->type, A,
                gpu_launch(gather<A>, blocks_for(rows * width), BLOCK, 0, stream_of(x->kc), (A *)to, t, quant, table,
                           rows, e.to, (int)width, a->wide));
}

static const void *skip(const struct plan *x, const void *p, int64_t n)
{
    return (const char *)p + (size_t)n * dtype_bytes(x->type);
}

static const void *keys_at(const struct plan *x, view t, void *room, int64_t chunk)
{
    const int64_t at = chunk * CHUNK_S, width = (int64_t)x->a->K * x->a->D;
    return x->gathers ? skip(x, room, at * width) : rows_at(x, t, room, at, CHUNK_S, x->a->S, width);
}

static void multiply(const struct plan *x, struct blas_product p)
{
    p.in = x->type, p.out = DT_F32, p.like_n = p.n, p.batch = x->heads;
    p.ldd = p.m;
    if (!blas_batched(x->kc, &p)) BUG("batched products that were promised");
}

/* s = q k^T, of heads from kv on; also dp = dy v^T. */
static void product_scores(const struct plan *x, float *s, const void *q, const void *k, int kv)
{
    const int64_t D = x->a->D, one = (int64_t)TILE_T * CHUNK_S;
    for (int g = 0; g < x->group; g++) {
        struct blas_product p = {};
        p.m = CHUNK_S, p.n = TILE_T, p.k = D;
        p.a = skip(x, k, kv * D), p.lda = x->a->K * D, p.next_a = D, p.ta = true;
        p.b = skip(x, q, (kv * x->group + g) * D), p.ldb = x->a->H * D, p.next_b = x->group * D;
        p.d = s + g * one, p.next_d = x->group * one;
        multiply(x, p);
    }
}

/* y (+)= p v, a head's y being `next` from that of the one before; also dq += ds k. */
static void product_rows(const struct plan *x, float *y, int64_t next, const void *weights, const void *v, int kv,
                         bool adds)
{
    const int64_t D = x->a->D, one = (int64_t)TILE_T * CHUNK_S;
    for (int g = 0; g < x->group; g++) {
        struct blas_product p = {};
        p.m = D, p.n = TILE_T, p.k = CHUNK_S;
        p.a = skip(x, v, kv * D), p.lda = x->a->K * D, p.next_a = D;
        p.b = skip(x, weights, g * one), p.ldb = CHUNK_S, p.next_b = x->group * one;
        p.d = y + g * next, p.next_d = x->group * next;
        p.c = adds ? p.d : NULL;
        multiply(x, p);
    }
}

/* dv (+)= p^T dy; also dk += ds^T q. */
static void product_columns(const struct plan *x, float *dv, const void *weights, const void *dy, int kv, bool adds)
{
    const int64_t D = x->a->D, one = (int64_t)TILE_T * CHUNK_S;
    for (int g = 0; g < x->group; g++) {
        struct blas_product p = {};
        p.m = D, p.n = CHUNK_S, p.k = TILE_T;
        p.a = skip(x, dy, (kv * x->group + g) * D), p.lda = x->a->H * D, p.next_a = x->group * D;
        p.b = skip(x, weights, g * one), p.ldb = CHUNK_S, p.next_b = x->group * one, p.tb = true;
        p.d = dv, p.next_d = CHUNK_S * D;
        p.c = adds || g ? p.d : NULL;
        multiply(x, p);
    }
}

/* ---- forward */

/* A warp has one query of one head, in the order of scores: these become exponentials, what there is so far fades. */
template <class A>
__global__ __launch_bounds__(BLOCK) void soften(A *p, const float *s, float *y, float *top, float *sum, attn a,
                                                int rows, int t0, int s0)
{
    const int row = (int)((blockIdx.x * BLOCK + threadIdx.x) / GPU_WARP), lane = (int)threadIdx.x % GPU_WARP;
    if (row >= rows) return; /* the whole warp */
    const int2 range = attn_range(a, t0 + row % TILE_T);
    const float *score = s + (int64_t)row * CHUNK_S, before = s0 ? top[row] : -INFINITY;
    float most = before, part = 0;
    for (int i = lane; i < CHUNK_S; i += GPU_WARP)
        if (s0 + i >= range.x && s0 + i < range.y) most = fmaxf(most, a.scale * score[i]);
    most = warp_max(most);
    const float fade = before > -INFINITY ? expf(before - most) : 1.0f;
    for (int i = lane; i < CHUNK_S; i += GPU_WARP) {
        const bool seen = s0 + i >= range.x && s0 + i < range.y;
        const float e = seen ? expf(a.scale * score[i] - most) : 0.0f;
        p[(int64_t)row * CHUNK_S + i] = gpu_from<A>(e);
        part += e;
    }
    part = warp_sum(part);
    if (s0 && fade != 1.0f)
        for (int i = lane; i < a.D; i += GPU_WARP) y[(int64_t)row * a.D + i] *= fade;
    if (lane == 0) top[row] = most, sum[row] = (s0 ? sum[row] * fade : 0.0f) + part;
}

/* A thread has one number of the result. `head`: the first. */
__global__ __launch_bounds__(BLOCK) void finish(attn a, const float *y, const float *top, const float *sum, int rows,
                                                int t0, int head)
{
    const int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x, row = i / a.D, d = i % a.D;
    const int64_t t = t0 + row % TILE_T, th = t * a.H + head + row / TILE_T;
    if (row >= rows || t >= a.T) return;
    view_put(a.y, th * a.D + d, y[i] / sum[row]);
    if (a.lse && d == 0) a.lse[th] = top[row] + logf(sum[row]);
}

/* Queries of one sequence; a.T: the one behind them. */
static void fwd_extent(struct plan x, const struct attn &a, const struct kv_extent &e)
{
    const int rows = x.heads * x.group * TILE_T;
    x.a = &a;
    x.chunks = ceil_div(e.to, CHUNK_S);
    if (x.gathers) gather_all(&x, x.k, a.k, a.kq, e), gather_all(&x, x.v, a.v, a.vq, e);
    for (int kv = 0; kv < a.K; kv += x.heads)
        for (int t = e.t0; t < e.t1; t += TILE_T) {
            const void *q = queries_at(&x, a.q, x.q, t);
            for (int64_t c = 0; c < x.chunks; c++) {
                product_scores(&x, x.s, q, keys_at(&x, a.k, x.k, c), kv);
                GPU_BY_TYPE(x.type, A,
                            gpu_launch(soften<A>, dim3((unsigned)ceil_div((int64_t)rows * GPU_WARP, BLOCK)), BLOCK, 0,
                                       stream_of(x.kc), (A *)x.p, x.s, x.y, x.top, x.sum, a, rows, t, c * CHUNK_S));
                product_rows(&x, x.y, (int64_t)TILE_T * a.D, x.p, keys_at(&x, a.v, x.v, c), kv, c > 0);
            }
            gpu_launch(finish, dim3((unsigned)ceil_div((int64_t)rows * a.D, BLOCK)), BLOCK, 0, stream_of(x.kc), a, x.y,
                       x.top, x.sum, rows, t, kv * x.group);
        }
}

void attn_gemm_fwd(struct kctx *kc, const struct attn *a)
{
    const size_t mark = arena_mark(kc->scratch);
    const struct kv_extent all = { 0, a->T, 0, a->S };
    struct plan x;
    if (!plan_make(&x, kc, a, false)) BUG("attention that was not asked about");
    plan_take(&x, false, true);
    for (int i = 0; i < (kc->n_extents ? kc->n_extents : 1); i++) {
        const struct kv_extent e = kc->n_extents ? kc->extent[i] : all;
        struct attn part = *a;
        part.T = e.t1;
        fwd_extent(x, part, e);
    }
    arena_rewind(kc->scratch, mark);
}

/* ---- backward */

/* A thread has one pair of a query and a key. `head`: the first. */
template <class A>
__global__ __launch_bounds__(BLOCK) void slopes(A *p, A *ds, const float *s, const float *dp, attn_back b, int64_t n,
                                                int t0, int s0, int head)
{
    const attn &a = b.a;
    const int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x, row = i / CHUNK_S;
    if (i >= n) return;
    const int t = t0 + (int)(row % TILE_T), key = s0 + (int)(i % CHUNK_S);
    const int2 range = attn_range(a, t);
    const bool seen = key >= range.x && key < range.y;
    const int64_t th = seen ? (int64_t)t * a.H + head + row / TILE_T : 0;
    const float e = seen ? expf(a.scale * s[i] - a.lse[th]) : 0.0f;
    p[i] = gpu_from<A>(e);
    ds[i] = gpu_from<A>(seen ? a.scale * e * (dp[i] - b.delta[th]) : 0.0f);
}

/* grad[row, head] += x[head][row], rows from `at` on; n: of all heads, `rows` of each. */
__global__ __launch_bounds__(BLOCK) void add_heads(gradient grad, const float *x, int64_t n, int64_t rows, int64_t at,
                                                   int64_t end, int head, int heads, int D)
{
    const int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x, row = at + i / D % rows;
    if (i >= n || row >= end) return;
    const int64_t to = (row * heads + head + i / D / rows) * D + i % D;
    gradient_add(grad, to, x[i]);
}

static void add_up(const struct plan *x, gradient grad, const float *from, int count, int64_t rows, int64_t at,
                   int64_t end, int head, int heads)
{
    const int64_t n = count * rows * x->a->D;
    if (grad.to.p)
        gpu_launch(add_heads, dim3((unsigned)ceil_div(n, BLOCK)), BLOCK, 0, stream_of(x->kc), grad, from, n, rows, at,
                   end, head, heads, x->a->D);
}

/* A chunk of keys and a tile of queries, heads from kv on. */
static void back_step(const struct plan *x, const struct attn_back *b, const void *k, const void *v, int64_t t,
                      int64_t c, int kv)
{
    const struct attn *a = x->a;
    const int64_t pairs = (int64_t)x->heads * x->group * TILE_T * CHUNK_S, rows = x->tiles * TILE_T;
    const void *q = queries_at(x, a->q, x->q, t * TILE_T), *dy = queries_at(x, b->dy, x->dy, t * TILE_T);
    product_scores(x, x->s, q, k, kv);
    product_scores(x, x->dp, dy, v, kv);
    GPU_BY_TYPE(x->type, A,
                gpu_launch(slopes<A>, dim3((unsigned)ceil_div(pairs, BLOCK)), BLOCK, 0, stream_of(x->kc), (A *)x->p,
                           (A *)x->ds, x->s, x->dp, *b, pairs, t * TILE_T, c * CHUNK_S, kv * x->group));
    if (b->dv.to.p) product_columns(x, x->dv, x->p, dy, kv, t > 0);
    if (b->dk.to.p) product_columns(x, x->dk, x->ds, q, kv, t > 0);
    if (b->dq.to.p) product_rows(x, x->dq + t * TILE_T * a->D, rows * a->D, x->ds, k, kv, c > 0);
}

void attn_gemm_bwd(struct kctx *kc, const struct attn_back *b)
{
    const struct attn *a = &b->a;
    const size_t mark = arena_mark(kc->scratch);
    struct plan x;
    if (!plan_make(&x, kc, a, true)) BUG("attention that was not asked about");
    plan_take(&x, true, true);
    for (int kv = 0; kv < a->K; kv += x.heads) {
        for (int64_t c = 0; c < x.chunks; c++) {
            const void *k = keys_at(&x, a->k, x.k, c), *v = keys_at(&x, a->v, x.v, c);
            for (int64_t t = 0; t < x.tiles; t++) back_step(&x, b, k, v, t, c, kv);
            add_up(&x, b->dk, x.dk, x.heads, CHUNK_S, c * CHUNK_S, a->S, kv, a->K);
            add_up(&x, b->dv, x.dv, x.heads, CHUNK_S, c * CHUNK_S, a->S, kv, a->K);
        }
        add_up(&x, b->dq, x.dq, x.heads * x.group, x.tiles * TILE_T, 0, a->T, kv * x.group, a->H);
    }
    arena_rewind(kc->scratch, mark);
}

#else

bool attn_gemm_takes(struct kctx *, const struct attn *, bool) { return false; }
void attn_gemm_fwd(struct kctx *, const struct attn *) {}
void attn_gemm_bwd(struct kctx *, const struct attn_back *) {}

#endif
