/* See number.h. */
#include "text/number.h"

#include <stdio.h>
#include <string.h>

enum { DIGITS = 16 };

static void separate(struct buf *b, bool *any)
{
    if (*any) buf_str(b, " | ");
    *any = true;
}

static void put_digits(struct buf *b, char lo, char hi, size_t n)
{
    buf_fmt(b, "[%c-%c]", lo, hi);
    if (n) buf_fmt(b, " [0-9]{%zu}", n);
}

static bool all(const char *s, char digit) { return s[strspn(s, (char[]){ digit, 0 })] == 0; }

/* Texts of digits from lo to hi, which are as long as each other: those that begin as lo does, those between, and those
 * that begin as hi does. */
static void between(struct buf *b, const char *lo, const char *hi)
{
    const size_t rest = strlen(lo) - 1;
    const char least[] = "0000000000000000", most[] = "9999999999999999";
    char from = lo[0], to = hi[0];
    bool any = false;
    if (!*lo) {
        buf_str(b, "\"\"");
        return;
    }
    if (from == to) {
        buf_fmt(b, "\"%c\" (", from);
        between(b, lo + 1, hi + 1);
        buf_str(b, ")");
        return;
    }
    if (!all(lo + 1, '0')) {
        separate(b, &any);
        buf_fmt(b, "\"%c\" (", from++);
        between(b, lo + 1, most + DIGITS - rest);
        buf_str(b, ")");
    }
    const bool last = !all(hi + 1, '9');
    if (from <= to - last) {
        separate(b, &any);
        put_digits(b, from, (char)(to - last), rest);
    }
    if (last) {
        separate(b, &any);
        buf_fmt(b, "\"%c\" (", to);
        between(b, least + DIGITS - rest, hi + 1);
        buf_str(b, ")");
    }
}

/* The whole numbers lo..hi, 0 <= lo <= hi: by their number of digits, of which the ones that are all there are one. */
static void magnitudes(struct buf *b, int64_t lo, int64_t hi)
{
    bool any = false;
    int64_t least = 1, first = 0, last = 0; /* digits of numbers that are all there */
    if (lo == 0) {
        separate(b, &any);
        buf_str(b, "\"0\"");
    }
    for (int digits = 1; digits <= DIGITS; digits++, least *= 10) {
        const int64_t most = least * 10 - 1, from = lo > least ? lo : least, to = hi < most ? hi : most;
        char a[24], z[24];
        if (from > to) continue;
        if (from == least && to == most) {
            if (!first) first = digits;
            last = digits;
            continue;
        }
        separate(b, &any);
        snprintf(a, sizeof a, "%lld", (long long)from);
        snprintf(z, sizeof z, "%lld", (long long)to);
        between(b, a, z);
    }
    if (!first) return;
    separate(b, &any);
    buf_fmt(b, "[1-9] [0-9]{%d,%d}", (int)first - 1, (int)last - 1);
}

/* Numbers of one sign whose part before the point is lo..hi. */
static void signs(struct buf *b, bool *any, const char *sign, int64_t lo, int64_t hi, const char *fraction)
{
    if (lo > hi) return;
    separate(b, any);
    buf_fmt(b, "%s(", sign);
    magnitudes(b, lo, hi);
    buf_fmt(b, ")%s", fraction);
}

bool number_write(struct buf *out, int64_t lo, int64_t hi, bool fractions, int64_t from, int64_t to)
{
    static const char minus[] = "\"-\" ", fraction[] = " \".\" [0-9]{0,14} [1-9]";
    bool any = false;
    buf_str(out, "(");
    signs(out, &any, minus, hi < -1 ? -hi : 1, -lo, "");
    signs(out, &any, "", lo > 0 ? lo : 0, hi, "");
    if (fractions) {
        signs(out, &any, minus, to < 0 ? -to : 0, -from - 1, fraction);
        signs(out, &any, "", from > 0 ? from : 0, to - 1, fraction);
    }
    buf_str(out, ")");
    return any;
}
