/* Quantised rows: exactness, order of elements, the error of 4 bits beside NF4's, edges. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "tensor/quant.h"
#include "tensor/tensor.h"

static const enum dtype types[] = { DT_Q8, DT_Q4 };

static void *row_new(enum dtype t, int64_t n)
{
    void *row = malloc(quant_row_bytes(t, n));
    assert_non_null(row);
    return row;
}

/* Whole levels times a scale come back exactly, whatever the row's length, and one by one. */
static void test_exact(void **state)
{
    (void)state;
    const int64_t lengths[] = { 1, 2, 31, 32, 33, 63, 64, 65, 200, 4096 };
    for (int k = 0; k < 2; k++)
        for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++) {
            const int64_t n = lengths[l];
            float *x = malloc((size_t)n * sizeof *x), *y = malloc((size_t)n * sizeof *y);
            char *row = row_new(types[k], n);
            for (int64_t i = 0; i < n; i++) /* the ends of the levels are in every group */
                x[i] = 0.0625f * (float)(k ? quant_level[(i * 7 + 15) % 16] : (i * 37 + 127) % 255 - 127);
            for (int64_t g = 0; g < n; g += 64) x[g] = 0.0625f * (k ? 33 : 127);
            quant_row(row, types[k], x, DT_F32, n);
            dequant_row(y, types[k], row, n);
            for (int64_t i = 0; i < n; i++) {
                assert_true(x[i] == y[i]);
                assert_true(quant_at(row, types[k], n, i) == y[i]);
            }
            assert_int_equal(quant_row_bytes(types[k], n) % QUANT_ALIGN, 0);
            free(x), free(y), free(row);
        }
}

/* Where a group's bytes are, as the header says. */
static void test_layout(void **state)
{
    (void)state;
    float x[128] = { 0 };
    uint8_t row[256];
    x[0] = 33, x[32] = -30, x[64] = 66, x[65] = -60;
    quant_row(row, DT_Q4, x, DT_F32, 128);
    assert_int_equal(row[0], 15 | 0 << 4);
    assert_int_equal(row[1], 7 | 7 << 4); /* the level 0 */
    assert_int_equal(row[32] & 15, 15);
    const uint16_t *scale = (const uint16_t *)(const void *)(row + 64);
    assert_int_equal(scale[0], f32_to_f16(1));
    assert_int_equal(scale[1], f32_to_f16(2));
    x[0] = 127, x[1] = -127, x[64] = 254, x[65] = 0;
    quant_row(row, DT_Q8, x, DT_F32, 128);
    assert_int_equal((int8_t)row[0], 127);
    assert_int_equal((int8_t)row[1], -127);
    scale = (const uint16_t *)(const void *)(row + 128);
    assert_int_equal(scale[0], f32_to_f16(1));
    assert_int_equal(scale[1], f32_to_f16(2));
}

/* NF4 of arXiv:2305.14314: groups of 64 scaled by their largest magnitude, which is kept exactly here. */
static double nf4_error(const float *x, int64_t n)
{
    static const float level[16] = { -1.0f,        -0.69619280f, -0.52507305f, -0.39491749f, -0.28444138f, -0.18477343f,
                                     -0.09105004f, 0.0f,         0.07958030f,  0.16093020f,  0.24611230f,  0.33791524f,
                                     0.44070983f,  0.56261700f,  0.72295684f,  1.0f };
    double sum = 0;
    for (int64_t g = 0; g < n; g += 64) {
        float top = 0;
        for (int i = 0; i < 64; i++) top = fmaxf(top, fabsf(x[g + i]));
        for (int i = 0; i < 64; i++) {
            float best = INFINITY;
            for (int c = 0; c < 16; c++) best = fminf(best, fabsf(x[g + i] - level[c] * top));
            sum += (double)best * (double)best;
        }
    }
    return sum;
}

