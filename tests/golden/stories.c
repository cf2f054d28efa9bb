/* A trained model of another project's format: llama2.c's stories260K, converted by `llava convert`, must
 * tell the story that llama2.c itself tells: 200 tokens at temperature 0 from BOS alone. Covers the order of
 * RoPE's pairs, grouped key/value heads, tied embeddings and SentencePiece's text. Data and its source:
 * tests/data. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/buf.h"
#include "llava.h"

struct place {
    char dir[64], model[96];
};

static bool take(void *ctx, const char *text, size_t n)
{
    buf_add(ctx, text, n);
    return true;
}

/* Runs the program as a user would; a convert that fails fails the test. */
static void convert(const char *dtype, const char *to)
{
    char line[512];
    snprintf(line, sizeof line,
             "build/llava convert --from llama2c --model-path tests/data/stories260K.bin --tokenizer "
             "tests/data/tok512.model "
             "--dtype %s --output '%s'",
             dtype, to);
    assert_int_equal(system(line), 0);
}

static void tell(const char *model, struct buf *out)
{
    struct llava_options o = llava_options_default();
    struct llava_sampling s = llava_sampling_default();
    struct llava_engine *g = NULL;
    struct llava_session *session = NULL;
    struct llava_error e = { 0 };
    o.model_path = model;
    o.quiet = true;
    s.temperature = 0;
    s.max_new_tokens = 200;
    if (llava_open(&g, &o, &e) < 0) fail_msg("%s", e.message);
    assert_int_equal(llava_session_open(&session, g, &e), 0);
    assert_true(llava_session_prompt(session, "", NULL, 0, &e) >= 0);
    assert_true(llava_session_generate(session, &s, take, out, NULL, &e) >= 0);
    llava_session_close(session);
    llava_close(g);
}

static int setup(void **state)
{
    struct place *p = calloc(1, sizeof *p);
    if (!p) return -1;
    snprintf(p->dir, sizeof p->dir, "build/stories-XXXXXX");
    if (!mkdtemp(p->dir)) return -1;
    snprintf(p->model, sizeof p->model, "%s/model", p->dir);
    *state = p;
    return 0;
}

static int teardown(void **state)
{
    struct place *p = *state;
    char line[128];
    snprintf(line, sizeof line, "rm -r '%s'", p->dir);
    int rc = system(line);
    free(p);
    return rc;
}

static void test_story(void **state)
{
    const struct place *p = *state;
    struct buf got = buf_make(1 << 16);
    char *want;
    size_t n;
    assert_int_equal(file_read(&want, &n, "tests/data/stories260K-greedy-200.txt", 1 << 16, NULL), 0);
    convert("keep", p->model);
    tell(p->model, &got);
    assert_string_equal(got.p, want);
    buf_free(&got);
    free(want);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test_setup_teardown(test_story, setup, teardown) };
    return cmocka_run_group_tests_name("stories", tests, NULL, NULL);
}
