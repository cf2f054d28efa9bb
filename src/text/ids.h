/* A growing list of token ids with a limit, like struct buf for bytes.
 *
 * Growth past the limit, or without memory, sets failed and drops the rest: check once at the end with
 * ids_check. An id is a row of the embedding table; IDS_IMAGE (-200) stands for one picture, IDS_IGNORE
 * (-100) is a label that takes no part in the loss (LLaVA's llava/constants.py).
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

enum { IDS_IGNORE = -100, IDS_IMAGE = -200 };
enum { IDS_MAX = 1 << 24 }; /* the usual limit */

struct ids {
    int32_t *p;
    size_t n, cap, max;
    bool failed;
};

static inline struct ids ids_make(size_t max) { return (struct ids){ .max = max }; }
void ids_free(struct ids *s);
void ids_add(struct ids *s, int32_t id);
void ids_add_n(struct ids *s, const int32_t *p, size_t n);
void ids_reset(struct ids *s); /* empties, keeps the memory */
int ids_check(const struct ids *s, const char *what, struct err *e); /* 0, or ERR_LIMIT naming `what` */
