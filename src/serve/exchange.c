/* See exchange.h. The connection's thread and the producer of the answer meet here, under x->lock: a connection
 * with nothing to send is suspended and resumed by whoever adds something. An exchange is freed by the later of the
 * two to leave it. */
#include "serve/exchange.h"

#include <arpa/inet.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <netdb.h>
#include <time.h>
#include <unistd.h>

#include "base/plat.h"
#include "serve/server_in.h"

enum { REPLY_MAX = 1 << 30, COMPACT = 1 << 16, CLIENT_LEFT = 499 /* as nginx has it */ };

/* ---- life */

static enum MHD_Result last_value(void *cls, enum MHD_ValueKind kind, const char *key, const char *value)
{
    const char **last = cls;
    (void)kind;
    if (!strcasecmp(key, "X-Forwarded-For") && value) *last = value;
    return MHD_YES;
}

/* FNV-1a of the address, of IPv6 that of the network: who has one address there has all of it. */
static uint64_t client_of(const char *ip)
{
    uint64_t h = 0xcbf29ce484222325u;
    unsigned char a[16];
    const bool v6 = inet_pton(AF_INET6, ip, a) == 1;
    const size_t n = v6 ? 8 : strlen(ip);
    for (size_t i = 0; i < n; i++) h = (h ^ (v6 ? a[i] : (unsigned char)ip[i])) * 0x100000001b3u;
    return h;
}

static void set_ip(struct exchange *x)
{
    const char *by = NULL;
    const union MHD_ConnectionInfo *i = MHD_get_connection_info(x->mhd, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    const struct sockaddr *a = i ? i->client_addr : NULL;
    socklen_t n = a && a->sa_family == AF_INET6 ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in);
    if (!a || getnameinfo(a, n, x->ip, sizeof x->ip, NULL, 0, NI_NUMERICHOST) != 0) snprintf(x->ip, sizeof x->ip, "?");
    if (!strncmp(x->ip, "::ffff:", 7)) memmove(x->ip, x->ip + 7, strlen(x->ip + 7) + 1);
    if (x->server->o.forwarded) MHD_get_connection_values(x->mhd, MHD_HEADER_KIND, last_value, &by);
    if (by) { /* the last entry of the last line is our own proxy's word; those before it are anybody's */
        const char *last = strrchr(by, ',');
        snprintf(x->ip, sizeof x->ip, "%s", last ? last + 1 + strspn(last + 1, " ") : by);
        text_tame(x->ip);
    }
    x->client = client_of(x->ip);
}

/* The path of a request's target, which a client that takes this server for its proxy gives with the host before it. */
static const char *path_of(const char *target)
{
    const char *host = !strncasecmp(target, "http://", 7) ? target + 7
                     : !strncasecmp(target, "https://", 8) ? target + 8 : NULL;
    if (!host) return target;
    const char *path = strchr(host, '/');
    return path ? path : "/";
}

struct exchange *exchange_new(struct server *s, struct MHD_Connection *mhd, const char *url, const char *method,
                              const char *version)
{
    struct exchange *x = calloc(1, sizeof *x);
    if (!x) return NULL;
    const union MHD_ConnectionInfo *i = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    x->server = s;
    x->mhd = mhd;
    x->conn = i->socket_context;
    x->start_s = plat_now_s();
    x->http10 = strcmp(version, MHD_HTTP_VERSION_1_1) != 0;
    x->out = buf_make(REPLY_MAX);
    snprintf(x->method, sizeof x->method, "%s", method);
    snprintf(x->path, sizeof x->path, "%s", path_of(url));
    text_tame(x->path);
    uint64_t id = (s->salt ^ atomic_fetch_add(&s->serial, 1)) * 0x9e3779b97f4a7c15u;
    snprintf(x->id, sizeof x->id, "%016llx", (unsigned long long)(id ^ id >> 31));
    pthread_mutex_init(&x->lock, NULL);
    pthread_cond_init(&x->calm, NULL);
    set_ip(x);
    pthread_mutex_lock(&s->lock);
    s->n_active++;
    x->conn->x = x;
    x->conn->phase = CONN_BODY;
    x->conn->since_s = x->start_s;
    pthread_mutex_unlock(&s->lock);
    return x;
}

void exchange_body_read(struct exchange *x) { buf_free(&x->body); }

/* Buffers double, so that it is seldom that all connections are looked at. */
bool exchange_charge(struct exchange *x, size_t n)
{
    struct server *s = x->server;
    size_t own = 0;
    if (!n) return true;
    x->body_counted += n;
    const size_t all = atomic_fetch_add(&s->bodies, n) + n;
    if (all > s->o.bodies_max) return false;
    pthread_mutex_lock(&s->lock);
    for (const struct conn *c = s->conns; c; c = c->next)
        if (c->x && c->x->client == x->client) own += c->x->body_counted;
    pthread_mutex_unlock(&s->lock);
    return own <= SERVER_SHARE * (s->o.bodies_max - all);
}

