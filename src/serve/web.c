/* See web.h. */
#define _GNU_SOURCE
#include "serve/web.h"

#include <curl/curl.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <time.h>

#include "base/plat.h"
#include "image/encode.h"
#include "image/preprocess.h"
#include "serve/asset.h"
#include "serve/base64.h"
#include "serve/event.h"
#include "serve/keep.h"
#include "serve/talk.h"

enum { EXAMPLES_MAX = 16, EXAMPLE_BYTES = 8 << 20, BODY_MAX = 96 << 20, PICTURE_BYTES = 20 << 20, PICTURES_PAGE = 8 };

struct example {
    char *name;           /* "/examples/cat.png" */
    char *bytes;          /* NULL: among the page's files */
    size_t n;
};

struct web {
    struct web_options o;
    struct gen *gen;
    struct remote *remote;
    struct journal *journal;
    struct keep *keep;
    json_t *examples;     /* as /api/config gives them */
    struct example example[EXAMPLES_MAX];
    int n_examples;
    pthread_mutex_t lock; /* all below */
    json_t *models;
};

/* ---- an answer under way */

struct reply {
    struct gen_task task; /* first; without a model only its exchange counts */
    struct web *w;
    struct remote_call *call;
    json_t *body;         /* what talk borrows from */
    struct talk talk;
    const char *adapter;  /* of a model here; NULL: none */
    char model[200], ip[48];
    json_t *images;       /* MD5s of its pictures */
    struct trim trim;
    struct buf text;      /* as shown */
    struct buf verdict;   /* of moderation */
    uint64_t asked;       /* the request for it; left: its client has gone; both under task.lock */
    bool left;
    size_t fed;           /* bytes of a remote answer that have been looked at */
    double start_s, wall_s;
    enum protocol_code code;
    char cause[1000];
    struct llava_result result;
};

static double wall_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void reply_free(struct reply *r)
{
    talk_free(&r->talk);
    trim_fini(&r->trim);
    buf_free(&r->text);
    buf_free(&r->verdict);
    json_decref(r->images);
    json_decref(r->body);
    gen_task_fini(&r->task);
    free(r);
}

/* A piece of the answer as it came. */
static void feed(struct reply *r, const char *text, size_t n)
{
    struct buf piece = buf_make(1 << 24);
    trim_feed(&r->trim, &piece, text, n);
    if (piece.n) {
        event_send(r->task.x, json_pack("{ss%}", "text", piece.p, piece.n));
        buf_add(&r->text, piece.p, piece.n);
    }
    buf_free(&piece);
}

static void log_answer(struct reply *r)
{
    double finish = wall_now();
    const char *ip = r->w->o.no_ip ? "" : r->ip;
    keep_line(r->w->keep,
              talk_line(json_pack("{so,ss,ss,so,so,so,sO,ss}", "tstamp", talk_time(finish), "type", "chat", "model",
                                  r->model, "start", talk_time(r->wall_s), "finish", talk_time(finish), "state",
                                  talk_state(&r->talk, r->text.p ? r->text.p : ""), "images", r->images, "ip", ip)));
}

static void send_done(struct reply *r)
{
    const struct llava_result *s = &r->result;
    bool local = r->w->gen != NULL;
    json_t *v = json_pack("{ss,sf}", "finish", local && s->finish == LLAVA_FINISH_LENGTH ? "length" : "stop", "seconds",
                          plat_now_s() - r->start_s);
    if (local) {
        json_t *more = json_pack("{si,si,si,sf}", "tokens", s->n_new, "prompt_tokens", s->n_prompt, "cached_tokens",
                                 s->n_cached, "first_s", s->queue_s + s->first_s);
        json_object_update(v, more);
        json_decref(more);
    }
    event_send(r->task.x, json_pack("{so}", "done", v));
}

