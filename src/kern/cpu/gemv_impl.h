/* Matrix products with few tokens (decode: kctx says so, not their number), and the choice between these and
 * gemm_impl.h.
 *
 * The weight is read once, from where it is mapped, at the speed of memory: a thread's rows as ROWS streams,
 * each going on from row to row for as long as can be. Long runs far apart are what the processor's own
 * prefetching likes best; prefetching of our own, or shorter runs, read a fifth less (SPEED.md). x is copied
 * first, padded with zeros and in the order in which elements of w come out of a load. A sum's order depends
 * on I and on nothing else.
 *
 * From MANY tokens on arithmetic takes longer than memory, and x does not stay in the first-level cache. Then
 * blocks of BLOCK outputs go over I in pieces of PIECE elements, which are converted once for all tokens; the
 * sums wait in memory, lane by lane, between two pieces, so that they come out as above, bit for bit.
 */
#include "kern/cpu/isa.h"

enum {
    ROWS = 4,
    TOKENS = 4,
    PARTS = 4,        /* of the outputs for each thread: one that is held up leaves some to the others */
    MANY = 5,
    TILE = VW == 16 ? 4 : 3, /* outputs at once in blocks: TILE * TOKENS sums, and their factors, in registers */
    BLOCK = 12,
    PIECE = 256,
};

/* How a weight is multiplied: its type as f32, or bf16 as it is with x in bf16. */
enum how { AS_F32, AS_F16, AS_BF16, AS_PAIR };

/* Elements in two vectors. */
INLINE int64_t step_of(enum how how)
{
    return how == AS_PAIR ? 4 * VW : 2 * VW;
}

/* Two vectors of w from p. */
INLINE void w_load(vf v[2], const char *p, enum how how)
{
    const uint16_t *h = (const uint16_t *)p;
    if (how == AS_BF16) {
        vf pair = vf_pair_load(h);
        v[0] = vf_pair_even(pair);
        v[1] = vf_pair_odd(pair);
        return;
    }
    for (int i = 0; i < 2; i++)
        v[i] = how == AS_F32   ? vf_load((const float *)(const void *)p + i * VW)
               : how == AS_F16 ? vf_load_f16(h + i * VW)
                               : vf_pair_load(h + i * 2 * VW);
}

/* The same for the last n < step_of(how) elements of a row; zeros after them. */
INLINE void w_load_n(vf v[2], const char *p, enum how how, int64_t n)
{
    char rest[4 * VW * sizeof(uint16_t)] __attribute__((aligned(64))) = { 0 };
    memcpy(rest, p, (size_t)n * (how == AS_F32 ? 4 : 2));
    w_load(v, rest, how);
}

struct gemv {
    const char *w;
    const char *x; /* [T] rows of x_bytes, as copy_x makes them */
    float *y;
    const float *bias, *res; /* or NULL */
    int64_t tokens, in, out, x_bytes;
    enum how how;
};

INLINE vf fma2(vf acc, const vf a[2], const vf b[2], bool pair)
{
    for (int h = 0; h < 2; h++) acc = pair ? vf_pair_fma(a[h], b[h], acc) : vf_fma(a[h], b[h], acc);
    return acc;
}

/* y[t][o] from its sum. */
INLINE void put(const struct gemv *g, int64_t t, int64_t o, vf sum)
{
    float v = vf_sum(sum);
    if (g->bias) v += g->bias[o];
    g->y[t * g->out + o] = g->res ? v + g->res[t * g->out + o] : v;
}

/* y[t][o] for `rows` outputs from o, `apart` outputs apart, and `tokens` tokens from t; both counts and `how`
 * are constants. */
