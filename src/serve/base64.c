/* See base64.h. */
#include "serve/base64.h"

#include <stdint.h>
#include <string.h>
#include <strings.h>

static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/* 0..63; -1: skipped; -2: padding; -3: no digit. */
static int value(unsigned char c)
{
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    if (c == '+' || c == '-') return 62;
    if (c == '/' || c == '_') return 63;
    if (c == ' ' || c == '\n' || c == '\r' || c == '\t') return -1;
    return c == '=' ? -2 : -3;
}

bool base64_decode(struct buf *out, const char *text, size_t n)
{
    uint32_t bits = 0;
    int have = 0;
    bool padded = false;
    char block[3072];
    size_t fill = 0;
    for (size_t i = 0; i < n; i++) {
        int v = value((unsigned char)text[i]);
        if (v == -1) continue;
        if (v == -3 || (padded && v >= 0)) return false;
        if (v == -2) {
            padded = true;
            continue;
        }
        bits = bits << 6 | (uint32_t)v;
        if (++have < 4) continue;
        block[fill++] = (char)(bits >> 16);
        block[fill++] = (char)(bits >> 8);
        block[fill++] = (char)bits;
        have = 0;
        if (fill == sizeof block) {
            buf_add(out, block, fill);
            fill = 0;
        }
    }
    if (have == 1) return false;
    if (have == 2) block[fill++] = (char)(bits >> 4);
    if (have == 3) {
        block[fill++] = (char)(bits >> 10);
        block[fill++] = (char)(bits >> 2);
    }
    buf_add(out, block, fill);
    return !out->failed;
}

bool base64_picture(struct buf *out, const char *text)
{
    if (!strncasecmp(text, "data:", 5)) {
        const char *comma = strchr(text, ',');
        if (!comma || comma - text < 12 || strncasecmp(comma - 7, ";base64", 7) != 0) return false;
        text = comma + 1;
    }
    return base64_decode(out, text, strlen(text));
}

void base64_encode(struct buf *out, const void *p, size_t n)
{
    const unsigned char *b = p;
    for (size_t i = 0; i < n; i += 3) {
        uint32_t v = (uint32_t)b[i] << 16 | (i + 1 < n ? (uint32_t)b[i + 1] << 8 : 0) | (i + 2 < n ? b[i + 2] : 0);
        char q[4] = { digits[v >> 18], digits[v >> 12 & 63], digits[v >> 6 & 63], digits[v & 63] };
        if (i + 1 >= n) q[2] = '=';
        if (i + 2 >= n) q[3] = '=';
        buf_add(out, q, 4);
    }
}