static void reply_finish(struct gen_task *t)
{
    struct reply *r = (struct reply *)t;
    struct exchange *x = t->x;
    if (r->code) {
        if (!exchange_gone(x)) journal_error(r->w->journal, "%s", r->cause);
        event_send(x,
                   json_pack("{s{ss,si,ss}}", "error", "message", r->cause, "code", (int)r->code, "cause", r->cause));
    } else {
        send_done(r);
        log_answer(r);
    }
    reply_free(r);
    exchange_end(x);
}

/* ---- answers of this process */

static bool on_text(void *ctx, int i, const char *text, size_t n)
{
    struct reply *r = ctx;
    (void)i;
    feed(r, text, n);
    return !exchange_gone(r->task.x);
}

static void on_end(void *ctx, int i, const struct llava_result *s, const struct llava_error *e)
{
    struct reply *r = ctx;
    (void)i;
    r->result = *s;
    if (e || s->finish == LLAVA_FINISH_CANCELLED) {
        r->code = PROTOCOL_WORKER;
        snprintf(r->cause, sizeof r->cause, "%s", e ? e->message : "the server is shutting down");
    }
    gen_ended(&r->task);
}

static int start_local(struct reply *r, const char *prompt, const char *stop, struct bad *b)
{
    struct llava_request q = llava_request_default();
    struct llava_error e = { 0 };
    struct buf marked = buf_make(1 << 26);
    gen_prompt(r->w->gen, &marked, prompt);
    q.prompt = marked.p ? marked.p : "";
    q.adapter = r->adapter;
    q.sampling.temperature = r->talk.temperature > 0.001 ? (float)r->talk.temperature : 0;
    q.sampling.top_p = r->talk.top_p > 1e-6 ? (float)r->talk.top_p : 1e-6f;
    q.sampling.max_new_tokens = r->talk.max_new_tokens;
    if (getrandom(&q.sampling.seed, sizeof q.sampling.seed, 0) < 0) q.sampling.seed = 0;
    q.sampling.stop = &stop;
    q.sampling.n_stop = stop && *stop;
    q.on_text = on_text;
    q.on_end = on_end;
    q.ctx = r;
    int rc = gen_submit(&r->task, &q, 1, &e);
    if (rc < 0) {
        const char *word;
        int status = gen_status(rc, &word);
        bad_set(b, status, NULL, word, "%s%s", rc == LLAVA_LIMIT ? "the context is full: " : "", e.message);
    }
    buf_free(&marked);
    return rc;
}

/* ---- answers of workers */

static void remote_text(void *ctx, const char *text, size_t n)
{
    struct reply *r = ctx;
    if (n <= r->fed) return;
    feed(r, text + r->fed, n - r->fed);
    r->fed = n;
}

static void remote_end(void *ctx, enum protocol_code code, const char *cause)
{
    struct reply *r = ctx;
    r->code = code;
    if (cause) snprintf(r->cause, sizeof r->cause, "%s", cause);
    exchange_on_gone(r->task.x, NULL, NULL);
    reply_finish(&r->task);
}

static void remote_gone(void *ctx)
{
    struct reply *r = ctx;
    remote_cancel(r->call);
}

static int start_remote(struct reply *r, const char *prompt, const char *stop, json_t *pictures, struct bad *b)
{
    json_t *v =
        json_pack("{ss,ss,sf,sf,si,ss?,sO}", "model", r->model, "prompt", prompt, "temperature", r->talk.temperature,
                  "top_p", r->talk.top_p, "max_new_tokens", r->talk.max_new_tokens, "stop", stop, "images", pictures);
    struct exchange *x = r->task.x;
    struct remote_ask a = { .model = r->model, .prompt = prompt, .body = v ? json_dumps(v, JSON_COMPACT) : NULL,
                            .client = exchange_client(x), .on_text = remote_text, .on_end = remote_end, .ctx = r };
    int place = 0;
    json_decref(v);
    if (a.body && !exchange_charge(x, 2 * strlen(a.body))) { /* it is copied when its turn comes */
        free(a.body);
        bad_set(b, 503, NULL, "overloaded", "too many requests at a time, try again later");
        return -1;
    }
    struct remote_call *call = r->call = remote_new(r->w->remote, &a);
    if (!call) {
        free(a.body);
        bad_set(b, 503, NULL, "no_memory", "no memory");
        return -1;
    }
    exchange_on_gone(x, remote_gone, r); /* before it begins: afterwards r may be gone */
    remote_start(call, &place);
    return place;
}

