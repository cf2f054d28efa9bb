/* See fields.h. */
#include "serve/fields.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void bad_set(struct bad *b, int status, const char *param, const char *code, const char *fmt, ...)
{
    if (b->status) return;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(b->message, sizeof b->message, fmt, ap);
    va_end(ap);
    b->status = status;
    b->code = code;
    snprintf(b->param, sizeof b->param, "%s", param ? param : "");
    text_tame(b->message); /* it may quote the request */
    text_tame(b->param);
}

json_t *bad_json(const struct bad *b)
{
    return exchange_error_json(b->status, *b->param ? b->param : NULL, b->code, b->message);
}

void bad_reply(const struct bad *b, struct exchange *x) { exchange_json(x, b->status, bad_json(b)); }

/* That brackets do not nest too deep, for jansson would follow them down the stack, nor values are too many, for each
 * takes fifty times the memory of its two bytes. */
static void check_shape(const char *p, size_t n, struct bad *b)
{
    int depth = 0, values = 0;
    char before = ','; /* the last that is no blank, outside of strings */
    bool in = false;
    for (size_t i = 0; i < n && depth <= FIELDS_DEPTH && values <= FIELDS_VALUES; i++) {
        const char c = p[i];
        if (in && c == '\\') i++;
        else if (in) in = c != '"';
        if (in || c == ' ' || c == '\n' || c == '\r' || c == '\t') continue;
        const bool begins = before == ',' || before == '[' || before == '{', ends = c == ']' || c == '}';
        values += begins && !ends;
        depth += c == '[' || c == '{';
        depth -= ends;
        in = c == '"' && before != '"';
        before = c;
    }
    if (depth > FIELDS_DEPTH) bad_set(b, 400, NULL, "invalid_json", "the body nests deeper than %d", FIELDS_DEPTH);
    else if (values > FIELDS_VALUES)
        bad_set(b, 400, NULL, "invalid_json", "the body has more than %d values", FIELDS_VALUES);
}

/* Nothing but white space? The bytes need not end in a NUL. */
static bool blank(const char *s, size_t n)
{
    while (n && strchr(" \t\r\n", s[n - 1]) && s[n - 1]) n--;
    return n == 0;
}

json_t *fields_body(const char *body, size_t n, bool empty, struct bad *b)
{
    json_error_t e = { .line = 0 };
    if (empty && blank(body, n)) return json_object();
    check_shape(body, n, b);
    if (b->status) return NULL;
    json_t *v = json_loadb(body, n, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &e);
    const enum json_error_code why = v ? json_error_unknown : json_error_code(&e);
    if (why == json_error_null_character || why == json_error_null_byte_in_key)
        bad_set(b, 400, NULL, "invalid_json", "the body has \\u0000, which is not accepted: line %d column %d", e.line,
                e.column);
    else if (!v)
        bad_set(b, 400, NULL, "invalid_json", "the body is not JSON: line %d column %d: %s", e.line, e.column,
                e.text);
    if (v && !json_is_object(v)) {
        bad_set(b, 400, NULL, "invalid_json", "the body is %s, want an object", fields_kind(v));
        json_decref(v);
        v = NULL;
    }
    return v;
}

json_t *fields_of(struct exchange *x, bool empty, struct bad *b)
{
    size_t n;
    const char *body = exchange_body(x, &n);
    json_t *v = fields_body(body, n, empty, b);
    exchange_body_read(x);
    return v;
}

const char *fields_kind(const json_t *v)
{
    switch (v ? json_typeof(v) : JSON_NULL) {
    case JSON_OBJECT: return "an object";
    case JSON_ARRAY: return "an array";
    case JSON_STRING: return "a string";
    case JSON_INTEGER: case JSON_REAL: return "a number";
    case JSON_TRUE: case JSON_FALSE: return "a boolean";
    case JSON_NULL: break;
    }
    return "null";
}

struct fields fields_at(const json_t *o, struct bad *b) { return (struct fields){ .o = o, .bad = b }; }

static void path_of(const struct fields *f, const char *key, char *path, size_t size)
{
    snprintf(path, size, "%s%s%s", f->path, *f->path && *key && *key != '[' ? "." : "", key);
}

