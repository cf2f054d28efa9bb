/* Sessions through the public API alone, on the tiny fixture models: greedy answers are PyTorch's, a second turn reuses
 * what was read and changes nothing, stop strings, seeds and limits do what llava.h says. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "file/weights.h"
#include "llava.h"
#include "text/tokenizer.h"

#define GOLDEN "tests/golden/"
#define SEEING GOLDEN "models/llava-liuhaotian"
#define QUESTION "USER: <image>\nWhat is in the picture? ASSISTANT:"
enum { GREEDY = 64, PICTURES_MAX = 4, TEXT_MAX = 4096 };

struct talk {
    struct llava_engine *engine;
    struct llava_session *session;
    struct llava_image *image[PICTURES_MAX];
    char text[TEXT_MAX];
    size_t n, pieces, stop_after; /* bytes and pieces of text; pieces after which the callback says stop, 0: never */
};

static void must(int rc, const struct llava_error *e)
{
    if (rc < 0) fail_msg("%d: %s", e->code, e->message);
}

static void talk_open(struct talk *t, const char *path, const char *base, int context)
{
    struct llava_options o = llava_options_default();
    struct llava_error e;
    *t = (struct talk){ 0 };
    o.model_path = path;
    o.model_base = base;
    o.dtype = "f32";
    o.context = context;
    o.quiet = true;
    must(llava_open(&t->engine, &o, &e), &e);
    must(llava_session_open(&t->session, t->engine, &e), &e);
}

static void talk_picture(struct talk *t, int i, const char *name)
{
    char path[256];
    struct llava_error e;
    snprintf(path, sizeof path, GOLDEN "pictures/%s", name);
    must(llava_image_open(&t->image[i], t->engine, path, &e), &e);
}

static void talk_seeing(struct talk *t, int context)
{
    talk_open(t, SEEING, NULL, context);
    talk_picture(t, 0, "wide-37x23.png");
}

static void talk_close(struct talk *t)
{
    for (int i = 0; i < PICTURES_MAX; i++) llava_image_close(t->image[i]);
    llava_session_close(t->session);
    llava_close(t->engine);
}

static bool keep(void *ctx, const char *text, size_t n)
{
    struct talk *t = ctx;
    assert_true(n > 0 && t->n + n < TEXT_MAX);
    memcpy(t->text + t->n, text, n);
    t->n += n;
    t->text[t->n] = 0;
    return ++t->pieces != t->stop_after;
}

static struct llava_sampling greedy(int most)
{
    struct llava_sampling s = llava_sampling_default();
    s.temperature = 0;
    s.max_new_tokens = most;
    return s;
}

static struct llava_result answer(struct talk *t, const char *prompt, int n_images, const struct llava_sampling *s)
{
    struct llava_result r;
    struct llava_error e;
    t->n = t->pieces = 0;
    t->text[0] = 0;
    must(llava_session_prompt(t->session, prompt, t->image, n_images, &e), &e);
    must(llava_session_generate(t->session, s, keep, t, &r, &e), &e);
    return r;
}

/* A new session of the same engine, which holds nothing. */
static void forget(struct talk *t)
{
    struct llava_error e;
    llava_session_close(t->session);
    must(llava_session_open(&t->session, t->engine, &e), &e);
}

/* ---- answers are PyTorch's */

/* The text of the fixture's greedy ids; false: this case has none. */
static bool golden_text(const char *model, const char *expected, const char *key, struct buf *text)
{
    struct weights *w;
    struct tokenizer *tok;
    struct err e;
    char path[256], name[64];
    int32_t ids[GREEDY];
    snprintf(path, sizeof path, GOLDEN "%s", expected);
    assert_int_equal(weights_open(&w, path, &e), 0);
    snprintf(name, sizeof name, "%s.greedy", key);
    const struct weight *g = weights_find(w, name);
    if (g) {
        assert_int_equal(tensor_count(g->t), GREEDY);
        for (int i = 0; i < GREEDY; i++) ids[i] = (int32_t)((int64_t *)g->t.p)[i];
        snprintf(path, sizeof path, GOLDEN "%s", model);
        if (tokenizer_open(&tok, path, &e) < 0) fail_msg("%s", e.msg);
        tokenizer_decode(tok, ids, GREEDY, true, text);
        tokenizer_close(tok);
    }
    weights_close(w);
    return g != NULL;
}

