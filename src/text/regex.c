/* See regex.h. */
#include "text/regex.h"

#include <ctype.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "text/grammar.h"
#include "text/utf8.h"

enum { RANGES_MAX = 256, NEST_MAX = 64, LAST = 0x10ffff };

struct range { uint32_t lo, hi; };
struct set {
    struct range r[RANGES_MAX];
    int n;
};
struct reader {
    const char *at, *end;
    struct buf *out;
    bool json;
    int nest;
    struct err *e;
};

static int bad(struct reader *r, const char *what) { return err_set(r->e, ERR_FORMAT, "pattern: %s", what); }

static int unknown(struct reader *r, const char *what)
{
    return err_set(r->e, ERR_UNSUPPORTED, "pattern: %s not supported", what);
}

static bool next_is(const struct reader *r, const char *text)
{
    const size_t n = strlen(text);
    return (size_t)(r->end - r->at) >= n && !memcmp(r->at, text, n);
}

/* ---- sets of characters */

static int set_add(struct reader *r, struct set *s, uint32_t lo, uint32_t hi)
{
    if (s->n == RANGES_MAX) return bad(r, "a class of too many ranges");
    s->r[s->n++] = (struct range){ lo, hi };
    return 0;
}

/* s becomes the characters that are not in it. */
static int set_turn(struct reader *r, struct set *s)
{
    const struct set from = *s;
    uint32_t next = 0;
    s->n = 0;
    for (;;) { /* the first range that ends past `next` begins where? */
        uint32_t lo = LAST + 1, hi = LAST;
        for (int i = 0; i < from.n; i++)
            if (from.r[i].hi >= next && from.r[i].lo < lo) lo = from.r[i].lo, hi = from.r[i].hi;
        if (lo > next) {
            const int rc = set_add(r, s, next, lo > LAST ? LAST : lo - 1);
            if (rc < 0) return rc;
        }
        if (lo > LAST || hi >= LAST) return 0;
        next = hi + 1;
    }
}

static bool set_has(const struct set *s, uint32_t c)
{
    for (int i = 0; i < s->n; i++)
        if (c >= s->r[i].lo && c <= s->r[i].hi) return true;
    return false;
}

/* What \d, \w, \s stand for; in capitals, everything else. False: `kind` is none of them. */
static bool set_of_kind(struct reader *r, struct set *s, char kind, int *rc)
{
    static const struct { char kind; struct range r[12]; } kinds[] = {
        { 'd', { { '0', '9' } } },
        { 'w', { { '0', '9' }, { 'A', 'Z' }, { '_', '_' }, { 'a', 'z' } } },
        { 's', { { '\t', '\r' }, { ' ', ' ' }, { 0xa0, 0xa0 }, { 0x1680, 0x1680 }, { 0x2000, 0x200a },
                 { 0x2028, 0x2029 }, { 0x202f, 0x202f }, { 0x205f, 0x205f }, { 0x3000, 0x3000 } } },
    };
    static const struct range doubtful[] = { { 0x1c, 0x1f }, { 0x85, 0x85 }, { 0xfeff, 0xfeff } }; /* white to some */
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (tolower((unsigned char)kind) != kinds[i].kind) continue;
        struct set own = { .n = 0 };
        *rc = 0;
        for (const struct range *k = kinds[i].r; k->hi && *rc >= 0; k++) *rc = set_add(r, &own, k->lo, k->hi);
        for (const struct range *k = doubtful; kind == 'S' && k < doubtful + 3 && *rc >= 0; k++)
            *rc = set_add(r, &own, k->lo, k->hi);
        if (isupper((unsigned char)kind) && *rc >= 0) *rc = set_turn(r, &own);
        for (int k = 0; k < own.n && *rc >= 0; k++) *rc = set_add(r, s, own.r[k].lo, own.r[k].hi);
        return true;
    }
    return false;
}

/* ---- writing */

static void put_char(struct buf *b, uint32_t c) { buf_fmt(b, "\\U%08x", c); }

/* Characters that a JSON string holds as they are, and those that it escapes. */
static void write_json(struct buf *b, const struct set *s)
{
    static const struct { uint32_t c; const char *text; } escaped[] = {
        { '"', "\\\\\\\"" }, { '\\', "\\\\\\\\" }, { '\b', "\\\\b" }, { '\f', "\\\\f" },
        { '\n', "\\\\n" },   { '\r', "\\\\r" },    { '\t', "\\\\t" },
    };
    static const struct range plain[] = { { ' ', '!' }, { '#', '[' }, { ']', LAST } };
    bool any = false;
    buf_str(b, "(");
    for (size_t i = 0; i < sizeof escaped / sizeof *escaped; i++) {
        if (!set_has(s, escaped[i].c)) continue;
        buf_fmt(b, "%s\"%s\"", any ? " | " : "", escaped[i].text);
        any = true;
    }
    bool open = false;
    for (int i = 0; i < s->n; i++)
        for (int k = 0; k < 3; k++) {
            const uint32_t lo = s->r[i].lo > plain[k].lo ? s->r[i].lo : plain[k].lo;
            const uint32_t hi = s->r[i].hi < plain[k].hi ? s->r[i].hi : plain[k].hi;
            if (lo > hi) continue;
            if (!open) buf_str(b, any ? " | [" : "[");
            open = true;
            put_char(b, lo);
            buf_chr(b, '-');
            put_char(b, hi);
        }
    buf_str(b, open ? "])" : ")");
}