void exchange_body_drop(struct exchange *x)
{
    buf_free(&x->body);
    atomic_fetch_sub(&x->server->bodies, atomic_exchange(&x->body_counted, 0));
}

static void exchange_free(struct exchange *x)
{
    struct server *s = x->server;
    exchange_body_drop(x);
    buf_free(&x->out);
    pthread_mutex_destroy(&x->lock);
    pthread_cond_destroy(&x->calm);
    free(x);
    pthread_mutex_lock(&s->lock);
    s->n_active--;
    pthread_cond_broadcast(&s->calm);
    pthread_mutex_unlock(&s->lock);
}

/* Called with x->lock held: has the connection's thread look at x again. */
static void wake(struct exchange *x)
{
    if (!x->suspended) return;
    x->suspended = false;
    MHD_resume_connection(x->mhd);
}

/* Called with x->lock held, which it gives back: the producer is done with x. */
static void finish(struct exchange *x)
{
    while (x->calling) pthread_cond_wait(&x->calm, &x->lock);
    ASSERT(!x->finished);
    x->finished = true;
    x->gone_fn = NULL;
    bool gone = x->gone;
    if (!gone) wake(x);
    pthread_mutex_unlock(&x->lock);
    if (gone) exchange_free(x);
}

/* Called with x->lock held, and back with it held: tells the producer, once. */
static void tell_gone(struct exchange *x)
{
    void (*fn)(void *) = x->gone_fn;
    void *ctx = x->gone_ctx;
    x->gone_fn = NULL;
    if (!fn) return;
    x->calling = true;
    pthread_mutex_unlock(&x->lock);
    fn(ctx);
    pthread_mutex_lock(&x->lock);
    x->calling = false;
    pthread_cond_broadcast(&x->calm);
}

void exchange_on_gone(struct exchange *x, void (*fn)(void *), void *ctx)
{
    pthread_mutex_lock(&x->lock);
    while (x->calling) pthread_cond_wait(&x->calm, &x->lock);
    x->gone_fn = fn;
    x->gone_ctx = ctx;
    if (x->gone || x->cut) tell_gone(x);
    pthread_mutex_unlock(&x->lock);
}

bool exchange_gone(struct exchange *x)
{
    pthread_mutex_lock(&x->lock);
    bool gone = x->gone || x->cut;
    pthread_mutex_unlock(&x->lock);
    return gone;
}

/* One line of the access log. A disk that is full loses lines, counts them, and holds nobody up. */
static void log_access(struct exchange *x)
{
    struct server *s = x->server;
    int class = x->status / 100;
    atomic_fetch_add(&s->statuses[class >= 1 && class <= 5 ? class : 0], 1);
    if (s->log_fd < 0) return;
    char when[32];
    struct timespec now;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &tm);
    size_t n = strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(when + n, sizeof when - n, ".%03ldZ", now.tv_nsec / 1000000);
    json_t *line = json_pack("{ss,ss,ss,ss,ss*,si,sI,sf,sb}", "time", when, "id", x->id, "ip", x->ip, "method",
                             x->method, "path", x->path, "status", x->status, "bytes", (json_int_t)x->bytes, "seconds",
                             plat_now_s() - x->start_s, "cut", x->state == X_STREAM && !x->finished);
    if (line && *x->note) json_object_set_new(line, "note", json_string(x->note));
    char *text = line ? json_dumps(line, JSON_COMPACT | JSON_REAL_PRECISION(6)) : NULL;
    size_t len = text ? strlen(text) : 0;
    if (text) text[len] = '\n'; /* one write a line: lines of several threads do not mix */
    if (!text || !file_append(s->log_fd, text, len + 1)) atomic_fetch_add(&s->log_errors, 1);
    free(text);
    json_decref(line);
}

void exchange_client_gone(struct exchange *x)
{
    struct server *s = x->server;
    pthread_mutex_lock(&s->lock);
    x->conn->x = NULL;
    x->conn->phase = CONN_KEPT;
    x->conn->since_s = plat_now_s();
    pthread_mutex_unlock(&s->lock);
    pthread_mutex_lock(&x->lock);
    if (!x->status) x->status = CLIENT_LEFT;
    log_access(x);
    x->gone = true;
    x->suspended = false;
    while (x->calling) pthread_cond_wait(&x->calm, &x->lock);
    tell_gone(x);
    bool finished = x->finished;
    pthread_mutex_unlock(&x->lock);
    if (finished) exchange_free(x);
}

