/* Dropout, the size of gradients, and the optimiser's step. Scratch: none. */
#include <math.h>

#include "kern/ref/real.h"

void ref_dropout(struct kctx *kc, struct tensor y, struct tensor x, float p, uint64_t key)
{
    const int64_t n = tensor_count(x);
    const uint32_t below = kern_drop_below(p);
    const float kept = 1 / (1 - p);
#pragma omp parallel for schedule(static) num_threads(kc->n_threads)
    for (int64_t i = 0; i < n; i++) put(y, i, kern_drop(key, i, below) ? 0 : at(x, i) * (double)kept);
}

/* In one thread: the order is that of the elements. */
void ref_sumsq(struct kctx *kc, struct tensor y, struct tensor x)
{
    double sum = 0;
    (void)kc;
    for (int64_t i = 0; i < tensor_count(x); i++) sum += at(x, i) * at(x, i);
    put(y, 0, sum);
}

void ref_adamw(struct kctx *kc, struct tensor w, struct tensor m, struct tensor v, struct tensor low, struct tensor g,
               const struct adamw *a)
{
    const int64_t n = tensor_count(w);
    const double b1 = (double)a->beta1, b2 = (double)a->beta2, lr = (double)a->lr;
#pragma omp parallel for schedule(static) num_threads(kc->n_threads)
    for (int64_t i = 0; i < n; i++) {
        const double d = at(g, i) * (double)a->scale;
        const double mi = b1 * at(m, i) + (1 - b1) * d, vi = b2 * at(v, i) + (1 - b2) * d * d;
        const double step = lr / (double)a->fix1 * mi / (sqrt(vi / (double)a->fix2) + (double)a->eps);
        put(m, i, mi);
        put(v, i, vi);
        put(w, i, at(w, i) * (1 - lr * (double)a->decay) - step);
        if (low.p) put(low, i, at(w, i));
    }
}