static int write_set(struct reader *r, const struct set *s)
{
    struct buf *b = r->out;
    bool any = false;
    const uint32_t c = s->n == 1 && s->r[0].lo == s->r[0].hi ? s->r[0].lo : 0;
    if (c >= ' ' && (!r->json || (c != '"' && c != '\\'))) { /* a literal is a smaller machine than a class */
        buf_str(b, "\"");
        put_char(b, c);
        buf_str(b, "\"");
        return 0;
    }
    for (int i = 0; i < s->n; i++) /* one that JSON leaves nothing of would be nothing, not none */
        any |= !r->json || s->r[i].hi >= ' ' || (s->r[i].lo <= '\r' && s->r[i].hi >= '\b' && s->r[i].lo != '\v');
    if (!any) return unknown(r, "a class without characters, or of control characters only, is");
    if (r->json) {
        write_json(b, s);
        return 0;
    }
    buf_chr(b, '[');
    for (int i = 0; i < s->n; i++) {
        put_char(b, s->r[i].lo);
        buf_chr(b, '-');
        put_char(b, s->r[i].hi);
    }
    buf_chr(b, ']');
    return 0;
}

/* ---- reading */

static int hex(struct reader *r, int digits, uint32_t *c)
{
    *c = 0;
    for (int i = 0; digits ? i < digits : r->at < r->end && *r->at != '}'; i++, r->at++) {
        const char *all = "0123456789abcdef", *at;
        if (r->at >= r->end || i == 8 || !*r->at || !(at = strchr(all, tolower((unsigned char)*r->at))))
            return bad(r, "an escape without its digits");
        *c = *c << 4 | (uint32_t)(at - all);
    }
    if (!digits && r->at++ >= r->end) return bad(r, "an escape that does not end");
    return *c <= LAST ? 0 : bad(r, "no such character");
}

/* One character, escapes resolved, which stands behind a backslash or by itself. */
static int character(struct reader *r, bool escaped, uint32_t *c)
{
    static const char from[] = "ntrfv0", to[] = "\n\t\r\f\v";
    size_t len;
    if (utf8_next(r->at, (size_t)(r->end - r->at), c, &len) != UTF8_OK) return bad(r, "not UTF-8");
    r->at += len;
    if (!escaped) return 0;
    const char *known = *c && *c < 0x80 ? strchr(from, (int)*c) : NULL;
    if (known) return *c = (unsigned char)to[known - from], 0;
    if (*c == 'x') return hex(r, 2, c);
    if (*c == 'u' && next_is(r, "{")) return r->at++, hex(r, 0, c);
    if (*c == 'u') return hex(r, 4, c);
    if (*c < 0x80 && isalnum((int)*c)) return unknown(r, "an escape such as \\b, \\1 or \\p is");
    return 0;
}

/* A character of a class, or what \d and its like stand for (then *kind). */
static int class_item(struct reader *r, struct set *s, uint32_t *c, bool *kind)
{
    const bool escaped = *r->at == '\\';
    int rc = 0;
    *kind = false;
    r->at += escaped;
    if (r->at >= r->end) return bad(r, "a class does not end");
    if (escaped && set_of_kind(r, s, *r->at, &rc)) {
        *kind = true;
        r->at++;
        return rc;
    }
    if (escaped && *r->at == 'b') return r->at++, *c = '\b', 0;
    return character(r, escaped, c);
}

static int class(struct reader *r)
{
    struct set s = { .n = 0 };
    uint32_t lo, hi;
    bool kind;
    int rc;
    const bool others = ++r->at < r->end && *r->at == '^';
    r->at += others;
    while (r->at < r->end && *r->at != ']') {
        if ((rc = class_item(r, &s, &lo, &kind)) < 0) return rc;
        if (kind) continue;
        hi = lo;
        if (r->end - r->at >= 2 && r->at[0] == '-' && r->at[1] != ']') {
            r->at++;
            if ((rc = class_item(r, &s, &hi, &kind)) < 0) return rc;
            if (kind) { /* [a-\d]: the dash is one of them */
                if ((rc = set_add(r, &s, '-', '-')) < 0) return rc;
                hi = lo;
            }
        }
        if (hi < lo) return bad(r, "a range that falls");
        if ((rc = set_add(r, &s, lo, hi)) < 0) return rc;
    }
    if (r->at++ >= r->end) return bad(r, "a class does not end");
    if (others && (rc = set_turn(r, &s)) < 0) return rc;
    return write_set(r, &s);
}

