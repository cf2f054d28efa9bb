/* Matrix products with few tokens (decode), and the choice between these and gemm_impl.h.
 *
 * The weight is read once, from where it is mapped, at the speed of memory: ROWS rows at a time, each with all (at most
 * TOKENS) tokens before the next. The next rows are prefetched. A sum's order depends on I only, not on T.
 */
#include "kern/cpu/isa.h"

enum {
    ROWS = 4,
    TOKENS = 4,
    GEMV_TOKENS = 16, /* most tokens for which this file is faster than gemm_impl.h */
};

/* How a weight is multiplied: its type as f32, or bf16 as it is with x in bf16. */
enum how { AS_F32, AS_F16, AS_BF16, AS_PAIR };

INLINE vf w_load(const char *p, enum how how)
{
    if (how == AS_PAIR) return vf_pair_load((const uint16_t *)p);
    return vf_load_as(p, how == AS_F32 ? DT_F32 : how == AS_F16 ? DT_F16 : DT_BF16);
}
INLINE vf w_load_n(const char *p, enum how how, int64_t n)
{
    if (how == AS_PAIR) return vf_pair_load_n((const uint16_t *)p, n);
    return vf_load_as_n(p, how == AS_F32 ? DT_F32 : how == AS_F16 ? DT_F16 : DT_BF16, n);
}

struct gemv {
    const char *w;
    const char *x; /* [T] rows of x_bytes: f32, or bf16 where how is AS_PAIR */
    float *y;
    const float *bias, *res; /* or NULL */
    int64_t tokens, in, out, x_bytes;
    enum how how;
};

/* y[t][o] for `rows` outputs from o and `tokens` tokens from t; both counts and `how` are constants. */
INLINE void dots(const struct gemv *g, enum how how, int rows, int tokens, int64_t o, int64_t t)
{
    const int64_t size = how == AS_F32 ? 4 : 2, xsize = how == AS_PAIR ? 2 : 4, step = how == AS_PAIR ? 2 * VW : VW;
    const int64_t w_bytes = g->in * size;
    const char *w = g->w + o * w_bytes, *x = g->x + t * g->x_bytes;
    vf acc[ROWS][TOKENS];
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < tokens; j++) acc[r][j] = vf_zero();
    int64_t i = 0;
    for (; i + step <= g->in; i += step) {
        vf a[ROWS];
        for (int r = 0; r < rows; r++) {
            a[r] = w_load(w + r * w_bytes + i * size, how);
            _mm_prefetch(w + (rows + r) * w_bytes + i * size, _MM_HINT_T0);
        }
        for (int j = 0; j < tokens; j++) {
            vf b = vf_load((const float *)(const void *)(x + j * g->x_bytes + i * xsize));
            for (int r = 0; r < rows; r++)
                acc[r][j] = how == AS_PAIR ? vf_pair_fma(a[r], b, acc[r][j]) : vf_fma(a[r], b, acc[r][j]);
        }
    }
    if (i < g->in)
        for (int j = 0; j < tokens; j++) {
            const char *p = x + j * g->x_bytes + i * xsize;
            vf b = w_load_n(p, how == AS_PAIR ? AS_PAIR : AS_F32, g->in - i);
            for (int r = 0; r < rows; r++) {
                vf a = w_load_n(w + r * w_bytes + i * size, how, g->in - i);
                acc[r][j] = how == AS_PAIR ? vf_pair_fma(a, b, acc[r][j]) : vf_fma(a, b, acc[r][j]);
            }
        }
    for (int j = 0; j < tokens; j++)
        for (int r = 0; r < rows; r++) {
            int64_t at = (t + j) * g->out + o + r;
            float v = vf_sum(acc[r][j]);
            if (g->bias) v += g->bias[o + r];
            g->y[at] = g->res ? v + g->res[at] : v;
        }
}

INLINE void all_tokens(const struct gemv *g, enum how how, int rows, int64_t o)
{
    int64_t t = 0;
    for (; t + TOKENS <= g->tokens; t += TOKENS) dots(g, how, rows, TOKENS, o, t);
    switch (g->tokens - t) {
    case 1: dots(g, how, rows, 1, o, t); break;
    case 2: dots(g, how, rows, 2, o, t); break;
    case 3: dots(g, how, rows, 3, o, t); break;
    }
}

INLINE void outputs(const struct gemv *g, enum how how, int64_t from, int64_t to)
{
    int64_t o = from;
    for (; o + ROWS <= to; o += ROWS) all_tokens(g, how, ROWS, o);
    for (; o < to; o++) all_tokens(g, how, 1, o);
}

static void gemv_run(const struct gemv *g, int n_threads)
{
    int64_t bytes = g->in * (g->how == AS_F32 ? 4 : 2), chunk = (1 << 17) / (bytes + 1) / ROWS * ROWS;
    int64_t most = g->out / (4 * n_threads) / ROWS * ROWS;
    if (chunk > most) chunk = most;
    if (chunk < ROWS) chunk = ROWS;
#pragma omp parallel for num_threads(n_threads) schedule(dynamic)
    for (int64_t o = 0; o < g->out; o += chunk) {
        int64_t end = o + chunk < g->out ? o + chunk : g->out;
        switch (g->how) {
        case AS_F32: outputs(g, AS_F32, o, end); break;
        case AS_F16: outputs(g, AS_F16, o, end); break;
        case AS_BF16: outputs(g, AS_BF16, o, end); break;
        case AS_PAIR: if (HAS_PAIRS) outputs(g, AS_PAIR, o, end); break;
        }
    }
}

