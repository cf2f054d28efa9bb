/* See size.h. */
#include "base/size.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

bool size_read(size_t *bytes, const char *text)
{
    static const char units[] = "kmgt";
    if (!isdigit((unsigned char)*text) || text[strspn(text, "0123456789.")] == 'x') return false;
    char *end;
    double v = strtod(text, &end);
    while (*end == ' ') end++;
    const char *u = *end ? strchr(units, tolower((unsigned char)*end)) : NULL;
    if (u) {
        const double base = tolower((unsigned char)end[1]) == 'i' ? 1024 : 1000;
        for (const char *k = units; k <= u; k++) v *= base;
        end += base > 1000 ? 2 : 1;
    }
    if (tolower((unsigned char)*end) == 'b') end++;
    if (*end || !(v >= 1 && v < 1e18)) return false;
    *bytes = (size_t)v;
    return true;
}
