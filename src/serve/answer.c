/* Answers of /v1/chat/completions and /v1/completions, whole and as streams, and what all answers have: logprobs. */
#include <ctype.h>
#include <math.h>

#include "serve/openai_in.h"

static const char *finish_word(const struct choice *c)
{
    return c->finish == LLAVA_FINISH_LENGTH ? "length" : *c->call ? "tool_calls" : "stop";
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
    return json_pack("{so,so,so}", "token", loose_string(c->text, c->n), "logprob",
                     isnan(c->logprob) ? json_null() : json_real(lp), "bytes", bytes);
}

/* What a candidate for this place would add to the text, so that the chosen ones joined are the text: a chat's has no
 * white space at its front, and the end adds nothing. */
static struct llava_candidate shown(const struct ask *a, const struct choice *c, const struct llava_candidate *one,
                                    const struct llava_token *t)
{
    struct llava_candidate v = *one;
    if (v.silent && v.id == t->chosen.id) v.n = 0; /* others keep their name */
    while (a->shape->trims && !c->said && v.n && isspace((unsigned char)*v.text)) v.text++, v.n--;
    return v;
}

static void add_token(const struct ask *a, struct choice *c, const struct llava_token *t)
{
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

void answer_token(void *ctx, int i, const struct llava_token *t)
{
    const struct part *p = ctx;
    add_token(p->a, &p->a->choice[i + p->first], t);
}

void answer_prompt(void *ctx, int i, const struct llava_token *t)
{
    const struct part *p = ctx;
    struct choice *c = &p->a->choice[i + p->first];
    struct llava_token own = *t;
    /* The first word's space is the tokenizer's, not the text's, which is in c->text until the answer begins. */
    if (!c->said && !own.chosen.silent && own.chosen.n && *own.chosen.text == ' ' && c->text.n && *c->text.p != ' ')
        own.chosen.text++, own.chosen.n--;
    add_token(p->a, c, &own);
}

/* What completions call logprobs: parallel arrays. The token that was drawn is among the likeliest in any case. */
static json_t *flat_logprobs(struct choice *c, json_t *list)
{
    json_t *tokens = json_array(), *values = json_array(), *tops = json_array(), *offsets = json_array(), *v, *t;
    size_t i, k;
    json_array_foreach(list, i, v) {
        json_t *top = json_object(), *others = json_object_get(v, "top_logprobs"), *token = json_object_get(v, "token");
        json_t *chosen = json_pack("{sO}", json_string_value(token), json_object_get(v, "logprob"));
        json_array_foreach(others, k, t)
            json_object_set(top, json_string_value(json_object_get(t, "token")), json_object_get(t, "logprob"));
        json_object_update_missing(top, chosen);
        json_decref(chosen);
        const bool none = json_is_null(json_object_get(v, "logprob")); /* nothing came before it */
        json_array_append(tokens, token);
        json_array_append(values, json_object_get(v, "logprob"));
        json_array_append_new(tops, none ? json_null() : json_incref(top));
        json_decref(top);
        json_array_append_new(offsets, json_integer((json_int_t)c->offset));
        json_array_foreach(json_object_get(v, "bytes"), k, t)
            c->offset += (json_integer_value(t) & 0xc0) != 0x80; /* where a character begins */
    }
    return json_pack("{so,so,so,so}", "tokens", tokens, "token_logprobs", values, "top_logprobs", tops, "text_offset",
                     offsets);
}

json_t *answer_logprobs(struct choice *c)
{
    json_t *v = c->tokens ? c->tokens : json_array();
    c->tokens = NULL;
    return v;
}

/* The logprobs of a choice since last time, in its kind's shape. */
static json_t *take_logprobs(const struct ask *a, struct choice *c)
{
    if (!a->chat.logprobs || (a->chat.stream && !c->tokens)) return json_null();
    if (a->shape == &shape_chat) return json_pack("{so,sn}", "content", answer_logprobs(c), "refusal");
    json_t *tokens = answer_logprobs(c), *v = flat_logprobs(c, tokens);
    json_decref(tokens);
    return v;
}

/* ---- what both kinds have */

static json_t *envelope(const struct ask *a, const char *kind, json_t *choices)
{
    json_t *v = json_pack("{ss,ss,sI,ss,so}", "id", a->id, "object", kind, "created", (json_int_t)a->created, "model",
                          a->model, "choices", choices);
    json_object_set_new(v, "system_fingerprint", json_string("llava.c-" LLAVA_VERSION));
    return v;
}

/* choice: makes one choice of the answer. */
static json_t *whole(struct ask *a, const char *kind, json_t *(*choice)(const struct ask *a, int i))
{
    json_t *choices = json_array();
    for (int i = 0; i < a->n; i++) json_array_append_new(choices, choice(a, i));
    json_t *v = envelope(a, kind, choices);
    json_object_set_new(v, "usage", usage(a));
    return v;
}

static void send_chunk(const struct ask *a, const char *kind, json_t *choices)
{
    json_t *v = envelope(a, kind, choices);
    if (a->chat.usage) json_object_set_new(v, "usage", json_array_size(choices) ? json_null() : usage(a));
    event_send(a->task.x, v);
}

static void end_stream(const struct ask *a, const char *kind)
{
    if (a->chat.usage) send_chunk(a, kind, json_array());
    exchange_write(a->task.x, "data: [DONE]\n\n", 14);
}

static void broken(struct ask *a) { event_send(a->task.x, bad_json(&a->bad)); }

/* ---- chats */

static const char chat_chunk[] = "chat.completion.chunk";

/* The call of choice i as a list of one. delta: of a stream. */
static json_t *calls_of(const struct ask *a, int i, bool delta)
{
    const struct choice *c = &a->choice[i];
    json_t *id = json_sprintf("call_%s_%d", a->id + strlen(a->shape->id), i);
    json_t *v = json_pack("{so,ss,s{ss,ss%}}", "id", id, "type", "function", "function", "name", c->call, "arguments",
                          c->text.p ? c->text.p : "", c->text.n);
    if (delta) json_object_set_new(v, "index", json_integer(0));
    return json_pack("[o]", v);
}

static json_t *chat_choice(const struct ask *a, int i)
{
    struct choice *c = &a->choice[i];
    json_t *message = json_pack("{ss,ss%,sn}", "role", "assistant", "content", c->text.p ? c->text.p : "", c->text.n,
                                "refusal");
    if (*c->call) json_object_set_new(message, "content", json_null());
    if (*c->call) json_object_set_new(message, "tool_calls", calls_of(a, i, false));
    return json_pack("{si,so,so,ss}", "index", i, "message", message, "logprobs", take_logprobs(a, c), "finish_reason",
                     finish_word(c));
}

static json_t *chat_whole(struct ask *a) { return whole(a, "chat.completion", chat_choice); }

static void chat_delta(struct ask *a, int i, json_t *delta, json_t *logprobs, const char *finish)
{
    send_chunk(a, chat_chunk, json_pack("[{si,so,so,ss?}]", "index", i, "delta", delta, "logprobs", logprobs,
                                        "finish_reason", finish));
}

/* The role comes first, and alone. */
static void chat_begin(struct ask *a, int i)
{
    const char *content = *a->choice[i].call ? NULL : "";
    if (a->choice[i].begun) return;
    a->choice[i].begun = true;
    chat_delta(a, i, json_pack("{ss,ss?,sn}", "role", "assistant", "content", content, "refusal"), json_null(), NULL);
}

static void chat_piece(struct ask *a, int i, const char *text, size_t n)
{
    chat_begin(a, i);
    chat_delta(a, i, json_pack("{ss%}", "content", text, n), take_logprobs(a, &a->choice[i]), NULL);
}

static void chat_over(struct ask *a, int i)
{
    struct choice *c = &a->choice[i];
    chat_begin(a, i);
    if (*c->call) chat_delta(a, i, json_pack("{so}", "tool_calls", calls_of(a, i, true)), take_logprobs(a, c), NULL);
    else if (c->text.n) chat_piece(a, i, c->text.p, c->text.n); /* of an answer that could have been a call */
    chat_delta(a, i, json_object(), take_logprobs(a, c), finish_word(c));
}

static void chat_end(struct ask *a) { end_stream(a, chat_chunk); }

const struct shape shape_chat = { "chatcmpl-", true, chat_read, chat_whole, chat_piece, chat_over, chat_end,
                                  broken };

/* ---- completions */

static const char text_kind[] = "text_completion";

static json_t *text_choice(const struct ask *a, int i, const char *text, size_t n, const char *finish)
{
    return json_pack("{ss%,si,so,ss?}", "text", text, n, "index", i, "logprobs", take_logprobs(a, &a->choice[i]),
                     "finish_reason", finish);
}

static json_t *completion_choice(const struct ask *a, int i)
{
    const struct choice *c = &a->choice[i];
    return text_choice(a, i, c->text.p ? c->text.p : "", c->text.n, finish_word(c));
}

static json_t *completion_whole(struct ask *a) { return whole(a, text_kind, completion_choice); }

/* The prompt, where it is to be repeated, goes before the first piece. */
static void completion_piece(struct ask *a, int i, const char *text, size_t n)
{
    struct choice *c = &a->choice[i];
    buf_add(&c->text, text, n);
    send_chunk(a, text_kind, json_pack("[o]", text_choice(a, i, c->text.p, c->text.n, NULL)));
    buf_reset(&c->text);
}

static void completion_over(struct ask *a, int i)
{
    if (a->choice[i].text.n) completion_piece(a, i, "", 0); /* the prompt, before an answer that is empty */
    send_chunk(a, text_kind, json_pack("[o]", text_choice(a, i, "", 0, finish_word(&a->choice[i]))));
}

static void completion_end(struct ask *a) { end_stream(a, text_kind); }

const struct shape shape_completion = { "cmpl-", false, completion_read, completion_whole, completion_piece,
                                        completion_over, completion_end, broken };
