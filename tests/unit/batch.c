/* Many requests at once through llava_batch.h: answers are those of a session alone, every accepted request ends
 * exactly once, the queue is bounded, cancelling ends, and what is wrong is refused. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "llava_batch.h"

#define GOLDEN "tests/golden/"
#define SEEING GOLDEN "models/llava-liuhaotian"
enum { TEXT_MAX = 2048, MANY = 24, NEW = 20 };

static void must(int64_t rc, const struct llava_error *e)
{
    if (rc < 0) fail_msg("%d: %s", e->code, e->message);
}

/* One answer as the callbacks leave it. `ends` is read by the test's thread while it waits. */
struct heard {
    pthread_mutex_t lock;
    pthread_cond_t ended;
    char text[8][TEXT_MAX];
    size_t n[8], pieces, stop_after;
    int ends;
    struct llava_result r;
    int code;
};

static void heard_init(struct heard *h)
{
    memset(h, 0, sizeof *h);
    pthread_mutex_init(&h->lock, NULL);
    pthread_cond_init(&h->ended, NULL);
}

static bool on_text(void *ctx, int i, const char *text, size_t n)
{
    struct heard *h = ctx;
    if (h->n[i] + n >= TEXT_MAX) return false;
    memcpy(h->text[i] + h->n[i], text, n);
    h->n[i] += n;
    return ++h->pieces != h->stop_after;
}

static void on_end(void *ctx, int i, const struct llava_result *r, const struct llava_error *e)
{
    struct heard *h = ctx;
    (void)i;
    pthread_mutex_lock(&h->lock);
    h->ends++;
    h->r = *r;
    h->code = e ? e->code : 0;
    pthread_cond_signal(&h->ended);
    pthread_mutex_unlock(&h->lock);
}

static void await(struct heard *h, int ends)
{
    pthread_mutex_lock(&h->lock);
    while (h->ends < ends) pthread_cond_wait(&h->ended, &h->lock);
    pthread_mutex_unlock(&h->lock);
}

struct place {
    struct llava_engine *engine;
    struct llava_batch *batch;
    struct llava_image *image[2];
};

static void place_engine(struct place *p)
{
    struct llava_options o = llava_options_default();
    struct llava_error e;
    *p = (struct place){ 0 };
    o.model_path = SEEING;
    o.quiet = true;
    must(llava_open(&p->engine, &o, &e), &e);
    must(llava_image_open(&p->image[0], p->engine, GOLDEN "pictures/wide-37x23.png", &e), &e);
    must(llava_image_open(&p->image[1], p->engine, GOLDEN "pictures/square-50x50.png", &e), &e);
}

static void place_batch(struct place *p, int sequences, int queue)
{
    struct llava_batch_options o = llava_batch_options_default();
    struct llava_error e;
    o.sequences = sequences;
    o.queue = queue;
    must(llava_batch_open(&p->batch, p->engine, &o, &e), &e);
}

static void place_close(struct place *p)
{
    llava_batch_close(p->batch);
    for (int i = 0; i < 2; i++) llava_image_close(p->image[i]);
    llava_close(p->engine);
}

/* The i-th of many different questions: length, pictures and drawing differ. */
static struct llava_request question(struct place *p, struct heard *h, int i)
{
    static const char *const prompts[] = {
        "USER: <image>\nWhat is in the picture? ASSISTANT:", "USER: Why? ASSISTANT:",
        "USER: <image>\n<image>\nWhich of the two is larger? ASSISTANT:",
        "USER: Tell me about the sea, the wind and the ships that sail there in winter. ASSISTANT:"
    };
    static const int pictures[] = { 1, 0, 2, 0 };
    struct llava_request r = llava_request_default();
    r.prompt = prompts[i % 4];
    r.n_images = pictures[i % 4];
    r.images = p->image;
    r.sampling.temperature = i % 3 ? 0 : 1;
    r.sampling.seed = (uint64_t)i;
    r.sampling.max_new_tokens = 1 + i % NEW;
    r.client = (uint64_t)i % 5;
    r.on_text = on_text;
    r.on_end = on_end;
    r.ctx = h;
    return r;
}

static bool keep(void *ctx, const char *text, size_t n)
{
    return on_text(ctx, 0, text, n);
}

/* What a session alone says to each question. */
static void alone(struct place *p, struct heard *want)
{
    struct llava_session *s;
    struct llava_error e;
    for (int i = 0; i < MANY; i++) {
        heard_init(&want[i]);
        struct llava_request r = question(p, &want[i], i);
        must(llava_session_open(&s, p->engine, &e), &e);
        must(llava_session_prompt(s, r.prompt, r.images, r.n_images, &e), &e);
        must(llava_session_generate(s, &r.sampling, keep, &want[i], &want[i].r, &e), &e);
        llava_session_close(s);
    }
}

