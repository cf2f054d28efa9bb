/* See buf.h. */
#define _GNU_SOURCE
#include "base/buf.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

void buf_free(struct buf *b)
{
    free(b->p);
    *b = (struct buf){ .max = b->max };
}

static bool buf_room(struct buf *b, size_t n)
{
    if (b->failed || n > b->max || b->n + n > b->max) return b->failed = true, false;
    if (b->n + n + 1 <= b->cap) return true;
    size_t cap = b->cap ? b->cap * 2 : 256;
    while (cap < b->n + n + 1) cap *= 2;
    char *p = realloc(b->p, cap);
    if (!p) return b->failed = true, false;
    b->p = p;
    b->cap = cap;
    return true;
}

void buf_add(struct buf *b, const void *p, size_t n)
{
    if (!buf_room(b, n)) return;
    if (n) memcpy(b->p + b->n, p, n);
    b->n += n;
    b->p[b->n] = 0;
}

void buf_str(struct buf *b, const char *s) { buf_add(b, s, strlen(s)); }
void buf_chr(struct buf *b, char c) { buf_add(b, &c, 1); }

void buf_fmt(struct buf *b, const char *fmt, ...)
{
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n >= 0 && buf_room(b, (size_t)n)) {
        vsnprintf(b->p + b->n, (size_t)n + 1, fmt, again);
        b->n += (size_t)n;
    }
    va_end(again);
}

void buf_reset(struct buf *b)
{
    b->n = 0;
    b->failed = false;
    if (b->p) b->p[0] = 0;
}

char *buf_take(struct buf *b, size_t *n)
{
    buf_add(b, "", 0); /* an empty buffer gives "" and not NULL */
    char *p = b->p;
    if (n) *n = b->n;
    *b = (struct buf){ .max = b->max };
    return p;
}

int buf_check(const struct buf *b, const char *what, struct err *e)
{
    return b->failed ? err_set(e, ERR_LIMIT, "%s is larger than %zu bytes", what, b->max) : 0;
}

int file_read(char **ret, size_t *n, const char *path, size_t max, struct err *e)
{
    int rc = 0;
    struct buf b = buf_make(max);
    char chunk[1 << 14];
    FILE *f = fopen(path, "rb");
    if (!f) return err_errno(e, "open", path);
    for (size_t k; (k = fread(chunk, 1, sizeof chunk, f)) > 0 && !b.failed;) buf_add(&b, chunk, k);
    if (ferror(f)) rc = err_errno(e, "read", path);
    fclose(f);
    if (rc >= 0) rc = buf_check(&b, path, e);
    if (rc >= 0) *ret = buf_take(&b, n);
    buf_free(&b);
    return rc;
}

bool file_append(int fd, const void *p, size_t n)
{
    const ssize_t k = write(fd, p, n);
    struct stat st;
    if (k == (ssize_t)n) return true;
    const off_t end = k > 0 ? lseek(fd, 0, SEEK_CUR) : -1;
    const bool ours = end >= k && fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size == end;
    if (ours && ftruncate(fd, end - k) < 0) (void)0; /* then it stays */
    return false;
}
