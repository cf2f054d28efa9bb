/* The demo model's greedy answers against those of transformers in float32, which tools/demo/eval.py wrote.
 *
 *   demo                            the 64 pictures in tests/golden/demo (part of `make check`)
 *   demo PICTURES EXPECTED.tsv      others: the whole of twemoji or openmoji as tools/demo/make_data.py draws them
 *   ... 8|4                         with weights in 8 or 4 bits: how many answers are right; they may differ
 *
 * A line of the table: picture, kind, question, answer, right answer if it differs, and the lead of the
 * answer's closest token in logits where that is so small that rounding may turn it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "llava.h"

static const char *pictures = "tests/golden/demo", *table = "tests/golden/demo/answers.tsv";
static int bits;

struct line {
    char picture[200], kind[8], question[400], answer[400], right[400];
};

/* Fields may be empty, so strtok and scanf do not do. */
static int split(char *text, struct line *l)
{
    char *to[] = { l->picture, l->kind, l->question, l->answer, l->right };
    size_t size[] = { sizeof l->picture, sizeof l->kind, sizeof l->question, sizeof l->answer, sizeof l->right };
    text[strcspn(text, "\r\n")] = 0;
    for (int i = 0; i < 5; i++) {
        size_t n = text ? strcspn(text, "\t") : 0;
        snprintf(to[i], size[i], "%.*s", (int)n, text ? text : "");
        if (text) text = text[n] ? text + n + 1 : NULL;
    }
    return l->answer[0] != 0;
}

struct text {
    char s[400];
    size_t n;
};

static bool take(void *ctx, const char *piece, size_t n)
{
    struct text *t = ctx;
    if (n > sizeof t->s - 1 - t->n) n = sizeof t->s - 1 - t->n;
    memcpy(t->s + t->n, piece, n);
    t->s[t->n += n] = 0;
    return true;
}

static const char *trimmed(struct text *t)
{
    char *p = t->s;
    while (t->n && t->s[t->n - 1] == ' ') t->s[--t->n] = 0;
    return p + strspn(p, " ");
}

static void ask(struct llava_engine *engine, struct llava_session *s, struct llava_image *image, const char *question,
                struct text *out)
{
    struct llava_error e = { 0 };
    struct llava_conversation *c;
    struct llava_sampling how = llava_sampling_default();
    how.temperature = 0;
    how.max_new_tokens = 64;
    *out = (struct text){ .n = 0 };
    assert_int_equal(llava_conversation_open(&c, engine, "vicuna_v1", &e), 0);
    assert_int_equal(llava_conversation_ask(c, question, 1, &e), 0);
    const char *prompt;
    if (llava_conversation_prompt(&prompt, c, &e) < 0 || llava_session_prompt(s, prompt, &image, 1, &e) < 0 ||
        llava_session_generate(s, &how, take, out, NULL, &e) < 0)
        fail_msg("%s", e.message);
    llava_conversation_close(c);
}

#ifdef __SANITIZE_ADDRESS__
enum { EVERY = 4 }; /* the answers are the same, and take ten times as long */
#else
enum { EVERY = 1 };
#endif

static void test_answers(void **state)
{
    (void)state;
    struct llava_options o = llava_options_default();
    struct llava_error e = { 0 };
    struct llava_engine *engine;
    struct llava_session *session;
    struct llava_image *image = NULL;
    struct { char kind; int n, right; } score[8] = { { 0 } };
    struct line l = { 0 };
    char text[2000], held[200] = "", path[1000];
    int n = 0, wrong = 0, n_lines = 0;
    o.model_path = "models/demo";
    o.quiet = true;
    o.load_8bit = bits == 8;
    o.load_4bit = bits == 4;
    if (llava_open(&engine, &o, &e) < 0) fail_msg("%s", e.message);
    assert_int_equal(llava_session_open(&session, engine, &e), 0);
    FILE *f = fopen(table, "r");
    assert_non_null(f);
    assert_non_null(fgets(text, sizeof text, f));
    while (fgets(text, sizeof text, f)) {
        struct text got;
        if (!split(text, &l) || n_lines++ % EVERY) continue;
        if (strcmp(held, l.picture) != 0) {
            llava_image_close(image);
            snprintf(path, sizeof path, "%s/%s.png", pictures, l.picture);
            snprintf(held, sizeof held, "%s", l.picture);
            if (llava_image_open(&image, engine, path, &e) < 0) fail_msg("%s", e.message);
        }
        ask(engine, session, image, l.question, &got);
        const char *answer = trimmed(&got);
        n++;
        if (strcmp(answer, l.answer) != 0) {
            wrong++;
            if (!bits)
                print_message("# %s: %s: '%s', transformers says '%s'\n", l.picture, l.question, answer, l.answer);
        }
        int k = 0;
        while (score[k].kind && score[k].kind != l.kind[0] && k < 6) k++;
        score[k].kind = l.kind[0];
        score[k].n++;
        score[k].right += !strcmp(answer, l.right[0] ? l.right : l.answer);
    }
    fclose(f);
    print_message("# %d answers, %d differ from transformers'\n", n, wrong);
    for (int k = 0; score[k].kind; k++)
        print_message("# kind %c: %d of %d right, %.1f%%\n", score[k].kind, score[k].right, score[k].n,
                      100.0 * score[k].right / score[k].n);
    assert_true(n >= 256 / EVERY);
    if (!bits) assert_int_equal(wrong, 0);
    llava_image_close(image);
    llava_session_close(session);
    llava_close(engine);
}

int main(int argc, char **argv)
{
    if (argc >= 3) {
        pictures = argv[1];
        table = argv[2];
    }
    if (argc == 4) bits = !strcmp(argv[3], "8") ? 8 : 4;
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_answers) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
