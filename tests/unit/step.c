/* Steps on the GPU of the build: recorded and replayed they give the bits that they give kernel by kernel,
 * alone, among others and in paged stores; and the host's numbers, as near as the types allow. Without a GPU
 * only what any device does is tested, on the host. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/log.h"
#include "base/rng.h"
#include "run/session.h"
#include "run/step.h"

enum { PROMPT = 14, DEPTH = 18, SEQS = 3, LIST = 2 /* pages of a sequence */ };

static const char *kind;

/* bits: 16, or those that the weights are quantised to. */
static struct engine *open_engine(const char *device, const char *dtype, int bits)
{
    struct engine *g;
    struct err e = { 0 };
    const struct engine_options o = {
        .path = "tests/golden/models/llava-liuhaotian", .device = device, .dtype = dtype, .context = 4 * DEPTH,
        .load_8bit = bits == 8, .load_4bit = bits == 4
    };
    if (engine_open(&g, &o, &e) < 0) fail_msg("%s", e.msg);
    return g;
}

/* Reads SEQS prompts, then decodes; row b of the result is what sequence b says at the end. rows: sequences
 * of a step. */
static float *decode(struct engine *g, bool paged, int rows)
{
    const int V = g->model.cfg.llama.V;
    float *said = malloc((size_t)SEQS * (size_t)V * sizeof *said);
    int32_t token[DEPTH], pos[DEPTH], row[DEPTH], range[3 * DEPTH], pages[SEQS * LIST];
    struct cache c;
    struct err e;
    assert_int_equal(cache_init(&c, g, SEQS * LIST * KV_PAGE, &e), 0);
    for (int i = 0; i < SEQS * LIST; i++) pages[i] = i / LIST + i % LIST * SEQS; /* they take turns */
    for (int b = 0; b < SEQS; b++) {
        for (int p = 0; p < PROMPT; p++) {
            const int at = paged ? pages[b * LIST + p / KV_PAGE] * KV_PAGE + p % KV_PAGE : b * DEPTH + p;
            token[p] = (p * 37 + b * 11 + 5) % V, pos[p] = p, row[p] = at;
            const int32_t own[] = { paged ? 0 : b * DEPTH, paged ? p + 1 : b * DEPTH + p + 1, b };
            memcpy(range + p * (paged ? 3 : 2), own, (paged ? 3 : 2) * sizeof *own);
        }
        const struct step s = { .n = PROMPT,
                                .token = token,
                                .pos = pos,
                                .row = row,
                                .range = range,
                                .pages = pages,
                                .n_seqs = paged ? SEQS : 0,
                                .n_pages = LIST };
        assert_non_null(engine_step(g, &c, &s));
    }
    for (int p = PROMPT; p < DEPTH; p++)
        for (int b = 0; b < SEQS; b += rows) {
            for (int i = 0; i < rows; i++) {
                const int q = b + i;
                const int32_t own[] = { paged ? 0 : q * DEPTH, paged ? p + 1 : q * DEPTH + p + 1, i };
                token[i] = (p * 91 + q) % V, pos[i] = p;
                row[i] = paged ? pages[q * LIST + p / KV_PAGE] * KV_PAGE + p % KV_PAGE : q * DEPTH + p;
                memcpy(range + i * (paged ? 3 : 2), own, (paged ? 3 : 2) * sizeof *own);
            }
            const int32_t out[SEQS] = { 2, 0, 1 }; /* in another order, where all are there */
            const struct step s = { .n = rows,
                                    .token = token,
                                    .pos = pos,
                                    .row = row,
                                    .range = range,
                                    .pages = pages + b * LIST,
                                    .n_seqs = paged ? rows : 0,
                                    .n_pages = LIST,
                                    .decode = true,
                                    .out = rows == SEQS ? out : NULL,
                                    .n_out = rows };
            const float *y = engine_step(g, &c, &s);
            for (int i = 0; i < rows; i++)
                memcpy(said + (size_t)(b + (s.out ? out[i] : i)) * (size_t)V, y + (size_t)i * (size_t)V,
                       (size_t)V * sizeof *y);
        }
    cache_fini(&c);
    return said;
}

