/* See openai.h. */
#include "serve/openai.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>

#include "serve/base64.h"
#include "serve/openai_in.h"
#include "serve/protocol.h"

struct openai {
    struct gen *g;
    struct fetcher *fetcher;
    struct shelf *shelf;
    time_t created; /* when the model was opened */
};

/* ---- one request under way */

static void ask_free(struct ask *a)
{
    for (int i = 0; i < a->n; i++) {
        buf_free(&a->choice[i].text);
        trim_fini(&a->choice[i].trim);
        json_decref(a->choice[i].tokens);
    }
    free(a->choice);
    chat_free(&a->chat);
    json_decref(a->body);
    json_decref(a->sent);
    if (a->shelved) shelf_drop(a->shelf, exchange_realm(a->task.x), a->id);
    fetches_free(a->fetches);
    gen_task_fini(&a->task);
    free(a);
}

/* What the library says is wrong. */
static void blame(struct ask *a, int code, const char *message)
{
    const char *word, *param = NULL;
    const int status = gen_status(code, &word);
    if (code == LLAVA_LIMIT) param = a->chat.where;
    else if (status == 400 && a->chat.form) param = a->chat.form;
    bad_set(&a->bad, status, param, word, "%s", message);
}

/* ---- what the batch says */

static bool on_text(void *ctx, int i, const char *text, size_t n)
{
    const struct part *p = ctx;
    struct ask *a = p->a;
    struct choice *c = &a->choice[i += p->first];
    struct buf piece = buf_make(1 << 24);
    if (a->shape->trims) trim_feed(&c->trim, &piece, text, n);
    else buf_add(&piece, text, n);
    if (piece.n && a->chat.stream && !a->chat.tools.mode) a->shape->piece(a, i, piece.p, piece.n);
    else if (piece.n) buf_add(&c->text, piece.p, piece.n);
    buf_free(&piece);
    return !exchange_gone(a->task.x);
}

/* What an answer with tools has written becomes a call, or the answer. */
static void settle(const struct ask *a, struct choice *c)
{
    struct call call;
    call_read(&call, &a->chat.tools, c->text.p ? c->text.p : "");
    memcpy(c->call, call.name, sizeof c->call);
    buf_free(&c->text);
    c->text = call.text;
}

static void on_end(void *ctx, int i, const struct llava_result *r, const struct llava_error *e)
{
    const struct part *p = ctx;
    struct ask *a = p->a;
    a->n_prompt += i ? 0 : r->n_prompt; /* several answers to one prompt read it once */
    a->n_cached += i ? 0 : r->n_cached;
    i += p->first;
    a->n_new += r->n_new;
    a->choice[i].finish = r->finish;
    if (a->chat.tools.mode) settle(a, &a->choice[i]);
    if (e) blame(a, e->code, e->message);
    if (e) gen_cancel(&a->task); /* what the others say would not be told */
    else if (r->finish == LLAVA_FINISH_CANCELLED)
        bad_set(&a->bad, 503, NULL, "shutting_down", "the server is shutting down");
    if (!a->bad.status && a->chat.stream) a->shape->over(a, i);
    gen_ended(&a->task);
}

/* These end the exchange, with which the model may be closed: a is freed before. */
/* Says what is wrong, as an event where events have begun. */
static void fail(struct ask *a)
{
    struct exchange *x = a->task.x;
    const struct bad bad = a->bad;
    const bool events = a->chat.stream && exchange_begun(x);
    if (events) a->shape->broken(a);
    ask_free(a);
    if (events) {
        exchange_end(x);
        return;
    }
    if (bad.status == 429) exchange_set_header(x, "Retry-After", "1");
    bad_reply(&bad, x);
}

static void finish_whole(struct ask *a)
{
    struct exchange *x = a->task.x;
    json_t *v = a->shape->whole(a);
    ask_free(a);
    exchange_json(x, 200, v);
}

static void finish_stream(struct ask *a)
{
    struct exchange *x = a->task.x;
    a->shape->end(a);
    ask_free(a);
    exchange_end(x);
}

static void ask_finish(struct gen_task *t)
{
    struct ask *a = (struct ask *)t;
    if (t->refused.code) {
        a->bad.status = 0; /* the others were only cancelled for it */
        blame(a, t->refused.code, t->refused.message);
    }
    if (a->bad.status) fail(a);
    else if (a->chat.stream) finish_stream(a);
    else finish_whole(a);
}

