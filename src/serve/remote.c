/* See remote.h. A call asks the controller for a worker, then the worker for the answer; when that cannot be reached,
 * it goes once more through the controller itself, which tries others. */
#define _GNU_SOURCE
#include "serve/remote.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { URL_MAX = 600 };
enum step { STEP_ADDRESS, STEP_WORKER, STEP_PROXY };

struct remote_call {
    struct remote *r;
    struct remote_call *next;  /* under r's lock, in one of its lists */
    struct remote_ask a;
    enum step step;
    struct buf part;           /* of a message that is not whole yet */
    bool any;                  /* a message has come */
    enum protocol_code code;   /* that a message had */
    char cause[700], worker[URL_MAX];
    pthread_mutex_t lock;      /* all below */
    uint64_t id;
    bool cancelled;
};

struct remote {
    struct client *client;
    char controller[URL_MAX];
    int limit;
    pthread_mutex_t lock; /* all below */
    int active, n_waiting;
    struct remote_call *running, *waiting; /* in no order; as they came */
};

int remote_open(struct remote **ret, const char *controller, int limit, struct client *client, struct err *e)
{
    struct remote *r = calloc(1, sizeof *r);
    *ret = NULL;
    if (!r) return err_set(e, ERR_NOMEM, "no memory for a client");
    size_t n = strlen(controller);
    while (n && controller[n - 1] == '/') n--;
    snprintf(r->controller, sizeof r->controller, "%.*s", (int)n, controller);
    r->limit = limit;
    r->client = client;
    pthread_mutex_init(&r->lock, NULL);
    *ret = r;
    return 0;
}

void remote_close(struct remote *r)
{
    if (!r) return;
    pthread_mutex_destroy(&r->lock);
    free(r);
}

/* ---- models */

static const char *rank(const char *name)
{
    return !strcmp(name, "vicuna-13b") ? "aaaaaaa" : !strcmp(name, "koala-13b") ? "aaaaaab" : name;
}

static int by_rank(const void *a, const void *b)
{
    return strcmp(rank(json_string_value(*(json_t *const *)a)), rank(json_string_value(*(json_t *const *)b)));
}

int remote_models(struct remote *r, bool refresh, json_t **ret, struct err *e)
{
    char url[URL_MAX + 40];
    json_t *v = NULL, *name;
    size_t i;
    *ret = NULL;
    snprintf(url, sizeof url, "%s/refresh_all_workers", r->controller);
    int rc = refresh ? client_post_json(&v, url, NULL, 60, e) : 0;
    json_decref(v);
    if (rc < 0) return rc;
    snprintf(url, sizeof url, "%s/list_models", r->controller);
    rc = client_post_json(&v, url, NULL, PROTOCOL_ASK_S, e);
    if (rc < 0) return rc;
    const json_t *models = json_object_get(v, "models");
    json_t **list = calloc(json_array_size(models) + 1, sizeof *list);
    size_t n = 0;
    json_array_foreach(models, i, name)
        if (list && json_is_string(name)) list[n++] = name;
    if (list) qsort(list, n, sizeof *list, by_rank);
    *ret = json_array();
    for (i = 0; i < n; i++) json_array_append(*ret, list[i]);
    free(list);
    json_decref(v);
    return 0;
}

/* ---- calls */

static void begin(struct remote_call *c, enum step step); /* the last that is done with c */

/* The lists; called with the lock held. */

static bool take(struct remote_call **at, struct remote_call *c)
{
    while (*at && *at != c) at = &(*at)->next;
    if (!*at) return false;
    *at = c->next;
    return true;
}

static void run(struct remote *r, struct remote_call *c)
{
    c->next = r->running;
    r->running = c;
    r->active++;
}

static int running_of(const struct remote *r, uint64_t client)
{
    int n = 0;
    for (const struct remote_call *c = r->running; c; c = c->next) n += c->a.client == client;
    return n;
}

