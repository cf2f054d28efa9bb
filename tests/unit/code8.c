/* Moments in 8 bits: the codes, and a step of AdamW with them. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "dev/dev.h"
#include "kern/code8.h"

static void every_code_is_its_own(void **state)
{
    (void)state;
    for (int s = 0; s < 2; s++)
        for (int c = 0; c < 256; c++) assert_int_equal(code8_of(code8_value((uint8_t)c, s), s), c);
}

/* Built as the paper's authors do: linspace(0.1, 1, n + 1) in each decade, middles of neighbours. */
static int table(float *out, bool is_signed)
{
    int n = 0;
    for (int e = 0; e < 7; e++) {
        const int bins = is_signed ? 1 << e : 2 << e;
        for (int j = 0; j < bins; j++) {
            const double from = 0.1 + 0.9 * j / bins, to = 0.1 + 0.9 * (j + 1) / bins;
            out[n++] = (float)(pow(10, e - 6) * (from + to) / 2);
            if (is_signed) out[n] = -out[n - 1], n++;
        }
    }
    out[n++] = 0;
    out[n++] = 1;
    return n;
}

static int rising(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void the_values_are_the_papers(void **state)
{
    (void)state;
    for (int s = 0; s < 2; s++) {
        float want[256], got[256];
        assert_int_equal(table(want, s), 256);
        for (int c = 0; c < 256; c++) got[c] = code8_value((uint8_t)c, s);
        qsort(want, 256, sizeof *want, rising);
        qsort(got, 256, sizeof *got, rising);
        for (int i = 0; i < 256; i++) assert_true(fabsf(want[i] - got[i]) <= 1e-6f * fabsf(want[i]));
    }
}

/* A number is never farther from its code's value than the width of a bin. */
static void codes_are_near(void **state)
{
    (void)state;
    struct rng r;
    rng_seed(&r, 1);
    for (int i = 0; i < 200000; i++) {
        const float x = (float)(pow(10, -8 * rng_unit(&r)) * (rng_unit(&r) < 0.5 ? -1 : 1));
        for (int s = 0; s < 2; s++) {
            if (!s && x < 0) continue;
            const float a = fabsf(x), y = code8_value(code8_of(x, s), s);
            const float decade = powf(10, ceilf(log10f(a)));
            const float bin = 0.9f * decade / (float)((s ? 64 : 128) * fmaxf(decade, 1e-6f));
            assert_true(fabsf(x - y) <= fmaxf(1.01f * bin, 6e-7f));
        }
    }
    assert_int_equal(code8_of(3, true), 0x80);
    assert_int_equal(code8_of(-3, true), 0xff);
    assert_int_equal(code8_of(0, true), 0);
}

static void rounding_keeps_the_mean(void **state)
{
    (void)state;
    const float x = 1.0f + 0.3f / 128; /* three tenths of the way to the next bf16 */
    int up = 0;
    for (uint32_t i = 0; i < 100000; i++) up += bf16_to_f32(kern_bf16_random(x, kern_drop_hash(9, i))) > 1;
    assert_true(abs(up - 30000) < 600); /* four deviations */
    assert_int_equal(kern_bf16_random(-2.5f, 0xffff), f32_to_bf16(-2.5f));
    assert_true(isinf(bf16_to_f32(kern_bf16_random(INFINITY, 0xffff))));
    assert_true(isnan(bf16_to_f32(kern_bf16_random(NAN, 1))));
}

enum { N = 1000, STEPS = 400 };

/* Minimises sum of c (w - target)^2 / 2 with noise; returns the mean of the last losses by the first one. */
static double descend(struct tensor w, bool eight)
{
    static float m[N], v[N], g[N], ms[4], vs[4];
    static uint8_t m8[N], v8[N];
    struct kctx kc = { .n_threads = 2 };
    struct rng r;
    double sum = 0, first = 0;
    memset(m, 0, sizeof m), memset(v, 0, sizeof v), memset(ms, 0, sizeof ms), memset(vs, 0, sizeof vs);
    memset(m8, 0, sizeof m8), memset(v8, 0, sizeof v8);
    rng_seed(&r, 5);
    for (int i = 0; i < N; i++) ((float *)w.p)[i] = 0;
    for (int t = 1; t <= STEPS; t++) {
        double loss = 0;
        for (int i = 0; i < N; i++) {
            const double c = 0.1 + i % 17, d = ((float *)w.p)[i] - sin(i);
            loss += c * d * d / 2;
            g[i] = (float)(c * d + 0.1 * rng_normal(&r));
        }
        if (t == 1) first = loss;
        if (t > STEPS - 20) sum += loss / 20;
        const struct adamw a = { .lr = 0.02f * (1 - (float)t / STEPS),
                                 .beta1 = 0.9f,
                                 .beta2 = 0.999f,
                                 .eps = 1e-8f,
                                 .scale = 1,
                                 .fix1 = 1 - powf(0.9f, (float)t),
                                 .fix2 = 1 - powf(0.999f, (float)t) };
        struct tensor tm = tensor_1d(m, DT_F32, N), tv = tensor_1d(v, DT_F32, N),
                      tg = tensor_1d(g, DT_F32, N);
        struct tensor none = { 0 }, tms = tensor_1d(ms, DT_F32, 4), tvs = tensor_1d(vs, DT_F32, 4);
        if (eight)
            kern_ref.adamw8(&kc, w, tensor_1d(m8, DT_U8, N), tms, tensor_1d(v8, DT_U8, N), tvs, tg, &a);
        else
            kern_ref.adamw(&kc, w, tm, tv, none, tg, &a);
    }
    return sum / first;
}

static void eight_bits_learn_as_well(void **state)
{
    (void)state;
    static float w[N];
    const double full = descend(tensor_1d(w, DT_F32, N), false),
                 eight = descend(tensor_1d(w, DT_F32, N), true);
    print_message("# loss after %d steps: %.2g of the first with 32 bits, %.2g with 8\n", STEPS, full, eight);
    assert_true(full < 1e-4 && eight < 2 * full); /* what is left is the noise of the last steps */
}

/* A step with every code, in both types of weights, blocks that are full and one that is not. */
static void the_processor_does_the_same(void **state)
{
    (void)state;
    enum { n = 1 << 16 | 77, blocks = (n + KERN_BLOCK8 - 1) / KERN_BLOCK8 };
    static float w[2][n], g[n], ms[2][blocks], vs[2][blocks];
    static uint16_t low[2][n];
    static uint8_t m[2][n], v[2][n];
    struct kern k;
    struct rng r;
    struct kctx kc = { .n_threads = 2 };
    kern_init_cpu(&k, NULL);
    rng_seed(&r, 4);
    for (int i = 0; i < n; i++) {
        w[0][i] = (float)rng_normal(&r);
        g[i] = i % 999 ? (float)(rng_normal(&r) * pow(10, -9 * rng_unit(&r))) : 0;
        low[0][i] = f32_to_bf16(w[0][i]);
        m[0][i] = (uint8_t)rng_u64(&r), v[0][i] = (uint8_t)rng_u64(&r);
    }
    for (int i = 0; i < blocks; i++) ms[0][i] = i ? (float)rng_unit(&r) : 0, vs[0][i] = i ? (float)rng_unit(&r) : 0;
    for (int i = KERN_BLOCK8; i < 2 * KERN_BLOCK8; i++) g[i] = i % 2 ? INFINITY : NAN;
    memcpy(w[1], w[0], sizeof w[0]), memcpy(low[1], low[0], sizeof low[0]);
    memcpy(m[1], m[0], sizeof m[0]), memcpy(v[1], v[0], sizeof v[0]);
    memcpy(ms[1], ms[0], sizeof ms[0]), memcpy(vs[1], vs[0], sizeof vs[0]);
    const struct adamw a = { .lr = 0.01f, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .scale = 0.7f, .fix1 = 0.1f,
                             .fix2 = 0.001f, .decay = 0.1f, .key = 77 };
    for (int bf16 = 0; bf16 < 2; bf16++) {
        for (int i = 0; i < 2; i++)
            (i ? k.adamw8 : kern_ref.adamw8)(
                &kc, bf16 ? tensor_1d(low[i], DT_BF16, n) : tensor_1d(w[i], DT_F32, n), tensor_1d(m[i], DT_U8, n),
                tensor_1d(ms[i], DT_F32, blocks), tensor_1d(v[i], DT_U8, n), tensor_1d(vs[i], DT_F32, blocks),
                tensor_1d(g, DT_F32, n), &a);
        /* that a number is none is the same, its bits are not */
        for (int i = 0; i < n; i++) assert_true(w[0][i] == w[1][i] || (isnan(w[0][i]) && isnan(w[1][i])));
        for (int i = 0; i < n; i++)
            assert_true(low[0][i] == low[1][i] || (isnan(bf16_to_f32(low[0][i])) && isnan(bf16_to_f32(low[1][i]))));
        assert_memory_equal(m[0], m[1], n);
        assert_memory_equal(v[0], v[1], n);
    }
}

/* One step on the device, which exists in builds with a GPU, and the same one here. */
static void a_device_does_the_same(void **state)
{
    (void)state;
    struct dev *d = NULL;
    struct err e;
    if (dev_open(&d, "auto", &e) < 0 || !d) skip();
    enum { n = 1000 + 7, blocks = (n + KERN_BLOCK8 - 1) / KERN_BLOCK8 };
    struct kern k;
    struct arena mem, scratch;
    assert_true(kern_init(&k, d, NULL, &e) >= 0 && dev_arena(&mem, d, 1 << 20, &e) >= 0 &&
                dev_arena(&scratch, d, 1 << 20, &e) >= 0);
    struct kctx here = { .n_threads = 1 }, there = { .scratch = &scratch, .n_threads = 1, .dev = d };
    static float w[n], g[n], ms[blocks], vs[blocks], w2[n], ms2[blocks];
    static uint8_t m[n], v[n], m2[n];
    struct rng r;
    rng_seed(&r, 3);
    for (int i = 0; i < n; i++)
        w[i] = (float)rng_normal(&r), g[i] = (float)rng_normal(&r), m[i] = (uint8_t)rng_u64(&r),
        v[i] = (uint8_t)rng_u64(&r);
    for (int i = 0; i < blocks; i++) ms[i] = (float)rng_unit(&r), vs[i] = (float)rng_unit(&r);
    struct tensor t[6] = { tensor_1d(w, DT_F32, n),       tensor_1d(m, DT_U8, n),
                           tensor_1d(ms, DT_F32, blocks), tensor_1d(v, DT_U8, n),
                           tensor_1d(vs, DT_F32, blocks), tensor_1d(g, DT_F32, n) },
                  u[6];
    for (int i = 0; i < 6; i++) {
        u[i] = t[i];
        u[i].p = arena_take(&mem, tensor_bytes(t[i]));
        dev_put(d, u[i].p, t[i].p, tensor_bytes(t[i]));
    }
    const struct adamw a = { .lr = 0.01f,
                             .beta1 = 0.9f,
                             .beta2 = 0.99f,
                             .eps = 1e-8f,
                             .scale = 0.7f,
                             .fix1 = 0.1f,
                             .fix2 = 0.01f,
                             .decay = 0.1f };
    kern_ref.adamw8(&here, t[0], t[1], t[2], t[3], t[4], t[5], &a);
    k.adamw8(&there, u[0], u[1], u[2], u[3], u[4], u[5], &a);
    dev_get(d, w2, u[0].p, sizeof w2);
    dev_get(d, m2, u[1].p, sizeof m2);
    dev_get(d, ms2, u[2].p, sizeof ms2);
    int other = 0;
    for (int i = 0; i < n; i++) {
        assert_true(fabsf(w[i] - w2[i]) <= 1e-6f * (1 + fabsf(w[i])));
        other +=
            m[i] != m2[i]; /* products and sums may be rounded once or twice: a bin's edge may be crossed */
    }
    for (int i = 0; i < blocks; i++) assert_true(fabsf(ms[i] - ms2[i]) <= 1e-6f * ms[i]);
    assert_true(other <= n / 100);
    arena_fini(&mem);
    arena_fini(&scratch);
    dev_close(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_code_is_its_own),    cmocka_unit_test(the_values_are_the_papers),
        cmocka_unit_test(codes_are_near),           cmocka_unit_test(rounding_keeps_the_mean),
        cmocka_unit_test(eight_bits_learn_as_well), cmocka_unit_test(the_processor_does_the_same),
        cmocka_unit_test(a_device_does_the_same),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
