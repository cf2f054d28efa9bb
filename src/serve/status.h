/* GET /health and GET /metrics, whatever is being served. */
#pragma once
#include <stdatomic.h>

#include "serve/controller.h"
#include "serve/server.h"

struct worker_node;
/* What there is to report on; NULL: not here. The server is known only after its routes are. */
struct status {
    _Atomic(struct server *) server;
    struct controller *controller;
    struct gen *gen;
};
void status_set_server(struct status *s, struct server *server);
extern const struct route status_routes[]; /* context: a struct status */