/* ---- requests */

/* What is found wrong here goes to a->bad, with which the steps after it do nothing. */

static bool is_data(const struct chat_picture *p) { return !strncasecmp(p->url, "data:", 5); }

/* Lists the pictures behind addresses; a->fetches stays NULL where there are none. */
static void list_addresses(struct ask *a, struct fetcher *f)
{
    struct bad *b = &a->bad;
    for (int i = 0; i < a->chat.n_pictures && !b->status; i++) {
        const struct chat_picture *p = &a->chat.picture[i];
        struct err e = { 0 };
        int rc = 0;
        if (is_data(p)) continue;
        if (!a->fetches)
            rc = fetches_new(&a->fetches, f, exchange_client(a->task.x), a->chat.n_pictures, GEN_PICTURE_BYTES, &e);
        if (rc >= 0) rc = fetches_add(a->fetches, p->url, &e);
        if (rc < 0) bad_set(b, 400, p->param, "invalid_image_url", "'%s': %s", p->param, e.msg);
    }
}

static void read_pictures(struct ask *a)
{
    struct bad *b = &a->bad;
    for (int i = 0, fetched = 0; i < a->chat.n_pictures && !b->status; i++) {
        const struct chat_picture *p = &a->chat.picture[i];
        struct buf own = buf_make(GEN_PICTURE_BYTES);
        const void *bytes = NULL;
        size_t n = 0;
        struct llava_error e = { 0 };
        struct err fe = { 0 };
        if (is_data(p) && !base64_picture(&own, p->url))
            bad_set(b, 400, p->param, "invalid_image_url", own.failed ? "'%s' is over %d bytes"
                    : "'%s' is no data URI with base64 (at most %d bytes)", p->param, GEN_PICTURE_BYTES);
        else if (is_data(p)) bytes = own.p, n = own.n;
        else if (fetches_take(&bytes, &n, a->fetches, fetched++, &fe) < 0)
            bad_set(b, fe.code == ERR_BUSY ? 503 : 400, p->param, "invalid_image_url", "'%s': %s", p->param, fe.msg);
        const int rc = b->status ? 0 : gen_picture(&a->task, bytes, n, "picture", &e);
        if (rc == LLAVA_BUSY) blame(a, rc, e.message);
        else if (rc < 0)
            bad_set(b, 400, p->param, "invalid_image", "'%s' is no picture: %s", p->param, e.message);
        if (exchange_gone(a->task.x)) bad_set(b, 400, NULL, NULL, "the client has left");
        buf_free(&own);
    }
    fetches_free(a->fetches);
    a->fetches = NULL;
}

/* Which of the models here is asked. */
static void find_model(struct ask *a, const struct gen *g)
{
    const char *name = a->chat.model ? a->chat.model : gen_name(g, 0);
    if (!gen_find(g, name, &a->adapter))
        bad_set(&a->bad, 404, "model", "model_not_found", "the model '%.100s' does not exist here; there is '%s'%s",
                name, gen_name(g, 0), gen_name(g, 1) ? " and others, see /v1/models" : "");
    snprintf(a->model, sizeof a->model, "%s", name);
    exchange_note(a->task.x, a->model);
}

static void set_sampling(struct ask *a, const struct llava_info *info, const char *stop)
{
    struct llava_sampling *s = &a->chat.sampling;
    if (stop) a->chat.stop[s->n_stop++] = stop;
    s->stop = a->chat.stop;
    s->stop_ids = a->chat.ends;
    if (!a->chat.seeded && getrandom(&s->seed, sizeof s->seed, 0) < 0) s->seed = (uint64_t)a->created;
    if (s->max_new_tokens > info->context) s->max_new_tokens = info->context;
}

static void put_echo(struct ask *a, struct buf *out, const struct chat_prompt *p)
{
    struct llava_error e = { 0 };
    if (p->text) buf_str(out, p->text);
    else if (gen_text(a->task.g, out, p->ids, p->n_ids, &e) < 0) blame(a, e.code, e.message);
}

