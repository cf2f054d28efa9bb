/* llava worker: serves one model; replaces llava/serve/model_worker.py. */
#include "serve/worker.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "cmd/answering.h"
#include "cmd/serving.h"
#include "serve/openai.h"
#include "serve/status.h"

enum { K_WORKER = CMD_KEY, K_CONTROLLER, K_MULTIMODAL, K_INTERVAL, K_NO_REGISTER, K_NO_RESTART };

struct options {
    struct serving serving;
    struct llava_options model;
    struct answering answering;
    struct worker_options worker;
    bool alone, once;
};

static const struct argp_option options[] = {
    { "worker-address", K_WORKER, "URL", 0,
      "By what address others reach this worker (default http://localhost:21002)", 0 },
    { "controller-address", K_CONTROLLER, "URL", 0,
      "The controller to register with (default http://localhost:21001)", 0 },
    { "no-register", K_NO_REGISTER, NULL, 0, "Do not register", 0 },
    { "no-restart", K_NO_RESTART, NULL, 0, "End, and do not start again, when a device fails", 0 },
    { "multi-modal", K_MULTIMODAL, NULL, OPTION_HIDDEN, "Accepted; config.json says whether a model sees", 0 },
    { "stream-interval", K_INTERVAL, "N", OPTION_HIDDEN, "Accepted; without effect, as in LLaVA", 0 },
    { 0 },
};

static error_t option(int key, char *arg, struct argp_state *state)
{
    struct options *o = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &o->model;
        state->child_inputs[1] = &o->answering;
        state->child_inputs[2] = &o->serving;
        break;
    case K_WORKER: o->worker.address = arg; break;
    case K_CONTROLLER: o->worker.controller = arg; break;
    case K_NO_REGISTER: o->alone = true; break;
    case K_NO_RESTART: o->once = true; break;
    case K_MULTIMODAL: break;
    case K_INTERVAL: cmd_int(state, "stream-interval", arg, 0, 1 << 30); break;
    case ARGP_KEY_ARG: argp_error(state, "unexpected argument '%s'", arg); break;
    case ARGP_KEY_END:
        if (!o->model.model_path) argp_error(state, "--model-path is needed");
        break;
    default: return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

static const struct argp_child children[] = {
    { &cmd_model_argp, 0, "", 1 }, { &answering_argp, 0, "", 2 }, { &serving_argp, 0, "", 3 }, { 0 }
};
static const struct argp argp = {
    options, option, NULL,
    "Serves one model: registers with a controller and answers LLaVA's clients; beside that an OpenAI API under /v1. "
    "Listens at localhost:21002 unless told otherwise.\v"
    "Example, as LLaVA's manual has it:\n"
    "  llava worker --host 0.0.0.0 --controller http://localhost:10000 \\\n"
    "      --port 40000 --worker http://localhost:40000 \\\n"
    "      --model-path liuhaotian/llava-v1.5-13b\n\n" CMD_EXIT_STATUS,
    children, NULL, NULL
};

/* "model_worker_1a2b3c.log": several workers may share a folder. */
static void worker_id(char id[7])
{
    unsigned char bytes[3] = { 0 };
    if (getrandom(bytes, sizeof bytes, 0) < 0) bytes[0] = 0;
    snprintf(id, 7, "%02x%02x%02x", bytes[0], bytes[1], bytes[2]);
}

int cmd_worker(int argc, char **argv)
{
    struct options o = { .serving = serving_default("localhost", 21002), .model = llava_options_default(),
                         .worker = { "http://localhost:21002", "http://localhost:21001", NULL } };
    int rc = cmd_parse(&argp, argc, argv, &o);
    if (rc) return rc;
    if (!o.once) serving_supervise();
    struct err e = { 0 };
    struct gen *gen = NULL;
    struct openai *openai = NULL;
    struct worker_node *node = NULL;
    struct status status = { 0 };
    char id[7], file[40];
    worker_id(id);
    snprintf(file, sizeof file, "model_worker_%s.log", id);
    o.worker.id = id;
    if (o.alone) o.worker.controller = NULL;
    TRY(serving_open(&o.serving, "model_worker", file, &e));
    TRY(gen_open(&gen, &o.model, &o.answering.batch, o.answering.pictures, &e));
    status.server = o.serving.server;
    status.gen = gen;
    TRY(worker_open(&node, &o.worker, gen, o.serving.journal, &e));
    TRY(openai_open(&openai, gen, &o.answering.fetch, &e));
    const struct mount mounts[] = { { worker_routes, node }, { openai_routes, openai }, { status_routes, &status } };
    TRY(server_start(o.serving.server, mounts, 3, &e));
    TRY(worker_begin(node, &e));
    serving_run(&o.serving, "worker");
out:
    serving_stop(&o.serving);
    worker_close(node);
    openai_close(openai);
    gen_close(gen);
    serving_close(&o.serving);
    return rc < 0 ? cmd_fail(e.msg) : 0;
}
