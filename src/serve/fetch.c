/* See fetch.h. */
#include "serve/fetch.h"

#include <arpa/inet.h>
#include <curl/curl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "base/buf.h"
#include "serve/client.h"

/* SHARE: connections that one client may have for each that is free. */
enum { CONNECT_S = 10, SHARE = 7 };

/* ---- addresses */

struct range4 { uint32_t net; int bits; };
static bool public4(uint32_t a)
{
    static const struct range4 kept[] = {
        { 0x00000000, 8 },  { 0x0a000000, 8 },  { 0x64400000, 10 }, { 0x7f000000, 8 },  { 0xa9fe0000, 16 },
        { 0xac100000, 12 }, { 0xc0000000, 24 }, { 0xc0000200, 24 }, { 0xc0a80000, 16 }, { 0xc6120000, 15 },
        { 0xc6336400, 24 }, { 0xcb007100, 24 }, { 0xe0000000, 3 }, /* multicast, reserved, broadcast */
    };
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
        if ((a ^ kept[i].net) >> (32 - kept[i].bits) == 0) return false;
    return true;
}

static uint32_t get4(const unsigned char *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static bool public6(const unsigned char a[16])
{
    static const unsigned char mapped[12] = { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff }, zero[12] = { 0 };
    static const unsigned char nat64[12] = { 0, 0x64, 0xff, 0x9b };
    if (!memcmp(a, mapped, 12) || !memcmp(a, nat64, 12)) return public4(get4(a + 12));
    if (!memcmp(a, zero, 12)) return false;                             /* ::, ::1, ::a.b.c.d */
    if (a[0] == 0x20 && a[1] == 0x02) return public4(get4(a + 2));      /* 6to4 */
    if (a[0] == 0x20 && a[1] == 0x01 && !a[2] && !a[3]) return false;   /* Teredo */
    if (a[0] == 0x20 && a[1] == 0x01 && a[2] == 0x0d && a[3] == 0xb8) return false;
    return (a[0] & 0xe0) == 0x20; /* 2000::/3 is all that is given out */
}

bool fetch_is_public(const struct sockaddr *a)
{
    if (a->sa_family == AF_INET) return public4(ntohl(((const struct sockaddr_in *)a)->sin_addr.s_addr));
    if (a->sa_family == AF_INET6) return public6(((const struct sockaddr_in6 *)a)->sin6_addr.s6_addr);
    return false;
}

/* ---- one address */

struct fetcher {
    struct fetch_limits limits;
    struct client *client; /* NULL: nothing is allowed */
    _Atomic size_t bytes;  /* held for all requests */
    pthread_mutex_t lock;  /* all below */
    struct item *running, *waiting; /* in no order; as they came */
    int n_running;
};

struct item {
    struct fetches *all;
    struct item *next;     /* in one of the fetcher's lists */
    char *url;
    uint64_t id;
    struct buf body;
    bool refused, crowded; /* a private address; all the memory is taken */
    struct err err;        /* code 0: it is there */
};

struct fetches {
    struct fetcher *f;
    uint64_t client;
    pthread_mutex_t lock; /* of left, the ids and cancelled */
    int left;
    bool cancelled;
    void (*on_end)(void *ctx);
    void *ctx;
    int n, n_max;
    size_t most;
    struct item item[];
};

static curl_socket_t on_socket(void *arg, curlsocktype purpose, struct curl_sockaddr *a)
{
    struct item *t = arg;
    if (purpose != CURLSOCKTYPE_IPCXN) return CURL_SOCKET_BAD;
    if (!t->all->f->limits.private_too && !fetch_is_public(&a->addr)) {
        t->refused = true;
        return CURL_SOCKET_BAD;
    }
    return socket(a->family, a->socktype | SOCK_CLOEXEC, a->protocol);
}

static void setup(void *ctx, void *curl)
{
    struct item *t = ctx;
    const double s = t->all->f->limits.timeout_s;
    curl_easy_setopt(curl, CURLOPT_REDIR_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 1L);
    curl_easy_setopt(curl, CURLOPT_MAXREDIRS, (long)FETCH_REDIRECTS);
    curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, (long)((s > 0 ? s : 10) * 1000));
    curl_easy_setopt(curl, CURLOPT_MAXFILESIZE_LARGE, (curl_off_t)t->body.max);
    curl_easy_setopt(curl, CURLOPT_OPENSOCKETFUNCTION, on_socket);
    curl_easy_setopt(curl, CURLOPT_OPENSOCKETDATA, t);
    curl_easy_setopt(curl, CURLOPT_USERAGENT, "llava.c");
}

