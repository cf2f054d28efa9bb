/* Cross entropy over the vocabulary. Scratch: none. */
#include <math.h>

#include "kern/ref/real.h"

static double log_sum_exp(struct tensor logits, int64_t t)
{
    const int64_t V = tensor_cols(logits);
    double top = -INFINITY, sum = 0;
    for (int64_t v = 0; v < V; v++) top = fmax(top, at(logits, t * V + v));
    for (int64_t v = 0; v < V; v++) sum += exp(at(logits, t * V + v) - top);
    return top + log(sum);
}

void ref_xent_fwd(struct kctx *kc, struct tensor loss, struct tensor lse, struct tensor logits,
                  struct tensor target)
{
    const int64_t T = tensor_rows(logits), V = tensor_cols(logits);
#pragma omp parallel for schedule(static) num_threads(kc->n_threads)
    for (int64_t t = 0; t < T; t++) {
        const int64_t v = ints(target)[t];
        ASSERT(v < V);
        const double l = v < 0 ? 0 : log_sum_exp(logits, t); /* an ignored row has neither */
        put(lse, t, l);
        put(loss, t, v < 0 ? 0 : l - at(logits, t * V + v));
    }
}

void ref_xent_bwd(struct kctx *kc, struct tensor dlogits, struct tensor dloss, struct tensor logits,
                  struct tensor lse, struct tensor target)
{
    if (!dlogits.p) return;
    const int64_t T = tensor_rows(logits), V = tensor_cols(logits);
#pragma omp parallel for schedule(static) num_threads(kc->n_threads)
    for (int64_t t = 0; t < T; t++) {
        const double d = at(dloss, t), l = at(lse, t);
        if (ints(target)[t] < 0) continue;
        for (int64_t v = 0; v < V; v++) {
            const double p = exp(at(logits, t * V + v) - l);
            put_add(dlogits, t * V + v, (p - (v == ints(target)[t])) * d);
        }
    }
}
