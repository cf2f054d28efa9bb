/* JSON files, on top of jansson: loading with errors that name the file and the place, and typed reading of
 * members.
 *
 * Every getter leaves *ret alone when the key is absent or null, so put the default there first:
 *     int64_t width = 4096;
 *     TRY(json_get_int(config, "hidden_size", &width, e));
 * Returns 1 when the key was there, 0 when not, ERR_FORMAT when it holds another type ("'hidden_size' is a
 * string, want an integer"; put the file's name before it with err_prefix).
 */
#pragma once
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

enum { JSON_FILE_MAX = 100 << 20 }; /* bytes; the limit for configurations and indices */

/* A whole file; *ret is a new reference (json_decref). Errors: cannot parse 'config.json': line 3 column 7:
 * ... */
int json_file_load(json_t **ret, const char *path, struct err *e);
/* The same for files of tokenizers, whose model_max_length is often 10^30: integers that are too large become reals. It
 * must hold an object. */
int json_file_load_wide(json_t **ret, const char *path, struct err *e);
/* Indented by two, ASCII only, as Python's json.dump(indent=2) writes it; atomic, see out.h. */
int json_file_save(const char *path, const json_t *v, struct err *e);
/* The same from memory; `file` is for the message. Duplicate names are refused. */
int json_text_load(json_t **ret, const void *p, size_t n, const char *file, struct err *e);

int json_get_int(const json_t *o, const char *key, int64_t *ret, struct err *e);
int json_get_real(const json_t *o, const char *key, double *ret, struct err *e); /* integers are accepted */
int json_get_bool(const json_t *o, const char *key, bool *ret, struct err *e);
int json_get_str(const json_t *o, const char *key, const char **ret, struct err *e); /* borrowed from o */
int json_get_object(const json_t *o, const char *key, json_t **ret, struct err *e);  /* borrowed from o */
int json_get_array(const json_t *o, const char *key, json_t **ret, struct err *e);   /* borrowed from o */
