/* Large matrix products, blocked after Goto and van de Geijn, "Anatomy of High-Performance Matrix
 * Multiplication" (2008).
 *
 * Both sides are copied, a block at a time, into panels that hold for every k the MR (or NR) values that one
 * step of the inner loop needs, converted on the way: to f32, or to pairs of bf16. A step then multiplies MR
 * broadcasts with NV vectors. The panels of `a` are shared by all threads; each thread packs the panels of
 * `b` that it uses. `k` below counts 32-bit lanes: one f32 or one pair. Each element of y is summed by one
 * thread in an order that depends on K only.
 */
#include "kern/cpu/isa.h"

#ifdef __AVX512F__
enum { MR = 12, NV = 2 };
#else
enum { MR = 6, NV = 2 };
#endif
enum {
    NR = NV * VW,
    KC = 1024,    /* lanes of K in a block */
    STEP = 16,    /* lanes between two requests for what comes next */
    MC = 80 * MR, /* rows of a in a block */
    GROUP = 4,    /* panels of b that a thread holds: GROUP*NR*KC*4 bytes, half a core's second-level cache */
};

/* ---- packing */

/* Lanes [k, k+VW) of one row whose neighbours in memory are its k. */
INLINE vf row_lanes(const char *row, enum dtype t, bool pair, int64_t k, int64_t n)
{
    int64_t i = pair ? 2 * k : k, left = n - i; /* elements */
    size_t size = t == DT_F32 ? 4 : 2;
    const char *p = row + (size_t)i * size;
    if (pair && t == DT_BF16) {
        const uint16_t *h = (const uint16_t *)p;
        return left >= 2 * VW ? vf_pair_load(h) : vf_pair_load_n(h, left);
    }
    if (pair) {
        vf lo = left >= VW ? vf_load_as(p, t) : vf_load_as_n(p, t, left);
        const char *q = p + VW * size;
        vf hi = left >= 2 * VW ? vf_load_as(q, t) : left > VW ? vf_load_as_n(q, t, left - VW) : vf_zero();
        return vf_pair_from(lo, hi);
    }
    return left >= VW ? vf_load_as(p, t) : vf_load_as_n(p, t, left);
}

/* dst[k][width] for at most VW rows from r0, elements [k0, k1). A store is VW wide: what it writes past
 * `width` is the next k's, or the room behind the panel. Lanes of rows that do not exist repeat the last row;
 * nobody reads them. */
INLINE void pack_by_row(float *dst, int width, const struct cpu_side *s, enum dtype t, bool pair, int64_t r0,
                        int64_t rows, int64_t k0, int64_t k1)
{
    const char *row[VW];
    size_t size = t == DT_F32 ? 4 : 2;
    int64_t n = k1 - k0, lanes = pair ? (n + 1) / 2 : n;
    for (int64_t i = 0; i < VW; i++)
        row[i] = (const char *)s->p + (size_t)((r0 + (i < rows ? i : rows - 1)) * s->ld + k0) * size;
    for (int64_t k = 0; k < lanes; k += VW) {
        vf v[VW];
        for (int i = 0; i < VW; i++) v[i] = row_lanes(row[i], t, pair, k, n);
        vf_transpose(v);
        int64_t m = lanes - k < VW ? lanes - k : VW;
        float *d = dst + k * width;
        if (m == VW)
            for (int j = 0; j < VW; j++) vf_store(d + j * width, v[j]);
        else
            for (int j = 0; j < m; j++) vf_store(d + j * width, v[j]);
    }
}

/* The same for a side whose neighbours in memory are its rows. */
INLINE void pack_by_k(float *dst, int width, const struct cpu_side *s, enum dtype t, bool pair, int64_t r0,
                      int64_t rows, int64_t k0, int64_t k1)
{
    size_t size = t == DT_F32 ? 4 : 2;
    for (int64_t k = k0; k < k1; k += pair ? 2 : 1, dst += width) {
        const char *p = (const char *)s->p + (size_t)(k * s->ld + r0) * size;
        vf v = rows >= VW ? vf_load_as(p, t) : vf_load_as_n(p, t, rows);
        if (pair) {
            const char *q = p + (size_t)s->ld * size;
            vf w = k + 1 >= k1 ? vf_zero() : rows >= VW ? vf_load_as(q, t) : vf_load_as_n(q, t, rows);
            v = vf_pair_join(v, w);
        }
        vf_store(dst, v);
    }
}

INLINE void pack_as(float *dst, int width, const struct cpu_side *s, enum dtype t, bool pair, int64_t r0,
                    int64_t rows, int64_t k0, int64_t k1)
{
    if (s->by_k) pack_by_k(dst, width, s, t, pair, r0, rows, k0, k1);
    else pack_by_row(dst, width, s, t, pair, r0, rows, k0, k1);
}

INLINE void pack_vector(float *dst, int width, const struct cpu_side *s, bool pair, int64_t r0, int64_t rows,
                        int64_t k0, int64_t k1)
{
    if (s->type == DT_F32) pack_as(dst, width, s, DT_F32, pair, r0, rows, k0, k1);
    else if (s->type == DT_BF16) pack_as(dst, width, s, DT_BF16, pair, r0, rows, k0, k1);
    else pack_as(dst, width, s, DT_F16, pair, r0, rows, k0, k1);
}