/* Whose turn it is, and now runs; NULL: nobody's. */
static struct remote_call *run_next(struct remote *r)
{
    struct remote_call *best = NULL;
    int least = 0;
    for (struct remote_call *c = r->active < r->limit ? r->waiting : NULL; c; c = c->next) {
        const int n = running_of(r, c->a.client);
        if (best && n >= least) continue;
        best = c;
        least = n;
    }
    if (!best) return NULL;
    take(&r->waiting, best);
    r->n_waiting--;
    run(r, best);
    return best;
}

/* The call is over: the next of the queue begins. */
static void done(struct remote_call *c, enum protocol_code code, const char *cause)
{
    struct remote *r = c->r;
    pthread_mutex_lock(&r->lock);
    take(&r->running, c);
    r->active--;
    struct remote_call *next = run_next(r);
    pthread_mutex_unlock(&r->lock);
    if (next) begin(next, STEP_ADDRESS);
    c->a.on_end(c->a.ctx, code, cause);
    pthread_mutex_destroy(&c->lock);
    buf_free(&c->part);
    free((char *)c->a.model);
    free((char *)c->a.prompt);
    free(c->a.body);
    free(c);
}

/* A message of the worker: the text so far, or an error. */
static void take_message(struct remote_call *c, const char *text, size_t n)
{
    json_t *v = json_loadb(text, n, 0, NULL);
    const char *said = json_string_value(json_object_get(v, "text"));
    int code = (int)json_integer_value(json_object_get(v, "error_code"));
    size_t skip = strlen(c->a.prompt), len = said ? strlen(said) : 0;
    c->any = true;
    if (!said) {
        c->code = PROTOCOL_UNREACHABLE;
        snprintf(c->cause, sizeof c->cause, "worker '%.200s' does not speak LLaVA's protocol", c->worker);
    } else if (code) {
        const char *cause = json_string_value(json_object_get(v, "error"));
        c->code = code > 0 && code <= PROTOCOL_UNREACHABLE ? (enum protocol_code)code : PROTOCOL_WORKER;
        snprintf(c->cause, sizeof c->cause, "%s", cause ? cause : said);
    } else if (len > skip) {
        c->a.on_text(c->a.ctx, said + skip, len - skip);
    }
    json_decref(v);
}

static bool on_data(void *ctx, const char *p, size_t n)
{
    struct remote_call *c = ctx;
    buf_add(&c->part, p, n);
    if (c->part.failed) return false;
    if (c->step == STEP_ADDRESS) return true;
    size_t at = 0;
    for (const char *end; !c->code && (end = memchr(c->part.p + at, 0, c->part.n - at)) != NULL;) {
        size_t len = (size_t)(end - (c->part.p + at));
        if (len) take_message(c, c->part.p + at, len);
        at += len + 1;
    }
    if (at) {
        memmove(c->part.p, c->part.p + at, c->part.n - at);
        c->part.n -= at;
    }
    return !c->code;
}

/* The controller has named a worker, or none. */
static void on_address(struct remote_call *c, long status, const char *what)
{
    json_t *v = status == 200 && c->part.p ? json_loadb(c->part.p, c->part.n, 0, NULL) : NULL;
    const char *address = json_string_value(json_object_get(v, "address"));
    if (address) snprintf(c->worker, sizeof c->worker, "%s", address);
    buf_reset(&c->part);
    if (!address) {
        snprintf(c->cause, sizeof c->cause, "controller '%.200s': %s", c->r->controller,
                 what ? what : "no address in its answer");
        done(c, PROTOCOL_UNREACHABLE, c->cause);
    } else if (!*c->worker) {
        snprintf(c->cause, sizeof c->cause, "no worker serves model '%.200s'", c->a.model);
        done(c, PROTOCOL_NO_WORKER, c->cause);
    } else {
        begin(c, STEP_WORKER);
    }
    json_decref(v);
}

