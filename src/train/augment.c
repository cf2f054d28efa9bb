/* See augment.h. Three planes of numbers from 0 to 1; each change is drawn by lot. */
#include "train/augment.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

enum { KNOTS = 5 };

struct look {
    struct rng rng;
    int side;
    float *x, *y, *z; /* [3,side,side]: the picture, and room */
    unsigned may;
};

static double between(struct look *l, double lo, double hi) { return lo + (hi - lo) * rng_unit(&l->rng); }
static bool chance(struct look *l, double p) { return rng_unit(&l->rng) < p; }
static float clamp(float v, float lo, float hi) { return v < lo ? lo : v > hi ? hi : v; }
static size_t area(const struct look *l) { return (size_t)l->side * (size_t)l->side; }

static void swap(struct look *l)
{
    float *t = l->x;
    l->x = l->y;
    l->y = t;
}

/* ---- shape */

/* A plane between its pixels; `out` beyond its border. */
static float sample_at(const float *p, int n, float x, float y, float out)
{
    const float fx = floorf(x), fy = floorf(y);
    const int ix = (int)fx, iy = (int)fy;
    float v[4];
    if (!(x > -1 && y > -1 && x < (float)n && y < (float)n)) return out;
    for (int k = 0; k < 4; k++) {
        const int cx = ix + (k & 1), cy = iy + (k >> 1);
        v[k] = cx >= 0 && cy >= 0 && cx < n && cy < n ? p[cy * n + cx] : out;
    }
    const float ax = x - fx, ay = y - fy, top = v[0] + ax * (v[1] - v[0]), low = v[2] + ax * (v[3] - v[2]);
    return top + ay * (low - top);
}

/* Displacements on a coarse grid, and between its knots. */
struct warp { float at[2][KNOTS][KNOTS]; };

static float warp_at(const struct warp *w, int axis, float u, float v)
{
    const float x = (u + 1) / 2 * (KNOTS - 1), y = (v + 1) / 2 * (KNOTS - 1);
    const int ix = x < KNOTS - 2 ? (int)x : KNOTS - 2, iy = y < KNOTS - 2 ? (int)y : KNOTS - 2;
    const float a = x - (float)ix, b = y - (float)iy, sa = a * a * (3 - 2 * a), sb = b * b * (3 - 2 * b);
    const float (*g)[KNOTS] = w->at[axis];
    const float top = g[iy][ix] + sa * (g[iy][ix + 1] - g[iy][ix]);
    const float low = g[iy + 1][ix] + sa * (g[iy + 1][ix + 1] - g[iy + 1][ix]);
    return top + sb * (low - top);
}

/* The colour of the corners: what is outside of the picture. */
static void corner_colour(const struct look *l, float out[3])
{
    const size_t n = area(l), s = (size_t)l->side;
    for (int c = 0; c < 3; c++) {
        const float *p = l->x + (size_t)c * n;
        out[c] = (p[0] + p[s - 1] + p[n - s] + p[n - 1]) / 4;
    }
}

static void reshape(struct look *l)
{
    const double t = between(l, -1, 1), turn = t * t * t * 0.4, shear = between(l, -0.2, 0.2);
    const double zoom = exp(between(l, -0.2, 0.28)), w = between(l, 0, 1), amount = w * w * 0.09;
    double sx = zoom * exp(between(l, -0.12, 0.12)), sy = zoom * exp(between(l, -0.12, 0.12));
    const double dx = between(l, -0.12, 0.12), dy = between(l, -0.12, 0.12), c = cos(turn), s = sin(turn);
    struct warp warp;
    float out[3];
    const int n = l->side;
    if (l->may & MAY_MIRROR && chance(l, 0.3)) sx = -sx;
    for (int k = 0; k < 2 * KNOTS * KNOTS; k++) (&warp.at[0][0][0])[k] = (float)(amount * rng_normal(&l->rng));
    corner_colour(l, out);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++) {
            const double u = (2 * j + 1.0) / n - 1, v = (2 * i + 1.0) / n - 1;
            const double x = sx * (c * u + (shear - s) * v) + dx + (double)warp_at(&warp, 0, (float)u, (float)v);
            const double y = sy * (s * u + c * v) + dy + (double)warp_at(&warp, 1, (float)u, (float)v);
            for (int k = 0; k < 3; k++)
                l->y[(size_t)k * area(l) + (size_t)(i * n + j)] =
                    sample_at(l->x + (size_t)k * area(l), n, (float)(((x + 1) * n - 1) / 2),
                              (float)(((y + 1) * n - 1) / 2), out[k]);
        }
    swap(l);
}

/* ---- light and colour */

static const double yiq[3][3] = { { 0.299, 0.587, 0.114 }, { 0.596, -0.274, -0.322 }, { 0.211, -0.523, 0.312 } };
static const double rgb[3][3] = { { 1, 0.9563, 0.6210 }, { 1, -0.2721, -0.6474 }, { 1, -1.1070, 1.7046 } };