static double our_error(const float *x, int64_t n, enum dtype t)
{
    float *y = malloc((size_t)n * sizeof *y);
    void *row = row_new(t, n);
    double sum = 0;
    quant_row(row, t, x, DT_F32, n);
    dequant_row(y, t, row, n);
    for (int64_t i = 0; i < n; i++) sum += ((double)x[i] - y[i]) * ((double)x[i] - y[i]);
    free(y), free(row);
    return sum;
}

/* Normal weights, and heavy tails: the product of two. */
static void test_error(void **state)
{
    (void)state;
    enum { N = 1 << 17 };
    float *x = malloc(N * sizeof *x);
    struct rng r;
    rng_seed(&r, 5);
    for (int tails = 0; tails < 2; tails++) {
        double power = 0;
        for (int i = 0; i < N; i++) {
            x[i] = (float)(0.02 * rng_normal(&r) * (tails ? 1 + rng_normal(&r) / 2 : 1));
            power += (double)x[i] * (double)x[i];
        }
        const double nf4 = nf4_error(x, N), ours = our_error(x, N, DT_Q4);
        print_message("4 bits: error %.3f%% of the power, NF4 %.3f%%\n", 100 * ours / power, 100 * nf4 / power);
        assert_true(ours < 0.9 * nf4);
        assert_true(our_error(x, N, DT_Q8) < 1e-4 * power);
    }
    free(x);
}

static void test_edges(void **state)
{
    (void)state;
    float x[64] = { 0 }, y[64];
    char row[256];
    enum dtype t;
    for (int k = 0; k < 2; k++) {
        memset(x, 0, sizeof x);
        quant_row(row, types[k], x, DT_F32, 64); /* nothing but zeros */
        dequant_row(y, types[k], row, 64);
        for (int i = 0; i < 64; i++) assert_true(y[i] == 0);
        x[5] = 1e30f; /* past the scales */
        x[6] = -1e-30f;
        quant_row(row, types[k], x, DT_F32, 64);
        dequant_row(y, types[k], row, 64);
        assert_true(isfinite(y[5]) && y[5] > 1e6f && y[6] == 0);
        for (int f = 0; f < 3; f++) { /* what is not finite is not lost, and stays in its group */
            const float fault[] = { NAN, INFINITY, -INFINITY };
            float two[128] = { 1 }, back[128];
            two[70] = fault[f];
            quant_row(row, types[k], two, DT_F32, 128);
            dequant_row(back, types[k], row, 128);
            assert_true(fabsf(back[0] - 1) < 1e-3f && isnan(back[64]) && isnan(back[70]) && isnan(back[127]));
        }
        assert_int_equal(quant_find(&t, 100, (int64_t)quant_row_bytes(types[k], 100)), 0);
        assert_int_equal(t, types[k]);
    }
    assert_true(quant_find(&t, 100, 100) < 0);
}

/* Rows from any float type are those of the same values in f32. */
static void test_types(void **state)
{
    (void)state;
    enum { R = 3, C = 100 };
    static const enum dtype from[] = { DT_BF16, DT_F16, DT_F64 };
    struct rng r;
    float f[R * C];
    double wide[R * C];
    rng_seed(&r, 6);
    for (int i = 0; i < R * C; i++) f[i] = (float)rng_normal(&r);
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < 3; i++) {
            float same[R * C];
            dtype_convert(wide, from[i], f, DT_F32, R * C);
            dtype_convert(same, DT_F32, wide, from[i], R * C);
            struct tensor a = tensor_2d(NULL, types[k], R, C), b = a;
            a.p = calloc(1, tensor_bytes(a));
            b.p = calloc(1, tensor_bytes(b));
            tensor_convert(a, tensor_2d(wide, from[i], R, C));
            tensor_convert(b, tensor_2d(same, DT_F32, R, C));
            assert_memory_equal(a.p, b.p, tensor_bytes(a));
            assert_ptr_equal(tensor_slice(a, 2, 1).p, (char *)a.p + 2 * quant_row_bytes(types[k], C));
            free(a.p), free(b.p);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exact), cmocka_unit_test(test_layout), cmocka_unit_test(test_error),
        cmocka_unit_test(test_edges), cmocka_unit_test(test_types),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
