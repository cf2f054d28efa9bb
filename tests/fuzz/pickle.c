/* Any bytes as the data.pkl of an otherwise good torch archive with storages 0 (64 bytes) and 1 (8 bytes):
 * finds what a change in the archive itself would not reach. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/err.h"
#include "file/torchbin.h"
#include "file/zip.h"

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);

static volatile unsigned char sink; /* every byte is read */

static void put(struct buf *b, uint64_t v, int bytes)
{
    for (int i = 0; i < bytes; i++) buf_chr(b, (char)(v >> (8 * i)));
}

/* Local header and data of a stored entry; its record into the directory. */
static void entry(struct buf *b, struct buf *dir, const char *name, const void *p, size_t n)
{
    size_t at = b->n, k = strlen(name);
    buf_add(b, "PK\3\4\12\0\0\0\0\0\0\0\0\0\0\0\0\0", 18);
    put(b, n, 4);
    put(b, n, 4);
    put(b, k, 4);
    buf_str(b, name);
    buf_add(b, p, n);
    buf_add(dir, "PK\1\2\12\0\12\0\0\0\0\0\0\0\0\0\0\0\0\0", 20);
    put(dir, n, 4);
    put(dir, n, 4);
    put(dir, k, 6);
    put(dir, 0, 8);
    put(dir, at, 4);
    buf_str(dir, name);
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
    struct weight_list l = { 0 };
    struct err e;
    struct buf b = buf_make(1 << 24), dir = buf_make(1 << 16);
    char zeros[64] = { 0 };
    entry(&b, &dir, "x/data.pkl", p, n);
    entry(&b, &dir, "x/data/0", zeros, 64);
    entry(&b, &dir, "x/data/1", zeros, 8);
    size_t at = b.n;
    buf_add(&b, dir.p, dir.n);
    buf_add(&b, "PK\5\6\0\0\0\0\3\0\3\0", 12);
    put(&b, dir.n, 4);
    put(&b, at, 4);
    put(&b, 0, 2);
    struct zip z;
    if (zip_open(&z, b.p, b.n, "fuzz", &e) < 0) BUG("the archive around the pickle is wrong: %s", e.msg);
    zip_close(&z);
    int rc = torchbin_parse(&l, b.p, b.n, "fuzz", &e);
    for (size_t i = 0; rc >= 0 && i < l.n; i++)
        for (size_t k = 0; k < tensor_bytes(l.at[i].t); k++) sink = ((unsigned char *)l.at[i].t.p)[k];
    weight_list_fini(&l);
    buf_free(&b);
    buf_free(&dir);
    return 0;
}
