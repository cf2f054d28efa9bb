/* The processor's kernels where rows.c, with its small shapes, does not go: products that span several
 * blocks, functions over their whole domain, attention over several sequences in one store; and, with
 * --bench, how fast they are beside what this machine can do.
 *
 *     speed [--bench [threads [isa]]]
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/plat.h"
#include "base/rng.h"
#include "kern/cpu/cpu.h"

static const struct tensor none = { 0 };
static const char *const isas[] = { "avx2", "avx512" };

struct setup {
    struct arena scratch, data;
    struct kctx kc;
    struct kern k;
    struct rng rng;
};

/* Data is dropped by the next call; false where the processor has no such kernels. */
static bool setup_begin(struct setup *s, const char *isa)
{
    if (!s->scratch.base) {
        struct err e;
        if (arena_init(&s->scratch, (size_t)4 << 30, &e) < 0 || arena_init(&s->data, (size_t)8 << 30, &e) < 0)
            fail_msg("%s", e.msg);
    }
    arena_rewind(&s->data, 0);
    rng_seed(&s->rng, 7);
    s->kc = (struct kctx){ .scratch = &s->scratch, .n_threads = 2 };
    return !strcmp(kern_init_cpu(&s->k, isa), isa);
}

static void setup_end(struct setup *s)
{
    arena_fini(&s->scratch);
    arena_fini(&s->data);
}

static struct tensor take(struct setup *s, enum dtype t, int64_t rows, int64_t cols)
{
    struct tensor x = tensor_2d(NULL, t, rows, cols);
    x.p = arena_take(&s->data, tensor_bytes(x));
    return x;
}

/* Uniform in [-1, 1), which costs less than a normal distribution. */
static struct tensor noise(struct setup *s, enum dtype t, int64_t rows, int64_t cols)
{
    struct tensor x = take(s, t, rows, cols);
    const size_t mark = arena_mark(&s->scratch);
    float *f = arena_take(&s->scratch, (size_t)(rows * cols) * sizeof *f);
    for (int64_t i = 0; i < rows * cols; i++) f[i] = (float)(2 * rng_unit(&s->rng) - 1);
    dtype_convert(x.p, t, f, DT_F32, rows * cols);
    arena_rewind(&s->scratch, mark);
    return x;
}

static struct tensor nothing(struct setup *s, int64_t rows, int64_t cols) /* NaN */
{
    struct tensor x = take(s, DT_F32, rows, cols);
    memset(x.p, 0xff, tensor_bytes(x));
    return x;
}

static double value(struct tensor t, int64_t row, int64_t col)
{
    const int64_t i = row * tensor_cols(t) + col;
    if (t.type == DT_F32) return (double)((const float *)t.p)[i];
    const uint16_t h = ((const uint16_t *)t.p)[i];
    return (double)(t.type == DT_F16 ? f16_to_f32(h) : bf16_to_f32(h));
}

/* ---- products */

/* Relative error, root mean square over all corners and some elements between, of y = x w^T + b + res;
 * *coarse: of the same with x rounded to bf16 and exact sums. */
static double product_error(struct setup *s, const struct tensor *a, double *coarse)
{
    const int64_t rows = a[0].n[0], cols = a[0].n[1], in = a[1].n[1];
    double diff = 0, diff16 = 0, all = 0;
    for (int n = 0; n < 400; n++) {
        const int64_t t = n % 4 < 2 ? (n & 1) * (rows - 1) : (int64_t)(rng_u64(&s->rng) % (uint64_t)rows);
        const int64_t o =
            n % 8 < 4 ? (n & 4 ? 0 : cols - 1 - n / 8 % cols) : (int64_t)(rng_u64(&s->rng) % (uint64_t)cols);
        double want = value(a[3], 0, o) + value(a[4], t, o), want16 = want;
        for (int64_t i = 0; i < in; i++) {
            want += value(a[1], t, i) * value(a[2], o, i);
            want16 += (double)bf16_to_f32(f32_to_bf16((float)value(a[1], t, i))) * value(a[2], o, i);
        }
        const double got = value(a[0], t, o);
        diff += (got - want) * (got - want);
        diff16 += (want16 - want) * (want16 - want);
        all += want * want;
    }
    *coarse = sqrt(diff16 / all);
    return sqrt(diff / all);
}

