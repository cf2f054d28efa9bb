/* What people type: names that may be mistyped, and sizes; and the middle of what was measured. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/median.h"
#include "base/name.h"
#include "base/size.h"

static void test_distance(void **state)
{
    static const struct {
        const char *a, *b;
        int edits;
    } rows[] = {
        { "", "", 0 },           { "run", "run", 0 },         { "", "chat", 4 },       { "chat", "", 4 },
        { "rum", "run", 1 },     { "rn", "run", 1 },          { "runn", "run", 1 },    { "trian", "train", 2 },
        { "kitten", "sitting", 3 }, { "saturday", "sunday", 3 }, { "abc", "xyz", 3 }, { "an", "na", 2 },
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        assert_int_equal(name_distance(rows[i].a, rows[i].b), rows[i].edits);
        assert_int_equal(name_distance(rows[i].b, rows[i].a), rows[i].edits);
    }
    char lots[100] = "";
    memset(lots, 'a', 62);
    assert_int_equal(name_distance("a", lots), 61);
    lots[62] = 'a';
    assert_int_equal(name_distance("a", lots), 99);
}

static void test_median(void **state)
{
    double odd[] = { 3, 1, 2 }, even[] = { 4, 1, 10, 2 }, one[] = { 7 };
    (void)state;
    assert_true(median(odd, 3) == 2 && median(even, 4) == 3 && median(one, 1) == 7);
    assert_true(even[0] == 1 && even[3] == 10); /* sorted in place */
}

static void test_sizes(void **state)
{
    static const struct {
        const char *text;
        double bytes; /* 0: none */
    } rows[] = {
        { "1", 1 },          { "4096", 4096 },  { "5GB", 5e9 },      { "48g", 48e9 },  { "1.5TiB", 1.5 * 0x1p40 },
        { "2 KiB", 2048 },   { "7kb", 7000 },   { "1Mi", 1048576 },  { "12B", 12 },    { "1e3", 1000 },
        { "0", 0 },          { "", 0 },         { "much", 0 },       { "5GBs", 0 },    { "-1", 0 },
        { "5 5", 0 },        { "1e30", 0 },     { "nan", 0 },        { "inf", 0 },     { "0x10", 0 },
        { "0.2", 0 },        { "GB", 0 },       { " 5G", 0 },        { "5i", 0 },      { "999999999T", 0 },
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        size_t got = 0;
        assert_int_equal(size_read(&got, rows[i].text), rows[i].bytes > 0);
        assert_true((double)got == rows[i].bytes);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_distance), cmocka_unit_test(test_sizes),
                                        cmocka_unit_test(test_median) };
    return cmocka_run_group_tests_name("name", tests, NULL, NULL);
}