/* ---- requests */

/* Makes of a picture's bytes what the web server passes on, and says whether that is another picture. */
static int decode(struct reply *r, struct picture *pic, bool *changed, const struct buf *bytes, struct err *e)
{
    struct picture came = { 0 };
    int rc = picture_decode(&came, bytes->p, bytes->n, "picture", e);
    if (rc >= 0) rc = picture_for_web(pic, &came, r->talk.mode, e);
    *changed = came.w != pic->w || came.h != pic->h;
    picture_free(&came);
    return rc;
}

/* One picture: kept, and handed to the model or (base64, as it came unless it had to be changed) into `pictures`. */
static void read_picture(struct reply *r, int i, json_t *pictures, struct bad *b)
{
    const char *where = r->talk.where[i];
    struct buf bytes = buf_make(PICTURE_BYTES), text = buf_make(BODY_MAX);
    struct picture pic = { 0 };
    struct llava_error le = { 0 };
    struct err e = { 0 };
    bool changed;
    char md5[65];
    if (!base64_picture(&bytes, r->talk.picture[i])) {
        bad_set(b, 400, where, NULL,
                bytes.failed ? "'%s' is over %d bytes" : "'%s' is no data URI (of at most %d bytes)", where,
                PICTURE_BYTES);
    } else if (decode(r, &pic, &changed, &bytes, &e) < 0) {
        bad_set(b, 400, where, NULL, "'%s' is no picture: %s", where, e.msg);
    } else {
        if (changed && (buf_reset(&bytes), picture_png(&bytes, &pic, &e) < 0))
            bad_set(b, 500, where, NULL, "%s", e.msg);
        keep_picture_name(&pic, md5);
        json_array_append_new(r->images, json_string(md5));
        keep_picture(r->w->keep, &pic, md5);
        if (!b->status && r->w->gen && gen_picture(&r->task, bytes.p, bytes.n, "picture", &le) < 0)
            bad_set(b, le.code == LLAVA_BUSY ? 429 : 400, where, NULL, "'%s': %s", where, le.message);
        else if (!b->status && !r->w->gen) {
            base64_encode(&text, bytes.p, bytes.n);
            json_array_append_new(pictures, json_stringn(text.p ? text.p : "", text.n));
        }
    }
    picture_free(&pic);
    buf_free(&bytes);
    buf_free(&text);
}

/* The model whose name says which template suits the one that is asked; NULL: its own. */
static const char *like_of(const struct web *w, const json_t *body)
{
    const char *name = json_string_value(json_object_get(body, "model")), *adapter = NULL;
    return w->gen && name && gen_find(w->gen, name, &adapter) && adapter ? gen_name(w->gen, 0) : NULL;
}

static void prepare(struct reply *r, struct bad *b)
{
    talk_read(&r->talk, r->body, false, like_of(r->w, r->body), b);
    if (b->status) return;
    snprintf(r->model, sizeof r->model, "%s", r->talk.model);
    exchange_note(r->task.x, r->model);
    journal_info(r->w->journal, "http_bot. ip: %s", r->ip);
    /* Of models elsewhere the controller knows. */
    if (r->w->gen && !gen_find(r->w->gen, r->model, &r->adapter))
        bad_set(b, 404, "model", "model_not_found", "no model '%.100s'", r->model);
    if (r->talk.max_new_tokens < 1) bad_set(b, 400, "max_new_tokens", NULL, "%s", PROTOCOL_TOO_LONG);
}

