/* See server.h. This file opens and closes the server and takes requests in; answers leave through exchange.c, and
 * watch.c sees to those who do not finish. */
#define _GNU_SOURCE
#include "serve/server.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/plat.h"
#include "serve/base64.h"
#include "serve/server_in.h"

enum {
    THREADS = 2,            /* that watch connections */
    DRAIN_MAX = 256 << 20,  /* bytes of a refused body that are read, so that the client gets to read why */
    PEM_MAX = 1 << 20,
    CONNECTIONS = 4096,
    BODIES_MAX = 512 << 20,
    LARGE = 256 << 10,
};

/* ---- taking a request in */

static void refuse(struct exchange *x, int status, const char *code, const char *message)
{
    if (x->refused) return;
    x->refused = true;
    exchange_body_drop(x);
    exchange_refuse(x, status, code, message);
}

/* The route for x, else a refusal. */
static void find_route(struct exchange *x)
{
    const char *method = !strcmp(x->method, "HEAD") ? "GET" : x->method;
    static const char *const allowed[] = { NULL, "GET, HEAD", "POST", "GET, HEAD, POST", "DELETE", "GET, HEAD, DELETE",
                                           "POST, DELETE", "GET, HEAD, POST, DELETE" };
    unsigned known = 0; /* an index of it: what others than this method the address takes */
    for (int i = 0; i < x->server->n_mounts; i++) {
        const struct mount *m = &x->server->mounts[i];
        for (const struct route *r = m->routes; r->path; r++) {
            size_t n = strlen(r->path);
            bool tail = r->path[n - 1] == '*';
            if (known && n == 2 && tail) continue; /* what takes anything does not take another's */
            if (tail ? strncmp(r->path, x->path, n - 1) != 0 : strcmp(r->path, x->path) != 0) continue;
            if (strcmp(r->method, method) != 0) {
                if (n > 2 || !tail) known |= !strcmp(r->method, "GET") ? 1 : !strcmp(r->method, "POST") ? 2 : 4;
                continue;
            }
            x->route = r;
            x->mount = m;
            x->tail = tail ? n - 1 : 0;
            return;
        }
    }
    char message[400];
    snprintf(message, sizeof message, known ? "'%s' does not take %s" : "no such address: '%s'", x->path, x->method);
    if (known) exchange_set_header(x, "Allow", allowed[known]);
    refuse(x, known ? MHD_HTTP_METHOD_NOT_ALLOWED : MHD_HTTP_NOT_FOUND, known ? "method_not_allowed" : "not_found",
           message);
}

static void sha_hex(const char *p, size_t n, unsigned char hex[65])
{
    struct hash h;
    hash_init(&h, HASH_SHA256);
    hash_add(&h, p, n);
    hash_hex(&h, (char *)hex);
}

/* Compares hashes, all of all keys, so that the time taken says nothing about a key. *realm: a number for this one. */
static bool key_fits(const struct server *s, const char *given, uint64_t *realm)
{
    unsigned char hex[65];
    unsigned fits = 0;
    sha_hex(given, strlen(given), hex);
    for (int k = 0; k < s->n_keys; k++) {
        unsigned differ = 0;
        for (int i = 0; i < 64; i++) differ |= hex[i] ^ s->keys[k][i];
        fits |= differ == 0;
    }
    hex[16] = 0;
    *realm = strtoull((const char *)hex, NULL, 16) | 1;
    return fits;
}

/* The password of "USER:PASSWORD" in base64: so `curl -u` brings a key, and a proxy that knows passwords only. */
static const char *basic_key(const char *base64, char *plain, size_t size)
{
    struct buf b = buf_make(size - 1);
    bool ok = base64_decode(&b, base64, strlen(base64));
    snprintf(plain, size, "%s", ok && b.p ? b.p : "");
    buf_free(&b);
    char *colon = strchr(plain, ':');
    return colon ? colon + 1 : plain;
}

