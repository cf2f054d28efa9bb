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
 * blocks of BLOCK outputs go over I in pieces of PIECE elements. A piece's x lies together, token after token: rows
 * of a whole x, a power of two apart, would share few of the cache's sets. The first tokens' tiles convert w, the
 * others find it converted, and the sums wait in memory, lane by lane, between two pieces, so that they come out as
 * above, bit for bit. As short runs are not what the processor's prefetching expects, the next ones are asked for.
 */
#include "kern/cpu/isa.h"

enum {
    ROWS = 4,
    TOKENS = 4,
    PARTS = 4,   /* of the outputs for each thread: one that is held up leaves some to the others */
    MANY = 5,
    TILE = VW == 16 ? 4 : 2, /* outputs of a tile: TILE * MOST sums, the outputs' factors, a token's and a mask are */
    MOST = 6,                /* in registers; MOST: tokens of a tile, but for the first, which has one less */
    SIDE = 3 * MOST - 1,     /* tokens whose part of a piece is in the first-level cache */
    BLOCK = 24,
    PIECE = 256,
};

/* How a weight is multiplied: its type as f32, or bf16 as it is with x in bf16. */
enum how { AS_F32, AS_F16, AS_BF16, AS_PAIR };

/* Elements in two vectors. */
INLINE int64_t step_of(enum how how)
{
    return how == AS_PAIR ? 4 * VW : 2 * VW;
}

INLINE int64_t size_of(enum how how)
{
    return how == AS_F32 ? 4 : 2;
}

/* The first (h 0) or second of two vectors of w from p. */
INLINE vf w_vector(const char *p, enum how how, int h)
{
    const uint16_t *half = (const uint16_t *)p;
    if (how == AS_BF16) return h ? vf_pair_odd(vf_pair_load(half)) : vf_pair_even(vf_pair_load(half));
    return how == AS_F32   ? vf_load((const float *)(const void *)p + h * VW)
           : how == AS_F16 ? vf_load_f16(half + h * VW)
                           : vf_pair_load(half + h * 2 * VW);
}

INLINE void w_load(vf v[2], const char *p, enum how how)
{
    for (int h = 0; h < 2; h++) v[h] = w_vector(p, how, h);
}

/* The same for the last n < step_of(how) elements of a row; zeros after them. */
INLINE void w_load_n(vf v[2], const char *p, enum how how, int64_t n)
{
    char rest[4 * VW * sizeof(uint16_t)] __attribute__((aligned(64))) = { 0 };
    memcpy(rest, p, (size_t)(n * size_of(how)));
    w_load(v, rest, how);
}

struct gemv {
    const char *w;
    char *x; /* as copy_x makes it: for dots [T] rows of x_bytes */
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
    const int64_t size = size_of(how), step = step_of(how), w_bytes = g->in * size;
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

/* What tiles of the same outputs read. */
struct piece {
    const char *raw[TILE];  /* w where the piece begins; the last output again where a block has no more */
    vf *w;                  /* [TILE][PIECE / VW], the same, converted */
    const vf *x;            /* n vectors for each token */
    int64_t n, ahead;       /* ahead: bytes from raw to what will be wanted next */
};

/* Goes on with sum[TILE][all tokens] of `tokens` tokens from t. fresh: p->w is not there yet. The last three are
 * constants. */
INLINE void tile(const struct gemv *g, const struct piece *p, vf *sum, int64_t t, enum how how, int tokens, bool fresh)
{
    const int64_t n = p->n, all = g->tokens, ahead = p->ahead;
    const vf *x = p->x + t * n;
    vf *w = p->w, acc[TILE][MOST];
    const char *raw[TILE];
    for (int r = 0; r < TILE; r++) {
        raw[r] = p->raw[r];
        for (int j = 0; j < tokens; j++) acc[r][j] = sum[r * all + t + j];
    }
    for (int64_t i = 0, at = 0; i < n; i += 2, at += step_of(how) * size_of(how)) {
        if (fresh)
            for (int r = 0; r < TILE; r++) _mm_prefetch(raw[r] + at + ahead, _MM_HINT_T1);
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            vf a[TILE];
            for (int r = 0; r < TILE; r++) {
                vf *v = &w[r * (PIECE / VW) + i + h];
                a[r] = fresh ? w_vector(raw[r] + at, how, h) : *v;
                vf_keep(&a[r]);
                if (fresh) *v = a[r];
            }
            for (int j = 0; j < tokens; j++) {
                vf b = x[j * n + i + h];
                vf_keep(&b);
                for (int r = 0; r < TILE; r++)
                    acc[r][j] = how == AS_PAIR ? vf_pair_fma(a[r], b, acc[r][j]) : vf_fma(a[r], b, acc[r][j]);
            }
        }
    }
    for (int r = 0; r < TILE; r++)
        for (int j = 0; j < tokens; j++) sum[r * all + t + j] = acc[r][j];
}

