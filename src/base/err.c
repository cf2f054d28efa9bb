/* See err.h. */
#include "base/err.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

void text_tame(char *s)
{
    uint32_t cp;
    size_t n;
    for (size_t left = strlen(s); left; s += n, left -= n) {
        if (utf8_next(s, left, &cp, &n) != UTF8_OK) n = 1, cp = 0;
        if (cp < ' ' || cp == 127) *s = '?';
    }
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
