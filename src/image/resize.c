/* See resize.h. Two passes, each in plain C and in AVX2; sums in 32 bits are exact, in any order. */
#include "image/resize.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/plat.h"

enum { BITS = 22, HALF = 1 << (BITS - 1), LANES = 8 };

/* Weights for outputs [first, first + n) of an axis: output i is the sum over t < taps[i] of
 * k[i * stride + t] * input[from[i] + t]. */
struct axis {
    int n, stride;
    int *from, *taps;
    int32_t *k;
};

static double cubic(double x)
{
    const double a = -0.5;
    x = fabs(x);
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

static void axis_fini(struct axis *a)
{
    free(a->from);
    free(a->taps);
    free(a->k);
}

/* `row`: room for stride doubles. */
static void axis_weights(struct axis *a, int i, int in, double scale, double center, double *row)
{
    double wide = scale < 1 ? 1 : scale, support = 2 * wide, sum = 0, step = 1 / wide;
    int from = (int)(center - support + 0.5), to = (int)(center + support + 0.5);
    if (from < 0) from = 0;
    if (to > in) to = in;
    for (int t = 0; t < to - from; t++) sum += row[t] = cubic((t + from - center + 0.5) * step);
    for (int t = 0; t < to - from; t++) {
        double w = sum != 0 ? row[t] / sum : row[t];
        a->k[(size_t)i * (size_t)a->stride + (size_t)t] = (int32_t)((w < 0 ? -0.5 : 0.5) + w * (1 << BITS));
    }
    a->from[i] = from;
    a->taps[i] = to - from;
}

static int axis_init(struct axis *a, int in, int out, int first, int n, struct err *e)
{
    double scale = (double)in / out, wide = scale < 1 ? 1 : scale;
    /* One weight more than Pillow keeps makes the number even: AVX2 takes them in pairs. */
    *a = (struct axis){ .n = n, .stride = (int)ceil(2 * wide) * 2 + 2 };
    a->from = malloc((size_t)n * sizeof *a->from);
    a->taps = malloc((size_t)n * sizeof *a->taps);
    a->k = calloc((size_t)n * (size_t)a->stride, sizeof *a->k);
    double *row = malloc((size_t)a->stride * sizeof *row);
    int rc = 0;
    if (!a->from || !a->taps || !a->k || !row) rc = err_set(e, ERR_NOMEM, "no memory to resize a picture");
    else
        for (int i = 0; i < n; i++) axis_weights(a, i, in, scale, (first + i + 0.5) * scale, row);
    free(row);
    return rc;
}

static inline uint8_t clip8(int32_t v)
{
    v >>= BITS;
    return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
}

static void columns_row(uint8_t *to, const uint8_t *from, const struct axis *a)
{
    for (int i = 0; i < a->n; i++, to += 3) {
        const int32_t *k = a->k + (size_t)i * (size_t)a->stride;
        const uint8_t *p = from + (size_t)a->from[i] * 3;
        int32_t sum[3] = { HALF, HALF, HALF };
        for (int t = 0; t < a->taps[i]; t++, p += 3)
            for (int c = 0; c < 3; c++) sum[c] += p[c] * k[t];
        for (int c = 0; c < 3; c++) to[c] = clip8(sum[c]);
    }
}

/* One output row of `n` bytes from `taps` input rows that lie `pitch` bytes apart. */
static void rows_row(uint8_t *to, const uint8_t *from, size_t pitch, size_t n, const int32_t *k, int taps)
{
    for (size_t x = 0; x < n; x++) {
        int32_t sum = HALF;
        for (int t = 0; t < taps; t++) sum += from[x + (size_t)t * pitch] * k[t];
        to[x] = clip8(sum);
    }
}

#ifdef __x86_64__
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2")))

AVX2 static inline __m256i load8(const uint8_t *p)
{
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
}

/* Eight sums to eight bytes: the saturating packs clip to 0..255. */
AVX2 static inline __m128i pack8(__m256i sum)
{
    sum = _mm256_srai_epi32(sum, BITS);
    __m128i v = _mm_packs_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    return _mm_packus_epi16(v, v);
}

/* The lanes are two neighbouring RGB pixels and two idle ones, so up to 5 bytes after the last weighted pixel
 * are read: within the picture or its slack. An odd last weight has a zero after it. */
AVX2 static void columns_row_avx2(uint8_t *to, const uint8_t *from, const struct axis *a)
{
    const __m256i spread = _mm256_setr_epi32(0, 0, 0, 1, 1, 1, 0, 0);
    const __m256i second = _mm256_setr_epi32(3, 4, 5, 3, 4, 5, 6, 7);
    const __m256i half = _mm256_set1_epi32(HALF);
    for (int i = 0; i < a->n; i++, to += 3) {
        const int32_t *k = a->k + (size_t)i * (size_t)a->stride;
        const uint8_t *p = from + (size_t)a->from[i] * 3;
        __m256i sum = _mm256_setzero_si256();
        for (int t = 0; t < a->taps[i]; t += 2, p += 6) {
            __m256i w = _mm256_castsi128_si256(_mm_loadl_epi64((const __m128i *)(k + t)));
            sum = _mm256_add_epi32(sum, _mm256_mullo_epi32(load8(p), _mm256_permutevar8x32_epi32(w, spread)));
        }
        sum = _mm256_add_epi32(_mm256_add_epi32(sum, half), _mm256_permutevar8x32_epi32(sum, second));
        int rgb = _mm_cvtsi128_si32(pack8(sum));
        memcpy(to, &rgb, 3);
    }
}

AVX2 static void rows_row_avx2(uint8_t *to, const uint8_t *from, size_t pitch, size_t n, const int32_t *k,
                               int taps)
{
    size_t x = 0;
    for (; x + LANES <= n; x += LANES) {
        const uint8_t *p = from + x;
        __m256i sum = _mm256_set1_epi32(HALF);
        for (int t = 0; t < taps; t++, p += pitch)
            sum = _mm256_add_epi32(sum, _mm256_mullo_epi32(load8(p), _mm256_set1_epi32(k[t])));
        _mm_storel_epi64((__m128i *)(to + x), pack8(sum));
    }
    rows_row(to + x, from + x, pitch, n - x, k, taps);
}
#endif

/* The two passes that this machine does best; LLAVA_CPU=ref asks for the plain ones. */
struct passes {
    void (*columns)(uint8_t *to, const uint8_t *from, const struct axis *a);
    void (*rows)(uint8_t *to, const uint8_t *from, size_t pitch, size_t n, const int32_t *k, int taps);
};

static struct passes passes_find(void)
{
#ifdef __x86_64__
    const char *asked = env_get(ENV_LLAVA_CPU);
    if (__builtin_cpu_supports("avx2") && !(asked && !strcmp(asked, "ref")))
        return (struct passes){ columns_row_avx2, rows_row_avx2 };
#endif
    return (struct passes){ columns_row, rows_row };
}

/* Columns win.x.. of rows [y0, y0 + n) of src, resized to width w: a picture of win.w x n. */
static int columns(struct picture *dst, const struct picture *src, int w, struct window win, int y0, int n,
                   struct err *e)
{
    const struct passes pass = passes_find();
    struct axis a = { 0 };
    int rc = picture_new(dst, win.w, n, "resized", e);
    if (rc >= 0 && w != src->w) rc = axis_init(&a, src->w, w, win.x, win.w, e);
    for (int y = 0; rc >= 0 && y < n; y++) {
        if (a.n) pass.columns(picture_row(dst, y), picture_row(src, y0 + y), &a);
        else memcpy(picture_row(dst, y), picture_row(src, y0 + y) + (size_t)win.x * 3, (size_t)win.w * 3);
    }
    axis_fini(&a);
    if (rc < 0) picture_free(dst);
    return rc;
}

/* The window clipped to the resized picture, written into *dst at (win.x - full.x, win.y - full.y). */
static int resize_inside(struct picture *dst, struct window full, const struct picture *src, int w, int h,
                         struct window win, struct err *e)
{
    const struct passes pass = passes_find();
    struct axis a = { 0 };
    struct picture mid = { 0 };
    int rc = 0, y0 = win.y, y1 = win.y + win.h;
    if (h != src->h) {
        TRY(axis_init(&a, src->h, h, win.y, win.h, e));
        y0 = a.from[0];
        y1 = a.from[win.h - 1] + a.taps[win.h - 1];
    }
    TRY(columns(&mid, src, w, win, y0, y1 - y0, e));
    size_t pitch = (size_t)win.w * 3;
    for (int y = 0; y < win.h; y++) {
        uint8_t *to = picture_row(dst, y + win.y - full.y) + 3 * (win.x - full.x);
        if (a.n)
            pass.rows(to, picture_row(&mid, a.from[y] - y0), pitch, pitch, a.k + (size_t)y * (size_t)a.stride,
                      a.taps[y]);
        else memcpy(to, picture_row(&mid, y), pitch);
    }
out:
    axis_fini(&a);
    picture_free(&mid);
    return rc;
}

int picture_resize_window(struct picture *dst, const struct picture *src, int w, int h, struct window win,
                          struct err *e)
{
    int rc = picture_new(dst, win.w, win.h, "resized", e);
    if (rc < 0) return rc;
    int x0 = win.x < 0 ? 0 : win.x, y0 = win.y < 0 ? 0 : win.y;
    int64_t x1 = (int64_t)win.x + win.w, y1 = (int64_t)win.y + win.h;
    if (x1 > w) x1 = w;
    if (y1 > h) y1 = h;
    if (x1 <= x0 || y1 <= y0) return 0;
    struct window in = { x0, y0, (int)(x1 - x0), (int)(y1 - y0) };
    rc = resize_inside(dst, win, src, w, h, in, e);
    if (rc < 0) picture_free(dst);
    return rc;
}

int picture_resize(struct picture *dst, const struct picture *src, int w, int h, struct err *e)
{
    return picture_resize_window(dst, src, w, h, (struct window){ 0, 0, w, h }, e);
}
