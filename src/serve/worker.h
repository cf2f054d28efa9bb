/* A worker as LLaVA's controller and web server know it (llava/serve/model_worker.py): two routes, registration, and
 * heartbeats. Better than the reference in these: answers of several requests are computed side by side; a stop string
 * ends an answer, but for blanks (LLaVA's test_message sends " ", its template's separator, and wants the whole
 * answer); `stop` may be null; an error's cause stands in a field "error" beside the fixed text; a client that leaves
 * ends its answer. Adapters are models beside the model: `model` chooses, and any other name is the model itself. */
#pragma once
#include "serve/client.h"
#include "serve/fields.h"
#include "serve/gen.h"
#include "serve/journal.h"
#include "serve/server.h"

/* The body of a question, borrowed from its JSON; complaints go to *bad, which must outlive it. Reads no picture. */
struct worker_ask {
    struct fields fields;
    const char *prompt, *model, *stop; /* the latter two may be NULL */
    float temperature, top_p;
    int max_new_tokens;                /* below 1: there is no room for an answer */
    const json_t *images;              /* as many as the prompt has "<image>", at most GEN_PICTURES_MAX; NULL: none */
};
void worker_read(struct worker_ask *a, const json_t *body, struct bad *bad);

struct worker_options {
    const char *address;    /* by which the controller and clients reach this worker: "http://localhost:21002" */
    const char *controller; /* address, or NULL: it is not told */
    const char *id;         /* 6 hex digits, for the log */
};
struct worker_node;
int worker_open(struct worker_node **ret, const struct worker_options *o, struct gen *g, struct journal *j,
                struct err *e);
/* The server listens: registers, and sends heartbeats from here on. */
int worker_begin(struct worker_node *w, struct err *e);
void worker_close(struct worker_node *w); /* after the server that has its routes; accepts NULL */
extern const struct route worker_routes[]; /* context: the node */
json_t *worker_status(struct worker_node *w); /* {"model_names": [...], "speed": 1, "queue_length": n} */
