/* PNG through libpng, with the conversions that Pillow does and no others: no gamma, no background, tRNS
 * ignored, low byte of 16 dropped except for grey, which is clipped (Pillow reads it into 32-bit integers
 * first). */
#include <string.h>

#include <png.h>

#include "image/formats.h"

/* Everything that has to survive a longjmp. */
struct job {
    png_structp png;
    png_infop info;
    struct picture *p;
    const struct source *s;
    struct err *e;
    size_t at;
    int rc;
};

static _Noreturn void leave(struct job *j, int rc)
{
    j->rc = rc;
    png_longjmp(j->png, 1);
}

static _Noreturn void on_error(png_structp png, png_const_charp why)
{
    struct job *j = png_get_error_ptr(png);
    j->png = png;
    leave(j, err_set(j->e, ERR_FORMAT, "picture '%s' is broken: %s", j->s->name, why));
}

static void on_warning(png_structp png, png_const_charp why) { (void)png, (void)why; }

static void on_read(png_structp png, png_bytep to, size_t n)
{
    struct job *j = png_get_io_ptr(png);
    if (n > j->s->n - j->at) leave(j, picture_truncated(j->s, j->e));
    memcpy(to, j->s->p + j->at, n);
    j->at += n;
}

static void row_from_grey16(uint8_t *row, int w)
{
    for (int x = w - 1; x >= 0; x--) {
        uint8_t v = row[2 * x] ? 255 : row[2 * x + 1];
        row[3 * x] = row[3 * x + 1] = row[3 * x + 2] = v;
    }
}

/* libpng delivers rows of 3 bytes a pixel, or fewer where we expand them ourselves, in place. */
static void expand(struct job *j, int depth, int type)
{
    uint8_t palette[256][3];
    png_colorp colour;
    int n = 0;
    palette_ramp(palette);
    if (png_get_PLTE(j->png, j->info, &colour, &n)) memcpy(palette, colour, (size_t)n * sizeof *palette);
    for (int y = 0; y < j->p->h; y++) {
        if (type == PNG_COLOR_TYPE_PALETTE) indices_to_rgb(picture_row(j->p, y), j->p->w, palette);
        if (type == PNG_COLOR_TYPE_GRAY && depth == 16) row_from_grey16(picture_row(j->p, y), j->p->w);
    }
}

static void set_transforms(struct job *j, int depth, int type)
{
    if (type == PNG_COLOR_TYPE_PALETTE) {
        png_set_packing(j->png);
    } else if (type != PNG_COLOR_TYPE_GRAY || depth < 16) {
        if (depth < 8) png_set_expand_gray_1_2_4_to_8(j->png);
        if (depth == 16) png_set_strip_16(j->png);
        if (type & PNG_COLOR_MASK_ALPHA) png_set_strip_alpha(j->png);
        if (!(type & PNG_COLOR_MASK_COLOR)) png_set_gray_to_rgb(j->png);
    }
}

static void read_picture(struct job *j)
{
    png_uint_32 w, h;
    int depth, type;
    png_read_info(j->png, j->info);
    png_get_IHDR(j->png, j->info, &w, &h, &depth, &type, NULL, NULL, NULL);
    int rc = picture_new(j->p, w, h, j->s->name, j->e);
    if (rc < 0) leave(j, rc);
    set_transforms(j, depth, type);
    int passes = png_set_interlace_handling(j->png);
    png_read_update_info(j->png, j->info);
    if (png_get_rowbytes(j->png, j->info) > (size_t)w * 3)
        leave(j, err_set(j->e, ERR_UNSUPPORTED, "picture '%s' is PNG of type %d with %d bits", j->s->name,
                         type, depth));
    for (; passes > 0; passes--)
        for (int y = 0; y < j->p->h; y++) png_read_row(j->png, picture_row(j->p, y), NULL);
    expand(j, depth, type);
}

/* Apart from png_decode, because what setjmp's own function keeps in locals is lost. */
static void read_guarded(struct job *j)
{
    if (setjmp(png_jmpbuf(j->png))) return;
    png_set_read_fn(j->png, j, on_read);
    read_picture(j);
}

int png_decode(struct picture *p, const struct source *s, struct err *e)
{
    struct job j = { .p = p, .s = s, .e = e };
    j.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &j, on_error, on_warning);
    if (j.png) j.info = png_create_info_struct(j.png);
    if (!j.info) {
        png_destroy_read_struct(&j.png, NULL, NULL);
        return err_set(e, ERR_NOMEM, "no memory to read picture '%s'", s->name);
    }
    read_guarded(&j);
    png_destroy_read_struct(&j.png, &j.info, NULL);
    return j.rc;
}