static void check_product(struct setup *s, enum dtype type, enum dtype product, int64_t T, int64_t I,
                          int64_t O)
{
    double coarse;
    s->kc.product = product;
    arena_rewind(&s->data, 0);
    const struct tensor a[] = { nothing(s, T, O), noise(s, DT_F32, T, I), noise(s, type, O, I),
                                noise(s, type, 1, O), noise(s, DT_F32, T, O) };
    s->k.matmul(&s->kc, a[0], a[1], a[2], a[3], a[4]);
    const double e = product_error(s, a, &coarse), exact = 0x1p-24 * (2 + sqrt((double)I) / 4);
    if (!(e <= (product == DT_BF16 && type == DT_BF16 ? 2 * coarse + exact : exact)))
        fail_msg("%s, product %s, T %d I %d O %d: error %.3g", dtype_name(type), dtype_name(product), (int)T,
                 (int)I, (int)O, e);
}

static void test_products_over_blocks(void **state)
{
    static const int64_t shape[][3] = { { 1, 2051, 67 },  { 3, 4099, 33 },   { 16, 1030, 130 },
                                        { 17, 1025, 31 }, { 23, 2050, 100 }, { 25, 5000, 97 },
                                        { 965, 40, 70 },  { 1000, 1100, 35 } };
    struct setup s = { 0 };
    (void)state;
    for (int i = 0; i < 2; i++) {
        if (!setup_begin(&s, isas[i])) continue;
        for (size_t j = 0; j < sizeof shape / sizeof *shape; j++)
            for (enum dtype t = DT_F32; t <= DT_BF16; t++)
                for (int p = 0; p < 2; p++)
                    check_product(&s, t, p ? DT_BF16 : DT_F32, shape[j][0], shape[j][1], shape[j][2]);
    }
    setup_end(&s);
}

/* A token's row has the same bits alone and among others, and nearly the same in the other kernel. */
static void test_rows_do_not_depend_on_tokens(void **state)
{
    enum { I = 1500, O = 90, MOST = 40 };
    struct setup s = { 0 };
    (void)state;
    for (int i = 0; i < 2; i++)
        for (int p = 0; p < 2; p++) {
            if (!setup_begin(&s, isas[i])) continue;
            s.kc.product = p ? DT_BF16 : DT_F32;
            struct tensor x = noise(&s, DT_F32, MOST, I), w = noise(&s, DT_BF16, O, I),
                          alone = nothing(&s, 1, O);
            for (int64_t t = 0; t <= 2 * MOST; t++) { /* t > MOST: the other kernel */
                struct tensor y = nothing(&s, 1 + t % MOST, O);
                s.kc.decode = t < MOST;
                s.k.matmul(&s.kc, y, tensor_slice(x, 0, 1 + t % MOST), w, none, none);
                if (t % MOST == 0) {
                    for (int64_t o = 0; o < O && t; o++) assert_true(fabs(value(y, 0, o) - value(alone, 0, o)) < 1e-4);
                    memcpy(alone.p, y.p, tensor_bytes(alone));
                }
                assert_memory_equal(y.p, alone.p, tensor_bytes(alone));
            }
        }
    setup_end(&s);
}

