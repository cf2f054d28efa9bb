/* See worker.h. */
#include "serve/worker.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/plat.h"
#include "serve/base64.h"
#include "serve/fields.h"
#include "serve/protocol.h"

enum { NEW_TOKENS = 256, NEW_TOKENS_MAX = 1024, AGAIN_S = 5 };

struct worker_node {
    struct worker_options o;
    struct gen *g;
    struct journal *journal;
    pthread_t beater;
    bool beating;
    pthread_mutex_t lock; /* all below */
    pthread_cond_t wake;
    bool closing, changed;
};

/* ---- one answer */

struct answer {
    struct gen_task task; /* first */
    struct worker_node *w;
    json_t *body;         /* what q borrows from; NULL once the batch has the request */
    struct worker_ask q;
    struct bad bad;
    struct buf text;      /* prompt and all that followed */
    bool any;             /* a chunk was written */
    enum protocol_code code;
    char error[1000];
};

static void write_chunk(struct exchange *x, const char *text, size_t n, enum protocol_code code, const char *error)
{
    json_t *v = json_pack("{ss%si}", "text", text, n, "error_code", (int)code);
    if (v && error) json_object_set_new(v, "error", json_string(error));
    char *line = v ? json_dumps(v, JSON_ENSURE_ASCII) : NULL;
    if (line) exchange_write_latest(x, line, strlen(line) + 1);
    free(line);
    json_decref(v);
}

static void answer_finish(struct gen_task *t)
{
    struct answer *a = (struct answer *)t;
    struct exchange *x = t->x;
    if (a->code)
        write_chunk(x, PROTOCOL_ERROR_TEXT, strlen(PROTOCOL_ERROR_TEXT), a->code, a->error);
    else if (!a->any)
        write_chunk(x, a->text.p ? a->text.p : "", a->text.n, PROTOCOL_OK, NULL);
    if (a->code && !exchange_gone(x)) journal_error(a->w->journal, "Caught error: %s", a->error);
    gen_task_fini(t);
    buf_free(&a->text);
    json_decref(a->body);
    free(a);
    exchange_end(x);
}

static bool answer_text(void *ctx, int choice, const char *text, size_t n)
{
    struct answer *a = ctx;
    (void)choice;
    if (!n) return true;
    buf_add(&a->text, text, n);
    write_chunk(a->task.x, a->text.p, a->text.n, PROTOCOL_OK, NULL);
    a->any = true;
    return !exchange_gone(a->task.x);
}

static void answer_end(void *ctx, int choice, const struct llava_result *r, const struct llava_error *e)
{
    struct answer *a = ctx;
    (void)choice;
    if (e || r->finish == LLAVA_FINISH_CANCELLED) {
        a->code = PROTOCOL_WORKER;
        snprintf(a->error, sizeof a->error, "%s", e ? e->message : "the worker is stopping");
    }
    gen_ended(&a->task);
}

static int count_images(const char *prompt)
{
    int n = 0;
    for (; (prompt = strstr(prompt, "<image>")) != NULL; prompt++) n++;
    return n;
}

/* "512" and " 0.7 ", as Python's int() and float() take them. */
static bool number_of(double *ret, const char *s, bool whole)
{
    char *end;
    s += strspn(s, " \t\r\n");
    if (!*s || s[strspn(s, whole ? "+-0123456789 \t\r\n" : "+-.0123456789eE \t\r\n")]) return false;
    *ret = strtod(s, &end);
    return end > s && !end[strspn(end, " \t\r\n")];
}

/* LLaVA's worker calls float(), or int(), on whatever it gets: a number, a text that is one, true or false. */
static void read_number(const struct fields *f, const char *key, bool whole, double *ret, double min, double max)
{
    const json_t *v = json_object_get(f->o, key);
    double d = json_is_true(v) ? 1 : json_number_value(v);
    if (!v || json_is_null(v)) return;
    if (!json_is_number(v) && !json_is_boolean(v) && !(json_is_string(v) && number_of(&d, json_string_value(v), whole)))
        fields_bad(f, key, "is %s, want a %s", fields_kind(v), whole ? "whole number" : "number");
    else if (!(d >= min && d <= max))
        fields_bad(f, key, "is %g, want %g to %g", d, min, max);
    else
        *ret = d;
}

