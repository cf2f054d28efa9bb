/* Remembered words: texts encode to the same ids as by SentencePiece itself, from any number of threads, when the table
 * is empty, when it is full, and where text only seems to fall apart. LLAVA_TEST_DATA: LLaMA's model too. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/rng.h"
#include "text/tokenizer_in.h"

#define MODEL "tests/golden/models/vicuna-base/tokenizer.model"

enum { THREADS = 4, TEXTS = 400 };

struct job {
    struct tokenizer *t;
    uint64_t seed;
    int wrong;
    char text[4000];
};

static void put(void *ctx, int32_t id) { ids_add(ctx, id); }

/* Words that come again and again, words that nobody has seen, and all that could join what should be apart. */
static void make_text(struct buf *b, struct rng *r)
{
    static const char *const parts[] = {
        "the", "The", "time", "once", "upon", "don't", "a", "I", " ", "  ", "   ", "\n", "\n\n", "\t", ".", ",", "...",
        "1", "23", "007", "USER:", "ASSISTANT:", "\xe2\x96\x81", " \xe2\x96\x81", "\xe2\x96\x81 ",
        "\xe4\xbd\xa0\xe5\xa5\xbd", "\xc3\xa9", "\xe3\x82\x81", "\xf0\x9f\x98\x80", "\xe3\x80\x80", "<0x0A>", "<unk>",
        "x\n1", "\x7f",
    };
    for (int n = 1 + (int)(rng_u64(r) % 60); n > 0; n--) {
        if (rng_u64(r) % 3) buf_chr(b, ' ');
        if (rng_u64(r) % 8) buf_str(b, parts[rng_u64(r) % (sizeof parts / sizeof *parts)]);
        else
            for (int k = (int)(rng_u64(r) % 90); k > 0; k--) buf_chr(b, (char)('a' + rng_u64(r) % 26));
    }
    if (!b->n) buf_chr(b, ' ');
}

static void *compare(void *arg)
{
    struct job *j = arg;
    struct rng r;
    struct buf b = buf_make(1 << 16);
    struct ids ours = ids_make(1 << 16), theirs = ids_make(1 << 16);
    rng_seed(&r, j->seed);
    for (int i = 0; i < TEXTS && !j->wrong; i++) {
        buf_reset(&b);
        make_text(&b, &r);
        for (int prefix = 0; prefix < 2; prefix++) {
            ids_reset(&ours);
            ids_reset(&theirs);
            if (words_encode(j->t->words, (struct span){ b.p, b.n }, prefix, &ours) < 0) j->wrong = 1;
            spm_encode(prefix ? j->t->spm_prefix : j->t->spm, b.p, b.n, put, &theirs);
            if (ours.n != theirs.n || memcmp(ours.p, theirs.p, ours.n * sizeof *ours.p) != 0) j->wrong = 1;
        }
        if (j->wrong) snprintf(j->text, sizeof j->text, "%s", b.p);
    }
    buf_free(&b);
    ids_free(&ours);
    ids_free(&theirs);
    return NULL;
}

