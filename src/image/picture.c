/* Making pictures and choosing their decoder by magic bytes. See picture.h; the decoders are in jpeg.c,
 * png.c, webp.c, gif.c and bmp.c. */
#include "image/picture.h"

#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "image/formats.h"


int picture_new(struct picture *p, int64_t w, int64_t h, const char *name, struct err *e)
{
    *p = (struct picture){ 0 };
    if (w < 1 || h < 1)
        return err_set(e, ERR_FORMAT, "picture '%s' is %lldx%lld", name, (long long)w, (long long)h);
    if (w > PICTURE_SIDE_MAX || h > PICTURE_SIDE_MAX)
        return err_set(e, ERR_LIMIT, "picture '%s' is %lldx%lld, a side is longer than %d pixels", name,
                       (long long)w, (long long)h, PICTURE_SIDE_MAX);
    if (w * h > PICTURE_PIXELS_MAX)
        return err_set(e, ERR_LIMIT, "picture '%s' is %lldx%lld, more than %d pixels", name, (long long)w,
                       (long long)h, PICTURE_PIXELS_MAX);
    uint8_t *rgb = calloc((size_t)(w * h) * 3 + PICTURE_SLACK, 1);
    if (!rgb)
        return err_set(e, ERR_NOMEM, "no memory for picture '%s' of %lldx%lld pixels", name, (long long)w,
                       (long long)h);
    *p = (struct picture){ rgb, (int)w, (int)h };
    return 0;
}

void picture_free(struct picture *p)
{
    free(p->rgb);
    *p = (struct picture){ 0 };
}

int picture_truncated(const struct source *s, struct err *e)
{
    return err_set(e, ERR_FORMAT, "picture '%s' is truncated after %zu bytes", s->name, s->n);
}

/* A format is known by `n` bytes at `at`. Those without a decoder are here for the message to name. */
static const struct format {
    const char *name;
    int at, n;
    const char *magic;
    int (*decode)(struct picture *p, const struct source *s, struct err *e);
} formats[] = {
    { "JPEG", 0, 3, "\xff\xd8\xff", jpeg_decode },
    { "PNG", 0, 8, "\x89PNG\r\n\x1a\n", png_decode },
    { "WebP", 8, 4, "WEBP", webp_decode },
    { "GIF", 0, 6, "GIF87a", gif_decode },
    { "GIF", 0, 6, "GIF89a", gif_decode },
    { "BMP", 0, 2, "BM", bmp_decode },
    { "TIFF", 0, 4, "II*\0", NULL },
    { "TIFF", 0, 4, "MM\0*", NULL },
    { "AVIF", 4, 8, "ftypavif", NULL },
    { "HEIC", 4, 8, "ftypheic", NULL },
    { "HEIC", 4, 8, "ftypmif1", NULL },
    { "JPEG 2000", 0, 8, "\0\0\0\fjP  ", NULL },
    { "JPEG 2000", 0, 4, "\xff\x4f\xff\x51", NULL },
    { "JPEG XL", 0, 2, "\xff\x0a", NULL },
    { "ICO", 0, 4, "\0\0\1\0", NULL },
    { "PSD", 0, 4, "8BPS", NULL },
    { "PDF", 0, 4, "%PDF", NULL },
    { "PBM", 0, 2, "P4", NULL },
    { "PGM", 0, 2, "P5", NULL },
    { "PPM", 0, 2, "P6", NULL },
    { "SVG", 0, 4, "<svg", NULL },
    { "XML", 0, 5, "<?xml", NULL },
    { "HTML", 0, 5, "<html", NULL },
    { "HTML", 0, 5, "<!DOC", NULL },
};

static const struct format *format_find(const struct source *s)
{
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        const struct format *f = &formats[i];
        if (s->n >= (size_t)(f->at + f->n) && !memcmp(s->p + f->at, f->magic, (size_t)f->n)) return f;
    }
    return NULL;
}

int picture_decode(struct picture *p, const void *bytes, size_t n, const char *name, struct err *e)
{
    struct source s = { bytes, n, name };
    *p = (struct picture){ 0 };
    if (!n) return err_set(e, ERR_FORMAT, "picture '%s' is empty", name);
    const struct format *f = format_find(&s);
    if (!f) return err_set(e, ERR_UNSUPPORTED, "'%s' is not a picture of a known format", name);
    if (!f->decode)
        return err_set(e, ERR_UNSUPPORTED, "'%s' is %s; JPEG, PNG, WebP, GIF and BMP are read", name,
                       f->name);
    int rc = f->decode(p, &s, e);
    if (rc < 0) picture_free(p);
    return rc;
}

int picture_open(struct picture *p, const char *path, struct err *e)
{
    char *bytes = NULL;
    size_t n = 0;
    *p = (struct picture){ 0 };
    int rc = file_read(&bytes, &n, path, PICTURE_FILE_MAX, e);
    if (rc >= 0) rc = picture_decode(p, bytes, n, path, e);
    free(bytes);
    return rc;
}
