/* llava serve: all in one process and at one port: the page, an OpenAI API, and what LLaVA's controller and worker
 * do. */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "cmd/answering.h"
#include "cmd/paging.h"
#include "cmd/serving.h"
#include "serve/openai.h"
#include "serve/status.h"
#include "serve/worker.h"

enum { K_WORKER = CMD_KEY, K_WORKERS, K_NO_RESTART };

struct options {
    struct serving serving;
    struct llava_options model;
    struct answering answering;
    struct paging paging;
    const char *address;
    bool workers, once;
};

static const struct argp_option options[] = {
    { "worker-address", K_WORKER, "URL", 0,
      "By what address LLaVA's clients reach this server (default http://localhost:PORT)", 0 },
    { "allow-workers", K_WORKERS, NULL, 0,
      "Let LLaVA's workers register here, as with a controller: whoever reaches this port and has a key, if there are "
      "keys, may then have this server send requests to any address, and be sent others' questions",
      0 },
    { "no-restart", K_NO_RESTART, NULL, 0, "End, and do not start again, when a device fails", 0 },
    { 0 },
};

static error_t option(int key, char *arg, struct argp_state *state)
{
    struct options *o = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &o->model;
        state->child_inputs[1] = &o->answering;
        state->child_inputs[2] = &o->paging;
        state->child_inputs[3] = &o->serving;
        break;
    case K_WORKER: o->address = arg; break;
    case K_WORKERS: o->workers = true; break;
    case K_NO_RESTART: o->once = true; break;
    case ARGP_KEY_ARG: argp_error(state, "unexpected argument '%s'", arg); break;
    case ARGP_KEY_END:
        if (!o->model.model_path) argp_error(state, "--model-path is needed");
        break;
    default: return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

static const struct argp_child children[] = { { &cmd_model_argp, 0, "", 1 }, { &answering_argp, 0, "", 2 },
                                              { &paging_argp, 0, "", 3 },    { &serving_argp, 0, "", 4 },
                                              { 0 } };
static const struct argp argp = {
    options,
    option,
    NULL,
    "Serves a model in one process and at one port: a web page, an OpenAI API under /v1, and what LLaVA's "
    "controller and worker do. Listens at localhost:7860 unless told otherwise.\v"
    "Example:\n"
    "  llava serve --model-path liuhaotian/llava-v1.5-7b\n"
    "  curl localhost:7860/v1/chat/completions -d \\\n"
    "      '{\"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}'\n\n" CMD_EXIT_STATUS,
    children,
    NULL,
    NULL
};

/* What is open, in the order in which it was opened. */
struct parts {
    struct gen *gen;
    struct worker_node *node;
    struct controller *controller;
    struct web *web;
    struct openai *openai;
    struct status status;
};

static json_t *status_of(void *node) { return worker_status(node); }

static int open_parts(struct parts *p, struct options *o, struct err *e)
{
    struct worker_options none = { NULL, NULL, "serve" };
    const struct controller_options fleet = { DISPATCH_SHORTEST_QUEUE, !o->workers };
    struct server *server = o->serving.server;
    char address[200];
    int rc;
    TRY(gen_open(&p->gen, &o->model, &o->answering.batch, o->answering.pictures, e));
    TRY(worker_open(&p->node, &none, p->gen, o->serving.journal, e));
    TRY(controller_open(&p->controller, &fleet, o->serving.client, o->serving.journal, e));
    o->paging.web.examples = o->model.model_path;
    TRY(web_open(&p->web, &o->paging.web, p->gen, NULL, o->serving.journal, e));
    TRY(openai_open(&p->openai, p->gen, &o->answering.fetch, e));
    p->status = (struct status){ server, p->controller, p->gen };
    const struct mount mounts[] = { { worker_routes, p->node },
                                    { controller_routes, p->controller },
                                    { openai_routes, p->openai },
                                    { status_routes, &p->status },
                                    { web_routes, p->web } };
    TRY(server_start(server, mounts, 5, e));
    snprintf(address, sizeof address, "%s://localhost:%d", server_is_tls(server) ? "https" : "http",
             server_port(server));
    controller_register_self(p->controller, o->address ? o->address : address, status_of, p->node);
out:
    return rc;
}

int cmd_serve(int argc, char **argv)
{
    struct options o = { .serving = serving_default("localhost", 7860), .model = llava_options_default() };
    int rc = cmd_parse(&argp, argc, argv, &o);
    if (rc) return rc;
    if (!o.once) serving_supervise();
    struct err e = { 0 };
    struct parts p = { 0 };
    TRY(paging_check(&o.paging, o.serving.log_dir, &e));
    TRY(serving_open(&o.serving, "serve", "serve.log", &e));
    o.paging.web.client = o.serving.client;
    TRY(open_parts(&p, &o, &e));
    serving_run(&o.serving, "serve");
out:
    serving_stop(&o.serving);
    web_close(p.web);
    controller_close(p.controller);
    worker_close(p.node);
    openai_close(p.openai);
    gen_close(p.gen);
    serving_close(&o.serving);
    return rc < 0 ? cmd_fail(e.msg) : 0;
}
