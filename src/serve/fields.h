/* Reading the JSON of a request. Every complaint names the field by its path: 'messages[2].content' is a number, want a
 * string. */
#pragma once
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "serve/exchange.h"

/* What is wrong; the first complaint stays. */
struct bad {
    int status;        /* 0: nothing. 400, 404, ... */
    char param[128];   /* path of the field, or "" */
    const char *code;  /* a word for programs, or NULL */
    char message[1000];
};
void bad_set(struct bad *b, int status, const char *param, const char *code, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
json_t *bad_json(const struct bad *b); /* as OpenAI's API says it; a new reference */
void bad_reply(const struct bad *b, struct exchange *x); /* finishes x */

enum { FIELDS_DEPTH = 64, FIELDS_VALUES = 1 << 18 };

/* The body as an object, a new reference; NULL: *b says why. Deeper than FIELDS_DEPTH, more than some FIELDS_VALUES
 * values, invalid UTF-8, names given twice and "\u0000" are refused. An empty body reads as {} when `empty` says so. */
json_t *fields_body(const char *body, size_t n, bool empty, struct bad *b);
json_t *fields_of(struct exchange *x, bool empty, struct bad *b);

/* An object and where it stands. */
struct fields {
    const json_t *o;
    struct bad *bad;
    char path[96]; /* "" or "messages[2]" */
};
struct fields fields_at(const json_t *o, struct bad *b);
/* The i-th of an array member that must be an object. */
struct fields fields_item(const struct fields *f, const char *key, const json_t *array, size_t i);

/* Each returns true when the member is there and of the right kind, and leaves *ret alone otherwise, so that a default
 * can be put there first; null counts as absent. What they give is borrowed from the object. */
bool fields_str(const struct fields *f, const char *key, const char **ret);
bool fields_int(const struct fields *f, const char *key, int64_t *ret, int64_t min, int64_t max);
bool fields_real(const struct fields *f, const char *key, double *ret, double min, double max);
bool fields_bool(const struct fields *f, const char *key, bool *ret);
bool fields_array(const struct fields *f, const char *key, json_t **ret);
bool fields_object(const struct fields *f, const char *key, struct fields *ret);
/* Complains that the member is missing. */
void fields_need(const struct fields *f, const char *key);
/* Complains about a member: " ... 'PATH' TEXT". */
void fields_bad(const struct fields *f, const char *key, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* Complains when the member is there and neither null, false, 0, nor empty: something that is not done here. */
void fields_refuse(const struct fields *f, const char *key);
const char *fields_kind(const json_t *v); /* "an object", "a string", ... */
