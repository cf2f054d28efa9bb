/* See talk.h. */
#include "serve/talk.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char image_mark[] = "<image>";

/* Bytes of the first `most` characters. */
static size_t cut(const char *text, int most)
{
    size_t n = 0;
    for (; text[n]; n++)
        if (((unsigned char)text[n] & 0xc0) != 0x80 && most-- == 0) break;
    return n;
}

static void read_images(struct talk *t, const struct fields *m, const json_t *images)
{
    size_t i;
    const json_t *v;
    json_array_foreach(images, i, v) {
        char name[24];
        snprintf(name, sizeof name, "images[%zu]", i);
        if (!json_is_string(v)) {
            fields_bad(m, name, "is %s, want a string", fields_kind(v));
            return;
        }
        if (t->n_pictures == TALK_PICTURES_MAX) {
            fields_bad(m, "images", "is too much: at most %d pictures in a conversation", TALK_PICTURES_MAX);
            return;
        }
        snprintf(t->where[t->n_pictures], sizeof t->where[0], "%.20s.%s", m->path, name);
        t->picture[t->n_pictures++] = json_string_value(v);
    }
}

/* A question. One picture in the first goes where LLaVA puts it: "\n<image>" behind the text, which conv_prompt moves
 * to the front. Others, which the reference does not have, go before the text of their message. */
static void add_question(struct talk *t, const struct fields *m, const char *text, int n_images)
{
    bool first = t->conv.n == t->conv.offset && n_images == 1, mmtag = conv_is_mmtag(t->conv.tpl);
    struct buf b = buf_make(1 << 20);
    struct err e = { 0 };
    for (int i = 0; i < n_images && !first; i++)
        buf_fmt(&b, "%s\n", mmtag ? "<Image><image></Image>" : image_mark);
    buf_add(&b, text, cut(text, n_images ? TALK_TEXT_WITH_IMAGE : TALK_TEXT));
    if (first) buf_fmt(&b, "\n%s", image_mark);
    if (strstr(text, image_mark))
        fields_bad(m, "text", "has '<image>' in it, which stands for a picture; pictures go in 'images'");
    if (b.failed || conv_add(&t->conv, CONV_USER, b.p ? b.p : "", b.n, first, &e) < 0)
        bad_set(m->bad, 400, m->path, NULL, "'%s' is too long", m->path);
    buf_free(&b);
}

static void read_message(struct talk *t, const struct fields *m)
{
    const char *role = "", *text = "";
    json_t *images = NULL;
    struct err e = { 0 };
    enum conv_role turn = (t->conv.n - t->conv.offset) % 2 ? CONV_ASSISTANT : CONV_USER;
    if (!fields_str(m, "role", &role)) fields_need(m, "role");
    fields_str(m, "text", &text);
    fields_array(m, "images", &images);
    if (m->bad->status) return;
    if (strcmp(role, turn == CONV_USER ? "user" : "assistant") != 0) {
        fields_bad(m, "role", "is '%.20s': user and assistant take turns, the user begins", role);
        return;
    }
    if (turn == CONV_USER) {
        read_images(t, m, images);
        add_question(t, m, text, (int)json_array_size(images));
    } else if (conv_add(&t->conv, CONV_ASSISTANT, text, strlen(text), false, &e) < 0) {
        fields_bad(m, "text", "is too long");
    }
}

static void read_settings(struct talk *t, const struct fields *f)
{
    static const char *const modes[] = { "Default", "Crop", "Resize", "Pad" };
    int64_t most = 512;
    t->mode = modes[0];
    t->temperature = 0.2;
    t->top_p = 0.7;
    fields_real(f, "temperature", &t->temperature, 0, 2);
    fields_real(f, "top_p", &t->top_p, 0, 1);
    fields_int(f, "max_new_tokens", &most, 0, INT32_MAX);
    fields_str(f, "image_process_mode", &t->mode);
    t->max_new_tokens = most < TALK_NEW_MAX ? (int)most : TALK_NEW_MAX;
    for (int i = 0; i < 4; i++)
        if (!strcmp(t->mode, modes[i])) return;
    fields_bad(f, "image_process_mode", "is '%.20s', want Crop, Resize, Pad or Default", t->mode);
}

