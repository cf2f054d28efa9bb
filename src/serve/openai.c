/* See openai.h. */
#include "serve/openai.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <time.h>

#include "serve/base64.h"
#include "serve/chat.h"
#include "serve/event.h"
#include "serve/protocol.h"

/* ---- one request under way */

struct choice {
    struct buf text;      /* of a whole answer */
    struct trim trim;
    bool role_sent, said; /* said: a token has had some text */
    json_t *tokens;       /* logprobs since the last chunk */
    size_t offset;        /* characters of text before them */
    enum llava_finish finish;
};

/* The answers to one prompt of a request. */
struct ask;
struct part {
    struct ask *a;
    int first; /* its first choice */
};

struct ask {
    struct gen_task task; /* first */
    json_t *body;         /* what chat borrows from; NULL once the batch has the request */
    struct chat chat;
    struct fetches *fetches; /* pictures behind addresses until they are read, or NULL */
    bool is_chat;
    char id[32], model[200];
    const char *adapter;  /* NULL: none */
    time_t created;
    struct choice *choice; /* [n] */
    int n;
    struct part part[CHAT_ANSWERS_MAX];
    int n_prompt, n_cached, n_new;
    struct bad bad;       /* what was wrong first, with the request or with an answer */
};

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
    fetches_free(a->fetches);
    gen_task_fini(&a->task);
    free(a);
}

/* What the library says is wrong. */
static void blame(struct ask *a, int code, const char *message)
{
    const char *word, *param = NULL;
    const int status = gen_status(code, &word);
    if (code == LLAVA_LIMIT) param = a->is_chat ? "messages" : "prompt";
    else if (status == 400 && a->chat.format == CHAT_SCHEMA) param = "response_format";
    bad_set(&a->bad, status, param, word, "%s", message);
}

static const char *finish_word(enum llava_finish f)
{
    return f == LLAVA_FINISH_LENGTH ? "length" : "stop";
}

static json_t *usage(const struct ask *a)
{
    return json_pack("{si,si,si,s{si}}", "prompt_tokens", a->n_prompt, "completion_tokens", a->n_new, "total_tokens",
                     a->n_prompt + a->n_new, "prompt_tokens_details", "cached_tokens", a->n_cached);
}

/* ---- logprobs */

/* Bytes that may be half a character, as a JSON string: what is no UTF-8 becomes U+FFFD. */
static json_t *loose_string(const char *p, size_t n)
{
    json_t *v = json_stringn(p, n);
    if (v) return v;
    struct buf b = buf_make(1 << 16);
    for (size_t i = 0; i < n; i++) {
        if ((unsigned char)p[i] < 0x80) buf_chr(&b, p[i]);
        else buf_str(&b, "\xef\xbf\xbd");
    }
    v = json_stringn(b.p ? b.p : "", b.n);
    buf_free(&b);
    return v;
}

static json_t *candidate(const struct llava_candidate *c)
{
    json_t *bytes = json_array();
    for (size_t i = 0; i < c->n; i++) json_array_append_new(bytes, json_integer((unsigned char)c->text[i]));
    double lp = c->logprob > -9999 ? c->logprob : -9999; /* JSON has no infinity */
    return json_pack("{so,sf,so}", "token", loose_string(c->text, c->n), "logprob", lp, "bytes", bytes);
}

/* What a candidate for this place would add to the text, so that the chosen ones joined are the text: a chat's has no
 * white space at its front, and the end adds nothing. */
static struct llava_candidate shown(const struct ask *a, const struct choice *c, const struct llava_candidate *one,
                                    const struct llava_token *t)
{
    struct llava_candidate v = *one;
    if (v.silent && v.id == t->chosen.id) v.n = 0; /* others keep their name */
    while (a->is_chat && !c->said && v.n && isspace((unsigned char)*v.text)) v.text++, v.n--;
    return v;
}

