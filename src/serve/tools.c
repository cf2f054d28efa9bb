/* See tools.h. */
#include "serve/tools.h"

#include <stdlib.h>
#include <string.h>

enum { WORDS_MAX = 1 << 20 };

/* ---- requests */

/* A copy of a schema in which references to its root lead to `where` in another's. */
static json_t *moved(const json_t *v, const char *where)
{
    json_t *copy, *item;
    const char *key;
    size_t i;
    if (json_is_array(v)) {
        copy = json_array();
        json_array_foreach(v, i, item) json_array_append_new(copy, moved(item, where));
        return copy;
    }
    if (!json_is_object(v)) return json_incref((json_t *)(uintptr_t)v);
    copy = json_object();
    json_object_foreach((json_t *)(uintptr_t)v, key, item) {
        const char *ref = !strcmp(key, "$ref") ? json_string_value(item) : NULL;
        json_object_set_new(copy, key, ref && *ref == '#' ? json_sprintf("%s%s", where, ref + 1) : moved(item, where));
    }
    return copy;
}

/* The schema of a function's arguments, which are an object. */
static json_t *arguments_of(const struct fields *function, const char *where)
{
    const json_t *given = json_object_get(function->o, "parameters");
    json_t *v = json_is_object(given) ? moved(given, where) : json_object();
    if (given && !json_is_null(given) && !json_is_object(given))
        fields_bad(function, "parameters", "is %s, want an object", fields_kind(given));
    if (v && !json_object_get(v, "type") && !json_object_get(v, "$ref") && !json_object_get(v, "anyOf"))
        json_object_set_new(v, "type", json_string("object"));
    return v;
}

/* {"name": "f", "arguments": {...}} */
static json_t *call_of(const struct fields *function, const char *name, const char *where)
{
    return json_pack("{ss,s{s{ss},so},s[ss],sb}", "type", "object", "properties", "name", "const", name, "arguments",
                     arguments_of(function, where), "required", "name", "arguments", "additionalProperties", 0);
}

/* Where a tool's members are, and its name; false: *f->bad says what is wrong. */
static bool function_of(const struct fields *f, const json_t *list, size_t i, bool flat, struct fields *ret,
                        const char **name)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-";
    struct fields tool = fields_item(f, "tools", list, i);
    const char *type = "function";
    *name = NULL;
    *ret = tool;
    if (f->bad->status) return false;
    fields_str(&tool, "type", &type);
    if (strcmp(type, "function") != 0) fields_bad(&tool, "type", "is '%.40s', want function", type);
    else if (!flat && !fields_object(&tool, "function", ret)) fields_need(&tool, "function");
    else if (!fields_str(ret, "name", name)) fields_need(ret, "name");
    else if (!**name || strlen(*name) >= TOOLS_NAME || strspn(*name, letters) != strlen(*name))
        fields_bad(ret, "name", "is no name of up to %d letters, digits, _ . -", TOOLS_NAME - 1);
    return !f->bad->status;
}

/* "auto", "required", or a function by its name, which goes to t->name. */
static void read_choice(struct tools *t, const struct fields *f, bool flat)
{
    struct fields choice, function;
    const char *word = "auto", *name = "";
    t->mode = TOOLS_AUTO;
    if (!json_is_object(json_object_get(f->o, "tool_choice"))) {
        fields_str(f, "tool_choice", &word);
        if (!strcmp(word, "required")) t->mode = TOOLS_SOME;
        else if (strcmp(word, "auto") != 0)
            fields_bad(f, "tool_choice", "is '%.20s', want none, auto, required or a function", word);
        return;
    }
    fields_object(f, "tool_choice", &choice);
    function = choice;
    if (!flat && !fields_object(&choice, "function", &function)) fields_need(&choice, "function");
    else if (!fields_str(&function, "name", &name)) fields_need(&function, "name");
    snprintf(t->name, sizeof t->name, "%.*s", TOOLS_NAME - 1, name);
    t->mode = TOOLS_ONE;
}

static void put_words(struct tools *t, const json_t *functions)
{
    struct buf *b = &t->words;
    const json_t *v;
    size_t i;
    buf_str(b, "These functions can be called. Each is given with a JSON schema of its arguments.\n");
    json_array_foreach(functions, i, v) {
        char *text = json_dumps(v, JSON_COMPACT);
        if (text) buf_fmt(b, "%s\n", text);
        free(text);
    }
    if (t->mode == TOOLS_ONE) buf_fmt(b, "Answer with the arguments for a call of %s, as JSON.", t->name);
    else if (t->mode == TOOLS_SOME) buf_str(b, "Answer with a call as JSON: {\"name\": ..., \"arguments\": {...}}");
    else
        buf_str(b, "Answer with JSON: {\"response\": \"...\"} with your answer, or, where a function is needed for it, "
                   "{\"tool_call\": {\"name\": ..., \"arguments\": {...}}}");
}

/* What the model is to write, by t->mode. calls: taken. */
static json_t *schema_of(const struct tools *t, json_t *calls)
{
    if (t->mode != TOOLS_AUTO) return json_pack("{so}", "anyOf", calls);
    return json_pack("{s[{ss,s{s{ss}},s[s]},{ss,s{s{so}},s[s]}]}", "anyOf", "type", "object", "properties", "response",
                     "type", "string", "required", "response", "type", "object", "properties", "tool_call", "anyOf",
                     calls, "required", "tool_call");
}

