/* Attention forward: softmax with a running maximum over blocks of keys, after Dao et al., arXiv:2205.14135.
 *
 * For one key/value head, "rows" are its queries: (token t, head g of the group), row t*G + g. With many rows, LANES of
 * them lie in the lanes of vectors: scores are kept as [key][row], so that maximum, exponential and sum need no work
 * across lanes, and ranges are compares. With few rows (decode), each row's scores are dot products along D, the keys are
 * split into parts of PART that threads share, and the parts are joined at the end; where they are cut depends on nothing
 * but the position, so results do not depend on the number of threads.
 */
#include <math.h>

#include "kern/cpu/math_impl.h"

enum {
    QV = 3,           /* vectors of rows */
    LANES = QV * VW,
    KEYS = 64,        /* keys in a block */
#ifdef __AVX512F__
    KT = 8, QT = 12,  /* keys, rows in a tile of registers */
#else
    KT = 4, QT = 6,
#endif
    DV = 2,           /* vectors of D in a tile of registers */
    FEW = 6,          /* most rows for which dot products are faster */
    PART = 256,
    AHEAD = 16,       /* keys between a read and what is prefetched */
};
static const float LOW = -1e30f; /* below every score; finite, so that differences are numbers */

struct attn {
    struct tensor y, lse, q, k, v;
    const int32_t *range;
    int64_t tokens, heads, kv_heads, group, dim, dim_pad; /* dim_pad: a multiple of DV*VW */
    float scale;
};

static struct attn attn_of(struct tensor y, struct tensor lse, struct tensor q, struct tensor k, struct tensor v,
                           struct tensor range, int heads, float scale)
{
    int64_t dim = tensor_cols(q) / heads, kv = tensor_cols(k) / dim, pad = DV * VW;
    return (struct attn){ y, lse, q, k, v, range.p, tensor_rows(q), heads, kv, heads / kv, dim,
                          (dim + pad - 1) / pad * pad, scale };
}

/* Where row r of key/value head `kv` starts in q and y, and which element of lse is its. */
static int64_t row_start(const struct attn *a, int64_t kv, int64_t r)
{
    return (r / a->group * a->heads + kv * a->group + r % a->group) * a->dim;
}
static int64_t row_from(const struct attn *a, int64_t r) { return a->range[2 * (r / a->group)]; }
static int64_t row_to(const struct attn *a, int64_t r) { return a->range[2 * (r / a->group) + 1]; }

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE vf some_as(const char *p, enum dtype t, int64_t left)
{
    return left >= VW ? vf_load_as(p, t) : vf_load_as_n(p, t, left);
}

/* ---- many rows */