struct fields fields_item(const struct fields *f, const char *key, const json_t *array, size_t i)
{
    struct fields item = { .o = json_array_get(array, i), .bad = f->bad };
    char name[64];
    snprintf(name, sizeof name, "%s[%zu]", key, i);
    path_of(f, name, item.path, sizeof item.path);
    if (!json_is_object(item.o))
        bad_set(f->bad, 400, item.path, NULL, "'%s' is %s, want an object", item.path, fields_kind(item.o));
    return item;
}

static void bad_at(const struct fields *f, const char *key, const char *message)
{
    char path[128];
    path_of(f, key, path, sizeof path);
    bad_set(f->bad, 400, path, NULL, "'%s' %s", path, message);
}

void fields_bad(const struct fields *f, const char *key, const char *fmt, ...)
{
    char message[400];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(message, sizeof message, fmt, ap);
    va_end(ap);
    bad_at(f, key, message);
}

void fields_need(const struct fields *f, const char *key) { bad_at(f, key, "is missing"); }

/* The member when it is there and not null; complains when it is not `fits`. */
static const json_t *member(const struct fields *f, const char *key, bool (*fits)(const json_t *), const char *want)
{
    const json_t *v = json_object_get(f->o, key);
    if (!v || json_is_null(v)) return NULL;
    if (fits(v)) return v;
    fields_bad(f, key, "is %s, want %s", fields_kind(v), want);
    return NULL;
}

static bool is_str(const json_t *v) { return json_is_string(v); }
static bool is_int(const json_t *v) /* 5.0 too: some languages have one kind of number only */
{
    const double d = json_real_value(v);
    return json_is_integer(v) || (json_is_real(v) && fabs(d) < 0x1p53 && !(floor(d) < d));
}
static bool is_real(const json_t *v) { return json_is_number(v); }
static bool is_bool(const json_t *v) { return json_is_boolean(v); }
static bool is_array(const json_t *v) { return json_is_array(v); }
static bool is_object(const json_t *v) { return json_is_object(v); }

bool fields_str(const struct fields *f, const char *key, const char **ret)
{
    const json_t *v = member(f, key, is_str, "a string");
    if (v) *ret = json_string_value(v);
    return v != NULL;
}

bool fields_int(const struct fields *f, const char *key, int64_t *ret, int64_t min, int64_t max)
{
    const json_t *v = member(f, key, is_int, "a whole number");
    int64_t i = json_is_real(v) ? (int64_t)json_real_value(v) : json_integer_value(v);
    if (v && (i < min || i > max)) {
        fields_bad(f, key, "is %lld, want %lld to %lld", (long long)i, (long long)min, (long long)max);
        return false;
    }
    if (v) *ret = i;
    return v != NULL;
}

bool fields_real(const struct fields *f, const char *key, double *ret, double min, double max)
{
    const json_t *v = member(f, key, is_real, "a number");
    double d = v ? json_number_value(v) : 0;
    if (v && !(d >= min && d <= max)) {
        fields_bad(f, key, "is %g, want %g to %g", d, min, max);
        return false;
    }
    if (v) *ret = d;
    return v != NULL;
}

bool fields_bool(const struct fields *f, const char *key, bool *ret)
{
    const json_t *v = member(f, key, is_bool, "true or false");
    if (v) *ret = json_is_true(v);
    return v != NULL;
}

bool fields_array(const struct fields *f, const char *key, json_t **ret)
{
    const json_t *v = member(f, key, is_array, "an array");
    if (v) *ret = (json_t *)v;
    return v != NULL;
}

bool fields_object(const struct fields *f, const char *key, struct fields *ret)
{
    const json_t *v = member(f, key, is_object, "an object");
    *ret = (struct fields){ .o = v, .bad = f->bad };
    path_of(f, key, ret->path, sizeof ret->path);
    return v != NULL;
}

void fields_refuse(const struct fields *f, const char *key)
{
    const json_t *v = json_object_get(f->o, key);
    bool none = !v || json_is_null(v) || json_is_false(v) || (json_is_number(v) && json_number_value(v) == 0) ||
                (json_is_array(v) && !json_array_size(v)) || (json_is_object(v) && !json_object_size(v)) ||
                (json_is_string(v) && (!*json_string_value(v) || !strcmp(json_string_value(v), "none")));
    if (!none) fields_bad(f, key, "is not supported");
}
