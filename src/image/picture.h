/* Pictures as 8-bit RGB, decoded to the bytes that Pillow's Image.open(f).convert("RGB") gives.
 *
 * Read: JPEG (baseline, progressive, grey, CMYK, YCCK), PNG (every type), WebP (lossy, lossless, animated:
 * first frame), GIF (first frame) and BMP (uncompressed). The format is taken from the first bytes, never
 * from the name.
 *
 * As in Pillow: transparency is dropped, not blended; the EXIF orientation is not applied;
 * colour profiles and gamma are not applied; 16-bit grey is clipped at 255 and not scaled (as Pillow 9.4),
 * other 16-bit channels lose their low byte. Stricter than Pillow in one thing: a PNG whose pixels fail their
 * checksum is an error.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

enum {
    PICTURE_SIDE_MAX = 65535,
    PICTURE_PIXELS_MAX = 178956970, /* above this Pillow raises DecompressionBombError */
    PICTURE_SLACK = 16,             /* bytes after the last pixel that may be read */
    PICTURE_FILE_MAX = 1 << 30,     /* bytes of a picture's file */
};

/* rgb: [h][w][3], rows without gaps, then PICTURE_SLACK bytes. From picture_new, released by picture_free. */
struct picture {
    uint8_t *rgb;
    int w, h; /* pixels */
};

/* All black. `name` is what an error calls it. ERR_FORMAT: a side below 1; ERR_LIMIT, before any allocation:
 * a side or the number of pixels above the limits; ERR_NOMEM. On failure *p is empty. */
int picture_new(struct picture *p, int64_t w, int64_t h, const char *name, struct err *e);
void picture_free(struct picture *p); /* accepts a zeroed picture */

/* Decodes a file, or n bytes that an error calls `name`. ERR_FORMAT: broken or cut short (no half pictures);
 * ERR_UNSUPPORTED: a format, or a kind of it, that is not read, by its name; ERR_LIMIT, ERR_NOMEM as
 * picture_new; ERR_IO, ERR_MISSING. On failure *p is empty. */
int picture_open(struct picture *p, const char *path, struct err *e);
int picture_decode(struct picture *p, const void *bytes, size_t n, const char *name, struct err *e);

static inline uint8_t *picture_row(const struct picture *p, int y)
{
    return p->rgb + (size_t)y * (size_t)p->w * 3;
}
