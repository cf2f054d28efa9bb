/* UTF-8 helpers declared in utf8.h. */
#include "text/utf8.h"

#include <string.h>

struct range { uint32_t first, last; };

static bool in_ranges(const struct range *r, size_t n, uint32_t cp)
{
    for (size_t i = 0; i < n; i++)
        if (cp >= r[i].first && cp <= r[i].last) return true;
    return false;
}

bool utf8_is_space(uint32_t cp)
{
    static const struct range spaces[] = {
        { 0x09, 0x0d },     { 0x1c, 0x20 },     { 0x85, 0x85 },     { 0xa0, 0xa0 },     { 0x1680, 0x1680 },
        { 0x2000, 0x200a }, { 0x2028, 0x2029 }, { 0x202f, 0x202f }, { 0x205f, 0x205f }, { 0x3000, 0x3000 },
    };
    return in_ranges(spaces, sizeof spaces / sizeof *spaces, cp);
}

bool utf8_is_cjk(uint32_t cp)
{
    static const struct range cjk[] = {
        { 0x4e00, 0x9fff }, { 0x3400, 0x4dbf }, { 0x20000, 0x2a6df }, { 0x2a700, 0x2b73f },
        { 0x2b740, 0x2b81f }, { 0x2b820, 0x2ceaf }, { 0xf900, 0xfaff }, { 0x2f800, 0x2fa1f },
    };
    return in_ranges(cjk, sizeof cjk / sizeof *cjk, cp);
}

size_t utf8_put(char *to, uint32_t cp)
{
    const size_t n = cp < 0x80 ? 1 : cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4;
    for (size_t i = n; --i > 0; cp >>= 6) to[i] = (char)(0x80 | (cp & 0x3f));
    to[0] = (char)(n == 1 ? cp : (0xf00 >> n & 0xff) | cp);
    return n;
}

int text_check_utf8(const char *p, size_t n, const char *what, struct err *e)
{
    uint32_t cp;
    size_t len;
    for (size_t i = 0; i < n; i += len)
        if (utf8_next(p + i, n - i, &cp, &len) != UTF8_OK)
            return err_set(e, ERR_FORMAT, "%s is not UTF-8: bad byte 0x%02x at offset %zu", what,
                           (unsigned char)p[i], i);
    return 0;
}

struct span span_of(const char *s)
{
    return (struct span){ s, strlen(s) };
}

struct span span_lstrip(struct span s)
{
    uint32_t cp;
    size_t len;
    while (s.n && utf8_next(s.p, s.n, &cp, &len) == UTF8_OK && utf8_is_space(cp)) {
        s.p += len;
        s.n -= len;
    }
    return s;
}

struct span span_rstrip(struct span s)
{
    while (s.n) {
        uint32_t cp;
        size_t len, back = 1;
        while (back < s.n && back < 4 && ((unsigned char)s.p[s.n - back] & 0xc0) == 0x80) back++;
        if (utf8_next(s.p + s.n - back, back, &cp, &len) != UTF8_OK || len != back || !utf8_is_space(cp))
            break;
        s.n -= back;
    }
    return s;
}

struct span span_strip(struct span s)
{
    return span_rstrip(span_lstrip(s));
}

size_t span_find(struct span s, size_t from, struct span what)
{
    while (from < s.n && s.n - from >= what.n) {
        const char *q = memchr(s.p + from, what.p[0], s.n - from - what.n + 1);
        if (!q) break;
        from = (size_t)(q - s.p);
        if (memcmp(q, what.p, what.n) == 0) return from;
        from++;
    }
    return s.n;
}