static bool greedy_case(const json_t *variant, const json_t *c)
{
    const char *model = json_string_value(json_object_get(variant, "model"));
    const char *base = json_string_value(json_object_get(variant, "base"));
    struct buf want = buf_make(TEXT_MAX);
    char path[256], base_path[256];
    if (!golden_text(base ? base : model, json_string_value(json_object_get(variant, "expected")),
                     json_string_value(json_object_get(c, "key")), &want))
        return false;
    struct talk t;
    snprintf(path, sizeof path, GOLDEN "%s", model);
    snprintf(base_path, sizeof base_path, GOLDEN "%s", base ? base : "");
    talk_open(&t, path, base ? base_path : NULL, 0);
    const json_t *pictures = json_object_get(c, "pictures");
    const int n = (int)json_array_size(pictures);
    for (int i = 0; i < n; i++) talk_picture(&t, i, json_string_value(json_array_get(pictures, (size_t)i)));
    const struct llava_sampling s = greedy(GREEDY);
    const struct llava_result r = answer(&t, json_string_value(json_object_get(c, "prompt")), n, &s);
    if (strcmp(t.text, want.p) != 0) fail_msg("%s: '%s', PyTorch's '%s'", model, t.text, want.p);
    assert_int_equal(r.n_new, GREEDY);
    assert_int_equal(r.finish, LLAVA_FINISH_LENGTH);
    talk_close(&t);
    buf_free(&want);
    return true;
}

static void test_greedy(void **state)
{
    json_t *manifest = json_load_file(GOLDEN "manifest.json", 0, NULL), *v, *c;
    size_t i, k;
    int n = 0;
    (void)state;
    assert_non_null(manifest);
    json_array_foreach(json_object_get(manifest, "variants"), i, v)
        json_array_foreach(json_object_get(v, "cases"), k, c)
            n += greedy_case(v, c);
    assert_true(n >= 10);
    json_decref(manifest);
}

/* ---- turns */

/* Positions that a prompt's ids take, and the ids, each picture repeated as often as it has positions. */
static int positions(struct talk *t, const char *prompt, int n_images, int32_t *at)
{
    struct llava_forward f;
    struct llava_error e;
    int n = 0;
    must(llava_engine_forward(&f, t->engine, prompt, t->image, n_images, &e), &e);
    for (int i = 0; i < f.n_ids; i++)
        for (int k = 0; k < (f.ids[i] == -200 ? f.n_features / n_images : 1); k++) at[n++] = f.ids[i];
    assert_int_equal(n, f.n_positions);
    llava_forward_free(&f);
    return n;
}

static void test_second_turn(void **state)
{
    struct talk t;
    struct llava_result r;
    const struct llava_sampling s = greedy(12);
    char again[TEXT_MAX], first[TEXT_MAX], prompt[2 * TEXT_MAX];
    int32_t one[512], two[512];
    (void)state;
    talk_seeing(&t, 0);
    r = answer(&t, QUESTION, 1, &s);
    const int n_one = positions(&t, QUESTION, 1, one);
    assert_int_equal(r.n_prompt, n_one);
    assert_int_equal(r.n_cached, 0);
    assert_true(r.image_s > 0);
    snprintf(first, sizeof first, "%s", t.text);
    snprintf(prompt, sizeof prompt, "%s%s</s>USER: And what is left of it? ASSISTANT:", QUESTION, t.text);
    const int n_two = positions(&t, prompt, 1, two);
    r = answer(&t, prompt, 1, &s);
    assert_int_equal(r.n_prompt, n_two);
    assert_true(r.n_cached >= n_one && r.n_cached <= n_one + 12);
    assert_true(r.image_s == 0);
    snprintf(again, sizeof again, "%s", t.text);

    forget(&t);
    r = answer(&t, prompt, 1, &s);
    assert_int_equal(r.n_cached, 0);
    assert_string_equal(t.text, again);
    r = answer(&t, QUESTION, 1, &s); /* back to a shorter prompt: all of it but the last position is there */
    assert_int_equal(r.n_cached, n_one - 1);
    assert_string_equal(t.text, first);
    talk_close(&t);
}