static void replay_is_eager(void **state)
{
    (void)state;
    static const struct {
        const char *dtype;
        int bits;
    } types[] = { { "bf16", 16 }, { "f32", 16 }, { "bf16", 8 }, { "f16", 4 } };
    for (int t = 0; t < 4; t++) {
        struct engine *g = open_engine(kind, types[t].dtype, types[t].bits);
        const size_t bytes = (size_t)SEQS * (size_t)g->model.cfg.llama.V * sizeof(float);
        for (int paged = 0; paged < 2; paged++) {
            g->eager = true;
            float *want = decode(g, paged, 1);
            g->eager = false;
            for (int rows = 1; rows <= SEQS;
                 rows += 2) { /* alone, and all in a step that is recorded for more rows */
                float *got = decode(g, paged, rows);
                if (memcmp(got, want, bytes))
                    fail_msg("%s, %d bits, %s, %d rows", types[t].dtype, types[t].bits, paged ? "pages" : "rows", rows);
                assert_true(steps_launches(g) > 0);
                free(got);
            }
            free(want);
        }
        engine_close(g);
    }
}

static double distance(const float *a, const float *b, size_t n)
{
    double diff = 0, sum = 0;
    for (size_t i = 0; i < n; i++) diff += pow(a[i] - b[i], 2), sum += pow(b[i], 2);
    return sqrt(diff / sum);
}

/* Of a prompt's rows some are wanted, or none: they say what they say among all, and the next token sees the same. */
static void rows_that_are_asked_for(void **state)
{
    (void)state;
    struct engine *g = open_engine(kind ? kind : "cpu", "f32", 16);
    const size_t V = (size_t)g->model.cfg.llama.V, bytes = V * sizeof(float);
    const int32_t out[] = { PROMPT - 1, 3 }, last[] = { 5, PROMPT, PROMPT, 0, PROMPT + 1 }; /* token, pos, row, range */
    int32_t token[PROMPT], pos[PROMPT], range[2 * PROMPT];
    float *all = malloc(PROMPT * bytes), *next = malloc(bytes);
    struct cache c;
    struct err e;
    for (int p = 0; p < PROMPT; p++) token[p] = p * 37 + 5, pos[p] = p, range[2 * p] = 0, range[2 * p + 1] = p + 1;
    struct step s = { .n = PROMPT, .token = token, .pos = pos, .row = pos, .range = range };
    const struct step one = { .n = 1, .token = last, .pos = last + 1, .row = last + 2, .range = last + 3,
                              .decode = true };
    assert_int_equal(cache_init(&c, g, PROMPT + 1, &e), 0);
    memcpy(all, engine_step(g, &c, &s), PROMPT * bytes);
    memcpy(next, engine_step(g, &c, &one), bytes);
    s.out = out;
    for (s.n_out = 0; s.n_out <= 2; s.n_out++) {
        const float *y = engine_step(g, &c, &s);
        for (int i = 0; i < s.n_out; i++) assert_true(distance(y + (size_t)i * V, all + (size_t)out[i] * V, V) < 1e-5);
        if (!s.n_out) assert_null(y);
        assert_memory_equal(engine_step(g, &c, &one), next, bytes);
    }
    free(all), free(next);
    cache_fini(&c);
    engine_close(g);
}

static void as_the_host(void **state)
{
    (void)state;
    for (int bits = 4; bits <= 16; bits *= 2) { /* in f32 nothing is rounded, quantised or not */
        struct engine *host = open_engine("cpu", "f32", bits), *card = open_engine(kind, "f32", bits);
        float *want = decode(host, true, 1), *got = decode(card, true, SEQS);
        assert_true(distance(got, want, (size_t)SEQS * (size_t)host->model.cfg.llama.V) < 1e-5);
        free(want), free(got);
        engine_close(host);
        engine_close(card);
    }
}

