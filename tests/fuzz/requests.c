/* Bodies of requests of any bytes: chats, completions, responses, conversations of the page, questions to a worker.
 * They are refused with a field and a line, or become prompts; pictures' text is decoded too. The first byte says
 * which. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "serve/base64.h"
#include "serve/chat.h"
#include "serve/talk.h"
#include "serve/worker.h"

static void check_bad(const struct bad *b)
{
    if (!b->status) return;
    if (b->status < 400 || !*b->message || strchr(b->message, '\n')) abort();
}

typedef void read_fn(struct chat *c, const json_t *body, struct bad *b);

static void chats(const json_t *body, read_fn *read, unsigned pick)
{
    struct chat c;
    struct bad b = { 0 };
    const bool is_chat = read != completion_read;
    read(&c, body, &b);
    struct buf out = buf_make(1 << 25), bytes = buf_make(1 << 20);
    const char *stop, *name = conv_key(pick % 16);
    const bool plain = conv_find(name)->style == CONV_PLAIN; /* of nothing it makes nothing */
    if (!b.status && is_chat) chat_prompt(&out, &stop, &c, name, pick & 64, &b);
    if (!b.status && is_chat && !plain && !out.n) abort();
    for (int i = 0; i < c.n_pictures; i++) base64_picture(&bytes, c.picture[i].url);
    const bool stops = c.sampling.n_stop >= 0 && c.sampling.n_stop <= CHAT_STOPS_MAX;
    if (!b.status && ((c.schema && c.grammar) || c.n < 1 || !stops)) abort();
    if (!b.status && c.tools.mode) { /* the model's name as what the model writes */
        struct call call;
        call_read(&call, &c.tools, c.model ? c.model : "");
        buf_free(&call.text);
    }
    check_bad(&b);
    buf_free(&out);
    buf_free(&bytes);
    chat_free(&c);
}

static void talks(const json_t *body, bool vote)
{
    struct talk t;
    struct bad b = { 0 };
    struct err e = { 0 };
    struct buf out = buf_make(1 << 25);
    const char *stop;
    talk_read(&t, body, vote, NULL, &b);
    if (!b.status) {
        char *line = talk_line(json_pack("{so}", "state", talk_state(&t, vote ? NULL : "answer")));
        if (!line || strchr(line, '\n')) abort();
        free(line);
        if (!vote && talk_prompt(&out, &stop, &t, &e) >= 0 && !out.n) abort();
    }
    check_bad(&b);
    buf_free(&out);
    talk_free(&t);
}

static void questions(const json_t *body)
{
    struct worker_ask a;
    struct bad b = { 0 };
    struct buf bytes = buf_make(1 << 20);
    size_t i;
    const json_t *v;
    worker_read(&a, body, &b);
    check_bad(&b);
    if (!b.status && (!a.prompt || a.temperature < 0 || a.top_p <= 0 || a.top_p > 1)) abort();
    if (!b.status) json_array_foreach(a.images, i, v)
        if (json_is_string(v)) base64_picture(&bytes, json_string_value(v));
    buf_free(&bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
    struct bad b = { 0 };
    if (!n) return 0;
    json_t *body = fields_body((const char *)p + 1, n - 1, p[0] & 8, &b);
    check_bad(&b);
    if (!body && !b.status) abort();
    if (body && p[0] & 128 && p[0] & 32) questions(body);
    else if (body && p[0] & 128 && p[0] % 4 < 2) chats(body, response_read, p[0] >> 4 | (p[0] & 4) << 4);
    else if (body && p[0] % 4 < 2) chats(body, p[0] % 4 ? completion_read : chat_read, p[0] >> 4 | (p[0] & 4) << 4);
    else if (body) talks(body, p[0] % 4 == 3);
    json_decref(body);
    return 0;
}