/* The same question about another picture shares what stands before it, and nothing behind. */
static void test_other_picture(void **state)
{
    struct talk t;
    const struct llava_sampling s = greedy(8);
    char alone[TEXT_MAX];
    int32_t at[512];
    int before = 0;
    (void)state;
    talk_seeing(&t, 0);
    positions(&t, QUESTION, 1, at);
    while (at[before] != -200) before++;
    answer(&t, QUESTION, 1, &s);
    llava_image_close(t.image[0]);
    talk_picture(&t, 0, "square-50x50.png");
    assert_int_equal(answer(&t, QUESTION, 1, &s).n_cached, before);
    snprintf(alone, sizeof alone, "%s", t.text);
    forget(&t);
    assert_int_equal(answer(&t, QUESTION, 1, &s).n_cached, 0);
    assert_string_equal(t.text, alone);
    talk_close(&t);
}

static void test_several_pictures(void **state)
{
    struct talk t;
    const struct llava_sampling s = greedy(8);
    const char *two = "USER: <image>\n<image>\nWhich is red? ASSISTANT:";
    char text[TEXT_MAX];
    (void)state;
    talk_seeing(&t, 0);
    talk_picture(&t, 1, "square-50x50.png");
    const int one = answer(&t, "USER: <image>\nWhich is red? ASSISTANT:", 1, &s).n_prompt;
    struct llava_info info;
    llava_engine_info(t.engine, &info);
    const struct llava_result r = answer(&t, two, 2, &s);
    assert_true(r.n_prompt > one + info.image_positions);
    snprintf(text, sizeof text, "%s", t.text);
    struct llava_image *swap = t.image[0];
    t.image[0] = t.image[1];
    t.image[1] = swap;
    assert_true(answer(&t, two, 2, &s).n_cached < r.n_prompt - info.image_positions);
    assert_string_not_equal(t.text, text);
    talk_close(&t);
}

/* ---- how an answer ends */

static void test_stop(void **state)
{
    struct talk t;
    struct llava_sampling s = greedy(GREEDY);
    char all[TEXT_MAX], stop[4];
    (void)state;
    talk_seeing(&t, 0);
    answer(&t, QUESTION, 1, &s);
    assert_true(t.n > 20);
    memcpy(all, t.text, t.n + 1);
    snprintf(stop, sizeof stop, "%.3s", all + 10);
    const char *const stops[] = { "never in it", stop };
    s.stop = stops;
    s.n_stop = 2;
    const struct llava_result r = answer(&t, QUESTION, 1, &s);
    assert_int_equal(r.finish, LLAVA_FINISH_STOP);
    assert_true(r.n_new < GREEDY);
    assert_int_equal(t.n, strstr(all, stop) - all); /* all text up to it, and no byte of it */
    assert_memory_equal(t.text, all, t.n);
    talk_close(&t);
}

static void test_length_and_cancel(void **state)
{
    struct talk t;
    struct llava_sampling s = greedy(5);
    (void)state;
    talk_seeing(&t, 0);
    struct llava_result r = answer(&t, QUESTION, 1, &s);
    assert_int_equal(r.n_new, 5);
    assert_int_equal(r.finish, LLAVA_FINISH_LENGTH);
    s.max_new_tokens = 500;
    t.stop_after = 2;
    r = answer(&t, QUESTION, 1, &s);
    assert_int_equal(r.finish, LLAVA_FINISH_CANCELLED);
    assert_int_equal(t.pieces, 2);
    assert_true(r.n_new < 500);
    t.stop_after = 0;
    s.max_new_tokens = 5;
    assert_int_equal(answer(&t, QUESTION, 1, &s).finish, LLAVA_FINISH_LENGTH); /* the session goes on */
    talk_close(&t);
}

static void test_seeds(void **state)
{
    struct talk t;
    struct llava_sampling s = llava_sampling_default();
    char first[TEXT_MAX];
    int others = 0;
    (void)state;
    s.temperature = 1;
    s.max_new_tokens = 24;
    talk_seeing(&t, 0);
    for (uint64_t seed = 0; seed < 4; seed++) {
        s.seed = seed;
        answer(&t, QUESTION, 1, &s);
        if (seed == 0) snprintf(first, sizeof first, "%s", t.text);
        else others += strcmp(t.text, first) != 0;
    }
    assert_true(others >= 2);
    s.seed = 0;
    forget(&t);
    answer(&t, QUESTION, 1, &s);
    assert_string_equal(t.text, first);
    s.top_k = 1; /* as good as greedy, whatever the seed */
    answer(&t, QUESTION, 1, &s);
    snprintf(first, sizeof first, "%s", t.text);
    s = greedy(24);
    answer(&t, QUESTION, 1, &s);
    assert_string_equal(t.text, first);
    talk_close(&t);
}

