/* The web server: the page, and what it asks for. Replaces llava/serve/gradio_web_server.py: the same conversation
 * templates, limits, logs and kept pictures; answers come from a model in this process or from workers that a
 * controller knows. The page's interface:
 *
 *   GET  /api/config  {"version","title","embed","models":[...],"examples":[{"image","text"}],"limits":{...}}
 *   POST /api/chat    {"model","messages":[{"role","text","images":[data URI]}...],"temperature","top_p",
 *                     "max_new_tokens","image_process_mode"}: server-sent events {"queue":n}, {"text":piece}..., then
 *                     {"done":{"finish","tokens","prompt_tokens","cached_tokens","first_s","seconds"}} or
 *                     {"error":{"message","code","cause"}}. Closing the connection stops the answer.
 *   POST /api/vote    {"type":"upvote"|"downvote"|"flag","model","messages"}: 204
 *   GET  /...         the page's files
 *
 * What is wrong with a request is a status of 4xx and {"error":{"message"}}.
 */
#pragma once
#include "serve/gen.h"
#include "serve/journal.h"
#include "serve/remote.h"
#include "serve/server.h"

struct web_options {
    const char *log_dir;     /* for kept conversations and pictures */
    const char *examples;    /* folder with an examples.json, or NULL: the reference's two */
    const char *moderation_key; /* of OpenAI's moderation service: questions are checked there; NULL: not */
    const char *moderation_url; /* where it is */
    struct client *client;      /* which asks it */
    bool embed, reload;      /* --embed; --model-list-mode reload */
    bool no_ip;              /* clients' addresses stay out of the kept conversations */
};
struct web;
/* gen or remote, the other NULL. */
int web_open(struct web **ret, const struct web_options *o, struct gen *gen, struct remote *remote, struct journal *j,
             struct err *e);
void web_close(struct web *w); /* after the server that has its routes, before gen and remote; accepts NULL */
extern const struct route web_routes[];  /* context: the web; to be mounted last, as they take what others leave */