static void check_key(struct exchange *x)
{
    const struct server *s = x->server;
    if (!s->n_keys || (x->route && x->route->flags & ROUTE_OPEN)) return;
    char plain[512];
    const char *given = exchange_header(x, "Authorization");
    if (!given) given = exchange_header(x, "X-Api-Key");
    else if (!strncasecmp(given, "Bearer ", 7)) given += 7 + strspn(given + 7, " ");
    else if (!strncasecmp(given, "Basic ", 6)) given = basic_key(given + 6, plain, sizeof plain);
    if (!given)
        refuse(x, MHD_HTTP_UNAUTHORIZED, "invalid_api_key", "no API key (want a header 'Authorization: Bearer KEY')");
    else if (!key_fits(s, given, &x->realm)) refuse(x, MHD_HTTP_UNAUTHORIZED, "invalid_api_key", "wrong API key");
}

struct header_count { int length, coding, host, odd; };
static enum MHD_Result count_header(void *cls, enum MHD_ValueKind kind, const char *key, const char *value)
{
    struct header_count *c = cls;
    (void)kind, (void)value;
    c->length += !strcasecmp(key, "Content-Length");
    c->coding += !strcasecmp(key, "Transfer-Encoding");
    c->host += !strcasecmp(key, "Host");
    c->odd += key[strcspn(key, " \t\r\v\f")] != 0; /* "Content-Length : 5" is a length to some */
    return MHD_YES;
}

/* How long the body is, and that there is only one way to read this: what proxies and servers read differently is how
 * requests are smuggled. -1: not said. */
static long long declared_length(struct exchange *x)
{
    struct header_count c = { 0 };
    MHD_get_connection_values(x->mhd, MHD_HEADER_KIND, count_header, &c);
    const char *length = exchange_header(x, "Content-Length"), *coding = exchange_header(x, "Transfer-Encoding");
    if (c.length > 1 || c.coding > 1 || (c.length && c.coding) ||
        (length && strspn(length, "0123456789") != strlen(length)))
        refuse(x, MHD_HTTP_BAD_REQUEST, "bad_framing", "the body's length is given twice, or not as a number");
    else if (c.odd)
        refuse(x, MHD_HTTP_BAD_REQUEST, "bad_framing", "the name of a header has a blank");
    else if (c.host > 1)
        refuse(x, MHD_HTTP_BAD_REQUEST, "bad_framing", "the header 'Host' is given twice");
    else if (coding && strcasecmp(coding, "chunked") != 0)
        refuse(x, MHD_HTTP_NOT_IMPLEMENTED, "bad_framing", "the body's coding is not 'chunked'");
    return length ? strtoll(length, NULL, 10) : coding ? -1 : 0;
}

/* A body that is packed would be read as broken JSON. */
static void check_encoding(struct exchange *x)
{
    const char *encoding = exchange_header(x, "Content-Encoding");
    if (!encoding || !*encoding || !strcasecmp(encoding, "identity") || x->refused) return;
    exchange_set_header(x, "Accept-Encoding", "identity");
    refuse(x, MHD_HTTP_UNSUPPORTED_MEDIA_TYPE, "unsupported_encoding",
           "the body's Content-Encoding is not supported: send it as it is");
}

static void refuse_large(struct exchange *x)
{
    char message[200];
    snprintf(message, sizeof message, "the body is over %zu bytes", x->route->body_max);
    refuse(x, MHD_HTTP_CONTENT_TOO_LARGE, "too_large", message);
}

static bool is_preflight(struct exchange *x)
{
    if (strcmp(x->method, "OPTIONS") != 0 || !x->server->o.cors) return false;
    exchange_set_header(x, "Access-Control-Allow-Methods", "GET, POST, DELETE, OPTIONS");
    exchange_set_header(x, "Access-Control-Allow-Headers", "*, Authorization, Content-Type");
    exchange_set_header(x, "Access-Control-Max-Age", "86400");
    x->refused = true;
    exchange_reply(x, MHD_HTTP_NO_CONTENT, NULL, "", 0);
    return true;
}