void talk_read(struct talk *t, const json_t *body, bool vote, const char *like, struct bad *b)
{
    struct fields f = fields_at(body, b);
    json_t *messages = NULL;
    struct err e = { 0 };
    *t = (struct talk){ .model = NULL };
    if (!fields_str(&f, "model", &t->model)) fields_need(&f, "model");
    if (!fields_array(&f, "messages", &messages)) fields_need(&f, "messages");
    if (vote && !fields_str(&f, "type", &t->vote)) fields_need(&f, "type");
    if (t->vote && strcmp(t->vote, "upvote") != 0 && strcmp(t->vote, "downvote") != 0 && strcmp(t->vote, "flag") != 0)
        fields_bad(&f, "type", "is '%.20s', want upvote, downvote or flag", t->vote);
    if (!vote) read_settings(t, &f);
    size_t n = json_array_size(messages);
    if (messages && (!n || n > TALK_MESSAGES_MAX))
        fields_bad(&f, "messages", "has %zu messages, want 1 to %d", n, TALK_MESSAGES_MAX);
    if (b->status) return;
    if (conv_init(&t->conv, conv_pick(like ? like : t->model, CONV_WEB), &e) < 0)
        bad_set(b, 503, NULL, "no_memory", "no memory");
    for (size_t i = 0; i < n && !b->status; i++) {
        struct fields m = fields_item(&f, "messages", messages, i);
        if (!b->status) read_message(t, &m);
    }
    if (!b->status && !vote && t->conv.message[t->conv.n - 1].role != CONV_USER)
        fields_bad(&f, "messages", "must end with the user: the model answers");
}

void talk_free(struct talk *t)
{
    if (t->conv.tpl) conv_fini(&t->conv);
}

int talk_prompt(struct buf *out, const char **stop, const struct talk *t, struct err *e)
{
    struct conv open;
    *stop = conv_stop(t->conv.tpl);
    int rc = conv_copy(&open, &t->conv, e);
    if (rc < 0) return rc;
    rc = conv_add(&open, CONV_ASSISTANT, NULL, 0, false, e);
    if (rc >= 0) rc = conv_prompt(&open, out, NULL, e);
    conv_fini(&open);
    return rc;
}

json_t *talk_state(const struct talk *t, const char *answer)
{
    const struct conv *c = &t->conv;
    const struct conv_template *tpl = c->tpl;
    json_t *messages = json_array();
    for (size_t i = 0; i < c->n; i++)
        json_array_append_new(messages, json_pack("[ss]", tpl->role[c->message[i].role], c->message[i].text));
    if (answer) json_array_append_new(messages, json_pack("[ss]", tpl->role[CONV_ASSISTANT], answer));
    return json_pack("{ss,s[ss],so,si,ss,ss?}", "system", tpl->system, "roles", tpl->role[0], tpl->role[1], "messages",
                     messages, "offset", (int)c->offset, "sep", tpl->sep, "sep2", tpl->sep2);
}

json_t *talk_time(double s) { return json_real(round(s * 1e4) / 1e4); }

char *talk_line(json_t *v)
{
    char *text = v ? json_dumps(v, JSON_ENSURE_ASCII | JSON_REAL_PRECISION(14)) : NULL;
    json_decref(v);
    for (char *u = text; u && (u = strchr(u, '\\')) != NULL && u[1]; u += 2) /* Python's escapes are in lower case */
        for (int i = 2; u[1] == 'u' && i < 6; i++)
            if (u[i] >= 'A' && u[i] <= 'F') u[i] = (char)(u[i] - 'A' + 'a');
    return text;
}
