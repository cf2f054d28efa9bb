/* The decoders behind picture_decode, one file each. They share its contract; `bytes` begin with their magic.
 * Each calls picture_new once, when the header is read; picture_decode frees what a failing decoder leaves in
 * *p. */
#pragma once
#include "image/picture.h"

struct source {
    const uint8_t *p;
    size_t n;
    const char *name;
};

int jpeg_decode(struct picture *p, const struct source *s, struct err *e);
int png_decode(struct picture *p, const struct source *s, struct err *e);
int webp_decode(struct picture *p, const struct source *s, struct err *e);
int gif_decode(struct picture *p, const struct source *s, struct err *e);
int bmp_decode(struct picture *p, const struct source *s, struct err *e);

/* The one message for a picture that ends too early. */
int picture_truncated(const struct source *s, struct err *e);

/* A row of w grey bytes, at its start, becomes RGB in place. */
static inline void grey_to_rgb(uint8_t *row, int w)
{
    for (int x = w - 1; x >= 0; x--) row[3 * x] = row[3 * x + 1] = row[3 * x + 2] = row[x];
}

/* A row of w palette indices, at its start, becomes RGB in place. */
static inline void indices_to_rgb(uint8_t *row, int w, const uint8_t palette[256][3])
{
    for (int x = w - 1; x >= 0; x--) {
        const uint8_t *c = palette[row[x]];
        row[3 * x] = c[0];
        row[3 * x + 1] = c[1];
        row[3 * x + 2] = c[2];
    }
}

/* What Pillow shows for an index that a short palette leaves out: index i is the grey (i, i, i). */
static inline void palette_ramp(uint8_t palette[256][3])
{
    for (int i = 0; i < 256; i++) palette[i][0] = palette[i][1] = palette[i][2] = (uint8_t)i;
}

static inline unsigned le16(const uint8_t *p) { return p[0] | (unsigned)p[1] << 8; }
static inline uint32_t le24(const uint8_t *p) { return le16(p) | (uint32_t)p[2] << 16; }
static inline uint32_t le32(const uint8_t *p) { return le24(p) | (uint32_t)p[3] << 24; }
