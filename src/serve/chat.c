/* See chat.h. */
#include "serve/chat.h"

#include <stdlib.h>
#include <string.h>

#include "text/regex.h"
#include "text/stream.h"

enum { TEXT_MAX = 1 << 24 };
static const char image_mark[] = "<image>";

static int count_marks(const char *text)
{
    int n = 0;
    for (; text && (text = strstr(text, image_mark)) != NULL; text++) n++;
    return n;
}

/* ---- what both kinds of requests have */

static void read_stop(struct chat *c, const struct fields *f)
{
    const json_t *v = json_object_get(f->o, "stop"), *item;
    size_t i;
    if (!v || json_is_null(v)) return;
    if (json_is_string(v) && json_string_length(v) <= STOP_MAX) {
        c->stop[0] = json_string_value(v);
        c->sampling.n_stop = *c->stop[0] != 0;
    } else if (json_is_string(v)) {
        fields_bad(f, "stop", "is longer than %d bytes", STOP_MAX);
    } else if (!json_is_array(v) || json_array_size(v) > CHAT_STOPS_MAX) {
        fields_bad(f, "stop", "is neither a string nor an array of at most %d", CHAT_STOPS_MAX);
    } else {
        json_array_foreach(v, i, item) {
            char name[24];
            snprintf(name, sizeof name, "stop[%zu]", i);
            if (!json_is_string(item)) fields_bad(f, name, "is %s, want a string", fields_kind(item));
            else if (json_string_length(item) > STOP_MAX) fields_bad(f, name, "is longer than %d bytes", STOP_MAX);
            else if (json_string_length(item)) c->stop[c->sampling.n_stop++] = json_string_value(item);
        }
    }
}

/* {"50256": -100}: what is added to the logits of tokens. */
static void read_bias(struct chat *c, const struct fields *f)
{
    struct fields bias;
    const char *key;
    json_t *v;
    if (!fields_object(f, "logit_bias", &bias)) return;
    size_t n = json_object_size(bias.o);
    if (n > CHAT_BIAS_MAX) fields_bad(f, "logit_bias", "has %zu tokens, at most %d are accepted", n, CHAT_BIAS_MAX);
    if (f->bad->status || !n) return;
    c->sampling.bias = c->bias = calloc(n, sizeof *c->bias);
    if (!c->bias) bad_set(f->bad, 503, NULL, "no_memory", "no memory");
    json_object_foreach((json_t *)(uintptr_t)bias.o, key, v) {
        double by = 0;
        if (f->bad->status) return;
        if (!*key || strspn(key, "0123456789") != strlen(key) || strlen(key) > 9)
            fields_bad(f, "logit_bias", "has '%.20s', which is no token's number", key);
        else if (fields_real(&bias, key, &by, -100, 100))
            c->bias[c->sampling.n_bias++] = (struct llava_bias){ (int32_t)strtol(key, NULL, 10), (float)by };
    }
}

/* What other servers know and would change the answer here; `neutral` would not. */
static void refuse_others(const struct fields *f)
{
    static const struct { const char *key; double neutral; } rows[] = {
        { "typical_p", 1 },       { "length_penalty", 1 }, { "tfs_z", 1 },          { "top_a", 0 }, { "mirostat", 0 },
        { "xtc_probability", 0 }, { "dry_multiplier", 0 }, { "dynatemp_range", 0 },
    };
    static const char *const on[] = { "skip_special_tokens", "add_special_tokens", "add_generation_prompt" };
    const bool goes_on = json_is_true(json_object_get(f->o, "continue_final_message"));
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const json_t *v = json_object_get(f->o, rows[i].key);
        if (!v || json_is_null(v) || (json_is_number(v) && json_number_value(v) == rows[i].neutral)) continue;
        fields_bad(f, rows[i].key, "is not supported; %g, which changes nothing, is accepted", rows[i].neutral);
    }
    for (size_t i = 0; i < sizeof on / sizeof *on - goes_on; i++) {
        const json_t *v = json_object_get(f->o, on[i]);
        if (v && !json_is_null(v) && !json_is_true(v)) fields_bad(f, on[i], "is not supported but as true");
    }
}

