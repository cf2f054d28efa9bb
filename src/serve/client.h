/* Requests to other servers, over libcurl: short ones that are waited for, and streams, all of which one thread
 * carries. No proxy is used: workers and controllers are neighbours, and of strangers the address must be seen. */
#pragma once
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"

enum { CLIENT_REPLY_MAX = 16 << 20 };

/* Several at a time, with no body: POST to each url; done after timeout_s at the latest. Of each the answer, or NULL
 * and why. */
struct client_ask {
    const char *url;
    json_t *reply;
    struct err err;
};
void client_ask_all(struct client_ask *a, int n, double timeout_s);

/* POST of JSON (v: borrowed, NULL: no body), which wants status 200 and parses the answer; *ret may be JSON null. IO
 * (also where it takes longer than timeout_s), FORMAT. */
int client_post_json(json_t **ret, const char *url, const json_t *v, double timeout_s, struct err *e);

#define CLIENT_HOPS "X-LLaVA-Hops"
enum { CLIENT_SILENT_S = 5, CLIENT_PROBE_S = 5 }; /* without a byte before a probe; most time for that */

struct client;
/* total, host: most connections at a time, in all and to one host; what is over waits. 0: any number. */
int client_open(struct client **ret, int total, int host, struct err *e);
/* Breaks off what is under way (whose on_end comes) and ends the thread. Accepts NULL. */
void client_close(struct client *c);

struct client_stream {
    const char *url, *body;       /* copied; the body is JSON to POST, NULL: GET */
    int hops;                     /* of servers that passed it on; not 0: said in CLIENT_HOPS */
    double connect_s, stall_s;    /* most time to connect; without a byte */
    const char *probe;            /* copied: where a POST with no body must be answered while nothing comes, or the
                                     stream breaks off: who hangs is told from who is slow. NULL: none is */
    void (*setup)(void *ctx, void *curl); /* sets more options of libcurl's handle; or NULL. On the client's thread */
    /* On the client's thread; must not block. on_data: false breaks off. on_end: exactly once, last. status 0: no
     * answer came; what: NULL, or why it broke off. */
    bool (*on_data)(void *ctx, const char *p, size_t n);
    void (*on_end)(void *ctx, long status, const char *what);
    void *ctx;
};
/* Starts one: its number. It may have ended before this returns. 0: no memory, and on_end does not come. */
uint64_t client_stream(struct client *c, const struct client_stream *s);
void client_cancel(struct client *c, uint64_t id); /* on_end comes soon, unless it has */