INLINE void dots(const struct gemv *g, enum how how, int rows, int tokens, int64_t o, int64_t apart,
                 int64_t t)
{
    const int64_t size = how == AS_F32 ? 4 : 2, step = step_of(how), w_bytes = g->in * size;
    const char *w = g->w + o * w_bytes, *x = g->x + t * g->x_bytes;
    vf acc[ROWS][TOKENS];
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < tokens; j++)
            acc[r][j] = vf_zero();
    for (int64_t i = 0; i < g->in; i += step, x += 2 * sizeof(vf)) {
        vf a[ROWS][2], b[2];
        for (int r = 0; r < rows; r++) {
            const char *p = w + r * apart * w_bytes + i * size;
            if (i + step <= g->in) w_load(a[r], p, how);
            else w_load_n(a[r], p, how, g->in - i);
        }
        for (int j = 0; j < tokens; j++) {
            const float *p = (const float *)(const void *)(x + j * g->x_bytes);
            b[0] = vf_load(p);
            b[1] = vf_load(p + VW);
            for (int r = 0; r < rows; r++) acc[r][j] = fma2(acc[r][j], a[r], b, how == AS_PAIR);
        }
    }
    for (int j = 0; j < tokens; j++)
        for (int r = 0; r < rows; r++) put(g, t + j, o + r * apart, acc[r][j]);
}

INLINE void all_tokens(const struct gemv *g, enum how how, int rows, int64_t o, int64_t apart)
{
    int64_t t = 0;
    for (; t + TOKENS <= g->tokens; t += TOKENS) dots(g, how, rows, TOKENS, o, apart, t);
    switch (g->tokens - t) {
    case 1: dots(g, how, rows, 1, o, apart, t); break;
    case 2: dots(g, how, rows, 2, o, apart, t); break;
    case 3: dots(g, how, rows, 3, o, apart, t); break;
    }
}

INLINE void outputs(const struct gemv *g, enum how how, int64_t from, int64_t to)
{
    const int64_t n = (to - from) / ROWS;
    int64_t o = from;
    for (; o < from + n; o++) all_tokens(g, how, ROWS, o, n);
    for (o = from + ROWS * n; o < to; o++) all_tokens(g, how, 1, o, 1);
}

/* ---- blocks, for many tokens */

/* The vectors of elements [from, to) of a row, one after the other: those of x, or of w once it is converted. */
INLINE int64_t vectors(int64_t from, int64_t to, enum how how)
{
    return (to - from + step_of(how) - 1) / step_of(how) * 2;
}

/* Goes on with sum[rows][all tokens] by n vectors of `rows` rows of w and `tokens` tokens; the counts but n are
 * constants. */
