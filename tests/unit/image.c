/* src/image without Pillow: limits, bad input and its messages, configs, small cases that can be worked out
 * by hand. What pictures decode to, and what they become, image_pil.py compares with Pillow. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <unistd.h>
#include <zlib.h>

#include "base/buf.h"
#include "image/preprocess.h"
#include "image/resize.h"

static const char bmp_2x1[] =
    "BM\x3e\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0\2\0\0\0\1\0\0\0\1\0\x18\0\0\0\0\0\0\0\0\0\0\0\0\0"
    "\0\0\0\0\0\0\0\0\0\0\0\0\1\2\3\4\5\6\0\0";
static const char gif_1x1[] = "GIF89a\1\0\1\0\x80\0\0\xff\0\0\0\0\0,\0\0\0\0\1\0\1\0\0\2\2\x44\1\0;";

/* Decoding n bytes fails with this code, and the message has this text. Nothing is left in the picture. */
static void expect_bad(const void *bytes, size_t n, int code, const char *text)
{
    struct picture p = { (uint8_t *)1, 1, 1 };
    struct err e = { 0 };
    assert_int_equal(picture_decode(&p, bytes, n, "it", &e), code);
    if (!strstr(e.msg, text)) fail_msg("'%s' has no '%s'", e.msg, text);
    assert_null(p.rgb);
    assert_int_equal(p.w, 0);
}

static void decodes(void **state)
{
    (void)state;
    struct picture p;
    struct err e;
    assert_int_equal(picture_decode(&p, bmp_2x1, sizeof bmp_2x1 - 1, "it", &e), 0);
    assert_int_equal(p.w, 2);
    assert_int_equal(p.h, 1);
    assert_memory_equal(p.rgb, "\3\2\1\6\5\4", 6);
    picture_free(&p);
    assert_int_equal(picture_decode(&p, gif_1x1, sizeof gif_1x1 - 1, "it", &e), 0);
    assert_memory_equal(p.rgb, "\xff\0\0", 3);
    picture_free(&p);
    picture_free(&p);
}

static void every_cut_is_an_error(void **state)
{
    (void)state;
    for (size_t n = 6; n < sizeof bmp_2x1 - 1; n++) expect_bad(bmp_2x1, n, ERR_FORMAT, "truncated after");
    for (size_t n = 6; n < sizeof gif_1x1 - 3; n++)
        expect_bad(gif_1x1, n, ERR_FORMAT, "'it' is truncated after");
}

/* Two frames of 4x4, black and white, lossless, by Pillow. A cut that leaves the first frame whole is one too;
 * where the header tells of no more bytes than there are, the first frame is the picture. */
static void animation_cut_after_its_first_frame(void **state)
{
    (void)state;
    static const char webp[] =
        "RIFF\x84\0\0\0WEBPVP8X\x0a\0\0\0\2\0\0\0\3\0\0\3\0\0" "ANIM\6\0\0\0\0\0\0\0\0\0"
        "ANMF&\0\0\0\0\0\0\0\0\0\3\0\0\3\0\0\0\0\0\2VP8L\x0e\0\0\0/\3\xc0\0\0\7\x10\x11\xfd\x0f" "DD\xff\3"
        "ANMF*\0\0\0\0\0\0\0\0\0\3\0\0\3\0\0\0\0\0\0VP8L\x11\0\0\0/\3\xc0\0\0\7\xd0\xff\xfe\xf7\xbf\xff\x81\x88\xe8"
        "\x7f\0";
    enum { FIRST = 90, N = sizeof webp };
    assert_int_equal(N, 140);
    for (size_t n = 12; n < N; n++) expect_bad(webp, n, ERR_FORMAT, "'it' is truncated after");
    char fits[N];
    memcpy(fits, webp, N);
    static const size_t sizes[] = { N, FIRST };
    for (int i = 0; i < 2; i++) {
        struct picture p;
        struct err e;
        fits[4] = (char)(sizes[i] - 8);
        assert_int_equal(picture_decode(&p, fits, sizes[i], "it", &e), 0);
        assert_int_equal(p.w, 4);
        for (int k = 0; k < 48; k++) assert_int_equal(p.rgb[k], 0);
        picture_free(&p);
    }
}

