/* Rotary positions and attention. Attention takes two passes per token and head: scores and their maximum,
 * then exponentials and the weighted sum; nothing is rescaled on the way. Scratch of the forward: S scores
 * and a few heads per thread; of the backward, the sums of dk and dv of one head as well. */
#include <math.h>

#include "kern/ref/real.h"

void ref_rope(struct kctx *kc, struct tensor x, struct tensor pos, struct tensor table, int dir)
{
    const int64_t T = tensor_rows(x), C = tensor_cols(x), D = tensor_cols(table), half = D / 2;
#pragma omp parallel for schedule(static) num_threads(kc->n_threads)
    for (int64_t t = 0; t < T; t++) {
        const int64_t p = ints(pos)[t];
        ASSERT(p >= 0 && p < table.n[0]);
        for (int64_t head = t * C; head < (t + 1) * C; head += D)
            for (int64_t i = 0; i < half; i++) {
                const double c = at(table, p * D + i), s = at(table, p * D + half + i) * dir;
                const double a = at(x, head + i), b = at(x, head + half + i);
                put(x, head + i, a * c - b * s);
                put(x, head + half + i, b * c + a * s);
            }
    }
}

/* Sizes of one attention, and where a row of a head starts. */
struct dims {
    int64_t T, S, H, K, D;
};

static struct dims dims_of(struct tensor q, struct tensor k, int heads)
{
    const int64_t D = tensor_cols(q) / heads;
    return (struct dims){ tensor_rows(q), tensor_rows(k), heads, tensor_cols(k) / D, D };
}

static int64_t q_row(const struct dims *d, int64_t t, int64_t h) { return (t * d->H + h) * d->D; }
static int64_t kv_row(const struct dims *d, int64_t s, int64_t kv) { return (s * d->K + kv) * d->D; }

static void range_of(const struct dims *d, struct tensor range, int64_t t, int64_t *from, int64_t *to)
{
    const int32_t *r = ints(range) + t * tensor_cols(range);
    *from = r[0];
    *to = r[1];
    ASSERT(*from >= 0 && *from < *to && *to <= d->S);
}

/* Row of the store where row s of token t's sequence lies. */
static int64_t store_row(struct tensor range, struct tensor pages, int64_t t, int64_t s)
{
    if (!pages.p) return s;
    const int64_t b = ints(range)[3 * t + 2];
    ASSERT(b >= 0 && b < pages.n[0] && s / KV_PAGE < pages.n[1]);
    return (int64_t)ints(pages)[b * pages.n[1] + s / KV_PAGE] * KV_PAGE + s % KV_PAGE;
}

void ref_attn_fwd(struct kctx *kc, struct tensor y, struct tensor lse, struct tensor q, struct tensor k,
                  struct tensor v, struct tensor range, struct tensor pages, int heads, float scale)
{
    const struct dims d = dims_of(q, k, heads);
    const size_t mark = arena_mark(kc->scratch), head = (size_t)d.D * sizeof(real);
    const struct lanes scores = lanes_take(kc, (size_t)d.S * sizeof(double));
    const struct lanes sums = lanes_take(kc, (size_t)d.D * sizeof(double));
    const struct lanes q_buf = lanes_take(kc, head), kv_buf = lanes_take(kc, head);
#pragma omp parallel for schedule(static) num_threads(kc->n_threads)
    for (int64_t th = 0; th < d.T * d.H; th++) {
        const int64_t t = th / d.H, kv = th % d.H / (d.H / d.K);
        int64_t from, to;
        range_of(&d, range, t, &from, &to);
        const real *qr = reals_span(q, th * d.D, d.D, lane(q_buf));
        double *p = lane(scores), *acc = lane(sums), top = -INFINITY, sum = 0;
        for (int64_t s = from; s < to; s++) {
            p[s] = (double)scale * dot(qr, reals_span(k, kv_row(&d, store_row(range, pages, t, s), kv), d.D,
                                                       lane(kv_buf)), d.D);
            top = fmax(top, p[s]);
        }
        for (int64_t i = 0; i < d.D; i++) acc[i] = 0;
        for (int64_t s = from; s < to; s++) {
            p[s] = exp(p[s] - top);
            sum += p[s];
            accumulate(acc, p[s], reals_span(v, kv_row(&d, store_row(range, pages, t, s), kv), d.D, lane(kv_buf)), d.D);
        }
        for (int64_t i = 0; i < d.D; i++) put(y, th * d.D + i, acc[i] / sum);
        if (lse.p) put(lse, th, top + log(sum));
    }
    arena_rewind(kc->scratch, mark);
}