static void test_products_with_other_threads(void **state)
{
    struct setup s = { 0 };
    (void)state;
    for (int i = 0; i < 2; i++) {
        if (!setup_begin(&s, isas[i])) continue;
        struct tensor x = noise(&s, DT_F32, 50, 700), w = noise(&s, DT_F16, 300, 700);
        struct tensor one = nothing(&s, 50, 300), many = nothing(&s, 50, 300);
        s.kc.n_threads = 1;
        s.k.matmul(&s.kc, one, x, w, none, none);
        s.kc.n_threads = 5;
        s.k.matmul(&s.kc, many, x, w, none, none);
        assert_memory_equal(one.p, many.p, tensor_bytes(one));
    }
    setup_end(&s);
}

/* ---- functions */

static double silu(double x) { return x / (1 + exp(-x)); }
static double gelu(double x) { return x * 0.5 * erfc(-x * 0.70710678118654752440); }
static double quick_gelu(double x) { return x / (1 + exp(-1.702 * x)); }

/* Relative error of f over [-100, 100] and at the ends of f32: 4e-7, and what rounding an argument like 1.702
 * x does to its exponential. Below `least` the result may lose digits or be zero. */
static void check_function(const struct tensor x, const struct tensor y, double (*f)(double),
                           const char *name)
{
    const double least = 1e-34;
    for (int64_t i = 0; i < tensor_count(x); i++) {
        const double at = value(x, 0, i), want = f(at), got = value(y, 0, i);
        const double bound = (4e-7 + 0x1p-23 * fabs(at)) * fabs(want) + least;
        if (isnan(want) ? !isnan(got) : isinf(want) ? got != want : !(fabs(got - want) <= bound))
            fail_msg("%s(%.9g) is %.9g, want %.9g", name, value(x, 0, i), got, want);
    }
}

static void test_functions_over_all_numbers(void **state)
{
    static const float ends[] = { 0,        -0.0f,     1e-45f, -1e-40f, 3e38f, -3e38f,
                                  INFINITY, -INFINITY, NAN,    88.8f,   -88.8f };
    enum { N = 200003, ENDS = sizeof ends / sizeof *ends };
    struct setup s = { 0 };
    (void)state;
    for (int i = 0; i < 2; i++) {
        if (!setup_begin(&s, isas[i])) continue;
        struct tensor x = take(&s, DT_F32, 1, N), one = take(&s, DT_F32, 1, N), y = nothing(&s, 1, N);
        for (int64_t j = 0; j < N; j++) {
            ((float *)x.p)[j] = j < ENDS ? ends[j] : (float)(200.0 * (double)j / N - 100);
            ((float *)one.p)[j] = 1;
        }
        s.k.swiglu_fwd(&s.kc, y, x, one);
        check_function(x, y, silu, "silu");
        s.k.gelu_fwd(&s.kc, y, x);
        check_function(x, y, gelu, "gelu");
        s.k.quick_gelu_fwd(&s.kc, y, x);
        check_function(x, y, quick_gelu, "quick_gelu");
    }
    setup_end(&s);
}

/* ---- attention */

/* Sequences of some tokens each, with memory that was never written between them. */
static void check_sequences(struct setup *s, int64_t sequences, int64_t tokens, enum dtype cache)
{
    enum { H = 4, K = 2, D = 24, ROOM = 150 };
    const int64_t T = sequences * tokens, S = sequences * ROOM;
    struct tensor q = noise(s, DT_F32, T, H * D), k = noise(s, cache, S, K * D),
                  v = noise(s, cache, S, K * D);
    struct tensor range = take(s, DT_I32, T, 2), y = nothing(s, T, H * D), want = nothing(s, T, H * D);
    struct tensor lse = nothing(s, T, H), want_lse = nothing(s, T, H);
    for (int64_t i = 0; i < sequences; i++) {
        const int64_t from = i * ROOM + 3, to = from + tokens + (i * 37) % 100;
        for (int64_t j = 0; j < tokens; j++) {
            ((int32_t *)range.p)[2 * (i * tokens + j)] = (int32_t)from;
            ((int32_t *)range.p)[2 * (i * tokens + j) + 1] = (int32_t)(to - tokens + j + 1);
        }
        for (int64_t r = i * ROOM; r < (i + 1) * ROOM; r++) {
            if (r >= from && r < to) continue;
            memset(tensor_slice(k, r, 1).p, 0xff, tensor_bytes(tensor_slice(k, r, 1)));
            memset(tensor_slice(v, r, 1).p, 0xff, tensor_bytes(tensor_slice(v, r, 1)));
        }
    }
    s->k.attn_fwd(&s->kc, y, lse, q, k, v, range, none, H, 0.3f);
    kern_ref.attn_fwd(&s->kc, want, want_lse, q, k, v, range, none, H, 0.3f);
    for (int64_t t = 0; t < T; t++) {
        for (int64_t i = 0; i < H * D; i++) assert_true(fabs(value(y, t, i) - value(want, t, i)) < 2e-6);
        for (int64_t i = 0; i < H; i++) assert_true(fabs(value(lse, t, i) - value(want_lse, t, i)) < 4e-6);
    }
}