static void pack_a(float *dst, const struct cpu_gemm *g, int64_t r0, int64_t r1, int64_t k0, int64_t k1)
{
    int64_t rows = r1 - r0 < MR ? r1 - r0 : MR;
    if (HAS_PAIRS && g->pair) pack_vector(dst, MR, &g->a, true, r0, rows, k0, k1);
    else pack_vector(dst, MR, &g->a, false, r0, rows, k0, k1);
}

static void pack_b(float *dst, const struct cpu_gemm *g, int64_t c0, int64_t c1, int64_t k0, int64_t k1)
{
    for (int v = 0; v < NV && c0 + v * VW < c1; v++) {
        int64_t rows = c1 - c0 - v * VW < VW ? c1 - c0 - v * VW : VW;
        if (HAS_PAIRS && g->pair) pack_vector(dst + v * VW, NR, &g->b, true, c0 + v * VW, rows, k0, k1);
        else pack_vector(dst + v * VW, NR, &g->b, false, c0 + v * VW, rows, k0, k1);
    }
}

/* ---- multiplying */

/* Lines of b that a thread will pack next: asked for while it multiplies, or memory would rest meanwhile. */
struct ahead {
    const char *row;
    int64_t at, run, ld;  /* bytes: where in the row, of its part that is packed, between rows */
    int64_t left, each;   /* lines: to ask for, at a time */
};

INLINE void ahead_ask(struct ahead *h)
{
    for (int64_t i = 0; i < h->each && h->left > 0; i++) {
        _mm_prefetch(h->row + h->at, _MM_HINT_T1);
        h->left--;
        h->at += 64;
        if (h->at < h->run) continue;
        h->at = 0;
        h->row += h->ld;
    }
}

/* For the first `high` (a constant) of a panel's rows. */
INLINE void multiply(vf acc[MR][NV], const float *a, const float *b, int64_t lanes, bool pair, int high,
                     struct ahead *ahead)
{
    for (int64_t k0 = 0; k0 < lanes; k0 += STEP) {
        const int64_t n = lanes - k0 < STEP ? lanes - k0 : STEP;
        ahead_ask(ahead);
        for (int64_t k = 0; k < n; k++, a += MR, b += NR) {
            vf w[NV];
            for (int j = 0; j < NV; j++) w[j] = vf_load(b + j * VW);
            for (int i = 0; i < high; i++) {
                vf x = vf_set(a[i]);
                for (int j = 0; j < NV; j++)
                    acc[i][j] = pair ? vf_pair_fma(x, w[j], acc[i][j]) : vf_fma(x, w[j], acc[i][j]);
            }
        }
    }
}

/* What is added to a tile's sums, and where they go. */
struct target {
    float *y;
    const float *bias, *add;
    int64_t ld;
};

/* rows x cols sums of a corner tile, from t[MR][NR]. */
static void put_corner(struct target to, const float *t, int64_t rows, int64_t cols)
{
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++) {
            float v = t[i * NR + j];
            if (to.bias) v += to.bias[j];
            if (to.add) v += to.add[i * to.ld + j];
            to.y[i * to.ld + j] = v;
        }
}

INLINE void tile_of(struct target to, const float *a, const float *b, int64_t lanes, bool pair, int high,
                    int64_t rows, int64_t cols, struct ahead *ahead)
{
    vf acc[MR][NV];
    for (int i = 0; i < high; i++)
        for (int j = 0; j < NV; j++) acc[i][j] = vf_zero();
    multiply(acc, a, b, lanes, pair, high, ahead);
    if (rows < high || cols < NR) {
        float t[MR * NR];
        for (int i = 0; i < high; i++)
            for (int j = 0; j < NV; j++) vf_store(t + i * NR + j * VW, acc[i][j]);
        put_corner(to, t, rows, cols);
        return;
    }
    for (int j = 0; j < NV; j++) {
        vf bias = to.bias ? vf_load(to.bias + j * VW) : vf_zero();
        for (int i = 0; i < high; i++) {
            vf v = to.bias ? vf_add(acc[i][j], bias) : acc[i][j];
            if (to.add) v = vf_add(v, vf_load(to.add + i * to.ld + j * VW));
            vf_store(to.y + i * to.ld + j * VW, v);
        }
    }
}

/* The last panel of rows is seldom full: a third or two thirds of a tile then do less work. */
INLINE void tile(struct target to, const float *a, const float *b, int64_t lanes, bool pair, int64_t rows,
                 int64_t cols, struct ahead *ahead)
{
    if (rows > 2 * MR / 3) tile_of(to, a, b, lanes, pair, MR, rows, cols, ahead);
    else if (rows > MR / 3) tile_of(to, a, b, lanes, pair, 2 * MR / 3, rows, cols, ahead);
    else tile_of(to, a, b, lanes, pair, MR / 3, rows, cols, ahead);
}

