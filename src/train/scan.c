/* See scan.h. */
#include "train/scan.h"

#include <string.h>

enum scan_rc scan_bad(struct scan *s, const char *why)
{
    s->why = why;
    return SCAN_BAD;
}

/* The text is over: cut short, or not all there yet. */
static enum scan_rc ended(struct scan *s) { return s->whole ? scan_bad(s, "the text ends too early") : SCAN_MORE; }

enum scan_rc scan_space(struct scan *s)
{
    while (s->p < s->end && (*s->p == ' ' || *s->p == '\n' || *s->p == '\t' || *s->p == '\r')) s->p++;
    return s->p < s->end || s->whole ? SCAN_OK : SCAN_MORE;
}

enum scan_rc scan_mark(struct scan *s, char mark, const char *why)
{
    scan_space(s);
    if (s->p == s->end) return ended(s);
    if (*s->p != mark) return scan_bad(s, why);
    s->p++;
    return SCAN_OK;
}

/* ---- strings */

/* Eight bytes at a time while they are ASCII and mean themselves; what is left goes byte by byte. */
#define EACH(byte) (0x0101010101010101u * (uint64_t)(byte))

static inline uint64_t load8(const char *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* The high bit of each byte that is `c`; all bytes of v are below 0x80. */
static inline uint64_t where(uint64_t v, char c) { return ~((v ^ EACH(c)) + EACH(0x7f)) & EACH(0x80); }

/* None of eight bytes is a quote, a backslash, a control character or outside ASCII. */
static inline bool plain8(uint64_t v)
{
    uint64_t ascii = v & EACH(0x7f);
    uint64_t control = ~(ascii + EACH(0x60)) & EACH(0x80);
    return !((v & EACH(0x80)) | control | where(ascii, '"') | where(ascii, '\\'));
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The code unit of the four digits at p, -1 where they are none. */
static int32_t code_unit(const char *p)
{
    int32_t u = 0;
    for (int i = 0; i < 4; i++) {
        int d = hex_digit(p[i]);
        if (d < 0) return -1;
        u = u << 4 | d;
    }
    return u;
}

/* s->p is at a backslash. */
static enum scan_rc skip_escape(struct scan *s)
{
    if (s->end - s->p < 2) return ended(s);
    if (s->p[1] != 'u') {
        if (!s->p[1] || !strchr("\"\\/bfnrt", s->p[1])) return scan_bad(s, "no such escape");
        s->p += 2;
        return SCAN_OK;
    }
    if (s->end - s->p < 6) return ended(s);
    if (code_unit(s->p + 2) < 0) return scan_bad(s, "expected four hexadecimal digits after '\\u'");
    s->p += 6;
    return SCAN_OK;
}

/* s->p is at a byte outside ASCII. */
static enum scan_rc skip_utf8(struct scan *s)
{
    uint32_t cp;
    size_t len;
    enum utf8_kind kind = utf8_next(s->p, (size_t)(s->end - s->p), &cp, &len);
    if (kind == UTF8_SHORT) return ended(s);
    if (kind == UTF8_BAD) return scan_bad(s, "not UTF-8");
    s->p += len;
    return SCAN_OK;
}

enum scan_rc scan_string(struct scan *s, struct span *raw)
{
    enum scan_rc rc = SCAN_OK;
    raw->p = ++s->p;
    while (s->p < s->end) {
        while (s->end - s->p >= 8 && plain8(load8(s->p))) s->p += 8;
        if (s->p == s->end) break;
        unsigned char c = (unsigned char)*s->p;
        if (c == '"') {
            raw->n = (size_t)(s->p++ - raw->p);
            return SCAN_OK;
        }
        if (c == '\\') rc = skip_escape(s);
        else if (c >= 0x80) rc = skip_utf8(s);
        else if (c < 0x20) rc = scan_bad(s, "a control character in a string");
        else s->p++;
        if (rc != SCAN_OK) return rc;
    }
    return ended(s);
}

/* ---- other values */

static enum scan_rc skip_word(struct scan *s, const char *word)
{
    size_t n = strlen(word), left = (size_t)(s->end - s->p);
    if (memcmp(s->p, word, left < n ? left : n) != 0) return scan_bad(s, "expected a value");
    if (left < n) return ended(s);
    s->p += n;
    return SCAN_OK;
}

static size_t skip_digits(struct scan *s)
{
    const char *from = s->p;
    while (s->p < s->end && *s->p >= '0' && *s->p <= '9') s->p++;
    return (size_t)(s->p - from);
}

static enum scan_rc skip_number(struct scan *s)
{
    s->p += *s->p == '-';
    if (s->p < s->end && *s->p == 'I') return skip_word(s, "Infinity");
    bool zero = s->p < s->end && *s->p == '0';
    size_t n = zero ? (size_t)(s->p++, 1) : skip_digits(s);
    if (n && s->p < s->end && *s->p == '.') {
        s->p++;
        n = skip_digits(s);
    }
    if (n && s->p < s->end && (*s->p | 0x20) == 'e') {
        s->p++;
        s->p += s->p < s->end && (*s->p == '+' || *s->p == '-');
        n = skip_digits(s);
    }
    if (s->p == s->end && !(s->whole && n)) return ended(s);
    return n ? SCAN_OK : scan_bad(s, "expected a digit");
}

static enum scan_rc skip_plain(struct scan *s)
{
    struct span raw;
    if (s->p == s->end) return ended(s);
    switch (*s->p) {
    case '"': return scan_string(s, &raw);
    case 't': return skip_word(s, "true");
    case 'f': return skip_word(s, "false");
    case 'n': return skip_word(s, "null");
    case 'N': return skip_word(s, "NaN");
    case 'I': return skip_word(s, "Infinity");
    }
    return *s->p == '-' || (*s->p >= '0' && *s->p <= '9') ? skip_number(s) : scan_bad(s, "expected a value");
}

static enum scan_rc skip_key(struct scan *s)
{
    struct span raw;
    enum scan_rc rc;
    scan_space(s);
    if (s->p == s->end) return ended(s);
    if (*s->p != '"') return scan_bad(s, "expected a name in quotes");
    if ((rc = scan_string(s, &raw)) != SCAN_OK) return rc;
    return scan_mark(s, ':', "expected ':'");
}

enum scan_rc scan_value(struct scan *s)
{
    char close[SCAN_DEPTH_MAX];
    int depth = 0;
    bool first = false; /* just inside a bracket: it may close at once */
    enum scan_rc rc;
    for (;;) {
        scan_space(s);
        if (s->p == s->end) return ended(s);
        if (first && *s->p == close[depth - 1]) {
            s->p++, depth--;
        } else {
            if (depth && close[depth - 1] == '}' && (rc = skip_key(s)) != SCAN_OK) return rc;
            scan_space(s);
            if (s->p < s->end && (*s->p == '{' || *s->p == '[')) {
                if (depth == SCAN_DEPTH_MAX) return scan_bad(s, "nested too deep");
                close[depth++] = *s->p++ == '{' ? '}' : ']';
                first = true;
                continue;
            }
            if ((rc = skip_plain(s)) != SCAN_OK) return rc;
        }
        for (first = false; depth; depth--) { /* what ends with this value */
            scan_space(s);
            if (s->p == s->end) return ended(s);
            if (*s->p != close[depth - 1]) break;
            s->p++;
        }
        if (depth == 0) return SCAN_OK;
        if (*s->p != ',')
            return scan_bad(s, close[depth - 1] == '}' ? "expected ',' or '}'" : "expected ',' or ']'");
        s->p++;
    }
}

/* ---- what a string says */

/* The character at p of a string that scan_string went through; a half pair as it is (0xd800 to 0xdfff). */
static const char *next_char(const char *p, const char *end, uint32_t *cp)
{
    static const char from[] = "bfnrt", to[] = "\b\f\n\r\t";
    size_t len;
    if (*p != '\\') {
        utf8_next(p, (size_t)(end - p), cp, &len);
        return p + len;
    }
    if (p[1] != 'u') {
        const char *at = strchr(from, p[1]);
        *cp = (unsigned char)(at ? to[at - from] : p[1]);
        return p + 2;
    }
    *cp = (uint32_t)code_unit(p + 2);
    p += 6;
    if (*cp < 0xd800 || *cp >= 0xdc00 || end - p < 6 || p[0] != '\\' || p[1] != 'u') return p;
    uint32_t low = (uint32_t)code_unit(p + 2);
    if (low < 0xdc00 || low >= 0xe000) return p;
    *cp = 0x10000 + ((*cp - 0xd800) << 10) + (low - 0xdc00);
    return p + 6;
}

ptrdiff_t scan_text(char *to, struct span raw)
{
    char *at = to;
    for (const char *p = raw.p, *end = raw.p + raw.n; p < end;) {
        const char *stop = memchr(p, '\\', (size_t)(end - p));
        size_t n = (size_t)((stop ? stop : end) - p);
        memmove(at, p, n);
        at += n;
        if (!stop) break;
        uint32_t cp;
        p = next_char(stop, end, &cp);
        if (cp >= 0xd800 && cp < 0xe000) return -1;
        at += utf8_put(at, cp);
    }
    *at = 0;
    return at - to;
}

bool scan_is(struct span raw, const char *text)
{
    if (!raw.n || !memchr(raw.p, '\\', raw.n)) return raw.n == strlen(text) && memcmp(raw.p, text, raw.n) == 0;
    const char *p = raw.p, *end = raw.p + raw.n;
    uint32_t cp;
    for (; *text && p < end; text++) {
        p = next_char(p, end, &cp);
        if (cp != (unsigned char)*text) return false;
    }
    return !*text && p == end;
}

size_t scan_words(struct span raw)
{
    size_t n = 0;
    bool inside = false, space;
    if (!raw.n) return 0; /* p may be NULL */
    for (const char *p = raw.p, *end = raw.p + raw.n; p < end; inside = !space) {
        for (uint64_t v; end - p >= 8 && plain8(v = load8(p)); p += 8) {
            uint64_t at = where(v, ' '), before = at << 8 | (inside ? 0 : 0x80);
            n += ((~at & before & EACH(0x80)) >> 7) * EACH(1) >> 56;
            inside = !(at >> 63);
        }
        space = !inside;
        if (p == end) break;
        unsigned char c = (unsigned char)*p;
        if (c < 0x80 && c != '\\') {
            space = c == ' '; /* the others are control characters, which are escaped */
            p++;
        } else {
            uint32_t cp;
            p = next_char(p, end, &cp);
            space = utf8_is_space(cp);
        }
        n += !space && !inside;
    }
    return n;
}
