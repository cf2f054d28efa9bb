/* The page's files, which the program carries inside: made at build time by tools/embed from src/serve/web and from the
 * libraries that Debian packages for pages (marked, highlight.js, KaTeX; those that are missing are left out, and
 * the page shows plain text where it would have used them). */
#pragma once
#include <stddef.h>

struct asset {
    const char *path;            /* "/app.js"; "/" is the page */
    const char *mime;            /* Content-Type */
    const char *etag;            /* "\"16 hex digits\"", of the bytes */
    const unsigned char *bytes;
    size_t n;
    const unsigned char *gz;     /* the same, compressed with gzip; NULL where that saves nothing */
    size_t n_gz;
};

/* NULL: none has this path, which is compared as a whole (nothing is decoded or normalised). */
const struct asset *asset_find(const char *path);