void worker_read(struct worker_ask *a, const json_t *body, struct bad *bad)
{
    struct fields f = fields_at(body, bad);
    json_t *images = NULL;
    double temperature = 1, top_p = 1, most = NEW_TOKENS;
    *a = (struct worker_ask){ .fields = f };
    if (!fields_str(&f, "prompt", &a->prompt)) fields_need(&f, "prompt");
    fields_array(&f, "images", &images);
    read_number(&f, "temperature", false, &temperature, 0, 100);
    read_number(&f, "top_p", false, &top_p, 0, 1);
    read_number(&f, "max_new_tokens", true, &most, INT32_MIN, INT32_MAX);
    fields_str(&f, "stop", &a->stop);
    fields_str(&f, "model", &a->model);
    a->images = images;
    a->temperature = temperature > 0.001 ? (float)temperature : 0;
    a->top_p = top_p > 1e-6 ? (float)top_p : 1e-6f;
    a->max_new_tokens = most < NEW_TOKENS_MAX ? (int)most : NEW_TOKENS_MAX;
    if (bad->status) return;
    if (json_array_size(images) > GEN_PICTURES_MAX)
        fields_bad(&f, "images", "has %zu pictures, at most %d are accepted", json_array_size(images),
                   GEN_PICTURES_MAX);
    else if ((int)json_array_size(images) != count_images(a->prompt))
        bad_set(bad, 400, "images", NULL, "Number of images does not match number of <image> tokens in prompt");
}

/* The request's pictures into the task. */
static void read_pictures(struct answer *a)
{
    const struct fields *f = &a->q.fields;
    size_t i;
    const json_t *v;
    json_array_foreach(a->q.images, i, v) {
        char name[32];
        struct buf bytes = buf_make(GEN_PICTURE_BYTES);
        struct llava_error e = { 0 };
        snprintf(name, sizeof name, "images[%zu]", i);
        if (!json_is_string(v)) fields_bad(f, name, "is %s, want a string", fields_kind(v));
        else if (!base64_picture(&bytes, json_string_value(v)))
            fields_bad(f, name, bytes.failed ? "is over %d bytes" : "is not base64", GEN_PICTURE_BYTES);
        else if (gen_picture(&a->task, bytes.p, bytes.n, name, &e) < 0)
            fields_bad(f, name, e.code == LLAVA_BUSY ? "is one too many: %s" : "is no picture: %s", e.message);
        buf_free(&bytes);
        if (exchange_gone(a->task.x)) bad_set(&a->bad, 400, NULL, NULL, "the client has left");
        if (a->bad.status) return;
    }
}

static uint64_t random_seed(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * 1000000007u ^ (uint64_t)t.tv_nsec;
}

/* What is asked, as r. */
static void prepare(struct answer *a, struct llava_request *r)
{
    const struct worker_ask *q = &a->q;
    if (q->model) gen_find(a->w->g, q->model, &r->adapter);
    exchange_note(a->task.x, r->adapter ? r->adapter : gen_info(a->w->g)->name);
    r->sampling.temperature = q->temperature;
    r->sampling.top_p = q->top_p;
    r->sampling.max_new_tokens = q->max_new_tokens;
    r->sampling.stop = &q->stop;
    r->sampling.n_stop = q->stop && strspn(q->stop, " ") < strlen(q->stop); /* worker.h says why */
    r->sampling.seed = random_seed();
    r->sampling.text = LLAVA_TEXT_LINES;
    r->on_text = answer_text;
    r->on_end = answer_end;
    r->ctx = a;
}

static void too_long(struct answer *a)
{
    buf_str(&a->text, PROTOCOL_TOO_LONG);
    a->any = false;
}

/* The request is read: its pictures, and to the batch; or an answer that says what is wrong. a is not to be touched
 * afterwards. */
static void answer_begin(struct answer *a)
{
    struct llava_request r = llava_request_default();
    struct buf prompt = buf_make(PROTOCOL_BODY_MAX);
    struct llava_error e = { 0 };
    json_t *body = a->body; /* r borrows from it; it may be large, and an answer does without */
    int rc = -1;
    a->body = NULL;
    if (!a->bad.status) read_pictures(a);
    if (!a->bad.status) {
        prepare(a, &r);
        gen_prompt(a->w->g, &prompt, a->q.prompt);
        r.prompt = prompt.p ? prompt.p : "";
        buf_str(&a->text, a->q.prompt);
        if (prompt.failed) bad_set(&a->bad, 400, NULL, NULL, "the prompt is too long");
    }
    exchange_body_drop(a->task.x); /* now, as a is gone afterwards */
    if (!a->bad.status) rc = r.sampling.max_new_tokens < 1 ? LLAVA_LIMIT : gen_submit(&a->task, &r, 1, &e);
    buf_free(&prompt);
    json_decref(body);
    if (rc >= 0) return;
    if (!a->bad.status && rc == LLAVA_LIMIT) {
        too_long(a);
    } else {
        a->code = PROTOCOL_WORKER;
        snprintf(a->error, sizeof a->error, "%s", a->bad.status ? a->bad.message : e.message);
    }
    answer_finish(&a->task);
}

static void on_turn(void *ctx, struct exchange *x)
{
    (void)x;
    answer_begin(ctx);
}