/* The headers are there. True: what is wrong must be answered before any body comes. */
static bool begin(struct exchange *x)
{
    struct server *s = x->server;
    pthread_mutex_lock(&s->lock);
    bool draining = s->draining;
    pthread_mutex_unlock(&s->lock);
    if (draining) refuse(x, MHD_HTTP_SERVICE_UNAVAILABLE, "shutting_down", "the server is shutting down");
    bool before = x->refused;
    long long n = declared_length(x);
    bool framed = x->refused && !before; /* where the body ends is not known: nothing of it is read */
    if (!x->refused && !is_preflight(x)) {
        find_route(x);
        check_key(x);
        check_encoding(x);
    }
    const char *expect = exchange_header(x, "Expect");
    if (!x->refused) {
        size_t most = x->route->body_max;
        x->body = buf_make(most);
        if (most && n > (long long)most) refuse_large(x);
    }
    return x->refused && (framed || n > DRAIN_MAX || (expect && n != 0));
}

/* Some of the body. False: the client goes on sending what was refused. */
static bool take(struct exchange *x, const char *p, size_t n)
{
    if (x->refused || !x->route->body_max) return (x->drained += n) <= DRAIN_MAX;
    size_t cap = x->body.cap;
    if (x->body.n + n > x->route->body_max) {
        refuse_large(x);
        return true;
    }
    buf_add(&x->body, p, n);
    if (x->body.failed || !exchange_charge(x, x->body.cap - cap))
        refuse(x, MHD_HTTP_SERVICE_UNAVAILABLE, "overloaded", "too many requests at a time, try again later");
    return true;
}

/* A client's next job comes after one of each other client that waits. */
static void lane_put(struct lane *l, struct exchange *x)
{
    struct exchange **at = &l->first;
    x->turn = l->turn + 1;
    for (const struct exchange *o = l->first; o; o = o->next_job)
        if (o->turn >= x->turn && o->client == x->client) x->turn = o->turn + 1;
    while (*at && (*at)->turn <= x->turn) at = &(*at)->next_job;
    x->next_job = *at;
    *at = x;
    l->n++;
    pthread_cond_signal(&l->more);
}

/* NULL: the server closes. */
static struct exchange *lane_take(struct lane *l)
{
    while (!l->first && l->server->watching) pthread_cond_wait(&l->more, &l->server->lock);
    struct exchange *x = l->first;
    if (!x) return NULL;
    l->first = x->next_job;
    l->turn = x->turn;
    l->n--;
    return x;
}

static bool has_place(const struct lane *l, const struct exchange *x)
{
    int own = 0;
    for (const struct exchange *o = l->first; o; o = o->next_job) own += o->client == x->client;
    return own < SERVER_SHARE * (SERVER_QUEUE - l->n);
}

bool exchange_later(struct exchange *x, enum exchange_lane lane, route_fn *fn, void *ctx)
{
    struct server *s = x->server;
    struct lane *l = &s->lane[lane];
    pthread_mutex_lock(&s->lock);
    bool room = has_place(l, x) && !s->closing;
    if (room) {
        x->job = fn;
        x->job_ctx = ctx;
        lane_put(l, x);
    }
    pthread_mutex_unlock(&s->lock);
    return room;
}

/* The request is whole: to its handler, or to the queue for those that may take time. */
static void dispatch(struct exchange *x)
{
    pthread_mutex_lock(&x->lock); /* the watcher looks at it already */
    x->state = X_WORK;
    pthread_mutex_unlock(&x->lock);
    if (x->route->flags & ROUTE_QUICK) x->route->handle(x->mount->ctx, x);
    else if (!exchange_later(x, LANE_WORK, x->route->handle, x->mount->ctx))
        refuse(x, MHD_HTTP_SERVICE_UNAVAILABLE, "overloaded", "too many requests at a time, try again later");
}

static void *work_main(void *lane)
{
    struct lane *l = lane;
    pthread_mutex_lock(&l->server->lock);
    for (struct exchange *x; (x = lane_take(l)) != NULL;) {
        pthread_mutex_unlock(&l->server->lock);
        const bool large = x->large |= x->body.n > LARGE;
        x->job(x->job_ctx, x); /* x may be gone afterwards, and what was made of its body is */
        if (large) plat_memory_trim();
        pthread_mutex_lock(&l->server->lock);
    }
    pthread_mutex_unlock(&l->server->lock);
    return NULL;
}

static void set_phase(struct server *s, struct conn *c, enum conn_phase phase)
{
    pthread_mutex_lock(&s->lock);
    c->phase = phase;
    c->since_s = plat_now_s();
    pthread_mutex_unlock(&s->lock);
}