/* What is not done here at all. */
static void refuse_rest(const struct fields *f, int64_t n)
{
    static const char *const refused[] = {
        "suffix", "functions", "audio", "prediction", "web_search_options", "bad_words", "logits_processors",
        "use_beam_search", "prompt_logprobs", "chat_template", "documents", "include_stop_str_in_output",
        "truncate_prompt_tokens",
    };
    json_t *modalities = NULL, *v;
    int64_t best = 1;
    size_t i;
    for (i = 0; i < sizeof refused / sizeof *refused; i++) fields_refuse(f, refused[i]);
    if (fields_int(f, "best_of", &best, 0, INT32_MAX) && best > n)
        fields_bad(f, "best_of", "is not supported; no more than 'n' is accepted");
    fields_array(f, "modalities", &modalities);
    json_array_foreach(modalities, i, v)
        if (!json_is_string(v) || strcmp(json_string_value(v), "text") != 0)
            fields_bad(f, "modalities", "has something that is not 'text', which is all that there is");
}

/* What other servers know and do here too, by their names. */
static void read_others(struct chat *c, const struct fields *f)
{
    struct llava_sampling *s = &c->sampling;
    double least = 0, repetition = 1;
    int64_t min = 0;
    json_t *ends = NULL, *v;
    size_t i;
    fields_real(f, "min_p", &least, 0, 1);
    fields_real(f, "repeat_penalty", &repetition, 0.01, 100);
    fields_real(f, "repetition_penalty", &repetition, 0.01, 100);
    fields_int(f, "min_tokens", &min, 0, INT32_MAX);
    fields_bool(f, "ignore_eos", &s->no_end);
    fields_array(f, "stop_token_ids", &ends);
    if (json_array_size(ends) > CHAT_ENDS_MAX)
        fields_bad(f, "stop_token_ids", "has more than %d tokens", CHAT_ENDS_MAX);
    if (f->bad->status) return;
    json_array_foreach(ends, i, v) {
        const json_int_t id = json_integer_value(v);
        if (!json_is_integer(v)) fields_bad(f, "stop_token_ids", "has %s, want whole numbers", fields_kind(v));
        else if (id < 0 || id > INT32_MAX) fields_bad(f, "stop_token_ids", "has what is no token's number");
        else c->ends[s->n_stop_ids++] = (int32_t)id;
    }
    s->min_p = (float)least;
    s->repetition_penalty = (float)repetition;
    s->min_new_tokens = (int)min;
}

static void read_sampling(struct chat *c, const struct fields *f)
{
    double presence = 0, frequency = 0;
    double temperature = 1, top_p = 1;
    int64_t n = 1, top_k = 0, seed = 0;
    fields_real(f, "temperature", &temperature, 0, 2);
    fields_real(f, "top_p", &top_p, 0, 1);
    fields_int(f, "top_k", &top_k, -1, INT32_MAX);
    fields_int(f, "n", &n, 1, CHAT_ANSWERS_MAX);
    c->seeded = fields_int(f, "seed", &seed, INT64_MIN, INT64_MAX);
    fields_bool(f, "stream", &c->stream);
    struct fields options;
    if (fields_object(f, "stream_options", &options)) {
        fields_bool(&options, "include_usage", &c->usage);
        if (!c->stream) fields_bad(f, "stream_options", "goes with 'stream' only");
    }
    read_stop(c, f);
    read_bias(c, f);
    read_others(c, f);
    refuse_others(f);
    fields_real(f, "presence_penalty", &presence, -2, 2);
    fields_real(f, "frequency_penalty", &frequency, -2, 2);
    refuse_rest(f, n);
    c->n = (int)n;
    c->sampling.temperature = (float)temperature;
    c->sampling.top_p = top_p > 1e-6 ? (float)top_p : 1e-6f;
    c->sampling.top_k = top_k > 0 ? (int)top_k : 0;
    c->sampling.seed = (uint64_t)seed;
    c->sampling.presence_penalty = (float)presence;
    c->sampling.frequency_penalty = (float)frequency;
}

static void read_most(struct chat *c, const struct fields *f, int64_t most)
{
    fields_int(f, "max_tokens", &most, 1, INT32_MAX);
    fields_int(f, "max_completion_tokens", &most, 1, INT32_MAX);
    c->sampling.max_new_tokens = (int)most;
}

/* ---- what answers must be: a schema or a grammar, by whichever name */

enum form { FORM_SCHEMA, FORM_GRAMMAR, FORM_REGEX, FORM_CHOICE, FORM_ANY };
struct form_name { const char *key; enum form form; };

/* Takes `text`. */
static void set_form(struct chat *c, const struct fields *f, const char *key, bool schema, char *text)
{
    if (c->form && !f->bad->status) fields_bad(f, key, "goes without '%s' only", c->form);
    else if (!text) bad_set(f->bad, 503, NULL, "no_memory", "no memory");
    if (f->bad->status) {
        free(text);
        return;
    }
    *(schema ? &c->schema : &c->grammar) = text;
    c->form = key;
}

