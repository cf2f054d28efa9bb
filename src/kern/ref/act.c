/* Activations, element by element. Scratch: none. */
#include <math.h>

#include "kern/ref/real.h"

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

void ref_swiglu_fwd(struct kctx *kc, struct tensor y, struct tensor g, struct tensor u)
{
    const int64_t n = tensor_count(y);
#pragma omp parallel for schedule(static) num_threads(kc->n_threads)
    for (int64_t i = 0; i < n; i++) put(y, i, at(g, i) * sigmoid(at(g, i)) * at(u, i));
}

void ref_swiglu_bwd(struct kctx *kc, struct tensor dg, struct tensor du, struct tensor dy, struct tensor g,
                    struct tensor u)
{
    const int64_t n = tensor_count(dy);
#pragma omp parallel for schedule(static) num_threads(kc->n_threads)
    for (int64_t i = 0; i < n; i++) {
        const double x = at(g, i), s = sigmoid(x), d = at(dy, i), up = at(u, i);
        if (dg.p) put_add(dg, i, d * up * s * (1 + x * (1 - s)));
        if (du.p) put_add(du, i, d * x * s);
    }
}

/* Phi(x) through erfc, which keeps its digits where 1 + erf cancels. */
static double normal_cdf(double x) { return 0.5 * erfc(-x * 0.70710678118654752440); }
static double normal_pdf(double x) { return 0.39894228040143267794 * exp(-0.5 * x * x); }

void ref_gelu_fwd(struct kctx *kc, struct tensor y, struct tensor x)
{
    const int64_t n = tensor_count(y);
#pragma omp parallel for schedule(static) num_threads(kc->n_threads)
    for (int64_t i = 0; i < n; i++) put(y, i, at(x, i) * normal_cdf(at(x, i)));
}

void ref_gelu_bwd(struct kctx *kc, struct tensor dx, struct tensor dy, struct tensor x)
{
    if (!dx.p) return;
    const int64_t n = tensor_count(dx);
#pragma omp parallel for schedule(static) num_threads(kc->n_threads)
    for (int64_t i = 0; i < n; i++) {
        const double v = at(x, i);
        put_add(dx, i, at(dy, i) * (normal_cdf(v) + v * normal_pdf(v)));
    }
}

static const double quick = 1.702;

void ref_quick_gelu_fwd(struct kctx *kc, struct tensor y, struct tensor x)
{
    const int64_t n = tensor_count(y);
#pragma omp parallel for schedule(static) num_threads(kc->n_threads)
    for (int64_t i = 0; i < n; i++) put(y, i, at(x, i) * sigmoid(quick * at(x, i)));
}

void ref_quick_gelu_bwd(struct kctx *kc, struct tensor dx, struct tensor dy, struct tensor x)
{
    if (!dx.p) return;
    const int64_t n = tensor_count(dx);
#pragma omp parallel for schedule(static) num_threads(kc->n_threads)
    for (int64_t i = 0; i < n; i++) {
        const double v = at(x, i), s = sigmoid(quick * v);
        put_add(dx, i, at(dy, i) * s * (1 + quick * v * (1 - s)));
    }
}
