/* Attention forward (the backward is attn_bwd_impl.h): softmax with a running maximum over blocks of keys,
 * after Dao et al., arXiv:2205.14135.
 *
 * For one key/value head, "rows" are its queries: (token t, head g of the group), row t*G + g. With many
 * rows, LANES of them lie in the lanes of vectors: scores are kept as [key][row], so that maximum,
 * exponential and sum need no work across lanes, and ranges are compares. In decode, where each sequence has
 * one token, its rows' scores are dot products along D, the keys are split into parts of PART that threads
 * share, and the parts are joined at the end. Blocks and parts are cut at multiples of their length, so that
 * a row's result depends neither on its neighbours nor on the number of threads.
 */
#include <math.h>

#include "kern/cpu/math_impl.h"
#include "tensor/quant.h"

enum {
    QV = 3, /* vectors of rows */
    LANES = QV * VW,
    KEYS = 64, /* keys in a block */
#ifdef __AVX512F__
    KT = 8,
    QT = 12, /* keys, rows in a tile of registers */
#else
    KT = 4,
    QT = 6,
#endif
    DV = 2,  /* vectors of D in a tile of registers */
    FEW = 6, /* most queries of a group for which dot products are faster */
    PART = 256,
};
static const float LOW = -1e30f; /* below every score; finite, so that differences are numbers */

struct attn {
    struct tensor y, lse, q, k, v;
    const int32_t *range; /* [tokens][range_cols] */
    int64_t range_cols;
    const int32_t *pages; /* of the tokens' one sequence; NULL: k and v are that sequence */
    int64_t tokens, heads, kv_heads, group, dim, dim_pad; /* dim_pad: a multiple of DV*VW */
    float scale;
};

static struct attn attn_of(struct tensor y, struct tensor lse, struct tensor q, struct tensor k,
                           struct tensor v, struct tensor range, int heads, float scale)
{
    int64_t dim = tensor_cols(q) / heads, kv = tensor_cols(k) / dim, pad = DV * VW;
    return (struct attn){ .y = y, .lse = lse, .q = q, .k = k, .v = v, .range = range.p,
                          .range_cols = tensor_cols(range), .tokens = tensor_rows(q), .heads = heads, .kv_heads = kv,
                          .group = heads / kv, .dim = dim, .dim_pad = (dim + pad - 1) / pad * pad, .scale = scale };
}

/* Where row r of key/value head `kv` starts in q and y, and which element of lse is its. */
static int64_t row_start(const struct attn *a, int64_t kv, int64_t r)
{
    return (r / a->group * a->heads + kv * a->group + r % a->group) * a->dim;
}
static int64_t row_from(const struct attn *a, int64_t r) { return a->range[r / a->group * a->range_cols]; }
static int64_t row_to(const struct attn *a, int64_t r) { return a->range[r / a->group * a->range_cols + 1]; }

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* One key/value head of a row of k or v. Q8: scale[(skew + d) / 64] is of element d. */
struct head {
    const char *p;
    const uint16_t *scale;
    int64_t skew;
};

/* Elements [d, d+VW), zeros from the `left`-th on; dim and d are multiples of VW where t is Q8. */
INLINE vf head_load(const struct head *h, int64_t d, enum dtype t, int64_t left)
{
    if (t == DT_Q8) return vf_mul(vf_load_i8(h->p + d), vf_set(_cvtsh_ss(h->scale[(h->skew + d) / QUANT_GROUP])));
    const char *p = h->p + d * (t == DT_F32 ? 4 : 2);
    return left >= VW ? vf_load_as(p, t) : vf_load_as_n(p, t, left);
}

/* ---- many rows */

