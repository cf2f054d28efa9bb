/* See controller.h. */
#define _GNU_SOURCE
#include "serve/controller.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/plat.h"
#include "base/rng.h"
#include "serve/fields.h"
#include "serve/protocol.h"

enum { WORKERS_MAX = 1024, MODELS_MAX = 256, NAME_MAX_ = 512, TRIES = 4, HOPS_MAX = 4 };

struct worker {
    struct worker *next; /* in the order they came */
    char name[NAME_MAX_];
    json_t *models;      /* array of strings */
    double speed, queue, beat_s;
    bool check;          /* expects heartbeats */
};

struct controller {
    struct controller_options o;
    struct client *client;
    struct journal *journal;
    char self[NAME_MAX_];                /* a worker of this process, or "" */
    json_t *(*self_status)(void *ctx);
    void *self_ctx;
    pthread_t sweeper;
    bool swept;
    pthread_mutex_t lock; /* all below */
    pthread_cond_t stop;
    bool closing;
    struct worker *workers;
    int n_workers;
    struct rng rng;
};

/* ---- the table; functions on it are called with c->lock held */

static struct worker **place(struct controller *c, const char *name)
{
    struct worker **at = &c->workers;
    while (*at && strcmp((*at)->name, name) != 0) at = &(*at)->next;
    return at;
}

static void drop(struct controller *c, struct worker **at)
{
    struct worker *w = *at;
    *at = w->next;
    c->n_workers--;
    json_decref(w->models);
    free(w);
}

/* Heartbeats that stopped: it is passed over at once and forgotten by the sweeper. */
static bool stale(const struct worker *w, double now) { return w->check && now - w->beat_s > PROTOCOL_EXPIRE_S; }

static bool serves(const struct worker *w, const char *model)
{
    size_t i;
    const json_t *v;
    json_array_foreach(w->models, i, v)
        if (!strcmp(json_string_value(v), model)) return true;
    return false;
}

/* The worker whose turn it is, but none of the `tried`; NULL: none. */
static struct worker *choose(struct controller *c, const char *model, const char (*tried)[NAME_MAX_], int n_tried)
{
    double now = plat_now_s(), sum = 0, draw;
    struct worker *best = NULL, *fit[WORKERS_MAX];
    int n = 0;
    for (struct worker *w = c->workers; w; w = w->next) {
        bool skip = stale(w, now) || !serves(w, model);
        for (int i = 0; i < n_tried; i++) skip = skip || !strcmp(w->name, tried[i]);
        if (!skip) fit[n++] = w;
    }
    for (int i = 0; i < n; i++) {
        sum += fit[i]->speed;
        if (!best || fit[i]->queue * best->speed < best->queue * fit[i]->speed) best = fit[i];
    }
    if (c->o.how == DISPATCH_LOTTERY) {
        if (sum < 1e-4) return NULL;
        draw = rng_unit(&c->rng) * sum;
        best = NULL;
        for (int i = 0; i < n && (!best || draw >= 0); i++) {
            if (fit[i]->speed > 0) best = fit[i];
            draw -= fit[i]->speed;
        }
    } else if (best) {
        best->queue++; /* until its next heartbeat says how it is */
    }
    return best;
}

/* ---- registration */

static bool status_ok(const json_t *s)
{
    const json_t *models = json_object_get(s, "model_names"), *v;
    size_t i;
    if (!json_is_array(models) || json_array_size(models) > MODELS_MAX) return false;
    json_array_foreach(models, i, v)
        if (!json_is_string(v)) return false;
    const json_t *speed = json_object_get(s, "speed"), *queue = json_object_get(s, "queue_length");
    const double x = json_number_value(speed), n = json_number_value(queue);
    return json_is_number(speed) && json_is_number(queue) && x >= 0 && x <= INT32_MAX && n >= 0 && n <= INT32_MAX;
}

static bool is_self(const struct controller *c, const char *name) { return *c->self && !strcmp(name, c->self); }

