/* WebP through libwebp. Of an animation the first frame is taken, on black where it does not cover all. A file
 * shorter than its own header says is cut, whichever frames are whole: so Pillow has it, through WebPDemux. */
#include <string.h>

#include <webp/decode.h>

#include "image/formats.h"

static int decode_frame(struct picture *p, const struct source *s, const uint8_t *bytes, size_t n, int x,
                        int y, int w, int h, struct err *e)
{
    int stride = p->w * 3;
    uint8_t *to = picture_row(p, y) + 3 * x;
    size_t room = (size_t)stride * (size_t)(h - 1) + (size_t)w * 3;
    if (WebPDecodeRGBInto(bytes, n, to, room, stride)) return 0;
    return err_set(e, ERR_FORMAT, "picture '%s' is broken or truncated WebP data", s->name);
}

/* Chunks are a tag, a length and a body padded to an even length. An ANMF body begins with 16 bytes: x/2,
 * y/2, width-1 and height-1 of the frame in three bytes each, and four of timing. */
static int decode_first_frame(struct picture *p, const struct source *s, struct err *e)
{
    for (size_t at = 12; at + 8 <= s->n;) {
        const uint8_t *c = s->p + at;
        size_t n = le32(c + 4);
        if (n > s->n - at - 8) break;
        if (!memcmp(c, "ANMF", 4) && n >= 16) {
            int x = (int)le24(c + 8) * 2, y = (int)le24(c + 11) * 2;
            int w = (int)le24(c + 14) + 1, h = (int)le24(c + 17) + 1, fw = 0, fh = 0;
            if (!WebPGetInfo(c + 24, n - 16, &fw, &fh) || fw != w || fh != h || x + w > p->w || y + h > p->h)
                return err_set(e, ERR_FORMAT, "picture '%s' has a broken first frame", s->name);
            return decode_frame(p, s, c + 24, n - 16, x, y, w, h, e);
        }
        at += 8 + n + (n & 1);
    }
    return picture_truncated(s, e);
}

int webp_decode(struct picture *p, const struct source *s, struct err *e)
{
    WebPBitstreamFeatures f;
    if (s->n < 12 || le32(s->p + 4) > s->n - 8) return picture_truncated(s, e);
    VP8StatusCode status = WebPGetFeatures(s->p, s->n, &f);
    if (status == VP8_STATUS_NOT_ENOUGH_DATA) return picture_truncated(s, e);
    if (status != VP8_STATUS_OK)
        return err_set(e, ERR_FORMAT, "picture '%s' has a broken WebP header", s->name);
    int rc = picture_new(p, f.width, f.height, s->name, e);
    if (rc < 0) return rc;
    if (f.has_animation) return decode_first_frame(p, s, e);
    return decode_frame(p, s, s->p, s->n, 0, 0, f.width, f.height, e);
}