INLINE void tile_of(const struct gemv *g, const struct piece *p, vf *sum, int64_t t, enum how how, int64_t tokens,
                    bool fresh)
{
    switch (tokens) {
    case 1: tile(g, p, sum, t, how, 1, fresh); break;
    case 2: tile(g, p, sum, t, how, 2, fresh); break;
    case 3: tile(g, p, sum, t, how, 3, fresh); break;
    case 4: tile(g, p, sum, t, how, 4, fresh); break;
    case 5: tile(g, p, sum, t, how, 5, fresh); break;
    case MOST: tile(g, p, sum, t, how, MOST, fresh); break;
    }
}

/* Tokens [t, end) in tiles of much the same size, the first of at most MOST - 1. */
INLINE void tiles(const struct gemv *g, const struct piece *p, vf *sum, int64_t t, int64_t end, enum how how,
                  bool fresh)
{
    for (int64_t left = (end - t + MOST) / MOST, n; left; left--, t += n) {
        n = (end - t) / left;
        if (fresh) tile_of(g, p, sum, t, how, n, true);
        else tile_of(g, p, sum, t, how, n, false);
        fresh = false;
    }
}

/* Elements [from, to) of a tile's outputs where they end within a step. */
INLINE void convert_rest(const struct gemv *g, const struct piece *p, enum how how, int64_t from, int64_t to)
{
    const int64_t step = step_of(how);
    for (int r = 0; r < TILE; r++)
        for (int64_t i = from; i < to; i += step) {
            const char *raw = p->raw[r] + (i - from) * size_of(how);
            vf *v = p->w + r * (PIECE / VW) + vectors(from, i, how);
            if (i + step <= g->in) w_load(v, raw, how);
            else w_load_n(v, raw, how, g->in - i);
        }
}

/* Elements [from, to) of outputs [o, o + rows). */
INLINE void block_piece(const struct gemv *g, enum how how, int64_t o, int64_t rows, int64_t from, int64_t to, vf *sum)
{
    const int64_t row = g->in * size_of(how);
    const char *raw = g->w + o * row + from * size_of(how);
    vf w[BLOCK * (PIECE / VW)];
    struct piece p = { .w = w, .n = vectors(from, to, how) };
    p.x = (const vf *)(void *)g->x + vectors(0, from, how) * g->tokens;
    p.ahead = to < g->in ? PIECE * size_of(how) : BLOCK * row - from * size_of(how);
    for (int64_t t = 0; t < g->tokens; t += SIDE)
        for (int64_t r = 0; r < rows; r += TILE) {
            bool fresh = t == 0;
            for (int64_t i = 0; i < TILE; i++) p.raw[i] = raw + (r + i < rows ? r + i : rows - 1) * row;
            if (g->tokens > SIDE) p.w = w + r * (PIECE / VW);
            if (fresh && to % step_of(how)) {
                convert_rest(g, &p, how, from, to);
                fresh = false;
            }
            tiles(g, &p, sum + r * g->tokens, t, t + SIDE < g->tokens ? t + SIDE : g->tokens, how, fresh);
        }
}

/* Outputs [o, o + rows); sum has room for [BLOCK][tokens]. */
INLINE void block(const struct gemv *g, enum how how, int64_t o, int64_t rows, vf *sum)
{
    for (int64_t i = 0; i < BLOCK * g->tokens; i++) sum[i] = vf_zero();
    for (int64_t from = 0; from < g->in; from += PIECE)
        block_piece(g, how, o, rows, from, from + PIECE < g->in ? from + PIECE : g->in, sum);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t t = 0; t < g->tokens; t++) put(g, t, o + r, sum[r * g->tokens + t]);
}

INLINE void blocks(const struct gemv *g, enum how how, int64_t from, int64_t to, vf *sum)
{
    for (int64_t o = from; o < to; o += BLOCK) block(g, how, o, to - o < BLOCK ? to - o : BLOCK, sum);
}