/* Asks n workers at once how they are; status[i]: NULL when it does not say. */
static void ask_status(struct controller *c, const struct worker *w, int n, json_t **status)
{
    struct client_ask *a = calloc((size_t)n + 1, sizeof *a);
    char (*url)[NAME_MAX_ + 32] = calloc((size_t)n + 1, sizeof *url);
    int n_asked = 0;
    for (int i = 0; i < n && a && url; i++) {
        if (is_self(c, w[i].name)) continue;
        snprintf(url[n_asked], sizeof *url, "%s/worker_get_status", w[i].name);
        a[n_asked].url = url[n_asked];
        n_asked++;
    }
    if (n_asked) client_ask_all(a, n_asked, PROTOCOL_ASK_S);
    for (int i = 0, k = 0; i < n; i++) {
        const bool self = is_self(c, w[i].name);
        const struct client_ask *one = self || !n_asked ? NULL : &a[k++];
        status[i] = self ? c->self_status(c->self_ctx) : one ? one->reply : NULL;
        if (status[i] && status_ok(status[i])) continue;
        journal_error(c->journal, "Get status fails: %s, %s", w[i].name,
                      status[i] ? "the answer is no status" : one ? one->err.msg : "no memory");
        json_decref(status[i]);
        status[i] = NULL;
    }
    free(a);
    free(url);
}

static bool enter(struct controller *c, const char *name, bool check, const json_t *status)
{
    struct worker **at = place(c, name), *w = *at;
    if (!w) {
        w = c->n_workers < WORKERS_MAX ? calloc(1, sizeof *w) : NULL;
        if (!w) return false;
        snprintf(w->name, sizeof w->name, "%s", name);
        *at = w;
        c->n_workers++;
        journal_info(c->journal, "Register a new worker: %s", name);
    } else {
        journal_info(c->journal, "Register an existing worker: %s", name);
    }
    json_decref(w->models);
    w->models = json_deep_copy(json_object_get(status, "model_names"));
    w->speed = json_number_value(json_object_get(status, "speed"));
    w->queue = json_number_value(json_object_get(status, "queue_length"));
    w->check = check;
    w->beat_s = plat_now_s();
    return w->models != NULL;
}

/* Of a server, and without what has no place in an address: it goes into metrics. */
static bool is_address(const char *name)
{
    const char *at = name;
    while (*at > ' ' && *at != 0x7f && !strchr("\"\\<>", *at)) at++;
    return (!strncmp(name, "http://", 7) || !strncmp(name, "https://", 8)) && !*at && at - name < NAME_MAX_;
}

/* Enters a worker; status NULL: it is asked for. False: it does not answer, or nonsense. */
static bool enter_asked(struct controller *c, const char *name, bool check, const json_t *status)
{
    struct worker w = { 0 };
    json_t *asked = NULL;
    const bool self = is_self(c, name); /* which nobody else may speak for */
    if (!is_address(name)) return false;
    snprintf(w.name, sizeof w.name, "%s", name);
    if (self || !status) ask_status(c, &w, 1, &asked);
    if (asked) status = asked;
    bool ok = status && status_ok(status);
    if (ok) {
        pthread_mutex_lock(&c->lock);
        ok = enter(c, name, check && !self, status);
        pthread_mutex_unlock(&c->lock);
        char *text = json_dumps(status, 0);
        journal_info(c->journal, "Register done: %s, %s", name, text ? text : "");
        free(text);
    }
    json_decref(asked);
    return ok;
}

void controller_register_self(struct controller *c, const char *name, json_t *(*status)(void *ctx), void *ctx)
{
    snprintf(c->self, sizeof c->self, "%s", name);
    c->self_status = status;
    c->self_ctx = ctx;
    enter_asked(c, name, false, NULL);
}

/* Names of all workers and how each says that it is (or NULL), to work through without the lock; the caller frees both
 * arrays. */