static void on_token(void *ctx, int i, const struct llava_token *t)
{
    const struct part *p = ctx;
    struct ask *a = p->a;
    i += p->first;
    struct choice *c = &a->choice[i];
    const struct llava_candidate said = shown(a, c, &t->chosen, t);
    json_t *v = candidate(&said), *top = json_array();
    for (int k = 0; k < t->n_top; k++) {
        const struct llava_candidate other = shown(a, c, &t->top[k], t);
        json_array_append_new(top, candidate(&other));
    }
    c->said |= said.n > 0;
    json_object_set_new(v, "top_logprobs", top);
    if (!c->tokens) c->tokens = json_array();
    json_array_append_new(c->tokens, v);
}

/* What completions call logprobs: parallel arrays. The token that was drawn is among the likeliest in any case. */
static json_t *flat_logprobs(struct choice *c)
{
    json_t *tokens = json_array(), *values = json_array(), *tops = json_array(), *offsets = json_array(), *v, *t;
    size_t i, k;
    json_array_foreach(c->tokens, i, v) {
        json_t *top = json_object(), *list = json_object_get(v, "top_logprobs"), *token = json_object_get(v, "token");
        json_t *chosen = json_pack("{sO}", json_string_value(token), json_object_get(v, "logprob"));
        json_array_foreach(list, k, t)
            json_object_set(top, json_string_value(json_object_get(t, "token")), json_object_get(t, "logprob"));
        json_object_update_missing(top, chosen);
        json_decref(chosen);
        json_array_append(tokens, token);
        json_array_append(values, json_object_get(v, "logprob"));
        json_array_append_new(tops, top);
        json_array_append_new(offsets, json_integer((json_int_t)c->offset));
        json_array_foreach(json_object_get(v, "bytes"), k, t)
            c->offset += (json_integer_value(t) & 0xc0) != 0x80; /* where a character begins */
    }
    return json_pack("{so,so,so,so}", "tokens", tokens, "token_logprobs", values, "top_logprobs", tops, "text_offset",
                     offsets);
}

/* The logprobs of a choice since last time, in its kind's shape. */
static json_t *take_logprobs(const struct ask *a, struct choice *c)
{
    if (!a->chat.logprobs || (a->chat.stream && !c->tokens)) return json_null();
    if (!c->tokens) c->tokens = json_array();
    json_t *v = a->is_chat ? json_pack("{sO,sn}", "content", c->tokens, "refusal") : flat_logprobs(c);
    json_decref(c->tokens);
    c->tokens = NULL;
    return v;
}

/* ---- streams */

static json_t *envelope(const struct ask *a, const char *kind, json_t *choices)
{
    json_t *v = json_pack("{ss,ss,sI,ss,so}", "id", a->id, "object", kind, "created", (json_int_t)a->created, "model",
                          a->model, "choices", choices);
    json_object_set_new(v, "system_fingerprint", json_string("llava.c-" LLAVA_VERSION));
    return v;
}

/* One chunk of choice i: text (NULL: none), or how it ended (NULL: not yet). */
static void send_chunk(struct ask *a, int i, const char *text, size_t n, const char *finish)
{
    struct choice *c = &a->choice[i];
    json_t *item;
    if (a->is_chat) {
        json_t *delta = json_object();
        if (!c->role_sent) json_object_set_new(delta, "role", json_string("assistant"));
        if (!c->role_sent || text) json_object_set_new(delta, "content", json_stringn(text ? text : "", n));
        c->role_sent = true;
        item = json_pack("{si,so,so,ss?}", "index", i, "delta", delta, "logprobs", take_logprobs(a, c),
                         "finish_reason", finish);
    } else {
        item = json_pack("{ss%,si,so,ss?}", "text", text ? text : "", n, "index", i, "logprobs", take_logprobs(a, c),
                         "finish_reason", finish);
    }
    json_t *v = envelope(a, a->is_chat ? "chat.completion.chunk" : "text_completion", json_pack("[o]", item));
    if (a->chat.usage) json_object_set_new(v, "usage", json_null());
    event_send(a->task.x, v);
}

/* ---- what the batch says */

/* A completion's prompt goes before the first piece of its stream. */
static void take_echo(const struct ask *a, struct choice *c, struct buf *piece)
{
    if (!a->chat.stream || !c->text.n) return;
    buf_add(piece, c->text.p, c->text.n);
    buf_reset(&c->text);
}