static void equal_with(const char *path)
{
    static struct job job[THREADS];
    pthread_t thread[THREADS];
    struct tokenizer *t = NULL;
    struct err e = { 0 };
    if (tokenizer_open_model(&t, path, TOKENIZER_LEGACY, &e) < 0) fail_msg("%s", e.msg);
    assert_non_null(t->words);
    for (int i = 0; i < THREADS; i++) {
        job[i] = (struct job){ .t = t, .seed = (uint64_t)i / 2 + 1 }; /* by twos the same words at the same time */
        assert_int_equal(pthread_create(&thread[i], NULL, compare, &job[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) pthread_join(thread[i], NULL);
    for (int i = 0; i < THREADS; i++)
        if (job[i].wrong) fail_msg("other ids: '%s'", job[i].text);
    tokenizer_close(t);
}

static void small(void **state)
{
    (void)state;
    equal_with(MODEL);
}

static void llama(void **state)
{
    char path[4096];
    (void)state;
    if (!getenv("LLAVA_TEST_DATA")) skip();
    snprintf(path, sizeof path, "%s/tokenizer/llama.model", getenv("LLAVA_TEST_DATA"));
    equal_with(path);
}

/* More words than there are places. */
static void full(void **state)
{
    struct tokenizer *t = NULL;
    struct err e = { 0 };
    struct ids ours = ids_make(1 << 16), theirs = ids_make(1 << 16);
    (void)state;
    if (tokenizer_open_model(&t, MODEL, TOKENIZER_LEGACY, &e) < 0) fail_msg("%s", e.msg);
    for (int i = 0; i < 400000; i++) {
        char text[40];
        const int n = snprintf(text, sizeof text, " w%x", i);
        ids_reset(&ours);
        assert_int_equal(words_encode(t->words, (struct span){ text, (size_t)n }, false, &ours), 0);
        if (i % 4000) continue;
        ids_reset(&theirs);
        spm_encode(t->spm, text, (size_t)n, put, &theirs);
        assert_int_equal(ours.n, theirs.n);
        assert_memory_equal(ours.p, theirs.p, ours.n * sizeof *ours.p);
    }
    ids_free(&ours);
    ids_free(&theirs);
    tokenizer_close(t);
}

/* What bytes alone say of the number of ids is never too much, and not much too little where pieces are the longest. */
static void least_of(const struct tokenizer *t, const char *text, size_t n, struct ids *ids)
{
    struct err e = { 0 };
    ids_reset(ids);
    if (tokenizer_encode_text(t, text, n, ids, &e) < 0) fail_msg("%s", e.msg);
    if (tokenizer_least(t, text, n) > ids->n)
        fail_msg("%zu ids, not %zu: '%s'", ids->n, tokenizer_least(t, text, n), text);
}

static void least_with(const char *path)
{
    enum { TIMES = 40 };
    struct buf b = buf_make(1 << 20);
    struct ids ids = ids_make(1 << 16);
    struct err e = { 0 };
    struct rng r;
    rng_seed(&r, 1);
    for (enum tokenizer_mode mode = TOKENIZER_LEGACY; mode <= TOKENIZER_431; mode++) {
        struct tokenizer *t = NULL;
        size_t closest = 0;
        if (tokenizer_open_model(&t, path, mode, &e) < 0) fail_msg("%s", e.msg);
        for (int32_t id = 3; id < tokenizer_info(t)->n_pieces; id += id < 1000 ? 1 : 7) {
            buf_reset(&b);
            for (int i = 0; i < TIMES; i++) tokenizer_bytes(t, id, &b);
            if (!b.n || text_check_utf8(b.p, b.n, "a text", &e) < 0) continue;
            least_of(t, b.p, b.n, &ids);
            if (ids.n <= TIMES + 2 && tokenizer_least(t, b.p, b.n) > closest) closest = tokenizer_least(t, b.p, b.n);
        }
        assert_in_range(closest, TIMES / 4, TIMES + 2); /* of pieces that are nearly the longest */
        for (int i = 0; i < TEXTS; i++) {
            buf_reset(&b);
            make_text(&b, &r);
            least_of(t, b.p, b.n, &ids);
        }
        buf_reset(&b);
        for (int i = 0; i < 400; i++) buf_str(&b, "\xe2\x96\x81");
        least_of(t, b.p, b.n, &ids);
        tokenizer_close(t);
    }
    ids_free(&ids);
    buf_free(&b);
}

static void least(void **state)
{
    char path[4096];
    (void)state;
    least_with(MODEL);
    snprintf(path, sizeof path, "%s/tokenizer/llama.model", getenv("LLAVA_TEST_DATA") ? getenv("LLAVA_TEST_DATA") : "");
    if (access(path, R_OK) == 0) least_with(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(small), cmocka_unit_test(llama), cmocka_unit_test(full),
                                        cmocka_unit_test(least) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