static enum MHD_Result on_access(void *cls, struct MHD_Connection *mhd, const char *url, const char *method,
                                 const char *version, const char *upload, size_t *n, void **con_cls)
{
    struct server *s = cls;
    struct exchange *x = *con_cls;
    if (!x) {
        *con_cls = x = exchange_new(s, mhd, url, method, version);
        atomic_fetch_add(&s->n_taken, 1);
        if (!x) return MHD_NO;
        return begin(x) ? exchange_answer(x) : MHD_YES;
    }
    if (*n) {
        size_t came = *n;
        *n = 0;
        return take(x, upload, came) ? MHD_YES : MHD_NO;
    }
    pthread_mutex_lock(&x->lock);
    bool whole = x->state == X_READ, turned = x->turned;
    x->turned = true;
    pthread_mutex_unlock(&x->lock);
    /* One turn of its loop is given to libmicrohttpd before the connection may be suspended: it remembers what it
     * waited for, and one that is resumed and thought to read is closed if its client has nothing more to say. */
    if (!turned) return MHD_YES;
    if (whole) {
        set_phase(s, x->conn, CONN_ANSWER);
        dispatch(x);
    }
    return exchange_answer(x);
}

static void on_completed(void *cls, struct MHD_Connection *mhd, void **con_cls, enum MHD_RequestTerminationCode how)
{
    struct exchange *x = *con_cls;
    (void)cls, (void)mhd, (void)how;
    if (!x) return;
    *con_cls = NULL;
    pthread_mutex_lock(&x->lock);
    bool unread = x->state == X_READ; /* nobody was told of it, so nobody else finishes it */
    pthread_mutex_unlock(&x->lock);
    if (unread) refuse(x, MHD_HTTP_BAD_REQUEST, NULL, "the request was cut off");
    exchange_client_gone(x);
}

static void *on_line(void *cls, const char *uri, struct MHD_Connection *mhd)
{
    (void)uri;
    set_phase(cls, MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT)->socket_context, CONN_HEAD);
    return NULL;
}

static void on_connection(void *cls, struct MHD_Connection *mhd, void **ctx, enum MHD_ConnectionNotificationCode what)
{
    struct server *s = cls;
    struct conn *c = *ctx;
    pthread_mutex_lock(&s->lock);
    if (what == MHD_CONNECTION_NOTIFY_STARTED && (c = calloc(1, sizeof *c)) != NULL) {
        c->fd = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
        c->since_s = plat_now_s();
        c->next = s->conns;
        if (c->next) c->next->prev = c;
        s->conns = c;
        s->n_conns++;
        *ctx = c;
    } else if (what == MHD_CONNECTION_NOTIFY_CLOSED && c) {
        if (c->prev) c->prev->next = c->next;
        else s->conns = c->next;
        if (c->next) c->next->prev = c->prev;
        s->n_conns--;
        *ctx = NULL;
        free(c);
    }
    pthread_mutex_unlock(&s->lock);
}

/* What the library says of single connections (resets, broken TLS) is no news for whoever runs the server. */
static void on_log(void *cls, const char *fmt, va_list ap)
{
    (void)cls;
    (void)fmt;
    (void)ap;
}

/* ---- opening */

static int cannot_listen(const struct server *s, int why, struct err *e)
{
    return err_set(e, ERR_IO, "cannot listen at '%s:%d': %s", s->o.host, s->o.port, strerror(why));
}

/* Takes the address. It is not listened at before server_start: until then connections are refused, and do not wait for
 * a model that is being loaded. */