/* The requests that a is for the batch: one for each prompt. Their number. */
static int ask_prepare(struct ask *a, struct llava_request *r, struct buf *prompt)
{
    const struct llava_info *info = gen_info(a->task.g);
    struct bad *b = &a->bad;
    const char *stop = NULL;
    const bool turns = !a->chat.n_prompts;
    int n = turns ? 1 : a->chat.n_prompts;
    if (turns) chat_prompt(prompt, &stop, &a->chat, info->conversation, info->image_marks, b);
    set_sampling(a, info, stop);
    a->choice = calloc((size_t)(n * a->chat.n), sizeof *a->choice);
    if (!a->choice) bad_set(b, 503, NULL, "no_memory", "no memory");
    if (b->status) return 0;
    a->n = n * a->chat.n;
    for (int i = 0; i < a->n; i++) {
        a->choice[i].text = buf_make(1 << 24);
        trim_init(&a->choice[i].trim);
        a->choice[i].trim.begun = a->choice[i].said = chat_begins(&a->chat);
        if (a->chat.echo) put_echo(a, &a->choice[i].text, &a->chat.prompt[i / a->chat.n]);
    }
    for (int i = 0; i < a->chat.sampling.n_bias; i++)
        if (a->chat.bias[i].token >= info->vocab)
            bad_set(b, 400, "logit_bias", "invalid_value", "'logit_bias' has token %d, the model has %d",
                    a->chat.bias[i].token, info->vocab);
    if (b->status) return 0;
    for (int i = 0; i < n; i++) {
        a->part[i] = (struct part){ a, i * a->chat.n };
        r[i] = llava_request_default();
        const struct chat_prompt *given = &a->chat.prompt[i];
        r[i].prompt = turns ? prompt->p : given->text;
        r[i].ids = turns ? NULL : given->ids;
        r[i].n_ids = given->n_ids;
        r[i].sampling = a->chat.sampling;
        if (turns ? chat_begins(&a->chat) : given->ids || *given->text) r[i].sampling.text = LLAVA_TEXT_CONTINUED;
        r[i].n = a->chat.n;
        r[i].top_logprobs = a->chat.top_logprobs;
        r[i].on_text = on_text;
        r[i].on_token = a->chat.logprobs ? answer_token : NULL;
        r[i].on_prompt = a->chat.logprobs && a->chat.echo ? answer_prompt : NULL;
        r[i].on_end = on_end;
        r[i].schema = a->chat.schema;
        r[i].grammar = a->chat.grammar;
        r[i].adapter = a->adapter;
        r[i].ctx = &a->part[i];
    }
    return n;
}

/* The pictures are there: to the batch, or a refusal. a is not to be touched afterwards. */
static void ask_submit(struct ask *a)
{
    struct llava_request r[CHAT_ANSWERS_MAX];
    struct llava_error e = { 0 };
    struct buf prompt = buf_make(1 << 25);
    struct chat asked = { .n_turns = 0 };
    json_t *body = a->body; /* r borrows from both; they may be large, and an answer does without */
    int n = 0, rc = -1;
    a->body = NULL;
    read_pictures(a);
    if (!a->bad.status) n = ask_prepare(a, r, &prompt);
    if (!a->bad.status && a->chat.stream) exchange_stream(a->task.x, EVENT_TYPE, EVENT_PING);
    exchange_body_drop(a->task.x); /* now, as a is gone afterwards */
    if (!a->bad.status) asked = chat_part(&a->chat);
    if (!a->bad.status && (rc = gen_submit(&a->task, r, n, &e)) < 0) blame(a, rc, e.message);
    buf_free(&prompt);
    chat_free(&asked);
    json_decref(body);
    if (rc < 0) fail(a); /* else it is ask_finish's */
}

static void on_turn(void *ctx, struct exchange *x)
{
    (void)x;
    ask_submit(ctx);
}

/* To the thread that unfolds pictures. */
static void ask_wait(struct ask *a)
{
    if (exchange_later(a->task.x, LANE_PICTURES, on_turn, a)) return;
    bad_set(&a->bad, 503, NULL, "overloaded", "too many requests at a time, try again later");
    fail(a);
}

/* On the fetcher's thread: all have come, or failed. */
static void fetched(void *ctx)
{
    struct ask *a = ctx;
    exchange_on_gone(a->task.x, NULL, NULL);
    ask_wait(a);
}

static void fetch_gone(void *ctx)
{
    const struct ask *a = ctx;
    fetches_cancel(a->fetches);
}

/* An ask belongs to this thread, then to the fetcher's while pictures are fetched, to the one that unfolds them, and
 * from gen_submit on to the batch's; each hands it on as its last act, or ends it. NULL: x is finished. */