char *tools_read(struct tools *t, const struct fields *f, bool flat)
{
    json_t *list = NULL, *calls, *functions, *one = NULL;
    const json_t *choice = json_object_get(f->o, "tool_choice");
    const bool none = json_is_string(choice) && !strcmp(json_string_value(choice), "none");
    *t = (struct tools){ .words = buf_make(WORDS_MAX) };
    if (!fields_array(f, "tools", &list) || !json_array_size(list) || none) return NULL;
    if (json_array_size(list) > TOOLS_MAX) fields_bad(f, "tools", "has more than %d functions", TOOLS_MAX);
    read_choice(t, f, flat);
    if (t->mode == TOOLS_SOME && json_array_size(list) == 1) t->mode = TOOLS_ONE;
    calls = json_array();
    functions = json_array();
    for (size_t i = 0; i < json_array_size(list) && !f->bad->status; i++) {
        struct fields function;
        const char *name;
        char where[80];
        if (!function_of(f, list, i, flat, &function, &name)) break;
        if (t->mode == TOOLS_ONE && !*t->name) snprintf(t->name, sizeof t->name, "%s", name);
        const bool chosen = t->mode == TOOLS_ONE && !strcmp(t->name, name);
        snprintf(where, sizeof where, "#%s/anyOf/%zu/properties/arguments",
                 t->mode == TOOLS_AUTO ? "/anyOf/1/properties/tool_call" : "", i);
        if (chosen && !one) one = arguments_of(&function, "#");
        else json_array_append_new(calls, call_of(&function, name, where));
        json_array_append_new(functions, json_pack("{ss,sO*,sO*}", "name", name, "description",
                                                   json_object_get(function.o, "description"), "parameters",
                                                   json_object_get(function.o, "parameters")));
    }
    if (t->mode == TOOLS_ONE && !one) fields_bad(f, "tool_choice", "names '%s', which is not among 'tools'", t->name);
    if (!f->bad->status) put_words(t, functions);
    if (t->words.failed) fields_bad(f, "tools", "says more than %d bytes", WORDS_MAX);
    json_t *schema = one ? json_incref(one) : schema_of(t, json_incref(calls));
    char *text = f->bad->status ? NULL : json_dumps(schema, JSON_COMPACT);
    if (!text) bad_set(f->bad, 503, NULL, "no_memory", "no memory");
    json_decref(schema);
    json_decref(one);
    json_decref(calls);
    json_decref(functions);
    return text;
}

void tools_fini(struct tools *t)
{
    buf_free(&t->words);
    t->mode = TOOLS_NONE;
}

/* ---- conversations */

void tools_put_call(struct buf *out, const struct fields *function)
{
    const char *name = "", *arguments = "{}";
    if (!fields_str(function, "name", &name)) fields_need(function, "name");
    fields_str(function, "arguments", &arguments);
    if (out->n) buf_chr(out, '\n');
    buf_fmt(out, "{\"tool_call\": {\"name\": \"%s\", \"arguments\": %s}}", name, arguments);
}

void tools_put_result(struct buf *out, const char *text)
{
    if (out->n) buf_chr(out, '\n');
    buf_fmt(out, "The call's result: %s", text);
}

/* ---- answers */

/* What stands behind `"key":` in an object's text; NULL: the text ends before. */
static const char *behind(const char *text, const char *key)
{
    const char *at = strstr(text, key);
    if (!at) return NULL;
    at += strlen(key);
    at += strspn(at, " \t\n");
    if (*at != ':') return NULL;
    return at + 1 + strspn(at + 1, " \t\n");
}

/* The value of a JSON string, without the white space around it; its end may be missing: then without what is left of
 * an escape. */
static void put_string(struct buf *out, const char *at)
{
    struct buf b = buf_make(1 << 24);
    size_t n = 0, whole = 0;
    if (*at++ != '"') return;
    while (at[n] && at[n] != '"') {
        const size_t step = at[n] != '\\' ? 1 : at[n + 1] == 'u' ? 6 : 2;
        if (memchr(at + n, 0, step)) break;
        n += step;
        const bool half = step == 6 && strspn(at + n - 4, "dD") && strchr("89abAB", at[n - 3]); /* of a pair */
        if (!half) whole = n;
    }
    buf_chr(&b, '"');
    buf_add(&b, at, whole);
    buf_chr(&b, '"');
    json_t *v = json_loads(b.p ? b.p : "", JSON_DECODE_ANY, NULL);
    const char *p = v ? json_string_value(v) : "";
    p += strspn(p, " \t\n");
    n = strlen(p);
    while (n && strchr(" \t\n", p[n - 1])) n--;
    buf_add(out, p, n);
    json_decref(v);
    buf_free(&b);
}

void call_read(struct call *c, const struct tools *t, const char *text)
{
    static const char answer[] = "\"response\"";
    const char *at, *name;
    *c = (struct call){ .text = buf_make(1 << 24) };
    const char *key = text + (*text == '{');
    key += strspn(key, " \t\n");
    if (t->mode == TOOLS_AUTO && !strncmp(key, answer, strlen(answer))) {
        if ((at = behind(key, answer)) != NULL) put_string(&c->text, at);
        return;
    }
    if (t->mode == TOOLS_ONE) {
        snprintf(c->name, sizeof c->name, "%s", t->name);
        buf_str(&c->text, text);
        return;
    }
    name = behind(text, "\"name\"");
    if (!name || *name++ != '"') return; /* cut before there was a call */
    size_t n = strcspn(name, "\"");
    if (!(at = behind(name + n, "\"arguments\""))) return;
    snprintf(c->name, sizeof c->name, "%.*s", (int)n, name);
    n = strlen(at);
    json_t *v = json_loads(text, 0, NULL);
    for (int braces = v ? (t->mode == TOOLS_AUTO) + 1 : 0; braces; braces--) /* of what is around the arguments */
        while (n && at[--n] != '}') {}
    json_decref(v);
    while (n && strchr(" \t\n", at[n - 1])) n--;
    buf_add(&c->text, at, n);
}
