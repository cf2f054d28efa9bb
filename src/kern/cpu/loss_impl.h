/* Cross entropy over rows of logits. */
#include <math.h>

#include "kern/cpu/math_impl.h"

INLINE vf load_or(const float *p, int64_t left, float other) /* lanes behind the end are `other` */
{
    if (left >= VW) return vf_load(p);
    float t[VW];
    vf_store(t, vf_set(other));
    memcpy(t, p, (size_t)left * sizeof *p);
    return vf_load(t);
}

/* log of the sum of exponentials of x[n] */
static float log_sum_exp(const float *x, int64_t n)
{
    vf top = vf_set(-INFINITY);
    for (int64_t i = 0; i < n; i += VW) top = vf_max(load_or(x + i, n - i, -INFINITY), top);
    const float most = vf_hmax(top);
    double sum = 0;
    for (int64_t i = 0; i < n;) { /* short sums in f32, joined in double */
        vf s = vf_zero();
        for (int64_t end = i + 64 * VW < n ? i + 64 * VW : n; i < end; i += VW)
            s = vf_add(s, vf_exp(vf_sub(load_or(x + i, n - i, -INFINITY), vf_set(most))));
        sum += (double)vf_sum(s);
    }
    return most + (float)log(sum);
}

/* The mean of x[n] less x[v]. */
static float mean_over(const float *x, int64_t n, int64_t v)
{
    const vf one = vf_set(x[v]);
    double sum = 0;
    for (int64_t i = 0; i < n;) {
        vf s = vf_zero();
        for (int64_t end = i + 64 * VW < n ? i + 64 * VW : n; i < end; i += VW)
            s = vf_add(s, vf_sub(load_or(x + i, n - i, x[v]), one));
        sum += (double)vf_sum(s);
    }
    return (float)(sum / (double)n);
}

static bool ours(struct tensor a, struct tensor b, struct tensor c, struct tensor d)
{
    return a.type == DT_F32 && b.type == DT_F32 && c.type == DT_F32 && d.type == DT_F32;
}

static void xent_fwd(struct kctx *kc, struct tensor loss, struct tensor lse, struct tensor logits,
                     struct tensor target, float smooth)
{
    if (!ours(loss, lse, logits, logits)) {
        kern_ref.xent_fwd(kc, loss, lse, logits, target, smooth);
        return;
    }
    const int64_t rows = tensor_rows(logits), n = tensor_cols(logits);
#pragma omp parallel for num_threads(cpu_threads(kc, rows *n)) schedule(static)
    for (int64_t t = 0; t < rows; t++) {
        const float *x = (const float *)logits.p + t * n;
        const int32_t want = ((const int32_t *)target.p)[t];
        const float l = want < 0 ? 0 : log_sum_exp(x, n); /* an ignored row has neither */
        ((float *)lse.p)[t] = l;
        ((float *)loss.p)[t] = want < 0 ? 0 : l - x[want];
        if (want >= 0 && smooth > 0) ((float *)loss.p)[t] -= smooth * mean_over(x, n, want);
    }
}

static void xent_bwd(struct kctx *kc, struct tensor dlogits, struct tensor dloss, struct tensor logits,
                     struct tensor lse, struct tensor target, float smooth)
{
    if (!dlogits.p) return;
    if (!ours(dlogits, dloss, logits, lse)) {
        kern_ref.xent_bwd(kc, dlogits, dloss, logits, lse, target, smooth);
        return;
    }
    const int64_t rows = tensor_rows(logits), n = tensor_cols(logits);
#pragma omp parallel for num_threads(cpu_threads(kc, rows *n)) schedule(static)
    for (int64_t t = 0; t < rows; t++) {
        const float *x = (const float *)logits.p + t * n, d = ((const float *)dloss.p)[t];
        float *dx = (float *)dlogits.p + t * n;
        const int32_t want = ((const int32_t *)target.p)[t];
        const float all = smooth / (float)n;
        const vf l = vf_set(((const float *)lse.p)[t]), c = vf_set(d), share = vf_set(all);
        if (want < 0) continue;
        const float p = expf(x[want] - ((const float *)lse.p)[t]), right = dx[want] + (p - 1 + (smooth - all)) * d;
        for (int64_t i = 0; i < n; i += VW) {
            vf e = vf_sub(vf_exp(vf_sub(load_or(x + i, n - i, 0), l)), share);
            vf y = vf_fma(e, c, load_or(dx + i, n - i, 0));
            if (n - i >= VW) vf_store(dx + i, y);
            else vf_store_n(dx + i, y, n - i);
        }
        dx[want] = right;
    }
}

void ISA(cpu_fill_loss)(struct kern *k)
{
    k->xent_fwd = xent_fwd;
    k->xent_bwd = xent_bwd;
}