/* Hue turns, saturation and brightness grow or shrink: one matrix. */
static void recolour(struct look *l)
{
    const bool wild = l->may & MAY_RECOLOUR && chance(l, 0.2);
    const double hue = wild ? between(l, -1, 1) : between(l, -0.12, 0.12);
    const double sat = wild ? between(l, 0, 1.4) : between(l, 0.65, 1.35), gain = between(l, 0.75, 1.2);
    const double c = sat * cos(hue), s = sat * sin(hue), mid[3][3] = { { 1, 0, 0 }, { 0, c, -s }, { 0, s, c } };
    float m[3][3];
    const size_t n = area(l);
    for (int i = 0; i < 3; i++) {
        const double own = gain * (1 + 0.1 * between(l, -0.5, 0.5));
        for (int j = 0; j < 3; j++) {
            double sum = 0;
            for (int a = 0; a < 3; a++)
                for (int b = 0; b < 3; b++) sum += rgb[i][a] * mid[a][b] * yiq[b][j];
            m[i][j] = (float)(own * sum);
        }
    }
    for (size_t i = 0; i < n; i++) {
        const float r = l->x[i], g = l->x[n + i], b = l->x[2 * n + i];
        for (int k = 0; k < 3; k++) l->x[(size_t)k * n + i] = clamp(m[k][0] * r + m[k][1] * g + m[k][2] * b, 0, 1);
    }
}

/* Gamma, and light from one side. */
static void relight(struct look *l)
{
    const size_t n = area(l);
    const float power = (float)exp(between(l, -0.35, 0.35)), angle = (float)between(l, 0, 6.2831853);
    const float much = (float)between(l, 0, 0.35), px = much * cosf(angle), py = much * sinf(angle);
    if (chance(l, 0.5))
        for (size_t i = 0; i < 3 * n; i++) l->x[i] = powf(fmaxf(l->x[i], 1e-4f), power);
    if (!chance(l, 0.3)) return;
    for (size_t i = 0; i < 3 * n; i++) {
        const size_t at = i % n;
        const float u = 2 * (float)(at % (size_t)l->side) / (float)l->side - 1;
        const float v = 2 * (float)(at / (size_t)l->side) / (float)l->side - 1;
        l->x[i] *= 1 + px * u + py * v;
    }
}

/* ---- lines and sharpness */

enum spread { MOST, LEAST, MEAN };

static float of(enum spread how, float a, float b, float c)
{
    if (how == MEAN) return (a + b + c) / 3;
    return how == MOST ? fmaxf(a, fmaxf(b, c)) : fminf(a, fminf(b, c));
}

/* y = of each pixel's 3 x 3 neighbourhood; room: one plane */
static void spread_plane(float *y, const float *x, float *room, int n, enum spread how)
{
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++) {
            const float *p = x + i * n;
            room[i * n + j] = of(how, p[j ? j - 1 : 0], p[j], p[j < n - 1 ? j + 1 : j]);
        }
    for (int i = 0; i < n; i++) {
        const float *a = room + (i ? i - 1 : 0) * n, *b = room + i * n, *c = room + (i < n - 1 ? i + 1 : i) * n;
        for (int j = 0; j < n; j++) y[i * n + j] = of(how, a[j], b[j], c[j]);
    }
}

static void spread(struct look *l, enum spread how)
{
    for (size_t k = 0; k < 3; k++) spread_plane(l->y + k * area(l), l->x + k * area(l), l->z, l->side, how);
    swap(l);
}

/* z[side,side] = how much each pixel's neighbourhood varies; y is lost */
static void find_edges(struct look *l)
{
    const size_t n = area(l);
    memset(l->z, 0, n * sizeof *l->z);
    for (size_t k = 0; k < 3; k++) {
        spread_plane(l->y, l->x + k * n, l->z + n, l->side, MOST);
        spread_plane(l->y + n, l->x + k * n, l->z + n, l->side, LEAST);
        for (size_t i = 0; i < n; i++) l->z[i] = fmaxf(l->z[i], l->y[i] - l->y[n + i]);
    }
}

/* Outlines, or nothing but outlines; thicker or thinner shapes. */
static void redraw(struct look *l)
{
    const size_t n = area(l);
    const double lot = rng_unit(&l->rng);
    const bool sketch = lot < 0.05 && l->may & MAY_RECOLOUR;
    const float strength = sketch ? 2.5f : (float)between(l, 0.5, 2.5);
    if (lot < 0.2) {
        find_edges(l);
        for (size_t i = 0; i < 3 * n; i++) {
            const float line = 1 - clamp(l->z[i % n] * strength, 0, 1);
            l->x[i] = sketch ? line : l->x[i] * line;
        }
    } else if (lot < 0.26) {
        spread(l, MOST);
    } else if (lot < 0.32) {
        spread(l, LEAST);
    }
}

