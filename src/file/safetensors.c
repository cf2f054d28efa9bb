/* See safetensors.h. */
#include "file/safetensors.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "file/json.h"
#include "file/out.h"

/* Where one tensor's bytes lie, relative to the end of the header. */
struct span {
    uint64_t begin, end;
    const char *name; /* borrowed from the header */
};

static uint64_t u64_le(const unsigned char *p)
{
    uint64_t v = 0;
    for (int i = 7; i >= 0; i--) v = v << 8 | p[i];
    return v;
}

static int bad(struct err *e, const char *file, const char *name, const char *what)
{
    return err_set(e, ERR_FORMAT, "'%s': tensor '%.200s': %s", file, name, what);
}

/* "shape": [..] into t; *count its number of elements. */
static int shape_read(struct tensor *t, uint64_t *count, const json_t *v, const char *file, const char *name,
                      struct err *e)
{
    if (!json_is_array(v)) return bad(e, file, name, "'shape' is not an array");
    size_t nd = json_array_size(v);
    if (nd > TENSOR_DIMS)
        return err_set(e, ERR_UNSUPPORTED, "'%s': tensor '%.200s' has %zu dimensions, at most %d are handled",
                       file, name, nd, TENSOR_DIMS);
    *t = tensor_1d(NULL, DT_F32, 1);
    t->nd = nd ? (int8_t)nd : 1;
    *count = 1;
    for (size_t i = 0; i < nd; i++) {
        const json_t *d = json_array_get(v, i);
        int64_t n = json_integer_value(d);
        if (!json_is_integer(d) || n < 0)
            return bad(e, file, name, "'shape' holds something that is not a size");
        if (__builtin_mul_overflow(*count, (uint64_t)n, count) || *count > INT64_MAX / 16)
            return bad(e, file, name, "'shape' is larger than any file");
        t->n[i] = n;
    }
    return 0;
}

static int offsets_read(struct span *s, const json_t *v, uint64_t data_bytes, const char *file, struct err *e)
{
    const json_t *a = json_array_get(v, 0), *b = json_array_get(v, 1);
    if (!json_is_array(v) || json_array_size(v) != 2 || !json_is_integer(a) || !json_is_integer(b))
        return bad(e, file, s->name, "'data_offsets' is not a pair of integers");
    json_int_t begin = json_integer_value(a), end = json_integer_value(b);
    if (begin < 0 || end < begin) return bad(e, file, s->name, "'data_offsets' run backwards");
    if ((uint64_t)end > data_bytes)
        return err_set(e, ERR_FORMAT,
                       "'%s': tensor '%.200s' ends at byte %lld of the data, the file has %" PRIu64
                       " (truncated?)",
                       file, s->name, (long long)end, data_bytes);
    s->begin = (uint64_t)begin;
    s->end = (uint64_t)end;
    return 0;
}

/* One member of the header: its span into s, its row into the list. data: the bytes after the header. */
static int entry_read(struct weight_list *list, struct span *s, const json_t *v, const unsigned char *data,
                      uint64_t data_bytes, const char *file, struct err *e)
{
    int rc;
    struct tensor t;
    enum dtype type;
    uint64_t count = 0;
    if (!json_is_object(v)) return bad(e, file, s->name, "its entry is not an object");
    const char *dtype = json_string_value(json_object_get(v, "dtype"));
    if (!dtype) return bad(e, file, s->name, "'dtype' is missing or not a string");
    if (dtype_find(dtype, &type) < 0 || strcmp(dtype_name(type), dtype) != 0)
        return err_set(e, ERR_UNSUPPORTED, "'%s': tensor '%.200s' has type '%.40s', which is not handled",
                       file, s->name, dtype);
    if ((rc = shape_read(&t, &count, json_object_get(v, "shape"), file, s->name, e)) < 0) return rc;
    if ((rc = offsets_read(s, json_object_get(v, "data_offsets"), data_bytes, file, e)) < 0) return rc;
    t.type = (int8_t)type;
    if (count * dtype_bytes(type) != s->end - s->begin) {
        char shape[TENSOR_SHAPE_MAX];
        return err_set(e, ERR_FORMAT, "'%s': tensor '%.200s' has %" PRIu64 " bytes, %s of %s wants %" PRIu64,
                       file, s->name, s->end - s->begin, tensor_shape(t, shape), dtype,
                       count * dtype_bytes(type));
    }
    t.p = (void *)(data + s->begin);
    return weight_list_add(list, s->name, strlen(s->name), t, file, e);
}

