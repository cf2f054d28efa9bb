/* Choosing tokens: the processor's way and the device's against sorting everything and going through it one by one;
 * and the chances against softmax. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "kern/choose.h"
#include "kern/kern.h"

enum { V_MOST = 3000, T_MOST = 5 };

static void weights_are_powers(void **state)
{
    (void)state;
    struct rng r;
    rng_seed(&r, 1);
    for (int i = 0; i < 100000; i++) {
        const uint64_t d = rng_u64(&r) % ((uint64_t)6 << CHOOSE_FRACTION);
        const double want = 0x1p36 * exp2(-(double)d * 0x1p-30), got = (double)choose_weight(d);
        assert_true(fabs(got - want) <= 2e-9 * want + 1);
    }
    assert_true(choose_weight(0) == (uint64_t)1 << 36);
    assert_true(choose_weight(CHOOSE_OUT - 1) == 1 && choose_weight(CHOOSE_OUT) == 0);
}

static void draws_are_shares(void **state)
{
    (void)state;
    assert_true(choose_below(1, UINT64_MAX) == 0 && choose_below(1000, UINT64_MAX) == 999);
    assert_true(choose_below(1000, (uint64_t)1 << 63) == 500);
    struct rng r;
    rng_seed(&r, 2);
    for (int i = 0; i < 1000; i++) {
        const uint64_t n = rng_u64(&r) >> 6, d = rng_u64(&r);
        assert_true(choose_below(n, d) == (uint64_t)(((__uint128_t)n * d) >> 64));
    }
}

/* ---- the oracle */

struct one { uint64_t d; int id; };

/* The likeliest last; of equals the first first: the order in which top-p takes away. */
static int by_chance(const void *a, const void *b)
{
    const struct one *x = a, *y = b;
    return x->d != y->d ? (x->d < y->d) - (x->d > y->d) : (x->id > y->id) - (x->id < y->id);
}

static int oracle(const float *x, int V, const struct choice *c)
{
    static struct one all[V_MOST];
    static bool kept[V_MOST];
    int best = 0, n = 0;
    for (int i = 0; i < V; i++) {
        if (isnan(x[i]) || x[i] == INFINITY) return -1;
        if (x[i] > x[best]) best = i;
    }
    if (x[best] == -INFINITY) return -1;
    if (c->scale <= 0) return best;
    for (int i = 0; i < V; i++) {
        const struct one o = { choose_distance(x[i], x[best], c->scale), i };
        if (o.d < CHOOSE_OUT) all[n++] = o;
    }
    qsort(all, (size_t)n, sizeof *all, by_chance);
    int from = 0;
    if (c->top_k > 0 && c->top_k < n)
        while (all[from].d > all[n - c->top_k].d) from++;
    uint64_t sum = 0, off = 0;
    for (int i = from; i < n; i++) sum += choose_weight(all[i].d);
    for (const double most = c->rest * (double)sum;
         from < n - 1 && c->rest > 0 && (double)(off + choose_weight(all[from].d)) <= most; from++)
        off += choose_weight(all[from].d);
    memset(kept, 0, sizeof kept);
    for (int i = from; i < n; i++) kept[all[i].id] = true;
    const uint64_t want = choose_below(sum - off, c->draw);
    uint64_t seen = 0;
    for (int i = 0; i < V; i++) {
        if (kept[i]) seen += choose_weight(choose_distance(x[i], x[best], c->scale));
        if (seen > want) return i;
    }
    fail_msg("no token");
    return -1;
}

/* ---- all backends */

/* Rows of logits: normal, of few values (ties), peaked, with impossible ones, and faulty. */
static void fill(struct rng *r, float *x, int V, int kind)
{
    for (int i = 0; i < V; i++) {
        x[i] = (float)rng_normal(r) * (kind == 2 ? 12 : 3);
        if (kind == 1) x[i] = (float)(rng_u64(r) % 4);
        if (kind == 3 && rng_u64(r) % 3) x[i] = -INFINITY;
    }
    if (kind == 3) x[V / 2] = 1;
    if (kind == 4) x[rng_u64(r) % (uint64_t)V] = rng_u64(r) % 2 ? NAN : INFINITY;
    if (kind == 5)
        for (int i = 0; i < V; i++) x[i] = -INFINITY;
}

static struct choice random_choice(struct rng *r, int slot)
{
    static const float temperature[] = { 0, 0.2f, 1, 1, 5 }, top_p[] = { 1, 0.9f, 0.5f, 0.01f, 1e-6f };
    static const int top_k[] = { 0, 1, 7, 50, 100000 };
    return choice_make(temperature[rng_u64(r) % 5], top_k[rng_u64(r) % 5], top_p[rng_u64(r) % 5], rng_u64(r), slot);
}