static struct reply *reply_new(struct web *w, struct exchange *x)
{
    struct reply *r = calloc(1, sizeof *r);
    if (!r) return NULL;
    gen_task_init(&r->task, w->gen, x, reply_finish);
    r->w = w;
    r->start_s = plat_now_s();
    r->wall_s = wall_now();
    r->images = json_array();
    r->text = buf_make(1 << 24);
    r->verdict = buf_make(1 << 20);
    trim_init(&r->trim);
    snprintf(r->ip, sizeof r->ip, "%s", exchange_ip(x));
    return r;
}

static void reply_refuse(struct reply *r, const struct bad *b)
{
    struct exchange *x = r->task.x;
    reply_free(r);
    bad_reply(b, x);
}

/* Reads the question's pictures and has it answered. */
static void reply_begin(struct reply *r)
{
    struct web *w = r->w;
    struct bad bad = { 0 };
    struct buf prompt = buf_make(1 << 25);
    struct err e = { 0 };
    const char *stop = NULL;
    json_t *pictures = json_array();
    int rc = -1;
    for (int i = 0; i < r->talk.n_pictures && !bad.status; i++) {
        read_picture(r, i, pictures, &bad);
        if (exchange_gone(r->task.x)) bad_set(&bad, 400, NULL, NULL, "the client has left");
    }
    if (!bad.status && talk_prompt(&prompt, &stop, &r->talk, &e) < 0) bad_set(&bad, 400, "messages", NULL, "%s", e.msg);
    json_decref(r->body); /* its pictures are large */
    r->body = NULL;
    exchange_body_drop(r->task.x);
    if (!bad.status) {
        exchange_stream(r->task.x, EVENT_TYPE, EVENT_PING);
        rc = w->gen ? start_local(r, prompt.p, stop, &bad) : start_remote(r, prompt.p, stop, pictures, &bad);
    }
    json_decref(pictures);
    buf_free(&prompt);
    if (rc < 0) reply_refuse(r, &bad);
}

static void on_turn(void *ctx, struct exchange *x)
{
    (void)x;
    reply_begin(ctx);
}

/* The question may be answered. */
static void reply_go(struct reply *r)
{
    struct bad bad = { 0 };
    if (!r->talk.n_pictures) reply_begin(r);
    else if (!exchange_later(r->task.x, LANE_PICTURES, on_turn, r)) {
        bad_set(&bad, 503, NULL, "overloaded", "too many requests at a time, try again later");
        reply_refuse(r, &bad);
    }
}

/* ---- moderation: OpenAI's service is asked about the last question, as the reference does. What fails is let
 * through. */

static void moderation_setup(void *ctx, void *curl)
{
    const struct reply *r = ctx;
    curl_easy_setopt(curl, CURLOPT_HTTPAUTH, CURLAUTH_BEARER);
    curl_easy_setopt(curl, CURLOPT_XOAUTH2_BEARER, r->w->o.moderation_key);
    curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, PROTOCOL_ASK_S * 1000L);
}

static bool moderation_data(void *ctx, const char *p, size_t n)
{
    struct reply *r = ctx;
    buf_add(&r->verdict, p, n);
    return !r->verdict.failed;
}

static void on_moderated(void *ctx, struct exchange *x)
{
    struct reply *r = ctx;
    struct bad bad = { 0 };
    json_t *v = r->verdict.p ? json_loadb(r->verdict.p, r->verdict.n, 0, NULL) : NULL;
    const json_t *flagged = json_object_get(json_array_get(json_object_get(v, "results"), 0), "flagged");
    (void)x;
    if (json_is_true(flagged)) {
        journal_info(r->w->journal, "violate moderation. ip: %s", r->ip);
        bad_set(&bad, 400, "messages", "moderation", "%s", PROTOCOL_MODERATION_TEXT);
    } else if (!flagged) {
        journal_error(r->w->journal, "moderation: no verdict from '%s'", r->w->o.moderation_url);
    }
    json_decref(v);
    if (bad.status) reply_refuse(r, &bad);
    else reply_go(r);
}