/* ---- the request */

const char *exchange_path(const struct exchange *x) { return x->path; }
const char *exchange_tail(const struct exchange *x) { return x->tail ? x->path + x->tail : ""; }
const char *exchange_ip(const struct exchange *x) { return x->ip; }
uint64_t exchange_client(const struct exchange *x) { return x->client; }
uint64_t exchange_realm(const struct exchange *x) { return x->realm; }
const char *exchange_id(const struct exchange *x) { return x->id; }

const char *exchange_header(const struct exchange *x, const char *name)
{
    return MHD_lookup_connection_value(x->mhd, MHD_HEADER_KIND, name);
}

const char *exchange_body(const struct exchange *x, size_t *n)
{
    *n = x->body.n;
    return x->body.p ? x->body.p : "";
}

/* ---- whole answers */

static void reply(struct exchange *x, int status, const char *type, const void *body, size_t n)
{
    x->status = status;
    x->type = type;
    x->state = X_WHOLE;
    buf_reset(&x->out);
    buf_add(&x->out, body, n);
    if (x->out.failed) x->status = MHD_HTTP_INTERNAL_SERVER_ERROR;
}

void exchange_reply(struct exchange *x, int status, const char *type, const void *body, size_t n)
{
    pthread_mutex_lock(&x->lock);
    ASSERT(!x->begun);
    reply(x, status, type, body, n);
    finish(x);
}

void exchange_json(struct exchange *x, int status, json_t *v)
{
    char *text = v ? json_dumps(v, JSON_COMPACT | JSON_ENCODE_ANY | JSON_ENSURE_ASCII) : NULL;
    const char *body = text ? text : "null";
    exchange_reply(x, status, "application/json", body, strlen(body));
    free(text);
    json_decref(v);
}

json_t *exchange_error_json(int status, const char *param, const char *code, const char *message)
{
    const char *type = status == 401 ? "authentication_error" : status == 403 ? "permission_error"
                     : status == 429 ? "rate_limit_error" : status >= 500 ? "server_error" : "invalid_request_error";
    return json_pack("{s{ss+ss ss? ss?}}", "error", "message", message, "", "type", type, "param", param, "code", code);
}

void exchange_error(struct exchange *x, int status, const char *param, const char *code, const char *fmt, ...)
{
    char message[1000];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(message, sizeof message, fmt, ap);
    va_end(ap);
    text_tame(message);
    exchange_json(x, status, exchange_error_json(status, param, code, message));
}

void exchange_refuse(struct exchange *x, int status, const char *code, const char *message)
{
    exchange_error(x, status, NULL, code, "%s", message);
}

void exchange_set_header(struct exchange *x, const char *name, const char *value)
{
    pthread_mutex_lock(&x->lock);
    ASSERT(x->n_headers < (int)(sizeof x->header / sizeof *x->header));
    x->header[x->n_headers][0] = name;
    x->header[x->n_headers++][1] = value;
    pthread_mutex_unlock(&x->lock);
}

void exchange_note(struct exchange *x, const char *note)
{
    pthread_mutex_lock(&x->lock);
    snprintf(x->note, sizeof x->note, "%s", note);
    pthread_mutex_unlock(&x->lock);
}

/* ---- streams */

void exchange_stream(struct exchange *x, const char *type, const char *ping)
{
    pthread_mutex_lock(&x->lock);
    x->ping = ping;
    x->written_s = plat_now_s();
    x->status = MHD_HTTP_OK;
    x->type = type;
    x->state = X_STREAM;
    pthread_mutex_unlock(&x->lock);
}

/* Called with x->lock held. */
static bool add(struct exchange *x, const void *p, size_t n)
{
    if (x->sent > COMPACT && x->sent > x->out.n / 2) { /* what is sent need not be kept */
        memmove(x->out.p, x->out.p + x->sent, x->out.n - x->sent);
        x->latest = x->latest > x->sent ? x->latest - x->sent : 0;
        x->out.n -= x->sent;
        x->sent = 0;
    }
    buf_add(&x->out, p, n);
    x->begun = true;
    x->written_s = plat_now_s();
    if (x->out.failed || x->out.n - x->sent > EXCHANGE_BACKLOG) x->cut = true;
    wake(x);
    return !x->cut;
}

bool exchange_write(struct exchange *x, const void *p, size_t n)
{
    pthread_mutex_lock(&x->lock);
    ASSERT(x->state == X_STREAM && !x->finished);
    bool there = !x->gone && !x->cut && add(x, p, n);
    pthread_mutex_unlock(&x->lock);
    return there;
}

