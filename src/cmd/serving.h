/* What the commands that serve share: the options of a server, its life from signal to signal, and the watch over a
 * process that computes. */
#pragma once
#include "cmd/cmd.h"
#include "serve/client.h"
#include "serve/journal.h"
#include "serve/server.h"

struct serving {
    struct server_options options;
    const char *log_dir;     /* of LLaVA's log files */
    double grace_s;          /* that answers under way get when the server is told to stop */
    /* filled by serving_open */
    struct client *client;
    struct journal *journal;
    struct server *server;   /* has its port, and does not serve yet */
};
struct serving serving_default(const char *host, int port);
/* --host, --port, TLS, keys, limits, logs; input is a struct serving. */
extern const struct argp serving_argp;

/* First of all, before any thread: signals wait for serving_run from here on. Then log and client, and the server; with
 * port -1 at the first free port from 7860 on, as Gradio does. name: as the log has it; file: the log's. */
int serving_open(struct serving *s, const char *name, const char *file, struct err *e);
/* Serves, once server_start has been called, until SIGTERM or SIGINT, and lets answers end. what: "controller". */
void serving_run(struct serving *s, const char *what);
/* The server first, before what its routes need is closed; then the rest, with serving_close. */
void serving_stop(struct serving *s);
void serving_close(struct serving *s);

/* Goes on in a child and stays behind to start another whenever that ends with 70 (a device failed) or by a signal that
 * nobody sent on purpose; gives up when that happens five times within a minute. Returns in the child only. */
void serving_supervise(void);

enum { EXIT_DEVICE = 70 };