static void unknown_formats(void **state)
{
    (void)state;
    expect_bad("", 0, ERR_FORMAT, "'it' is empty");
    expect_bad("hello", 5, ERR_UNSUPPORTED, "not a picture of a known format");
    expect_bad("II*\0....", 8, ERR_UNSUPPORTED, "'it' is TIFF");
    expect_bad("\0\0\0 ftypavif", 12, ERR_UNSUPPORTED, "AVIF");
    expect_bad("\0\0\0 ftypheic", 12, ERR_UNSUPPORTED, "HEIC");
    expect_bad("<html>", 6, ERR_UNSUPPORTED, "HTML");
    expect_bad("\xff\xd8\xff", 3, ERR_FORMAT, "'it' is truncated");
    expect_bad("\x89PNG\r\n\x1a\n", 8, ERR_FORMAT, "'it' is truncated");
    expect_bad("RIFF\4\0\0\0WEBP", 12, ERR_FORMAT, "'it' has a broken WebP header");
}

static void png_header(uint8_t b[33], uint32_t w, uint32_t h)
{
    memcpy(b, "\x89PNG\r\n\x1a\n\0\0\0\rIHDR........\x08\2\0\0\0", 29);
    for (int i = 0; i < 4; i++) {
        b[16 + i] = (uint8_t)(w >> (24 - 8 * i));
        b[20 + i] = (uint8_t)(h >> (24 - 8 * i));
    }
    uint32_t crc = (uint32_t)crc32(0, b + 12, 17);
    for (int i = 0; i < 4; i++) b[29 + i] = (uint8_t)(crc >> (24 - 8 * i));
}

static void png_of(uint32_t w, uint32_t h, int code, const char *text)
{
    static const char idat[] = "\0\0\0\0IDAT";
    uint8_t b[33 + 8];
    png_header(b, w, h);
    memcpy(b + 33, idat, 8);
    expect_bad(b, sizeof b, code, text);
}

static void limits_come_before_memory(void **state)
{
    (void)state;
    struct picture p;
    struct err e;
    png_of(100000, 10, ERR_LIMIT, "'it' is 100000x10, a side is longer than 65535");
    png_of(20000, 20000, ERR_LIMIT, "'it' is 20000x20000, more than 178956970 pixels");
    png_of(0, 20, ERR_FORMAT, "'it' is broken");
    expect_bad("GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\1\0\1\0\0\2", 24, ERR_LIMIT, "65535x65535");
    assert_int_equal(picture_new(&p, INT64_MAX, INT64_MAX, "n", &e), ERR_LIMIT);
    assert_int_equal(picture_new(&p, -1, 5, "n", &e), ERR_FORMAT);
    assert_int_equal(picture_new(&p, 5, 0, "n", &e), ERR_FORMAT);
    assert_int_equal(picture_new(&p, 65535, 1, "n", &e), 0);
    picture_free(&p);
}

static void missing_file(void **state)
{
    (void)state;
    struct picture p;
    struct err e;
    assert_int_equal(picture_open(&p, "/no/such/picture.jpg", &e), ERR_MISSING);
    assert_non_null(strstr(e.msg, "/no/such/picture.jpg"));
    assert_int_equal(picture_open(&p, "/", &e), ERR_IO);
}