/* A grammar of which these strings are all texts. */
static char *grammar_of(const struct fields *f, const char *key, const json_t *list)
{
    struct buf b = buf_make(TEXT_MAX);
    const json_t *v;
    size_t i;
    buf_str(&b, "root ::= ");
    json_array_foreach(list, i, v) {
        const char *p = json_string_value(v);
        if (!p) fields_bad(f, key, "has %s, want strings", fields_kind(v));
        buf_str(&b, i ? " | \"" : "\"");
        for (; p && *p; p++) {
            if (*p == '"' || *p == '\\' || (unsigned char)*p < 0x20) buf_fmt(&b, "\\x%02x", (unsigned char)*p);
            else buf_chr(&b, *p);
        }
        buf_chr(&b, '"');
    }
    if (!json_array_size(list)) fields_bad(f, key, "has nothing to choose from");
    return buf_take(&b, NULL);
}

/* A grammar of what a regular expression matches as a whole. */
static char *grammar_of_regex(const struct fields *f, const char *key, const char *pattern)
{
    struct buf b = buf_make(TEXT_MAX);
    struct err e = { 0 };
    buf_str(&b, "root ::= ");
    if (regex_write(&b, pattern, strlen(pattern), false, &e) < 0) fields_bad(f, key, "is not taken: %s", e.msg);
    return buf_take(&b, NULL);
}

/* The member `key`, which says it in the way of `form`. */
static void read_form(struct chat *c, const struct fields *f, const char *key, enum form form)
{
    struct fields schema;
    const char *text = "";
    json_t *list = NULL;
    bool any = false;
    const bool written = json_is_string(json_object_get(f->o, key)); /* as text */
    if (form == FORM_ANY && fields_bool(f, key, &any) && any)
        set_form(c, f, key, true, strdup("{\"type\":\"object\"}"));
    else if (form == FORM_SCHEMA && !written && fields_object(f, key, &schema) && schema.o)
        set_form(c, f, key, true, json_dumps(schema.o, JSON_COMPACT));
    else if (form == FORM_REGEX && fields_str(f, key, &text) && *text)
        set_form(c, f, key, false, grammar_of_regex(f, key, text));
    else if (form == FORM_CHOICE && fields_array(f, key, &list))
        set_form(c, f, key, false, grammar_of(f, key, list));
    else if ((form == FORM_GRAMMAR || (form == FORM_SCHEMA && written)) && fields_str(f, key, &text) && *text)
        set_form(c, f, key, form == FORM_SCHEMA, strdup(text));
}

/* {"type": "json_schema", "json_schema": {"schema": ...}}; a response has what is in json_schema beside the type. */
static void read_format(struct chat *c, const struct fields *f, const char *key, bool flat)
{
    struct fields format, inner;
    const char *type = "";
    if (!fields_object(f, key, &format)) return;
    if (!fields_str(&format, "type", &type)) fields_need(&format, "type");
    const bool object = !strcmp(type, "json_object"), schema = !strcmp(type, "json_schema");
    if (!object && !schema && strcmp(type, "text") != 0)
        fields_bad(&format, "type", "is none of text, json_object, json_schema");
    inner = format;
    if (schema && !flat && !fields_object(&format, "json_schema", &inner)) fields_need(&format, "json_schema");
    if (schema && !f->bad->status && !json_is_object(json_object_get(inner.o, "schema")))
        fields_need(&inner, "schema");
    /* {"type": "json_object", "schema": ...}, as other servers have it */
    if ((object || schema) && !f->bad->status) read_form(c, &inner, "schema", FORM_SCHEMA);
    if (object && !f->bad->status && !c->form) set_form(c, f, key, true, strdup("{\"type\":\"object\"}"));
    if (c->form) c->form = flat ? "text.format" : key;
}

/* As OpenAI, llama.cpp, vLLM and SGLang call it. */
static void read_forms(struct chat *c, const struct fields *f)
{
    static const struct form_name names[] = {
        { "json_schema", FORM_SCHEMA },     { "guided_json", FORM_SCHEMA }, { "grammar", FORM_GRAMMAR },
        { "guided_grammar", FORM_GRAMMAR }, { "ebnf", FORM_GRAMMAR },       { "guided_choice", FORM_CHOICE },
        { "guided_regex", FORM_REGEX },     { "regex", FORM_REGEX },
    }, inside[] = {
        { "json", FORM_SCHEMA }, { "grammar", FORM_GRAMMAR }, { "choice", FORM_CHOICE }, { "json_object", FORM_ANY },
        { "regex", FORM_REGEX },
    };
    struct fields structured;
    read_format(c, f, "response_format", false);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) read_form(c, f, names[i].key, names[i].form);
    if (!fields_object(f, "structured_outputs", &structured)) return;
    for (size_t i = 0; i < sizeof inside / sizeof *inside; i++)
        read_form(c, &structured, inside[i].key, inside[i].form);
    fields_refuse(&structured, "structural_tag");
}

