/* See json.h. */
#include "file/out.h"
#include "file/json.h"

#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/map.h"

int json_text_load(json_t **ret, const void *p, size_t n, const char *file, struct err *e)
{
    json_error_t at;
    json_t *v = json_loadb(p, n, JSON_REJECT_DUPLICATES, &at);
    if (!v && at.line < 0) /* jansson leaves the place out only when it could not begin or go on */
        return err_set(e, ERR_NOMEM, "no memory to parse '%s'", file);
    if (!v) {
        return err_set(e, ERR_FORMAT, "cannot parse '%s': line %d column %d: %s", file, at.line, at.column,
                       at.text);
    }
    *ret = v;
    return 0;
}

int json_file_load(json_t **ret, const char *path, struct err *e)
{
    struct map m; /* which opens regular files only: a pipe would make us wait */
    int rc = map_open(&m, path, e);
    if (rc < 0) return rc;
    if (m.n > JSON_FILE_MAX) rc = err_set(e, ERR_LIMIT, "'%s' is larger than %d bytes", path, JSON_FILE_MAX);
    else rc = json_text_load(ret, m.n ? (const char *)m.p : "", m.n, path, e);
    map_close(&m);
    return rc;
}

/* Whole reals as integers again. Takes the reference and gives one back. */
static json_t *whole(json_t *v)
{
    const char *key;
    json_t *x;
    size_t i;
    void *next;
    if (json_is_object(v)) {
        json_object_foreach_safe(v, next, key, x) json_object_set_new(v, key, whole(json_incref(x)));
    } else if (json_is_array(v)) {
        json_array_foreach(v, i, x) json_array_set_new(v, i, whole(json_incref(x)));
    } else if (json_is_real(v)) {
        double d = json_real_value(v);
        if (d > -1e15 && d < 1e15 && d == (double)(json_int_t)d) {
            json_decref(v);
            return json_integer((json_int_t)d);
        }
    }
    return v;
}

int json_file_load_wide(json_t **ret, const char *path, struct err *e)
{
    char *text;
    size_t n;
    int rc = file_read(&text, &n, path, JSON_FILE_MAX, e);
    if (rc < 0) return rc;
    json_error_t at;
    json_t *v = json_loadb(text, n, JSON_DECODE_INT_AS_REAL, &at);
    free(text);
    if (!json_is_object(v)) {
        json_decref(v);
        return err_set(e, ERR_FORMAT, "'%s' does not hold a JSON object", path);
    }
    *ret = whole(v);
    return 0;
}

int json_file_save(const char *path, const json_t *v, struct err *e)
{
    char *text = json_dumps(v, JSON_INDENT(2) | JSON_ENSURE_ASCII | JSON_REAL_PRECISION(17));
    if (!text) return err_set(e, ERR_NOMEM, "no memory to write '%s'", path);
    size_t n = strlen(text);
    text[n] = '\n'; /* in the place of the NUL */
    int rc = out_file(path, text, n + 1, e);
    free(text);
    return rc;
}

/* For messages. */
static const char *kind_of(const json_t *v)
{
    static const char *const kinds[] = {
        [JSON_OBJECT] = "an object",   [JSON_ARRAY] = "an array", [JSON_STRING] = "a string",
        [JSON_INTEGER] = "an integer", [JSON_REAL] = "a number",  [JSON_TRUE] = "true",
        [JSON_FALSE] = "false",        [JSON_NULL] = "null",
    };
    return kinds[json_typeof(v)];
}

/* The member, or NULL with *rc 0 when there is none. */
static json_t *member(const json_t *o, const char *key, int *rc, struct err *e)
{
    *rc = 0;
    if (!json_is_object(o)) {
        *rc = err_set(e, ERR_FORMAT, "cannot read '%s': it should be a member of an object", key);
        return NULL;
    }
    json_t *v = json_object_get(o, key);
    return json_is_null(v) ? NULL : v;
}

static int wrong(const json_t *v, const char *key, const char *want, struct err *e)
{
    return err_set(e, ERR_FORMAT, "'%s' is %s, want %s", key, kind_of(v), want);
}

int json_get_int(const json_t *o, const char *key, int64_t *ret, struct err *e)
{
    int rc;
    json_t *v = member(o, key, &rc, e);
    if (!v) return rc;
    if (!json_is_integer(v)) return wrong(v, key, "an integer", e);
    *ret = json_integer_value(v);
    return 1;
}

int json_get_real(const json_t *o, const char *key, double *ret, struct err *e)
{
    int rc;
    json_t *v = member(o, key, &rc, e);
    if (!v) return rc;
    if (!json_is_number(v)) return wrong(v, key, "a number", e);
    *ret = json_number_value(v);
    return 1;
}

int json_get_bool(const json_t *o, const char *key, bool *ret, struct err *e)
{
    int rc;
    json_t *v = member(o, key, &rc, e);
    if (!v) return rc;
    if (!json_is_boolean(v)) return wrong(v, key, "true or false", e);
    *ret = json_is_true(v);
    return 1;
}

int json_get_str(const json_t *o, const char *key, const char **ret, struct err *e)
{
    int rc;
    json_t *v = member(o, key, &rc, e);
    if (!v) return rc;
    if (!json_is_string(v)) return wrong(v, key, "a string", e);
    *ret = json_string_value(v);
    return 1;
}

int json_get_object(const json_t *o, const char *key, json_t **ret, struct err *e)
{
    int rc;
    json_t *v = member(o, key, &rc, e);
    if (!v) return rc;
    if (!json_is_object(v)) return wrong(v, key, "an object", e);
    *ret = v;
    return 1;
}

int json_get_array(const json_t *o, const char *key, json_t **ret, struct err *e)
{
    int rc;
    json_t *v = member(o, key, &rc, e);
    if (!v) return rc;
    if (!json_is_array(v)) return wrong(v, key, "an array", e);
    *ret = v;
    return 1;
}