static int take_address(struct server *s, struct err *e)
{
    const struct addrinfo hints = { .ai_flags = AI_PASSIVE | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM };
    struct addrinfo *list = NULL;
    char port[16];
    int fd = -1, bad = 0;
    snprintf(port, sizeof port, "%d", s->o.port);
    int no = getaddrinfo(s->o.host, port, &hints, &list);
    /* a bare root without /etc/hosts: the name means the loopback all the same (RFC 6761) */
    if (no && strcmp(s->o.host, "localhost") == 0) no = getaddrinfo("127.0.0.1", port, &hints, &list);
    if (no) return err_set(e, ERR_USAGE, "cannot listen at '%s': %s", s->o.host, gai_strerror(no));
    /* IPv4 first: "localhost" is both. A port taken there is taken: on IPv6 alone few would find this server. */
    for (int v6 = 0; v6 < 2 && fd < 0 && bad != EADDRINUSE; v6++) {
        for (struct addrinfo *a = list; a && fd < 0; a = a->ai_next) {
            if ((a->ai_family == AF_INET6) != v6) continue;
            fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
            setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){ 1 }, sizeof(int));
            if (v6) setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &(int){ 0 }, sizeof(int));
            if (fd >= 0 && bind(fd, a->ai_addr, a->ai_addrlen) == 0) break;
            bad = errno;
            if (fd >= 0) close(fd);
            fd = -1;
        }
    }
    freeaddrinfo(list);
    if (fd < 0) return cannot_listen(s, bad, e);
    struct sockaddr_storage at;
    socklen_t n = sizeof at;
    if (getsockname(fd, (struct sockaddr *)&at, &n) == 0)
        s->port = ntohs(at.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&at)->sin6_port
                                                 : ((struct sockaddr_in *)&at)->sin_port);
    s->listen_fd = fd;
    return 0;
}

/* A key, without the blanks around it, if it is one. */
static int add_key(struct server *s, const char *key, size_t n, struct err *e)
{
    for (; n && strchr(" \t\r\n", *key); n--) key++;
    while (n && strchr(" \t\r\n", key[n - 1])) n--;
    if (!n) return 0;
    if (s->n_keys == SERVER_KEYS) return err_set(e, ERR_LIMIT, "more than %d API keys", SERVER_KEYS);
    sha_hex(key, n, s->keys[s->n_keys++]);
    return 0;
}

static int read_keys(struct server *s, struct err *e)
{
    static const char mark[] = "\xef\xbb\xbf"; /* that some editors put before UTF-8 */
    const char *path = s->o.keys_file;
    char *text;
    size_t n;
    int rc = s->o.key ? add_key(s, s->o.key, strlen(s->o.key), e) : 0;
    if (rc < 0 || !path) return rc;
    rc = file_read(&text, &n, path, PEM_MAX, e);
    if (rc < 0) return rc;
    if (strlen(text) != n) rc = err_set(e, ERR_FORMAT, "'%s' is no text in UTF-8: it has a NUL", path);
    const int before = s->n_keys;
    for (const char *line = text + (strncmp(text, mark, 3) ? 0 : 3); rc >= 0 && *line; line += *line != 0) {
        line += strspn(line, " \t");
        const size_t len = strcspn(line, "\r\n");
        if (*line != '#') rc = add_key(s, line, len, e);
        line += len;
    }
    if (rc >= 0 && s->n_keys == before) rc = err_set(e, ERR_FORMAT, "no API key in '%s'", path);
    free(text);
    return rc;
}

static int read_tls(struct server *s, struct err *e)
{
    if (!s->o.tls_cert != !s->o.tls_key) return err_set(e, ERR_USAGE, "TLS needs both a certificate and a key");
    if (!s->o.tls_cert) return 0;
    int rc = file_read(&s->cert, NULL, s->o.tls_cert, PEM_MAX, e);
    return rc < 0 ? rc : file_read(&s->cert_key, NULL, s->o.tls_key, PEM_MAX, e);
}

static int open_log(struct server *s, struct err *e)
{
    const char *path = s->o.log_path;
    if (path && !strcmp(path, "-")) s->log_fd = STDOUT_FILENO;
    else if (path) s->log_fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    return path && s->log_fd < 0 ? err_errno(e, "open", path) : 0;
}

/* As many connections as files can be open, less some for ourselves. */
static int fit_connections(int want)
{
    struct rlimit r;
    enum { OWN = 64 };
    if (getrlimit(RLIMIT_NOFILE, &r) == 0 && r.rlim_cur < r.rlim_max) {
        r.rlim_cur = r.rlim_max;
        setrlimit(RLIMIT_NOFILE, &r);
    }
    if (getrlimit(RLIMIT_NOFILE, &r) == 0 && r.rlim_cur != RLIM_INFINITY && r.rlim_cur < (rlim_t)want + OWN)
        want = r.rlim_cur > 2 * OWN ? (int)r.rlim_cur - OWN : OWN;
    return want;
}