/* ---- chats */

static void add_picture(struct chat *c, struct chat_turn *t, const struct fields *part)
{
    struct fields image;
    const char *url = NULL;
    /* {"image_url": {"url": ...}}, and as responses and some clients have it {"image_url": "..."} */
    if (json_is_string(json_object_get(part->o, "image_url"))) fields_str(part, "image_url", &url);
    else if (!fields_object(part, "image_url", &image)) fields_need(part, "image_url");
    else if (!fields_str(&image, "url", &url)) fields_need(&image, "url");
    if (!url) return;
    if (c->n_pictures == CHAT_PICTURES_MAX) {
        bad_set(part->bad, 400, c->where, "too_many_images", "more than %d pictures in '%s'", CHAT_PICTURES_MAX,
                c->where);
        return;
    }
    struct chat_picture *p = &c->picture[c->n_pictures++];
    p->url = url;
    snprintf(p->param, sizeof p->param, "%.80s.image_url", part->path);
    t->n_pictures++;
}

/* Parts of messages, of chats and of responses. */
enum part_kind { PART_TEXT, PART_PICTURE, PART_OTHER };
static enum part_kind kind_of(const char *type, const char **field)
{
    static const struct { const char *type, *field; enum part_kind kind; } kinds[] = {
        { "text", "text", PART_TEXT },        { "image_url", "image_url", PART_PICTURE },
        { "input_text", "text", PART_TEXT },  { "input_image", "image_url", PART_PICTURE },
        { "output_text", "text", PART_TEXT }, { "refusal", "refusal", PART_TEXT },
    };
    for (size_t i = 0; type && i < sizeof kinds / sizeof *kinds; i++) {
        if (strcmp(type, kinds[i].type) != 0) continue;
        *field = kinds[i].field;
        return kinds[i].kind;
    }
    return PART_OTHER;
}

/* The parts of a message in their order. Pictures go before all text, as LLaVA was trained, unless they stand between
 * texts: then where they stand. */
static void read_parts(struct chat *c, struct chat_turn *t, const struct fields *m, const json_t *parts)
{
    size_t n = json_array_size(parts), first_text = n, last_text = 0;
    const char *field;
    bool between = false;
    for (size_t i = 0; i < n; i++) {
        const char *type = json_string_value(json_object_get(json_array_get(parts, i), "type"));
        if (kind_of(type, &field) != PART_TEXT) continue;
        if (first_text == n) first_text = i;
        last_text = i;
    }
    for (size_t i = 0; i < n && !m->bad->status; i++) {
        struct fields part = fields_item(m, "content", parts, i);
        const char *type = "", *text = "";
        if (m->bad->status) return;
        if (!fields_str(&part, "type", &type)) fields_need(&part, "type");
        const enum part_kind kind = kind_of(type, &field);
        if (kind == PART_TEXT) {
            if (!fields_str(&part, field, &text)) fields_need(&part, field);
            if (t->text.n && t->text.p[t->text.n - 1] != '\n') buf_chr(&t->text, '\n');
            buf_str(&t->text, text);
        } else if (kind == PART_PICTURE) {
            bool inside = i > first_text && i < last_text;
            between |= inside;
            add_picture(c, t, &part);
            if (inside) buf_fmt(&t->text, "%s%s\n", t->text.n ? "\n" : "", image_mark);
        } else if (*type) {
            fields_bad(&part, "type", "is '%.40s', want text or image_url", type);
        }
    }
    if (between && count_marks(t->text.p) != t->n_pictures)
        fields_bad(m, "content", "has pictures both between texts and outside them");
}

static struct chat_turn *add_turn(struct chat *c, enum conv_role role)
{
    if (!c->n_turns && role == CONV_ASSISTANT) add_turn(c, CONV_USER);
    struct chat_turn *last = c->n_turns ? &c->turn[c->n_turns - 1] : NULL;
    if (last && last->role == role) { /* templates go by turns: two of one side are one */
        if (last->text.n) buf_chr(&last->text, '\n');
        return last;
    }
    c->turn[c->n_turns] = (struct chat_turn){ .role = role, .text = buf_make(TEXT_MAX) };
    return &c->turn[c->n_turns++];
}

