/* See event.h. Six messages, a dozen fields. */
#include "train/event.h"

#include "base/hash.h"
#include "base/proto.h"

enum { EVENT_MAX = 4 << 20 };

static struct buf event_begin(double time_s, int64_t step)
{
    struct buf m = buf_make(EVENT_MAX);
    proto_double(&m, 1, time_s); /* wall_time */
    proto_int(&m, 2, step);
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
    proto_le(b, m->n, 8);
    if (!b->failed) proto_le(b, masked(b->p + at, 8), 4);
    buf_add(b, m->p, m->n);
    proto_le(b, masked(m->p, m->n), 4);
    b->failed = b->failed || m->failed;
    buf_free(m);
}

void event_version(struct buf *b, double time_s)
{
    struct buf m = event_begin(time_s, 0);
    proto_text(&m, 3, "brain.Event:2");
    event_end(b, &m);
}

void event_restart(struct buf *b, double time_s, int64_t step)
{
    struct buf m = event_begin(time_s, step), log = buf_make(EVENT_MAX);
    proto_int(&log, 1, 1);          /* SessionLog.status = START */
    proto_message(&m, 7, &log);
    event_end(b, &m);
}

void event_scalars(struct buf *b, double time_s, int64_t step, const struct scalar *v, int n)
{
    struct buf m = event_begin(time_s, step), summary = buf_make(EVENT_MAX);
    for (int i = 0; i < n; i++) {
        struct buf value = buf_make(EVENT_MAX);
        proto_text(&value, 1, v[i].name);
        proto_float(&value, 2, (float)v[i].value); /* simple_value */
        proto_message(&summary, 1, &value);
    }
    proto_message(&m, 5, &summary);
    event_end(b, &m);
}

void event_text(struct buf *b, double time_s, int64_t step, const char *tag, const char *markdown)
{
    struct buf m = event_begin(time_s, step), summary = buf_make(EVENT_MAX), value = buf_make(EVENT_MAX);
    struct buf plugin = buf_make(EVENT_MAX), meta = buf_make(EVENT_MAX), tensor = buf_make(EVENT_MAX);
    struct buf shape = buf_make(EVENT_MAX), dim = buf_make(EVENT_MAX);
    proto_int(&dim, 1, 1);          /* size */
    proto_message(&shape, 2, &dim);
    proto_int(&tensor, 1, 7);       /* DT_STRING */
    proto_message(&tensor, 2, &shape);
    proto_text(&tensor, 8, markdown);
    proto_text(&plugin, 1, "text");
    proto_message(&meta, 1, &plugin);
    proto_text(&value, 1, tag);
    proto_message(&value, 8, &tensor);
    proto_message(&value, 9, &meta);
    proto_message(&summary, 1, &value);
    proto_message(&m, 5, &summary);
    event_end(b, &m);
}
