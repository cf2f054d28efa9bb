/* Answers of /v1/responses, whole and as the events of a stream, and what requests name of earlier ones. */
#include "serve/openai_in.h"

/* ---- the objects */

static json_t *content(const struct choice *c, json_t *logprobs)
{
    return json_pack("{ss,ss%,s[],so}", "type", "output_text", "text", c->text.p ? c->text.p : "", c->text.n,
                     "annotations", "logprobs", logprobs);
}

static json_t *message(const struct ask *a, const char *status, json_t *parts)
{
    return json_pack("{ss+,ss,ss,ss,so}", "id", "msg_", a->id + strlen("resp_"), "type", "message", "status", status,
                     "role", "assistant", "content", parts);
}

static json_t *usage(const struct ask *a)
{
    return json_pack("{si,s{si},si,s{si},si}", "input_tokens", a->n_prompt, "input_tokens_details", "cached_tokens",
                     a->n_cached, "output_tokens", a->n_new, "output_tokens_details", "reasoning_tokens", 0,
                     "total_tokens", a->n_prompt + a->n_new);
}

/* All that clients look for, with what the request said about it. */
static json_t *response(const struct ask *a, const char *status, json_t *output)
{
    json_t *v = json_pack("{ss,ss,sI,ss,sb,sn,sn,ss,so,sn,s{sn,sn},ss,sb,ss,sn}", "id", a->id, "object", "response",
                          "created_at", (json_int_t)a->created, "status", status, "background", 0, "error",
                          "incomplete_details", "model", a->model, "output", output, "previous_response_id",
                          "reasoning", "effort", "summary", "service_tier", "default", "store", a->chat.kept,
                          "truncation", "disabled", "usage");
    json_t *more = json_pack("{sn,sn,sn,s{},sb,sn,sn,sf,s{s{ss}},ss,s[],si,sf,sn}", "instructions",
                             "max_output_tokens", "max_tool_calls", "metadata", "parallel_tool_calls", 1,
                             "prompt_cache_key", "safety_identifier", "temperature", 1.0, "text", "format", "type",
                             "text", "tool_choice", "auto", "tools", "top_logprobs", 0, "top_p", 1.0, "user");
    json_t *repeated = json_loads(a->chat.repeated, 0, NULL);
    json_object_update_missing(json_object_get(repeated, "text"), json_object_get(more, "text"));
    json_object_update(v, more);
    json_object_update(v, repeated);
    json_decref(repeated);
    json_decref(more);
    return v;
}

/* The function that the answer calls; its arguments are missing where it has just begun. */
static json_t *call(const struct ask *a, const char *status, const struct choice *c)
{
    const char *number = a->id + strlen("resp_");
    return json_pack("{ss+,ss,ss,ss+,ss,ss%}", "id", "fc_", number, "type", "function_call", "status", status,
                     "call_id", "call_", number, "name", a->choice[0].call, "arguments",
                     c && c->text.p ? c->text.p : "", c ? c->text.n : (size_t)0);
}

static bool is_cut(const struct ask *a) { return a->choice[0].finish == LLAVA_FINISH_LENGTH; }
static const char *status_of(const struct ask *a) { return is_cut(a) ? "incomplete" : "completed"; }

/* The call, or the message with its text and all of its logprobs; takes the reference. */
static json_t *answer(const struct ask *a, json_t *logprobs)
{
    if (*a->choice[0].call) {
        json_decref(logprobs);
        return call(a, status_of(a), &a->choice[0]);
    }
    return message(a, status_of(a), json_pack("[o]", content(&a->choice[0], logprobs)));
}

static json_t *complete(const struct ask *a, json_t *logprobs)
{
    json_t *v = response(a, status_of(a), json_pack("[o]", answer(a, logprobs)));
    json_object_set_new(v, "usage", usage(a));
    if (is_cut(a)) json_object_set_new(v, "incomplete_details", json_pack("{ss}", "reason", "max_output_tokens"));
    else json_object_set_new(v, "completed_at", json_integer((json_int_t)time(NULL)));
    return v;
}

/* A response that is complete, for requests to come. */
static json_t *keep(struct ask *a, json_t *v)
{
    if (a->shelved) shelf_end(a->shelf, exchange_realm(a->task.x), a->id, v);
    a->shelved = false;
    return v;
}

static json_t *whole(struct ask *a) { return keep(a, complete(a, answer_logprobs(&a->choice[0]))); }

/* ---- events */

/* Takes the reference to v, to which it adds what all events have. */
static void tell(struct ask *a, const char *type, json_t *v)
{
    json_object_set_new(v, "type", json_string(type));
    json_object_set_new(v, "sequence_number", json_integer(a->n_events++));
    event_send_as(a->task.x, type, v);
}

/* About the one part of the one message. */
static void tell_part(struct ask *a, const char *type, json_t *v)
{
    json_object_set_new(v, "item_id", json_pack("s+", "msg_", a->id + strlen("resp_")));
    json_object_set_new(v, "output_index", json_integer(0));
    json_object_set_new(v, "content_index", json_integer(0));
    tell(a, type, v);
}

static void begin_message(struct ask *a)
{
    tell(a, "response.output_item.added",
         json_pack("{si,so}", "output_index", 0, "item", message(a, "in_progress", json_array())));
    tell_part(a, "response.content_part.added",
              json_pack("{so}", "part", content(&(struct choice){ 0 }, json_array())));
}