/* Its content as text, without pictures. */
static void read_result(struct chat *c, const struct fields *m, const char *key)
{
    struct chat_turn own = { .text = buf_make(TEXT_MAX) }, *t = add_turn(c, CONV_USER);
    const char *text = "";
    json_t *parts = NULL;
    if (json_is_array(json_object_get(m->o, key))) {
        fields_array(m, key, &parts);
        read_parts(c, &own, m, parts);
        if (own.n_pictures) fields_bad(m, key, "has a picture; only the user's messages may");
        text = own.text.p ? own.text.p : "";
    } else if (!fields_str(m, key, &text)) {
        fields_need(m, key);
    }
    if (count_marks(text)) fields_bad(m, key, "has '<image>' in its text, which stands for a picture");
    tools_put_result(&t->text, text);
    buf_free(&own.text);
}

/* What is not a message of a speaker's: a call, what came of one, thoughts. False: it is. */
static bool read_item(struct chat *c, const struct fields *m)
{
    const char *role = json_string_value(json_object_get(m->o, "role"));
    const char *type = json_string_value(json_object_get(m->o, "type"));
    if (role && (!strcmp(role, "tool") || !strcmp(role, "function"))) read_result(c, m, "content");
    else if (role || !type) return false;
    else if (!strcmp(type, "function_call_output")) read_result(c, m, "output");
    else if (!strcmp(type, "function_call")) tools_put_call(&add_turn(c, CONV_ASSISTANT)->text, m);
    else return !strcmp(type, "reasoning");
    return true;
}

static void read_calls(struct chat_turn *t, const struct fields *m)
{
    json_t *calls = NULL;
    fields_array(m, "tool_calls", &calls);
    for (size_t i = 0; i < json_array_size(calls) && !m->bad->status; i++) {
        struct fields call = fields_item(m, "tool_calls", calls, i), function;
        if (m->bad->status) return;
        if (!fields_object(&call, "function", &function)) fields_need(&call, "function");
        else tools_put_call(&t->text, &function);
    }
}

static void read_message(struct chat *c, const struct fields *m)
{
    const char *role = "", *text = NULL;
    json_t *parts = NULL;
    struct chat_turn system = { .text = c->system }, *t;
    if (read_item(c, m)) return;
    if (!fields_str(m, "role", &role)) fields_need(m, "role");
    bool is_system = !strcmp(role, "system") || !strcmp(role, "developer"), user = !strcmp(role, "user");
    if (!is_system && !user && strcmp(role, "assistant") != 0)
        fields_bad(m, "role", "is '%.40s', want system, user, assistant or tool", role);
    if (m->bad->status) return;
    t = is_system ? &system : add_turn(c, user ? CONV_USER : CONV_ASSISTANT);
    if (is_system && t->text.n) buf_chr(&t->text, '\n');
    if (json_is_array(json_object_get(m->o, "content"))) {
        fields_array(m, "content", &parts);
        read_parts(c, t, m, parts);
        if (t->n_pictures && !user) fields_bad(m, "content", "has a picture; only the user's messages may");
    } else if (fields_str(m, "content", &text)) {
        buf_str(&t->text, text);
    } else if (user || is_system) {
        fields_need(m, "content");
    }
    if (!user && !is_system) read_calls(t, m);
    fields_refuse(m, "function_call");
    if (is_system) c->system = system.text;
    if (t->text.failed) fields_bad(m, "content", "is too long");
    int marks = count_marks(t->text.p);
    if (marks && marks != t->n_pictures)
        fields_bad(m, "content",
                   "has '<image>' in its text, which stands for a picture; pictures go in image_url parts");
}

static void read_tools(struct chat *c, const struct fields *f, bool flat)
{
    char *schema = tools_read(&c->tools, f, flat);
    if (schema) set_form(c, f, "tools", true, schema);
}

/* A conversation may begin with either side (templates want a question first: an empty one), and end with the beginning
 * of the answer. */
