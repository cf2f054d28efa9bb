/* See client.h. */
#include "serve/client.h"

#include <curl/curl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/plat.h"

/* ---- short requests */

static size_t to_buf(char *p, size_t size, size_t n, void *arg)
{
    struct buf *b = arg;
    buf_add(b, p, size * n);
    return b->failed ? 0 : size * n;
}

static CURL *easy(const char *url, const char *body, struct curl_slist *headers)
{
    CURL *c = curl_easy_init();
    if (!c) return NULL;
    curl_easy_setopt(c, CURLOPT_URL, url);
    curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(c, CURLOPT_PROXY, "");
    curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c, CURLOPT_USERAGENT, "LLaVA Client");
    if (!body) return c;
    curl_easy_setopt(c, CURLOPT_POST, 1L);
    curl_easy_setopt(c, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)strlen(body));
    curl_easy_setopt(c, CURLOPT_POSTFIELDS, body); /* which stays where it is until the end */
    curl_easy_setopt(c, CURLOPT_HTTPHEADER, headers);
    return c;
}

static struct curl_slist *json_headers(void)
{
    return curl_slist_append(curl_slist_append(NULL, "Content-Type: application/json"), "Expect:");
}

/* One under way: its answer's body goes to `reply`. */
struct post {
    CURL *easy;
    struct buf reply;
};

static void post_begin(struct post *p, const char *url, const char *body, struct curl_slist *headers, double timeout_s)
{
    p->reply = buf_make(CLIENT_REPLY_MAX);
    p->easy = easy(url, body, headers);
    if (!p->easy) return;
    curl_easy_setopt(p->easy, CURLOPT_TIMEOUT_MS, (long)(timeout_s * 1000));
    curl_easy_setopt(p->easy, CURLOPT_WRITEFUNCTION, to_buf);
    curl_easy_setopt(p->easy, CURLOPT_WRITEDATA, &p->reply);
    curl_easy_setopt(p->easy, CURLOPT_PRIVATE, p);
}

/* It is over: the answer, which status 200 must have come with. */
static int post_end(struct post *p, json_t **ret, const char *url, CURLcode how, struct err *e)
{
    long status = 0;
    json_error_t je;
    int rc = 0;
    if (p->easy) curl_easy_getinfo(p->easy, CURLINFO_RESPONSE_CODE, &status);
    if (how) rc = err_set(e, ERR_IO, "cannot reach '%s': %s", url, curl_easy_strerror(how));
    else if (status != 200) rc = err_set(e, ERR_IO, "'%s' answered with status %ld", url, status);
    else if (!(*ret = json_loadb(p->reply.p ? p->reply.p : "", p->reply.n, JSON_DECODE_ANY, &je)))
        rc = err_set(e, ERR_FORMAT, "'%s' did not answer with JSON: %s", url, je.text);
    if (p->easy) curl_easy_cleanup(p->easy);
    buf_free(&p->reply);
    return rc;
}

int client_post_json(json_t **ret, const char *url, const json_t *v, double timeout_s, struct err *e)
{
    struct curl_slist *headers = json_headers();
    char *text = v ? json_dumps(v, JSON_COMPACT) : NULL;
    struct post p;
    *ret = NULL;
    post_begin(&p, url, text ? text : "", headers, timeout_s);
    const int rc = post_end(&p, ret, url, p.easy ? curl_easy_perform(p.easy) : CURLE_OUT_OF_MEMORY, e);
    curl_slist_free_all(headers);
    free(text);
    return rc;
}

void client_ask_all(struct client_ask *a, int n, double timeout_s)
{
    struct curl_slist *headers = json_headers();
    struct post *p = calloc((size_t)n + 1, sizeof *p);
    CURLM *m = curl_multi_init();
    int running = p && m ? n : 0, left;
    for (int i = 0; i < n; i++) {
        a[i].reply = NULL;
        if (!running) err_set(&a[i].err, ERR_NOMEM, "no memory for requests");
        else post_begin(&p[i], a[i].url, "", headers, timeout_s);
        if (running && (!p[i].easy || curl_multi_add_handle(m, p[i].easy) != CURLM_OK))
            post_end(&p[i], &a[i].reply, a[i].url, CURLE_OUT_OF_MEMORY, &a[i].err);
    }
    while (running) {
        curl_multi_perform(m, &running);
        for (CURLMsg *got; (got = curl_multi_info_read(m, &left)) != NULL;) {
            struct post *one;
            const CURLcode how = got->data.result;
            if (got->msg != CURLMSG_DONE) continue;
            curl_easy_getinfo(got->easy_handle, CURLINFO_PRIVATE, &one);
            curl_multi_remove_handle(m, one->easy);
            post_end(one, &a[one - p].reply, a[one - p].url, how, &a[one - p].err);
        }
        if (running) curl_multi_poll(m, NULL, 0, 100, NULL);
    }
    if (m) curl_multi_cleanup(m);
    curl_slist_free_all(headers);
    free(p);
}