INLINE void tile(const struct gemv *g, vf *sum, const vf *w, const char *x, int rows, int tokens, int64_t n,
                 bool pair)
{
    const int64_t w_row = PIECE / VW;
    vf acc[TILE][TOKENS];
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < tokens; j++) acc[r][j] = sum[r * g->tokens + j];
    for (int64_t i = 0; i < n; i++, x += sizeof(vf)) {
        vf a[TILE];
        for (int r = 0; r < rows; r++) a[r] = w[r * w_row + i];
        for (int j = 0; j < tokens; j++) {
            vf b = vf_load((const float *)(const void *)(x + j * g->x_bytes));
            for (int r = 0; r < rows; r++)
                acc[r][j] = pair ? vf_pair_fma(a[r], b, acc[r][j]) : vf_fma(a[r], b, acc[r][j]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < tokens; j++) sum[r * g->tokens + j] = acc[r][j];
}

/* `tokens` (a constant) tokens from t with all rows of a block. */
INLINE void tiles(const struct gemv *g, vf *sum, const vf *w, const char *x, int64_t rows, int64_t t, int tokens,
                  int64_t n, bool pair)
{
    int64_t r = 0;
    x += t * g->x_bytes;
    for (; r + TILE <= rows; r += TILE)
        tile(g, sum + r * g->tokens + t, w + r * (PIECE / VW), x, TILE, tokens, n, pair);
    for (; r < rows; r++) tile(g, sum + r * g->tokens + t, w + r * (PIECE / VW), x, 1, tokens, n, pair);
}

/* Elements [from, to) of `rows` rows from output o, and a request for what comes after them. */
INLINE void convert(vf *to_w, const struct gemv *g, enum how how, int64_t o, int64_t rows, int64_t from, int64_t to)
{
    const int64_t size = how == AS_F32 ? 4 : 2, step = step_of(how);
    for (int64_t r = 0; r < rows; r++) {
        const char *p = g->w + ((o + r) * g->in + from) * size;
        vf *v = to_w + r * (PIECE / VW);
        for (int64_t i = from; i < to; i += step, v += 2, p += step * size) {
            _mm_prefetch(p + PIECE * size, _MM_HINT_T0);
            if (i + step <= g->in) w_load(v, p, how);
            else w_load_n(v, p, how, g->in - i);
        }
    }
}

/* Outputs [o, o + rows); sum has room for [rows][tokens]. */
INLINE void block(const struct gemv *g, enum how how, int64_t o, int64_t rows, vf *sum)
{
    const bool pair = how == AS_PAIR;
    vf w[BLOCK * (PIECE / VW)];
    for (int64_t i = 0; i < rows * g->tokens; i++) sum[i] = vf_zero();
    for (int64_t from = 0; from < g->in; from += PIECE) {
        int64_t to = from + PIECE < g->in ? from + PIECE : g->in, n = vectors(from, to, how), t = 0;
        const char *x = g->x + vectors(0, from, how) * (int64_t)sizeof(vf);
        convert(w, g, how, o, rows, from, to);
        for (; t + TOKENS <= g->tokens; t += TOKENS) tiles(g, sum, w, x, rows, t, TOKENS, n, pair);
        for (; t < g->tokens; t++) tiles(g, sum, w, x, rows, t, 1, n, pair);
    }
    for (int64_t r = 0; r < rows; r++)
        for (int64_t t = 0; t < g->tokens; t++) put(g, t, o + r, sum[r * g->tokens + t]);
}

INLINE void blocks(const struct gemv *g, enum how how, int64_t from, int64_t to, vf *sum)
{
    for (int64_t o = from; o < to; o += BLOCK) block(g, how, o, to - o < BLOCK ? to - o : BLOCK, sum);
}

/* Outputs [from, to); room as for a block, or NULL: few tokens. */
INLINE void part(const struct gemv *g, enum how how, int64_t from, int64_t to, vf *room)
{
    if (room) blocks(g, how, from, to, room);
    else outputs(g, how, from, to);
}

static void gemv_run(struct kctx *kc, const struct gemv *g, int n_threads)
{
    int64_t parts = n_threads > 1 ? PARTS * n_threads : 1, chunk = (g->out + parts - 1) / parts;
    int64_t each = g->tokens < MANY ? 0 : BLOCK * g->tokens;
    vf *rooms = each ? arena_take(kc->scratch, (size_t)(n_threads * each) * sizeof *rooms) : NULL;
#pragma omp parallel for num_threads(n_threads) schedule(dynamic)
    for (int64_t o = 0; o < g->out; o += chunk) {
        int64_t end = o + chunk < g->out ? o + chunk : g->out;
        vf *room = rooms ? rooms + omp_get_thread_num() * each : NULL;
        switch (g->how) {
        case AS_F32: part(g, AS_F32, o, end, room); break;
        case AS_F16: part(g, AS_F16, o, end, room); break;
        case AS_BF16: part(g, AS_BF16, o, end, room); break;
        case AS_PAIR:
            if (HAS_PAIRS) part(g, AS_PAIR, o, end, room);
            break;
        }
    }
}

/* x[T,I] for dots: rows of whole steps. AS_BF16 wants the even elements of a step before the odd ones. */
static void copy_x(struct kctx *kc, struct gemv *g, const float *x)
{
    int64_t step = step_of(g->how), steps = (g->in + step - 1) / step;
    g->x_bytes = steps * 2 * (int64_t)sizeof(vf);
    char *to = arena_take(kc->scratch, (size_t)(g->tokens * g->x_bytes));
    g->x = to;
    for (int64_t t = 0; t < g->tokens; t++, x += g->in)
        for (int64_t i = 0; i < g->in; i += step, to += 2 * sizeof(vf)) {
            float in[4 * VW] = { 0 }, *f = (float *)(void *)to;
            memcpy(in, x + i, (size_t)(g->in - i < step ? g->in - i : step) * sizeof *x);
            if (g->how == AS_PAIR)
                for (int j = 0; j < 4; j++)
                    vf_store_bf16((uint16_t *)(void *)to + j * VW, vf_load(in + j * VW));
            else if (g->how == AS_BF16)
                for (int j = 0; j < 2 * VW; j++) f[j % 2 * VW + j / 2] = in[j];
            else memcpy(f, in, 2 * sizeof(vf));
        }
}

static bool is_half_or_f32(struct tensor w)
{
    return w.type == DT_F32 || w.type == DT_F16 || w.type == DT_BF16;
}

static void matmul(struct kctx *kc, struct tensor y, struct tensor x, struct tensor w, struct tensor b,
                   struct tensor res)
{
    if (x.type == DT_F32 && dtype_is_quant((enum dtype)w.type)) {
        ISA(cpu_quant_matmul)(kc, y, x, w, b, res);
        return;
    }
    if (x.type != DT_F32 || !is_half_or_f32(w)) {
        kern_ref.matmul(kc, y, x, w, b, res);
        return;
    }
    int64_t tokens = tensor_rows(x), in = tensor_cols(x), out = w.n[0];
    bool pair = HAS_PAIRS && kc->product != DT_F32 && w.type == DT_BF16;
    size_t mark = arena_mark(kc->scratch);
    const float *bias = weight_f32(kc, b);
    if (!kc->decode) {
        struct cpu_gemm g = {
            tokens, out,   in,  { x.p, DT_F32, in, false }, { w.p, (enum dtype)w.type, in, false }, y.p,
            bias,   res.p, pair, 0
        };
        ISA(cpu_gemm)(kc, &g);
    } else {
        struct gemv g = {
            w.p,   NULL,
            y.p,   bias,
            res.p, tokens,
            in,    out,
            0,     pair ? AS_PAIR : w.type == DT_F32 ? AS_F32 : w.type == DT_F16 ? AS_F16 : AS_BF16
        };
        copy_x(kc, &g, x.p);
        gemv_run(kc, &g, cpu_threads(kc, in * out / 4 * tokens));
    }
    arena_rewind(kc->scratch, mark);
}

static void matmul_dx(struct kctx *kc, struct tensor dx, struct tensor dy, struct tensor w)
{
    if (!dx.p) return;
    if (dx.type == DT_F32 && dy.type == DT_F32 && dtype_is_quant((enum dtype)w.type)) {
        ISA(cpu_quant_matmul_dx)(kc, dx, dy, w);
        return;
    }
    if (dx.type != DT_F32 || dy.type != DT_F32 || !is_half_or_f32(w)) {
        kern_ref.matmul_dx(kc, dx, dy, w);
        return;
    }
    int64_t tokens = tensor_rows(dy), in = w.n[1], out = w.n[0];
    bool pair = HAS_PAIRS && kc->product != DT_F32 && w.type == DT_BF16;
    struct cpu_gemm g = {
        tokens, in,   out, { dy.p, DT_F32, out, false }, { w.p, (enum dtype)w.type, in, true }, dx.p,
        NULL,   dx.p, pair, 0
    };
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
        struct cpu_gemm g = {
            out, in, tokens, { dy.p, DT_F32, out, true }, { x.p, DT_F32, in, true }, dw.p, NULL, dw.p, false, 0
        };
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