static bool on_data(void *ctx, const char *p, size_t n)
{
    struct item *t = ctx;
    struct fetcher *f = t->all->f;
    const size_t cap = t->body.cap;
    buf_add(&t->body, p, n);
    const size_t grown = t->body.cap - cap;
    t->crowded = atomic_fetch_add(&f->bytes, grown) + grown > FETCH_BYTES;
    return !t->body.failed && !t->crowded;
}

/* Called with the lock held, which it gives back: one is over. s may be gone afterwards. */
static void one_less(struct fetches *s)
{
    const bool over = --s->left == 0;
    pthread_mutex_unlock(&s->lock);
    if (over) s->on_end(s->ctx);
}

/* ---- turns */

static bool take(struct item **at, const struct item *t)
{
    while (*at && *at != t) at = &(*at)->next;
    if (!*at) return false;
    *at = t->next;
    return true;
}

/* Called with f->lock held. */
static void run(struct fetcher *f, struct item *t)
{
    t->next = f->running;
    f->running = t;
    f->n_running++;
}

/* The first of those that wait whose client has the fewest connections, and now has one more; NULL: nobody may. */
static struct item *run_next(struct fetcher *f)
{
    const int left = FETCH_CONNECTIONS - f->n_running;
    struct item *best = NULL;
    int least = SHARE * left;
    for (struct item *t = f->waiting; t; t = t->next) {
        int n = 0;
        for (const struct item *o = f->running; o; o = o->next) n += o->all->client == t->all->client;
        if (n >= least) continue;
        best = t;
        least = n;
    }
    if (best && take(&f->waiting, best)) run(f, best);
    return best;
}

static void over(struct item *t);
static void on_end(void *ctx, long status, const char *what);

static void begin(struct item *t)
{
    struct fetches *s = t->all;
    struct client_stream one = { .url = t->url, .connect_s = CONNECT_S, .stall_s = CONNECT_S, .setup = setup,
                                 .on_data = on_data, .on_end = on_end, .ctx = t };
    pthread_mutex_lock(&s->lock); /* it may end before its number is known here */
    const uint64_t id = t->id = client_stream(s->f->client, &one);
    if (id && s->cancelled) client_cancel(s->f->client, id);
    if (!id) err_set(&t->err, ERR_NOMEM, "no memory for fetching");
    pthread_mutex_unlock(&s->lock);
    if (!id) over(t);
}

static void begin_those_who_may(struct fetcher *f)
{
    for (;;) {
        pthread_mutex_lock(&f->lock);
        struct item *t = run_next(f);
        pthread_mutex_unlock(&f->lock);
        if (!t) return;
        begin(t);
    }
}

/* It has ended; all of which it is one may be gone afterwards. */
static void over(struct item *t)
{
    struct fetcher *f = t->all->f;
    pthread_mutex_lock(&f->lock);
    take(&f->running, t);
    f->n_running--;
    pthread_mutex_unlock(&f->lock);
    pthread_mutex_lock(&t->all->lock);
    t->id = 0;
    one_less(t->all);
    begin_those_who_may(f);
}

static void on_end(void *ctx, long status, const char *what)
{
    struct item *t = ctx;
    struct err *e = &t->err;
    if (t->refused) err_set(e, ERR_USAGE, "'%.200s' leads to a private address, which is not allowed", t->url);
    else if (t->body.failed) err_set(e, ERR_LIMIT, "'%.200s' is larger than %zu bytes", t->url, t->body.max);
    else if (t->crowded) err_set(e, ERR_BUSY, "too many pictures are fetched at a time, try again later");
    else if (what) err_set(e, ERR_IO, "cannot fetch '%.200s': %s", t->url, what);
    else if (status != 200) err_set(e, ERR_IO, "cannot fetch '%.200s': status %ld", t->url, status);
    over(t);
}

