/* The directory of a zip archive in memory, for archives whose entries are stored and not compressed: an
 * entry is then a view of the file. And a writer of such archives. Nothing is ever inflated. zip64 (entries
 * and archives past 4 GB) is read and written. Source: PKWARE APPNOTE.TXT 6.3.10, sections 4.3 and 4.5.3.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "file/out.h"

enum { ZIP_ENTRIES_MAX = 1 << 20 };

struct zip_entry {
    const char *name; /* not NUL-terminated: a view of the directory */
    size_t n_name;
    const unsigned char *p; /* data, a view of the archive */
    uint64_t n;             /* bytes */
    uint64_t head;          /* offset of its local header */
};

struct zip {
    struct zip_entry *at; /* by name */
    size_t n;
};

/* Reads and checks the directory: entries lie inside the archive, do not overlap, local headers agree with
 * it. Errors name the file and the entry: FORMAT, LIMIT, UNSUPPORTED (compressed, encrypted, several
 * volumes). */
int zip_open(struct zip *z, const void *p, size_t n, const char *file, struct err *e);
void zip_close(struct zip *z);                                           /* accepts a zeroed zip */
const struct zip_entry *zip_find(const struct zip *z, const char *name); /* NULL: none */

/* An archive being written into an open `struct out` (o), and its entries so far. Data of each entry starts
 * at a multiple of 64 bytes. */
struct zip_made {
    char *name;
    uint64_t head, n;
    uint32_t crc;
};
struct zip_out {
    struct out *o;
    struct zip_made *at;
    size_t n, cap;
};
int zip_out_add(struct zip_out *z, const char *name, const void *p, uint64_t n, struct err *e);
int zip_out_end(struct zip_out *z, struct err *e); /* writes the directory; the caller commits the file */
void zip_out_fini(struct zip_out *z);
