/* Matrix products: which body, and the plain one. Decode is bound by reading w (gemv.cu, gemv_quant.cu); prompts and
 * training go to the vendor's library (blas.h); without one, tiles in f32 do everything. The choice never
 * depends on the number of rows. Scratch: of quantised weights some rows at a time as numbers. */
#include "kern/gpu/blas.h"
#include "kern/gpu/gemv.h"
#include "kern/gpu/quant.h"

/* out[m,n] = sum over k of a(m,k) b(n,k) (+ bias[n] + res[m,n]), a(m,k) = a[m*am + k*ak], b likewise. */
struct product {
    view out, a, b, bias, res;
    int64_t M, N, K, am, ak, bn, bk, width; /* width: of out's and res's rows */
};

enum { PIECE = 32, DEPTH = 16, EACH = PIECE * PIECE / BLOCK };

/* piece[k][i] = x(from + i, k0 + k), zeros outside. */
__device__ inline void piece_load(float (&piece)[DEPTH][PIECE + 1], view x, int64_t from, int64_t n,
                                  int64_t stride, int64_t k0, int64_t K, int64_t k_stride)
{
    for (int e = (int)threadIdx.x; e < DEPTH * PIECE; e += BLOCK) {
        const int k = k_stride == 1 ? e % DEPTH : e / PIECE,
                  i = k_stride == 1 ? e / DEPTH : e % PIECE; /* neighbours */
        const bool there = from + i < n && k0 + k < K;
        piece[k][i] = there ? view_get(x, (from + i) * stride + (k0 + k) * k_stride) : 0.0f;
    }
}

__global__ __launch_bounds__(BLOCK) void tile_product(product p)
{
    __shared__ float a[DEPTH][PIECE + 1], b[DEPTH][PIECE + 1];
    const int64_t m0 = (int64_t)blockIdx.y * PIECE, n0 = (int64_t)blockIdx.x * PIECE;
    const int col = (int)threadIdx.x % PIECE, row = (int)threadIdx.x / PIECE * EACH;
    float sum[EACH] = { 0 };
    for (int64_t k0 = 0; k0 < p.K; k0 += DEPTH) {
        __syncthreads();
        piece_load(a, p.a, m0, p.M, p.am, k0, p.K, p.ak);
        piece_load(b, p.b, n0, p.N, p.bn, k0, p.K, p.bk);
        __syncthreads();
        for (int k = 0; k < DEPTH; k++)
#pragma unroll
            for (int j = 0; j < EACH; j++) sum[j] += a[k][row + j] * b[k][col];
    }
#pragma unroll
    for (int j = 0; j < EACH; j++) {
        const int64_t m = m0 + row + j, n = n0 + col;
        if (m >= p.M || n >= p.N) continue;
        if (p.bias.p) sum[j] += view_get(p.bias, n);
        if (p.res.p) sum[j] += view_get(p.res, m * p.width + n);
        view_put(p.out, m * p.width + n, sum[j]);
    }
}

static void run_tiles(struct kctx *kc, const struct product *p)
{
    const dim3 grid((unsigned)ceil_div(p->N, PIECE), (unsigned)ceil_div(p->M, PIECE));
    if (p->M && p->N) gpu_launch(tile_product, grid, BLOCK, 0, stream_of(kc), *p);
}

/* A view of the elements from i on; absent stays absent. */
static struct tensor from(struct tensor t, int64_t i)
{
    if (t.p) t.p = (char *)t.p + (size_t)i * dtype_bytes((enum dtype)t.type);
    return t;
}

/* Columns [at, at + w's rows) of y. */
static void matmul_columns(struct kctx *kc, struct tensor y, struct tensor x, struct tensor w, struct tensor b,
                           struct tensor res, int64_t at)
{
    const int64_t I = tensor_cols(x), O = tensor_cols(y);
    b = from(b, at);
    if (blas_matmul(kc, from(y, at), x, w, b, from(res, at))) return;
    const struct product p = { view_of(from(y, at)), view_of(x), view_of(w), view_of(b), view_of(from(res, at)),
                               tensor_rows(x), w.n[0], I, I, 1, I, 1, O };
    run_tiles(kc, &p);
}

/* dx += dy's columns [at, at + w's rows) w */
static void matmul_dx_columns(struct kctx *kc, struct tensor dx, struct tensor dy, struct tensor w, int64_t at)
{
    const int64_t O = tensor_cols(dy), I = w.n[1];
    if (blas_matmul_dx(kc, dx, from(dy, at), w)) return;
    const struct product p = { view_of(dx), view_of(from(dy, at)), view_of(w), {}, is_fresh(dx) ? view{} : view_of(dx),
                               tensor_rows(dy), I, w.n[0], O, 1, 1, I, I };
    run_tiles(kc, &p);
}

/* The next rows of w from `at` on as numbers in scratch: in act where products need not be exact to f32. As many as
 * there is room for. */
