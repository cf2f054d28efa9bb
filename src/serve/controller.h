/* The controller: which workers there are, and which of them shall answer (llava/serve/controller.py). Its routes also
 * let it pass for a worker itself: it proxies streams to those that it knows. */
#pragma once
#include <jansson.h>

#include "serve/client.h"
#include "serve/journal.h"
#include "serve/server.h"

enum dispatch { DISPATCH_SHORTEST_QUEUE, DISPATCH_LOTTERY };

struct controller_options {
    enum dispatch how;
    bool closed;  /* no worker may register but this process's own; others get status 403 */
};

struct controller;
int controller_open(struct controller **ret, const struct controller_options *o, struct client *client,
                    struct journal *j, struct err *e);
void controller_close(struct controller *c); /* after the server that has its routes; accepts NULL */
extern const struct route controller_routes[]; /* context: the controller */

/* Enters a worker of this process, which is asked directly and never forgotten. */
void controller_register_self(struct controller *c, const char *name, json_t *(*status)(void *ctx), void *ctx);
void controller_metrics(struct controller *c, struct buf *out);