static void moderation_end(void *ctx, long status, const char *what)
{
    struct reply *r = ctx;
    struct bad bad = { 0 };
    pthread_mutex_lock(&r->task.lock); /* it has begun as a whole */
    pthread_mutex_unlock(&r->task.lock);
    exchange_on_gone(r->task.x, NULL, NULL);
    if (what || status != 200) buf_reset(&r->verdict);
    if (exchange_later(r->task.x, LANE_WORK, on_moderated, r)) return;
    bad_set(&bad, 503, NULL, "overloaded", "too many requests at a time, try again later");
    reply_refuse(r, &bad);
}

static void moderation_gone(void *ctx)
{
    struct reply *r = ctx;
    pthread_mutex_lock(&r->task.lock);
    r->left = true;
    if (r->asked) client_cancel(r->w->o.client, r->asked);
    pthread_mutex_unlock(&r->task.lock);
}

static void moderate(struct reply *r)
{
    const struct web_options *o = &r->w->o;
    json_t *v = json_pack("{ss}", "input", r->talk.conv.message[r->talk.conv.n - 1].text);
    char *body = v ? json_dumps(v, JSON_ENSURE_ASCII) : NULL;
    const struct client_stream s = { .url = o->moderation_url, .body = body ? body : "{}", .connect_s = PROTOCOL_ASK_S,
                                     .stall_s = PROTOCOL_ASK_S, .setup = moderation_setup, .on_data = moderation_data,
                                     .on_end = moderation_end, .ctx = r };
    exchange_on_gone(r->task.x, moderation_gone, r);
    pthread_mutex_lock(&r->task.lock);
    uint64_t id = r->asked = client_stream(o->client, &s);
    if (id && r->left) client_cancel(o->client, id);
    pthread_mutex_unlock(&r->task.lock); /* r may be gone afterwards */
    if (!id) moderation_end(r, 0, "no memory");
    json_decref(v);
    free(body);
}

/* ---- routes */

static void on_chat(void *ctx, struct exchange *x)
{
    struct web *w = ctx;
    struct bad bad = { 0 };
    json_t *body = fields_of(x, false, &bad);
    struct reply *r = body ? reply_new(w, x) : NULL;
    if (!r) {
        bad_set(&bad, 503, NULL, "no_memory", "no memory");
        json_decref(body);
        bad_reply(&bad, x);
        return;
    }
    r->body = body;
    prepare(r, &bad);
    if (bad.status) reply_refuse(r, &bad);
    else if (w->o.moderation_key) moderate(r);
    else reply_go(r);
}

static void on_vote(void *ctx, struct exchange *x)
{
    struct web *w = ctx;
    struct bad bad = { 0 };
    struct talk t = { 0 };
    json_t *body = fields_of(x, false, &bad);
    if (body) talk_read(&t, body, true, like_of(w, body), &bad);
    if (bad.status) {
        bad_reply(&bad, x);
    } else {
        journal_info(w->journal, "%s. ip: %s", t.vote, exchange_ip(x));
        keep_line(w->keep, talk_line(json_pack("{so,ss,ss,so,ss}", "tstamp", talk_time(wall_now()), "type", t.vote,
                                               "model", t.model, "state", talk_state(&t, NULL), "ip",
                                               w->o.no_ip ? "" : exchange_ip(x))));
        exchange_reply(x, 204, NULL, "", 0);
    }
    talk_free(&t);
    json_decref(body);
}

/* ---- what the page is told */

