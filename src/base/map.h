/* A file mapped read-only into memory. Pages are read when touched; nothing goes through the heap. */
#pragma once
#include <stddef.h>

#include "base/err.h"

struct map {
    const unsigned char *p; /* NULL for an empty file */
    size_t n;               /* bytes */
};

int map_open(struct map *m, const char *path, struct err *e);
void map_close(struct map *m); /* accepts a zeroed map */
