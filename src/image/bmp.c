/* BMP without compression: 1, 4, 8, 24 and 32 bits a pixel; of 32 the fourth byte is dropped. */
#include <string.h>

#include "image/formats.h"

/* The layout of a BMP, as its headers tell it. */
struct header {
    int64_t w, h;
    int bits, top_down, colours;
    size_t palette, entry, pixels; /* offset of the palette, bytes of an entry, offset of the pixels */
};

static int unsupported(const struct source *s, struct err *e, const char *what, uint32_t value)
{
    return err_set(e, ERR_UNSUPPORTED, "picture '%s' is BMP with %s %u", s->name, what, value);
}

/* The header is 12 bytes (OS/2, 16-bit sizes) or at least 40. Compression 3 only says where channels are. */
static int read_header(struct header *h, const struct source *s, struct err *e)
{
    const uint8_t *p = s->p;
    if (s->n < 26) return picture_truncated(s, e);
    size_t n = le32(p + 14);
    if (n != 12 && n < 40) return unsupported(s, e, "a header of bytes:", (uint32_t)n);
    if (n > s->n - 14) return picture_truncated(s, e);
    h->pixels = le32(p + 10);
    h->palette = 14 + n;
    h->entry = n == 12 ? 3 : 4;
    h->w = n == 12 ? (int64_t)le16(p + 18) : (int32_t)le32(p + 18);
    h->h = n == 12 ? (int64_t)le16(p + 20) : (int32_t)le32(p + 22);
    h->bits = (int)le16(n == 12 ? p + 24 : p + 28);
    h->top_down = h->h < 0;
    if (h->h < 0) h->h = -h->h;
    uint32_t compression = n == 12 ? 0 : le32(p + 30), colours = n == 12 ? 0 : le32(p + 46);
    if (compression == 3 && h->bits == 32 && s->n >= 66) {
        if (le32(p + 54) != 0xff0000 || le32(p + 58) != 0xff00 || le32(p + 62) != 0xff)
            return unsupported(s, e, "a red mask of", le32(p + 54));
        compression = 0;
    }
    if (compression) return unsupported(s, e, "compression", compression);
    if (h->bits != 1 && h->bits != 4 && h->bits != 8 && h->bits != 24 && h->bits != 32)
        return unsupported(s, e, "bits a pixel:", (uint32_t)h->bits);
    if (h->bits <= 8) h->colours = colours && colours < (1u << h->bits) ? (int)colours : 1 << h->bits;
    if (h->palette + h->entry * (size_t)h->colours > s->n) return picture_truncated(s, e);
    return 0;
}

static void read_row(uint8_t *to, const uint8_t *from, int w, int bits)
{
    if (bits <= 8) {
        for (int x = 0; x < w; x++) {
            int shift = 8 - bits - x * bits % 8;
            to[x] = (uint8_t)(from[x * bits / 8] >> shift & ((1 << bits) - 1));
        }
        return;
    }
    for (int x = 0; x < w; x++, from += bits / 8) {
        to[3 * x] = from[2];
        to[3 * x + 1] = from[1];
        to[3 * x + 2] = from[0];
    }
}

int bmp_decode(struct picture *p, const struct source *s, struct err *e)
{
    struct header h = { 0 };
    uint8_t palette[256][3];
    int rc = read_header(&h, s, e);
    if (rc < 0) return rc;
    if ((rc = picture_new(p, h.w, h.h, s->name, e)) < 0) return rc;
    size_t pitch = ((size_t)h.w * (size_t)h.bits + 31) / 32 * 4;
    if (h.pixels > s->n || (size_t)h.h > (s->n - h.pixels) / pitch) return picture_truncated(s, e);
    palette_ramp(palette);
    for (int i = 0; i < h.colours; i++) {
        const uint8_t *c = s->p + h.palette + h.entry * (size_t)i;
        memcpy(palette[i], (uint8_t[3]){ c[2], c[1], c[0] }, 3);
    }
    for (int y = 0; y < p->h; y++) {
        uint8_t *to = picture_row(p, h.top_down ? y : p->h - 1 - y);
        read_row(to, s->p + h.pixels + pitch * (size_t)y, p->w, h.bits);
        if (h.bits <= 8) indices_to_rgb(to, p->w, palette);
    }
    return 0;
}