/* What the backward of one key/value head works with. */
struct back {
    struct dims d;
    struct tensor dy, y, lse, q, k, v;
    double scale;
    double *dq, *dk, *dv; /* sums: [D], [S,D], [S,D] */
    real *q_buf, *dy_buf, *kv_buf;
};

/* Token t, query head h: adds to dk and dv, sets dq. With p = softmax and dp = dy . v the score's gradient is
 * p * (dp - sum(p dp)), and that sum is dy . y. */
static void back_token(struct back *b, int64_t t, int64_t h, int64_t kv, int64_t from, int64_t to)
{
    const int64_t D = b->d.D, row = q_row(&b->d, t, h);
    const real *q = reals_span(b->q, row, D, b->q_buf), *dy = reals_span(b->dy, row, D, b->dy_buf);
    const double lse = at(b->lse, t * b->d.H + h);
    const double delta = dot(dy, reals_span(b->y, row, D, b->kv_buf), D);
    for (int64_t i = 0; i < D; i++) b->dq[i] = 0;
    for (int64_t s = from; s < to; s++) {
        const double dp = dot(dy, reals_span(b->v, kv_row(&b->d, s, kv), D, b->kv_buf), D);
        const real *k = reals_span(b->k, kv_row(&b->d, s, kv), D, b->kv_buf);
        const double p = exp(b->scale * dot(q, k, D) - lse);
        const double ds = b->scale * p * (dp - delta);
        accumulate(b->dq, ds, k, D);
        accumulate(b->dk + s * D, ds, q, D);
        accumulate(b->dv + s * D, p, dy, D);
    }
}

void ref_attn_bwd(struct kctx *kc, struct tensor dq, struct tensor dk, struct tensor dv, struct tensor dy,
                  struct tensor y, struct tensor lse, struct tensor q, struct tensor k, struct tensor v,
                  struct tensor range, int heads, float scale)
{
    const struct dims d = dims_of(q, k, heads);
    const size_t mark = arena_mark(kc->scratch), head = (size_t)d.D * sizeof(real);
    const struct lanes sums = lanes_take(kc, (size_t)((2 * d.S + 1) * d.D) * sizeof(double));
    const struct lanes bufs = lanes_take(kc, 3 * head);
#pragma omp parallel for schedule(static) num_threads(kc->n_threads)
    for (int64_t kv = 0; kv < d.K; kv++) {
        double *sum = lane(sums);
        real *buf = lane(bufs);
        struct back b = { d, dy, y, lse, q, k, v, (double)scale, sum, sum + d.D, sum + (d.S + 1) * d.D,
                          buf, buf + d.D, buf + 2 * d.D };
        for (int64_t i = 0; i < (2 * d.S + 1) * d.D; i++) sum[i] = 0;
        for (int64_t t = 0; t < d.T; t++) {
            int64_t from, to;
            range_of(&d, range, t, &from, &to);
            for (int64_t h = kv * (d.H / d.K); h < (kv + 1) * (d.H / d.K); h++) {
                back_token(&b, t, h, kv, from, to);
                for (int64_t i = 0; dq.p && i < d.D; i++) put_add(dq, q_row(&d, t, h) + i, b.dq[i]);
            }
        }
        for (int64_t s = 0; s < d.S; s++)
            for (int64_t i = 0; i < d.D; i++) {
                if (dk.p) put_add(dk, kv_row(&d, s, kv) + i, b.dk[s * d.D + i]);
                if (dv.p) put_add(dv, kv_row(&d, s, kv) + i, b.dv[s * d.D + i]);
            }
    }
    arena_rewind(kc->scratch, mark);
}
