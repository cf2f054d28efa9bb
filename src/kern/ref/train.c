/* Dropout, the size of gradients, and the optimiser's step. Scratch: none. */
#include <math.h>

#include "kern/code8.h"
#include "kern/ref/real.h"

void ref_dropout(struct kctx *kc, struct tensor y, struct tensor x, float p, uint64_t key)
{
    const int64_t n = tensor_count(x);
    const uint32_t below = kern_drop_below(p);
    const float kept = 1 / (1 - p);
#pragma omp parallel for schedule(static) num_threads(kc->n_threads)
    for (int64_t i = 0; i < n; i++) put(y, i, kern_drop(key, i, below) ? 0 : at(x, i) * (double)kept);
}

void ref_dropout_bwd(struct kctx *kc, struct tensor dx, struct tensor dy, float p, uint64_t key)
{
    const int64_t n = tensor_count(dx);
    const uint32_t below = kern_drop_below(p);
    const float kept = 1 / (1 - p);
#pragma omp parallel for schedule(static) num_threads(kc->n_threads)
    for (int64_t i = 0; i < n; i++)
        if (!kern_drop(key, i, below)) put(dx, i, at(dx, i) + at(dy, i) * (double)kept);
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

/* New codes of one block of moments; returns their scale. */
static float block_put(uint8_t *code, const float *x, int n, bool is_signed)
{
    float most = 0;
    for (int i = 0; i < n; i++) most = fmaxf(most, fabsf(x[i]));
    const float inverse = most > 0 ? 1 / most : 0;
    for (int i = 0; i < n; i++) code[i] = code8_of(x[i] * inverse, is_signed);
    return most;
}

static void adamw8_block(struct tensor w, uint8_t *m, float *ms, uint8_t *v, float *vs, struct tensor g, int64_t from,
                         int n, const struct adamw *a)
{
    float mi[KERN_BLOCK8], vi[KERN_BLOCK8];
    for (int i = 0; i < n; i++) {
        const float d = (float)at(g, from + i) * a->scale;
        mi[i] = a->beta1 * *ms * code8_value(m[i], true) + (1 - a->beta1) * d;
        vi[i] = a->beta2 * *vs * code8_value(v[i], false) + (1 - a->beta2) * d * d;
        const float step = a->lr / a->fix1 * mi[i] / (sqrtf(vi[i] / a->fix2) + a->eps);
        const float x = (float)at(w, from + i) * (1 - a->lr * a->decay) - step;
        if (w.type != DT_BF16) put(w, from + i, (double)x);
        else ((uint16_t *)w.p)[from + i] = kern_bf16_random(x, kern_drop_hash(a->key, (uint32_t)(from + i)));
    }
    *ms = block_put(m, mi, n, true);
    *vs = block_put(v, vi, n, false);
}

void ref_adamw8(struct kctx *kc, struct tensor w, struct tensor m, struct tensor ms, struct tensor v, struct tensor vs,
                struct tensor g, const struct adamw *a)
{
    const int64_t n = tensor_count(w);
#pragma omp parallel for schedule(static) num_threads(kc->n_threads)
    for (int64_t b = 0; b < n; b += KERN_BLOCK8) {
        const int64_t block = b / KERN_BLOCK8;
        adamw8_block(w, (uint8_t *)m.p + b, (float *)ms.p + block, (uint8_t *)v.p + b, (float *)vs.p + block, g, b,
                     (int)(n - b < KERN_BLOCK8 ? n - b : KERN_BLOCK8), a);
    }
}
