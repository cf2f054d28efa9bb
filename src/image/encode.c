/* See encode.h. */
#include "image/encode.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>
#include <png.h>

int picture_png(struct buf *out, const struct picture *p, struct err *e)
{
    png_image im = { .version = PNG_IMAGE_VERSION, .width = (png_uint_32)p->w, .height = (png_uint_32)p->h,
                     .format = PNG_FORMAT_RGB, .flags = PNG_IMAGE_FLAG_FAST };
    png_alloc_size_t n = PNG_IMAGE_PNG_SIZE_MAX(im);
    void *bytes = malloc(n);
    if (!bytes) return err_set(e, ERR_NOMEM, "no memory for a PNG of %dx%d", p->w, p->h);
    int ok = png_image_write_to_memory(&im, bytes, &n, 0, p->rgb, 3 * p->w, NULL);
    if (ok) buf_add(out, bytes, n);
    free(bytes);
    png_image_free(&im);
    return ok ? buf_check(out, "a PNG", e) : err_set(e, ERR_IO, "cannot write a PNG: %s", im.message);
}

struct job {
    struct jpeg_compress_struct c;
    struct jpeg_error_mgr error;
    jmp_buf out;
    unsigned char *bytes;
    unsigned long n;
};

static _Noreturn void on_error(j_common_ptr c)
{
    longjmp(((struct job *)c->client_data)->out, 1);
}

int picture_jpeg(struct buf *out, const struct picture *p, int quality, struct err *e)
{
    struct job *j = calloc(1, sizeof *j); /* on the heap: it has to survive a longjmp */
    if (!j) return err_set(e, ERR_NOMEM, "no memory for a JPEG");
    int rc;
    j->c.err = jpeg_std_error(&j->error);
    j->error.error_exit = on_error;
    j->c.client_data = j;
    if (setjmp(j->out)) {
        rc = err_set(e, ERR_IO, "cannot write a JPEG of %dx%d", p->w, p->h);
    } else {
        jpeg_create_compress(&j->c);
        jpeg_mem_dest(&j->c, &j->bytes, &j->n);
        j->c.image_width = (JDIMENSION)p->w;
        j->c.image_height = (JDIMENSION)p->h;
        j->c.input_components = 3;
        j->c.in_color_space = JCS_RGB;
        jpeg_set_defaults(&j->c);
        jpeg_set_quality(&j->c, quality, TRUE);
        jpeg_start_compress(&j->c, TRUE);
        while (j->c.next_scanline < j->c.image_height) {
            JSAMPROW row = picture_row(p, (int)j->c.next_scanline);
            jpeg_write_scanlines(&j->c, &row, 1);
        }
        jpeg_finish_compress(&j->c);
        buf_add(out, j->bytes, j->n);
        rc = buf_check(out, "a JPEG", e);
    }
    jpeg_destroy_compress(&j->c);
    free(j->bytes);
    free(j);
    return rc;
}