/* A thread's room, in f32. */
struct room {
    float *q;     /* [dim_pad][LANES], times scale */
    float *k, *v; /* [KEYS][dim_pad], zeros behind dim */
    float *p;     /* [KEYS][LANES] scores, then exponentials */
    float *o;     /* [LANES][dim_pad] sums */
    float from[LANES], to[LANES], top[LANES], sum[LANES], fade[LANES];
};
static size_t room_bytes(const struct attn *a)
{
    size_t floats = (size_t)a->dim_pad * (2 * LANES + 2 * KEYS) + KEYS * LANES + QT;
    return arena_aligned(sizeof(struct room)) + floats * sizeof(float);
}
static struct room *room_at(const struct attn *a, char *base)
{
    struct room *m = (struct room *)(void *)base;
    m->q = (float *)(void *)(base + arena_aligned(sizeof *m));
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

INLINE struct head kv_at(const struct attn *a, struct tensor x, enum dtype t, int64_t kv, int64_t s)
{
    const int64_t C = a->kv_heads * a->dim, at = kv * a->dim;
    if (a->pages) s = (int64_t)a->pages[s / KV_PAGE] * KV_PAGE + s % KV_PAGE;
    if (t != DT_Q8) return (struct head){ (const char *)x.p + (s * C + at) * (t == DT_F32 ? 4 : 2), NULL, 0 };
    const char *row = (const char *)x.p + (size_t)s * quant_row_bytes(DT_Q8, C);
    const uint16_t *scales = (const uint16_t *)(const void *)(row + quant_scales_at(DT_Q8, C));
    return (struct head){ row + at, scales + at / QUANT_GROUP, at % QUANT_GROUP };
}
/* Bytes of a head; of a row. */
INLINE size_t head_bytes(const struct attn *a, enum dtype t)
{
    return (size_t)a->dim * (t == DT_F32 ? 4 : t == DT_Q8 ? 1 : 2);
}
INLINE size_t row_bytes(const struct attn *a, enum dtype t)
{
    const int64_t C = a->kv_heads * a->dim;
    return t == DT_Q8 ? quant_row_bytes(t, C) : (size_t)C * (t == DT_F32 ? 4 : 2);
}

/* Keys or values [s0, s0+keys) of a head, zeros for those outside of [lo, hi), so that no NaN of old memory meets
 * a zero weight. Asks for those of the next block: they lie too far apart for the processor to guess. */
INLINE void block_as(const struct attn *a, float *to, struct tensor x, enum dtype t, int64_t kv, int64_t s0,
                     int64_t keys, int64_t lo, int64_t hi)
{
    const size_t bytes = head_bytes(a, t);
    const int64_t skip = lo > s0 ? lo - s0 : 0, n = least(hi - s0, keys);
    memset(to, 0, (size_t)(skip * a->dim_pad) * sizeof *to);
    to += skip * a->dim_pad;
    for (int64_t s = skip; s < n; s++, to += a->dim_pad) {
        const struct head h = kv_at(a, x, t, kv, s0 + s), next = kv_at(a, x, t, kv, least(s0 + s + KEYS, hi - 1));
        for (size_t i = 0; i < bytes; i += 64) _mm_prefetch(next.p + i, _MM_HINT_T1);
        for (int64_t d = 0; d < a->dim; d += VW) vf_store(to + d, head_load(&h, d, t, a->dim - d));
    }
    memset(to, 0, (size_t)((keys - n) * a->dim_pad) * sizeof *to);
}

static void block_load(const struct attn *a, float *to, struct tensor x, int64_t kv, int64_t s0, int64_t keys,
                       int64_t lo, int64_t hi)
{
    switch (x.type) {
    case DT_F32: block_as(a, to, x, DT_F32, kv, s0, keys, lo, hi); break;
    case DT_F16: block_as(a, to, x, DT_F16, kv, s0, keys, lo, hi); break;
    case DT_Q8: block_as(a, to, x, DT_Q8, kv, s0, keys, lo, hi); break;
    default: block_as(a, to, x, DT_BF16, kv, s0, keys, lo, hi); break;
    }
}

/* p[key][row] = k . q for `keys` keys k[][dim_pad] and the first qv vectors of rows q[][LANES]. Sums are put
 * down every D_RUN elements: short sums round less. */
INLINE void scores_of(const struct attn *a, float *out, const float *kb, const float *qb, int64_t keys,
                      int qv)
{
    enum { D_RUN = 32 };
    for (int64_t d0 = 0; d0 < a->dim; d0 += D_RUN)
        for (int64_t s = 0; s < keys; s += KT) {
            vf acc[KT][QV];
            for (int i = 0; i < KT; i++)
                for (int j = 0; j < qv; j++) acc[i][j] = vf_zero();
            const float *k = kb + s * a->dim_pad + d0, *q = qb + d0 * LANES;
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
                    float *p = out + (s + i) * LANES + j * VW;
                    vf_store(p, d0 ? vf_add(vf_load(p), acc[i][j]) : acc[i][j]);
                }
        }
}