/* Outputs [from, to), for few tokens and for many: functions of their own, for in one as large as all of them GCC
 * keeps in memory what belongs in registers, and a token alone takes a third longer. */
static __attribute__((noinline)) void part_few(const struct gemv *g, int64_t from, int64_t to)
{
    switch (g->how) {
    case AS_F32: outputs(g, AS_F32, from, to); break;
    case AS_F16: outputs(g, AS_F16, from, to); break;
    case AS_BF16: outputs(g, AS_BF16, from, to); break;
    case AS_PAIR:
        if (HAS_PAIRS) outputs(g, AS_PAIR, from, to);
        break;
    }
}

static __attribute__((noinline)) void part_many(const struct gemv *g, int64_t from, int64_t to, vf *room)
{
    switch (g->how) {
    case AS_F32: blocks(g, AS_F32, from, to, room); break;
    case AS_F16: blocks(g, AS_F16, from, to, room); break;
    case AS_BF16: blocks(g, AS_BF16, from, to, room); break;
    case AS_PAIR:
        if (HAS_PAIRS) blocks(g, AS_PAIR, from, to, room);
        break;
    }
}

static void gemv_run(struct kctx *kc, const struct gemv *g, int n_threads)
{
    int64_t parts = n_threads > 1 ? PARTS * n_threads : 1, chunk = (g->out + parts - 1) / parts;
    int64_t each = g->tokens < MANY ? 0 : BLOCK * g->tokens;
    vf *rooms = each ? arena_take(kc->scratch, (size_t)(n_threads * each) * sizeof *rooms) : NULL;
#pragma omp parallel for num_threads(n_threads) schedule(dynamic)
    for (int64_t o = 0; o < g->out; o += chunk) {
        int64_t end = o + chunk < g->out ? o + chunk : g->out;
        if (rooms) part_many(g, o, end, rooms + omp_get_thread_num() * each);
        else part_few(g, o, end);
    }
}

/* ---- x */

/* Two vectors of x from `in`, as those of w come out of a load: AS_BF16 has even elements before odd ones. */
INLINE void x_store(vf *to, const float *in, enum how how)
{
    if (how == AS_PAIR) {
        for (int i = 0; i < 4; i++) vf_store_bf16((uint16_t *)(void *)to + i * VW, vf_load(in + i * VW));
        return;
    }
    const vf a = vf_load(in), b = vf_load(in + VW);
    to[0] = how == AS_BF16 ? vf_evens(a, b) : a;
    to[1] = how == AS_BF16 ? vf_odds(a, b) : b;
}

/* Row t of x for dots or, piece by piece, for tiles. Zeros fill the last step. */
INLINE void copy_row(const struct gemv *g, enum how how, const float *x, int64_t t)
{
    const int64_t step = step_of(how), piece = g->tokens < MANY ? g->in : PIECE;
    for (int64_t from = 0; from < g->in; from += piece) {
        const int64_t to = from + piece < g->in ? from + piece : g->in;
        vf *v = (vf *)(void *)g->x + vectors(0, from, how) * g->tokens + t * vectors(from, to, how);
        int64_t i = from;
        for (; i + step <= to; i += step, v += 2) x_store(v, x + i, how);
        if (i == to) continue;
        float rest[4 * VW] = { 0 };
        memcpy(rest, x + i, (size_t)(to - i) * sizeof *x);
        x_store(v, rest, how);
    }
}

static void copy_x(struct kctx *kc, struct gemv *g, const float *x, int n_threads)
{
    g->x_bytes = vectors(0, g->in, g->how) * (int64_t)sizeof(vf);
    g->x = arena_take(kc->scratch, (size_t)(g->tokens * g->x_bytes));
#pragma omp parallel for num_threads(n_threads) if (g->tokens >= MANY)
    for (int64_t t = 0; t < g->tokens; t++) {
        const float *row = x + t * g->in;
        switch (g->how) {
        case AS_F32:
        case AS_F16: copy_row(g, AS_F32, row, t); break; /* as it is */
        case AS_BF16: copy_row(g, AS_BF16, row, t); break;
        case AS_PAIR:
            if (HAS_PAIRS) copy_row(g, AS_PAIR, row, t);
            break;
        }
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
        const int n_threads = cpu_threads(kc, in * out / 4 * tokens);
        copy_x(kc, &g, x.p, n_threads);
        gemv_run(kc, &g, n_threads);
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