static void read_messages(struct chat *c, const struct fields *f, const json_t *messages)
{
    const char *key = c->where;
    const size_t n = json_array_size(messages);
    int last = 0; /* messages of the assistant's in a row */
    if (n == 0 || n > CHAT_TURNS_MAX) fields_bad(f, key, "has %zu messages, want 1 to %d", n, CHAT_TURNS_MAX);
    if (f->bad->status) return;
    c->turn = calloc(n + 1, sizeof *c->turn);
    if (!c->turn) bad_set(f->bad, 503, NULL, "no_memory", "no memory");
    for (size_t i = 0; i < n && !f->bad->status; i++) {
        struct fields m = fields_item(f, key, messages, i);
        const char *role = json_string_value(json_object_get(m.o, "role"));
        last = role && !strcmp(role, "assistant") ? last + 1 : 0;
        if (!f->bad->status) read_message(c, &m);
    }
    if (!c->n_turns && !f->bad->status) add_turn(c, CONV_USER);
    if (last > 1 && !f->bad->status) fields_bad(f, key, "ends with %d messages of the assistant, want at most 1", last);
}

bool chat_begins(const struct chat *c)
{
    return c->n_turns && c->turn[c->n_turns - 1].role == CONV_ASSISTANT && c->turn[c->n_turns - 1].text.n;
}

static void start(struct chat *c, const struct fields *f, const char *where)
{
    *c = (struct chat){ .system = buf_make(TEXT_MAX), .sampling = llava_sampling_default(), .where = where };
    fields_str(f, "model", &c->model);
}

void chat_read(struct chat *c, const json_t *body, struct bad *b)
{
    struct fields f = fields_at(body, b);
    json_t *messages = NULL;
    int64_t top = 0;
    start(c, &f, "messages");
    if (!fields_array(&f, "messages", &messages)) fields_need(&f, "messages");
    read_sampling(c, &f);
    read_most(c, &f, INT32_MAX);
    fields_bool(&f, "logprobs", &c->logprobs);
    fields_refuse(&f, "echo");
    if (fields_int(&f, "top_logprobs", &top, 0, LLAVA_TOP_MAX) && top && !c->logprobs)
        fields_bad(&f, "top_logprobs", "goes with 'logprobs' only");
    c->top_logprobs = (int)top;
    read_forms(c, &f);
    read_tools(c, &f, false);
    read_messages(c, &f, messages);
}

/* ---- completions */

/* An array of tokens' numbers. */
static void read_ids(struct chat *c, const struct fields *f, const char *key, const json_t *list)
{
    struct chat_prompt *p = &c->prompt[c->n_prompts++];
    const json_t *v;
    size_t i;
    p->ids = calloc(json_array_size(list) + 1, sizeof *p->ids);
    if (!p->ids) bad_set(f->bad, 503, NULL, "no_memory", "no memory");
    if (!json_array_size(list)) fields_bad(f, key, "is empty");
    json_array_foreach(list, i, v) {
        const json_int_t id = json_integer_value(v);
        if (!json_is_integer(v)) fields_bad(f, key, "has %s among its tokens, want whole numbers", fields_kind(v));
        else if (id < 0 || id > INT32_MAX) fields_bad(f, key, "has %lld, which is no token's number", (long long)id);
        if (f->bad->status) return;
        p->ids[p->n_ids++] = (int32_t)id;
    }
}

/* A text, its tokens, or several of either. */
static void read_prompts(struct chat *c, const struct fields *f)
{
    const json_t *prompt = json_object_get(f->o, "prompt"), *item;
    const size_t n = json_array_size(prompt);
    size_t i;
    if (!prompt || json_is_null(prompt)) {
        fields_need(f, "prompt");
    } else if (json_is_string(prompt)) {
        c->prompt[c->n_prompts++].text = json_string_value(prompt);
    } else if (n && json_is_integer(json_array_get(prompt, 0))) {
        read_ids(c, f, "prompt", prompt);
    } else if (!n || n > CHAT_ANSWERS_MAX) {
        fields_bad(f, "prompt", "is neither a string, nor tokens, nor an array of 1 to %d of either", CHAT_ANSWERS_MAX);
    } else {
        json_array_foreach(prompt, i, item) {
            char name[32];
            snprintf(name, sizeof name, "prompt[%zu]", i);
            if (json_is_string(item)) c->prompt[c->n_prompts++].text = json_string_value(item);
            else if (json_is_array(item)) read_ids(c, f, name, item);
            else fields_bad(f, name, "is %s, want a string or tokens", fields_kind(item));
            if (f->bad->status) return;
        }
    }
}

void tokens_read(struct chat *c, const json_t *body, struct bad *b)
{
    struct fields f = fields_at(body, b);
    json_t *tokens = NULL;
    start(c, &f, "tokens");
    if (!fields_array(&f, "tokens", &tokens)) fields_need(&f, "tokens");
    else if (json_array_size(tokens)) read_ids(c, &f, "tokens", tokens);
}