/* A window is the same as a cut of the whole, black outside. */
static void windows(void **state)
{
    (void)state;
    struct picture src, all, part;
    struct err e;
    assert_int_equal(picture_new(&src, 37, 23, "src", &e), 0);
    for (int i = 0; i < 37 * 23 * 3; i++) src.rgb[i] = (uint8_t)(i * i * 31 >> 3);
    static const int sizes[][2] = { { 50, 60 }, { 37, 9 }, { 9, 23 }, { 37, 23 }, { 5, 4 } };
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        int w = sizes[s][0], h = sizes[s][1];
        struct window win = { -3, 2, w, h + 1 };
        assert_int_equal(picture_resize(&all, &src, w, h, &e), 0);
        assert_int_equal(picture_resize_window(&part, &src, w, h, win, &e), 0);
        for (int y = 0; y < win.h; y++)
            for (int x = 0; x < win.w; x++) {
                const uint8_t *got = picture_row(&part, y) + 3 * x;
                bool in = x + win.x >= 0 && x + win.x < w && y + win.y < h;
                const uint8_t *want = (const uint8_t *)"\0\0";
                if (in) want = picture_row(&all, y + win.y) + 3 * (x + win.x);
                assert_memory_equal(got, want, 3);
            }
        picture_free(&all);
        picture_free(&part);
    }
    assert_int_equal(picture_resize_window(&part, &src, 5, 5, (struct window){ 9, 9, 2, 2 }, &e), 0);
    assert_memory_equal(part.rgb, "\0\0\0\0\0\0\0\0\0\0\0", 12);
    picture_free(&part);
    assert_int_equal(picture_resize(&part, &src, 60000, 60000, &e), ERR_LIMIT);
    assert_int_equal(picture_resize(&part, &src, 0, 5, &e), ERR_FORMAT);
    assert_null(part.rgb);
    picture_free(&src);
}

static void flat_stays_flat(void **state)
{
    (void)state;
    struct picture src, dst;
    struct err e;
    assert_int_equal(picture_new(&src, 101, 57, "src", &e), 0);
    memset(src.rgb, 200, 101 * 57 * 3);
    assert_int_equal(picture_resize(&dst, &src, 33, 90, &e), 0);
    for (int i = 0; i < 33 * 90 * 3; i++) assert_int_equal(dst.rgb[i], 200);
    picture_free(&src);
    picture_free(&dst);
}

static int parse(struct clip_processor *p, const char *json, struct err *e)
{
    return clip_processor_parse(p, json, strlen(json), "conf", e);
}

static void configs(void **state)
{
    (void)state;
    struct clip_processor p;
    struct err e;
    uint8_t c[3];
    clip_processor_default(&p, 336);
    clip_processor_background(&p, c);
    assert_memory_equal(c, ((uint8_t[]){ 122, 116, 104 }), 3);
    assert_int_equal(clip_processor_load(&p, "/no/such/config.json", &e), 1);
    assert_int_equal(p.crop_w, 336);
    assert_int_equal(parse(&p, "{}", &e), 0);
    assert_int_equal(p.shortest, 336);
    assert_int_equal(
        parse(&p, "{\"size\": 224, \"crop_size\": {\"height\": 5, \"width\": 6}, \"resample\": 3}", &e), 0);
    assert_int_equal(p.shortest, 224);
    assert_int_equal(p.crop_h, 5);
    assert_int_equal(p.crop_w, 6);
    assert_int_equal(parse(&p, "{\"size\": {\"height\": 7, \"width\": 8}, \"do_center_crop\": false}", &e),
                     0);
    assert_int_equal(p.shortest, 0);
    assert_int_equal(p.size_w, 8);
    assert_false(p.do_center_crop);
}

static void bad_configs(void **state)
{
    (void)state;
    static const struct { const char *json; int code; const char *text; } bad[] = {
        { "", ERR_FORMAT, "'conf' is not JSON" },
        { "[1]", ERR_FORMAT, "'conf' is not a JSON object" },
        { "{\"resample\": 2}", ERR_UNSUPPORTED, "resample is 2" },
        { "{\"resample\": \"bicubic\"}", ERR_FORMAT, "resample" },
        { "{\"size\": 0}", ERR_FORMAT, "size" },
        { "{\"size\": -3}", ERR_FORMAT, "size" },
        { "{\"size\": 1e3}", ERR_FORMAT, "size" },
        { "{\"size\": 99999}", ERR_FORMAT, "size is not a number of pixels" },
        { "{\"size\": {\"height\": 3}}", ERR_FORMAT, "size" },
        { "{\"crop_size\": [3, 3]}", ERR_FORMAT, "crop_size" },
        { "{\"do_resize\": 1}", ERR_FORMAT, "do_resize is not true or false" },
        { "{\"image_mean\": [0.5, 0.5]}", ERR_FORMAT, "image_mean" },
        { "{\"image_mean\": [0.5, 0.5, \"0\"]}", ERR_FORMAT, "image_mean" },
        { "{\"image_std\": [0.5, 0.5, 0]}", ERR_FORMAT, "image_std" },
        { "{\"rescale_factor\": true}", ERR_FORMAT, "rescale_factor" },
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct clip_processor p;
        struct err e = { 0 };
        if (parse(&p, bad[i].json, &e) != bad[i].code) fail_msg("%s: '%s'", bad[i].json, e.msg);
        if (!strstr(e.msg, bad[i].text)) fail_msg("%s: '%s'", bad[i].json, e.msg);
    }
}

