/* Choosing tokens: the one body for all processors, for it is quick enough. Scratch: none. */
#include "kern/choose.h"

#include <string.h>

#include "kern/ref/real.h"

/* The largest, the first of equals; -1: some are no numbers, or none is possible. */
static int32_t largest(const float *x, int32_t V)
{
    int32_t best = 0;
    bool fine = true;
    for (int32_t i = 0; i < V; i++) {
        fine &= x[i] < INFINITY; /* not NaN either */
        if (x[i] > x[best]) best = i;
    }
    return fine && x[best] > -INFINITY ? best : -1;
}

/* One row while it is being cut: kept are distances below `at`, and of those equal to it the last `n_at` by id. */
struct row {
    const float *x;
    int32_t V;
    float most;
    double scale;
    uint64_t at, n_at;
};

static uint64_t distance(const struct row *r, int32_t i) { return choose_distance(r->x[i], r->most, r->scale); }

/* Sum of the weights of distances up to r->at, which may be all. */
static uint64_t sum_of(const struct row *r)
{
    uint64_t sum = 0;
    for (int32_t i = 0; i < r->V; i++) {
        const uint64_t d = distance(r, i);
        sum += d <= r->at ? choose_weight(d) : 0;
    }
    return sum;
}

/* The distance at which the running sum from the likeliest on, of ones or of weights, reaches target: a digit at a
 * time. *before: the sum of what is nearer. False: all together do not reach it. */
static bool reach(const struct row *r, bool weights, uint64_t target, uint64_t *ret, uint64_t *before)
{
    uint64_t sum[1 << CHOOSE_DIGIT], at = 0, past = 0;
    for (int digit = CHOOSE_DIGITS - 1; digit >= 0; digit--) {
        const int shift = digit * CHOOSE_DIGIT;
        memset(sum, 0, sizeof sum);
        for (int32_t i = 0; i < r->V; i++) {
            const uint64_t d = distance(r, i);
            if (d > r->at || d >= CHOOSE_OUT || (d ^ at) >> shift >> CHOOSE_DIGIT) continue;
            sum[d >> shift & ((1 << CHOOSE_DIGIT) - 1)] += weights ? choose_weight(d) : 1;
        }
        uint64_t k = 0;
        while (k < (1 << CHOOSE_DIGIT) && past + sum[k] < target) past += sum[k++];
        if (k == 1 << CHOOSE_DIGIT) return false;
        at |= k << shift;
    }
    *ret = at;
    *before = past;
    return true;
}

static int32_t choose(const float *x, int32_t V, const struct choice *how)
{
    const int32_t best = largest(x, V);
    if (best < 0 || how->scale <= 0) return best;
    struct row r = { x, V, x[best], how->scale, CHOOSE_OUT, UINT64_MAX };
    uint64_t at, before;
    if (how->top_k > 0 && reach(&r, false, (uint64_t)how->top_k, &at, &before)) r.at = at;
    uint64_t sum = sum_of(&r);
    if (how->rest > 0) {
        const uint64_t target = choose_target(sum, how->rest);
        if (!reach(&r, true, target, &at, &before)) BUG("a part is more than the whole");
        r.at = at;
        r.n_at = (target - before + choose_weight(at) - 1) / choose_weight(at);
        sum = before + r.n_at * choose_weight(at);
    }
    uint64_t skip = 0; /* the first of those at `at` that are left out */
    for (int32_t i = 0; i < V; i++) skip += distance(&r, i) == r.at;
    skip = skip > r.n_at ? skip - r.n_at : 0;
    const uint64_t want = choose_below(sum, how->draw);
    uint64_t seen = 0;
    for (int32_t i = 0; i < V; i++) {
        const uint64_t d = distance(&r, i);
        if (d > r.at || (d == r.at && skip && skip--)) continue;
        seen += choose_weight(d);
        if (seen > want) return i;
    }
    BUG("a part is more than the whole");
}

void ref_choose(struct kctx *kc, struct tensor token, struct tensor logits, struct tensor how)
{
    const int64_t T = tensor_rows(logits), V = tensor_cols(logits);
    ASSERT(logits.type == DT_F32 && V <= CHOOSE_V_MAX);
#pragma omp parallel for schedule(dynamic) num_threads(kc->n_threads) if (T > 1)
    for (int64_t t = 0; t < T; t++) {
        const struct choice *c = tensor_row(how, t);
        if (c->slot >= 0) ((int32_t *)token.p)[c->slot] = choose(tensor_row(logits, t), (int32_t)V, c);
    }
}

void ref_tokens_get(struct kctx *kc, struct tensor y, struct tensor chosen, struct tensor idx)
{
    (void)kc;
    for (int64_t i = 0; i < tensor_count(idx); i++) {
        const int32_t k = ((const int32_t *)idx.p)[i];
        ((int32_t *)y.p)[i] = k < -1 ? ((const int32_t *)chosen.p)[-2 - k] : k;
    }
}
