/* See event.h. Protobuf's wire format by hand: six messages, a dozen fields. */
#include "train/event.h"

#include <string.h>

#include "base/hash.h"

enum { EVENT_MAX = 4 << 20 };
enum { WIRE_VARINT = 0, WIRE_FIXED64 = 1, WIRE_BYTES = 2, WIRE_FIXED32 = 5 };

static void put_le(struct buf *b, uint64_t v, int bytes)
{
    for (int i = 0; i < bytes; i++) buf_chr(b, (char)(v >> 8 * i));
}

static void put_varint(struct buf *b, uint64_t v)
{
    for (; v >= 128; v >>= 7) buf_chr(b, (char)(v | 128));
    buf_chr(b, (char)v);
}

static void put_key(struct buf *b, unsigned field, unsigned wire) { put_varint(b, field << 3 | wire); }

static void put_int(struct buf *b, unsigned field, int64_t v)
{
    put_key(b, field, WIRE_VARINT);
    put_varint(b, (uint64_t)v);
}

static void put_bytes(struct buf *b, unsigned field, const void *p, size_t n)
{
    put_key(b, field, WIRE_BYTES);
    put_varint(b, n);
    buf_add(b, p, n);
}

static void put_text(struct buf *b, unsigned field, const char *s) { put_bytes(b, field, s, strlen(s)); }

/* A message inside another; frees it. */
static void put_message(struct buf *b, unsigned field, struct buf *m)
{
    put_bytes(b, field, m->p ? m->p : "", m->n);
    b->failed = b->failed || m->failed;
    buf_free(m);
}

static struct buf event_begin(double time_s, int64_t step)
{
    struct buf m = buf_make(EVENT_MAX);
    uint64_t bits;
    memcpy(&bits, &time_s, sizeof bits);
    put_key(&m, 1, WIRE_FIXED64); /* wall_time */
    put_le(&m, bits, 8);
    put_int(&m, 2, step);
    return m;
}

/* CRCs of data that holds CRCs are weak: so they are stored rotated and shifted. */
static uint32_t masked(const void *p, size_t n)
{
    uint32_t c = crc32c(p, n);
    return (c >> 15 | c << 17) + 0xa282ead8u;
}

static void event_end(struct buf *b, struct buf *m)
{
    size_t at = b->n;
    put_le(b, m->n, 8);
    if (!b->failed) put_le(b, masked(b->p + at, 8), 4);
    buf_add(b, m->p, m->n);
    put_le(b, masked(m->p, m->n), 4);
    b->failed = b->failed || m->failed;
    buf_free(m);
}

void event_version(struct buf *b, double time_s)
{
    struct buf m = event_begin(time_s, 0);
    put_text(&m, 3, "brain.Event:2");
    event_end(b, &m);
}

void event_restart(struct buf *b, double time_s, int64_t step)
{
    struct buf m = event_begin(time_s, step), log = buf_make(EVENT_MAX);
    put_int(&log, 1, 1);          /* SessionLog.status = START */
    put_message(&m, 7, &log);
    event_end(b, &m);
}

void event_scalars(struct buf *b, double time_s, int64_t step, const struct scalar *v, int n)
{
    struct buf m = event_begin(time_s, step), summary = buf_make(EVENT_MAX);
    for (int i = 0; i < n; i++) {
        struct buf value = buf_make(EVENT_MAX);
        float f = (float)v[i].value;
        uint32_t bits;
        memcpy(&bits, &f, sizeof bits);
        put_text(&value, 1, v[i].name);
        put_key(&value, 2, WIRE_FIXED32); /* simple_value */
        put_le(&value, bits, 4);
        put_message(&summary, 1, &value);
    }
    put_message(&m, 5, &summary);
    event_end(b, &m);
}

void event_text(struct buf *b, double time_s, int64_t step, const char *tag, const char *markdown)
{
    struct buf m = event_begin(time_s, step), summary = buf_make(EVENT_MAX), value = buf_make(EVENT_MAX);
    struct buf plugin = buf_make(EVENT_MAX), meta = buf_make(EVENT_MAX), tensor = buf_make(EVENT_MAX);
    struct buf shape = buf_make(EVENT_MAX), dim = buf_make(EVENT_MAX);
    put_int(&dim, 1, 1);          /* size */
    put_message(&shape, 2, &dim);
    put_int(&tensor, 1, 7);       /* DT_STRING */
    put_message(&tensor, 2, &shape);
    put_text(&tensor, 8, markdown);
    put_text(&plugin, 1, "text");
    put_message(&meta, 1, &plugin);
    put_text(&value, 1, tag);
    put_message(&value, 8, &tensor);
    put_message(&value, 9, &meta);
    put_message(&summary, 1, &value);
    put_message(&m, 5, &summary);
    event_end(b, &m);
}