/* Rounding x to 8 bits, and 16 bits elsewhere, moves logits by a few hundredths of what they are. */
static void quantised_as_the_host(void **state)
{
    (void)state;
    for (int bits = 4; bits <= 8; bits *= 2) {
        struct engine *host = open_engine("cpu", "f32", bits), *card = open_engine(kind, "bf16", bits);
        float *want = decode(host, true, 1), *got = decode(card, true, SEQS);
        assert_int_equal(card->kv_type, DT_Q8);
        assert_true(distance(got, want, (size_t)SEQS * (size_t)host->model.cfg.llama.V) < 0.05);
        free(want), free(got);
        engine_close(host);
        engine_close(card);
    }
}

/* What a session answers, greedily or by chance; the same on the host, kernel by kernel, and with steps that begin
 * before the last one's tokens are known. */
static void answer(struct engine *g, float temperature, int32_t *ids, int *n_ids)
{
    struct err e = { 0 };
    struct session *s = NULL;
    struct prompt p = { 0 };
    struct llava_sampling how = { .temperature = temperature, .top_p = 0.95f, .top_k = 60, .max_new_tokens = 20,
                                  .seed = 3 };
    struct llava_result r;
    if (prompt_make(&p, g, "What is in the picture?", NULL, 0, &e) < 0 || session_open(&s, g, &e) < 0 ||
        session_read(s, &p, NULL, NULL, &e) < 0 || session_generate(s, &how, NULL, NULL, &r, &e) < 0)
        fail_msg("%s", e.msg);
    *n_ids = 0;
    for (int i = s->q->n_prompt; i < s->q->n_at; i++) ids[(*n_ids)++] = s->q->at[i].token;
    session_close(s);
    prompt_fini(&p);
}

static void answers_are_equal(void **state)
{
    (void)state;
    for (int t = 0; t < 2; t++) {
        const float temperature = t ? 1.5f : 0;
        int32_t want[32], got[32];
        int n, m;
        struct engine *g = open_engine("cpu", "f32", 16);
        answer(g, temperature, want, &n);
        engine_close(g);
        g = open_engine(kind, "f32", 16);
        for (int eager = 0; eager < 2; eager++) {
            g->eager = eager;
            answer(g, temperature, got, &m);
            assert_int_equal(m, n);
            assert_memory_equal(got, want, (size_t)n * sizeof *got);
        }
        engine_close(g);
    }
}

/* Two tiles, one after another into the same memory: the host does not wait. */
static void encode(struct engine *g, const float *pixels, size_t n, float *out, size_t m)
{
    struct tensor y = tensor_2d(NULL, engine_act(g), llava_tile_rows(&g->model), g->model.cfg.llama.C);
    struct err e;
    assert_int_equal(dev_alloc(&y.p, g->dev, tensor_bytes(y), &e), 0);
    for (int i = 0; i < 2; i++) {
        engine_encode(g, SIGHT_MODEL, pixels + (size_t)i * n, y);
        engine_values(g, out + (size_t)i * m, y);
    }
    dev_free(g->dev, y.p, tensor_bytes(y));
}

static void tower(void **state)
{
    (void)state;
    struct engine *host = open_engine("cpu", "f32", 16), *card = open_engine(kind, "f32", 16);
    const struct llava_config *c = &host->model.cfg;
    const size_t n = 3 * (size_t)c->clip.image * (size_t)c->clip.image,
                 m = (size_t)llava_tile_rows(&host->model) * (size_t)c->llama.C;
    float *pixels = malloc(2 * n * sizeof *pixels), *y = malloc(6 * m * sizeof *y);
    struct rng r;
    rng_seed(&r, 3);
    for (size_t i = 0; i < 2 * n; i++) pixels[i] = (float)rng_normal(&r);
    encode(host, pixels, n, y, m);
    encode(card, pixels, n, y + 2 * m, m);
    card->eager = true;
    encode(card, pixels, n, y + 4 * m, m);
    assert_memory_equal(y + 2 * m, y + 4 * m, 2 * m * sizeof *y);
    assert_true(distance(y + 2 * m, y, 2 * m) < 1e-5);
    free(pixels), free(y);
    engine_close(host);
    engine_close(card);
}