/* ---- several */

int fetcher_open(struct fetcher **ret, const struct fetch_limits *l, struct err *e)
{
    struct fetcher *f = *ret = calloc(1, sizeof *f);
    if (!f) return err_set(e, ERR_NOMEM, "no memory for fetching");
    f->limits = *l;
    pthread_mutex_init(&f->lock, NULL);
    return l->allowed ? client_open(&f->client, FETCH_CONNECTIONS, FETCH_HOST, e) : 0;
}

void fetcher_close(struct fetcher *f)
{
    if (!f) return;
    client_close(f->client);
    pthread_mutex_destroy(&f->lock);
    free(f);
}

int fetches_new(struct fetches **ret, struct fetcher *f, uint64_t client, int n, size_t most, struct err *e)
{
    struct fetches *s = *ret = calloc(1, sizeof *s + (size_t)n * sizeof *s->item);
    if (!s) return err_set(e, ERR_NOMEM, "no memory for fetching");
    s->f = f;
    s->client = client;
    s->n_max = n;
    s->most = most;
    pthread_mutex_init(&s->lock, NULL);
    return 0;
}

int fetches_add(struct fetches *s, const char *url, struct err *e)
{
    bool web = !strncasecmp(url, "http://", 7) || !strncasecmp(url, "https://", 8);
    if (!web) return err_set(e, ERR_USAGE, "'%.60s' is neither a data URI nor an http(s) address", url);
    if (!s->f->client) return err_set(e, ERR_UNSUPPORTED, "pictures behind addresses are not allowed on this server; "
                                                          "send them as data URIs");
    ASSERT(s->n < s->n_max);
    struct item *t = &s->item[s->n];
    *t = (struct item){ .all = s, .url = strdup(url), .body = buf_make(s->most) };
    if (!t->url) return err_set(e, ERR_NOMEM, "no memory for an address");
    s->n++;
    return 0;
}

void fetches_start(struct fetches *s, void (*fn)(void *ctx), void *ctx)
{
    struct fetcher *f = s->f;
    s->on_end = fn;
    s->ctx = ctx;
    s->left = s->n;
    pthread_mutex_lock(&f->lock);
    struct item **end = &f->waiting;
    while (*end) end = &(*end)->next;
    for (int i = 0; i < s->n; i++) {
        *end = &s->item[i];
        end = &s->item[i].next;
    }
    *end = NULL;
    pthread_mutex_unlock(&f->lock);
    begin_those_who_may(f); /* afterwards s may be gone */
}

void fetches_cancel(struct fetches *s)
{
    struct fetcher *f = s->f;
    pthread_mutex_lock(&s->lock);
    s->cancelled = true;
    for (int i = 0; i < s->n; i++)
        if (s->item[i].id) client_cancel(f->client, s->item[i].id);
    pthread_mutex_unlock(&s->lock);
    for (int i = 0; i < s->n; i++) { /* what waits begins, to be broken off: its end is the client's thread's */
        pthread_mutex_lock(&f->lock);
        const bool waits = take(&f->waiting, &s->item[i]);
        if (waits) run(f, &s->item[i]);
        pthread_mutex_unlock(&f->lock);
        if (waits) begin(&s->item[i]);
    }
}

int fetches_take(const void **bytes, size_t *n, const struct fetches *s, int i, struct err *e)
{
    const struct item *t = &s->item[i];
    if (t->err.code) return err_set(e, t->err.code, "%s", t->err.msg);
    *bytes = t->body.p ? t->body.p : "";
    *n = t->body.n;
    return 0;
}

void fetches_free(struct fetches *s)
{
    if (!s) return;
    for (int i = 0; i < s->n; i++) {
        atomic_fetch_sub(&s->f->bytes, s->item[i].body.cap);
        buf_free(&s->item[i].body);
        free(s->item[i].url);
    }
    pthread_mutex_destroy(&s->lock);
    free(s);
}
