/* What server.c, exchange.c and watch.c share. */
#pragma once
#include <microhttpd.h>
#include <pthread.h>
#include <stdatomic.h>

#include "base/hash.h"
#include "serve/server.h"

/* What a connection is doing, and since when: for the deadlines. */
enum conn_phase { CONN_NEW, CONN_KEPT, CONN_HEAD, CONN_BODY, CONN_ANSWER };
struct conn {
    struct conn *prev, *next;
    int fd;
    enum conn_phase phase;
    double since_s, silent_s; /* since when in this phase; since when its client has nothing more to say, or 0 */
    struct exchange *x;       /* while one is under way */
};

enum exchange_state { X_READ, X_WORK, X_WHOLE, X_STREAM };
struct exchange {
    struct server *server;
    struct MHD_Connection *mhd; /* valid until gone */
    struct conn *conn;
    const struct route *route;
    const struct mount *mount;
    struct exchange *next_job;
    uint64_t turn;     /* among those that wait in its lane */
    route_fn *job;     /* what a job thread is to do for it */
    void *job_ctx;
    char id[17], ip[48], method[8], path[256], note[64];
    uint64_t client;   /* by address: who shares turns, places and room for bodies */
    uint64_t realm;    /* by API key, 0: none are used */
    size_t tail;       /* where in path the "*" begins */
    double start_s;
    bool http10, probed, refused, turned; /* turned: see on_access */
    _Atomic size_t body_counted; /* bytes of the budget that are taken */
    bool large;        /* its body is, or was: memory is given back after each of its jobs */

    pthread_mutex_t lock; /* all below */
    pthread_cond_t calm;  /* no call of gone_fn is under way */
    enum exchange_state state;
    struct buf body;
    size_t drained;
    bool suspended, gone, finished, calling, cut, begun; /* begun: some of a stream was written */
    void (*gone_fn)(void *);
    void *gone_ctx;
    int status;
    const char *type, *ping;
    double written_s;     /* when something was last added to a stream */
    const char *header[10][2];
    int n_headers;
    struct buf out;       /* a whole answer, or what of a stream is not sent yet */
    size_t sent;          /* bytes of out that are sent */
    size_t latest;        /* where in out the last message begins that may be replaced */
    uint64_t bytes;       /* sent in all */
};

/* SERVER_SHARE: of what all clients share one has at most so much for each that is free, so that there is some left for
 * somebody new. */
enum { SERVER_KEYS = 256, SERVER_STATUSES = 600, SERVER_JOBS = 8, SERVER_QUEUE = 2048, SERVER_SHARE = 7 };

/* Jobs that wait, in order of their turns, and the threads that do them. */
struct lane {
    struct server *server;
    struct exchange *first;
    uint64_t turn; /* of the job taken last */
    int n, n_threads;
    pthread_t thread[SERVER_JOBS];
    pthread_cond_t more;
};
struct server {
    struct MHD_Daemon *daemon;
    struct mount mounts[SERVER_MOUNTS];
    int n_mounts;
    struct server_options o;
    int port, listen_fd;
    char *cert, *cert_key;
    unsigned char keys[SERVER_KEYS][65]; /* hex SHA-256 of each */
    int n_keys;
    int log_fd;
    uint64_t salt;

    pthread_mutex_t lock; /* all below */
    pthread_cond_t calm;  /* nothing is under way */
    struct conn *conns;
    int n_conns, n_active;
    bool draining, closing;
    struct lane lane[LANES];
    pthread_t watcher;
    bool watching;

    _Atomic size_t bodies;
    _Atomic uint64_t serial, n_taken, n_refused, log_errors;
    _Atomic uint64_t statuses[6]; /* answers by hundreds */
};

/* watch.c: the thread that sees to deadlines and to clients that have left while nothing was sent. */
void *watch_main(void *server);

/* exchange.c */
struct exchange *exchange_new(struct server *s, struct MHD_Connection *mhd, const char *url, const char *method,
                              const char *version);
void exchange_client_gone(struct exchange *x); /* the connection has ended; frees x if it is finished */
/* Has the answer sent if there is one, else suspends the connection until there is. */
enum MHD_Result exchange_answer(struct exchange *x);
/* Called with x->lock held: sends a stream's ping if that is due. */
void exchange_ping(struct exchange *x, double now);
void exchange_refuse(struct exchange *x, int status, const char *code, const char *message);