void completion_read(struct chat *c, const json_t *body, struct bad *b)
{
    struct fields f = fields_at(body, b);
    int64_t top = 0;
    start(c, &f, "prompt");
    read_sampling(c, &f);
    read_most(c, &f, 16);
    c->logprobs = fields_int(&f, "logprobs", &top, 0, LLAVA_TOP_MAX);
    fields_bool(&f, "echo", &c->echo);
    c->top_logprobs = (int)top;
    read_forms(c, &f);
    fields_refuse(&f, "tools");
    if (!b->status) read_prompts(c, &f);
    for (int p = 0; p < c->n_prompts; p++)
        if (count_marks(c->prompt[p].text))
            fields_bad(&f, "prompt", "has '<image>'; pictures go to /v1/chat/completions");
    if (c->n_prompts * c->n > CHAT_ANSWERS_MAX)
        fields_bad(&f, "n", "times the number of prompts is over %d", CHAT_ANSWERS_MAX);
}

/* ---- responses */

/* What an item_reference leads to is there already (response.c). */
static void check_items(const struct fields *f, json_t *items)
{
    static const char *const known[] = { "message", "function_call", "function_call_output", "reasoning" };
    size_t i;
    json_t *v;
    json_array_foreach(items, i, v) {
        const char *type = json_string_value(json_object_get(v, "type"));
        char name[32];
        bool any = !type;
        for (size_t k = 0; k < sizeof known / sizeof *known && !any; k++) any = !strcmp(type, known[k]);
        snprintf(name, sizeof name, "input[%zu]", i);
        if (!any) fields_bad(f, name, "is of type '%.40s', want a message or a call", type);
    }
}

static void refuse_more(const struct fields *f)
{
    const char *cut = "";
    fields_refuse(f, "conversation");
    fields_refuse(f, "background");
    fields_refuse(f, "prompt");
    if (fields_str(f, "truncation", &cut) && strcmp(cut, "disabled") != 0)
        fields_bad(f, "truncation", "is not supported but as 'disabled'");
}

static void read_included(struct chat *c, const struct fields *f)
{
    json_t *include = NULL, *v;
    int64_t top = 0;
    size_t i;
    fields_array(f, "include", &include);
    json_array_foreach(include, i, v)
        c->logprobs |= json_is_string(v) && !strcmp(json_string_value(v), "message.output_text.logprobs");
    if (fields_int(f, "top_logprobs", &top, 0, LLAVA_TOP_MAX) && top) c->logprobs = true;
    c->top_logprobs = (int)top;
}

/* What it is asked for is part of a response, so that it is kept until that is written: little, and as text. */
static void keep_repeated(struct chat *c, const json_t *body, struct bad *b)
{
    enum { REPEATED_MAX = 1 << 20 };
    static const char *const keys[] = {
        "instructions", "max_output_tokens", "max_tool_calls", "metadata", "parallel_tool_calls",
        "previous_response_id", "prompt_cache_key", "safety_identifier", "temperature", "text", "tool_choice", "tools",
        "top_logprobs", "top_p", "user",
    };
    json_t *all = json_object();
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        json_t *v = json_object_get(body, keys[i]);
        if (v && !json_is_null(v)) json_object_set(all, keys[i], v);
    }
    if (json_dumpb(all, NULL, 0, JSON_COMPACT) > REPEATED_MAX)
        bad_set(b, 400, NULL, "invalid_value",
                "what a response repeats of its request, such as 'metadata' and 'tools', is more than %d bytes",
                REPEATED_MAX);
    else if (!(c->repeated = json_dumps(all, JSON_COMPACT))) bad_set(b, 503, NULL, "no_memory", "no memory");
    json_decref(all);
}

void response_read(struct chat *c, const json_t *body, struct bad *b)
{
    struct fields f = fields_at(body, b), text, metadata;
    json_t *input = json_object_get(body, "input");
    const char *first = NULL;
    int64_t most = INT32_MAX;
    start(c, &f, "input");
    if (!input || json_is_null(input)) fields_need(&f, "input");
    else if (!json_is_array(input)) fields_bad(&f, "input", "is %s, want a string or an array", fields_kind(input));
    refuse_more(&f);
    fields_object(&f, "metadata", &metadata);
    read_sampling(c, &f);
    fields_int(&f, "max_output_tokens", &most, 1, INT32_MAX);
    c->sampling.max_new_tokens = (int)most;
    if (c->n != 1) fields_bad(&f, "n", "is %d; a response is one answer", c->n);
    read_included(c, &f);
    c->kept = true;
    fields_bool(&f, "store", &c->kept);
    if (fields_object(&f, "text", &text)) read_format(c, &text, "format", true);
    read_tools(c, &f, true);
    if (fields_str(&f, "instructions", &first)) buf_str(&c->system, first);
    check_items(&f, input);
    if (!b->status) read_messages(c, &f, input);
    if (!b->status) keep_repeated(c, body, b);
}

