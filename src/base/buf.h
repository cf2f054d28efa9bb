/* A growing byte buffer with a limit that is set when it is made (after curl's dynbuf).
 *
 * Always NUL-terminated once anything was added, so b.p can be used as a C string. Growth past the limit, or without
 * memory, sets b.failed and drops the rest: check once at the end with buf_check.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

struct buf {
    char *p;
    size_t n, cap, max;
    bool failed;
};

static inline struct buf buf_make(size_t max) { return (struct buf){ .max = max }; }
void buf_free(struct buf *b);
void buf_add(struct buf *b, const void *p, size_t n);
void buf_str(struct buf *b, const char *s);
void buf_chr(struct buf *b, char c);
void buf_fmt(struct buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void buf_reset(struct buf *b);             /* empties, keeps the memory */
/* Ownership moves to the caller, who frees it; n may be NULL; never NULL unless memory is out. */
char *buf_take(struct buf *b, size_t *n);
int buf_check(const struct buf *b, const char *what, struct err *e); /* 0, or ERR_LIMIT naming `what` */

/* Whole file into memory, at most `max` bytes; the caller frees *ret. A NUL is put after the end. */
int file_read(char **ret, size_t *n, const char *path, size_t max, struct err *e);

/* One write to the end of a file that is open with O_APPEND, whole or not at all: what a full disk took of it is taken
 * back, so that the next line does not go on from half a one. */
bool file_append(int fd, const void *p, size_t n);