static bool on_text(void *ctx, int i, const char *text, size_t n)
{
    const struct part *p = ctx;
    struct ask *a = p->a;
    struct choice *c = &a->choice[i += p->first];
    struct buf piece = buf_make(1 << 24);
    if (a->is_chat) trim_feed(&c->trim, &piece, text, n);
    else take_echo(a, c, &piece), buf_add(&piece, text, n);
    if (piece.n && a->chat.stream) send_chunk(a, i, piece.p, piece.n, NULL);
    else if (piece.n) buf_add(&c->text, piece.p, piece.n);
    buf_free(&piece);
    return !exchange_gone(a->task.x);
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
    if (e) blame(a, e->code, e->message);
    else if (r->finish == LLAVA_FINISH_CANCELLED)
        bad_set(&a->bad, 503, NULL, "shutting_down", "the server is shutting down");
    if (!a->bad.status && a->chat.stream) {
        struct buf echo = buf_make(1 << 24); /* of an answer that is empty */
        take_echo(a, &a->choice[i], &echo);
        if (!a->is_chat && echo.n) send_chunk(a, i, echo.p, echo.n, NULL);
        buf_free(&echo);
        send_chunk(a, i, NULL, 0, finish_word(r->finish));
    }
    gen_ended(&a->task);
}

/* These end the exchange, with which the model may be closed: a is freed before. */
/* Says what is wrong, as an event where events have begun. */
static void fail(struct ask *a)
{
    struct exchange *x = a->task.x;
    const struct bad bad = a->bad;
    const bool events = a->chat.stream && exchange_begun(x);
    ask_free(a);
    if (events) {
        event_send(x, bad_json(&bad));
        exchange_end(x);
        return;
    }
    if (bad.status == 429) exchange_set_header(x, "Retry-After", "1");
    bad_reply(&bad, x);
}

static void finish_whole(struct ask *a)
{
    struct exchange *x = a->task.x;
    json_t *choices = json_array(), *item;
    for (int i = 0; i < a->n; i++) {
        struct choice *c = &a->choice[i];
        const char *text = c->text.p ? c->text.p : "", *finish = finish_word(c->finish);
        json_t *logprobs = take_logprobs(a, c);
        if (a->is_chat)
            item = json_pack("{si,s{ss,ss%,sn},so,ss}", "index", i, "message", "role", "assistant", "content", text,
                             c->text.n, "refusal", "logprobs", logprobs, "finish_reason", finish);
        else
            item = json_pack("{ss%,si,so,ss}", "text", text, c->text.n, "index", i, "logprobs", logprobs,
                             "finish_reason", finish);
        json_array_append_new(choices, item);
    }
    json_t *v = envelope(a, a->is_chat ? "chat.completion" : "text_completion", choices);
    json_object_set_new(v, "usage", usage(a));
    ask_free(a);
    exchange_json(x, 200, v);
}

static void finish_stream(struct ask *a)
{
    struct exchange *x = a->task.x;
    if (a->chat.usage) {
        json_t *v = envelope(a, a->is_chat ? "chat.completion.chunk" : "text_completion", json_array());
        json_object_set_new(v, "usage", usage(a));
        event_send(x, v);
    }
    ask_free(a);
    exchange_write(x, "data: [DONE]\n\n", 14);
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
        if (!a->fetches) rc = fetches_new(&a->fetches, f, a->chat.n_pictures, GEN_PICTURE_BYTES, &e);
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
    if (!a->chat.seeded && getrandom(&s->seed, sizeof s->seed, 0) < 0) s->seed = (uint64_t)a->created;
    if (s->max_new_tokens > info->context) s->max_new_tokens = info->context;
}

