/* See http.h. Redirects are followed by hand: the token must not leave the endpoint, and https must not
 * become http. */
#include "file/http.h"

#include <curl/curl.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { TRIES = 5, REDIRECTS_MAX = 8, CONNECT_S = 20, STALL_S = 60 };

/* One transfer. */
struct transfer {
    CURL *curl;
    struct http_sink *sink;
    struct http_reply *r;
    int64_t begin, at; /* of a file: bytes that were there; where the next ones go */
    bool begun;
    int error; /* errno of a write that failed */
};

int http_open(struct http *h, const char *endpoint, const char *token, struct err *e)
{
    *h = (struct http){ curl_easy_init(), endpoint, token };
    return h->curl ? 0 : err_set(e, ERR_NOMEM, "cannot start libcurl");
}

void http_close(struct http *h)
{
    if (h->curl) curl_easy_cleanup(h->curl);
    *h = (struct http){ 0 };
}

/* Bytes in the file of a sink; 0 where it has none. */
static int64_t file_size(const struct http_sink *s)
{
    struct stat st;
    return s && !s->buf && fstat(s->fd, &st) == 0 ? st.st_size : 0;
}

/* The value of header `name` if the line is that one. A value longer than the buffer reads as empty. */
static bool header_is(const char *line, size_t n, const char *name, char *value, size_t size)
{
    size_t k = strlen(name);
    if (n <= k || strncasecmp(line, name, k) != 0 || line[k] != ':') return false;
    for (line += k + 1, n -= k + 1; n && (*line == ' ' || *line == '\t'); n--) line++;
    while (n && (line[n - 1] == '\r' || line[n - 1] == '\n' || line[n - 1] == ' ')) n--;
    snprintf(value, size, "%.*s", (int)(n < size ? n : 0), line);
    return true;
}

/* W/"abc" -> abc */
static void etag_set(char *etag, size_t size, const char *v)
{
    if (!strncmp(v, "W/", 2)) v += 2;
    if (*v == '"') v++;
    snprintf(etag, size, "%.*s", (int)strcspn(v, "\""), v);
}

static size_t on_header(char *line, size_t size, size_t n, void *arg)
{
    struct transfer *t = arg;
    struct http_reply *r = t->r;
    char v[200];
    n *= size;
    if (n > 5 && !strncmp(line, "HTTP/", 5)) *r = (struct http_reply){ .size = -1, .from = -1 };
    else if (header_is(line, n, "x-linked-etag", v, sizeof v)) etag_set(r->etag, sizeof r->etag, v);
    else if (header_is(line, n, "etag", v, sizeof v) && !*r->etag) etag_set(r->etag, sizeof r->etag, v);
    else if (header_is(line, n, "x-error-code", v, sizeof v))
        snprintf(r->error_code, sizeof r->error_code, "%.50s", v);
    else if (header_is(line, n, "x-linked-size", v, sizeof v)) r->size = strtoll(v, NULL, 10);
    else if (header_is(line, n, "content-length", v, sizeof v) && r->size < 0) r->size = strtoll(v, NULL, 10);
    else if (header_is(line, n, "content-range", v, sizeof v)) sscanf(v, "bytes %ld-", &r->from);
    return n;
}

/* Before the first byte of a body: does it continue the file, or replace it? A body that is neither is
 * dropped. */
static bool body_begin(struct transfer *t)
{
    long status = 0;
    curl_easy_getinfo(t->curl, CURLINFO_RESPONSE_CODE, &status);
    t->r->status = status;
    t->begun = true;
    t->at = -1;
    if (status == 206 && t->r->from == t->begin) t->at = t->begin;
    if (status == 200) t->at = 0;
    if (status == 200 && t->sink->buf) buf_reset(t->sink->buf);
    if (status == 200 && !t->sink->buf && ftruncate(t->sink->fd, 0) < 0) t->error = errno;
    return !t->error;
}

static size_t on_body(char *p, size_t size, size_t n, void *arg)
{
    struct transfer *t = arg;
    n *= size;
    if (!t->sink) return n;
    if (!t->begun && !body_begin(t)) return 0;
    if (t->at < 0) return n;
    if (t->sink->buf) {
        buf_add(t->sink->buf, p, n);
        return t->sink->buf->failed ? 0 : n;
    }
    for (size_t done = 0; done < n;) {
        ssize_t k = pwrite(t->sink->fd, p + done, n - done, (off_t)(t->at + (int64_t)done));
        if (k < 0 && errno == EINTR) continue;
        if (k < 0) t->error = errno;
        if (k < 0) return 0;
        done += (size_t)k;
    }
    t->at += (int64_t)n;
    if (t->sink->bar) progress_step(t->sink->bar, t->at);
    return n;
}

