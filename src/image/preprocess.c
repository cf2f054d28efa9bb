/* See preprocess.h. Crops are computed as windows of a resize: nothing is resized to be thrown away. */
#include "image/preprocess.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "image/resize.h"

void clip_processor_background(const struct clip_processor *p, uint8_t colour[3])
{
    for (int c = 0; c < 3; c++) {
        int v = (int)(p->mean[c] * 255);
        colour[c] = (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
    }
}

int aspect_parse(enum aspect *a, const char *name, struct err *e)
{
    *a = ASPECT_SQUARE;
    if (!name) return 0;
    if (!strcmp(name, "pad")) *a = ASPECT_PAD;
    else if (!strcmp(name, "anyres")) *a = ASPECT_ANYRES;
    else if (!strncmp(name, "anyres", 6))
        return err_set(e, ERR_UNSUPPORTED,
                       "image_aspect_ratio '%s' is not handled; square, pad and anyres are", name);
    return 0;
}

/* Copies src into dst with its corner at (x, y); it fits. */
static void paste(struct picture *dst, const struct picture *src, int x, int y)
{
    for (int r = 0; r < src->h; r++)
        memcpy(picture_row(dst, y + r) + 3 * x, picture_row(src, r), (size_t)src->w * 3);
}

/* dst = src in the middle of a square of its longer side; an odd leftover goes right or below. */
static int pad(struct picture *dst, const struct picture *src, const uint8_t colour[3], struct err *e)
{
    int side = src->w > src->h ? src->w : src->h, rc = picture_new(dst, side, side, "padded", e);
    if (rc < 0) return rc;
    if (src->w != src->h) {
        for (int x = 0; x < side; x++) memcpy(dst->rgb + 3 * x, colour, 3);
        for (int y = 1; y < side; y++) memcpy(picture_row(dst, y), dst->rgb, (size_t)side * 3);
    }
    paste(dst, src, (side - src->w) / 2, (side - src->h) / 2);
    return 0;
}

static int floor_half(int64_t v) { return (int)(v >= 0 ? v / 2 : (v - 1) / 2); }

/* do_resize and do_center_crop in one. The long side is int(short * long / short0), at most INT32_MAX by the
 * limits. */
static int resize_and_crop(struct picture *dst, const struct picture *src, const struct clip_processor *p,
                           struct err *e)
{
    int w = src->w, h = src->h;
    if (p->do_resize) {
        w = p->size_w;
        h = p->size_h;
        if (p->shortest && src->w <= src->h) h = (int)((double)((int64_t)p->shortest * src->h) / src->w);
        else if (p->shortest) w = (int)((double)((int64_t)p->shortest * src->w) / src->h);
    }
    struct window win = { 0, 0, w, h };
    if (p->do_center_crop)
        win = (struct window){ floor_half((int64_t)w - p->crop_w), floor_half((int64_t)h - p->crop_h),
                               p->crop_w, p->crop_h };
    return picture_resize_window(dst, src, w, h, win, e);
}

/* A byte has 256 values, so each channel is a table. Rescaling is in double and rounded to float, normalising
 * in float. */
static void fill_tables(float table[3][256], const struct clip_processor *p)
{
    for (int c = 0; c < 3; c++)
        for (int v = 0; v < 256; v++) {
            float f = p->do_rescale ? (float)(v * p->scale) : (float)v;
            if (p->do_normalize) f = (f - (float)p->mean[c]) / (float)p->std[c];
            table[c][v] = f;
        }
}

/* Tile t of px from a picture; the first tile decides the size and makes the memory for all. */
static int put_tile(struct pixels *px, int t, const struct picture *pic, const struct clip_processor *p,
                    struct err *e)
{
    float table[3][256];
    struct picture tile;
    int rc = resize_and_crop(&tile, pic, p, e);
    if (rc < 0) return rc;
    size_t area = (size_t)tile.w * (size_t)tile.h;
    if (!px->data) {
        px->w = tile.w;
        px->h = tile.h;
        px->data = malloc((size_t)px->n * 3 * area * sizeof *px->data);
        if (!px->data)
            rc = err_set(e, ERR_NOMEM, "no memory for %d tiles of %dx%d pixels", px->n, px->w, px->h);
    } else if (tile.w != px->w || tile.h != px->h) {
        rc = err_set(e, ERR_UNSUPPORTED,
                     "the tiles of a picture come out in different sizes: no size, no crop_size");
    }
    if (rc >= 0) {
        fill_tables(table, p);
        float *to = px->data + (size_t)t * 3 * area;
        for (int c = 0; c < 3; c++)
            for (size_t i = 0; i < area; i++) *to++ = table[c][tile.rgb[3 * i + (size_t)c]];
    }
    picture_free(&tile);
    return rc;
}

/* The picture as large as it fits into w x h, in the middle, on black. */
static int fit(struct picture *dst, const struct picture *pic, int w, int h, struct err *e)
{
    struct picture small = { 0 };
    double sw = (double)w / pic->w, sh = (double)h / pic->h;
    int64_t nw = w, nh = h;
    if (sw < sh) nh = (int64_t)ceil(pic->h * sw);
    else nw = (int64_t)ceil(pic->w * sh);
    if (nw > w) nw = w;
    if (nh > h) nh = h;
    int rc = picture_resize(&small, pic, (int)nw, (int)nh, e);
    if (rc >= 0) rc = picture_new(dst, w, h, "fitted", e);
    if (rc >= 0) paste(dst, &small, (w - small.w) / 2, (h - small.h) / 2);
    picture_free(&small);
    return rc;
}

static int put_tiles(struct pixels *px, const struct picture *pic, const struct clip_processor *p,
                     const struct pinpoints *pp, struct err *e)
{
    struct picture whole = { 0 }, fitted = { 0 }, cut = { 0 };
    const int side = p->crop_h, best = pinpoints_best(pp, pic->w, pic->h);
    const int w = pp->at[best].w, h = pp->at[best].h;
    int rc = 0, t = 0;
    if (w % side || h % side)
        return err_set(e, ERR_UNSUPPORTED,
                       "image_grid_pinpoints has %dx%d, no multiple of the tile's side %d", w, h, side);
    if (w / side * (h / side) > TILES_MAX)
        return err_set(e, ERR_LIMIT, "image_grid_pinpoints has %dx%d, more than %d tiles of side %d", w, h,
                       TILES_MAX, side);
    px->n = 1 + w / side * (h / side);
    TRY(picture_resize(&whole, pic, p->size_w, p->size_h, e));
    TRY(put_tile(px, t++, &whole, p, e));
    TRY(fit(&fitted, pic, w, h, e));
    for (int y = 0; y < h; y += side)
        for (int x = 0; x < w; x += side) {
            TRY(picture_resize_window(&cut, &fitted, w, h, (struct window){ x, y, side, side }, e));
            TRY(put_tile(px, t++, &cut, p, e));
            picture_free(&cut);
        }
out:
    picture_free(&whole);
    picture_free(&fitted);
    picture_free(&cut);
    return rc;
}

int pixels_new(struct pixels *px, const struct picture *pic, const struct clip_processor *p, enum aspect a,
               const struct pinpoints *pp, struct err *e)
{
    struct picture square = { 0 };
    uint8_t colour[3];
    int rc;
    *px = (struct pixels){ .n = 1, .w0 = pic->w, .h0 = pic->h };
    if (a == ASPECT_ANYRES) {
        if (!pp || !pp->n)
            rc = err_set(e, ERR_MISSING, "image_aspect_ratio 'anyres' needs image_grid_pinpoints");
        else rc = put_tiles(px, pic, p, pp, e);
    } else if (a == ASPECT_PAD && pic->w != pic->h) {
        clip_processor_background(p, colour);
        rc = pad(&square, pic, colour, e);
        if (rc >= 0) rc = put_tile(px, 0, &square, p, e);
    } else {
        rc = put_tile(px, 0, pic, p, e);
    }
    picture_free(&square);
    if (rc < 0) pixels_free(px);
    return rc;
}

void pixels_free(struct pixels *px)
{
    free(px->data);
    *px = (struct pixels){ 0 };
}

/* Pictures with a longer side are shrunk to at most WEB_LONG, the shorter side to at most WEB_SHORT. */
enum { WEB_LONG = 1344, WEB_SHORT = 672, WEB_SIDE = 336 };

static int shrink_for_web(struct picture *dst, const struct picture *src, struct err *e)
{
    int longer = src->w > src->h ? src->w : src->h, shorter = src->w > src->h ? src->h : src->w;
    if (longer <= WEB_LONG) return picture_resize(dst, src, src->w, src->h, e);
    double ratio = (double)longer / shorter, least = WEB_LONG / ratio;
    if (least > WEB_SHORT) least = WEB_SHORT;
    if (least > shorter) least = shorter;
    int a = (int)least, b = (int)(a * ratio);
    return src->h > src->w ? picture_resize(dst, src, a, b, e) : picture_resize(dst, src, b, a, e);
}

int picture_for_web(struct picture *dst, const struct picture *src, const char *mode, struct err *e)
{
    struct clip_processor p;
    struct picture first = { 0 };
    uint8_t colour[3];
    int rc;
    if (!strcmp(mode, "Crop") || !strcmp(mode, "Default")) return shrink_for_web(dst, src, e);
    if (!strcmp(mode, "Resize")) {
        rc = picture_resize(&first, src, WEB_SIDE, WEB_SIDE, e);
    } else if (!strcmp(mode, "Pad")) {
        clip_processor_default(&p, WEB_SIDE);
        clip_processor_background(&p, colour);
        rc = pad(&first, src, colour, e);
    } else {
        return err_set(e, ERR_USAGE, "image process mode '%s' is none of Crop, Resize, Pad, Default", mode);
    }
    if (rc >= 0) rc = shrink_for_web(dst, &first, e);
    picture_free(&first);
    return rc;
}