/* With tools it is not known before the end whether there is a message. */
static void begin(struct ask *a)
{
    if (a->choice[0].begun) return;
    a->choice[0].begun = true;
    a->sent = json_array();
    tell(a, "response.created", json_pack("{so}", "response", response(a, "in_progress", json_array())));
    tell(a, "response.in_progress", json_pack("{so}", "response", response(a, "in_progress", json_array())));
    if (!a->chat.tools.mode) begin_message(a);
}

/* The call as a whole: the item, its arguments in one piece. */
static void tell_call(struct ask *a, const struct choice *c)
{
    static const char *const types[] = { "response.function_call_arguments.delta",
                                         "response.function_call_arguments.done" };
    tell(a, "response.output_item.added",
         json_pack("{si,so}", "output_index", 0, "item", call(a, "in_progress", NULL)));
    for (int i = 0; i < 2; i++) {
        json_t *v = json_pack("{ss+,si,ss%}", "item_id", "fc_", a->id + strlen("resp_"), "output_index", 0,
                              i ? "arguments" : "delta", c->text.p ? c->text.p : "", c->text.n);
        if (i) json_object_set_new(v, "name", json_string(c->call));
        tell(a, types[i], v);
    }
    tell(a, "response.output_item.done", json_pack("{si,so}", "output_index", 0, "item", answer(a, json_array())));
}

static void piece(struct ask *a, int i, const char *text, size_t n)
{
    struct choice *c = &a->choice[i];
    json_t *logprobs = answer_logprobs(c);
    begin(a);
    buf_add(&c->text, text, n);
    json_array_extend(a->sent, logprobs);
    tell_part(a, "response.output_text.delta", json_pack("{ss%,so}", "delta", text, n, "logprobs", logprobs));
}

static void over(struct ask *a, int i)
{
    struct choice *c = &a->choice[i];
    json_t *rest = answer_logprobs(c); /* of tokens without text */
    begin(a);
    json_array_extend(a->sent, rest);
    if (*c->call) tell_call(a, c);
    else if (a->chat.tools.mode) begin_message(a);
    if (a->chat.tools.mode && !*c->call && c->text.n) /* one that could have been a call */
        tell_part(a, "response.output_text.delta",
                  json_pack("{ss%,sO}", "delta", c->text.p, c->text.n, "logprobs", rest));
    json_decref(rest);
    if (*c->call) return;
    tell_part(a, "response.output_text.done", json_pack("{ss%,sO}", "text", c->text.p ? c->text.p : "", c->text.n,
                                                        "logprobs", a->sent));
    tell_part(a, "response.content_part.done", json_pack("{so}", "part", content(c, json_incref(a->sent))));
    tell(a, "response.output_item.done",
         json_pack("{si,so}", "output_index", 0, "item", answer(a, json_incref(a->sent))));
}

static void end(struct ask *a)
{
    tell(a, is_cut(a) ? "response.incomplete" : "response.completed",
         json_pack("{so}", "response", keep(a, complete(a, json_incref(a->sent)))));
}

static void broken(struct ask *a)
{
    const int status = a->bad.status;
    const char *code = status == 429 ? "rate_limit_exceeded" : status >= 500 ? "server_error" : "invalid_prompt";
    json_t *e = json_pack("{ss,ss}", "code", code, "message", a->bad.message);
    if (!a->choice || !a->choice[0].begun) {
        json_object_set_new(e, "param", *a->bad.param ? json_string(a->bad.param) : json_null());
        tell(a, "error", e);
        return;
    }
    json_t *v = response(a, "failed", json_array());
    json_object_set_new(v, "error", e);
    tell(a, "response.failed", json_pack("{so}", "response", v));
}

/* ---- what was before */

/* The message or call that an item_reference names: it bears the number of its response. */
static json_t *referred(struct ask *a, const char *name)
{
    char id[SHELF_ID] = "";
    if (!strncmp(name, "msg_", 4) || !strncmp(name, "fc_", 3))
        snprintf(id, sizeof id, "resp_%.40s", strchr(name, '_') + 1);
    json_t *response = shelf_response(a->shelf, exchange_realm(a->task.x), id);
    json_t *item = json_incref(json_array_get(json_object_get(response, "output"), 0));
    json_decref(response);
    if (!item)
        bad_set(&a->bad, 404, "input", "item_not_found", "no item '%.60s' is kept, or not any more: send what it was",
                name);
    return item;
}

void response_recall(struct ask *a)
{
    struct fields f = fields_at(a->body, &a->bad);
    json_t *input = json_object_get(a->body, "input"), *v;
    const char *before = NULL;
    fields_str(&f, "previous_response_id", &before);
    json_t *items = before ? shelf_items(a->shelf, exchange_realm(a->task.x), before) : json_array();
    size_t i;
    if (!items)
        bad_set(&a->bad, 400, "previous_response_id", "previous_response_not_found",
                "no response '%.60s' is kept, or not any more: send the whole conversation as 'input'", before);
    if (json_is_string(input)) json_array_append_new(items, json_pack("{ss,sO}", "role", "user", "content", input));
    json_array_foreach(input, i, v) {
        const char *type = json_string_value(json_object_get(v, "type"));
        const char *name = json_string_value(json_object_get(v, "id"));
        if (type && !strcmp(type, "item_reference")) json_array_append_new(items, referred(a, name ? name : ""));
        else json_array_append(items, v);
    }
    if (!a->bad.status && (json_is_string(input) || json_is_array(input))) json_object_set(a->body, "input", items);
    json_decref(items);
}

const struct shape shape_response = { "resp_", true, response_read, whole, piece, over, end, broken };
