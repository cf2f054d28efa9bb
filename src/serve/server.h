/* An HTTP/1.1 server over libmicrohttpd: routes, limits, keys, logs, an orderly end.
 *
 * A few threads watch all connections; requests whose handler may take time are handed to a few more (jobs), so that
 * nobody's stream waits for somebody's upload. Streams hold no thread. Limits hold before anything is stored: headers
 * and bodies have a deadline however slowly they trickle, a body has its route's limit, all bodies together a budget.
 *
 * A client may close its side for writing behind its request and still gets the answer.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"
#include "serve/exchange.h"

enum route_flags {
    ROUTE_OPEN = 1,   /* needs no key */
    ROUTE_QUICK = 2,  /* the handler never waits or computes: it runs where the request was read */
};

typedef void route_fn(void *ctx, struct exchange *x);
struct route {
    const char *method; /* "GET" (HEAD too), "POST", "DELETE" */
    const char *path;   /* a last "*" stands for anything */
    route_fn *handle;
    unsigned flags;
    size_t body_max;    /* bytes; 0: takes none, and one that is sent is read and dropped */
    const char *help;
};

/* A table of routes (ends with a row of NULLs) and what their handlers get. The first that fits is taken. */
struct mount {
    const struct route *routes;
    void *ctx;
};
enum { SERVER_MOUNTS = 8 };

struct server_options {
    const char *host;      /* address or name to listen at: "localhost", "0.0.0.0", "::" */
    int port;              /* 0: any that is free */
    const char *tls_cert, *tls_key; /* PEM files, or NULLs */
    const char *keys_file; /* a key a line, # begins a comment; or NULL */
    const char *key;       /* one key more, or NULL */
    const char *cors;      /* origin that may read answers, "*": any; NULL: none */
    const char *log_path;  /* access log, JSON lines; "-": standard output; NULL: none */
    bool forwarded;        /* believe X-Forwarded-For: the server is reached through a proxy only */
    int connections;       /* at a time; 0: 4096, less where the limit on open files is lower */
    size_t bodies_max;     /* bytes of all request bodies in memory; 0: 512 MB */
    int idle_s;            /* a kept connection without a request, a reader that stands still; 0: 75 */
    int head_s, body_s;    /* for a request's headers; for its body; 0: 30, 300 */
};

struct server;
/* Reads keys and certificates and takes the port, at which nobody is answered yet: what can be wrong with the options
 * is said before anything long is begun. */
int server_open(struct server **ret, const struct server_options *o, struct err *e);
/* Serves from here on; once. Contexts of mounts outlive the server. */
int server_start(struct server *s, const struct mount *mounts, int n, struct err *e);
int server_port(const struct server *s);
bool server_is_tls(const struct server *s);
/* Stops taking connections; what is under way goes on. Returns when nothing is under way, or after wait_s seconds. */
void server_drain(struct server *s, double wait_s);
/* Breaks off what is left. All exchanges must be finished by their producers within a moment of being told that
 * the client has gone. Accepts NULL. */
void server_close(struct server *s);

/* Counters of the server in Prometheus' text format. */
void server_metrics(const struct server *s, struct buf *out);
