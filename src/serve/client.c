/* See client.h. */
#include "serve/client.h"

#include <curl/curl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

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
    curl_easy_setopt(c, CURLOPT_COPYPOSTFIELDS, body);
    curl_easy_setopt(c, CURLOPT_HTTPHEADER, headers);
    return c;
}

static struct curl_slist *json_headers(void)
{
    return curl_slist_append(curl_slist_append(NULL, "Content-Type: application/json"), "Expect:");
}

/* The answer's body goes to *reply. 0 with any status. */
static int post(const char *url, const char *body, double timeout_s, long *status, struct buf *reply, struct err *e)
{
    struct curl_slist *headers = json_headers();
    CURL *c = easy(url, body, headers);
    CURLcode rc = c ? CURLE_OK : CURLE_OUT_OF_MEMORY;
    if (c) {
        curl_easy_setopt(c, CURLOPT_TIMEOUT_MS, (long)(timeout_s * 1000));
        curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, to_buf);
        curl_easy_setopt(c, CURLOPT_WRITEDATA, reply);
        rc = curl_easy_perform(c);
        curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, status);
        curl_easy_cleanup(c);
    }
    curl_slist_free_all(headers);
    return rc ? err_set(e, ERR_IO, "cannot reach '%s': %s", url, curl_easy_strerror(rc)) : 0;
}

int client_post_json(json_t **ret, const char *url, const json_t *v, double timeout_s, struct err *e)
{
    struct buf reply = buf_make(CLIENT_REPLY_MAX);
    long status = 0;
    char *text = v ? json_dumps(v, JSON_COMPACT) : NULL;
    json_error_t je;
    *ret = NULL;
    int rc = post(url, text ? text : "", timeout_s, &status, &reply, e);
    if (rc >= 0 && status != 200) rc = err_set(e, ERR_IO, "'%s' answered with status %ld", url, status);
    if (rc >= 0) {
        *ret = json_loadb(reply.p ? reply.p : "", reply.n, JSON_DECODE_ANY, &je);
        if (!*ret) rc = err_set(e, ERR_FORMAT, "'%s' did not answer with JSON: %s", url, je.text);
    }
    free(text);
    buf_free(&reply);
    return rc;
}

/* ---- streams */

struct stream {
    struct stream *next;
    uint64_t id;
    CURL *easy;
    struct curl_slist *headers;
    struct client_stream s;
    bool cancelled, stopped; /* stopped: on_data said so */
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

static size_t stream_data(char *p, size_t size, size_t n, void *arg)
{
    struct stream *t = arg;
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
    const char *what = t->cancelled ? "cancelled" : rc && !t->stopped ? curl_easy_strerror(rc) : NULL;
    if (t->easy) curl_multi_remove_handle(c->multi, t->easy);
    t->s.on_end(t->s.ctx, status, what);
    if (t->easy) curl_easy_cleanup(t->easy);
    curl_slist_free_all(t->headers);
    free((char *)t->s.url);
    free((char *)t->s.body);
    free(t);
}

static void stream_begin(struct client *c, struct stream *t)
{
    t->headers = t->s.body ? json_headers() : NULL;
    t->easy = easy(t->s.url, t->s.body, t->headers);
    t->next = c->streams;
    c->streams = t;
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
    struct stream *t = calloc(1, sizeof *t);
    if (!t) return 0;
    t->s = *s;
    t->s.url = strdup(s->url);
    t->s.body = s->body ? strdup(s->body) : NULL;
    if (!t->s.url || (s->body && !t->s.body)) {
        free((char *)t->s.url);
        free((char *)t->s.body);
        free(t);
        return 0;
    }
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
