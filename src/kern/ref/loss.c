/* Cross entropy over the vocabulary. Scratch: none. */
#include <math.h>

#include "kern/ref/real.h"

/* log of the sum of exponentials of row t, in two parts that are worth more apart: the largest logit, returned, and the
 * rest. A loss near 0 is all in the rest. */
static double log_sum_exp(struct tensor logits, int64_t t, double *rest)
{
    const int64_t V = tensor_cols(logits);
    int64_t first = 0;
    double sum = 0;
    for (int64_t v = 1; v < V; v++)
        if (at(logits, t * V + v) > at(logits, t * V + first)) first = v;
    const double top = at(logits, t * V + first);
    for (int64_t v = 0; v < V; v++)
        if (v != first) sum += exp(at(logits, t * V + v) - top);
    *rest = log1p(sum);
    return top;
}

/* The mean of row t's logits, less the logit of token v. */
static double mean_over(struct tensor logits, int64_t t, int64_t v)
{
    const int64_t V = tensor_cols(logits);
    double sum = 0;
    for (int64_t i = 0; i < V; i++) sum += at(logits, t * V + i) - at(logits, t * V + v);
    return sum / (double)V;
}

void ref_xent_fwd(struct kctx *kc, struct tensor loss, struct tensor lse, struct tensor logits,
                  struct tensor target, float smooth)
{
    const int64_t T = tensor_rows(logits), V = tensor_cols(logits);
#pragma omp parallel for schedule(static) num_threads(kc->n_threads)
    for (int64_t t = 0; t < T; t++) {
        const int64_t v = ints(target)[t];
        double rest = 0;
        ASSERT(v < V);
        const double top = v < 0 ? 0 : log_sum_exp(logits, t, &rest); /* an ignored row has neither */
        put(lse, t, top + rest);
        const double shared = v >= 0 && smooth > 0 ? (double)smooth * mean_over(logits, t, v) : 0;
        put(loss, t, v < 0 ? 0 : top - at(logits, t * V + v) + rest - shared);
    }
}

void ref_xent_bwd(struct kctx *kc, struct tensor dlogits, struct tensor dloss, struct tensor logits,
                  struct tensor lse, struct tensor target, float smooth)
{
    if (!dlogits.p) return;
    const int64_t T = tensor_rows(logits), V = tensor_cols(logits);
    const double all = (double)smooth / (double)V, one = 1 - (double)smooth;
#pragma omp parallel for schedule(static) num_threads(kc->n_threads)
    for (int64_t t = 0; t < T; t++) {
        const double d = at(dloss, t), l = at(lse, t);
        if (ints(target)[t] < 0) continue;
        for (int64_t v = 0; v < V; v++) {
            const double p = exp(at(logits, t * V + v) - l);
            put_add(dlogits, t * V + v, (p - all - (v == ints(target)[t] ? one : 0)) * d);
        }
    }
}
