/* See asset.h. The table itself is written by tools/embed. */
#include "serve/asset.h"

#include <stdlib.h>
#include <string.h>

extern const struct asset asset_table[]; /* sorted by path */
extern const size_t asset_count;

static int order(const void *key, const void *row) { return strcmp(key, ((const struct asset *)row)->path); }

const struct asset *asset_find(const char *path)
{
    return bsearch(path, asset_table, asset_count, sizeof *asset_table, order);
}