/* As if it had been small. */
static void coarsen(struct look *l)
{
    const int n = l->side, small = (int)(between(l, 0.3, 0.9) * n);
    for (size_t k = 0; k < 3; k++) {
        const float *x = l->x + k * area(l);
        float *y = l->y + k * area(l);
        for (int i = 0; i < small * small; i++)
            l->z[i] = sample_at(x, n, ((float)(i % small) + 0.5f) * (float)n / (float)small - 0.5f,
                                ((float)(i / small) + 0.5f) * (float)n / (float)small - 0.5f, 1);
        for (int i = 0; i < n * n; i++)
            y[i] = sample_at(l->z, small,
                             clamp(((float)(i % n) + 0.5f) * (float)small / (float)n - 0.5f, 0, (float)(small - 1)),
                             clamp(((float)(i / n) + 0.5f) * (float)small / (float)n - 0.5f, 0, (float)(small - 1)), 1);
    }
    swap(l);
}

static void resharpen(struct look *l)
{
    const size_t n = 3 * area(l);
    const float levels = (float)(3 + rng_u64(&l->rng) % 6), grain = (float)between(l, 0, 0.08);
    if (chance(l, 0.2)) spread(l, MEAN);
    if (chance(l, 0.08)) spread(l, MEAN), spread(l, MEAN);
    if (chance(l, 0.2)) coarsen(l);
    if (chance(l, 0.12))
        for (size_t i = 0; i < n; i++) l->x[i] = rintf(l->x[i] * levels) / levels;
    if (!chance(l, 0.1)) return;
    for (size_t i = 0; i < n; i++) { /* the sum of four: near enough to normal */
        const uint64_t r = rng_u64(&l->rng);
        const float sum = (float)(r & 65535) + (float)(r >> 16 & 65535) + (float)(r >> 32 & 65535) + (float)(r >> 48);
        l->x[i] += grain * (sum / 65536 - 2) * 1.7320508f;
    }
}

/* A box of one colour. */
static void punch(struct look *l)
{
    const int n = l->side, w = (int)(between(l, 0.15, 0.45) * n), h = (int)(between(l, 0.15, 0.45) * n);
    const int x = (int)(rng_unit(&l->rng) * (n - w)), y = (int)(rng_unit(&l->rng) * (n - h));
    for (size_t k = 0; k < 3; k++) {
        const float colour = (float)rng_unit(&l->rng);
        for (int i = y; i < y + h; i++)
            for (int j = x; j < x + w; j++) l->x[k * area(l) + (size_t)(i * n + j)] = colour;
    }
}

/* Some squares of a grid are gone: what is left must do. */
static void sieve(struct look *l)
{
    enum { CELLS = 14 };
    const int n = l->side;
    const double share = between(l, 0.1, 0.5);
    float colour[3];
    corner_colour(l, colour);
    for (int c = 0; c < CELLS * CELLS; c++) {
        if (!chance(l, share)) continue;
        const int y0 = c / CELLS * n / CELLS, x0 = c % CELLS * n / CELLS;
        const int y1 = (c / CELLS + 1) * n / CELLS, x1 = (c % CELLS + 1) * n / CELLS;
        for (size_t k = 0; k < 3; k++)
            for (int i = y0; i < y1; i++)
                for (int j = x0; j < x1; j++) l->x[k * area(l) + (size_t)(i * n + j)] = colour[k];
    }
}

int augment(float *pixels, int side, const struct clip_processor *p, unsigned may, uint64_t key, struct err *e)
{
    struct look l = { .side = side, .may = may };
    const size_t n = area(&l);
    const double range = p->do_rescale ? 255 * p->scale : 255;
    float *room = malloc(9 * n * sizeof *room);
    if (!room) return err_set(e, ERR_NOMEM, "no memory for a picture");
    l.x = room;
    l.y = room + 3 * n;
    l.z = room + 6 * n;
    rng_seed(&l.rng, key);
    for (size_t i = 0; i < 3 * n; i++) {
        const double v = p->do_normalize ? (double)pixels[i] * p->std[i / n] + p->mean[i / n] : (double)pixels[i];
        l.x[i] = clamp((float)(v / range), 0, 1);
    }
    reshape(&l);
    recolour(&l);
    relight(&l);
    redraw(&l);
    resharpen(&l);
    if (chance(&l, 0.35)) punch(&l);
    if (chance(&l, 0.4)) sieve(&l);
    for (size_t i = 0; i < 3 * n; i++) {
        const double v = (double)clamp(l.x[i], 0, 1) * range;
        pixels[i] = (float)(p->do_normalize ? (v - p->mean[i / n]) / p->std[i / n] : v);
    }
    free(room);
    return 0;
}