/* x[T,I] as bf16 in rows of a whole number of vectors. */
static const char *x_to_bf16(struct kctx *kc, struct tensor x, int64_t *row_bytes)
{
    int64_t rows = tensor_rows(x), in = tensor_cols(x), ld = (in + 2 * VW - 1) / (2 * VW) * (2 * VW);
    uint16_t *h = arena_take(kc->scratch, (size_t)(rows * ld) * sizeof *h);
    for (int64_t t = 0; t < rows; t++) {
        const float *p = (const float *)x.p + t * in;
        int64_t i = 0;
        for (; i + VW <= in; i += VW) vf_store_bf16(h + t * ld + i, vf_load(p + i));
        if (i < in) vf_store_bf16(h + t * ld + i, vf_load_n(p + i, in - i));
    }
    *row_bytes = ld * 2;
    return (const char *)h;
}

/* A bias of any float type as f32; NULL where there is none. */
static const float *as_f32(struct kctx *kc, struct tensor b)
{
    if (!b.p || b.type == DT_F32) return b.p;
    float *f = arena_take(kc->scratch, (size_t)tensor_count(b) * sizeof *f);
    dtype_convert(f, DT_F32, b.p, (enum dtype)b.type, tensor_count(b));
    return f;
}

static bool is_half_or_f32(struct tensor w) { return w.type == DT_F32 || w.type == DT_F16 || w.type == DT_BF16; }

static void matmul(struct kctx *kc, struct tensor y, struct tensor x, struct tensor w, struct tensor b,
                   struct tensor res)
{
    if (x.type != DT_F32 || !is_half_or_f32(w)) {
        kern_ref.matmul(kc, y, x, w, b, res);
        return;
    }
    int64_t tokens = tensor_rows(x), in = tensor_cols(x), out = w.n[0];
    bool pair = HAS_PAIRS && kc->product == DT_BF16 && w.type == DT_BF16;
    size_t mark = arena_mark(kc->scratch);
    const float *bias = as_f32(kc, b);
    if (tokens > GEMV_TOKENS) {
        struct cpu_gemm g = { tokens, out, in, { x.p, DT_F32, in, false }, { w.p, (enum dtype)w.type, in, false },
                              y.p, bias, res.p, pair };
        ISA(cpu_gemm)(kc, &g);
    } else {
        struct gemv g = { w.p, x.p, y.p, bias, res.p, tokens, in, out, in * 4,
                          pair ? AS_PAIR : w.type == DT_F32 ? AS_F32 : w.type == DT_F16 ? AS_F16 : AS_BF16 };
        if (pair) g.x = x_to_bf16(kc, x, &g.x_bytes);
        gemv_run(&g, cpu_threads(kc, in * out / 4 * tokens));
    }
    arena_rewind(kc->scratch, mark);
}

static void matmul_dx(struct kctx *kc, struct tensor dx, struct tensor dy, struct tensor w)
{
    if (!dx.p) return;
    if (dx.type != DT_F32 || dy.type != DT_F32 || !is_half_or_f32(w)) {
        kern_ref.matmul_dx(kc, dx, dy, w);
        return;
    }
    int64_t tokens = tensor_rows(dy), in = w.n[1], out = w.n[0];
    bool pair = HAS_PAIRS && kc->product == DT_BF16 && w.type == DT_BF16;
    struct cpu_gemm g = { tokens, in, out, { dy.p, DT_F32, out, false }, { w.p, (enum dtype)w.type, in, true },
                          dx.p, NULL, dx.p, pair };
    ISA(cpu_gemm)(kc, &g);
}

/* Sums columns of dy in order of t. */
static void column_sums(float *db, const float *dy, int64_t tokens, int64_t out)
{
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t o = 0; o < out; o++) db[o] += dy[t * out + o];
}

static void matmul_dw(struct kctx *kc, struct tensor dw, struct tensor db, struct tensor dy, struct tensor x)
{
    if (dy.type != DT_F32 || x.type != DT_F32 || (dw.p && dw.type != DT_F32) || (db.p && db.type != DT_F32)) {
        kern_ref.matmul_dw(kc, dw, db, dy, x);
        return;
    }
    int64_t tokens = tensor_rows(dy), in = tensor_cols(x), out = tensor_cols(dy);
    if (dw.p) {
        struct cpu_gemm g = { out, in, tokens, { dy.p, DT_F32, out, true }, { x.p, DT_F32, in, true },
                              dw.p, NULL, dw.p, false };
        ISA(cpu_gemm)(kc, &g);
    }
    if (db.p) column_sums(db.p, dy.p, tokens, out);
}

void ISA(cpu_fill_matmul)(struct kern *k)
{
    k->matmul = matmul;
    k->matmul_dx = matmul_dx;
    k->matmul_dw = matmul_dw;
}