struct chat chat_part(struct chat *c)
{
    struct chat asked = *c;
    asked.repeated = NULL;
    c->turn = NULL;
    c->n_turns = c->n_prompts = 0;
    c->schema = c->grammar = NULL;
    c->bias = NULL;
    c->system = c->tools.words = (struct buf){ 0 };
    return asked;
}

void chat_free(struct chat *c)
{
    for (int i = 0; i < c->n_turns; i++) buf_free(&c->turn[i].text);
    for (int i = 0; i < c->n_prompts; i++) free(c->prompt[i].ids);
    free(c->turn);
    free(c->schema);
    free(c->grammar);
    free(c->bias);
    tools_fini(&c->tools);
    free(c->repeated);
    buf_free(&c->system);
    c->turn = NULL;
    c->schema = c->grammar = NULL;
    c->repeated = NULL;
    c->bias = NULL;
    c->n_turns = c->n_prompts = 0;
}

/* ---- prompts */

/* A turn's text as the model reads it: pictures before it or where it says. */
static void turn_text(struct buf *out, const struct chat_turn *t, bool marks)
{
    const char *mark = marks ? "<im_start><image><im_end>" : image_mark, *text = t->text.p ? t->text.p : "";
    if (!count_marks(text))
        for (int i = 0; i < t->n_pictures; i++) buf_fmt(out, "%s\n", mark);
    for (const char *at; (at = strstr(text, image_mark)) != NULL; text = at + sizeof image_mark - 1) {
        buf_add(out, text, (size_t)(at - text));
        buf_str(out, mark);
    }
    buf_str(out, text);
}

/* Up to where the answer goes on, without what would end its last message. */
static int write_prompt(struct buf *out, const struct conv *conv, struct err *e)
{
    const struct conv_message *last = &conv->message[conv->n - 1];
    struct conv_span *span = calloc(conv->n, sizeof *span);
    int rc = span ? conv_prompt(conv, out, span, e) : err_set(e, ERR_NOMEM, "no memory for a prompt");
    if (rc >= 0 && last->n) {
        const size_t space = conv->tpl->style != CONV_MPT;
        out->n = span[conv->n - 1].begin + space + last->n;
        out->p[out->n] = 0;
    }
    free(span);
    return rc;
}

void chat_prompt(struct buf *out, const char **stop, const struct chat *c, const char *name, bool marks, struct bad *b)
{
    const struct conv_template *tpl = conv_find(name);
    struct conv_template own = *tpl;
    struct buf system = buf_make(2 * TEXT_MAX);
    struct conv conv = { 0 };
    struct err e = { 0 };
    /* Templates without a word of the system's own have no place for it: then it goes before the first question. */
    const bool told = c->system.n || c->tools.words.n, before = told && !*tpl->system;
    if (c->system.n && !before && tpl->style == CONV_MPT) buf_str(&system, "<|im_start|>system\n");
    if (told) buf_str(&system, c->system.n ? c->system.p : tpl->system);
    if (system.n && c->tools.words.n) buf_str(&system, "\n\n");
    if (c->tools.words.n) buf_add(&system, c->tools.words.p, c->tools.words.n);
    if (told && !before) own.system = system.p;
    int rc = conv_init(&conv, &own, &e);
    for (int i = 0; i < c->n_turns && rc >= 0; i++) {
        struct buf text = buf_make(TEXT_MAX);
        if (!i && before) buf_fmt(&text, "%s\n\n", system.p);
        turn_text(&text, &c->turn[i], marks);
        rc = buf_check(&text, "a message", &e);
        if (rc >= 0) rc = conv_add(&conv, c->turn[i].role, text.p ? text.p : "", text.n, false, &e);
        buf_free(&text);
    }
    const bool begun = c->n_turns && c->turn[c->n_turns - 1].role == CONV_ASSISTANT;
    if (rc >= 0 && !begun) rc = conv_add(&conv, CONV_ASSISTANT, NULL, 0, false, &e);
    if (rc >= 0) rc = write_prompt(out, &conv, &e);
    if (rc < 0) bad_set(b, 400, c->where, NULL, "%s", e.msg);
    *stop = conv_stop(tpl);
    conv_fini(&conv);
    buf_free(&system);
}