static void test_attention_of_several_sequences(void **state)
{
    struct setup s = { 0 };
    (void)state;
    for (int i = 0; i < 2; i++)
        for (enum dtype t = DT_F32; t <= DT_BF16; t++) {
            if (!setup_begin(&s, isas[i])) continue;
            check_sequences(&s, 7, 1, t);
            check_sequences(&s, 3, 2, t);
            check_sequences(&s, 5, 40, t);
            check_sequences(&s, 1, 140, t);
        }
    setup_end(&s);
}

/* ---- how fast */

static double bench_s(struct setup *s, void (*run)(struct setup *, void *), void *arg)
{
    double best = INFINITY;
    for (int i = 0; i < 8; i++) {
        const double start = plat_now_s();
        run(s, arg);
        best = fmin(best, plat_now_s() - start);
    }
    return best;
}

struct product_bench {
    struct tensor y, x, w;
    int64_t copies; /* of w, one behind the other, so that no run finds it in a cache */
};

static void run_product(struct setup *s, void *arg)
{
    const struct product_bench *b = arg;
    for (int64_t i = 0; i < b->copies; i++) {
        struct tensor w = b->w;
        w.p = (char *)w.p + (size_t)i * tensor_bytes(w);
        s->k.matmul(&s->kc, b->y, b->x, w, none, none);
    }
}

static void bench_product(struct setup *s, enum dtype type, enum dtype product, const int64_t *n,
                          double ceiling)
{
    const int64_t T = n[0], I = n[1], O = n[2];
    arena_rewind(&s->data, 0);
    s->kc.product = product;
    s->kc.decode = T <= 16;
    struct product_bench b = { nothing(s, T, O), noise(s, DT_F32, T, I), noise(s, DT_F32, 64, I), 1 };
    const size_t bytes = (size_t)(O * I) * dtype_bytes(type);
    if (T <= 16) b.copies = (int64_t)((200u << 20) / bytes + 1);
    b.w = take(s, type, b.copies * O, I);
    b.w.n[0] = 64;
    const struct tensor some = noise(s, type, 64, I);
    for (int64_t i = 0; i < b.copies * O; i++) /* 64 rows again and again */
        memcpy((char *)b.w.p + (size_t)(i * I) * dtype_bytes(type),
               (char *)some.p + (size_t)(i % 64 * I) * dtype_bytes(type), (size_t)I * dtype_bytes(type));
    b.w.n[0] = O;
    const double t = bench_s(s, run_product, &b) / (double)b.copies, gbs = (double)bytes / t * 1e-9;
    printf("matmul   %4d x %5d x %5d %-4s %-5s %9.3f ms %7.1f GB/s (%3.0f%% of reading) %7.1f GFLOP/s\n",
           (int)T, (int)I, (int)O, dtype_name(type), product == DT_BF16 ? "bf16" : "", t * 1e3, gbs,
           100 * gbs / ceiling, 2e-9 * (double)(T * I * O) / t);
}

