/* Fuzz target: any bytes as image_grid_pinpoints; what is read chooses a grid and the order of its features.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "image/anyres.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct pinpoints p;
    struct err e;
    if (n < 2 || pinpoints_parse(&p, (const char *)data + 2, n - 2, data[0] & 1, &e) < 0) return 0;
    int w = 1 + data[0] * 17, h = 1 + data[1] * 17, tile = 336;
    struct grid g = anyres_grid(&p, w, h, tile);
    for (int m = MERGE_FLAT; m <= MERGE_UNPAD; m++) {
        int64_t count = merge_rows(NULL, (enum merge)m, g, 4, w, h), top = (1 + (int64_t)g.w * g.h) * 16;
        int32_t *rows = malloc((size_t)count * sizeof *rows);
        if (!rows || merge_rows(rows, (enum merge)m, g, 4, w, h) != count) abort();
        for (int64_t i = 0; i < count; i++)
            if (rows[i] < -1 || rows[i] >= top) abort();
        free(rows);
    }
    return 0;
}