static struct worker *ask_everybody(struct controller *c, int *n, json_t ***status)
{
    pthread_mutex_lock(&c->lock);
    struct worker *all = calloc((size_t)c->n_workers + 1, sizeof *all);
    *status = calloc((size_t)c->n_workers + 1, sizeof **status);
    *n = 0;
    for (struct worker *w = c->workers; all && *status && w; w = w->next) all[(*n)++] = *w;
    pthread_mutex_unlock(&c->lock);
    if (*n) ask_status(c, all, *n, *status);
    return all;
}

static void remove_named(struct controller *c, const char *name)
{
    pthread_mutex_lock(&c->lock);
    struct worker **at = place(c, name);
    if (*at) drop(c, at);
    pthread_mutex_unlock(&c->lock);
}

static void refresh(struct controller *c)
{
    int n;
    json_t **status;
    struct worker *all = ask_everybody(c, &n, &status);
    for (int i = 0; i < n; i++) {
        const bool there = status[i] && enter_asked(c, all[i].name, all[i].check, status[i]);
        json_decref(status[i]);
        if (there) continue;
        remove_named(c, all[i].name);
        journal_info(c->journal, "Remove stale worker: %s", all[i].name);
    }
    free(status);
    free(all);
}

static void *sweep(void *arg)
{
    struct controller *c = arg;
    pthread_mutex_lock(&c->lock);
    while (!c->closing) {
        double now = plat_now_s();
        for (struct worker **at = &c->workers; *at;) {
            if (!stale(*at, now)) {
                at = &(*at)->next;
                continue;
            }
            journal_info(c->journal, "Remove worker without heartbeat: %s", (*at)->name);
            drop(c, at);
        }
        plat_cond_wait(&c->stop, &c->lock, plat_now_s() + 1);
    }
    pthread_mutex_unlock(&c->lock);
    return NULL;
}

/* ---- what is asked of it */

/* {"models": [...]} */
static json_t *models(struct controller *c)
{
    json_t *names = json_array(), *seen = json_object(), *v;
    double now = plat_now_s();
    size_t i;
    pthread_mutex_lock(&c->lock);
    for (struct worker *w = c->workers; w; w = w->next) {
        if (stale(w, now)) continue;
        json_array_foreach(w->models, i, v) {
            if (json_object_get(seen, json_string_value(v))) continue;
            json_object_set_new(seen, json_string_value(v), json_true());
            json_array_append(names, v);
        }
    }
    pthread_mutex_unlock(&c->lock);
    json_decref(seen);
    return json_pack("{so}", "models", names);
}

static void address(struct controller *c, const char *model, char *ret, size_t size, const char (*tried)[NAME_MAX_],
                    int n)
{
    pthread_mutex_lock(&c->lock);
    struct worker *w = choose(c, model, tried, n);
    snprintf(ret, size, "%s", w ? w->name : "");
    pthread_mutex_unlock(&c->lock);
}

static void on_register(void *ctx, struct exchange *x)
{
    struct controller *c = ctx;
    if (c->o.closed) {
        exchange_error(x, 403, NULL, "workers_not_allowed",
                       "this server takes no workers: start it with --allow-workers, or use llava controller");
        return;
    }
    struct bad bad = { 0 };
    json_t *body = fields_of(x, false, &bad);
    struct fields f = fields_at(body, &bad);
    const char *name = NULL;
    bool check = false;
    struct fields status = { 0 };
    if (body && !fields_str(&f, "worker_name", &name)) fields_need(&f, "worker_name");
    if (body && !fields_bool(&f, "check_heart_beat", &check)) fields_need(&f, "check_heart_beat");
    if (body) fields_object(&f, "worker_status", &status);
    if (bad.status) bad_reply(&bad, x);
    else {
        if (!enter_asked(c, name, check, status.o)) journal_error(c->journal, "Registration of '%s' failed", name);
        exchange_json(x, 200, NULL);
    }
    json_decref(body);
}

static void on_refresh(void *ctx, struct exchange *x)
{
    refresh(ctx);
    exchange_json(x, 200, NULL);
}