/* A thread's room, in f32. */
struct room {
    float *q;      /* [dim_pad][LANES], times scale */
    float *k, *v;  /* [KEYS][dim_pad], zeros behind dim */
    float *p;      /* [KEYS][LANES] scores, then exponentials */
    float *o;      /* [LANES][dim_pad] sums */
    float from[LANES], to[LANES], top[LANES], sum[LANES], fade[LANES];
};
static size_t room_bytes(const struct attn *a)
{
    size_t floats = (size_t)a->dim_pad * (2 * LANES + 2 * KEYS) + KEYS * LANES;
    return (sizeof(struct room) + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN + floats * sizeof(float);
}
static struct room *room_at(const struct attn *a, char *base)
{
    struct room *m = (struct room *)(void *)base;
    m->q = (float *)(void *)(base + (sizeof *m + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN);
    m->o = m->q + a->dim_pad * LANES;
    m->k = m->o + a->dim_pad * LANES;
    m->v = m->k + a->dim_pad * KEYS;
    m->p = m->v + a->dim_pad * KEYS;
    return m;
}

/* Rows [r0, r0+LANES) into lanes; behind the last row it is repeated, and not stored at the end. */
static void lanes_begin(const struct attn *a, struct room *m, int64_t kv, int64_t r0)
{
    int64_t rows = a->tokens * a->group;
    for (int64_t i = 0; i < LANES; i++) {
        int64_t r = r0 + i < rows ? r0 + i : rows - 1;
        const float *q = (const float *)a->q.p + row_start(a, kv, r);
        for (int64_t d = 0; d < a->dim; d++) m->q[d * LANES + i] = q[d] * a->scale;
        m->from[i] = (float)row_from(a, r);
        m->to[i] = (float)row_to(a, r);
        m->top[i] = LOW;
        m->sum[i] = 0;
    }
    memset(m->o, 0, (size_t)(LANES * a->dim_pad) * sizeof *m->o);
}

static const char *kv_at(const struct attn *a, struct tensor x, int64_t kv, int64_t s)
{
    return (const char *)x.p + (size_t)((s * a->kv_heads + kv) * a->dim) * dtype_bytes((enum dtype)x.type);
}

/* Keys or values [s0, s0+n) of a head, and zeros up to `keys`, so that no NaN of old memory meets a zero weight. Asks for
 * those of the next block: they lie too far apart for the processor to guess. */
static void block_load(const struct attn *a, float *to, struct tensor x, int64_t kv, int64_t s0, int64_t n, int64_t keys)
{
    enum dtype t = (enum dtype)x.type;
    size_t size = dtype_bytes(t), bytes = (size_t)a->dim * size;
    for (int64_t s = 0; s < n; s++, to += a->dim_pad) {
        const char *p = kv_at(a, x, kv, s0 + s), *next = p + (size_t)(KEYS * a->kv_heads) * bytes;
        for (size_t i = 0; i < bytes; i += 64) _mm_prefetch(next + i, _MM_HINT_T1);
        for (int64_t d = 0; d < a->dim; d += VW) vf_store(to + d, some_as(p + (size_t)d * size, t, a->dim - d));
    }
    memset(to, 0, (size_t)((keys - n) * a->dim_pad) * sizeof *to);
}

/* p[key][row] = k . q for `keys` keys and the first qv vectors of rows. Sums are put down every D_RUN elements: short
 * sums round less. */
INLINE void scores_of(const struct attn *a, struct room *m, int64_t keys, int qv)
{
    enum { D_RUN = 32 };
    for (int64_t d0 = 0; d0 < a->dim; d0 += D_RUN)
        for (int64_t s = 0; s < keys; s += KT) {
            vf acc[KT][QV];
            for (int i = 0; i < KT; i++)
                for (int j = 0; j < qv; j++) acc[i][j] = vf_zero();
            const float *k = m->k + s * a->dim_pad + d0, *q = m->q + d0 * LANES;
            const int64_t end = a->dim - d0 < D_RUN ? a->dim - d0 : D_RUN;
            for (int64_t d = 0; d < end; d++, k++, q += LANES) {
                vf x[QV];
                for (int j = 0; j < qv; j++) x[j] = vf_load(q + j * VW);
                for (int i = 0; i < KT; i++) {
                    vf b = vf_set(k[i * a->dim_pad]);
                    for (int j = 0; j < qv; j++) acc[i][j] = vf_fma(b, x[j], acc[i][j]);
                }
            }
            for (int i = 0; i < KT; i++)
                for (int j = 0; j < qv; j++) {
                    float *p = m->p + (s + i) * LANES + j * VW;
                    vf_store(p, d0 ? vf_add(vf_load(p), acc[i][j]) : acc[i][j]);
                }
        }
}

static void scores(const struct attn *a, struct room *m, int64_t keys, int qv)
{
    switch (qv) {
    case 1: scores_of(a, m, keys, 1); break;
    case 2: scores_of(a, m, keys, 2); break;
    default: scores_of(a, m, keys, QV); break;
    }
}

/* Scores to exponentials; the new maximum, and by how much older sums fade. */
static void soften(struct room *m, int64_t s0, int64_t keys, int qv, bool masked)
{
    for (int j = 0; j < qv; j++) {
        float *p = m->p + j * VW;
        vf from = vf_load(m->from + j * VW), to = vf_load(m->to + j * VW), old = vf_load(m->top + j * VW), top = old;
        for (int64_t s = 0; s < keys; s++) {
            vf x = vf_load(p + s * LANES);
            if (masked) {
                vf at = vf_set((float)(s0 + s));
                x = vf_select(vf_lt(at, to), vf_select(vf_lt(at, from), vf_set(-INFINITY), x), vf_set(-INFINITY));
                vf_store(p + s * LANES, x);
            }
            top = vf_max(x, top);
        }
        vf fade = vf_exp(vf_sub(old, top)), sum[2] = { vf_zero(), vf_zero() };
        for (int64_t s = 0; s < keys; s++) {
            vf e = vf_exp(vf_sub(vf_load(p + s * LANES), top));
            vf_store(p + s * LANES, e);
            sum[s % 2] = vf_add(sum[s % 2], e);
        }
        vf_store(m->top + j * VW, top);
        vf_store(m->sum + j * VW, vf_fma(vf_load(m->sum + j * VW), fade, vf_add(sum[0], sum[1])));
        vf_store(m->fade + j * VW, fade);
    }
}

/* o[row] = o[row] * fade[row] + sum over keys of p[key][row] v[key] */
static void weigh(const struct attn *a, struct room *m, int64_t keys, int64_t rows)
{
    for (int64_t d = 0; d < a->dim; d += DV * VW)
        for (int64_t r = 0; r < rows; r += QT) {
            vf acc[QT][DV];
            float *o = m->o + r * a->dim_pad + d;
            for (int i = 0; i < QT; i++)
                for (int j = 0; j < DV; j++) acc[i][j] = vf_zero();
            const float *p = m->p + r, *v = m->v + d;
            for (int64_t s = 0; s < keys; s++, p += LANES, v += a->dim_pad) {
                vf x[DV];
                for (int j = 0; j < DV; j++) x[j] = vf_load(v + j * VW);
                for (int i = 0; i < QT; i++)
                    for (int j = 0; j < DV; j++) acc[i][j] = vf_fma(vf_set(p[i]), x[j], acc[i][j]);
            }
            for (int i = 0; i < QT; i++)
                for (int j = 0; j < DV; j++) {
                    float *sum = o + i * a->dim_pad + j * VW;
                    vf_store(sum, vf_fma(vf_load(sum), vf_set(m->fade[r + i]), acc[i][j]));
                }
        }
}

static void lanes_end(const struct attn *a, const struct room *m, int64_t kv, int64_t r0)
{
    int64_t rows = a->tokens * a->group;
    for (int64_t i = 0; i < LANES && r0 + i < rows; i++) {
        int64_t at = row_start(a, kv, r0 + i);
        float *y = (float *)a->y.p + at;
        for (int64_t d = 0; d < a->dim; d++) y[d] = m->o[i * a->dim_pad + d] / m->sum[i];
        if (a->lse.p) ((float *)a->lse.p)[at / a->dim] = m->top[i] + logf(m->sum[i]);
    }
}

static void lanes_run(const struct attn *a, struct room *m, int64_t kv, int64_t r0)
{
    const int64_t rows = least(a->tokens * a->group - r0, LANES), pad = a->dim_pad * KEYS;
    const int qv = (int)((rows + VW - 1) / VW);
    lanes_begin(a, m, kv, r0);
    float first = m->from[0], last_from = m->from[0], first_to = m->to[0], end = m->to[0];
    for (int i = 1; i < LANES; i++) {
        first = m->from[i] < first ? m->from[i] : first;
        last_from = m->from[i] > last_from ? m->from[i] : last_from;
        first_to = m->to[i] < first_to ? m->to[i] : first_to;
        end = m->to[i] > end ? m->to[i] : end;
    }
    memset(m->k, 0, (size_t)(2 * pad) * sizeof *m->k); /* what lies behind dim stays zero */
    for (int64_t s = (int64_t)first; s < (int64_t)end; s += KEYS) {
        int64_t n = least((int64_t)end - s, KEYS), keys = (n + KT - 1) / KT * KT;
        block_load(a, m->k, a->k, kv, s, n, keys);
        block_load(a, m->v, a->v, kv, s, n, keys);
        scores(a, m, keys, qv);
        soften(m, s, keys, qv, (float)s < last_from || (float)(s + keys) > first_to);
        weigh(a, m, keys, rows);
    }
    lanes_end(a, m, kv, r0);
}

static void many_rows(struct kctx *kc, const struct attn *a)
{
    int64_t rows = a->tokens * a->group, blocks = (rows + LANES - 1) / LANES;
    int n_threads = cpu_threads(kc, rows * a->kv_heads * a->dim / 8 * (tensor_rows(a->k) / 8 + 1));
    size_t mark = arena_mark(kc->scratch), bytes = (room_bytes(a) + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
    char *rooms = arena_take(kc->scratch, bytes * (size_t)n_threads);
    /* The last blocks of a causal range are the longest: they go first, and no thread ends up with one of them alone. */
#pragma omp parallel for num_threads(n_threads) schedule(dynamic)
    for (int64_t i = 0; i < blocks * a->kv_heads; i++)
        lanes_run(a, room_at(a, rooms + bytes * (size_t)omp_get_thread_num()), i % a->kv_heads,
                  (blocks - 1 - i / a->kv_heads) * LANES);
    arena_rewind(kc->scratch, mark);
}

/* ---- few rows */

/* One row's share of one part: maximum, sum of exponentials, and o[dim_pad], not yet divided. */
struct share {
    float top, sum;
    float *o;
};

/* Asks for a row that will be read AHEAD keys later. */
INLINE void prefetch_row(const char *p, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64) _mm_prefetch(p + i, _MM_HINT_T0);
}

/* p[s - from] = q . k[s], for s in [from, to); returns the maximum. */
INLINE float dots(const struct attn *a, float *p, const float *q, int64_t kv, int64_t from, int64_t to, enum dtype t)
{
    enum { TILE = 4 };
    const size_t size = t == DT_F32 ? 4 : 2, bytes = (size_t)a->dim * size, step = (size_t)a->kv_heads * bytes;
    const char *k = kv_at(a, a->k, kv, from);
    float top = LOW;
    for (int64_t s = from; s < to; s += TILE, k += TILE * step) {
        vf sum[TILE];
        for (int i = 0; i < TILE; i++) {
            const char *row = k + (s + i < to ? (size_t)i : 0) * step;
            sum[i] = vf_zero();
            prefetch_row(row + AHEAD * step, bytes);
            for (int64_t d = 0; d < a->dim; d += VW)
                sum[i] = vf_fma(vf_load(q + d), some_as(row + (size_t)d * size, t, a->dim - d), sum[i]);
        }
        for (int i = 0; i < TILE && s + i < to; i++) {
            float x = p[s + i - from] = vf_sum(sum[i]);
            top = x > top ? x : top;
        }
    }
    return top;
}

/* o = sum of p[s - from] v[s] */
INLINE void weigh_row(const struct attn *a, float *o, const float *p, int64_t kv, int64_t from, int64_t to,
                      enum dtype t)
{
    enum { WIDE = 4 };
    const size_t size = t == DT_F32 ? 4 : 2, step = (size_t)(a->kv_heads * a->dim) * size, line = WIDE * VW * size;
    for (int64_t d0 = 0; d0 < a->dim; d0 += WIDE * VW) {
        const char *v = kv_at(a, a->v, kv, from) + (size_t)d0 * size;
        vf acc[WIDE] = { vf_zero(), vf_zero(), vf_zero(), vf_zero() };
        if (d0 + WIDE * VW <= a->dim) {
            for (int64_t s = from; s < to; s++, v += step) {
                prefetch_row(v + AHEAD * step, line);
                for (int j = 0; j < WIDE; j++)
                    acc[j] = vf_fma(vf_set(p[s - from]), vf_load_as(v + (size_t)(j * VW) * size, t), acc[j]);
            }
        } else {
            for (int64_t s = from; s < to; s++, v += step)
                for (int j = 0; j < WIDE && d0 + j * VW < a->dim; j++)
                    acc[j] = vf_fma(vf_set(p[s - from]),
                                    some_as(v + (size_t)(j * VW) * size, t, a->dim - d0 - j * VW), acc[j]);
        }
        for (int j = 0; j < WIDE && d0 + j * VW < a->dim_pad; j++) vf_store(o + d0 + j * VW, acc[j]);
    }
}

INLINE void part_as(const struct attn *a, struct share *sh, const float *q, int64_t kv, int64_t from, int64_t to,
                    enum dtype t)
{
    float p[PART + VW];
    float top = dots(a, p, q, kv, from, to, t);
    vf sum = vf_zero();
    for (int64_t i = to - from; i % VW; i++) p[i] = -INFINITY;
    for (int64_t i = 0; i < to - from; i += VW) {
        vf e = vf_exp(vf_sub(vf_load(p + i), vf_set(top)));
        vf_store(p + i, e);
        sum = vf_add(sum, e);
    }
    sh->top = top;
    sh->sum = vf_sum(sum);
    weigh_row(a, sh->o, p, kv, from, to, t);
}

static void part_run(const struct attn *a, struct share *sh, const float *q, int64_t kv, int64_t from, int64_t to)
{
    switch (a->k.type) {
    case DT_F32: part_as(a, sh, q, kv, from, to, DT_F32); break;
    case DT_F16: part_as(a, sh, q, kv, from, to, DT_F16); break;
    default: part_as(a, sh, q, kv, from, to, DT_BF16); break;
    }
}

/* y of one row from its shares. */
static void join(const struct attn *a, const struct share *sh, int64_t parts, int64_t kv, int64_t r)
{
    int64_t at = row_start(a, kv, r);
    float *y = (float *)a->y.p + at, top = LOW, sum = 0;
    for (int64_t i = 0; i < parts; i++) top = fmaxf(top, sh[i].top);
    for (int64_t i = 0; i < parts; i++) {
        if (sh[i].sum == 0) continue;
        float c = expf(sh[i].top - top), *o = sh[i].o;
        for (int64_t d = 0; d < a->dim; d++) y[d] = sum == 0 ? o[d] * c : y[d] + o[d] * c;
        sum += sh[i].sum * c;
    }
    for (int64_t d = 0; d < a->dim; d++) y[d] /= sum;
    if (a->lse.p) ((float *)a->lse.p)[at / a->dim] = top + logf(sum);
}

static void few_rows(struct kctx *kc, const struct attn *a)
{
    int64_t rows = a->tokens * a->group, lo = row_from(a, 0), hi = row_to(a, 0), all = rows * a->kv_heads;
    for (int64_t r = 1; r < rows; r++) {
        lo = row_from(a, r) < lo ? row_from(a, r) : lo;
        hi = row_to(a, r) > hi ? row_to(a, r) : hi;
    }
    int64_t first = lo / PART, parts = (hi + PART - 1) / PART - first;
    int n_threads = cpu_threads(kc, (hi - lo) * all * a->dim / 4);
    size_t mark = arena_mark(kc->scratch);
    struct share *sh = arena_take(kc->scratch, (size_t)(all * parts) * sizeof *sh);
    float *o = arena_take(kc->scratch, (size_t)(all * parts * a->dim_pad) * sizeof *o);
    float *q = arena_take(kc->scratch, (size_t)(all * a->dim_pad) * sizeof *q);
#pragma omp parallel num_threads(n_threads)
    {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < all; i++) { /* i = kv*rows + r */
            const float *from = (const float *)a->q.p + row_start(a, i / rows, i % rows);
            for (int64_t d = 0; d < a->dim_pad; d++) q[i * a->dim_pad + d] = d < a->dim ? from[d] * a->scale : 0;
        }
        /* All rows of a head's part follow each other, while its keys and values are in the cache. */
#pragma omp for schedule(dynamic) collapse(2)
        for (int64_t kv = 0; kv < a->kv_heads; kv++)
            for (int64_t part = 0; part < parts; part++)
                for (int64_t i = kv * rows; i < (kv + 1) * rows; i++) {
                    struct share *s = sh + i * parts + part;
                    int64_t r = i % rows, from = (first + part) * PART, to = from + PART;
                    if (from < row_from(a, r)) from = row_from(a, r);
                    if (to > row_to(a, r)) to = row_to(a, r);
                    *s = (struct share){ LOW, 0, o + (i * parts + part) * a->dim_pad };
                    if (from < to) part_run(a, s, q + i * a->dim_pad, kv, from, to);
                }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < all; i++) join(a, sh + i * parts, parts, i / rows, i % rows);
    }
    arena_rewind(kc->scratch, mark);
}

static bool cached(struct tensor t) { return t.type == DT_F32 || t.type == DT_F16 || t.type == DT_BF16; }

static void attn_fwd(struct kctx *kc, struct tensor y, struct tensor lse, struct tensor q, struct tensor k,
                     struct tensor v, struct tensor range, int heads, float scale)
{
    bool ours = y.type == DT_F32 && q.type == DT_F32 && (!lse.p || lse.type == DT_F32) && cached(k) && k.type == v.type;
    if (!ours || tensor_rows(k) > 1 << 24) { /* positions are compared as f32 */
        kern_ref.attn_fwd(kc, y, lse, q, k, v, range, heads, scale);
        return;
    }
    struct attn a = attn_of(y, lse, q, k, v, range, heads, scale);
    if (a.tokens * a.group <= FEW) few_rows(kc, &a);
    else many_rows(kc, &a);
}

void ISA(cpu_fill_attn)(struct kern *k)
{
    k->attn_fwd = attn_fwd;
}
