/* See utf8.h. */
#include "base/utf8.h"

enum utf8_kind utf8_next(const char *p, size_t n, uint32_t *cp, size_t *len)
{
    static const uint32_t least[5] = { 0, 0, 0x80, 0x800, 0x10000 };
    const unsigned char *u = (const unsigned char *)p;
    size_t k = u[0] < 0x80 ? 1 : u[0] >= 0xc2 && u[0] < 0xe0 ? 2 : u[0] >= 0xe0 && u[0] < 0xf0 ? 3
             : u[0] >= 0xf0 && u[0] < 0xf5 ? 4 : 0;
    if (k == 0) return UTF8_BAD;
    uint32_t c = k == 1 ? u[0] : u[0] & (0x7fu >> k);
    for (size_t i = 1; i < k; i++) {
        if (i == n) return UTF8_SHORT;
        if ((u[i] & 0xc0) != 0x80) return UTF8_BAD;
        c = c << 6 | (u[i] & 0x3fu);
        /* The second byte decides about overlong forms, surrogates and the upper end. */
        if (i == 1 && k > 2) {
            uint32_t low = c << 6 * (k - 2), high = low | ((1u << 6 * (k - 2)) - 1);
            if (high < least[k] || low > 0x10ffff || (low >= 0xd800 && high <= 0xdfff)) return UTF8_BAD;
        }
    }
    *cp = c;
    *len = k;
    return UTF8_OK;
}
