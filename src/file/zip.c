/* See zip.h. */
#include "file/zip.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

enum {
    LOCAL_BYTES = 30,
    CENTRAL_BYTES = 46,
    END_BYTES = 22,
    END64_BYTES = 56,
    LOCATOR_BYTES = 20,
    COMMENT_MAX = 65535,
    FLAG_ENCRYPTED = 1,
    FLAG_SIZES_FOLLOW = 8, /* sizes in the local header are 0: they come after the data */
    EXTRA_ZIP64 = 1,
    ALIGN = 64
};
static const char sig_local[4] = "PK\3\4", sig_central[4] = "PK\1\2", sig_end[4] = "PK\5\6",
                  sig_end64[4] = "PK\6\6", sig_locator[4] = "PK\6\7";

static uint64_t get_le(const unsigned char *p, int n)
{
    uint64_t v = 0;
    while (n-- > 0) v = v << 8 | p[n];
    return v;
}
static uint16_t get16(const unsigned char *p) { return (uint16_t)get_le(p, 2); }
static uint32_t get32(const unsigned char *p) { return (uint32_t)get_le(p, 4); }

/* What the end record says. */
struct dir {
    uint64_t at, n, count; /* offset and bytes of the directory, entries in it */
    uint64_t end;          /* offset where the (first) end record starts */
};

struct reader {
    const unsigned char *p;
    size_t n;
    const char *file;
    struct err *e;
};

static int bad(const struct reader *r, const char *what)
{
    return err_set(r->e, ERR_FORMAT, "'%s' is not a whole zip archive: %s", r->file, what);
}

static int end64_read(const struct reader *r, struct dir *d, size_t end)
{
    if (end < LOCATOR_BYTES || memcmp(r->p + end - LOCATOR_BYTES, sig_locator, 4) != 0)
        return 0; /* plain zip */
    uint64_t at = get_le(r->p + end - LOCATOR_BYTES + 8, 8);
    if (at > end - LOCATOR_BYTES || end - LOCATOR_BYTES - at < END64_BYTES ||
        memcmp(r->p + at, sig_end64, 4) != 0)
        return bad(r, "its zip64 end record is not where the locator says");
    *d = (struct dir){ get_le(r->p + at + 48, 8), get_le(r->p + at + 40, 8), get_le(r->p + at + 32, 8), at };
    return 0;
}

static int dir_find(const struct reader *r, struct dir *d)
{
    if (r->n < END_BYTES) return bad(r, "too short");
    size_t lowest = r->n - END_BYTES > COMMENT_MAX ? r->n - END_BYTES - COMMENT_MAX : 0,
           end = r->n - END_BYTES;
    while (memcmp(r->p + end, sig_end, 4) != 0 || get16(r->p + end + 20) != r->n - END_BYTES - end)
        if (end-- == lowest) return bad(r, "no end record (is the file cut short?)");
    *d = (struct dir){ get32(r->p + end + 16), get32(r->p + end + 12), get16(r->p + end + 10), end };
    int rc = end64_read(r, d, end);
    if (rc < 0) return rc;
    if (d->at > d->end || d->n > d->end - d->at) return bad(r, "its directory lies outside the file");
    if (d->count > ZIP_ENTRIES_MAX)
        return err_set(r->e, ERR_LIMIT, "'%s' has more than %d entries", r->file, ZIP_ENTRIES_MAX);
    if (d->count > d->n / CENTRAL_BYTES) return bad(r, "its directory is too short for its entries");
    return 0;
}

/* Replaces those of the three 32-bit values that are all ones by what the zip64 field holds, in this order.
 */
static int zip64_read(const struct reader *r, const unsigned char *x, size_t n, uint64_t *const value[3])
{
    const unsigned char *field = NULL;
    size_t left = 0, at = 0;
    while (n - at >= 4 && !field) {
        size_t len = get16(x + at + 2);
        if (len > n - at - 4) break;
        if (get16(x + at) == EXTRA_ZIP64) field = x + at + 4, left = len;
        at += 4 + len;
    }
    for (int i = 0; i < 3; i++) {
        if (*value[i] != UINT32_MAX) continue;
        if (!field || left < 8) return bad(r, "a zip64 field is missing");
        *value[i] = get_le(field, 8);
        field += 8;
        left -= 8;
    }
    return 0;
}

/* The local header must say what the directory says; sets the place of the data. `size` as the directory has
 * it. */