static void values(void **state)
{
    (void)state;
    struct picture p;
    struct clip_processor clip;
    struct pixels px;
    struct err e;
    clip_processor_default(&clip, 4);
    assert_int_equal(picture_new(&p, 2, 1, "p", &e), 0);
    memset(p.rgb, 255, 6);
    assert_int_equal(pixels_new(&px, &p, &clip, ASPECT_SQUARE, NULL, &e), 0);
    assert_int_equal(px.n, 1);
    assert_int_equal(px.h, 4);
    assert_int_equal(px.w0, 2);
    for (int i = 0; i < 48; i++) {
        float want = (1.0f - (float)clip.mean[i / 16]) / (float)clip.std[i / 16];
        assert_memory_equal(&px.data[i], &want, sizeof want);
    }
    pixels_free(&px);
    pixels_free(&px);
    picture_free(&p);
}

static void anyres_needs(void **state)
{
    (void)state;
    struct picture p;
    struct clip_processor clip;
    struct pixels px;
    struct pinpoints pp = { .n = 1, .at = { { 10, 8 } } };
    struct err e;
    clip_processor_default(&clip, 4);
    assert_int_equal(picture_new(&p, 2, 1, "p", &e), 0);
    assert_int_equal(pixels_new(&px, &p, &clip, ASPECT_ANYRES, NULL, &e), ERR_MISSING);
    assert_int_equal(pixels_new(&px, &p, &clip, ASPECT_ANYRES, &pp, &e), ERR_UNSUPPORTED);
    assert_non_null(strstr(e.msg, "10x8"));
    assert_null(px.data);
    pp.at[0].w = 12;
    assert_int_equal(pixels_new(&px, &p, &clip, ASPECT_ANYRES, &pp, &e), 0);
    assert_int_equal(px.n, 1 + 6);
    pixels_free(&px);
    pp.at[0].w = pp.at[0].h = 4 * 33;
    assert_int_equal(pixels_new(&px, &p, &clip, ASPECT_ANYRES, &pp, &e), ERR_LIMIT);
    picture_free(&p);
}

/* A picture of 65535 x 1 would need a square of 4 billion pixels; its centre crop needs only a few. */
static void extreme_shapes(void **state)
{
    (void)state;
    struct picture p;
    struct clip_processor clip;
    struct pixels px;
    struct err e;
    clip_processor_default(&clip, 336);
    assert_int_equal(picture_new(&p, 65535, 1, "p", &e), 0);
    assert_int_equal(pixels_new(&px, &p, &clip, ASPECT_PAD, NULL, &e), ERR_LIMIT);
    assert_null(px.data);
    assert_int_equal(pixels_new(&px, &p, &clip, ASPECT_SQUARE, NULL, &e), 0);
    pixels_free(&px);
    picture_free(&p);
}

static void names(void **state)
{
    (void)state;
    enum aspect a;
    enum merge m;
    struct err e;
    assert_int_equal(aspect_parse(&a, "pad", &e) || a != ASPECT_PAD, 0);
    assert_int_equal(aspect_parse(&a, "anyres", &e) || a != ASPECT_ANYRES, 0);
    assert_int_equal(aspect_parse(&a, NULL, &e) || a != ASPECT_SQUARE, 0);
    assert_int_equal(aspect_parse(&a, "whatever", &e) || a != ASPECT_SQUARE, 0);
    assert_int_equal(aspect_parse(&a, "anyres_max_9", &e), ERR_UNSUPPORTED);
    assert_int_equal(merge_parse(&m, "spatial_unpad", &e) || m != MERGE_UNPAD, 0);
    assert_int_equal(merge_parse(&m, "spatial", &e) || m != MERGE_SPATIAL, 0);
    assert_int_equal(merge_parse(&m, NULL, &e) || m != MERGE_FLAT, 0);
    assert_int_equal(merge_parse(&m, "round", &e), ERR_UNSUPPORTED);
}

