/* GET /health and GET /metrics, whatever is being served. */
#pragma once
#include "serve/controller.h"
#include "serve/server.h"

struct worker_node;
/* What there is to report on; NULL: not here. */
struct status {
    struct server *server;
    struct controller *controller;
    struct gen *gen;
};
extern const struct route status_routes[]; /* context: a struct status */