static void on_end(void *ctx, long status, const char *what)
{
    struct remote_call *c = ctx;
    pthread_mutex_lock(&c->lock);
    bool cancelled = c->cancelled;
    pthread_mutex_unlock(&c->lock);
    if (cancelled) {
        done(c, PROTOCOL_WORKER, "cancelled");
    } else if (c->step == STEP_ADDRESS) {
        on_address(c, status, what);
    } else if (c->code) {
        done(c, c->code, c->cause);
    } else if (!what && status == 200) {
        done(c, PROTOCOL_OK, NULL);
    } else if (!c->any && what && c->step == STEP_WORKER) {
        buf_reset(&c->part);
        begin(c, STEP_PROXY);
    } else {
        snprintf(c->cause, sizeof c->cause, "worker '%.300s': %s", c->worker, what ? what : "its status is not 200");
        done(c, PROTOCOL_UNREACHABLE, c->cause);
    }
}

static void begin(struct remote_call *c, enum step step)
{
    char url[URL_MAX + 40], probe[URL_MAX + 40], *ask = NULL;
    c->step = step;
    snprintf(probe, sizeof probe, "%s/worker_get_status", c->worker);
    if (step == STEP_ADDRESS) {
        json_t *v = json_pack("{ss}", "model", c->a.model);
        ask = v ? json_dumps(v, 0) : NULL;
        json_decref(v);
        snprintf(url, sizeof url, "%s/get_worker_address", c->r->controller);
    } else {
        snprintf(url, sizeof url, "%s/worker_generate_stream", step == STEP_WORKER ? c->worker : c->r->controller);
    }
    struct client_stream s = { .url = url, .body = step == STEP_ADDRESS ? (ask ? ask : "{}") : c->a.body,
                               .connect_s = PROTOCOL_ASK_S,
                               .stall_s = step == STEP_ADDRESS ? PROTOCOL_ASK_S : PROTOCOL_STALL_S, .on_data = on_data,
                               .probe = step == STEP_WORKER ? probe : NULL, .on_end = on_end, .ctx = c };
    struct client *client = c->r->client;
    pthread_mutex_lock(&c->lock); /* the stream may end before its number is known, but c only after */
    bool cancelled = c->cancelled;
    uint64_t id = c->id = client_stream(client, &s);
    pthread_mutex_unlock(&c->lock);
    free(ask);
    if (!id) done(c, PROTOCOL_UNREACHABLE, "no memory");
    else if (cancelled) client_cancel(client, id);
}

struct remote_call *remote_new(struct remote *r, const struct remote_ask *a)
{
    struct remote_call *c = calloc(1, sizeof *c);
    if (!c) return NULL;
    c->r = r;
    c->a = *a;
    c->a.model = strdup(a->model);
    c->a.prompt = strdup(a->prompt);
    c->part = buf_make(CLIENT_REPLY_MAX);
    pthread_mutex_init(&c->lock, NULL);
    if (c->a.model && c->a.prompt && c->a.body) return c;
    free((char *)c->a.model);
    free((char *)c->a.prompt);
    pthread_mutex_destroy(&c->lock);
    free(c);
    return NULL;
}

void remote_start(struct remote_call *c, int *place)
{
    struct remote *r = c->r;
    pthread_mutex_lock(&r->lock);
    pthread_mutex_lock(&c->lock);
    const bool now = r->active < r->limit || c->cancelled;
    pthread_mutex_unlock(&c->lock);
    *place = now ? 0 : ++r->n_waiting;
    if (now) {
        run(r, c);
    } else {
        struct remote_call **end = &r->waiting;
        while (*end) end = &(*end)->next;
        c->next = NULL;
        *end = c;
    }
    pthread_mutex_unlock(&r->lock);
    if (now) begin(c, STEP_ADDRESS);
}

/* One that waits begins, to be broken off: on_end is the client's thread's. */
void remote_cancel(struct remote_call *c)
{
    struct remote *r = c->r;
    pthread_mutex_lock(&c->lock);
    c->cancelled = true;
    uint64_t id = c->id;
    pthread_mutex_unlock(&c->lock);
    pthread_mutex_lock(&r->lock);
    const bool waits = take(&r->waiting, c);
    if (waits) {
        r->n_waiting--;
        run(r, c);
    }
    pthread_mutex_unlock(&r->lock);
    if (waits) begin(c, STEP_ADDRESS);
    else if (id) client_cancel(r->client, id);
}