/* The requests that a is for the batch: one for each prompt. Their number. */
static int ask_prepare(struct ask *a, struct llava_request *r, struct buf *prompt)
{
    const struct llava_info *info = gen_info(a->task.g);
    struct bad *b = &a->bad;
    const char *stop = NULL;
    int n = a->is_chat ? 1 : a->chat.n_prompts;
    if (a->is_chat) chat_prompt(prompt, &stop, &a->chat, info->conversation, info->image_marks, b);
    set_sampling(a, info, stop);
    a->choice = calloc((size_t)(n * a->chat.n), sizeof *a->choice);
    if (!a->choice) bad_set(b, 503, NULL, "no_memory", "no memory");
    if (b->status) return 0;
    a->n = n * a->chat.n;
    for (int i = 0; i < a->n; i++) {
        a->choice[i].text = buf_make(1 << 24);
        trim_init(&a->choice[i].trim);
        if (a->chat.echo) buf_str(&a->choice[i].text, a->chat.prompt[i / a->chat.n]);
    }
    for (int i = 0; i < a->chat.sampling.n_bias; i++)
        if (a->chat.bias[i].token >= info->vocab)
            bad_set(b, 400, "logit_bias", "invalid_value", "'logit_bias' has token %d, the model has %d",
                    a->chat.bias[i].token, info->vocab);
    if (b->status) return 0;
    for (int i = 0; i < n; i++) {
        a->part[i] = (struct part){ a, i * a->chat.n };
        r[i] = llava_request_default();
        r[i].prompt = a->is_chat ? prompt->p : a->chat.prompt[i];
        r[i].sampling = a->chat.sampling;
        if (!a->is_chat && *r[i].prompt) r[i].sampling.text = LLAVA_TEXT_CONTINUED;
        r[i].n = a->chat.n;
        r[i].top_logprobs = a->chat.top_logprobs;
        r[i].on_text = on_text;
        r[i].on_token = a->chat.logprobs ? on_token : NULL;
        r[i].on_end = on_end;
        r[i].schema = a->chat.format == CHAT_JSON ? "{\"type\":\"object\"}" : a->chat.schema;
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
    json_t *body = a->body; /* r borrows from it; it may be large, and an answer does without */
    int n = 0, rc = -1;
    a->body = NULL;
    read_pictures(a);
    if (!a->bad.status) n = ask_prepare(a, r, &prompt);
    if (!a->bad.status && a->chat.stream) exchange_stream(a->task.x, EVENT_TYPE, EVENT_PING);
    if (!a->bad.status && (rc = gen_submit(&a->task, r, n, &e)) < 0) blame(a, rc, e.message);
    buf_free(&prompt);
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
static struct ask *ask_new(const struct openai *o, struct exchange *x, bool is_chat)
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
    a->is_chat = is_chat;
    a->created = time(NULL);
    snprintf(a->id, sizeof a->id, "%s-%s", is_chat ? "chatcmpl" : "cmpl", exchange_id(x));
    return a;
}

static void answer(const struct openai *o, struct exchange *x, bool is_chat)
{
    struct ask *a = ask_new(o, x, is_chat);
    if (!a) return;
    (is_chat ? chat_read : completion_read)(&a->chat, a->body, &a->bad);
    if (!a->bad.status) find_model(a, o->g);
    if (!a->bad.status) list_addresses(a, o->fetcher);
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

static void on_chat(void *ctx, struct exchange *x) { answer(ctx, x, true); }
static void on_completion(void *ctx, struct exchange *x) { answer(ctx, x, false); }

/* ---- models */

static json_t *model_json(const struct openai *o, int i)
{
    json_t *v = json_pack("{ss,ss,sI,ss}", "id", gen_name(o->g, i), "object", "model", "created",
                          (json_int_t)o->created, "owned_by", "llava.c");
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

const struct route openai_routes[] = {
    { "GET", "/v1/models", on_models, ROUTE_QUICK, 0, "the model and its adapters" },
    { "GET", "/v1/models/*", on_model, ROUTE_QUICK, 0, "one of them, by its name" },
    { "POST", "/v1/chat/completions", on_chat, 0, PROTOCOL_BODY_MAX, "the next turn of a conversation" },
    { "POST", "/v1/completions", on_completion, 0, PROTOCOL_BODY_MAX, "how a text goes on" },
    { 0 },
};