static json_t *models(struct web *w)
{
    json_t *fresh = NULL;
    struct err e = { 0 };
    if (w->remote && w->o.reload && remote_models(w->remote, true, &fresh, &e) < 0)
        journal_error(w->journal, "%s", e.msg);
    pthread_mutex_lock(&w->lock);
    if (fresh) {
        json_decref(w->models);
        w->models = fresh;
    }
    json_t *v = json_deep_copy(w->models);
    pthread_mutex_unlock(&w->lock);
    return v;
}

static void on_config(void *ctx, struct exchange *x)
{
    struct web *w = ctx;
    json_t *limits = json_pack("{si,si,si,si,si}", "text", TALK_TEXT, "text_with_image", TALK_TEXT_WITH_IMAGE,
                               "image_bytes", PICTURE_BYTES, "images", PICTURES_PAGE, "max_new_tokens", 1024);
    exchange_json(x, 200, json_pack("{ss,ss,sb,so,sO,so}", "version", llava_version(), "title", "LLaVA", "embed",
                                    w->o.embed, "models", models(w), "examples", w->examples, "limits", limits));
}

#define CSP                                                                                                            \
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "   \
    "font-src 'self'; connect-src 'self'; worker-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors "

static void send_file(struct web *w, struct exchange *x, const char *type, const char *etag, const void *p, size_t n)
{
    const char *have = exchange_header(x, "If-None-Match");
    exchange_set_header(x, "Cache-Control", "no-cache"); /* ask each time, fetch when it has changed */
    exchange_set_header(x, "Content-Security-Policy", w->o.embed ? CSP "*" : CSP "'self'");
    exchange_set_header(x, "Referrer-Policy", "no-referrer");
    exchange_set_header(x, "Permissions-Policy", "camera=(self), microphone=(), geolocation=()");
    if (etag) exchange_set_header(x, "ETag", etag);
    if (etag && have && strstr(have, etag)) exchange_reply(x, 304, NULL, "", 0);
    else exchange_reply(x, 200, type, p, n);
}

static const char *type_of(const char *name)
{
    static const char *const types[][2] = { { ".png", "image/png" },   { ".jpg", "image/jpeg" },
                                            { ".jpeg", "image/jpeg" }, { ".webp", "image/webp" },
                                            { ".gif", "image/gif" },   { ".bmp", "image/bmp" } };
    const char *end = strrchr(name, '.');
    for (size_t i = 0; end && i < sizeof types / sizeof *types; i++)
        if (!strcasecmp(end, types[i][0])) return types[i][1];
    return "application/octet-stream";
}

static void on_file(void *ctx, struct exchange *x)
{
    struct web *w = ctx;
    const struct asset *a = asset_find(exchange_path(x));
    for (int i = 0; i < w->n_examples; i++) {
        if (!w->example[i].bytes || strcmp(w->example[i].name, exchange_path(x)) != 0) continue;
        send_file(w, x, type_of(w->example[i].name), NULL, w->example[i].bytes, w->example[i].n);
        return;
    }
    if (!a) {
        exchange_error(x, 404, NULL, "not_found", "no such address: '%s'", exchange_path(x));
        return;
    }
    const char *coding = exchange_header(x, "Accept-Encoding");
    bool gzip = a->gz && coding && strstr(coding, "gzip");
    if (a->gz) exchange_set_header(x, "Vary", "Accept-Encoding");
    if (gzip) exchange_set_header(x, "Content-Encoding", "gzip");
    send_file(w, x, a->mime, a->etag, gzip ? a->gz : a->bytes, gzip ? a->n_gz : a->n);
}

const struct route web_routes[] = {
    { "GET", "/api/config", on_config, 0, 0, "models, examples, limits" },
    { "POST", "/api/chat", on_chat, 0, BODY_MAX, "an answer, as events" },
    { "POST", "/api/vote", on_vote, 0, BODY_MAX, "an opinion on an answer" },
    { "GET", "/examples/*", on_file, ROUTE_QUICK, 0, "pictures to begin with" },
    { "GET", "/*", on_file, ROUTE_OPEN | ROUTE_QUICK, 0, "the page, which asks for a key where one is needed" },
    { 0 },
};