static struct tensor rows_as_numbers(struct kctx *kc, struct tensor w, int64_t at, enum dtype act)
{
    enum { MANY = 128 /* whole tiles of the library's kernels */ };
    const enum dtype type = kc->product == DT_F32 ? DT_F32 : act;
    const struct arena *s = kc->scratch;
    const int64_t left = w.n[0] - at, room = (int64_t)(s->cap - s->used) - (1 << 20),
                  fit = room / (w.n[1] * (int64_t)dtype_bytes(type)), n = fit > MANY ? fit / MANY * MANY : fit;
    struct tensor r = tensor_2d(NULL, type, least(left, n), w.n[1]);
    ASSERT(r.n[0] > 0);
    r.p = arena_take(kc->scratch, tensor_bytes(r));
    gpu_cast(kc, r, tensor_slice(w, at, r.n[0]));
    return r;
}

void gpu_matmul(struct kctx *kc, struct tensor y, struct tensor x, struct tensor w, struct tensor b,
                struct tensor res)
{
    const bool quant = dtype_is_quant((enum dtype)w.type), few = kc->decode && gemv_quant_takes(kc, x, w);
    if (few || (kc->decode && !quant && gemv_takes(x, w))) {
        const struct gemv g = { x, {}, 0, { w }, { b }, { y }, { res }, 1, false };
        (few ? gemv_quant_run : gemv_run)(kc, &g);
    } else if (!quant) {
        matmul_columns(kc, y, x, w, b, res, 0);
    } else if (!kc->training && quant_many_takes(kc, y, x, w, res)) {
        quant_many_run(kc, &y, x, &w, &b, res, 1);
    } else {
        const size_t mark = arena_mark(kc->scratch);
        for (int64_t at = 0; at < w.n[0]; arena_rewind(kc->scratch, mark)) {
            const struct tensor r = rows_as_numbers(kc, w, at, (enum dtype)x.type);
            matmul_columns(kc, y, x, r, b, res, at);
            at += r.n[0];
        }
    }
}

void gpu_matmul_each(struct kctx *kc, const struct tensor *y, struct tensor x, const struct tensor *w,
                     const struct tensor *b, int n)
{
    const bool quant = dtype_is_quant((enum dtype)w[0].type);
    bool taken = n > 1 && !quant && blas_matmul_each(kc, y, x, w, b, n);
    if (n > 1 && quant && quant_many_takes(kc, y[0], x, w[0], tensor{})) {
        quant_many_run(kc, y, x, w, b, tensor{}, n);
        taken = true;
    }
    for (int i = 0; i < n && !taken; i++) gpu_matmul(kc, y[i], x, w[i], b[i], tensor{});
}

/* A tensor like t in scratch, with `cols` columns. */
static struct tensor scratch_like(struct kctx *kc, struct tensor t, int64_t cols)
{
    struct tensor s = tensor_2d(NULL, (enum dtype)t.type, tensor_rows(t), cols);
    s.p = arena_take(kc->scratch, tensor_bytes(s));
    return s;
}

/* rmsnorm and products one by one, for sizes that gemv does not take. */
static void norm_then(struct kctx *kc, const struct gemv *g, const struct tensor *y)
{
    const size_t mark = arena_mark(kc->scratch);
    const struct tensor h = scratch_like(kc, g->x, tensor_cols(g->x));
    gpu_rmsnorm_fwd(kc, h, tensor{}, g->x, g->norm, g->eps);
    for (int i = 0; i < g->n; i++) gpu_matmul(kc, y[i], h, g->w[i], g->b[i], tensor{});
    arena_rewind(kc->scratch, mark);
}

/* What does all of g in one go, or NULL. */
typedef void gemv_fn(struct kctx *, const struct gemv *);
static gemv_fn *taken(const struct kctx *kc, const struct gemv *g)
{
    bool all = true;
    if (dtype_is_quant((enum dtype)g->w[0].type)) return gemv_quant_takes(kc, g->x, g->w[0]) ? gemv_quant_run : NULL;
    for (int i = 0; i < g->n; i++) all = all && gemv_takes(g->x, g->w[i]);
    return all ? gemv_run : NULL;
}

void gpu_norm_matmul(struct kctx *kc, const struct tensor *y, struct tensor x, struct tensor norm, float eps,
                     const struct tensor *w, const struct tensor *b, int n)
{
    struct gemv g = {};
    g.x = x, g.norm = norm, g.eps = eps, g.n = n;
    for (int i = 0; i < n; i++) g.y[i] = y[i], g.w[i] = w[i], g.b[i] = b[i];
    gemv_fn *fn = taken(kc, &g);
    if (fn)
        fn(kc, &g);
    else
        norm_then(kc, &g, y);
}

