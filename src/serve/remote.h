/* Answers from workers elsewhere, found through a controller: what a web server does that has no model itself. Nothing
 * here waits; so many are under way at a time, others queue. */
#pragma once
#include "serve/client.h"
#include "serve/protocol.h"

struct remote;
int remote_open(struct remote **ret, const char *controller, int limit, struct client *client, struct err *e);
void remote_close(struct remote *r); /* when nothing is under way; accepts NULL */

/* Has the controller ask all workers, and gives the names that they serve, in LLaVA's order; *ret: a new array.
 * Waits. */
int remote_models(struct remote *r, bool refresh, json_t **ret, struct err *e);

struct remote_ask {
    const char *model;       /* copied */
    const char *prompt;      /* copied */
    char *body;              /* for /worker_generate_stream; taken over */
    uint64_t client;         /* who asks: of those that wait the one comes next whose client has the least under way */
    /* Never from within remote_start or remote_cancel... */
    void (*on_text)(void *ctx, const char *text, size_t n); /* all of the answer so far */
    /* once, last. code: as in the protocol; cause: NULL, or why */
    void (*on_end)(void *ctx, enum protocol_code code, const char *cause);
    void *ctx;
};
struct remote_call; /* valid until on_end has returned */
/* Starts one, or puts it into the queue: *place is how many are before it (0: none, it is under way). NULL: no memory,
 * and on_end does not come. */
struct remote_call *remote_new(struct remote *r, const struct remote_ask *a);
void remote_start(struct remote_call *c, int *place);
void remote_cancel(struct remote_call *c); /* on_end comes soon */
