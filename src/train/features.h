/* What a frozen tower makes of pictures, kept in a folder for later epochs and runs (--cache_features).
 *
 * One file a picture, named by the SHA-256 of the picture's file and of all else that its features depend on: the
 * tower's weights, how pictures are prepared, the layer that is used, the type of activations and whose kernels
 * compute. So a file is never out of date, and several runs may share a folder. A file that is not whole is named once,
 * taken for none, and written anew. Functions but features_open may be called from any thread.
 */
#pragma once
#include <stdbool.h>

#include "model/llava.h"
#include "train/sample.h"

struct features {
    const char *dir; /* borrowed */
    char of[65];     /* hash of all but the picture */
    size_t bytes;    /* of a picture's features: [rows,C] of the tower, before the projector */
};

enum { FEATURES_NAME = 65 }; /* hexadecimal digits and NUL */

/* Makes the folder. m: on the host, its tower frozen; act: of activations; kernels: their table's name. */
int features_open(struct features *f, const char *dir, const struct llava_model *m, const struct recipe *c,
                  enum dtype act, const char *kernels, struct err *e);
/* Of a picture's file. */
void features_name(char name[FEATURES_NAME], const struct features *f, const void *picture, size_t n);
/* To `to`, f->bytes; false: there are none. */
bool features_get(const struct features *f, const char *name, void *to);
/* Whole or not at all. */
int features_put(const struct features *f, const char *name, const void *from, struct err *e);