static void on_models(void *ctx, struct exchange *x) { exchange_json(x, 200, models(ctx)); }

static void on_address(void *ctx, struct exchange *x)
{
    struct controller *c = ctx;
    struct bad bad = { 0 };
    json_t *body = fields_of(x, false, &bad);
    struct fields f = fields_at(body, &bad);
    const char *model = NULL;
    char name[NAME_MAX_];
    if (body && !fields_str(&f, "model", &model)) fields_need(&f, "model");
    if (bad.status) bad_reply(&bad, x);
    else {
        address(c, model, name, sizeof name, NULL, 0);
        journal_info(c->journal, "model: %s, worker: %s", model, *name ? name : "none");
        exchange_json(x, 200, json_pack("{ss}", "address", name));
    }
    json_decref(body);
}

static void on_beat(void *ctx, struct exchange *x)
{
    struct controller *c = ctx;
    struct bad bad = { 0 };
    json_t *body = fields_of(x, false, &bad);
    struct fields f = fields_at(body, &bad);
    const char *name = NULL;
    int64_t queue = 0;
    if (body && !fields_str(&f, "worker_name", &name)) fields_need(&f, "worker_name");
    if (body && !fields_int(&f, "queue_length", &queue, 0, INT32_MAX)) fields_need(&f, "queue_length");
    if (bad.status) bad_reply(&bad, x);
    else {
        pthread_mutex_lock(&c->lock);
        struct worker *w = *place(c, name);
        if (w) {
            w->queue = (double)queue;
            w->beat_s = plat_now_s();
        }
        pthread_mutex_unlock(&c->lock);
        if (!w) journal_info(c->journal, "Receive unknown heart beat. %s", name);
        exchange_json(x, 200, json_pack("{sb}", "exist", w != NULL));
    }
    json_decref(body);
}

static void on_status(void *ctx, struct exchange *x)
{
    struct controller *c = ctx;
    int n;
    json_t **status;
    struct worker *all = ask_everybody(c, &n, &status);
    json_t *models = json_array(), *seen = json_object(), *v;
    double speed = 0, queue = 0;
    size_t k;
    for (int i = 0; i < n; i++) {
        json_t *s = status[i];
        if (!s) continue;
        speed += json_number_value(json_object_get(s, "speed"));
        queue += json_number_value(json_object_get(s, "queue_length"));
        json_array_foreach(json_object_get(s, "model_names"), k, v) {
            if (!json_object_get(seen, json_string_value(v))) json_array_append(models, v);
            json_object_set_new(seen, json_string_value(v), json_true());
        }
        json_decref(s);
    }
    free(status);
    free(all);
    json_decref(seen);
    exchange_json(x, 200, json_pack("{sosIsI}", "model_names", models, "speed", (json_int_t)speed, "queue_length",
                                    (json_int_t)queue));
}

/* ---- the proxy */

struct proxy {
    struct controller *c;
    struct exchange *x;
    char *body, model[256];
    char tried[TRIES][NAME_MAX_];
    int n_tried, hops;        /* hops: controllers that it came through, this one included */
    struct buf part;          /* of a message whose NUL has not come yet */
    bool any;                 /* a message has been passed on */
    pthread_mutex_t lock;     /* all below */
    uint64_t id;
    bool gone;
};

static void proxy_end(struct proxy *p, enum protocol_code code, const char *what)
{
    if (code) {
        json_t *v = json_pack("{sssiss}", "text", PROTOCOL_ERROR_TEXT, "error_code", (int)code, "error", what);
        char *text = json_dumps(v, JSON_ENSURE_ASCII);
        if (text) exchange_write(p->x, text, strlen(text) + 1);
        free(text);
        json_decref(v);
    }
    exchange_end(p->x);
    pthread_mutex_destroy(&p->lock);
    buf_free(&p->part);
    free(p->body);
    free(p);
}