static void scores(const struct attn *a, float *p, const float *k, const float *q, int64_t keys, int qv)
{
    switch (qv) {
    case 1: scores_of(a, p, k, q, keys, 1); break;
    case 2: scores_of(a, p, k, q, keys, 2); break;
    default: scores_of(a, p, k, q, keys, QV); break;
    }
}

/* Scores to exponentials; the new maximum, and by how much older sums fade. */
static void soften(struct room *m, int64_t s0, int64_t keys, int qv, bool masked)
{
    for (int j = 0; j < qv; j++) {
        float *p = m->p + j * VW;
        vf from = vf_load(m->from + j * VW), to = vf_load(m->to + j * VW), old = vf_load(m->top + j * VW),
           top = old;
        for (int64_t s = 0; s < keys; s++) {
            vf x = vf_load(p + s * LANES);
            if (masked) {
                vf at = vf_set((float)(s0 + s));
                x = vf_select(vf_lt(at, to), vf_select(vf_lt(at, from), vf_set(-INFINITY), x),
                              vf_set(-INFINITY));
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

/* out[i][..] = out[i][..] * fade[i] + sum over k < n of x[i*xi + k*xk] b[k][..], for i < rows. Rows of out
 * and b are dim_pad long; x may be read (not used) up to the next whole QT rows. */
INLINE void weigh(const struct attn *a, float *out, const float *fade, int64_t rows, const float *x,
                  int64_t xi, int64_t xk, const float *b, int64_t n)
{
    for (int64_t d = 0; d < a->dim; d += DV * VW)
        for (int64_t r = 0; r < rows; r += QT) {
            vf acc[QT][DV];
            for (int i = 0; i < QT; i++)
                for (int j = 0; j < DV; j++) acc[i][j] = vf_zero();
            const float *c = x + r * xi, *v = b + d;
            for (int64_t k = 0; k < n; k++, c += xk, v += a->dim_pad) {
                vf w[DV];
                for (int j = 0; j < DV; j++) w[j] = vf_load(v + j * VW);
                for (int i = 0; i < QT; i++)
                    for (int j = 0; j < DV; j++) acc[i][j] = vf_fma(vf_set(c[i * xi]), w[j], acc[i][j]);
            }
            float t[QT][DV * VW];
            for (int i = 0; i < QT; i++)
                for (int j = 0; j < DV; j++) vf_store(t[i] + j * VW, acc[i][j]);
            for (int i = 0; i < QT && r + i < rows; i++)
                for (int j = 0; j < DV; j++) {
                    float *o = out + (r + i) * a->dim_pad + d + j * VW;
                    vf_store(o, vf_fma(vf_load(o), vf_set(fade ? fade[r + i] : 1), vf_load(t[i] + j * VW)));
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
    for (int64_t s = (int64_t)first / KEYS * KEYS; s < (int64_t)end; s += KEYS) {
        int64_t n = least((int64_t)end - s, KEYS), keys = (n + KT - 1) / KT * KT;
        block_load(a, m->k, a->k, kv, s, keys, (int64_t)first, (int64_t)end);
        block_load(a, m->v, a->v, kv, s, keys, (int64_t)first, (int64_t)end);
        scores(a, m->p, m->k, m->q, keys, qv);
        soften(m, s, keys, qv, (float)s < last_from || (float)(s + keys) > first_to);
        weigh(a, m->o, m->fade, rows, m->p, 1, LANES, m->v, keys);
    }
    lanes_end(a, m, kv, r0);
}

static void many_rows(struct kctx *kc, const struct attn *a)
{
    int64_t rows = a->tokens * a->group, blocks = (rows + LANES - 1) / LANES;
    int n_threads = cpu_threads(kc, rows * a->kv_heads * a->dim / 8 * (tensor_rows(a->k) / 8 + 1));
    size_t mark = arena_mark(kc->scratch), bytes = arena_aligned(room_bytes(a));
    char *rooms = arena_take(kc->scratch, bytes * (size_t)n_threads);
    /* The last blocks of a causal range are the longest: they go first, and no thread ends up with one of
     * them alone. */
#pragma omp parallel for num_threads(n_threads) schedule(dynamic)
    for (int64_t i = 0; i < blocks * a->kv_heads; i++)
        lanes_run(a, room_at(a, rooms + bytes * (size_t)omp_get_thread_num()), i % a->kv_heads,
                  (blocks - 1 - i / a->kv_heads) * LANES);
    arena_rewind(kc->scratch, mark);
}

/* ---- few rows */

/* One part of some key/value heads: keys [from, to), heads [kv0, kv1). Keys and values are read in the order
 * in which they lie in memory, TILE at a time for all these heads. */
struct part {
    int64_t from, to, kv0, kv1, rows;
    const float *q;   /* [kv_heads*rows][dim_pad], times scale */
    float *p;         /* [(kv1-kv0)*rows][PART] scores, then exponentials */
    float *o;         /* [(kv1-kv0)*rows][dim_pad] sums */
    float *top, *sum; /* [(kv1-kv0)*rows] */
};
enum { TILE = 4 };

INLINE void prefetch_span(const char *p, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64) _mm_prefetch(p + i, _MM_HINT_T0);
}

INLINE void part_scores(const struct attn *a, const struct part *g, enum dtype t)
{
    const size_t bytes = head_bytes(a, t), step = row_bytes(a, t);
    for (int64_t s = g->from; s < g->to; s += TILE)
        for (int64_t kv = g->kv0; kv < g->kv1; kv++) {
            struct head k[TILE];
            for (int i = 0; i < TILE; i++) {
                k[i] = kv_at(a, a->k, t, kv, s + i < g->to ? s + i : s);
                prefetch_span(k[i].p + TILE * step, bytes);
            }
            for (int64_t r = 0; r < g->rows; r++) {
                const float *q = g->q + (kv * g->rows + r) * a->dim_pad;
                vf sum[TILE] = { vf_zero(), vf_zero(), vf_zero(), vf_zero() };
                for (int64_t d = 0; d < a->dim; d += VW)
                    for (int i = 0; i < TILE; i++)
                        sum[i] =
                            vf_fma(vf_load(q + d), head_load(&k[i], d, t, a->dim - d), sum[i]);
                float *p = g->p + ((kv - g->kv0) * g->rows + r) * PART + (s - g->from);
                for (int i = 0; i < TILE; i++) p[i] = vf_sum(sum[i]);
            }
        }
}

/* Scores to exponentials, zero where a row's range or the part has ended, for head and row i of the part. */
static void part_soften(const struct attn *a, const struct part *g, int64_t i)
{
    const int64_t from = row_from(a, i % g->rows), to = least(row_to(a, i % g->rows), g->to);
    float *p = g->p + i * PART, top = LOW;
    for (int64_t s = 0; s < PART; s++) {
        if (g->from + s < from || g->from + s >= to) p[s] = -INFINITY;
        top = p[s] > top ? p[s] : top;
    }
    vf sum = vf_zero();
    for (int64_t s = 0; s < PART; s += VW) {
        vf e = vf_exp(vf_sub(vf_load(p + s), vf_set(top)));
        vf_store(p + s, e);
        sum = vf_add(sum, e);
    }
    g->top[i] = top;
    g->sum[i] = vf_sum(sum);
}

INLINE void part_weigh(const struct attn *a, const struct part *g, enum dtype t)
{
    const size_t bytes = head_bytes(a, t), step = row_bytes(a, t);
    for (int64_t s = g->from; s < g->to; s += TILE)
        for (int64_t kv = g->kv0; kv < g->kv1; kv++) {
            struct head v[TILE];
            for (int i = 0; i < TILE; i++) {
                v[i] = kv_at(a, a->v, t, kv, s + i < g->to ? s + i : s); /* what is repeated weighs zero */
                prefetch_span(v[i].p + TILE * step, bytes);
            }
            for (int64_t i = (kv - g->kv0) * g->rows; i < (kv - g->kv0 + 1) * g->rows; i++) {
                const float *p = g->p + i * PART + (s - g->from);
                for (int64_t d = 0; d < a->dim; d += VW) {
                    float *o = g->o + i * a->dim_pad + d;
                    vf x = vf_load(o);
                    for (int j = 0; j < TILE; j++)
                        x = vf_fma(vf_set(p[j]), head_load(&v[j], d, t, a->dim - d), x);
                    vf_store(o, x);
                }
            }
        }
}

INLINE void part_as(const struct attn *a, const struct part *g, enum dtype t)
{
    const int64_t n = (g->kv1 - g->kv0) * g->rows;
    memset(g->o, 0, (size_t)(n * a->dim_pad) * sizeof *g->o);
    part_scores(a, g, t);
    for (int64_t i = 0; i < n; i++) part_soften(a, g, i);
    part_weigh(a, g, t);
}

static void part_run(const struct attn *a, const struct part *g)
{
    switch (a->k.type) {
    case DT_F32: part_as(a, g, DT_F32); break;
    case DT_F16: part_as(a, g, DT_F16); break;
    case DT_Q8: part_as(a, g, DT_Q8); break;
    default: part_as(a, g, DT_BF16); break;
    }
}

/* What a row's parts leave: maxima, sums of exponentials and weighted values, [parts][kv_heads*rows]. */
struct shares {
    int64_t parts, all;
    float *top, *sum, *o;
};

/* y of row r of head kv, which is number i of all. */
static void join(const struct attn *a, const struct shares *sh, int64_t i, int64_t kv, int64_t r)
{
    int64_t at = row_start(a, kv, r);
    float *y = (float *)a->y.p + at, top = LOW, sum = 0;
    for (int64_t j = 0; j < sh->parts; j++)
        top = sh->top[j * sh->all + i] > top ? sh->top[j * sh->all + i] : top;
    memset(y, 0, (size_t)a->dim * sizeof *y);
    for (int64_t j = 0; j < sh->parts; j++) {
        const float c = expf(sh->top[j * sh->all + i] - top), *o = sh->o + (j * sh->all + i) * a->dim_pad;
        for (int64_t d = 0; d < a->dim; d++) y[d] += o[d] * c;
        sum += sh->sum[j * sh->all + i] * c;
    }
    for (int64_t d = 0; d < a->dim; d++) y[d] /= sum;
    if (a->lse.p) ((float *)a->lse.p)[at / a->dim] = top + logf(sum);
}

static void few_rows(struct kctx *kc, const struct attn *a, int64_t lo, int64_t hi)
{
    const int64_t rows = a->tokens * a->group, all = rows * a->kv_heads, first = lo / PART;
    const int n_threads = cpu_threads(kc, (hi - lo) * all * a->dim / 4);
    struct shares sh = { .parts = (hi + PART - 1) / PART - first, .all = all };
    int64_t heads = a->kv_heads; /* of a task */
    while (heads > 1 && sh.parts * (a->kv_heads / heads) < 4 * n_threads) heads = (heads + 1) / 2;
    const int64_t tasks = (a->kv_heads + heads - 1) / heads, room = heads * rows * PART;
    const size_t mark = arena_mark(kc->scratch);
    sh.top = arena_take(kc->scratch, (size_t)(sh.parts * all) * sizeof(float));
    sh.sum = arena_take(kc->scratch, (size_t)(sh.parts * all) * sizeof(float));
    sh.o = arena_take(kc->scratch, (size_t)(sh.parts * all * a->dim_pad) * sizeof(float));
    float *q = arena_take(kc->scratch, (size_t)(all * a->dim_pad) * sizeof *q);
    float *p = arena_take(kc->scratch, (size_t)(n_threads * room) * sizeof *p);
#pragma omp parallel num_threads(n_threads)
    {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < all; i++) { /* i = kv*rows + r */
            const float *from = (const float *)a->q.p + row_start(a, i / rows, i % rows);
            for (int64_t d = 0; d < a->dim_pad; d++)
                q[i * a->dim_pad + d] = d < a->dim ? from[d] * a->scale : 0;
        }
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < sh.parts * tasks; i++) {
            const int64_t j = i / tasks, kv = i % tasks * heads, at = j * all + kv * rows;
            const int64_t from = (first + j) * PART;
            part_run(a,
                     &(struct part){ from > lo ? from : lo, least(from + PART, hi), kv,
                                     least(kv + heads, a->kv_heads), rows, q, p + omp_get_thread_num() * room,
                                     sh.o + at * a->dim_pad, sh.top + at, sh.sum + at });
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < all; i++) join(a, &sh, i, i / rows, i % rows);
    }
    arena_rewind(kc->scratch, mark);
}

/* How many tokens from t on, at most `most`, have ranges that touch each other, and the union of these. What lies
 * between ranges of different sequences is never read: nothing may have been written there yet. */
static int64_t run_length(const struct attn *a, int64_t t, int64_t most, int64_t *lo, int64_t *hi)
{
    const int64_t cols = a->range_cols;
    const int32_t *first = a->range + cols * t, *r = first;
    int64_t n = 0;
    *lo = r[0];
    *hi = r[1];
    for (; n < most && r[0] < *hi && r[1] > *lo && (cols < 3 || r[2] == first[2]); n++, r += cols) {
        *lo = r[0] < *lo ? r[0] : *lo;
        *hi = r[1] > *hi ? r[1] : *hi;
    }
    return n;
}

static struct tensor rows_2d(struct tensor t)
{
    return tensor_2d(t.p, (enum dtype)t.type, tensor_rows(t), tensor_cols(t));
}

static bool cached(struct tensor t, int64_t dim)
{
    return t.type == DT_F32 || t.type == DT_F16 || t.type == DT_BF16 || (t.type == DT_Q8 && dim % VW == 0);
}

static void attn_fwd(struct kctx *kc, struct tensor y, struct tensor lse, struct tensor q, struct tensor k,
                     struct tensor v, struct tensor range, struct tensor pages, int heads, float scale)
{
    bool ours = y.type == DT_F32 && q.type == DT_F32 && (!lse.p || lse.type == DT_F32) &&
                cached(k, tensor_cols(q) / heads) && k.type == v.type;
    if (!ours || tensor_rows(k) > 1 << 24) { /* positions are compared as f32 */
        kern_ref.attn_fwd(kc, y, lse, q, k, v, range, pages, heads, scale);
        return;
    }
    const struct attn all = attn_of(y, lse, q, k, v, range, heads, scale);
    for (int64_t t = 0, n; t < all.tokens; t += n) {
        int64_t lo, hi;
        n = run_length(&all, t, kc->decode ? 1 : all.tokens - t, &lo, &hi);
        struct attn a = attn_of(tensor_slice(rows_2d(y), t, n), lse, tensor_slice(rows_2d(q), t, n), k, v,
                                range, heads, scale);
        a.range += a.range_cols * t;
        if (pages.p) a.pages = (const int32_t *)pages.p + a.range[2] * pages.n[1];
        if (lse.p) a.lse.p = (float *)lse.p + t * heads;
        if (kc->decode && a.group <= FEW) few_rows(kc, &a, lo, hi);
        else many_rows(kc, &a);
    }
}