static void pinpoints(void **state)
{
    (void)state;
    static const char *const good[] = { "[[336, 672], [672,336]]", "[(336, 672), (672, 336)]",
                                        " ( (336,672) , [ 672 , 336 ] , ) ", "[[336,\n672],[672,336],]" };
    static const char *const bad[] = {
        "", "[]", "[", "[[336,672]", "[[336,672)]", "[[336]]", "[[0,3]]", "[[-1,3]]", "[[336,672]] x",
        "[[336,99999999999]]", "[336,672]", "[[336,672][1,2]]", "[[3.5,2]]", "[(1,2,3)]", "null",
    };
    struct pinpoints p;
    struct err e;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_int_equal(pinpoints_parse(&p, good[i], strlen(good[i]), i & 1, &e), 0);
        assert_int_equal(p.n, 2);
        assert_int_equal(p.at[0].w, i & 1 ? 672 : 336);
        assert_int_equal(p.at[1].w, i & 1 ? 336 : 672);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (pinpoints_parse(&p, bad[i], strlen(bad[i]), false, &e) != ERR_FORMAT) fail_msg("%s", bad[i]);
    char many[1000] = "[";
    for (int i = 0; i < PINPOINTS_MAX + 1; i++) strcat(many, "[1,2],");
    strcat(many, "]");
    assert_int_equal(pinpoints_parse(&p, many, strlen(many), false, &e), ERR_LIMIT);
}

/* Two tiles side by side of 2 x 2 patches. A picture of 4 x 1 leaves one of the 2 rows to padding, and half
 * of it, rounded down, is cut at either end: nothing. One of 1 x 1 fills 2 of the 4 columns: one is cut at
 * either end. */
static void merge_by_hand(void **state)
{
    (void)state;
    static const int32_t spatial[] = { 0, 1, 2, 3, 4, 5, 8, 9, 6, 7, 10, 11 };
    static const int32_t newline[] = { 0, 1, 2, 3, 4, 5, 8, 9, -1, 6, 7, 10, 11, -1 };
    static const int32_t single[] = { 0, 1, 2, 3, -1 };
    static const int32_t narrow[] = { 0, 1, 2, 3, 5, 8, -1, 7, 10, -1 };
    int32_t to[64];
    struct grid two = { 2, 1 };
    assert_int_equal(merge_rows(to, MERGE_FLAT, two, 2, 4, 1), 12);
    assert_int_equal(to[11], 11);
    assert_int_equal(merge_rows(to, MERGE_SPATIAL, two, 2, 4, 1), 12);
    assert_memory_equal(to, spatial, sizeof spatial);
    assert_int_equal(merge_rows(NULL, MERGE_UNPAD, two, 2, 4, 2), 14);
    assert_int_equal(merge_rows(to, MERGE_UNPAD, two, 2, 4, 1), 14);
    assert_memory_equal(to, newline, sizeof newline);
    assert_int_equal(merge_rows(to, MERGE_UNPAD, two, 2, 1, 1), 10);
    assert_memory_equal(to, narrow, sizeof narrow);
    assert_int_equal(merge_rows(to, MERGE_UNPAD, (struct grid){ 0, 0 }, 2, 4, 1), 5);
    assert_memory_equal(to, single, sizeof single);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decodes),         cmocka_unit_test(every_cut_is_an_error),
        cmocka_unit_test(animation_cut_after_its_first_frame),
        cmocka_unit_test(unknown_formats), cmocka_unit_test(limits_come_before_memory),
        cmocka_unit_test(missing_file),    cmocka_unit_test(windows),
        cmocka_unit_test(flat_stays_flat), cmocka_unit_test(configs),
        cmocka_unit_test(bad_configs),     cmocka_unit_test(values),
        cmocka_unit_test(anyres_needs),    cmocka_unit_test(extreme_shapes),
        cmocka_unit_test(names),           cmocka_unit_test(pinpoints),
        cmocka_unit_test(merge_by_hand),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