static bool proxy_data(void *ctx, const char *data, size_t n)
{
    struct proxy *p = ctx;
    buf_add(&p->part, data, n);
    if (p->part.failed) return false;
    char *last = memrchr(p->part.p, 0, p->part.n);
    if (!last) return true;
    size_t whole = (size_t)(last - p->part.p) + 1;
    p->any = true;
    bool there = exchange_write(p->x, p->part.p, whole);
    memmove(p->part.p, p->part.p + whole, p->part.n - whole);
    p->part.n -= whole;
    return there;
}

static void proxy_begin(struct proxy *p);

/* A worker that was never heard of gets somebody else to do its work; it is the sweeper's to forget it. */
static void proxy_done(void *ctx, long status, const char *what)
{
    struct proxy *p = ctx;
    pthread_mutex_lock(&p->lock);
    bool gone = p->gone;
    pthread_mutex_unlock(&p->lock);
    if (!what && status == 200) {
        proxy_end(p, PROTOCOL_OK, NULL);
    } else if (gone) {
        proxy_end(p, PROTOCOL_OK, NULL);
    } else {
        char text[700];
        snprintf(text, sizeof text, "worker '%s': %s", p->tried[p->n_tried - 1], what ? what : "status not 200");
        journal_error(p->c->journal, "%s", text);
        if (!p->any && what && p->n_tried < TRIES) proxy_begin(p);
        else proxy_end(p, PROTOCOL_UNREACHABLE, text);
    }
}

static void proxy_gone(void *ctx)
{
    struct proxy *p = ctx;
    pthread_mutex_lock(&p->lock);
    p->gone = true;
    uint64_t id = p->id;
    pthread_mutex_unlock(&p->lock);
    client_cancel(p->c->client, id);
}

static void proxy_begin(struct proxy *p)
{
    char name[NAME_MAX_], url[NAME_MAX_ + 40], probe[NAME_MAX_ + 40];
    buf_reset(&p->part);
    address(p->c, p->model, name, sizeof name, (const char (*)[NAME_MAX_])p->tried, p->n_tried);
    if (!*name) {
        journal_info(p->c->journal, "no worker: %s", p->model);
        char text[NAME_MAX_ + 80];
        if (p->n_tried) snprintf(text, sizeof text, "worker '%s' cannot be reached", p->tried[p->n_tried - 1]);
        else snprintf(text, sizeof text, "no worker serves model '%s'", p->model);
        proxy_end(p, p->n_tried ? PROTOCOL_UNREACHABLE : PROTOCOL_NO_WORKER, text);
        return;
    }
    snprintf(p->tried[p->n_tried++], NAME_MAX_, "%s", name);
    snprintf(url, sizeof url, "%s/worker_generate_stream", name);
    snprintf(probe, sizeof probe, "%s/worker_get_status", name);
    struct client_stream s = { .url = url, .body = p->body, .connect_s = PROTOCOL_ASK_S, .stall_s = PROTOCOL_STALL_S,
                               .probe = probe, .hops = p->hops, .on_data = proxy_data, .on_end = proxy_done, .ctx = p };
    /* With the lock: the stream may end before its number is known here, but p only after. */
    pthread_mutex_lock(&p->lock);
    bool gone = p->gone;
    struct client *client = p->c->client;
    p->id = client_stream(client, &s);
    uint64_t id = p->id;
    pthread_mutex_unlock(&p->lock);
    if (!id) proxy_end(p, PROTOCOL_UNREACHABLE, "no memory");
    else if (gone) client_cancel(client, id);
}