static int local_check(const struct reader *r, struct zip_entry *t, uint64_t limit, uint16_t flags)
{
    int shown = t->n_name < 200 ? (int)t->n_name : 200;
    if (t->head > limit || limit - t->head < LOCAL_BYTES || memcmp(r->p + t->head, sig_local, 4) != 0)
        return err_set(r->e, ERR_FORMAT, "'%s': no local header for entry '%.*s'", r->file, shown, t->name);
    const unsigned char *h = r->p + t->head;
    uint64_t skip = LOCAL_BYTES + (uint64_t)get16(h + 26) + get16(h + 28), size = get32(h + 18);
    if (skip > limit - t->head || t->n > limit - t->head - skip)
        return err_set(r->e, ERR_FORMAT, "'%s': entry '%.*s' of %" PRIu64 " bytes ends outside the file",
                       r->file, shown, t->name, t->n);
    bool sized = !((flags | get16(h + 6)) & FLAG_SIZES_FOLLOW) && size != UINT32_MAX;
    if (get16(h + 26) != t->n_name || memcmp(h + LOCAL_BYTES, t->name, t->n_name) != 0 || get16(h + 8) != 0 ||
        (get16(h + 6) & FLAG_ENCRYPTED) || (sized && size != t->n))
        return err_set(r->e, ERR_FORMAT, "'%s': local header and directory disagree about entry '%.*s'",
                       r->file, shown, t->name);
    t->p = h + skip;
    return 0;
}

/* One record of the directory at d[0..n); returns its length, or < 0. */
static int64_t entry_read(const struct reader *r, struct zip_entry *t, const unsigned char *d, uint64_t n,
                          uint64_t limit)
{
    if (n < CENTRAL_BYTES || memcmp(d, sig_central, 4) != 0) return bad(r, "its directory is damaged");
    size_t n_name = get16(d + 28), n_extra = get16(d + 30), n_note = get16(d + 32);
    if (n - CENTRAL_BYTES < n_name + n_extra + n_note) return bad(r, "its directory is damaged");
    uint64_t packed = get32(d + 20), size = get32(d + 24), head = get32(d + 42);
    int rc = zip64_read(r, d + CENTRAL_BYTES + n_name, n_extra, (uint64_t *const[]){ &size, &packed, &head });
    if (rc < 0) return rc;
    *t = (struct zip_entry){ (const char *)d + CENTRAL_BYTES, n_name, NULL, size, head };
    int shown = n_name < 200 ? (int)n_name : 200;
    if (get16(d + 10) != 0 || packed != size || (get16(d + 8) & FLAG_ENCRYPTED))
        return err_set(r->e, ERR_UNSUPPORTED,
                       "'%s': entry '%.*s' is compressed or encrypted; only stored entries, as "
                       "torch.save writes them, can be read",
                       r->file, shown, t->name);
    if ((rc = local_check(r, t, limit, get16(d + 8))) < 0) return rc;
    return (int64_t)(CENTRAL_BYTES + n_name + n_extra + n_note);
}

static int by_place(const void *a, const void *b)
{
    const struct zip_entry *x = a, *y = b;
    return x->head < y->head ? -1 : x->head > y->head;
}

static int by_name(const void *a, const void *b)
{
    const struct zip_entry *x = a, *y = b;
    int c = memcmp(x->name, y->name, x->n_name < y->n_name ? x->n_name : y->n_name);
    return c ? c : x->n_name < y->n_name ? -1 : x->n_name > y->n_name;
}

static int overlap_check(const struct reader *r, const struct zip *z)
{
    for (size_t i = 1; i < z->n; i++) {
        const struct zip_entry *a = &z->at[i - 1], *b = &z->at[i];
        if ((uint64_t)(a->p - r->p) + a->n > b->head)
            return err_set(r->e, ERR_FORMAT, "'%s': entries '%.*s' and '%.*s' overlap", r->file,
                           a->n_name < 200 ? (int)a->n_name : 200, a->name,
                           b->n_name < 200 ? (int)b->n_name : 200, b->name);
    }
    return 0;
}

int zip_open(struct zip *z, const void *p, size_t n, const char *file, struct err *e)
{
    struct reader r = { p, n, file, e };
    struct dir d = { 0 };
    *z = (struct zip){ 0 };
    int rc = dir_find(&r, &d);
    if (rc < 0) return rc;
    z->at = calloc((size_t)d.count + 1, sizeof *z->at);
    if (!z->at) return err_set(e, ERR_NOMEM, "no memory to read '%s'", file);
    uint64_t at = 0;
    for (; z->n < d.count; z->n++) {
        int64_t k = entry_read(&r, &z->at[z->n], r.p + d.at + at, d.n - at, d.at);
        if (k < 0) rc = (int)k;
        if (k < 0) break;
        at += (uint64_t)k;
    }
    if (rc >= 0) {
        qsort(z->at, z->n, sizeof *z->at, by_place);
        rc = overlap_check(&r, z);
        qsort(z->at, z->n, sizeof *z->at, by_name);
    }
    if (rc < 0) zip_close(z);
    return rc;
}

void zip_close(struct zip *z)
{
    free(z->at);
    *z = (struct zip){ 0 };
}

const struct zip_entry *zip_find(const struct zip *z, const char *name)
{
    struct zip_entry key = { .name = name, .n_name = strlen(name) };
    return z->n ? bsearch(&key, z->at, z->n, sizeof *z->at, by_name) : NULL;
}

