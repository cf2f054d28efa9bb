/* Streams and stop strings: see stream.h. */
#include "text/stream.h"

#include <stdlib.h>
#include <string.h>

#include "text/utf8.h"


/* ---- streams */

void stream_init(struct stream *s, const struct tokenizer *t)
{
    *s = (struct stream){ .t = t, .text = buf_make(SIZE_MAX) };
    detok_init(&s->detok, t, true);
}

void stream_fini(struct stream *s)
{
    buf_free(&s->text);
}

void stream_follow(struct stream *s) { detok_follow(&s->detok); }

void stream_by_lines(struct stream *s) { s->by_lines = true; }

static bool ends_in_cjk(const struct buf *b)
{
    uint32_t cp;
    size_t len, back = 1;
    while (back < b->n && back < 4 && ((unsigned char)b->p[b->n - back] & 0xc0) == 0x80) back++;
    return utf8_next(b->p + b->n - back, back, &cp, &len) == UTF8_OK && utf8_is_cjk(cp);
}

static void give(struct stream *s, size_t n, struct buf *out)
{
    buf_add(out, s->text.p, n);
    s->text.n -= n;
    memmove(s->text.p, s->text.p + n, s->text.n);
}

void stream_push(struct stream *s, int32_t id, struct buf *out)
{
    size_t old = s->text.n;
    detok_push(&s->detok, id, &s->text);
    size_t n = s->text.n;
    if (n == old) return;
    /* Text that was waiting holds neither space nor line break: only the new part is searched. */
    if (s->detok.n_held == 0 && s->text.p[n - 1] == '\n') {
        give(s, n, out);
        if (s->by_lines) detok_init(&s->detok, s->t, true);
        return;
    }
    if (s->detok.n_held == 0 && ends_in_cjk(&s->text)) {
        give(s, n, out);
        return;
    }
    while (n > old && s->text.p[n - 1] != ' ') n--;
    if (n > old) give(s, n, out);
}

void stream_flush(struct stream *s, struct buf *out)
{
    detok_end(&s->detok, &s->text);
    if (s->text.n) give(s, s->text.n, out);
    detok_init(&s->detok, s->t, true);
}

/* ---- stop strings */

void stopper_init(struct stopper *s)
{
    *s = (struct stopper){ .held = buf_make(SIZE_MAX) };
}

void stopper_fini(struct stopper *s)
{
    for (size_t i = 0; i < s->n; i++) buf_free(&s->stop[i]);
    free(s->stop);
    buf_free(&s->held);
    stopper_init(s);
}

/* Adds a copy of text to a list of buffers. */
static int list_add(struct buf **list, size_t n, const char *text, size_t len, struct err *e)
{
    struct buf b = buf_make(STOP_MAX);
    struct buf *p = realloc(*list, (n + 1) * sizeof *p);
    if (!p) return err_set(e, ERR_NOMEM, "no memory for stop strings");
    *list = p;
    buf_add(&b, text, len);
    p[n] = b;
    return buf_check(&b, "a stop string", e);
}

int stopper_add(struct stopper *s, const char *stop, size_t n, struct err *e)
{
    if (n == 0) return 0;
    int rc = list_add(&s->stop, s->n, stop, n, e);
    if (rc == 0) s->n++;
    return rc;
}

/* How many bytes at the end of the held text could be the beginning of `stop`. */
static size_t begun(const struct buf *held, const struct buf *stop)
{
    size_t n = held->n < stop->n ? held->n : stop->n - 1;
    while (n && memcmp(held->p + held->n - n, stop->p, n) != 0) n--;
    return n;
}

bool stopper_feed(struct stopper *s, const char *text, size_t n, struct buf *out)
{
    if (s->stopped || n == 0) return s->stopped;
    buf_add(&s->held, text, n);
    const struct span all = { s->held.p, s->held.n };
    size_t end = all.n, keep = 0;
    for (size_t i = 0; i < s->n; i++) {
        size_t at = span_find(all, 0, (struct span){ s->stop[i].p, s->stop[i].n });
        size_t k = begun(&s->held, &s->stop[i]);
        if (at < end) end = at;
        if (k > keep) keep = k;
    }
    s->stopped = end < all.n;
    if (!s->stopped) end -= keep;
    buf_add(out, s->held.p, end);
    s->held.n -= end;
    memmove(s->held.p, s->held.p + end, s->held.n);
    return s->stopped;
}

void stopper_flush(struct stopper *s, struct buf *out)
{
    if (!s->stopped && s->held.n) buf_add(out, s->held.p, s->held.n);
    buf_reset(&s->held);
    s->stopped = false;
}