static void on_generate(void *ctx, struct exchange *x)
{
    struct bad bad = { 0 };
    size_t n;
    const char *body = exchange_body(x, &n), *model = NULL;
    json_t *v = fields_body(body, n, false, &bad);
    struct fields f = fields_at(v, &bad);
    if (v && !fields_str(&f, "model", &model)) fields_need(&f, "model");
    struct proxy *p = bad.status ? NULL : calloc(1, sizeof *p);
    if (!bad.status && (!p || !(p->body = strndup(body, n)))) bad_set(&bad, 503, NULL, "no_memory", "no memory");
    exchange_body_drop(x);
    if (!bad.status && !exchange_charge(x, 2 * n)) /* client.h copies it */
        bad_set(&bad, 503, NULL, "overloaded", "too many requests at a time, try again later");
    if (bad.status) {
        if (p) free(p->body);
        free(p);
        bad_reply(&bad, x);
        json_decref(v);
        return;
    }
    const char *hops = exchange_header(x, CLIENT_HOPS);
    p->hops = hops ? (int)strtol(hops, NULL, 10) + 1 : 1;
    p->c = ctx;
    p->x = x;
    p->part = buf_make(CLIENT_REPLY_MAX);
    snprintf(p->model, sizeof p->model, "%s", model);
    json_decref(v);
    pthread_mutex_init(&p->lock, NULL);
    exchange_note(x, p->model);
    exchange_stream(x, "application/octet-stream", PROTOCOL_PING);
    exchange_on_gone(x, proxy_gone, p);
    if (p->hops > HOPS_MAX) proxy_end(p, PROTOCOL_UNREACHABLE, "controllers are each other's workers, in a circle");
    else proxy_begin(p);
}

const struct route controller_routes[] = {
    { "POST", "/register_worker", on_register, 0, 1 << 20, "a worker makes itself known" },
    { "POST", "/refresh_all_workers", on_refresh, 0, 1 << 20, "asks every worker how it is" },
    { "POST", "/list_models", on_models, ROUTE_QUICK, 1 << 16, "models that workers serve" },
    { "POST", "/get_worker_address", on_address, ROUTE_QUICK, 1 << 16, "the worker that shall answer" },
    { "POST", "/receive_heart_beat", on_beat, ROUTE_QUICK, 1 << 16, "a worker is alive" },
    { "POST", "/worker_generate_stream", on_generate, 0, PROTOCOL_BODY_MAX, "an answer, through a worker" },
    { "POST", "/worker_get_status", on_status, 0, 1 << 20, "sums of all workers" },
    { 0 },
};

int controller_open(struct controller **ret, const struct controller_options *o, struct client *client,
                    struct journal *j, struct err *e)
{
    struct controller *c = calloc(1, sizeof *c);
    *ret = NULL;
    if (!c) return err_set(e, ERR_NOMEM, "no memory for a controller");
    c->o = *o;
    c->client = client;
    c->journal = j;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    rng_seed(&c->rng, (uint64_t)now.tv_sec * 1000000007u ^ (uint64_t)now.tv_nsec);
    pthread_mutex_init(&c->lock, NULL);
    plat_cond_init(&c->stop);
    c->swept = pthread_create(&c->sweeper, NULL, sweep, c) == 0;
    if (!c->swept) {
        controller_close(c);
        return err_set(e, ERR_LIMIT, "cannot start a thread for heartbeats");
    }
    *ret = c;
    return 0;
}

void controller_close(struct controller *c)
{
    if (!c) return;
    pthread_mutex_lock(&c->lock);
    c->closing = true;
    pthread_cond_signal(&c->stop);
    pthread_mutex_unlock(&c->lock);
    if (c->swept) pthread_join(c->sweeper, NULL);
    while (c->workers) drop(c, &c->workers);
    pthread_mutex_destroy(&c->lock);
    pthread_cond_destroy(&c->stop);
    free(c);
}

void controller_metrics(struct controller *c, struct buf *out)
{
    pthread_mutex_lock(&c->lock);
    buf_fmt(out, "# TYPE llava_controller_workers gauge\nllava_controller_workers %d\n", c->n_workers);
    buf_str(out, "# TYPE llava_controller_queue_length gauge\n");
    for (struct worker *w = c->workers; w; w = w->next)
        buf_fmt(out, "llava_controller_queue_length{worker=\"%s\"} %.0f\n", w->name, w->queue);
    pthread_mutex_unlock(&c->lock);
}