struct attn_bench {
    struct tensor y, q, k, v, range;
    int heads;
};

static void run_attn(struct setup *s, void *arg)
{
    const struct attn_bench *b = arg;
    s->k.attn_fwd(&s->kc, b->y, none, b->q, b->k, b->v, b->range, none, b->heads, 0.1f);
}

static void bench_attn(struct setup *s, const int64_t *n, enum dtype cache)
{
    const int64_t T = n[0], S = n[1], H = n[2], K = n[3], D = n[4], causal = n[5];
    double pairs = 0;
    arena_rewind(&s->data, 0);
    s->kc.decode = T == 1;
    struct attn_bench b = { nothing(s, T, H * D),      noise(s, DT_F32, T, H * D), noise(s, cache, S, K * D),
                            noise(s, cache, S, K * D), take(s, DT_I32, T, 2),      (int)H };
    for (int64_t t = 0; t < T; t++) {
        ((int32_t *)b.range.p)[2 * t] = 0;
        ((int32_t *)b.range.p)[2 * t + 1] = (int32_t)(causal ? S - T + t + 1 : S);
        pairs += ((int32_t *)b.range.p)[2 * t + 1];
    }
    const double t = bench_s(s, run_attn, &b);
    printf("attn_fwd T %d S %d H %d K %d D %d %-4s %9.3f ms %7.1f GB/s %7.1f GFLOP/s\n", (int)T, (int)S,
           (int)H, (int)K, (int)D, dtype_name(cache), t * 1e3, 2e-9 * (double)tensor_bytes(b.k) / t,
           4e-9 * pairs * (double)(H * D) / t);
}

static void bench(const char *isa, int n_threads)
{
    static const int64_t product[][3] = { { 1, 2048, 5632 },   { 1, 4096, 11008 },   { 4, 4096, 11008 },
                                          { 16, 4096, 11008 }, { 32, 4096, 11008 },  { 640, 2048, 2048 },
                                          { 640, 2048, 5632 }, { 640, 5632, 2048 },  { 640, 2048, 256 },
                                          { 640, 4096, 4096 }, { 640, 4096, 11008 }, { 577, 1024, 1024 },
                                          { 577, 1024, 4096 } };
    static const int64_t attn[][6] = { { 577, 577, 16, 16, 64, 0 }, { 640, 640, 32, 32, 64, 1 },
                                       { 640, 640, 32, 4, 64, 1 },  { 1, 2048, 32, 32, 128, 1 },
                                       { 1, 2048, 32, 4, 64, 1 },   { 4, 2048, 32, 32, 128, 1 } };
    struct setup s = { 0 };
    setup_begin(&s, isa ? isa : "avx512");
    kern_init_cpu(&s.k, isa);
    const double ceiling = cpu_read_ceiling(n_threads);
    s.kc.n_threads = n_threads;
    printf("%s, %d threads, reading %.1f GB/s\n", s.k.name, n_threads, ceiling);
    for (size_t i = 0; i < sizeof product / sizeof *product; i++)
        for (enum dtype t = DT_F32; t <= DT_BF16; t++) {
            bench_product(&s, t, DT_F32, product[i], ceiling);
            if (t == DT_BF16) bench_product(&s, t, DT_BF16, product[i], ceiling);
        }
    for (size_t i = 0; i < sizeof attn / sizeof *attn; i++)
        bench_attn(&s, attn[i], attn[i][0] > 16 ? DT_F32 : DT_BF16);
    setup_end(&s);
}

int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "--bench")) {
        bench(argc > 3 ? argv[3] : NULL, argc > 2 ? atoi(argv[2]) : plat_threads());
        return 0;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_products_over_blocks),
        cmocka_unit_test(test_rows_do_not_depend_on_tokens),
        cmocka_unit_test(test_products_with_other_threads),
        cmocka_unit_test(test_functions_over_all_numbers),
        cmocka_unit_test(test_attention_of_several_sequences),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
