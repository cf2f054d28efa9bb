/* RMSNorm and LayerNorm. With xh = (x - mean) * rstd (mean 0 for RMSNorm) and g = w * dy, both backwards are
 *   dx = rstd * (g - xh * mean(g xh) [- mean(g)]),  dw = sum over tokens of dy * xh,  db = sum of dy
 * so one body serves the two; the bracket is LayerNorm's. Scratch: none. */
#include <math.h>

#include "kern/ref/real.h"

void ref_rmsnorm_fwd(struct kctx *kc, struct tensor y, struct tensor rstd, struct tensor x, struct tensor w,
                     float eps)
{
    const int64_t T = tensor_rows(x), C = tensor_cols(x);
#pragma omp parallel for schedule(static) num_threads(kc->n_threads)
    for (int64_t t = 0; t < T; t++) {
        double sq = 0;
        for (int64_t i = 0; i < C; i++) sq += at(x, t * C + i) * at(x, t * C + i);
        const double r = 1 / sqrt(sq / (double)C + (double)eps);
        if (rstd.p) put(rstd, t, r);
        for (int64_t i = 0; i < C; i++) put(y, t * C + i, at(w, i) * at(x, t * C + i) * r);
    }
}

void ref_layernorm_fwd(struct kctx *kc, struct tensor y, struct tensor mean, struct tensor rstd,
                       struct tensor x, struct tensor w, struct tensor b, float eps)
{
    const int64_t T = tensor_rows(x), C = tensor_cols(x);
#pragma omp parallel for schedule(static) num_threads(kc->n_threads)
    for (int64_t t = 0; t < T; t++) {
        double m = 0, sq = 0;
        for (int64_t i = 0; i < C; i++) m += at(x, t * C + i);
        m /= (double)C;
        for (int64_t i = 0; i < C; i++) sq += (at(x, t * C + i) - m) * (at(x, t * C + i) - m);
        const double r = 1 / sqrt(sq / (double)C + (double)eps);
        if (mean.p) put(mean, t, m);
        if (rstd.p) put(rstd, t, r);
        for (int64_t i = 0; i < C; i++)
            put(y, t * C + i, at(w, i) * (at(x, t * C + i) - m) * r + (b.p ? at(b, i) : 0));
    }
}

/* mean.p NULL: RMSNorm */
static void norm_dx(struct kctx *kc, struct tensor dx, struct tensor dy, struct tensor x, struct tensor w,
                    struct tensor mean, struct tensor rstd)
{
    const int64_t T = tensor_rows(x), C = tensor_cols(x);
#pragma omp parallel for schedule(static) num_threads(kc->n_threads)
    for (int64_t t = 0; t < T; t++) {
        const double m = mean.p ? at(mean, t) : 0, r = at(rstd, t);
        double g_sum = 0, gx_sum = 0;
        for (int64_t i = 0; i < C; i++) {
            const double g = at(w, i) * at(dy, t * C + i);
            g_sum += g;
            gx_sum += g * (at(x, t * C + i) - m) * r;
        }
        const double g_mean = mean.p ? g_sum / (double)C : 0, gx_mean = gx_sum / (double)C;
        for (int64_t i = 0; i < C; i++) {
            const double xh = (at(x, t * C + i) - m) * r;
            put_add(dx, t * C + i, r * (at(w, i) * at(dy, t * C + i) - g_mean - xh * gx_mean));
        }
    }
}

/* Threads share the columns, so that each sum runs over the tokens in order. */
static void norm_dw(struct kctx *kc, struct tensor dw, struct tensor db, struct tensor dy, struct tensor x,
                    struct tensor mean, struct tensor rstd)
{
    enum { COLS = 64 };
    const int64_t T = tensor_rows(x), C = tensor_cols(x);
#pragma omp parallel for schedule(static) num_threads(kc->n_threads)
    for (int64_t c0 = 0; c0 < C; c0 += COLS) {
        const int64_t n = C - c0 < COLS ? C - c0 : COLS;
        double sw[COLS] = { 0 }, sb[COLS] = { 0 };
        for (int64_t t = 0; t < T; t++) {
            const double m = mean.p ? at(mean, t) : 0, r = at(rstd, t);
            for (int64_t i = 0; i < n; i++) {
                const int64_t k = t * C + c0 + i;
                sw[i] += at(dy, k) * (at(x, k) - m) * r;
                sb[i] += at(dy, k);
            }
        }
        for (int64_t i = 0; dw.p && i < n; i++) put_add(dw, c0 + i, sw[i]);
        for (int64_t i = 0; db.p && i < n; i++) put_add(db, c0 + i, sb[i]);
    }
}

void ref_rmsnorm_bwd(struct kctx *kc, struct tensor dx, struct tensor dw, struct tensor dy, struct tensor x,
                     struct tensor w, struct tensor rstd)
{
    const struct tensor none = { 0 };
    if (dx.p) norm_dx(kc, dx, dy, x, w, none, rstd);
    if (dw.p) norm_dw(kc, dw, none, dy, x, none, rstd);
}

void ref_layernorm_bwd(struct kctx *kc, struct tensor dx, struct tensor dw, struct tensor db,
                       struct tensor dy, struct tensor x, struct tensor w, struct tensor mean,
                       struct tensor rstd)
{
    if (dx.p) norm_dx(kc, dx, dy, x, w, mean, rstd);
    if (dw.p || db.p) norm_dw(kc, dw, db, dy, x, mean, rstd);
}
