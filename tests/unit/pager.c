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

static void read_all(struct dev *d, struct pager *p, bool back, int want)
{
    char got[12345];
    pager_begin(p, back ? PAGER_BACK : PAGER_READ);
    for (int k = 0; k < GROUPS; k++) {
        const int g = back ? GROUPS - 1 - k : k;
        char *at = pager_next(p);
        dev_get(d, got, at, bytes[g]);
        for (size_t i = 0; i < bytes[g]; i++) assert_int_equal(got[i], want + g);
        pager_done(p, false);
    }
}

/* Adds to what each group holds, or begins anew. */
static void write_all(struct dev *d, struct pager *p, enum pager_pass how, int was, int is)
{
    pager_begin(p, how);
    for (int g = 0; g < GROUPS; g++) {
        char *at = pager_next(p), first = 7;
        if (bytes[g]) dev_get(d, &first, at, 1);
        if (bytes[g] && how != PAGER_WRITE) assert_int_equal(first, how == PAGER_CLEAR ? 0 : was + g);
        dev_fill(d, at, is + g, bytes[g]);
        pager_done(p, true);
    }
}

static void groups_come_as_they_went(void **state)
{
    (void)state;
    struct dev *devices[2] = { NULL, NULL };
    struct err e = { 0 };
    dev_open(&devices[1], "auto", &e);
    for (int k = 0; k < 8; k++) {
        struct dev *d = devices[k / 4];
        struct pager p;
        if (k == 4 && !d) break;
        assert_true(pager_open(&p, d, bytes, GROUPS, 2 + k / 2 % 2, k % 2, &e) >= 0);
        write_all(d, &p, PAGER_CLEAR, 0, 10);
        write_all(d, &p, PAGER_READ, 10, 20);
        write_all(d, &p, PAGER_CLEAR, 0, 30);
        read_all(d, &p, true, 30);
        for (int i = 0; i < 3; i++) {
            write_all(d, &p, PAGER_WRITE, 0, 35 + i);
            read_all(d, &p, true, 35 + i);
        }
        write_all(d, &p, PAGER_CLEAR, 0, 40);
        read_all(d, &p, true, 40);
        read_all(d, &p, true, 40);
        write_all(d, &p, PAGER_READ, 40, 50);
        read_all(d, &p, false, 50);
        for (int g = 0; g < GROUPS; g++)
            for (size_t i = 0; i < bytes[g]; i++) assert_int_equal(pager_host(&p, g)[i], 50 + g);
        memset(pager_host(&p, GROUPS - 1), 60 + GROUPS - 1, bytes[GROUPS - 1]);
        memset(pager_host(&p, 4), 64, bytes[4]);
        pager_begin(&p, PAGER_BACK);
        for (int g = GROUPS - 1; g >= 0; g--) { /* what was written between passes is not what a place still holds */
            char last = 0;
            dev_get(d, &last, pager_next(&p), bytes[g] != 0);
            if (bytes[g]) assert_int_equal(last, (g == 4 || g == GROUPS - 1 ? 60 : 50) + g);
            pager_done(&p, false);
        }
        pager_close(&p);
    }
    dev_close(devices[1]);
}

/* Of groups that are not full only what they hold is copied. */
static void parts(void **state)
{
    (void)state;
    struct dev *d = NULL;
    struct pager p;
    struct err e = { 0 };
    char got[8192];
    dev_open(&d, "auto", &e);
    assert_true(pager_open(&p, d, bytes, GROUPS, 2, false, &e) >= 0);
    write_all(d, &p, PAGER_CLEAR, 0, 10);
    p.most = 500;
    write_all(d, &p, PAGER_READ, 10, 20);
    pager_host(&p, 0);
    p.most = SIZE_MAX;
    pager_begin(&p, PAGER_BACK);
    for (int g = GROUPS - 1; g >= 0; g--) {
        char *at = pager_next(&p);
        if (g == 1) {
            dev_get(d, got, at, 4096);
            for (int i = 0; i < 4096; i++) assert_int_equal(got[i], (i < 500 ? 20 : 10) + g);
        }
        pager_done(&p, false);
    }
    pager_close(&p);
    dev_close(d);
}

static void what_nobody_has(void **state)
{
    (void)state;
    const size_t much[] = { (size_t)1 << 58, 1000 };
    struct pager p;
    struct err e = { 0 };
    assert_int_equal(pager_open(&p, NULL, much, 2, 3, false, &e), ERR_NOMEM);
    assert_non_null(strstr(e.msg, "page-locked"));
    assert_non_null(strstr(e.msg, "--pageable True"));
    assert_int_equal(pager_open(&p, NULL, much, 2, 3, true, &e), ERR_NOMEM);
    assert_null(strstr(e.msg, "--pageable"));
    pager_close(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(groups_come_as_they_went), cmocka_unit_test(parts),
                                        cmocka_unit_test(what_nobody_has) };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