/* ---- streams */

struct stream {
    struct stream *next;
    uint64_t id;
    CURL *easy;
    struct curl_slist *headers;
    struct client_stream s;
    bool cancelled, stopped; /* stopped: on_data said so */
    double heard_s;          /* when something came last, or a probe was answered */
    struct stream *probe;    /* under way, or NULL */
    bool hung;               /* which was not answered */
};

struct client {
    CURLM *multi;
    pthread_t thread;
    pthread_mutex_t lock; /* all below */
    struct stream *fresh; /* not yet seen by the thread */
    uint64_t serial, *cancel; /* [n_cancel] to break off */
    size_t n_cancel;
    bool closing;
    struct stream *streams; /* the thread's own, without the lock */
};

static void stream_free(struct stream *t)
{
    free((char *)t->s.url);
    free((char *)t->s.body);
    free((char *)t->s.probe);
    free(t);
}

static struct stream *stream_new(const struct client_stream *s)
{
    struct stream *t = calloc(1, sizeof *t);
    if (!t) return NULL;
    t->s = *s;
    t->s.url = strdup(s->url);
    t->s.body = s->body ? strdup(s->body) : NULL;
    t->s.probe = s->probe ? strdup(s->probe) : NULL;
    if (t->s.url && !t->s.body == !s->body && !t->s.probe == !s->probe) return t;
    stream_free(t);
    return NULL;
}

static size_t stream_data(char *p, size_t size, size_t n, void *arg)
{
    struct stream *t = arg;
    t->heard_s = plat_now_s();
    if (!t->s.on_data(t->s.ctx, p, size * n)) t->stopped = true;
    return t->stopped ? 0 : size * n;
}

/* Takes a stream out of the list, tells its owner, frees it. */
static void stream_end(struct client *c, struct stream *t, CURLcode rc)
{
    struct stream **at = &c->streams;
    while (*at && *at != t) at = &(*at)->next;
    if (*at) *at = t->next;
    long status = 0;
    if (t->easy) curl_easy_getinfo(t->easy, CURLINFO_RESPONSE_CODE, &status);
    const char *what = t->cancelled ? "cancelled" : t->hung ? "it does not answer any more"
                     : rc && !t->stopped ? curl_easy_strerror(rc) : NULL;
    if (t->easy) curl_multi_remove_handle(c->multi, t->easy);
    if (t->probe) t->probe->s.ctx = NULL; /* nobody asks any more */
    t->s.on_end(t->s.ctx, status, what);
    if (t->easy) curl_easy_cleanup(t->easy);
    curl_slist_free_all(t->headers);
    stream_free(t);
}

static void stream_begin(struct client *c, struct stream *t)
{
    char hops[40];
    snprintf(hops, sizeof hops, CLIENT_HOPS ": %d", t->s.hops);
    t->headers = t->s.body ? json_headers() : NULL;
    if (t->headers && t->s.hops) t->headers = curl_slist_append(t->headers, hops);
    t->easy = easy(t->s.url, t->s.body, t->headers);
    t->next = c->streams;
    c->streams = t;
    t->heard_s = plat_now_s();
    if (!t->easy) {
        stream_end(c, t, CURLE_OUT_OF_MEMORY);
        return;
    }
    curl_easy_setopt(t->easy, CURLOPT_CONNECTTIMEOUT_MS, (long)(t->s.connect_s * 1000));
    curl_easy_setopt(t->easy, CURLOPT_LOW_SPEED_LIMIT, 1L);
    curl_easy_setopt(t->easy, CURLOPT_LOW_SPEED_TIME, (long)t->s.stall_s);
    curl_easy_setopt(t->easy, CURLOPT_WRITEFUNCTION, stream_data);
    curl_easy_setopt(t->easy, CURLOPT_WRITEDATA, t);
    curl_easy_setopt(t->easy, CURLOPT_PRIVATE, t);
    if (t->s.setup) t->s.setup(t->s.ctx, t->easy);
    CURLMcode rc = curl_multi_add_handle(c->multi, t->easy);
    if (rc != CURLM_OK) stream_end(c, t, CURLE_FAILED_INIT);
}

static bool probe_data(void *ctx, const char *p, size_t n)
{
    (void)ctx, (void)p, (void)n;
    return true;
}

static void probe_end(void *of, long status, const char *what)
{
    struct stream *t = of;
    (void)status;
    if (!t) return;
    t->probe = NULL;
    t->heard_s = plat_now_s();
    t->hung = what != NULL;
}

