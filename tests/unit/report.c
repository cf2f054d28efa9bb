/* train/report and train/standing: names of reports, numbers of a run there and back, the plot. With a folder as
 * argument it is the writer of report_read.py: a run of six lines, killed after the third and resumed at step 2. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <math.h>

#include "base/hash.h"
#include "base/log.h"
#include "train/report.h"

static void kinds(void **state)
{
    (void)state;
    struct err e;
    unsigned k;
    assert_int_equal(report_kinds(&k, "none", &e), 0);
    assert_int_equal(k, 0);
    assert_int_equal(report_kinds(&k, "tensorboard,jsonl", &e), 0);
    assert_int_equal(k, REPORT_TENSORBOARD | REPORT_JSONL);
    assert_int_equal(report_kinds(&k, "['wandb', 'tensorboard']", &e), 0);
    assert_int_equal(k, REPORT_TENSORBOARD | REPORT_WANDB);
    assert_int_equal(report_kinds(&k, "all", &e), 0);
    assert_int_equal(k, REPORT_TENSORBOARD | REPORT_JSONL);
    assert_int_equal(report_kinds(&k, "jsonl,mlflow", &e), ERR_USAGE);
    assert_non_null(strstr(e.msg, "mlflow"));
    assert_int_equal(report_kinds(&k, "tensorboards", &e), ERR_USAGE);
    assert_int_equal(report_kinds(&k, "", &e), 0);
    assert_int_equal(k, 0);
}

static void numbers(void **state)
{
    (void)state;
    struct standing a, b;
    struct err e;
    assert_int_equal(standing_init(&a, &e), 0);
    assert_int_equal(standing_init(&b, &e), 0);
    a.step = 123456789012345;
    a.loss_sum = 0.1 + 0.2;
    a.flops = 1e21 / 3;
    json_t *o = standing_numbers(&a);
    char *text = json_dumps(o, JSON_REAL_PRECISION(17));
    json_decref(o);
    o = json_loads(text, 0, NULL);
    assert_int_equal(standing_numbers_load(&b, o, &e), 0);
    assert_int_equal(a.step, b.step);
    assert_memory_equal(&a.loss_sum, &b.loss_sum, sizeof a.loss_sum);
    assert_memory_equal(&a.flops, &b.flops, sizeof a.flops);
    json_object_set_new(o, "step", json_integer(-1));
    assert_int_equal(standing_numbers_load(&b, o, &e), ERR_FORMAT);
    json_object_set_new(o, "step", json_string("1"));
    assert_int_equal(standing_numbers_load(&b, o, &e), ERR_FORMAT);
    json_object_del(o, "step");
    assert_int_equal(standing_numbers_load(&b, o, &e), ERR_FORMAT);
    assert_non_null(strstr(e.msg, "'step'"));
    json_decref(o);
    free(text);
    standing_fini(&a);
    standing_fini(&b);
}

static void log_one(struct standing *s, int64_t step, double loss, double rate)
{
    struct scalar v[] = { { "loss", loss }, { "learning_rate", rate } };
    struct err e;
    s->step = step;
    s->epoch = (double)step / 10;
    assert_int_equal(standing_log(s, v, 2, &e), 0);
}

static int count(const char *text, const char *what)
{
    int n = 0;
    while ((text = strstr(text, what))) n++, text++;
    return n;
}

static void plots(void **state)
{
    (void)state;
    struct standing s;
    struct err e;
    assert_int_equal(standing_init(&s, &e), 0);
    char *text = report_svg(s.history, "a <b> & c");
    assert_non_null(strstr(text, "nothing was logged yet"));
    assert_non_null(strstr(text, "a &lt;b> &amp; c"));
    free(text);
    log_one(&s, 1, NAN, 0);
    free(report_svg(s.history, ""));
    log_one(&s, 2, 3.5, 0); /* one point, a rate of 0 */
    text = report_svg(s.history, "");
    assert_null(strstr(text, "nan"));
    assert_null(strstr(text, "inf"));
    free(text);
    for (int i = 3; i < 200000; i++) log_one(&s, i, i == 100000 ? 40 : 8 / (1 + i * 1e-2), 1e-3);
    text = report_svg(s.history, "long");
    assert_true(strlen(text) < 200000);     /* thinned */
    assert_int_equal(count(text, "<polyline"), 3);
    assert_int_equal(count(text, ",56.0 "), 1); /* the spike reaches the top */
    assert_null(strstr(text, "nan"));
    free(text);
    standing_fini(&s);
}

static void checksum(void **state)
{
    (void)state;
    assert_int_equal(crc32c("123456789", 9), 0xe3069283); /* RFC 3720 B.4's polynomial, the usual check value */
    assert_int_equal(crc32c("", 0), 0);
}

/* ---- the writer */

static void write_run(struct report *r, struct standing *s, int from, int to)
{
    struct err e;
    for (int i = from; i <= to; i++) {
        log_one(s, i, 8.0 / i, 1e-3 / i);
        report_line(r, s);
    }
    struct scalar v[] = { { "eval_loss", 0.25 }, { "eval_runtime", 1.5 } };
    assert_int_equal(standing_log(s, v, 2, &e), 0);
    report_line(r, s);
}

static void writer(const char *dir)
{
    struct report *r;
    struct standing s;
    struct err e;
    json_t *args = json_pack("{s:s,s:f}", "output_dir", dir, "learning_rate", 1e-3);
    struct report_options o = { .kinds = REPORT_TENSORBOARD | REPORT_JSONL | REPORT_WANDB, .output_dir = dir,
                                .state = &s, .args = args };
    assert_int_equal(standing_init(&s, &e), 0);
    assert_int_equal(report_open(&r, &o, &e), 0);
    write_run(r, &s, 1, 3);
    report_close(r);
    while (json_array_size(s.history) > 2) json_array_remove(s.history, json_array_size(s.history) - 1);
    s.step = 2;
    assert_int_equal(report_open(&r, &o, &e), 0);
    write_run(r, &s, 3, 6);
    report_close(r);
    standing_fini(&s);
    json_decref(args);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kinds), cmocka_unit_test(numbers), cmocka_unit_test(plots), cmocka_unit_test(checksum),
    };
    if (argc < 2) return cmocka_run_group_tests(tests, NULL, NULL);
    writer(argv[1]);
    return 0;
}