bool exchange_write_latest(struct exchange *x, const void *p, size_t n)
{
    pthread_mutex_lock(&x->lock);
    ASSERT(x->state == X_STREAM && !x->finished);
    if (x->sent <= x->latest && x->out.n) x->out.n = x->latest; /* else it has begun, and stays */
    bool there = !x->gone && !x->cut && add(x, p, n);
    x->latest = x->out.n > n ? x->out.n - n : 0;
    pthread_mutex_unlock(&x->lock);
    return there;
}

void exchange_ping(struct exchange *x, double now)
{
    if (x->state != X_STREAM || !x->ping || x->finished || x->cut || now - x->written_s < EXCHANGE_PING_S) return;
    add(x, x->ping, strlen(x->ping));
}

bool exchange_begun(struct exchange *x)
{
    pthread_mutex_lock(&x->lock);
    bool begun = x->begun;
    if (!begun) x->ping = NULL;
    pthread_mutex_unlock(&x->lock);
    return begun;
}

void exchange_end(struct exchange *x)
{
    pthread_mutex_lock(&x->lock);
    ASSERT(x->state == X_STREAM);
    finish(x);
}

/* libmicrohttpd asks for more to send. */
static ssize_t read_out(void *cls, uint64_t at, char *to, size_t max)
{
    struct exchange *x = cls;
    (void)at;
    pthread_mutex_lock(&x->lock);
    size_t n = x->out.n - x->sent;
    ssize_t rc;
    if (x->cut && !x->finished) {
        rc = MHD_CONTENT_READER_END_WITH_ERROR;
    } else if (n) {
        if (n > max) n = max;
        memcpy(to, x->out.p + x->sent, n);
        x->sent += n;
        x->bytes += n;
        rc = (ssize_t)n;
        if (x->sent == x->out.n) {
            buf_reset(&x->out);
            x->sent = x->latest = 0;
        }
    } else if (x->finished) {
        rc = MHD_CONTENT_READER_END_OF_STREAM;
    } else {
        x->suspended = true;
        MHD_suspend_connection(x->mhd);
        rc = 0;
    }
    pthread_mutex_unlock(&x->lock);
    return rc;
}

static void add_headers(struct exchange *x, struct MHD_Response *r)
{
    const char *cors = x->server->o.cors;
    if (x->type) MHD_add_response_header(r, "Content-Type", x->type);
    MHD_add_response_header(r, "X-Request-Id", x->id);
    MHD_add_response_header(r, "X-Content-Type-Options", "nosniff");
    if (cors) {
        MHD_add_response_header(r, "Access-Control-Allow-Origin", cors);
        MHD_add_response_header(r, "Access-Control-Expose-Headers", "X-Request-Id");
        if (strcmp(cors, "*") != 0) MHD_add_response_header(r, "Vary", "Origin");
    }
    if (x->state == X_STREAM) { /* the second is for nginx: don't collect */
        MHD_add_response_header(r, "Cache-Control", "no-cache");
        MHD_add_response_header(r, "X-Accel-Buffering", "no");
    }
    if (x->status == MHD_HTTP_UNAUTHORIZED)
        MHD_add_response_header(r, "WWW-Authenticate", "Bearer");
    for (int i = 0; i < x->n_headers; i++) MHD_add_response_header(r, x->header[i][0], x->header[i][1]);
}

/* Called with x->lock held, when there is something to send. NULL: no memory. */
static struct MHD_Response *make_response(struct exchange *x)
{
    struct MHD_Response *r;
    if (x->state == X_STREAM) {
        r = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 16384, read_out, x, NULL);
    } else {
        size_t n;
        x->bytes = x->out.n;
        char *body = buf_take(&x->out, &n);
        r = MHD_create_response_from_buffer(n, body, MHD_RESPMEM_MUST_FREE);
        if (!r) free(body);
    }
    if (r) add_headers(x, r);
    return r;
}

enum MHD_Result exchange_answer(struct exchange *x)
{
    struct MHD_Response *r = NULL;
    pthread_mutex_lock(&x->lock);
    const bool ready = x->state == X_WHOLE ? x->finished
                     : x->state == X_STREAM && (x->out.n > x->sent || x->finished || x->cut);
    const unsigned status = (unsigned)x->status;
    if (ready) {
        r = make_response(x);
    } else {
        x->suspended = true;
        MHD_suspend_connection(x->mhd);
    }
    pthread_mutex_unlock(&x->lock);
    if (!ready) return MHD_YES;
    /* Without x->lock, for the library holds a response's own lock when it comes for more. */
    const enum MHD_Result ok = r ? MHD_queue_response(x->mhd, status, r) : MHD_NO;
    if (r) MHD_destroy_response(r);
    return ok;
}