static int span_compare(const void *a, const void *b)
{
    const struct span *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

/* The spans must cover the data exactly. */
static int spans_check(struct span *s, size_t n, uint64_t data_bytes, const char *file, struct err *e)
{
    uint64_t at = 0;
    if (n) qsort(s, n, sizeof *s, span_compare);
    for (size_t i = 0; i < n; at = s[i++].end) {
        if (s[i].begin < at)
            return err_set(e, ERR_FORMAT, "'%s': tensors '%.200s' and '%.200s' overlap", file, s[i - 1].name,
                           s[i].name);
        if (s[i].begin > at) return bad(e, file, s[i].name, "there is a hole before its data");
    }
    if (at != data_bytes)
        return err_set(e, ERR_FORMAT, "'%s': %" PRIu64 " bytes at the end belong to no tensor", file,
                       data_bytes - at);
    return 0;
}

static int metadata_check(const json_t *v, const char *file, struct err *e)
{
    const char *key;
    json_t *m;
    bool good = json_is_object(v);
    json_object_foreach((json_t *)v, key, m) good = good && json_is_string(m);
    return good ? 0 : err_set(e, ERR_FORMAT, "'%s': '__metadata__' is not an object of strings", file);
}

int safetensors_parse(struct weight_list *list, const void *bytes, size_t n, const char *file, struct err *e)
{
    int rc = 0;
    const unsigned char *p = bytes;
    json_t *head = NULL, *v;
    struct span *span = NULL;
    size_t n_span = 0;
    const char *name;
    if (n < 8) return err_set(e, ERR_FORMAT, "'%s' has %zu bytes, too short for a safetensors file", file, n);
    uint64_t n_head = u64_le(p);
    if (n_head > SAFETENSORS_HEADER_MAX)
        return err_set(e, ERR_FORMAT,
                       "'%s' is not a safetensors file: its header would have %" PRIu64 " bytes", file,
                       n_head);
    if (n_head > n - 8)
        return err_set(e, ERR_FORMAT, "'%s' is cut short: header of %" PRIu64 " bytes in a file of %zu", file,
                       n_head, n);
    TRY(json_text_load(&head, p + 8, (size_t)n_head, file, e));
    if (!json_is_object(head)) {
        rc = err_set(e, ERR_FORMAT, "'%s': the header is not a JSON object", file);
        goto out;
    }
    span = calloc(json_object_size(head) + 1, sizeof *span);
    if (!span) {
        rc = err_set(e, ERR_NOMEM, "no memory to read '%s'", file);
        goto out;
    }
    const unsigned char *data = p + 8 + n_head;
    uint64_t data_bytes = n - 8 - n_head;
    json_object_foreach(head, name, v) {
        if (!strcmp(name, "__metadata__")) {
            TRY(metadata_check(v, file, e));
            continue;
        }
        span[n_span].name = name;
        TRY(entry_read(list, &span[n_span++], v, data, data_bytes, file, e));
    }
    TRY(spans_check(span, n_span, data_bytes, file, e));
    rc = 0;
out:
    free(span);
    json_decref(head);
    return rc;
}

/* Indices of w, larger types first; stable, as the types are few. */
static size_t *order_make(const struct weight *w, size_t n)
{
    size_t *order = malloc((n + 1) * sizeof *order), k = 0;
    for (size_t bytes = 8; order && bytes; bytes /= 2)
        for (size_t i = 0; i < n; i++)
            if (dtype_bytes((enum dtype)w[i].t.type) == bytes) order[k++] = i;
    ASSERT(!order || k == n);
    return order;
}

/* One member of the header; NULL without memory. */
static json_t *entry_make(struct tensor t, uint64_t begin)
{
    json_t *shape = json_array();
    bool good = true;
    for (int i = 0; i < t.nd; i++) good = json_array_append_new(shape, json_integer(t.n[i])) >= 0 && good;
    if (!good) json_decref(shape);
    return json_pack("{s:s, s:o, s:[I,I]}", "dtype", dtype_name((enum dtype)t.type), "shape",
                     good ? shape : NULL, "data_offsets", (json_int_t)begin,
                     (json_int_t)(begin + tensor_bytes(t)));
}

/* The header as JSON, in file order. */
static int header_json(json_t *head, const struct weight *w, const size_t *order, size_t n,
                       const char *const *meta, const char *path, struct err *e)
{
    uint64_t at = 0;
    json_t *m = json_object();
    bool good = true;
    for (; meta && *meta; meta += 2)
        good = json_object_set_new(m, meta[0], json_string(meta[1])) >= 0 && good;
    if (json_object_size(m)) good = json_object_set(head, "__metadata__", m) >= 0 && good;
    json_decref(m);
    for (size_t k = 0; k < n && good; k++) {
        const struct weight *row = &w[order[k]];
        json_t *name = json_string(row->name); /* checks UTF-8 */
        if (!name || json_object_get(head, row->name)) {
            json_decref(name);
            return err_set(e, ERR_USAGE, "cannot write '%s': name '%.200s' is there twice or not UTF-8", path,
                           row->name);
        }
        json_decref(name);
        good = json_object_set_new(head, row->name, entry_make(row->t, at)) >= 0;
        at += tensor_bytes(row->t);
    }
    return good ? 0 : err_set(e, ERR_NOMEM, "no memory to write '%s'", path);
}

/* The header as text, padded so that the data starts at a multiple of 64: quantised rows want to lie aligned. */
static int header_make(char **ret, size_t *ret_n, const struct weight *w, const size_t *order, size_t n,
                       const char *const *meta, const char *path, struct err *e)
{
    json_t *head = json_object();
    int rc = header_json(head, w, order, n, meta, path, e);
    char *text = rc < 0 ? NULL : json_dumps(head, JSON_COMPACT), *padded = NULL;
    size_t len = text ? strlen(text) : 0, want = ((len + 8 + 63) & ~(size_t)63) - 8;
    if (text) padded = malloc(want);
    if (padded) {
        memset(padded, ' ', want);
        memcpy(padded, text, len);
        *ret = padded;
        *ret_n = want;
    } else if (rc >= 0) {
        rc = err_set(e, ERR_NOMEM, "no memory to write '%s'", path);
    }
    free(text);
    json_decref(head);
    return rc;
}

int safetensors_write(const char *path, const struct weight *w, size_t n, const char *const *meta,
                      weight_fetch_fn *fetch, void *ctx, struct err *e)
{
    int rc;
    struct out o = { .fd = -1 };
    char *head = NULL;
    size_t n_head = 0, *order = order_make(w, n);
    if (!order) return err_set(e, ERR_NOMEM, "no memory to write '%s'", path);
    TRY(header_make(&head, &n_head, w, order, n, meta, path, e));
    TRY(out_open(&o, path, e));
    unsigned char size[8];
    for (int i = 0; i < 8; i++) size[i] = (unsigned char)((uint64_t)n_head >> (8 * i));
    TRY(out_write(&o, size, sizeof size, e));
    TRY(out_write(&o, head, n_head, e));
    for (size_t k = 0; k < n; k++) {
        const struct weight *row = &w[order[k]];
        const void *p = row->t.p;
        if (fetch) TRY(fetch(&p, ctx, row, e));
        TRY(out_write(&o, p, tensor_bytes(row->t), e));
    }
    TRY(out_commit(&o, e));
out:
    out_drop(&o);
    free(head);
    free(order);
    return rc;
}