static int alternatives(struct reader *r, bool whole);

static int group(struct reader *r)
{
    if (r->nest == NEST_MAX) return bad(r, "groups that are nested too deep");
    r->at++;
    if (next_is(r, "?=") || next_is(r, "?!") || next_is(r, "?<=") || next_is(r, "?<!"))
        return unknown(r, "looking around is");
    if (next_is(r, "?:")) r->at += 2;
    else if (next_is(r, "?<") || next_is(r, "?P<")) {
        while (r->at < r->end && *r->at != '>') r->at++;
        r->at += r->at < r->end;
    } else if (next_is(r, "?")) return unknown(r, "a group with flags is");
    r->nest++;
    buf_str(r->out, "(");
    const int rc = alternatives(r, false);
    r->nest--;
    if (rc < 0) return rc;
    if (r->at++ >= r->end) return bad(r, "a group without ')'");
    buf_str(r->out, ")");
    return 0;
}

/* A quantifier at hand, if there is one, which grammars write in the same way. */
static int quantifier(struct reader *r)
{
    const char *at = r->at;
    if (at < r->end && strchr("*+?", *at) && *at) at++;
    else if (at < r->end && *at == '{') {
        while (++at < r->end && (isdigit((unsigned char)*at) || *at == ',')) {}
        if (at >= r->end || *at != '}' || !isdigit((unsigned char)r->at[1])) return 0; /* a brace that is text */
        at++;
        char *comma;
        const long least = strtol(r->at + 1, &comma, 10);
        const long most = *comma == ',' && isdigit((unsigned char)comma[1]) ? strtol(comma + 1, NULL, 10) : least;
        if (most < least) return bad(r, "a repetition that falls");
        if (most > GRAMMAR_REPEAT_MAX) return bad(r, "a repetition of more than 4096 times");
    }
    if (at == r->at) return 0;
    buf_add(r->out, r->at, (size_t)(at - r->at));
    r->at = at;
    if (r->at < r->end && *r->at == '?') r->at++; /* as few as may be: the same texts */
    if (r->at < r->end && *r->at && strchr("*+?", *r->at)) return bad(r, "a repetition of a repetition");
    return 0;
}

static int item(struct reader *r)
{
    struct set s = { .n = 0 };
    uint32_t c;
    int rc;
    if (*r->at == '(') return group(r);
    if (*r->at == '[') return class(r);
    if (strchr("*+?", *r->at) && *r->at) return bad(r, "a repetition of nothing");
    if (*r->at == '.') {
        r->at++;
        rc = set_add(r, &s, '\n', '\n');
        if (rc >= 0) rc = set_add(r, &s, '\r', '\r');
        if (rc >= 0) rc = set_turn(r, &s);
        return rc < 0 ? rc : write_set(r, &s);
    }
    const bool escaped = *r->at == '\\';
    r->at += escaped;
    if (r->at >= r->end) return bad(r, "a lone backslash");
    if (escaped && set_of_kind(r, &s, *r->at, &rc)) {
        r->at++;
        return rc < 0 ? rc : write_set(r, &s);
    }
    if ((rc = character(r, escaped, &c)) < 0 || (rc = set_add(r, &s, c, c)) < 0) return rc;
    return write_set(r, &s);
}

/* Until what ends it. whole: the alternatives of the expression itself, where ^ and $ may stand. */
static int sequence(struct reader *r, bool whole)
{
    const bool search = whole && r->json;
    bool begins = false, ends = false;
    int rc = 0;
    if (whole && next_is(r, "^")) r->at++, begins = true;
    if (search && !begins) buf_str(r->out, "char* ");
    while (r->at < r->end && *r->at != '|' && *r->at != ')' && rc >= 0) {
        const bool dollar = *r->at == '$';
        if (dollar && whole && (r->end - r->at == 1 || r->at[1] == '|')) {
            r->at++;
            ends = true;
            break;
        }
        if (dollar || *r->at == '^') return unknown(r, "'^' or '$' inside is");
        rc = item(r);
        if (rc >= 0) rc = quantifier(r);
        buf_chr(r->out, ' ');
    }
    if (search && !ends) buf_str(r->out, "char* ");
    return rc;
}

static int alternatives(struct reader *r, bool whole)
{
    for (;;) {
        const int rc = sequence(r, whole);
        if (rc < 0 || r->at >= r->end || *r->at == ')') return rc;
        r->at++;
        buf_str(r->out, "| ");
    }
}

int regex_write(struct buf *out, const char *pattern, size_t n, bool json, struct err *e)
{
    struct reader r = { .at = pattern, .end = pattern + n, .out = out, .json = json, .e = e };
    buf_str(out, "(");
    int rc = alternatives(&r, true);
    if (rc >= 0 && r.at < r.end) rc = bad(&r, "')' without '('");
    buf_str(out, ")");
    return rc < 0 ? rc : 0;
}