static void test_same_as_alone(void **state)
{
    struct place p;
    struct heard *want = calloc(MANY, sizeof *want), *got = calloc(MANY, sizeof *got);
    struct llava_error e;
    (void)state;
    place_engine(&p);
    alone(&p, want);
    for (int sequences = 1; sequences <= 16; sequences *= 4) {
        place_batch(&p, sequences, 0);
        for (int i = 0; i < MANY; i++) {
            heard_init(&got[i]);
            struct llava_request r = question(&p, &got[i], i);
            must(llava_batch_submit(p.batch, &r, &e), &e);
        }
        for (int i = 0; i < MANY; i++) {
            await(&got[i], 1);
            assert_int_equal(got[i].code, 0);
            assert_string_equal(got[i].text[0], want[i].text[0]);
            assert_int_equal(got[i].r.n_new, want[i].r.n_new);
            assert_int_equal(got[i].r.finish, want[i].r.finish);
            assert_int_equal(got[i].r.n_prompt, want[i].r.n_prompt);
        }
        llava_batch_close(p.batch);
        p.batch = NULL;
    }
    place_close(&p);
    free(want);
    free(got);
}

static void test_choices(void **state)
{
    struct place p;
    struct heard h, one;
    struct llava_error e;
    (void)state;
    place_engine(&p);
    place_batch(&p, 4, 0);
    heard_init(&h);
    struct llava_request r = question(&p, &h, 0);
    r.sampling.max_new_tokens = 12;
    r.n = 6;
    must(llava_batch_submit(p.batch, &r, &e), &e);
    await(&h, 6);
    for (int i = 0; i < 6; i++) {
        heard_init(&one);
        struct llava_request again = question(&p, &one, 0);
        again.sampling.max_new_tokens = 12;
        again.sampling.seed = r.sampling.seed + (uint64_t)i;
        must(llava_batch_submit(p.batch, &again, &e), &e);
        await(&one, 1);
        assert_string_equal(one.text[0], h.text[i]);
    }
    assert_string_not_equal(h.text[0], h.text[1]);
    place_close(&p);
}

static void test_full_and_cancelled(void **state)
{
    struct place p;
    struct heard h[6];
    struct llava_error e;
    int64_t id[6];
    int accepted = 0;
    (void)state;
    place_engine(&p);
    place_batch(&p, 1, 2);
    for (int i = 0; i < 6; i++) {
        heard_init(&h[i]);
        struct llava_request r = question(&p, &h[i], 1);
        r.sampling.max_new_tokens = 400;
        r.sampling.temperature = 0;
        id[i] = llava_batch_submit(p.batch, &r, &e);
        accepted += id[i] > 0;
        if (id[i] < 0) assert_int_equal(id[i], LLAVA_BUSY);
    }
    assert_true(accepted >= 2 && accepted < 6);
    for (int i = 0; i < 6; i++)
        if (id[i] > 0) llava_batch_cancel(p.batch, id[i]);
    for (int i = 0; i < 6; i++) {
        if (id[i] < 0) continue;
        await(&h[i], 1);
        assert_int_equal(h[i].code, 0);
        assert_int_equal(h[i].r.finish, LLAVA_FINISH_CANCELLED);
    }
    llava_batch_cancel(p.batch, id[0]); /* long over */
    struct heard last;
    heard_init(&last);
    struct llava_request r = question(&p, &last, 1);
    r.sampling.max_new_tokens = 400;
    must(llava_batch_submit(p.batch, &r, &e), &e);
    llava_batch_close(p.batch); /* ends what is left */
    p.batch = NULL;
    assert_int_equal(last.ends, 1);
    for (int i = 0; i < 6; i++) assert_int_equal(h[i].ends, id[i] > 0);
    place_close(&p);
}

static void refuse(struct place *p, const struct llava_request *r, int code, const char *part)
{
    struct llava_error e = { 0 };
    assert_int_equal(llava_batch_submit(p->batch, r, &e), code);
    if (!strstr(e.message, part)) fail_msg("'%s' does not say '%s'", e.message, part);
}

static void test_refused(void **state)
{
    struct place p;
    struct heard h;
    struct llava_error e;
    (void)state;
    place_engine(&p);
    place_batch(&p, 2, 0);
    heard_init(&h);
    struct llava_request ok = question(&p, &h, 1), r = ok;
    r.prompt = NULL;
    refuse(&p, &r, LLAVA_USAGE, "prompt");
    r = ok;
    r.prompt = "USER: <image> ASSISTANT:";
    refuse(&p, &r, LLAVA_USAGE, "1 \"<image>\"");
    r = ok;
    r.prompt = "\xff";
    refuse(&p, &r, LLAVA_FORMAT, "UTF-8");
    r = ok;
    r.n = 0;
    refuse(&p, &r, LLAVA_USAGE, "0 answers");
    r = ok;
    r.top_logprobs = 21;
    refuse(&p, &r, LLAVA_USAGE, "21");
    r = ok;
    r.adapter = "none";
    refuse(&p, &r, LLAVA_USAGE, "'none'");
    r = ok;
    r.sampling.top_p = 0;
    refuse(&p, &r, LLAVA_USAGE, "top_p");
    char *lots = malloc(100000);
    for (size_t i = 0; i < 99999; i++) lots[i] = "word "[i % 5];
    lots[99999] = 0;
    r = ok;
    r.prompt = lots;
    refuse(&p, &r, LLAVA_LIMIT, "context");
    free(lots);
    assert_true(llava_count(p.engine, "USER: Why? ASSISTANT:", NULL, 0, &e) > 4);
    assert_int_equal(h.ends, 0);
    place_close(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_as_alone),
        cmocka_unit_test(test_choices),
        cmocka_unit_test(test_full_and_cancelled),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests_name("batch", tests, NULL, NULL);
}