static struct ask *ask_new(const struct openai *o, struct exchange *x, const struct shape *shape)
{
    struct bad bad = { 0 };
    json_t *body = fields_of(x, false, &bad);
    struct ask *a = body ? calloc(1, sizeof *a) : NULL;
    if (!a) {
        bad_set(&bad, 503, NULL, "no_memory", "no memory");
        bad_reply(&bad, x);
        json_decref(body);
        return NULL;
    }
    gen_task_init(&a->task, o->g, x, ask_finish);
    a->body = body;
    a->shape = shape;
    a->created = time(NULL);
    snprintf(a->id, sizeof a->id, "%s%s", shape->id, exchange_id(x));
    uint64_t r[2];
    if (shape == &shape_response && getrandom(r, sizeof r, 0) == sizeof r) /* who guesses one reads it */
        snprintf(a->id, sizeof a->id, "%s%016llx%016llx", shape->id, (unsigned long long)r[0],
                 (unsigned long long)r[1]);
    a->shelf = o->shelf;
    return a;
}

static void answer(const struct openai *o, struct exchange *x, const struct shape *shape)
{
    struct ask *a = ask_new(o, x, shape);
    if (!a) return;
    if (shape == &shape_response) response_recall(a);
    shape->read(&a->chat, a->body, &a->bad);
    if (!a->bad.status) find_model(a, o->g);
    if (!a->bad.status) list_addresses(a, o->fetcher);
    if (!a->bad.status && a->chat.kept)
        a->shelved = a->chat.kept = shelf_begin(o->shelf, exchange_realm(x), a->id, json_object_get(a->body, "input"));
    if (a->bad.status) {
        fail(a);
    } else if (a->fetches) {
        exchange_on_gone(x, fetch_gone, a);
        fetches_start(a->fetches, fetched, a);
    } else if (a->chat.n_pictures) {
        ask_wait(a);
    } else {
        ask_submit(a);
    }
}

static void on_chat(void *ctx, struct exchange *x) { answer(ctx, x, &shape_chat); }
static void on_completion(void *ctx, struct exchange *x) { answer(ctx, x, &shape_completion); }
static void on_response(void *ctx, struct exchange *x) { answer(ctx, x, &shape_response); }

/* ---- responses that are kept */

static void no_response(struct exchange *x)
{
    exchange_error(x, 404, NULL, "not_found", "no response '%.60s' is kept, or not any more", exchange_tail(x));
}

static void on_kept(void *ctx, struct exchange *x)
{
    struct openai *o = ctx;
    json_t *v = shelf_response(o->shelf, exchange_realm(x), exchange_tail(x));
    if (v) exchange_json(x, 200, v);
    else no_response(x);
}

static void on_drop(void *ctx, struct exchange *x)
{
    struct openai *o = ctx;
    const char *id = exchange_tail(x);
    if (!shelf_drop(o->shelf, exchange_realm(x), id)) no_response(x);
    else exchange_json(x, 200, json_pack("{ss,ss,sb}", "id", id, "object", "response.deleted", "deleted", 1));
}

/* ---- models */

static json_t *model_json(const struct openai *o, int i)
{
    json_t *v = json_pack("{ss,ss,sI,ss,si}", "id", gen_name(o->g, i), "object", "model", "created",
                          (json_int_t)o->created, "owned_by", "llava.c", "max_model_len", gen_info(o->g)->context);
    if (i) json_object_set_new(v, "parent", json_string(gen_name(o->g, 0)));
    return v;
}

static void on_models(void *ctx, struct exchange *x)
{
    struct openai *o = ctx;
    json_t *list = json_array();
    for (int i = 0; gen_name(o->g, i); i++) json_array_append_new(list, model_json(o, i));
    exchange_json(x, 200, json_pack("{ss,so}", "object", "list", "data", list));
}

static void on_model(void *ctx, struct exchange *x)
{
    struct openai *o = ctx;
    const char *name = exchange_tail(x), *one;
    int i = 0;
    while ((one = gen_name(o->g, i)) != NULL && strcmp(one, name) != 0) i++;
    if (one) exchange_json(x, 200, model_json(o, i));
    else exchange_error(x, 404, "model", "model_not_found", "the model '%.100s' does not exist here", name);
}

/* ---- tokens, as llama.cpp and vLLM tell them */