/* ---- opening */

/* One row of examples.json: {"image": a file beside it, "text"}. */
static int read_example(struct web *w, const char *dir, const json_t *row, struct err *e)
{
    const char *image = json_string_value(json_object_get(row, "image"));
    const char *text = json_string_value(json_object_get(row, "text"));
    char path[1200], name[300];
    if (!image || !text || strstr(image, "..") || *image == '/' || strlen(image) > 200)
        return err_set(e, ERR_FORMAT, "'%s/examples.json': a row is not {\"image\": file, \"text\": question}", dir);
    if (w->n_examples == EXAMPLES_MAX)
        return err_set(e, ERR_LIMIT, "'%s/examples.json' has more than %d", dir, EXAMPLES_MAX);
    snprintf(path, sizeof path, "%s/%s", dir, image);
    snprintf(name, sizeof name, "/examples/%d-%s", w->n_examples,
             strrchr(image, '/') ? strrchr(image, '/') + 1 : image);
    struct example *x = &w->example[w->n_examples];
    int rc = file_read(&x->bytes, &x->n, path, EXAMPLE_BYTES, e);
    if (rc < 0) return rc;
    x->name = strdup(name);
    w->n_examples++;
    json_array_append_new(w->examples, json_pack("{ss,ss}", "image", name, "text", text));
    return 0;
}

static int read_examples(struct web *w, struct err *e)
{
    char path[1100], *text = NULL;
    size_t n, i;
    const json_t *row;
    w->examples = json_array();
    snprintf(path, sizeof path, "%s/examples.json", w->o.examples ? w->o.examples : "");
    int rc = w->o.examples ? file_read(&text, &n, path, 1 << 20, e) : ERR_MISSING;
    if (rc == ERR_MISSING) {
        json_decref(w->examples);
        w->examples = json_pack("[{ss,ss},{ss,ss}]", "image", "/examples/extreme_ironing.jpg", "text",
                                "What is unusual about this image?", "image", "/examples/waterview.jpg", "text",
                                "What are the things I should be cautious about when I visit here?");
        return 0;
    }
    if (rc < 0) return rc;
    json_t *v = json_loadb(text, n, JSON_REJECT_DUPLICATES, NULL);
    if (!json_is_array(v)) rc = err_set(e, ERR_FORMAT, "'%s' is not an array", path);
    json_array_foreach(v, i, row)
        if (rc >= 0) rc = read_example(w, w->o.examples, row, e);
    json_decref(v);
    free(text);
    return rc;
}

int web_open(struct web **ret, const struct web_options *o, struct gen *gen, struct remote *remote, struct journal *j,
             struct err *e)
{
    struct web *w = calloc(1, sizeof *w);
    *ret = NULL;
    if (!w) return err_set(e, ERR_NOMEM, "no memory for a web server");
    int rc;
    w->o = *o;
    w->gen = gen;
    w->remote = remote;
    w->journal = j;
    pthread_mutex_init(&w->lock, NULL);
    TRY(read_examples(w, e));
    TRY(keep_open(&w->keep, o->log_dir, e));
    if (gen) w->models = gen_names(gen);
    else rc = remote_models(remote, true, &w->models, e);
    if (rc < 0 && o->reload) { /* it may come later */
        journal_error(j, "%s", e->msg);
        w->models = json_array();
        rc = 0;
    }
    if (rc < 0) goto out;
    *ret = w;
    w = NULL;
out:
    web_close(w);
    return rc;
}

void web_close(struct web *w)
{
    if (!w) return;
    keep_close(w->keep);
    for (int i = 0; i < w->n_examples; i++) {
        free(w->example[i].name);
        free(w->example[i].bytes);
    }
    json_decref(w->examples);
    json_decref(w->models);
    pthread_mutex_destroy(&w->lock);
    free(w);
}
