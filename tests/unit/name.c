/* Distances between names. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/name.h"

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

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_distance) };
    return cmocka_run_group_tests_name("name", tests, NULL, NULL);
}