/* Two tokens stand far above all others, one above the other: the order in which they come is what penalties do. */
static void test_penalties(void **state)
{
    struct talk t;
    struct tokenizer *tok;
    struct err e;
    struct llava_sampling s = greedy(4);
    (void)state;
    talk_seeing(&t, 0);
    assert_int_equal(tokenizer_open(&tok, SEEING, &e), 0);
    const struct llava_bias bias[] = { { tokenizer_find(tok, "a"), 3e4f }, { tokenizer_find(tok, "b"), 2e4f } };
    tokenizer_close(tok);
    s.bias = bias;
    s.n_bias = 2;
    answer(&t, QUESTION, 1, &s);
    assert_string_equal(t.text, "aaaa");
    s.presence_penalty = 1.5e4f; /* once */
    answer(&t, QUESTION, 1, &s);
    assert_string_equal(t.text, "abaa");
    s.presence_penalty = 0;
    s.frequency_penalty = 1.5e4f; /* each time */
    answer(&t, QUESTION, 1, &s);
    assert_string_equal(t.text, "abab");
    talk_close(&t);
}

/* An asking that fails half way leaves nothing to the next one. */
static void test_asked_again(void **state)
{
    enum { TOO_LONG = 1 << 17 };
    struct talk t;
    struct llava_error e;
    struct llava_sampling s = greedy(4);
    const struct llava_bias bias[] = { { 5, 3e4f } };
    char *long_stop = malloc(TOO_LONG + 1);
    (void)state;
    talk_seeing(&t, 0);
    answer(&t, "Why?", 0, &s);
    char *plain = strdup(t.text);
    const char *stops[] = { plain, long_stop };
    memset(long_stop, 'x', TOO_LONG);
    long_stop[TOO_LONG] = 0;
    s.bias = bias;
    s.n_bias = 1;
    s.stop = stops;
    s.n_stop = 2;
    must(llava_session_prompt(t.session, "Why?", NULL, 0, &e), &e);
    assert_true(*plain);
    for (int i = 0; i < 2; i++) assert_true(llava_session_generate(t.session, &s, keep, &t, NULL, &e) < 0);
    s = greedy(4);
    t.n = 0;
    t.text[0] = 0;
    must(llava_session_generate(t.session, &s, keep, &t, NULL, &e), &e);
    assert_string_equal(t.text, plain);
    free(plain);
    free(long_stop);
    talk_close(&t);
}

/* What was used least recently makes room for others. (The third begins as the first does: what a beginning is copied
 * from counts as used.) */
static void test_least_recent(void **state)
{
    static const char *const prompts[] = { "first, one two three?", "second, four five six?",
                                           "first, seven eight nine ten eleven, twelve?" };
    struct talk t;
    const struct llava_sampling s = greedy(1);
    (void)state;
    talk_open(&t, SEEING, NULL, 64); /* four pages of 16: two for each of the first, three for the third */
    for (int i = 0; i < 2; i++) {
        const int n = answer(&t, prompts[i], 0, &s).n_prompt;
        assert_in_range(n, 17, 32);
    }
    assert_true(answer(&t, prompts[0], 0, &s).n_cached >= 16);
    const int n = answer(&t, prompts[2], 0, &s).n_prompt;
    assert_in_range(n, 33, 48);
    assert_true(answer(&t, prompts[0], 0, &s).n_cached >= 16);
    assert_true(answer(&t, prompts[1], 0, &s).n_cached < 16);
    talk_close(&t);
}

/* ---- what is refused */

static void refuse(struct talk *t, const char *prompt, int n_images, int code, const char *part)
{
    struct llava_error e = { 0 };
    assert_int_equal(llava_session_prompt(t->session, prompt, t->image, n_images, &e), code);
    assert_int_equal(e.code, code);
    if (!strstr(e.message, part)) fail_msg("'%s' does not say '%s'", e.message, part);
    assert_null(strchr(e.message, '\n'));
}