void gpu_norm_glu(struct kctx *kc, struct tensor y, struct tensor x, struct tensor norm, float eps,
                  struct tensor gate, struct tensor up)
{
    const size_t mark = arena_mark(kc->scratch);
    struct gemv g = {};
    g.x = x, g.norm = norm, g.eps = eps, g.n = 2, g.glu = true;
    g.y[0] = y, g.w[0] = gate, g.w[1] = up;
    gemv_fn *fn = taken(kc, &g);
    if (fn) {
        fn(kc, &g);
        return;
    }
    const struct tensor both[2] = { y, scratch_like(kc, y, tensor_cols(y)) };
    norm_then(kc, &g, both);
    gpu_swiglu_fwd(kc, y, both[0], both[1]);
    arena_rewind(kc->scratch, mark);
}

void gpu_matmul_dx(struct kctx *kc, struct tensor dx, struct tensor dy, struct tensor w)
{
    const size_t mark = arena_mark(kc->scratch);
    if (!dx.p) return;
    if (!dtype_is_quant((enum dtype)w.type)) {
        matmul_dx_columns(kc, dx, dy, w, 0);
        return;
    }
    for (int64_t at = 0; at < w.n[0]; arena_rewind(kc->scratch, mark)) {
        const struct tensor r = rows_as_numbers(kc, w, at, (enum dtype)dy.type);
        matmul_dx_columns(kc, dx, dy, r, at);
        at += r.n[0];
        dx.id = 0; /* the first has written it */
    }
}

/* db += column sums of dy, in two steps: sums over pieces of so many rows, and the sum of those. A warp's lanes have
 * neighbouring columns, its block's warps share the rows of a piece. */
enum { SUM_ROWS = 256 };

__global__ __launch_bounds__(BLOCK) void column_pieces(float *piece, view dy, int64_t rows, int64_t cols)
{
    __shared__ float part[BLOCK / GPU_WARP][GPU_WARP];
    const int lane = (int)threadIdx.x % GPU_WARP, warp = (int)threadIdx.x / GPU_WARP;
    const int64_t col = (int64_t)blockIdx.x * GPU_WARP + lane, from = (int64_t)blockIdx.y * SUM_ROWS;
    const int64_t to = from + SUM_ROWS < rows ? from + SUM_ROWS : rows;
    float sum = 0;
    for (int64_t t = from + warp; t < to && col < cols; t += BLOCK / GPU_WARP) sum += view_get(dy, t * cols + col);
    part[warp][lane] = sum;
    __syncthreads();
    if (warp || col >= cols) return;
    for (int i = 1; i < BLOCK / GPU_WARP; i++) sum += part[i][lane];
    piece[(int64_t)blockIdx.y * cols + col] = sum;
}

__global__ __launch_bounds__(BLOCK) void column_sum(view db, const float *piece, int64_t n, int64_t cols)
{
    __shared__ float part[BLOCK / GPU_WARP][GPU_WARP];
    const int lane = (int)threadIdx.x % GPU_WARP, warp = (int)threadIdx.x / GPU_WARP;
    const int64_t col = (int64_t)blockIdx.x * GPU_WARP + lane;
    float sum = 0;
    for (int64_t i = warp; i < n && col < cols; i += BLOCK / GPU_WARP) sum += piece[i * cols + col];
    part[warp][lane] = sum;
    __syncthreads();
    if (warp || col >= cols) return;
    for (int i = 1; i < BLOCK / GPU_WARP; i++) sum += part[i][lane];
    view_put(db, col, view_get(db, col) + sum);
}

static void column_sums(struct kctx *kc, struct tensor db, struct tensor dy, int64_t rows, int64_t cols)
{
    const size_t mark = arena_mark(kc->scratch);
    const int64_t n = ceil_div(rows, SUM_ROWS);
    float *piece = (float *)arena_take(kc->scratch, (size_t)(n * cols) * sizeof(float));
    const unsigned blocks = (unsigned)ceil_div(cols, GPU_WARP);
    gpu_launch(column_pieces, dim3(blocks, (unsigned)n), BLOCK, 0, stream_of(kc), piece, view_of(dy), rows, cols);
    gpu_launch(column_sum, dim3(blocks), BLOCK, 0, stream_of(kc), view_of(db), piece, n, cols);
    arena_rewind(kc->scratch, mark);
}

void gpu_matmul_dw(struct kctx *kc, struct tensor dw, struct tensor db, struct tensor dy, struct tensor x)
{
    const int64_t T = tensor_rows(x), I = tensor_cols(x), O = tensor_cols(dy);
    if (db.p && T) column_sums(kc, db, dy, T, O);
    if (!dw.p || blas_matmul_dw(kc, dw, dy, x)) return;
    const struct product p = { view_of(dw), view_of(dy), view_of(x), {}, view_of(dw), O, I, T, 1, O, 1, I, I };
    run_tiles(kc, &p);
}