/* Failures of the line, which may pass. */
static bool passes(CURLcode c)
{
    static const CURLcode list[] = { CURLE_PARTIAL_FILE, CURLE_OPERATION_TIMEDOUT, CURLE_SEND_ERROR,
                                     CURLE_RECV_ERROR,   CURLE_GOT_NOTHING,        CURLE_HTTP2,
                                     CURLE_HTTP2_STREAM };
    for (size_t i = 0; i < sizeof list / sizeof *list; i++)
        if (list[i] == c) return true;
    return false;
}

/* Lies the address below the endpoint? */
static bool at_endpoint(const struct http *h, const char *url)
{
    size_t n = strlen(h->endpoint);
    return !strncasecmp(url, h->endpoint, n) && (url[n] == '/' || url[n] == 0);
}

static struct curl_slist *headers_make(const struct http *h, const char *url)
{
    char line[2000];
    struct curl_slist *list = curl_slist_append(NULL, "User-Agent: llava/" LLAVA_VERSION);
    if (h->token && at_endpoint(h, url)) {
        snprintf(line, sizeof line, "Authorization: Bearer %s", h->token);
        list = curl_slist_append(list, line);
    }
    return list;
}

static void options_set(CURL *c, const char *url, struct transfer *t, char *why, struct curl_slist *headers)
{
    char range[40];
    snprintf(range, sizeof range, "%lld-", (long long)t->begin);
    curl_easy_reset(c);
    curl_easy_setopt(c, CURLOPT_URL, url);
    curl_easy_setopt(c, CURLOPT_ERRORBUFFER, why);
    curl_easy_setopt(c, CURLOPT_NOBODY, t->sink ? 0L : 1L);
    curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT, (long)CONNECT_S);
    curl_easy_setopt(c, CURLOPT_LOW_SPEED_LIMIT, 1L);
    curl_easy_setopt(c, CURLOPT_LOW_SPEED_TIME, (long)STALL_S);
    curl_easy_setopt(c, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(c, CURLOPT_HEADERDATA, t);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, t);
    curl_easy_setopt(c, CURLOPT_HTTPHEADER, headers);
    if (t->begin > 0) curl_easy_setopt(c, CURLOPT_RANGE, range);
}

/* One hop. *next is where it redirects to, to free(), or NULL. *again: the failure may pass. */
static int http_hop(struct http *h, const char *url, struct http_sink *sink, struct http_reply *r,
                    char **next, bool *again, struct err *e)
{
    struct transfer t = { .curl = h->curl, .sink = sink, .r = r, .begin = file_size(sink) };
    char why[CURL_ERROR_SIZE] = "", *to = NULL;
    struct curl_slist *headers = headers_make(h, url);
    *next = NULL;
    *again = false;
    *r = (struct http_reply){ .size = -1, .from = -1 };
    options_set(h->curl, url, &t, why, headers);
    CURLcode c = curl_easy_perform(h->curl);
    curl_slist_free_all(headers);
    curl_easy_getinfo(h->curl, CURLINFO_RESPONSE_CODE, &r->status);
    if (t.error) {
        errno = t.error;
        return err_errno(e, "write", sink->path);
    }
    if (sink && sink->buf && sink->buf->failed) return buf_check(sink->buf, url, e);
    *again = passes(c) || r->status >= 500 || r->status == 429;
    if (c != CURLE_OK)
        return err_set(e, ERR_IO, "cannot reach '%s': %s", url, *why ? why : curl_easy_strerror(c));
    curl_easy_getinfo(h->curl, CURLINFO_REDIRECT_URL, &to);
    if (to && !(*next = strdup(to))) return err_set(e, ERR_NOMEM, "no memory for an address");
    return 0;
}

/* A request with its redirects. */
static int http_chain(struct http *h, const char *url, struct http_sink *sink, struct http_reply *r,
                      bool *again, struct err *e)
{
    char *at = NULL, *next = NULL;
    int rc = http_hop(h, url, sink, r, &next, again, e);
    for (int i = 0; rc >= 0 && next && (sink || at_endpoint(h, next)); i++) {
        bool secure = !strncasecmp(at ? at : url, "https://", 8);
        free(at);
        at = next;
        next = NULL;
        if (i == REDIRECTS_MAX ||
            (strncasecmp(at, "https://", 8) != 0 && (secure || strncasecmp(at, "http://", 7) != 0)))
            rc = err_set(e, ERR_FORMAT, "'%s' redirects to '%.300s', which is not followed", url, at);
        else rc = http_hop(h, at, sink, r, &next, again, e);
    }
    free(at);
    free(next);
    return rc;
}

int http_request(struct http *h, const char *url, struct http_sink *sink, struct http_reply *r, struct err *e)
{
    for (int i = 0;; i++) {
        bool again;
        int64_t before = file_size(sink);
        int rc = http_chain(h, url, sink, r, &again, e);
        if (file_size(sink) > before) i = 0;
        if (!again || i + 1 >= TRIES) return rc;
        log_info("trying again: '%s' (status %ld)", url, r->status);
        struct timespec pause = { .tv_sec = (1 << i) / 2, .tv_nsec = i ? 0 : 500000000 };
        nanosleep(&pause, NULL);
    }
}