/* One block of K and of rows: the panels of a, and this thread's room for panels of b. */
struct block {
    const struct cpu_gemm *g;
    int64_t k0, k1, m0, m1, lanes;
    float *ap;
    int64_t a_panel, b_panel; /* floats */
};

/* Columns [c0, c0 + width), to be asked for in the course of the block's tiles over as many columns. */
static struct ahead ahead_of(const struct block *bl, int64_t c0, int64_t width)
{
    enum { LINE = 64 };
    const struct cpu_gemm *g = bl->g;
    const int64_t size = g->b.type == DT_F32 ? 4 : 2, cols = g->n - c0 < width ? g->n - c0 : width;
    if (g->b.by_k || cols <= 0) return (struct ahead){ 0 };
    struct ahead h = { .run = (bl->k1 - bl->k0) * size, .ld = g->b.ld * size };
    h.row = (const char *)g->b.p + c0 * h.ld + bl->k0 * size;
    h.left = cols * ((h.run + LINE - 1) / LINE);
    const int64_t tiles = ((bl->m1 - bl->m0 + MR - 1) / MR) * ((width + NR - 1) / NR);
    const int64_t times = tiles * ((bl->lanes + STEP - 1) / STEP);
    h.each = (h.left + times - 1) / times;
    return h;
}

/* Columns [c0, c1) of the block's rows; those from `next` are likely this thread's next. */
static void columns(const struct block *bl, float *bp, int64_t c0, int64_t c1, int64_t next)
{
    const struct cpu_gemm *g = bl->g;
    struct ahead ahead = ahead_of(bl, next, c1 - c0);
    for (int64_t c = c0; c < c1; c += NR) pack_b(bp + (c - c0) / NR * bl->b_panel, g, c, c1, bl->k0, bl->k1);
    for (int64_t m = bl->m0; m < bl->m1; m += MR) {
        const float *a = bl->ap + (m - bl->m0) / MR * bl->a_panel;
        int64_t rows = bl->m1 - m < MR ? bl->m1 - m : MR;
        for (int64_t c = c0; c < c1; c += NR) {
            const float *b = bp + (c - c0) / NR * bl->b_panel;
            const int64_t ld = g->ld ? g->ld : g->n;
            struct target to = { g->y + m * ld + c, g->bias && !bl->k0 ? g->bias + c : NULL, NULL, ld };
            if (bl->k0) to.add = to.y;
            else if (g->add) to.add = g->add + m * ld + c;
            int64_t cols = c1 - c < NR ? c1 - c : NR;
            if (HAS_PAIRS && g->pair) tile(to, a, b, bl->lanes, true, rows, cols, &ahead);
            else tile(to, a, b, bl->lanes, false, rows, cols, &ahead);
        }
    }
}

static void run_block(struct kctx *kc, struct block bl, int64_t width, float *room, int n_threads)
{
    int64_t n = bl.g->n, panels = (bl.m1 - bl.m0 + MR - 1) / MR, groups = (n + width - 1) / width;
    int64_t room_each = width / NR * bl.b_panel;
    (void)kc;
#pragma omp parallel num_threads(n_threads)
    {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < panels; i++)
            pack_a(bl.ap + i * bl.a_panel, bl.g, bl.m0 + i * MR, bl.m1, bl.k0, bl.k1);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < groups; i++)
            columns(&bl, room + omp_get_thread_num() * room_each, i * width,
                    i * width + width < n ? i * width + width : n, (i + n_threads) * width);
    }
}

void ISA(cpu_gemm)(struct kctx *kc, const struct cpu_gemm *g)
{
    int per_lane = g->pair ? 2 : 1;
    int n_threads = cpu_threads(kc, g->m * g->n / 64 * (g->k / 4 + 1));
    int64_t kblocks = (g->k + KC * per_lane - 1) / (KC * per_lane);
    int64_t kc_len = ((g->k + kblocks - 1) / kblocks + 2 * VW - 1) / (2 * VW) * (2 * VW);
    int64_t lanes = kc_len / per_lane, width = NR;
    while (width < GROUP * NR && g->n / (2 * width) >= 4 * n_threads) width *= 2;
    int64_t m_len = g->m < MC ? g->m : MC;
    struct block bl = { .g = g, .a_panel = lanes * MR + VW, .b_panel = lanes * NR };
    size_t mark = arena_mark(kc->scratch);
    bl.ap = arena_take(kc->scratch, (size_t)((m_len + MR - 1) / MR * bl.a_panel) * sizeof(float));
    float *room = arena_take(kc->scratch, (size_t)(n_threads * (width / NR) * bl.b_panel) * sizeof(float));
    for (bl.k0 = 0; bl.k0 < g->k; bl.k0 = bl.k1) {
        bl.k1 = bl.k0 + kc_len < g->k ? bl.k0 + kc_len : g->k;
        bl.lanes = (bl.k1 - bl.k0 + per_lane - 1) / per_lane;
        for (bl.m0 = 0; bl.m0 < g->m; bl.m0 = bl.m1) {
            bl.m1 = bl.m0 + MC < g->m ? bl.m0 + MC : g->m;
            run_block(kc, bl, width, room, n_threads);
        }
    }
    arena_rewind(kc->scratch, mark);
}
