/* Pictures that are made to look otherwise. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "train/augment.h"

enum { S = 56, N = 3 * S * S, TIMES = 400 };

/* The left half of one colour, the right of another, as a tower reads them. */
static void halves(float *x, const struct clip_processor *p, const double left[3], const double right[3])
{
    for (int i = 0; i < N; i++) {
        const int c = i / (S * S);
        x[i] = (float)(((i % S < S / 2 ? left[c] : right[c]) - p->mean[c]) / p->std[c]);
    }
}

static double value(const float *x, const struct clip_processor *p, int i)
{
    return (double)x[i] * p->std[i / (S * S)] + p->mean[i / (S * S)];
}

/* Mean of channel c in the columns [from, to). */
static double mean(const float *x, const struct clip_processor *p, int c, int from, int to)
{
    double sum = 0;
    for (int y = 0; y < S; y++)
        for (int j = from; j < to; j++) sum += value(x, p, (c * S + y) * S + j);
    return sum / (S * (to - from));
}

static void the_key_tells_it_all(void **state)
{
    static const double dark[3] = { 0.1, 0.2, 0.3 }, light[3] = { 0.9, 0.8, 0.6 };
    static float a[N], b[N], old[N];
    struct clip_processor p;
    struct err e;
    int changed = 0;
    (void)state;
    clip_processor_default(&p, S);
    halves(old, &p, dark, light);
    for (uint64_t key = 1; key <= 50; key++) {
        memcpy(a, old, sizeof a);
        memcpy(b, old, sizeof b);
        assert_int_equal(augment(a, S, &p, MAY_MIRROR | MAY_RECOLOUR, key, &e), 0);
        assert_int_equal(augment(b, S, &p, MAY_MIRROR | MAY_RECOLOUR, key, &e), 0);
        assert_memory_equal(a, b, sizeof a);
        for (int i = 0; i < N; i++) assert_true(value(a, &p, i) >= -1e-5 && value(a, &p, i) <= 1 + 1e-5);
        memcpy(b, old, sizeof b);
        assert_int_equal(augment(b, S, &p, MAY_MIRROR | MAY_RECOLOUR, key + 1, &e), 0);
        changed += memcmp(a, b, sizeof a) != 0 && memcmp(a, old, sizeof a) != 0;
    }
    assert_int_equal(changed, 50);
}

/* Sides and colours change only where they may. */
static void what_may_not_change_stays(void **state)
{
    static const double red[3] = { 0.9, 0.1, 0.1 }, black[3] = { 0, 0, 0 };
    static float x[N];
    struct clip_processor p;
    struct err e;
    (void)state;
    clip_processor_default(&p, S);
    for (unsigned may = 0; may < 4; may++) {
        int mirrored = 0, other = 0;
        for (uint64_t key = 1; key <= TIMES; key++) {
            halves(x, &p, black, red);
            assert_int_equal(augment(x, S, &p, may, key, &e), 0);
            const double left = mean(x, &p, 0, 0, S / 4) + mean(x, &p, 1, 0, S / 4) + mean(x, &p, 2, 0, S / 4);
            const double right =
                mean(x, &p, 0, S - S / 4, S) + mean(x, &p, 1, S - S / 4, S) + mean(x, &p, 2, S - S / 4, S);
            const double r = mean(x, &p, 0, 0, S), g = mean(x, &p, 1, 0, S), b = mean(x, &p, 2, 0, S);
            mirrored += left > right + 0.2;
            other += !(r > g && r > b);
        }
        /* a box in a bright colour may fall on the dark half, and mirror's lot is 0.3 of all */
        if (may & MAY_MIRROR) assert_in_range(mirrored, TIMES / 6, TIMES / 2);
        else assert_in_range(mirrored, 0, TIMES / 25);
        if (may & MAY_RECOLOUR) assert_in_range(other, TIMES / 50, TIMES / 3);
        else assert_in_range(other, 0, TIMES / 100);
    }
}

/* A processor that does not normalise, or leaves bytes as they are. */
static void other_processors(void **state)
{
    static float x[N];
    struct clip_processor p;
    struct err e;
    (void)state;
    clip_processor_default(&p, S);
    p.do_normalize = false;
    for (int bytes = 0; bytes < 2; bytes++) {
        const float most = bytes ? 255 : 1;
        p.do_rescale = !bytes;
        for (int i = 0; i < N; i++) x[i] = most * (float)(i % 7) / 6;
        assert_int_equal(augment(x, S, &p, 0, 9, &e), 0);
        float high = 0;
        for (int i = 0; i < N; i++) {
            assert_true(x[i] >= 0 && x[i] <= most * 1.00001f);
            if (x[i] > high) high = x[i];
        }
        assert_true(high > most / 3);
    }
}

/* Of a twin something comes in as often as is said, from each of them alike, and nothing that is in neither. */
static void twins_come_in(void **state)
{
    enum { KEYS = 4000, TWINS = 4 };
    static float x[N], twin[N];
    int none = 0, blends = 0, boxes = 0, of[TWINS] = { 0 };
    (void)state;
    for (int i = 0; i < N; i++) twin[i] = 1;
    assert_int_equal(augment_twin(1, 0), -1);
    for (uint64_t key = 1; key <= KEYS; key++) {
        const int which = augment_twin(key, TWINS);
        if (which < 0) {
            none++;
            continue;
        }
        int old = 0, changed = 0, between = 0;
        of[which]++;
        memset(x, 0, sizeof x);
        augment_mix(x, twin, S, key);
        for (int i = 0; i < N; i++) {
            old += x[i] == 0;
            changed += x[i] == 1;
            between += x[i] >= 0.3f && x[i] <= 0.7f;
        }
        assert_true(between == N || old + changed == N);
        blends += between == N;
        if (between != N) assert_in_range(changed, N / 14, N / 2), boxes++;
    }
    assert_in_range(none, KEYS * 70 / 100, KEYS * 76 / 100);
    assert_in_range(blends, KEYS * 9 / 100, KEYS * 15 / 100);
    assert_in_range(boxes, KEYS * 12 / 100, KEYS * 18 / 100);
    for (int i = 0; i < TWINS; i++) assert_in_range(of[i], (KEYS - none) / 5, (KEYS - none) / 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_key_tells_it_all), cmocka_unit_test(what_may_not_change_stays),
        cmocka_unit_test(other_processors), cmocka_unit_test(twins_come_in),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
