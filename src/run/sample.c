/* See sample.h. */
#include "run/sample.h"

#include <math.h>
#include <stdlib.h>

int sampler_init(struct sampler *s, int n, struct err *e)
{
    *s = (struct sampler){ .top_p = 1, .n = n };
    s->p = malloc((size_t)n * sizeof *s->p);
    s->order = malloc((size_t)n * sizeof *s->order);
    return s->p && s->order ? 0 : err_set(e, ERR_NOMEM, "no memory for a sampler");
}

void sampler_fini(struct sampler *s)
{
    free(s->p);
    free(s->order);
    *s = (struct sampler){ 0 };
}

static int32_t greedy(const float *x, int n)
{
    int32_t best = 0;
    for (int i = 0; i < n; i++) {
        if (isnan(x[i]) || x[i] == INFINITY) return -1;
        if (x[i] > x[best]) best = i;
    }
    return best;
}

/* Moves the k largest of p[order[0..n)] to the front (quickselect); order among them is not fixed. */
static void select_top(const float *p, int32_t *order, int n, int k)
{
    int lo = 0, hi = n - 1;
    while (lo < hi) {
        float pivot = p[order[lo + (hi - lo) / 2]];
        int i = lo, j = hi;
        while (i <= j) {
            while (p[order[i]] > pivot) i++;
            while (p[order[j]] < pivot) j--;
            if (i <= j) {
                int32_t t = order[i];
                order[i++] = order[j];
                order[j--] = t;
            }
        }
        if (k - 1 <= j) hi = j;
        else if (k - 1 >= i) lo = i;
        else return;
    }
}

/* Ascending, so that what top-p removes comes first; equal values by id, to be the same everywhere. */
static void sort_up(const float *p, int32_t *order, int n)
{
    for (int gap = n / 2; gap > 0; gap = gap == 2 ? 1 : gap * 5 / 11) /* shell sort: no context pointer needed */
        for (int i = gap; i < n; i++) {
            int32_t v = order[i];
            int j = i;
            while (j >= gap && (p[order[j - gap]] > p[v] || (p[order[j - gap]] == p[v] && order[j - gap] > v))) {
                order[j] = order[j - gap];
                j -= gap;
            }
            order[j] = v;
        }
}

/* p = softmax of the n logits in order; returns nothing left out. */
static void softmax(float *p, const int32_t *order, int n)
{
    float most = -INFINITY;
    double sum = 0;
    for (int i = 0; i < n; i++) most = fmaxf(most, p[order[i]]);
    for (int i = 0; i < n; i++) sum += p[order[i]] = expf(p[order[i]] - most);
    for (int i = 0; i < n; i++) p[order[i]] = (float)(p[order[i]] / sum);
}

int32_t sampler_next(struct sampler *s, const float *logits)
{
    int32_t best = greedy(logits, s->n);
    if (best < 0 || s->temperature <= 0) return best;
    int n = s->n;
    for (int i = 0; i < n; i++) {
        s->p[i] = logits[i] / s->temperature;
        s->order[i] = i;
    }
    if (s->top_k > 0 && s->top_k < n) {
        select_top(s->p, s->order, n, s->top_k);
        float least = INFINITY;
        for (int i = 0; i < s->top_k; i++) least = fminf(least, s->p[s->order[i]]);
        n = 0;
        for (int i = 0; i < s->n; i++) /* by value, so that ties with the k-th stay */
            if (s->p[i] >= least) s->order[n++] = i;
    }
    sort_up(s->p, s->order, n);
    softmax(s->p, s->order, n);
    int from = 0;
    if (s->top_p < 1) {
        double sum = 0;
        while (from < n - 1 && (sum += s->p[s->order[from]]) <= 1 - (double)s->top_p) from++;
    }
    double total = 0, sum = 0;
    for (int i = from; i < n; i++) total += s->p[s->order[i]];
    double at = rng_unit(&s->rng) * total;
    for (int i = n - 1; i > from; i--) /* from the likeliest down: most draws end at once */
        if ((sum += s->p[s->order[i]]) > at) return s->order[i];
    return s->order[from];
}