static unsigned char *put(unsigned char *p, uint64_t v, int n)
{
    for (int i = 0; i < n; i++) *p++ = (unsigned char)(v >> (8 * i));
    return p;
}

static unsigned char *put_sig(unsigned char *p, const char sig[4])
{
    memcpy(p, sig, 4);
    return p + 4;
}

/* The fields that both headers share: version 4.5, no flags, stored, 1980-01-01, CRC; sizes are in the zip64
 * field. */
static unsigned char *put_common(unsigned char *p, uint32_t crc, size_t n_name, size_t n_extra)
{
    p = put(p, 45, 2);
    p = put(p, 0, 4);
    p = put(p, 0x00210000, 4);
    p = put(p, crc, 4);
    p = put(p, UINT64_MAX, 8);
    p = put(p, n_name, 2);
    return put(p, n_extra, 2);
}

static uint32_t crc_of(const unsigned char *p, uint64_t n)
{
    uLong crc = crc32(0, NULL, 0);
    for (uint64_t at = 0, k; at < n; at += k) {
        k = n - at < (uint64_t)1 << 30 ? n - at : (uint64_t)1 << 30;
        crc = crc32(crc, p + at, (uInt)k);
    }
    return (uint32_t)crc;
}

int zip_out_add(struct zip_out *z, const char *name, const void *data, uint64_t n, struct err *e)
{
    size_t n_name = strlen(name);
    ASSERT(n_name < 1000);
    if (z->n == z->cap) {
        size_t cap = z->cap ? 2 * z->cap : 64;
        void *at = realloc(z->at, cap * sizeof *z->at);
        if (!at) return err_set(e, ERR_NOMEM, "no memory for the directory of '%s'", z->o->path);
        z->at = at;
        z->cap = cap;
    }
    struct zip_made m = { strdup(name), z->o->at, n, crc_of(data, n) };
    if (!m.name) return err_set(e, ERR_NOMEM, "no memory for the directory of '%s'", z->o->path);
    z->at[z->n++] = m;
    /* an unknown field fills up to the alignment; it is 4 bytes at least */
    size_t used = (size_t)((m.head + LOCAL_BYTES + n_name + 20 + 4) % ALIGN), pad = (ALIGN - used) % ALIGN;
    unsigned char h[LOCAL_BYTES + 1000 + 20 + 4 + ALIGN] = { 0 }, *p = put_sig(h, sig_local);
    p = put_common(p, m.crc, n_name, 24 + pad);
    memcpy(p, name, n_name);
    p = put(p + n_name, EXTRA_ZIP64, 2);
    p = put(put(put(p, 16, 2), n, 8), n, 8);
    p = put(put(p, 0x4246, 2), pad, 2) + pad; /* "FB", the field that PyTorch uses for this */
    int rc = out_write(z->o, h, (size_t)(p - h), e);
    return rc < 0 ? rc : out_write(z->o, data, n, e);
}

int zip_out_end(struct zip_out *z, struct err *e)
{
    uint64_t start = z->o->at;
    for (size_t i = 0; i < z->n; i++) {
        const struct zip_made *m = &z->at[i];
        size_t n_name = strlen(m->name);
        unsigned char h[CENTRAL_BYTES + 1000 + 28] = { 0 }, *p = put(put_sig(h, sig_central), 45, 2);
        p = put_common(p, m->crc, n_name, 28);
        p = put(put(put(p, 0, 8), 0, 2), UINT32_MAX,
                4); /* no comment, disk 0, no attributes; the offset is in the zip64 field */
        memcpy(p, m->name, n_name);
        p = put(put(p + n_name, EXTRA_ZIP64, 2), 24, 2);
        p = put(put(put(p, m->n, 8), m->n, 8), m->head, 8);
        int rc = out_write(z->o, h, (size_t)(p - h), e);
        if (rc < 0) return rc;
    }
    uint64_t end = z->o->at, n = z->n;
    unsigned char h[END64_BYTES + LOCATOR_BYTES + END_BYTES], *p = put_sig(h, sig_end64);
    p = put(put(put(p, END64_BYTES - 12, 8), 45, 2), 45, 2);
    p = put(put(put(p, 0, 8), n, 8), n, 8);
    p = put(put(p, end - start, 8), start, 8);
    p = put(put(put(put_sig(p, sig_locator), 0, 4), end, 8), 1, 4);
    p = put(put_sig(p, sig_end), 0, 4);
    p = put(put(p, UINT16_MAX, 2), UINT16_MAX, 2);
    p = put(put(put(p, UINT32_MAX, 4), UINT32_MAX, 4), 0, 2);
    return out_write(z->o, h, (size_t)(p - h), e);
}

void zip_out_fini(struct zip_out *z)
{
    for (size_t i = 0; i < z->n; i++) free(z->at[i].name);
    free(z->at);
    *z = (struct zip_out){ 0 };
}
