/* A filter that lets other programs see what src/image makes of a picture. With the argument "-" it takes
 * commands from stdin, one a line, fields parted by tabs, and answers each with "ok A B C BYTES" and that
 * many bytes, or with "error CODE MESSAGE". image_pil.py compares the bytes with Pillow's. Without an
 * argument it is a test program, and decodes a picture of one pixel.
 *
 *   decode FILE                       A, B: width, height; RGB bytes
 *   resize FILE W H                   the same of the resized picture
 *   web FILE MODE                     the same of what the web page sends
 *   pixels FILE ASPECT PINPOINTS CONFIG   A tiles of B x C; floats. "-": none
 *   merge TYPE W H PINPOINTS TILE SIDE    A rows; int32
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "image/preprocess.h"
#include "image/resize.h"

enum { FIELDS = 8 };

static void reply(int rc, const struct err *e, int a, int b, int c, const void *p, size_t n)
{
    if (rc < 0) {
        printf("error %s %s\n", err_name(e->code), e->msg);
    } else {
        printf("ok %d %d %d %zu\n", a, b, c, n);
        fwrite(p, 1, n, stdout);
    }
    fflush(stdout);
}

static void reply_picture(int rc, const struct err *e, struct picture *p)
{
    reply(rc, e, p->w, p->h, 3, p->rgb, (size_t)p->w * (size_t)p->h * 3);
    picture_free(p);
}

static void do_picture(char **f)
{
    struct picture in = { 0 }, out = { 0 };
    struct err e = { 0 };
    int rc = picture_open(&in, f[1], &e);
    if (rc < 0 || !strcmp(f[0], "decode")) {
        reply_picture(rc, &e, &in);
        return;
    }
    if (!strcmp(f[0], "resize")) rc = picture_resize(&out, &in, atoi(f[2]), atoi(f[3]), &e);
    else rc = picture_for_web(&out, &in, f[2], &e);
    reply_picture(rc, &e, &out);
    picture_free(&in);
}

static void do_pixels(char **f)
{
    struct picture in = { 0 };
    struct clip_processor p;
    struct pinpoints pp = { 0 };
    struct pixels px = { 0 };
    enum aspect aspect;
    struct err e = { 0 };
    int rc;
    TRY(picture_open(&in, f[1], &e));
    TRY(aspect_parse(&aspect, f[2], &e));
    if (strcmp(f[3], "-")) TRY(pinpoints_parse(&pp, f[3], strlen(f[3]), false, &e));
    TRY(clip_processor_load(&p, f[4], &e));
    TRY(pixels_new(&px, &in, &p, aspect, &pp, &e));
out:
    reply(rc, &e, px.n, px.h, px.w, px.data, (size_t)px.n * 3 * (size_t)px.h * (size_t)px.w * sizeof(float));
    pixels_free(&px);
    picture_free(&in);
}

static void do_merge(char **f)
{
    struct pinpoints pp;
    enum merge m;
    int32_t *rows = NULL;
    int64_t n = 0;
    int rc, w = atoi(f[2]), h = atoi(f[3]), side = atoi(f[6]);
    struct err e = { 0 };
    TRY(merge_parse(&m, f[1], &e));
    TRY(pinpoints_parse(&pp, f[4], strlen(f[4]), false, &e));
    struct grid g = anyres_grid(&pp, w, h, atoi(f[5]));
    n = merge_rows(NULL, m, g, side, w, h);
    rows = malloc((size_t)n * sizeof *rows + 1);
    ASSERT(rows && merge_rows(rows, m, g, side, w, h) == n);
out:
    reply(rc, &e, (int)n, g.w, g.h, rows, (size_t)n * sizeof *rows);
    free(rows);
}

static int self_check(void)
{
    static const uint8_t gif[] = "GIF89a\1\0\1\0\x80\0\0\xff\0\0\0\0\0,\0\0\0\0\1\0\1\0\0\2\2\x44\1\0;";
    struct picture p;
    struct err e;
    bool good = picture_decode(&p, gif, sizeof gif - 1, "gif", &e) == 0 && p.w == 1 && p.h == 1 &&
                p.rgb[0] == 255 && p.rgb[1] == 0;
    printf("%s 1 - a picture of one pixel\n1..1\n", good ? "ok" : "not ok");
    picture_free(&p);
    return good ? 0 : 1;
}

int main(int argc, char **argv)
{
    static const struct { const char *name; int fields; void (*run)(char **f); } commands[] = {
        { "decode", 2, do_picture }, { "resize", 4, do_picture }, { "web", 3, do_picture },
        { "pixels", 5, do_pixels }, { "merge", 7, do_merge },
    };
    char line[8192];
    if (argc < 2 || strcmp(argv[1], "-")) return self_check();
    while (fgets(line, sizeof line, stdin)) {
        char *f[FIELDS] = { 0 };
        int n = 0;
        line[strcspn(line, "\n")] = 0;
        for (char *p = strtok(line, "\t"); p && n < FIELDS; p = strtok(NULL, "\t")) f[n++] = p;
        size_t i = 0, count = sizeof commands / sizeof *commands;
        while (i < count && (!n || strcmp(f[0], commands[i].name) || n != commands[i].fields)) i++;
        if (i == count) {
            fprintf(stderr, "image_dump: unknown command, or not its number of fields\n");
            return 2;
        }
        commands[i].run(f);
    }
    return 0;
}
