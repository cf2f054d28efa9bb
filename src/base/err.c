/* See err.h. */
#include "base/err.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The bytes of the character that begins at s, by its first; 1 where what follows is no UTF-8. */
static int character(const char *s)
{
    const unsigned char c = (unsigned char)*s, d = (unsigned char)s[c != 0];
    const int n = c < 0xc2 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : c < 0xf5 ? 4 : 1;
    for (int i = 1; i < n; i++)
        if (((unsigned char)s[i] & 0xc0) != 0x80) return 1;
    if ((c == 0xe0 && d < 0xa0) || (c == 0xf0 && d < 0x90)) return 1; /* longer than need be */
    if ((c == 0xed && d > 0x9f) || (c == 0xf4 && d > 0x8f)) return 1; /* half a pair, or beyond the last */
    return n;
}

void text_tame(char *s)
{
    for (int n; *s; s += n)
        if ((n = character(s)) == 1 && ((unsigned char)*s < ' ' || (unsigned char)*s >= 127)) *s = '?';
}

int err_set(struct err *e, enum err_code code, const char *fmt, ...)
{
    if (!e) return code;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(e->msg, sizeof e->msg, fmt, ap);
    va_end(ap);
    text_tame(e->msg);
    e->code = code;
    return code;
}

int err_errno(struct err *e, const char *verb, const char *path)
{
    int no = errno;
    return err_set(e, no == ENOENT ? ERR_MISSING : ERR_IO, "cannot %s '%s': %s", verb, path, strerror(no));
}

int err_prefix(struct err *e, const char *fmt, ...)
{
    if (!e) return ERR_IO;
    char old[sizeof e->msg], head[300];
    memcpy(old, e->msg, sizeof old);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(head, sizeof head, fmt, ap);
    va_end(ap);
    snprintf(e->msg, sizeof e->msg, "%s: %.*s", head, (int)(sizeof old - sizeof head - 3), old);
    text_tame(e->msg);
    return e->code;
}

const char *err_name(enum err_code code)
{
    switch (code) {
    case ERR_OK: return "OK";
#define XX(name, value, text) \
    case ERR_##name: return #name;
        ERR_MAP(XX)
#undef XX
    }
    return "?";
}

void bug_at(const char *file, int line, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fprintf(stderr, "llava: bug at %s:%d: ", file, line);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
    abort();
}
