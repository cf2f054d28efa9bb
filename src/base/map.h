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
/* The whole pages of p[0..n), within a map, leave this process's memory; reading them again finds them in the file. */
void map_forget(const void *p, size_t n);