static struct MHD_Daemon *start(struct server *s, unsigned threads)
{
    static char versions[] = "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2";
    struct MHD_OptionItem tls[] = { { MHD_OPTION_HTTPS_MEM_CERT, 0, s->cert },
                                    { MHD_OPTION_HTTPS_MEM_KEY, 0, s->cert_key },
                                    { MHD_OPTION_HTTPS_PRIORITIES, 0, versions },
                                    { MHD_OPTION_END, 0, NULL } };
    struct MHD_OptionItem none[] = { { MHD_OPTION_END, 0, NULL } };
    unsigned flags = MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG | MHD_USE_ITC;
    if (s->cert) flags |= MHD_USE_TLS;
    return MHD_start_daemon(flags, 0, NULL, NULL, on_access, s, MHD_OPTION_LISTEN_SOCKET, s->listen_fd,
                            MHD_OPTION_EXTERNAL_LOGGER, on_log, s, MHD_OPTION_THREAD_POOL_SIZE, threads,
                            MHD_OPTION_CONNECTION_LIMIT, (unsigned)s->o.connections, MHD_OPTION_CONNECTION_TIMEOUT,
                            (unsigned)s->o.idle_s, MHD_OPTION_NOTIFY_COMPLETED, on_completed, s,
                            MHD_OPTION_NOTIFY_CONNECTION, on_connection, s, MHD_OPTION_URI_LOG_CALLBACK, on_line, s,
                            MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_ARRAY, s->cert ? tls : none, MHD_OPTION_END);
}

/* The threads: fewer where the limit on processes is low, but at least one of each kind. */
static int start_threads(struct server *s, struct err *e)
{
    s->watching = true;
    if (pthread_create(&s->watcher, NULL, watch_main, s) != 0) s->watching = false;
    for (int i = LANES - 1; i >= 0 && s->watching; i--) {
        struct lane *l = &s->lane[i];
        const int most = i == LANE_PICTURES ? 1 : SERVER_JOBS;
        while (l->n_threads < most && !pthread_create(&l->thread[l->n_threads], NULL, work_main, l)) l->n_threads++;
    }
    const bool work = s->lane[LANE_WORK].n_threads > 0;
    if (work) s->daemon = start(s, THREADS);
    if (work && !s->daemon) s->daemon = start(s, 0);
    if (s->daemon) return 0;
    return work ? err_set(e, ERR_IO, "cannot start the server%s",
                                  s->cert ? ": is the certificate a PEM file that fits its key?" : "")
                        : err_set(e, ERR_LIMIT, "cannot start threads: %s", strerror(EAGAIN));
}

static int or_default(int v, int def) { return v > 0 ? v : def; }

int server_open(struct server **ret, const struct server_options *o, struct err *e)
{
    struct server *s = calloc(1, sizeof *s);
    int rc = s ? 0 : err_set(e, ERR_NOMEM, "no memory for a server");
    *ret = NULL;
    if (rc < 0) return rc;
    s->o = *o;
    s->o.connections = fit_connections(or_default(o->connections, CONNECTIONS));
    s->o.idle_s = or_default(o->idle_s, 75);
    s->o.head_s = or_default(o->head_s, 30);
    s->o.body_s = or_default(o->body_s, 300);
    s->o.bodies_max = o->bodies_max ? o->bodies_max : BODIES_MAX;
    s->listen_fd = s->log_fd = -1;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    s->salt = (uint64_t)now.tv_sec * 1000000007u ^ (uint64_t)now.tv_nsec << 20 ^ (uint64_t)getpid();
    pthread_mutex_init(&s->lock, NULL);
    for (int i = 0; i < LANES; i++) {
        s->lane[i].server = s;
        pthread_cond_init(&s->lane[i].more, NULL);
    }
    plat_cond_init(&s->calm);
    signal(SIGPIPE, SIG_IGN);
    plat_memory_frugal();
    TRY(read_keys(s, e));
    TRY(read_tls(s, e));
    TRY(open_log(s, e));
    TRY(take_address(s, e));
    *ret = s;
    s = NULL;
out:
    server_close(s);
    return rc;
}

