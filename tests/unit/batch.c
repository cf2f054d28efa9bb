/* Many requests at once through llava_batch.h: answers are those of a session alone, every accepted request ends
 * exactly once, the queue is bounded, cancelling ends, and what is wrong is refused. */
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

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

/* All questions at once: each is answered as it was alone. */
static void together(struct place *p, const struct heard *want)
{
    struct heard *got = calloc(MANY, sizeof *got);
    struct llava_error e;
    for (int i = 0; i < MANY; i++) {
        heard_init(&got[i]);
        struct llava_request r = question(p, &got[i], i);
        must(llava_batch_submit(p->batch, &r, &e), &e);
    }
    for (int i = 0; i < MANY; i++) {
        await(&got[i], 1);
        assert_int_equal(got[i].code, 0);
        assert_string_equal(got[i].text[0], want[i].text[0]);
        assert_int_equal(got[i].r.n_new, want[i].r.n_new);
        assert_int_equal(got[i].r.finish, want[i].r.finish);
        assert_int_equal(got[i].r.n_prompt, want[i].r.n_prompt);
    }
    free(got);
}

static void test_same_as_alone(void **state)
{
    struct place p;
    struct heard *want = calloc(MANY, sizeof *want);
    (void)state;
    place_engine(&p);
    alone(&p, want);
    for (int sequences = 1; sequences <= 16; sequences *= 4) {
        place_batch(&p, sequences, 0);
        together(&p, want);
        llava_batch_close(p.batch);
        p.batch = NULL;
    }
    place_close(&p);
    free(want);
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

/* The same prompt again, and the same picture in another question: what is known is not computed again, and the answer
 * is the same. */
static void test_reuse(void **state)
{
    struct place p;
    struct heard h[3];
    struct llava_error e;
    struct llava_stats st;
    (void)state;
    place_engine(&p);
    place_batch(&p, 4, 0);
    for (int i = 0; i < 3; i++) {
        heard_init(&h[i]);
        struct llava_image *again = NULL;
        struct llava_request r = question(&p, &h[i], 0);
        if (i == 2) r.prompt = "SYSTEM. USER: <image>\nWhere? ASSISTANT:";
        must(llava_image_open(&again, p.engine, GOLDEN "pictures/wide-37x23.png", &e), &e);
        r.images = &again;
        r.sampling.temperature = 0;
        r.sampling.max_new_tokens = 12;
        must(llava_batch_submit(p.batch, &r, &e), &e);
        await(&h[i], 1);
        llava_image_close(again);
    }
    assert_int_equal(h[0].r.n_cached, 0);
    assert_true(h[0].r.image_s > 0);
    assert_int_equal(h[1].r.n_cached, h[1].r.n_prompt - 1);
    assert_true(h[1].r.image_s == 0);
    assert_string_equal(h[1].text[0], h[0].text[0]);
    assert_true(h[2].r.n_cached < 8 && h[2].r.image_s == 0); /* other rows, but the tower's are kept */
    llava_batch_stats(p.batch, &st);
    assert_int_equal(st.pictures, 2);
    assert_int_equal(st.cached_pictures, 1);
    assert_int_equal(st.answered, 3);
    assert_int_equal(st.cached_positions, h[1].r.n_cached + h[2].r.n_cached);
    assert_int_equal(st.cache_running, 0);
    assert_true(st.cache_kept > 0 && st.first_s.count == 3);
    place_close(&p);
}

struct twins {
    struct place *p;
    struct heard h[2];
    bool taken;
};

static void ask_twice(void *ctx, int choice, const struct llava_result *r, const struct llava_error *e)
{
    struct twins *t = ctx;
    struct llava_error mine;
    (void)choice;
    (void)r;
    t->taken = !e;
    for (int i = 0; i < 2; i++) {
        struct llava_request q = question(t->p, &t->h[i], 3);
        t->taken = llava_batch_submit(t->p->batch, &q, &mine) > 0 && t->taken;
    }
}

/* Two ask the same at the same time (from a callback, so that no step lies between them): it is computed once. */
static void test_together(void **state)
{
    struct place p;
    struct twins t = { .p = &p };
    struct llava_error e;
    (void)state;
    place_engine(&p);
    place_batch(&p, 4, 0);
    for (int i = 0; i < 2; i++) heard_init(&t.h[i]);
    struct llava_request r = question(&p, NULL, 1);
    r.on_text = NULL;
    r.on_end = ask_twice;
    r.ctx = &t;
    must(llava_batch_submit(p.batch, &r, &e), &e);
    for (int i = 0; i < 2; i++) await(&t.h[i], 1);
    const int first = t.h[0].r.n_cached, second = t.h[1].r.n_cached, n = t.h[0].r.n_prompt;
    assert_true(t.taken && n > 32);
    assert_true((first < second ? first : second) < 16); /* the beginning that all prompts have */
    assert_true((first < second ? second : first) >= (n - 1) / 16 * 16);
    assert_string_equal(t.h[0].text[0], t.h[1].text[0]);
    place_close(&p);
}

/* A cache for one context and many prompts that fill it: pages are given up and taken again, and answers stay right. */
static void test_small_cache(void **state)
{
    struct place p;
    struct heard *want = calloc(MANY, sizeof *want);
    struct llava_error e;
    struct llava_batch_options o = llava_batch_options_default();
    (void)state;
    place_engine(&p);
    alone(&p, want);
    o.cache_positions = 1;
    must(llava_batch_open(&p.batch, p.engine, &o, &e), &e);
    for (int round = 0; round < 2; round++) together(&p, want);
    place_close(&p);
    free(want);
}

struct spoken {
    struct heard h;
    int n, n_top;
    char text[TEXT_MAX];
    size_t length;
};

static void on_token(void *ctx, int choice, const struct llava_token *t)
{
    struct spoken *s = ctx;
    assert_int_equal(choice, 0);
    s->n++;
    s->n_top += t->n_top;
    assert_true(t->chosen.logprob <= 0 && t->n_top == 3);
    for (int i = 1; i < t->n_top; i++) assert_true(t->top[i].logprob <= t->top[i - 1].logprob);
    assert_int_equal(t->top[0].id, t->chosen.id); /* greedy */
    assert_true(t->top[0].logprob == t->chosen.logprob);
    assert_true(s->length + t->chosen.n < TEXT_MAX);
    memcpy(s->text + s->length, t->chosen.text, t->chosen.n);
    s->length += t->chosen.n;
}

static void test_tokens(void **state)
{
    struct place p;
    struct spoken *s = calloc(1, sizeof *s);
    struct llava_error e;
    (void)state;
    place_engine(&p);
    place_batch(&p, 2, 0);
    heard_init(&s->h);
    struct llava_request r = question(&p, &s->h, 0);
    r.sampling.temperature = 0;
    r.sampling.max_new_tokens = 10;
    r.top_logprobs = 3;
    r.on_token = on_token;
    must(llava_batch_submit(p.batch, &r, &e), &e);
    await(&s->h, 1);
    assert_int_equal(s->n, 10);
    assert_int_equal(s->h.r.n_new, 10);
    assert_true(s->length > 0);
    place_close(&p);
    free(s);
}

struct told {
    struct heard h; /* first */
    double logprob[512];
    int n;
};

static void on_prompt(void *ctx, int i, const struct llava_token *t)
{
    struct told *s = ctx;
    assert_int_equal(i, 0);
    assert_int_equal(t->n_top, s->n ? 2 : 0);
    if (s->n) assert_true(t->top[0].logprob >= t->chosen.logprob);
    s->logprob[s->n++] = t->chosen.logprob;
}

/* A prompt's tokens are as likely as the logits of all positions say, more of them than fit one step, and the answer is
 * the one without. */
static void test_prompt(void **state)
{
    struct place p;
    struct told *s = calloc(1, sizeof *s);
    struct heard plain;
    struct llava_error e;
    struct llava_forward f;
    char prompt[1200] = "USER:";
    (void)state;
    for (int i = 0; i < 100; i++) snprintf(prompt + strlen(prompt), sizeof prompt - strlen(prompt), " why %d", i % 7);
    place_engine(&p);
    must(llava_engine_forward(&f, p.engine, prompt, NULL, 0, &e), &e);
    place_batch(&p, 2, 0);
    heard_init(&s->h);
    heard_init(&plain);
    struct llava_request r = question(&p, &plain, 1);
    r.prompt = prompt;
    r.sampling.temperature = 0;
    r.sampling.max_new_tokens = 5;
    must(llava_batch_submit(p.batch, &r, &e), &e);
    await(&plain, 1);
    r.ctx = s;
    r.on_prompt = on_prompt;
    r.top_logprobs = 2;
    must(llava_batch_submit(p.batch, &r, &e), &e);
    await(&s->h, 1);
    assert_string_equal(s->h.text[0], plain.text[0]);
    assert_int_equal(s->h.r.n_cached, 0); /* though it was read before */
    assert_int_equal(s->n, f.n_ids);
    assert_true(s->n > 128 && isnan(s->logprob[0]));
    for (int k = 1; k < s->n; k++) {
        const float *logits = f.logits + (size_t)(k - 1) * (size_t)f.vocab;
        double most = -INFINITY, sum = 0;
        for (int i = 0; i < f.vocab; i++) most = fmax(most, logits[i]);
        for (int i = 0; i < f.vocab; i++) sum += exp(logits[i] - most);
        const double want = logits[f.ids[k]] - most - log(sum);
        if (fabs(s->logprob[k] - want) > 1e-4) fail_msg("position %d: %g, not %g", k, s->logprob[k], want);
    }
    r.images = p.image;
    r.n_images = 1;
    assert_int_equal(llava_batch_submit(p.batch, &r, &e), LLAVA_USAGE);
    llava_forward_free(&f);
    place_close(&p);
    free(s);
}

static void test_constrained(void **state)
{
    static const char schema[] =
        "{\"type\":\"object\",\"properties\":{\"ok\":{\"type\":\"boolean\"},\"kind\":{\"enum\":[\"cat\",\"dog\"]},"
        "\"n\":{\"type\":\"array\",\"items\":{\"enum\":[1,2,3]},\"minItems\":2,\"maxItems\":3}},"
        "\"required\":[\"ok\",\"kind\",\"n\"]}";
    struct place p;
    struct heard h[8];
    struct llava_error e;
    (void)state;
    place_engine(&p);
    place_batch(&p, 8, 0);
    for (int i = 0; i < 8; i++) {
        heard_init(&h[i]);
        struct llava_request r = question(&p, &h[i], 1);
        r.sampling.temperature = (float)i / 4;
        r.sampling.seed = (uint64_t)i;
        r.sampling.max_new_tokens = 300;
        if (i == 7) r.grammar = "root ::= (\"ha\" | \"ho\"){3}";
        else r.schema = schema;
        must(llava_batch_submit(p.batch, &r, &e), &e);
    }
    for (int i = 0; i < 8; i++) {
        await(&h[i], 1);
        assert_int_equal(h[i].code, 0);
        assert_int_equal(h[i].r.finish, LLAVA_FINISH_END);
        if (i == 7) {
            assert_int_equal(h[i].n[0], 6);
            assert_int_equal(h[i].text[0][0], 'h');
            continue;
        }
        json_t *v = json_loads(h[i].text[0], 0, NULL);
        if (!v) fail_msg("'%s' is no JSON", h[i].text[0]);
        assert_true(json_is_boolean(json_object_get(v, "ok")) && json_is_string(json_object_get(v, "kind")));
        assert_in_range(json_array_size(json_object_get(v, "n")), 2, 3);
        json_decref(v);
    }
    struct llava_request r = question(&p, &h[0], 1);
    r.schema = "{\"multipleOf\":2}";
    assert_int_equal(llava_batch_submit(p.batch, &r, &e), LLAVA_UNSUPPORTED);
    r.grammar = r.schema;
    assert_int_equal(llava_batch_submit(p.batch, &r, &e), LLAVA_USAGE);
    place_close(&p);
}

/* An engine on a base model, with `lora` beside it or, if base says so, merged into it. */
static void open_adapted(struct place *p, const char *path, const char *base, const char *lora)
{
    struct llava_options o = llava_options_default();
    struct llava_error e;
    *p = (struct place){ 0 };
    o.model_path = path;
    o.model_base = base;
    o.dtype = "f32";
    o.quiet = true;
    if (lora) o.lora[o.n_lora++] = lora;
    must(llava_open(&p->engine, &o, &e), &e);
    place_batch(p, 8, 0);
}

static struct llava_request spoken_to(struct place *p, struct heard *h, int i, const char *adapter)
{
    struct llava_request r = question(p, h, i % 2 ? 1 : 3);
    heard_init(h);
    r.sampling.temperature = 0;
    r.sampling.max_new_tokens = 24;
    r.adapter = adapter;
    return r;
}

/* Requests with and without an adapter side by side: each gets the answer that its model alone gives. */
static void test_adapters(void **state)
{
    enum { EACH = 4 };
    static const char *const files[] = { "adapter_config.json", "adapter_model.safetensors" };
    struct place base, merged, both;
    struct heard *h = calloc(4 * EACH, sizeof *h);
    struct llava_error e;
    char dir[] = "/tmp/llava-batch-XXXXXX", from[256], to[256], lora[256];
    (void)state;
    assert_non_null(mkdtemp(dir));
    for (int i = 0; i < 2; i++) { /* the adapter without the projector that came with it */
        snprintf(from, sizeof from, "%s/" GOLDEN "models/llava-lora/%s", getcwd(lora, sizeof lora), files[i]);
        snprintf(to, sizeof to, "%s/%s", dir, files[i]);
        assert_int_equal(symlink(from, to), 0);
    }
    snprintf(lora, sizeof lora, "tuned=%s", dir);
    open_adapted(&base, GOLDEN "models/vicuna-base", NULL, NULL);
    open_adapted(&merged, GOLDEN "models/llava-lora", GOLDEN "models/vicuna-base", NULL);
    open_adapted(&both, GOLDEN "models/vicuna-base", NULL, lora);
    assert_string_equal(llava_adapter_name(both.engine, 0), "tuned");
    assert_null(llava_adapter_name(both.engine, 1));
    for (int i = 0; i < 4 * EACH; i++) {
        struct place *p = i < EACH ? &base : i < 2 * EACH ? &merged : &both;
        struct llava_request r = spoken_to(p, &h[i], i, p == &both && i % EACH >= 2 ? "tuned" : NULL);
        must(llava_batch_submit(p->batch, &r, &e), &e);
    }
    for (int i = 0; i < 4 * EACH; i++) {
        await(&h[i], 1);
        assert_int_equal(h[i].code, 0);
        if (i >= 2 * EACH) assert_string_equal(h[i].text[0], h[i % EACH + (i % EACH >= 2 ? EACH : 0)].text[0]);
    }
    assert_string_not_equal(h[2].text[0], h[EACH + 2].text[0]);
    struct llava_request r = spoken_to(&both, &h[0], 1, "other");
    assert_int_equal(llava_batch_submit(both.batch, &r, &e), LLAVA_USAGE);
    place_close(&base);
    place_close(&merged);
    place_close(&both);
    for (int i = 0; i < 2; i++) {
        snprintf(to, sizeof to, "%s/%s", dir, files[i]);
        unlink(to);
    }
    rmdir(dir);
    free(h);
}

/* An adapter that lies beside its projector, on a language model that has none: pictures are read as by the two merged,
 * and only where the adapter is asked for. */
static void test_sight(void **state)
{
    enum { ASKED = 4 };
    struct place merged, both;
    struct heard *h = calloc(2 * ASKED, sizeof *h);
    struct llava_error e;
    (void)state;
    open_adapted(&merged, GOLDEN "models/llava-lora", GOLDEN "models/vicuna-base", NULL);
    open_adapted(&both, GOLDEN "models/vicuna-base", NULL, "seeing=" GOLDEN "models/llava-lora");
    for (int i = 0; i < 2 * ASKED; i++) {
        struct place *p = i < ASKED ? &merged : &both;
        if (i % ASKED == 0) {
            must(llava_image_open(&p->image[0], p->engine, GOLDEN "pictures/wide-37x23.png", &e), &e);
            must(llava_image_open(&p->image[1], p->engine, GOLDEN "pictures/square-50x50.png", &e), &e);
        }
        struct llava_request r = question(p, &h[i], i % ASKED);
        heard_init(&h[i]);
        r.sampling.temperature = 0;
        r.sampling.max_new_tokens = 24;
        r.adapter = p == &both ? "seeing" : NULL;
        must(llava_batch_submit(p->batch, &r, &e), &e);
    }
    for (int i = 0; i < 2 * ASKED; i++) {
        await(&h[i], 1);
        assert_int_equal(h[i].code, 0);
        assert_true(h[i].n[0] > 0);
        if (i >= ASKED) assert_string_equal(h[i].text[0], h[i - ASKED].text[0]);
    }
    assert_string_not_equal(h[0].text[0], h[2].text[0]);
    struct llava_request r = question(&both, &h[0], 0);
    assert_int_equal(llava_batch_submit(both.batch, &r, &e), LLAVA_UNSUPPORTED);
    place_close(&merged);
    place_close(&both);
    free(h);
}

/* Threads that submit, cancel and ask for statistics side by side: each accepted request ends once. */
struct crowd {
    struct place *p;
    int number;
};

static void *crowd_run(void *ctx)
{
    struct crowd *c = ctx;
    struct heard *h = calloc(16, sizeof *h);
    struct llava_stats st;
    int64_t id[16];
    for (int i = 0; i < 16; i++) {
        heard_init(&h[i]);
        struct llava_request r = question(c->p, &h[i], 16 * c->number + i);
        r.sampling.max_new_tokens = 30;
        id[i] = llava_batch_submit(c->p->batch, &r, NULL);
        if (i % 3 == 0 && id[i] > 0) llava_batch_cancel(c->p->batch, id[i]);
        llava_batch_stats(c->p->batch, &st);
    }
    for (int i = 0; i < 16; i++)
        if (id[i] > 0) await(&h[i], 1);
    free(h);
    return NULL;
}

static void test_crowd(void **state)
{
    enum { THREADS = 6 };
    struct place p;
    struct crowd c[THREADS];
    pthread_t thread[THREADS];
    struct llava_stats st;
    (void)state;
    place_engine(&p);
    place_batch(&p, 5, 64);
    for (int i = 0; i < THREADS; i++) {
        c[i] = (struct crowd){ &p, i };
        assert_int_equal(pthread_create(&thread[i], NULL, crowd_run, &c[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) pthread_join(thread[i], NULL);
    llava_batch_stats(p.batch, &st);
    assert_int_equal(st.submitted + st.refused, THREADS * 16);
    assert_int_equal(st.waiting, 0);
    place_close(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_as_alone),
        cmocka_unit_test(test_choices),
        cmocka_unit_test(test_full_and_cancelled),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_reuse),
        cmocka_unit_test(test_together),
        cmocka_unit_test(test_small_cache),
        cmocka_unit_test(test_tokens),
        cmocka_unit_test(test_prompt),
        cmocka_unit_test(test_constrained),
        cmocka_unit_test(test_adapters),
        cmocka_unit_test(test_sight),
        cmocka_unit_test(test_crowd),
    };
    return cmocka_run_group_tests_name("batch", tests, NULL, NULL);
}
