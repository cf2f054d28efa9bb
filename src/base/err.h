/* Errors as values, and the two ways to stop.
 *
 * Three kinds of failure, three mechanisms:
 *   the world's fault (a file, a request, an option)  -> a function returns < 0 and fills a struct err
 *   our fault (a broken invariant, a wrong shape)     -> ASSERT, BUG: print where, abort; kept in release builds
 *   the machine's fault (a device, a lost rank)       -> log, exit 70, be restarted
 *
 * A message says what failed first, quotes names with '...', has no full stop and no newline:
 *   cannot bind 'model.norm.weight': file has [4096], model wants [5120]
 */
#pragma once
#include <stdarg.h>
#include <stddef.h>

#define ERR_MAP(XX)                                                             \
    XX(IO, -1, "reading or writing failed")                                     \
    XX(FORMAT, -2, "the bytes are not what the format says")                    \
    XX(LIMIT, -3, "larger than this program accepts")                           \
    XX(MISSING, -4, "something needed is not there")                            \
    XX(SHAPE, -5, "shapes or types do not fit")                                 \
    XX(UNSUPPORTED, -6, "well formed, but not handled here")                    \
    XX(NOMEM, -7, "no memory")                                                  \
    XX(USAGE, -8, "a value given by the user is wrong")                         \
    XX(BUSY, -9, "too much is waiting already")

enum err_code {
    ERR_OK = 0,
#define XX(name, value, text) ERR_##name = value,
    ERR_MAP(XX)
#undef XX
};

struct err {
    enum err_code code;
    char msg[1000];
};

/* Fills e (unless e is NULL) and returns code, so that a caller can `return err_set(...)`. */
int err_set(struct err *e, enum err_code code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Replaces control characters, and what is no UTF-8 or was cut inside a character: names come from files and from
 * clients, and one must not bring a line end, an escape sequence, or what JSON cannot hold. */
void text_tame(char *s);

/* "cannot VERB 'PATH': strerror(errno)", code ERR_IO, or ERR_MISSING for ENOENT. */
int err_errno(struct err *e, const char *verb, const char *path);

/* Puts "TEXT: " before the message that is already in e, for callers that know more. Returns e->code. */
int err_prefix(struct err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

const char *err_name(enum err_code code); /* "IO", "FORMAT", ...; "OK" for 0 */

/* The only control macro: leaves through the label `out` with rc < 0. */
#define TRY(call)                                                               \
    do {                                                                        \
        if ((rc = (call)) < 0) goto out;                                        \
    } while (0)

void bug_at(const char *file, int line, const char *fmt, ...) __attribute__((noreturn, format(printf, 3, 4)));
#define BUG(...) bug_at(__FILE__, __LINE__, __VA_ARGS__)
#define ASSERT(cond)                                                            \
    do {                                                                        \
        if (!(cond)) bug_at(__FILE__, __LINE__, "broken invariant: %s", #cond); \
    } while (0)