static void on_generate(void *ctx, struct exchange *x)
{
    struct worker_node *w = ctx;
    struct bad bad = { 0 };
    json_t *body = fields_of(x, false, &bad);
    struct answer *a = body ? calloc(1, sizeof *a) : NULL;
    if (!a) {
        bad_set(&bad, 503, NULL, "no_memory", "no memory");
        bad_reply(&bad, x);
        json_decref(body);
        return;
    }
    gen_task_init(&a->task, w->g, x, answer_finish);
    a->w = w;
    a->body = body;
    a->text = buf_make(2 * PROTOCOL_BODY_MAX);
    exchange_stream(x, "application/octet-stream", PROTOCOL_PING);
    worker_read(&a->q, body, &a->bad);
    if (!a->bad.status && json_array_size(a->q.images)) {
        if (exchange_later(x, LANE_PICTURES, on_turn, a)) return;
        bad_set(&a->bad, 503, NULL, "overloaded", "too many requests at a time, try again later");
    }
    answer_begin(a);
}

json_t *worker_status(struct worker_node *w)
{
    return json_pack("{sosisi}", "model_names", gen_names(w->g), "speed", 1, "queue_length",
                     gen_queue_length(w->g));
}

static void on_status(void *ctx, struct exchange *x) { exchange_json(x, 200, worker_status(ctx)); }

const struct route worker_routes[] = {
    { "POST", "/worker_generate_stream", on_generate, 0, PROTOCOL_BODY_MAX, "an answer, as LLaVA's workers give it" },
    { "POST", "/worker_get_status", on_status, ROUTE_QUICK, 1 << 16, "models and queue" },
    { 0 },
};

/* ---- the controller is kept informed */

static bool tell(struct worker_node *w, const char *path, json_t *v, json_t **reply)
{
    char url[1024];
    struct err e = { 0 };
    snprintf(url, sizeof url, "%s%s", w->o.controller, path);
    int rc = client_post_json(reply, url, v, PROTOCOL_ASK_S, &e);
    json_decref(v);
    if (rc < 0) journal_error(w->journal, "heart beat error: %s", e.msg);
    return rc >= 0;
}

static bool register_once(struct worker_node *w)
{
    json_t *reply;
    journal_info(w->journal, "Register to controller");
    bool ok = tell(w, "/register_worker", json_pack("{sssbso}", "worker_name", w->o.address, "check_heart_beat", true,
                                                    "worker_status", worker_status(w)), &reply);
    if (ok) json_decref(reply);
    return ok;
}

static bool beat(struct worker_node *w)
{
    json_t *reply;
    if (!tell(w, "/receive_heart_beat", json_pack("{sssi}", "worker_name", w->o.address, "queue_length",
                                                  gen_queue_length(w->g)), &reply))
        return false;
    bool known = json_is_true(json_object_get(reply, "exist"));
    json_decref(reply);
    return known || register_once(w);
}

static void *beat_main(void *ctx)
{
    struct worker_node *w = ctx;
    bool known = false;
    pthread_mutex_lock(&w->lock);
    while (!w->closing) {
        w->changed = false;
        pthread_mutex_unlock(&w->lock);
        known = known ? beat(w) : register_once(w);
        pthread_mutex_lock(&w->lock);
        double until_s = plat_now_s() + (known ? PROTOCOL_BEAT_S : AGAIN_S);
        while (!w->closing && !(known && w->changed) && plat_cond_wait(&w->wake, &w->lock, until_s));
        until_s = plat_now_s() + 0.1; /* a change is told when it has settled, and a hundred in a row once */
        while (!w->closing && w->changed && plat_cond_wait(&w->wake, &w->lock, until_s));
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

static void changed(void *ctx)
{
    struct worker_node *w = ctx;
    pthread_mutex_lock(&w->lock);
    w->changed = true;
    pthread_cond_signal(&w->wake);
    pthread_mutex_unlock(&w->lock);
}

int worker_open(struct worker_node **ret, const struct worker_options *o, struct gen *g, struct journal *j,
                struct err *e)
{
    struct worker_node *w = calloc(1, sizeof *w);
    *ret = NULL;
    if (!w) return err_set(e, ERR_NOMEM, "no memory for a worker");
    w->o = *o;
    w->g = g;
    w->journal = j;
    pthread_mutex_init(&w->lock, NULL);
    plat_cond_init(&w->wake);
    journal_info(j, "Loading the model %s on worker %s ...", gen_info(g)->name, o->id);
    if (o->controller) gen_on_change(g, changed, w);
    *ret = w;
    return 0;
}

int worker_begin(struct worker_node *w, struct err *e)
{
    if (!w->o.controller) return 0;
    w->beating = pthread_create(&w->beater, NULL, beat_main, w) == 0;
    return w->beating ? 0 : err_set(e, ERR_LIMIT, "cannot start a thread for heartbeats");
}

void worker_close(struct worker_node *w)
{
    if (!w) return;
    pthread_mutex_lock(&w->lock);
    w->closing = true;
    pthread_cond_signal(&w->wake);
    pthread_mutex_unlock(&w->lock);
    if (w->beating) pthread_join(w->beater, NULL);
    pthread_mutex_destroy(&w->lock);
    pthread_cond_destroy(&w->wake);
    free(w);
}
