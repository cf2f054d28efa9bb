/* Memory that is away: every group comes as it went, pass after pass, on the host and on the build's device; memory
 * that nobody has is refused in words. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "train/pager.h"

/* AddressSanitizer's: memory that nobody has is refused there too. */
const char *__asan_default_options(void) __attribute__((visibility("default"), used));
const char *__asan_default_options(void) { return "allocator_may_return_null=1"; }

enum { GROUPS = 7 };
static const size_t bytes[GROUPS] = { 1000, 4096, 64, 0, 12345, 1, 8192 };

static void read_all(struct dev *d, struct pager *p, int want)
{
    char got[12345];
    pager_begin(p, false);
    for (int g = 0; g < GROUPS; g++) {
        char *at = pager_next(p);
        dev_get(d, got, at, bytes[g]);
        for (size_t i = 0; i < bytes[g]; i++) assert_int_equal(got[i], want ? want + g : 0);
        pager_done(p, false);
    }
}

static void groups_come_as_they_went(void **state)
{
    (void)state;
    struct dev *devices[2] = { NULL, NULL };
    struct err e = { 0 };
    dev_open(&devices[1], "auto", &e);
    for (int k = 0; k < 4; k++) {
        struct dev *d = devices[k / 2];
        struct pager p;
        if (k == 2 && !d) break;
        assert_true(pager_open(&p, d, bytes, GROUPS, k % 2, &e) >= 0);
        read_all(d, &p, 0);
        for (int pass = 1; pass <= 5; pass++) {
            pager_begin(&p, pass == 3);
            for (int g = 0; g < GROUPS; g++) {
                char *at = pager_next(&p), first = 7;
                if (bytes[g]) dev_get(d, &first, at, 1);
                if (bytes[g]) assert_int_equal(first, pass == 1 || pass == 3 ? 0 : 10 * (pass - 1) + g);
                dev_fill(d, at, 10 * pass + g, bytes[g]);
                pager_done(&p, true);
            }
        }
        read_all(d, &p, 50);
        for (int g = 0; g < GROUPS; g++)
            for (size_t i = 0; i < bytes[g]; i++) assert_int_equal(pager_host(&p, g)[i], 50 + g);
        memset(pager_host(&p, 4), 54, bytes[4]);
        read_all(d, &p, 50);
        pager_close(&p);
    }
    dev_close(devices[1]);
}

static void what_nobody_has(void **state)
{
    (void)state;
    const size_t much[] = { (size_t)1 << 58, 1000 };
    struct pager p;
    struct err e = { 0 };
    assert_int_equal(pager_open(&p, NULL, much, 2, false, &e), ERR_NOMEM);
    assert_non_null(strstr(e.msg, "page-locked"));
    assert_non_null(strstr(e.msg, "--pageable True"));
    assert_int_equal(pager_open(&p, NULL, much, 2, true, &e), ERR_NOMEM);
    assert_null(strstr(e.msg, "--pageable"));
    pager_close(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(groups_come_as_they_went), cmocka_unit_test(what_nobody_has) };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