/* {"prompt"} is the beginning of a prompt, as vLLM has it, {"content"} just text, as llama.cpp has it, unless
 * "add_special_tokens" or "add_special" says otherwise. */
static void on_tokenize(void *ctx, struct exchange *x)
{
    const struct openai *o = ctx;
    struct bad bad = { 0 };
    struct llava_error e = { 0 };
    json_t *body = fields_of(x, false, &bad), *tokens = NULL;
    struct fields f = fields_at(body, &bad);
    const char *text = NULL;
    bool begins = body && fields_str(&f, "prompt", &text);
    if (body && !begins && !fields_str(&f, "content", &text)) fields_need(&f, "prompt");
    if (body) fields_bool(&f, "add_special_tokens", &begins), fields_bool(&f, "add_special", &begins);
    if (!bad.status && !(tokens = gen_tokens(o->g, text, begins, &e))) {
        const char *word;
        const int status = gen_status(e.code, &word);
        bad_set(&bad, status, NULL, word, "%s", e.message);
    }
    json_decref(body);
    if (bad.status) bad_reply(&bad, x);
    else exchange_json(x, 200, json_pack("{si,si,so}", "count", (int)json_array_size(tokens), "max_model_len",
                                         gen_info(o->g)->context, "tokens", tokens));
}

static void on_detokenize(void *ctx, struct exchange *x)
{
    const struct openai *o = ctx;
    struct bad bad = { 0 };
    struct chat c = { .n_prompts = 0 };
    struct llava_error e = { 0 };
    struct buf text = buf_make(1 << 26);
    json_t *body = fields_of(x, false, &bad);
    if (body) tokens_read(&c, body, &bad);
    if (!bad.status && gen_text(o->g, &text, c.prompt[0].ids, c.prompt[0].n_ids, &e) < 0)
        bad_set(&bad, 500, NULL, NULL, "%s", e.message);
    chat_free(&c);
    json_decref(body);
    const char *p = text.p ? text.p : "";
    if (bad.status) bad_reply(&bad, x);
    else exchange_json(x, 200, json_pack("{ss%,ss%}", "prompt", p, text.n, "content", p, text.n));
    buf_free(&text);
}

/* Also without /v1, which people forget in an address. */
const struct route openai_routes[] = {
    { "GET", "/v1/models", on_models, ROUTE_QUICK, 0, "the model and its adapters" },
    { "GET", "/v1/models/*", on_model, ROUTE_QUICK, 0, "one of them, by its name" },
    { "GET", "/models", on_models, ROUTE_QUICK, 0, "" },
    { "POST", "/v1/chat/completions", on_chat, 0, PROTOCOL_BODY_MAX, "the next turn of a conversation" },
    { "POST", "/chat/completions", on_chat, 0, PROTOCOL_BODY_MAX, "" },
    { "POST", "/v1/completions", on_completion, 0, PROTOCOL_BODY_MAX, "how a text goes on" },
    { "POST", "/completions", on_completion, 0, PROTOCOL_BODY_MAX, "" },
    { "POST", "/v1/responses", on_response, 0, PROTOCOL_BODY_MAX, "a chat as OpenAI's newer clients ask it" },
    { "POST", "/responses", on_response, 0, PROTOCOL_BODY_MAX, "" },
    { "GET", "/v1/responses/*", on_kept, 0, 0, "a response that is kept" },
    { "DELETE", "/v1/responses/*", on_drop, ROUTE_QUICK, 0, "forgets it" },
    { "POST", "/tokenize", on_tokenize, 0, 1 << 20, "the tokens of a text" },
    { "POST", "/detokenize", on_detokenize, 0, 1 << 20, "the text of tokens" },
    { 0 },
};

int openai_open(struct openai **ret, struct gen *g, const struct fetch_limits *fetch, struct err *e)
{
    struct openai *o = calloc(1, sizeof *o);
    *ret = NULL;
    if (!o || !(o->shelf = shelf_new())) {
        free(o);
        return err_set(e, ERR_NOMEM, "no memory for a server");
    }
    o->g = g;
    o->created = time(NULL);
    int rc = fetcher_open(&o->fetcher, fetch, e);
    if (rc < 0) openai_close(o);
    else *ret = o;
    return rc;
}

void openai_close(struct openai *o)
{
    if (!o) return;
    fetcher_close(o->fetcher);
    shelf_free(o->shelf);
    free(o);
}