int server_start(struct server *s, const struct mount *mounts, int n, struct err *e)
{
    ASSERT(n <= SERVER_MOUNTS && !s->n_mounts);
    memcpy(s->mounts, mounts, (size_t)n * sizeof *mounts);
    s->n_mounts = n;
    return listen(s->listen_fd, 1024) < 0 ? cannot_listen(s, errno, e) : start_threads(s, e);
}

int server_port(const struct server *s) { return s->port; }
bool server_is_tls(const struct server *s) { return s->cert != NULL; }

/* ---- closing */

/* Waits until nothing is under way, at most wait_s. Called with s->lock held. */
static bool calm(struct server *s, double wait_s)
{
    const double until_s = plat_now_s() + wait_s;
    while (s->n_active && plat_cond_wait(&s->calm, &s->lock, until_s));
    return !s->n_active;
}

void server_drain(struct server *s, double wait_s)
{
    pthread_mutex_lock(&s->lock);
    bool first = !s->draining;
    s->draining = true;
    pthread_mutex_unlock(&s->lock);
    if (first && s->daemon) {
        MHD_socket fd = MHD_quiesce_daemon(s->daemon);
        if (fd != MHD_INVALID_SOCKET) close(fd);
        s->listen_fd = -1;
    }
    pthread_mutex_lock(&s->lock);
    calm(s, wait_s);
    pthread_mutex_unlock(&s->lock);
}

void server_close(struct server *s)
{
    enum { LAST_S = 30 };
    if (!s) return;
    if (s->daemon) server_drain(s, 0);
    pthread_mutex_lock(&s->lock);
    s->closing = true;
    bool quiet = calm(s, LAST_S);
    pthread_mutex_unlock(&s->lock);
    if (!quiet) { /* somebody still works on an answer: the process ends, and that with it */
        log_warn("%d requests did not end in %d s and are left", s->n_active, LAST_S);
        return;
    }
    if (s->daemon) MHD_stop_daemon(s->daemon);
    pthread_mutex_lock(&s->lock);
    bool watched = s->watching;
    s->watching = false;
    for (int i = 0; i < LANES; i++) pthread_cond_broadcast(&s->lane[i].more);
    pthread_mutex_unlock(&s->lock);
    if (watched) pthread_join(s->watcher, NULL);
    for (int i = 0; i < LANES; i++) {
        for (int k = 0; k < s->lane[i].n_threads; k++) pthread_join(s->lane[i].thread[k], NULL);
        pthread_cond_destroy(&s->lane[i].more);
    }
    if (s->listen_fd >= 0) close(s->listen_fd);
    if (s->log_fd > STDERR_FILENO) close(s->log_fd);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->calm);
    free(s->cert);
    free(s->cert_key);
    free(s);
}

void server_metrics(const struct server *s, struct buf *out)
{
    static const char *const names[] = { "cut", "1xx", "2xx", "3xx", "4xx", "5xx" };
    struct server *m = (struct server *)s;
    pthread_mutex_lock(&m->lock);
    int conns = s->n_conns, active = s->n_active, jobs = 0;
    for (int i = 0; i < LANES; i++) jobs += s->lane[i].n;
    pthread_mutex_unlock(&m->lock);
    buf_str(out, "# TYPE llava_http_requests_total counter\n");
    for (int i = 0; i < 6; i++)
        buf_fmt(out, "llava_http_requests_total{status=\"%s\"} %llu\n", names[i], (unsigned long long)s->statuses[i]);
    buf_fmt(out, "# TYPE llava_http_connections gauge\nllava_http_connections %d\n", conns);
    buf_fmt(out, "# TYPE llava_http_requests_active gauge\nllava_http_requests_active %d\n", active);
    buf_fmt(out, "# TYPE llava_http_jobs_waiting gauge\nllava_http_jobs_waiting %d\n", jobs);
    buf_fmt(out, "# TYPE llava_http_body_bytes gauge\nllava_http_body_bytes %zu\n", (size_t)s->bodies);
    buf_fmt(out, "# TYPE llava_log_errors_total counter\nllava_log_errors_total %llu\n",
            (unsigned long long)s->log_errors);
}
