/* See name.h. */
#include "base/name.h"

#include <string.h>

static int least(int a, int b) { return a < b ? a : b; }

int name_distance(const char *a, const char *b)
{
    int row[64]; /* row[j]: from a's first i bytes to b's first j */
    const int n = (int)strnlen(b, sizeof row / sizeof *row);
    if (n > 62) return 99;
    for (int j = 0; j <= n; j++) row[j] = j;
    for (int i = 1; a[i - 1]; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= n; j++) {
            const int change = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            row[j] = least(change, 1 + least(row[j - 1], row[j]));
        }
    }
    return row[n];
}
