/* Memory for what blocks have away (op.h, op_away): a piece for each block, one on the other. */
#pragma once
#include <stdbool.h>
#include <stdlib.h>

struct pile { char *piece[8]; int n; };

static char *pile_open(void *ctx, size_t bytes, bool back)
{
    struct pile *p = ctx;
    if (!back) p->piece[p->n++] = malloc(bytes + 1);
    return p->piece[p->n - 1];
}

static void pile_close(void *ctx, bool back)
{
    struct pile *p = ctx;
    if (back) free(p->piece[--p->n]);
}
