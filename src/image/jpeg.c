/* JPEG through libjpeg-turbo, set as Pillow sets it: accurate integer DCT, smooth chroma upsampling, and a
 * source that stops (rather than invents an end) when the bytes run out, so that a file cut short is an
 * error. Warnings about damaged data inside a whole file are ignored, as Pillow does. */
#include <setjmp.h>
#include <stdio.h>

#include <jpeglib.h>

#include "image/formats.h"

/* A progressive file may repeat scans over the whole picture; real encoders write about ten. */
enum { JPEG_SCANS_MAX = 400 };

/* Everything that has to survive a longjmp. */
struct job {
    struct jpeg_decompress_struct c;
    struct jpeg_error_mgr error;
    struct jpeg_source_mgr source;
    struct jpeg_progress_mgr progress;
    jmp_buf out;
    struct picture *p;
    const struct source *s;
    struct err *e;
    int rc;
};

static void leave(struct job *j, int rc)
{
    j->rc = rc;
    longjmp(j->out, 1);
}

static void on_error(j_common_ptr c)
{
    struct job *j = c->client_data;
    char why[JMSG_LENGTH_MAX];
    c->err->format_message(c, why);
    leave(j, err_set(j->e, ERR_FORMAT, "picture '%s' is broken: %s", j->s->name, why));
}

static void on_message(j_common_ptr c, int level) { (void)c, (void)level; }
static void on_source(j_decompress_ptr c) { (void)c; }
static boolean on_end(j_decompress_ptr c) { return (void)c, FALSE; }

static void on_skip(j_decompress_ptr c, long n)
{
    size_t k = n < 0 ? 0 : (size_t)n;
    if (k > c->src->bytes_in_buffer) k = c->src->bytes_in_buffer;
    c->src->next_input_byte += k;
    c->src->bytes_in_buffer -= k;
}

static void on_progress(j_common_ptr c)
{
    struct job *j = c->client_data;
    if (c->is_decompressor && j->c.input_scan_number > JPEG_SCANS_MAX)
        leave(j, err_set(j->e, ERR_LIMIT, "picture '%s' has more than %d scans", j->s->name, JPEG_SCANS_MAX));
}

static void job_begin(struct job *j)
{
    jpeg_create_decompress(&j->c);
    j->source = (struct jpeg_source_mgr){
        .next_input_byte = j->s->p, .bytes_in_buffer = j->s->n,
        .init_source = on_source, .fill_input_buffer = on_end, .skip_input_data = on_skip,
        .resync_to_restart = jpeg_resync_to_restart, .term_source = on_source,
    };
    j->progress.progress_monitor = on_progress;
    j->c.src = &j->source;
    j->c.progress = &j->progress;
}

/* CMYK to RGB as Pillow's convert: k scales the others, with the 8-bit division by 255 that rounds. Adobe
 * programs store the four inverted, and Pillow takes every file for one of theirs. */
static void cmyk_row(uint8_t *to, const uint8_t *from, int w)
{
    for (int i = 0; i < 3 * w; i++) {
        int k = from[i / 3 * 4 + 3], ink = 255 - from[i / 3 * 4 + i % 3], t = ink * k + 128;
        to[i] = (uint8_t)(k - ((t + (t >> 8)) >> 8));
    }
}

static void read_rows(struct job *j)
{
    struct jpeg_decompress_struct *c = &j->c;
    const int w = j->p->w;
    JSAMPARRAY line = NULL;
    if (c->num_components == 4)
        line = c->mem->alloc_sarray((j_common_ptr)c, JPOOL_IMAGE, (JDIMENSION)w * 4, 1);
    while (c->output_scanline < c->output_height) {
        uint8_t *row = picture_row(j->p, (int)c->output_scanline);
        if (jpeg_read_scanlines(c, line ? line : &row, 1) != 1) leave(j, picture_truncated(j->s, j->e));
        if (c->num_components == 1) grey_to_rgb(row, w);
        if (c->num_components == 4) cmyk_row(row, line[0], w);
    }
}

static void read_picture(struct job *j)
{
    static const J_COLOR_SPACE space[5] = { 0, JCS_GRAYSCALE, 0, JCS_RGB, JCS_CMYK };
    struct jpeg_decompress_struct *c = &j->c;
    if (jpeg_read_header(c, TRUE) != JPEG_HEADER_OK) leave(j, picture_truncated(j->s, j->e));
    int n = c->num_components;
    if (n > 4 || !space[n])
        leave(j, err_set(j->e, ERR_UNSUPPORTED, "picture '%s' is JPEG with %d components", j->s->name, n));
    int rc = picture_new(j->p, c->image_width, c->image_height, j->s->name, j->e);
    if (rc < 0) leave(j, rc);
    c->out_color_space = space[n];
    c->dct_method = JDCT_ISLOW;
    c->do_fancy_upsampling = TRUE;
    if (!jpeg_start_decompress(c)) leave(j, picture_truncated(j->s, j->e));
    read_rows(j);
}

/* Apart from jpeg_decode, because what setjmp's own function keeps in locals is lost. */
static void read_guarded(struct job *j)
{
    if (setjmp(j->out)) return;
    job_begin(j);
    read_picture(j);
}

int jpeg_decode(struct picture *p, const struct source *s, struct err *e)
{
    struct job j = { .p = p, .s = s, .e = e };
    j.c.err = jpeg_std_error(&j.error);
    j.c.client_data = &j;
    j.error.error_exit = on_error;
    j.error.emit_message = on_message;
    read_guarded(&j);
    jpeg_destroy_decompress(&j.c); /* also right when creating failed: the struct began zeroed */
    return j.rc;
}