static double kept; /* GB that the plan leaves free */

/* What opening a random 1b says where `left` GB are free: GB that it needs, and that the precision it names does. */
static double refused(double left, const char *dtype, int bits, int *other, double *then, bool *too_much)
{
    struct engine *g;
    struct err e = { 0 };
    const struct engine_options o = { .device = kind, .dtype = dtype, .context = 2048, .load_8bit = bits == 8,
                                      .load_4bit = bits == 4 };
    struct dev *d;
    void *rest;
    assert_int_equal(dev_open(&d, kind, &e), 0);
    const size_t taken = dev_memory_now(d).free - (size_t)(left * 1e9);
    if (dev_alloc(&rest, d, taken, &e) < 0) fail_msg("%s", e.msg);
    assert_int_equal(engine_random(&g, "1b", &o, &e), ERR_NOMEM);
    assert_null(g);
    assert_non_null(strstr(e.msg, "are missing"));
    dev_free(d, rest, taken);
    dev_close(d);
    const char *needs = strstr(e.msg, " needs "), *has = strstr(e.msg, "' has "), *in = strstr(e.msg, "; in ");
    if (has) kept = left - strtod(has + 6, NULL);
    *other = 0;
    if (in) assert_int_equal(sscanf(in, "; in %d bits it would be %lf GB", other, then), 2);
    *too_much = strstr(e.msg, ", too much as well");
    return needs ? strtod(needs + 7, NULL) : 0;
}

/* What is said of a smaller precision is what that precision says of itself. */
static void too_little_memory(void **state)
{
    (void)state;
    enum { KINDS = 4 };
    static const struct { const char *dtype; int bits; } kinds[KINDS] = {
        { "f32", 32 }, { "bf16", 16 }, { "auto", 8 }, { "auto", 4 }
    };
    double needs[KINDS], then = 0;
    int other;
    bool too_much;
    for (int i = 0; i < KINDS; i++) needs[i] = refused(0.5, kinds[i].dtype, kinds[i].bits, &other, &then, &too_much);
    assert_int_equal(other, 0); /* nothing is smaller than 4 bits */
    for (int i = 0; i < KINDS - 1; i++) {
        assert_true(needs[i] > needs[i + 1] + 0.2);
        refused(0.5, kinds[i].dtype, kinds[i].bits, &other, &then, &too_much);
        assert_int_equal(other, 4);
        assert_true(too_much && fabs(then - needs[KINDS - 1]) < 0.15); /* of tenths */
        refused(needs[i + 1] + kept + 0.15, kinds[i].dtype, kinds[i].bits, &other, &then, &too_much);
        assert_int_equal(other, kinds[i + 1].bits);
        assert_true(!too_much && fabs(then - needs[i + 1]) < 0.15);
    }
}

int main(void)
{
    struct err e = { 0 };
    struct dev *d = NULL;
    kind = strstr(dev_kinds(), ", ");
    kind = kind ? kind + 2 : NULL;
    static const struct CMUnitTest host[] = { cmocka_unit_test(rows_that_are_asked_for) };
    log_set_level(LOG_QUIET);
    if (kind && dev_open(&d, kind, &e) < 0) kind = NULL;
    dev_close(d);
    if (!kind) return cmocka_run_group_tests(host, NULL, NULL);
    static const struct CMUnitTest tests[] = { cmocka_unit_test(rows_that_are_asked_for),
                                               cmocka_unit_test(replay_is_eager),
                                               cmocka_unit_test(as_the_host), cmocka_unit_test(quantised_as_the_host),
                                               cmocka_unit_test(tower), cmocka_unit_test(answers_are_equal),
                                               cmocka_unit_test(too_little_memory) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