static void test_refused(void **state)
{
    struct talk t;
    struct llava_sampling s = greedy(4);
    struct llava_error e;
    (void)state;
    talk_seeing(&t, 32);
    assert_int_equal(llava_session_generate(t.session, &s, keep, &t, NULL, &e), LLAVA_USAGE); /* no prompt yet */
    refuse(&t, "USER: <image>\n<image>\nWhat? ASSISTANT:", 1, LLAVA_USAGE, "2 \"<image>\"");
    refuse(&t, "USER: What? ASSISTANT:", 1, LLAVA_USAGE, "0 \"<image>\"");
    refuse(&t, "USER: <image>\n", 0, LLAVA_USAGE, "1 \"<image>\"");
    refuse(&t, "USER: \xff\xfe ASSISTANT:", 0, LLAVA_FORMAT, "UTF-8");
    refuse(&t, "one two three four five six seven eight nine ten eleven twelve thirteen", 0, LLAVA_LIMIT, "32");
    s.temperature = -1;
    must(llava_session_prompt(t.session, "Why?", NULL, 0, &e), &e);
    assert_int_equal(llava_session_generate(t.session, &s, keep, &t, NULL, &e), LLAVA_USAGE);
    s = greedy(1000); /* ends where the context does */
    const struct llava_result r = answer(&t, "Why?", 0, &s);
    assert_int_equal(r.finish, LLAVA_FINISH_LENGTH);
    assert_int_equal(r.n_prompt + r.n_new, 32 + 1);
    talk_close(&t);
}

static void test_open_refused(void **state)
{
    struct llava_options o = llava_options_default();
    struct llava_engine *engine = (struct llava_engine *)&o;
    struct llava_error e;
    (void)state;
    o.quiet = true;
    o.model_path = GOLDEN "models/no-such-model";
    assert_true(llava_open(&engine, &o, &e) < 0);
    assert_null(engine);
    assert_non_null(strstr(e.message, "no-such-model"));
    o.model_path = SEEING;
    o.device = "tpu";
    assert_int_equal(llava_open(&engine, &o, &e), LLAVA_USAGE);
    o.device = "cpu";
    o.dtype = "f12";
    assert_int_equal(llava_open(&engine, &o, &e), LLAVA_USAGE);
    o.dtype = "f32";
    o.context = 100000;
    assert_int_equal(llava_open(&engine, &o, &e), LLAVA_USAGE);
    o.context = 0;
    assert_true(llava_open(&engine, &o, NULL) == 0); /* nobody has to want the message */
    llava_close(engine);
    llava_close(NULL);
    llava_session_close(NULL);
    llava_image_close(NULL);
    llava_conversation_close(NULL);
}

static const char *prompt_of(struct llava_conversation *c)
{
    const char *prompt = NULL;
    struct llava_error e;
    must(llava_conversation_prompt(&prompt, c, &e), &e);
    return prompt;
}

static void test_conversation(void **state)
{
    struct talk t;
    struct llava_conversation *c;
    struct llava_error e;
    (void)state;
    talk_seeing(&t, 0);
    assert_int_equal(llava_conversation_open(&c, t.engine, "no_such_template", &e), LLAVA_USAGE);
    assert_non_null(strstr(e.message, "no_such_template"));
    must(llava_conversation_open(&c, t.engine, "llava_v1", &e), &e);
    must(llava_conversation_ask(c, "What is it?", 1, &e), &e);
    assert_non_null(strstr(prompt_of(c), "USER: <image>\nWhat is it? ASSISTANT:"));
    assert_string_equal(llava_conversation_stop(c), "</s>");
    must(llava_conversation_answer(c, "A cat.", &e), &e);
    must(llava_conversation_ask(c, "Which colour?", 0, &e), &e);
    assert_non_null(strstr(prompt_of(c), "ASSISTANT: A cat.</s>USER: Which colour? ASSISTANT:"));
    llava_conversation_close(c);
    for (int i = 0; llava_conversation_name(i); i++) {
        must(llava_conversation_open(&c, t.engine, llava_conversation_name(i), &e), &e);
        must(llava_conversation_ask(c, "<image-placeholder> or <image-placeholder>?", 2, &e), &e);
        assert_non_null(strstr(prompt_of(c), "<image> or <image>?"));
        llava_conversation_close(c);
    }
    assert_null(llava_conversation_name(-1));
    talk_close(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_greedy),          cmocka_unit_test(test_second_turn),
        cmocka_unit_test(test_other_picture),   cmocka_unit_test(test_several_pictures),
        cmocka_unit_test(test_stop),            cmocka_unit_test(test_length_and_cancel),
        cmocka_unit_test(test_seeds),           cmocka_unit_test(test_refused),
        cmocka_unit_test(test_open_refused),    cmocka_unit_test(test_conversation),
        cmocka_unit_test(test_penalties),       cmocka_unit_test(test_least_recent),
        cmocka_unit_test(test_asked_again),
    };
    return cmocka_run_group_tests_name("session", tests, NULL, NULL);
}
