/* GIF: the first frame, as Pillow shows it: on a canvas filled with the transparent index if the frame has
 * one and with index 0 if not; the canvas grows to hold the frame. No library: the format is LZW and three
 * small headers. */
#include <string.h>

#include "image/formats.h"

enum { CODES = 4096, NO_CODE = -1 };

/* The first frame, as its headers tell it. */
struct frame {
    int canvas_w, canvas_h;
    int x, y, w, h, fill;
    int bits; /* of a pixel; LZW codes begin one longer */
    int interlaced;
    size_t at; /* of the first data block */
    uint8_t palette[256][3];
};

/* Where the next pixel goes. Row i of an interlaced frame is found by counting through the passes. */
struct pen {
    struct picture *p;
    const struct frame *f;
    int x, y, pass;
    int full;
};
static const struct pass { int y, step; } passes[5] = { { 0, 1 }, { 0, 8 }, { 4, 8 }, { 2, 4 }, { 1, 2 } };

static void pen_put(struct pen *t, uint8_t index)
{
    const struct frame *f = t->f;
    memcpy(picture_row(t->p, f->y + t->y) + 3 * (f->x + t->x), f->palette[index], 3);
    if (++t->x < f->w) return;
    t->x = 0;
    t->y += passes[t->pass].step;
    while (t->y >= f->h && t->pass && t->pass < 4) t->y = passes[++t->pass].y;
    t->full = t->y >= f->h;
}

/* LZW codes come low bit first out of blocks of 1..255 bytes; a block of length 0 ends them. */
struct codes {
    const struct source *s;
    size_t at, left; /* next byte, bytes left in its block */
    uint32_t acc;
    int n;
};

static int codes_take(struct codes *c, int bits)
{
    for (; c->n < bits; c->n += 8, c->left--) {
        if (!c->left && c->at < c->s->n) c->left = c->s->p[c->at++];
        if (!c->left || c->left > c->s->n - c->at)
            return NO_CODE; /* as Pillow: a block is whole or not there */
        c->acc |= (uint32_t)c->s->p[c->at++] << c->n;
    }
    int v = (int)(c->acc & ((1u << bits) - 1));
    c->acc >>= bits;
    c->n -= bits;
    return v;
}

/* A code above `end` stands for the string of code `prev` and one more byte. */
struct table {
    int n, end;
    uint16_t prev[CODES];
    uint8_t last[CODES];
    uint8_t string[CODES];
};

/* Writes the string of `code`, and of `extra` >= 0 after it; returns its first byte. */
static uint8_t table_put(struct table *t, int code, int extra, struct pen *pen)
{
    int n = 0;
    for (; code > t->end; code = t->prev[code]) t->string[n++] = t->last[code];
    uint8_t first = (uint8_t)code;
    for (t->string[n++] = first; n && !pen->full; ) pen_put(pen, t->string[--n]);
    if (extra >= 0 && !pen->full) pen_put(pen, first);
    return first;
}

static int decode_frame(struct picture *p, const struct source *s, const struct frame *f, struct err *e)
{
    struct pen pen = { .p = p, .f = f, .pass = f->interlaced };
    struct codes codes = { .s = s, .at = f->at };
    struct table t = { 0 };
    const int clear = 1 << f->bits;
    int bits = f->bits + 1, before = NO_CODE;
    t.end = clear + 1;
    t.n = clear + 2;
    while (!pen.full) {
        int code = codes_take(&codes, bits);
        if (code == NO_CODE || code == t.end) return picture_truncated(s, e);
        if (code == clear) {
            bits = f->bits + 1;
            t.n = clear + 2;
            before = NO_CODE;
            continue;
        }
        if (code > t.n || (before == NO_CODE && code > clear) || (code == t.n && before == NO_CODE))
            return err_set(e, ERR_FORMAT, "picture '%s' is broken: bad GIF code", s->name);
        uint8_t first = code < t.n ? table_put(&t, code, -1, &pen) : table_put(&t, before, 0, &pen);
        if (before != NO_CODE && t.n < CODES) {
            t.prev[t.n] = (uint16_t)before;
            t.last[t.n] = first;
            if (++t.n == 1 << bits && bits < 12) bits++;
        }
        before = code;
    }
    return 0;
}

/* A palette of 2 << (flags & 7) colours at `at`, if the flags say there is one. Returns where it ends. */
static size_t read_palette(struct frame *f, const struct source *s, size_t at, int flags)
{
    size_t n = flags & 128 ? 3u * (2u << (flags & 7)) : 0;
    if (n && at <= s->n && n <= s->n - at) {
        palette_ramp(f->palette);
        memcpy(f->palette, s->p + at, n);
    }
    return at + n;
}

/* Skips extensions, noting the transparent index, up to the first frame. */
static int read_headers(struct frame *f, const struct source *s, struct err *e)
{
    if (s->n < 13) return picture_truncated(s, e);
    f->canvas_w = (int)le16(s->p + 6);
    f->canvas_h = (int)le16(s->p + 8);
    palette_ramp(f->palette);
    size_t at = read_palette(f, s, 13, s->p[10]);
    for (; at < s->n && s->p[at] != ','; at++) {
        if (s->p[at] == ';') break;
        if (s->p[at] != '!') continue;
        if (at + 7 < s->n && s->p[at + 1] == 249 && s->p[at + 2] >= 4 && s->p[at + 3] & 1)
            f->fill = s->p[at + 6];
        for (at += 2; at < s->n && s->p[at];) at += 1u + s->p[at];
    }
    if (at + 11 > s->n || s->p[at] != ',') return picture_truncated(s, e);
    const uint8_t *d = s->p + at + 1;
    f->x = (int)le16(d);
    f->y = (int)le16(d + 2);
    f->w = (int)le16(d + 4);
    f->h = (int)le16(d + 6);
    f->interlaced = d[8] >> 6 & 1;
    at = read_palette(f, s, at + 10, d[8]);
    if (at >= s->n) return picture_truncated(s, e);
    f->bits = s->p[at];
    f->at = at + 1;
    if (f->bits < 1 || f->bits > 8)
        return err_set(e, ERR_FORMAT, "picture '%s' is broken: GIF pixels of %d bits", s->name, f->bits);
    return 0;
}

int gif_decode(struct picture *p, const struct source *s, struct err *e)
{
    struct frame f = { 0 };
    int rc = read_headers(&f, s, e);
    if (rc < 0) return rc;
    int w = f.x + f.w > f.canvas_w ? f.x + f.w : f.canvas_w,
        h = f.y + f.h > f.canvas_h ? f.y + f.h : f.canvas_h;
    if ((rc = picture_new(p, w, h, s->name, e)) < 0) return rc;
    for (size_t i = 0; i < (size_t)w * (size_t)h; i++) memcpy(p->rgb + 3 * i, f.palette[f.fill], 3);
    return f.w && f.h ? decode_frame(p, s, &f, e) : 0;
}
