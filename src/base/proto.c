/* See proto.h. */
#include "base/proto.h"

#include <string.h>

enum { VARINT = 0, FIXED64 = 1, BYTES = 2, FIXED32 = 5 };

void proto_le(struct buf *b, uint64_t v, int bytes)
{
    for (int i = 0; i < bytes; i++) buf_chr(b, (char)(v >> 8 * i));
}

static void put_varint(struct buf *b, uint64_t v)
{
    for (; v >= 128; v >>= 7) buf_chr(b, (char)(v | 128));
    buf_chr(b, (char)v);
}

static void put_key(struct buf *b, unsigned field, unsigned wire) { put_varint(b, field << 3 | wire); }

void proto_int(struct buf *b, unsigned field, int64_t v)
{
    put_key(b, field, VARINT);
    put_varint(b, (uint64_t)v);
}

void proto_float(struct buf *b, unsigned field, float v)
{
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    put_key(b, field, FIXED32);
    proto_le(b, bits, 4);
}

void proto_double(struct buf *b, unsigned field, double v)
{
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    put_key(b, field, FIXED64);
    proto_le(b, bits, 8);
}

void proto_bytes(struct buf *b, unsigned field, const void *p, size_t n)
{
    put_key(b, field, BYTES);
    put_varint(b, n);
    buf_add(b, p, n);
}

void proto_text(struct buf *b, unsigned field, const char *s) { proto_bytes(b, field, s, strlen(s)); }

void proto_message(struct buf *b, unsigned field, struct buf *m)
{
    proto_bytes(b, field, m->p ? m->p : "", m->n);
    b->failed = b->failed || m->failed;
    buf_free(m);
}
