/* llava web: the page, without a model; replaces llava/serve/gradio_web_server.py. */
#include "serve/web.h"

#include <string.h>

#include "cmd/paging.h"
#include "cmd/serving.h"
#include "serve/status.h"

enum { K_CONTROLLER = CMD_KEY, K_MODE, K_COUNT };

struct options {
    struct serving serving;
    struct paging paging;
    const char *controller;
    int count;
};

static const struct argp_option options[] = {
    { "controller-url", K_CONTROLLER, "URL", 0, "The controller (default http://localhost:21001)", 0 },
    { "model-list-mode", K_MODE, "once|reload", 0,
      "Ask the controller for its models at the start (default), or whenever the page is loaded", 0 },
    { "concurrency-count", K_COUNT, "N", 0, "Answers under way at a time; others wait (default 16)", 0 },
    { 0 },
};

static error_t option(int key, char *arg, struct argp_state *state)
{
    struct options *o = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &o->paging;
        state->child_inputs[1] = &o->serving;
        break;
    case K_CONTROLLER: o->controller = arg; break;
    case K_MODE:
        o->paging.web.reload = !strcmp(arg, "reload");
        if (strcmp(arg, "once") != 0 && !o->paging.web.reload)
            argp_error(state, "--model-list-mode wants once or reload, not '%s'", arg);
        break;
    case K_COUNT: o->count = (int)cmd_int(state, "concurrency-count", arg, 1, 1 << 16); break;
    case ARGP_KEY_ARG: argp_error(state, "unexpected argument '%s'", arg); break;
    default: return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

static const struct argp_child children[] = { { &paging_argp, 0, "", 1 }, { &serving_argp, 0, "", 2 }, { 0 } };
static const struct argp argp = {
    options, option, NULL,
    "Shows the web page; answers come from workers that a controller knows. Listens at 0.0.0.0, at the first free port "
    "from 7860 on, unless told otherwise.\v"
    "Example, as LLaVA's manual has it:\n"
    "  llava web --controller http://localhost:10000 --model-list-mode reload\n\n" CMD_EXIT_STATUS,
    children, NULL, NULL
};

int cmd_web(int argc, char **argv)
{
    struct options o = { .serving = serving_default("0.0.0.0", -1),
                         .controller = "http://localhost:21001",
                         .count = 16 };
    int rc = cmd_parse(&argp, argc, argv, &o);
    if (rc) return rc;
    struct err e = { 0 };
    struct remote *remote = NULL;
    struct web *web = NULL;
    struct status status = { 0 };
    TRY(paging_check(&o.paging, o.serving.log_dir, &e));
    TRY(serving_open(&o.serving, "gradio_web_server", "gradio_web_server.log", &e));
    o.paging.web.client = o.serving.client;
    TRY(remote_open(&remote, o.controller, o.count, o.serving.client, &e));
    TRY(web_open(&web, &o.paging.web, NULL, remote, o.serving.journal, &e));
    status.server = o.serving.server;
    const struct mount mounts[] = { { status_routes, &status }, { web_routes, web } };
    TRY(server_start(o.serving.server, mounts, 2, &e));
    serving_run(&o.serving, "web");
out:
    serving_stop(&o.serving);
    web_close(web);
    remote_close(remote);
    serving_close(&o.serving);
    return rc < 0 ? cmd_fail(e.msg) : 0;
}