static void compare(const struct kern *k, struct kctx *kc, struct rng *r, int T, int V)
{
    static float x[T_MOST * V_MOST];
    struct choice how[T_MOST];
    int32_t want[T_MOST], got[T_MOST];
    struct err e;
    void *mem;
    for (int t = 0; t < T; t++) {
        fill(r, x + t * V, V, (int)(rng_u64(r) % 6));
        how[t] = random_choice(r, T - 1 - t); /* rows' tokens go where they are told */
        if (t == 2) how[t].slot = -1;
        want[T - 1 - t] = t == 2 ? 77 : oracle(x + t * V, V, &how[t]);
        got[T - 1 - t] = 77;
    }
    struct tensor logits = tensor_2d(x, DT_F32, T, V), token = tensor_1d(got, DT_I32, T),
                  hows = tensor_2d(how, DT_U8, T, sizeof *how);
    if (kc->dev) {
        assert_int_equal(dev_alloc(&mem, kc->dev, sizeof x + sizeof how + sizeof got + 512, &e), 0);
        logits.p = mem, hows.p = (char *)mem + sizeof x, token.p = (char *)hows.p + 256 * ((sizeof how + 255) / 256);
        dev_put(kc->dev, logits.p, x, tensor_bytes(logits));
        dev_put(kc->dev, hows.p, how, tensor_bytes(hows));
        dev_put(kc->dev, token.p, got, tensor_bytes(token));
    }
    k->choose(kc, token, logits, hows);
    dev_get(kc->dev, got, token.p, tensor_bytes(token));
    if (kc->dev) dev_free(kc->dev, mem, sizeof x + sizeof how + sizeof got + 512);
    for (int t = 0; t < T; t++)
        if (got[t] != want[t]) fail_msg("%s: row %d of %d x %d: %d, not %d", k->name, T - 1 - t, T, V, got[t], want[t]);
}

static void on(const struct kern *k, struct kctx *kc, int rounds)
{
    static const int sizes[] = { 1, 2, 33, 257, 512, 1000, V_MOST };
    struct rng r;
    rng_seed(&r, 5);
    for (int i = 0; i < rounds; i++) compare(k, kc, &r, 1 + (int)(rng_u64(&r) % T_MOST), sizes[i % 7]);
}

static void host(void **state)
{
    (void)state;
    struct kctx kc = { .n_threads = 2 };
    on(&kern_ref, &kc, 700);
}

static void device(void **state)
{
    (void)state;
    const char *kind = strstr(dev_kinds(), ", ");
    struct dev *d = NULL;
    struct err e;
    if (!kind || dev_open(&d, kind + 2, &e) < 0) skip();
    struct kern k;
    struct kctx kc = { .dev = d };
    if (kern_init(&k, d, NULL, &e) < 0) fail_msg("%s", e.msg);
    on(&k, &kc, 70);
    dev_close(d);
}

static void chances_are_softmax(void **state)
{
    (void)state;
    enum { V = 12, DRAWS = 60000 };
    float x[V];
    int n[V] = { 0 };
    double p[V], sum = 0, chi = 0;
    struct rng r;
    rng_seed(&r, 9);
    for (int i = 0; i < V; i++) sum += p[i] = exp((double)(x[i] = (float)rng_normal(&r)) / 0.7);
    struct kctx kc = { .n_threads = 1 };
    for (int i = 0; i < DRAWS; i++) {
        struct choice how = choice_make(0.7f, 0, 1, rng_u64(&r), 0);
        int32_t token;
        kern_ref.choose(&kc, tensor_1d(&token, DT_I32, 1), tensor_2d(x, DT_F32, 1, V),
                        tensor_2d(&how, DT_U8, 1, sizeof how));
        n[token]++;
    }
    for (int i = 0; i < V; i++) chi += pow(n[i] - DRAWS * p[i] / sum, 2) / (DRAWS * p[i] / sum);
    assert_true(chi < 31.3); /* 0.1% of 11 degrees of freedom; the draws are always the same ones */
}

int main(void)
{
    static const struct CMUnitTest tests[] = { cmocka_unit_test(weights_are_powers), cmocka_unit_test(draws_are_shares),
                                               cmocka_unit_test(host), cmocka_unit_test(device),
                                               cmocka_unit_test(chances_are_softmax) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