static void probe_setup(void *of, void *curl)
{
    (void)of;
    curl_easy_setopt(curl, CURLOPT_TIMEOUT, (long)CLIENT_PROBE_S);
}

/* Looks after streams on which nothing comes: whoever sends them is asked for a sign of life, and left without one. */
static void mind_silence(struct client *c)
{
    const double now = plat_now_s();
    for (struct stream *t = c->streams, *next; t; t = next) {
        next = t->next;
        if (t->hung) stream_end(c, t, CURLE_OPERATION_TIMEDOUT);
        else if (t->s.probe && !t->probe && now - t->heard_s > CLIENT_SILENT_S) {
            const struct client_stream s = { .url = t->s.probe, .body = "", .connect_s = CLIENT_PROBE_S,
                                             .stall_s = CLIENT_PROBE_S, .setup = probe_setup, .on_data = probe_data,
                                             .on_end = probe_end, .ctx = t };
            t->heard_s = now;
            if ((t->probe = stream_new(&s)) != NULL) stream_begin(c, t->probe);
        }
    }
}

/* What other threads have asked for since. False: to close. */
static bool take_orders(struct client *c)
{
    pthread_mutex_lock(&c->lock);
    struct stream *fresh = c->fresh;
    uint64_t *cancel = c->cancel;
    size_t n = c->n_cancel;
    c->fresh = NULL;
    c->cancel = NULL;
    c->n_cancel = 0;
    bool closing = c->closing;
    pthread_mutex_unlock(&c->lock);
    while (fresh) {
        struct stream *next = fresh->next;
        stream_begin(c, fresh);
        fresh = next;
    }
    for (struct stream *t = c->streams, *next; t; t = next) {
        next = t->next;
        for (size_t i = 0; i < n; i++) t->cancelled |= cancel[i] == t->id;
        if (t->cancelled || closing) stream_end(c, t, CURLE_ABORTED_BY_CALLBACK);
    }
    free(cancel);
    return !closing;
}

static void *client_main(void *arg)
{
    struct client *c = arg;
    while (take_orders(c)) {
        int running, left;
        curl_multi_perform(c->multi, &running);
        for (CURLMsg *m; (m = curl_multi_info_read(c->multi, &left)) != NULL;) {
            struct stream *t;
            if (m->msg != CURLMSG_DONE) continue;
            curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, &t);
            stream_end(c, t, m->data.result);
        }
        mind_silence(c);
        curl_multi_poll(c->multi, NULL, 0, 1000, NULL);
    }
    return NULL;
}

int client_open(struct client **ret, int total, int host, struct err *e)
{
    struct client *c = calloc(1, sizeof *c);
    *ret = NULL;
    if (!c) return err_set(e, ERR_NOMEM, "no memory for a client");
    pthread_mutex_init(&c->lock, NULL);
    c->multi = curl_multi_init();
    if (c->multi && total) curl_multi_setopt(c->multi, CURLMOPT_MAX_TOTAL_CONNECTIONS, (long)total);
    if (c->multi && host) curl_multi_setopt(c->multi, CURLMOPT_MAX_HOST_CONNECTIONS, (long)host);
    if (!c->multi || pthread_create(&c->thread, NULL, client_main, c) != 0) {
        if (c->multi) curl_multi_cleanup(c->multi);
        pthread_mutex_destroy(&c->lock);
        free(c);
        return err_set(e, ERR_LIMIT, "cannot start a thread for requests");
    }
    *ret = c;
    return 0;
}

void client_close(struct client *c)
{
    if (!c) return;
    pthread_mutex_lock(&c->lock);
    c->closing = true;
    pthread_mutex_unlock(&c->lock);
    curl_multi_wakeup(c->multi);
    pthread_join(c->thread, NULL);
    curl_multi_cleanup(c->multi);
    pthread_mutex_destroy(&c->lock);
    free(c->cancel);
    free(c);
}

uint64_t client_stream(struct client *c, const struct client_stream *s)
{
    struct stream *t = stream_new(s);
    if (!t) return 0;
    pthread_mutex_lock(&c->lock);
    uint64_t id = t->id = ++c->serial;
    t->next = c->fresh;
    c->fresh = t;
    pthread_mutex_unlock(&c->lock);
    curl_multi_wakeup(c->multi);
    return id;
}

void client_cancel(struct client *c, uint64_t id)
{
    pthread_mutex_lock(&c->lock);
    uint64_t *p = realloc(c->cancel, (c->n_cancel + 1) * sizeof *p);
    if (p) {
        p[c->n_cancel++] = id;
        c->cancel = p;
    }
    pthread_mutex_unlock(&c->lock);
    curl_multi_wakeup(c->multi);
}
