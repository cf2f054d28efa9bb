/* llava controller: which worker answers; replaces llava/serve/controller.py. */
#include "serve/controller.h"

#include <string.h>

#include "cmd/serving.h"
#include "serve/status.h"

enum { K_DISPATCH = CMD_KEY };

struct options {
    struct serving serving;
    struct controller_options controller;
};

static const struct argp_option options[] = {
    { "dispatch-method", K_DISPATCH, "lottery|shortest_queue", 0,
      "How a worker is chosen: by drawing, weighted by speed, or the shortest queue for its speed (default)", 0 },
    { 0 },
};

static error_t option(int key, char *arg, struct argp_state *state)
{
    struct options *o = state->input;
    switch (key) {
    case ARGP_KEY_INIT: state->child_inputs[0] = &o->serving; break;
    case K_DISPATCH:
        if (!strcmp(arg, "lottery")) o->controller.how = DISPATCH_LOTTERY;
        else if (!strcmp(arg, "shortest_queue")) o->controller.how = DISPATCH_SHORTEST_QUEUE;
        else argp_error(state, "--dispatch-method wants lottery or shortest_queue, not '%s'", arg);
        break;
    case ARGP_KEY_ARG: argp_error(state, "unexpected argument '%s'", arg); break;
    default: return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

static const struct argp_child children[] = { { &serving_argp, 0, "", 1 }, { 0 } };
static const struct argp argp = {
    options, option, NULL,
    "Keeps account of workers and says which of them shall answer. Listens at localhost:21001 unless told otherwise.\v"
    "Example, as LLaVA's manual has it:\n"
    "  llava controller --host 0.0.0.0 --port 10000\n\n" CMD_EXIT_STATUS,
    children, NULL, NULL
};

int cmd_controller(int argc, char **argv)
{
    struct options o = { .serving = serving_default("localhost", 21001) };
    int rc = cmd_parse(&argp, argc, argv, &o);
    if (rc) return rc;
    struct err e = { 0 };
    struct controller *c = NULL;
    struct status status;
    TRY(serving_open(&o.serving, "controller", "controller.log", &e));
    TRY(controller_open(&c, &o.controller, o.serving.client, o.serving.journal, &e));
    status = (struct status){ .server = o.serving.server, .controller = c };
    const struct mount mounts[] = { { controller_routes, c }, { status_routes, &status } };
    TRY(server_start(o.serving.server, mounts, 2, &e));
    serving_run(&o.serving, "controller");
out:
    serving_stop(&o.serving);
    controller_close(c);
    serving_close(&o.serving);
    return rc < 0 ? cmd_fail(e.msg) : 0;
}
