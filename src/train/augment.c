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
static float larger(float a, float b) { return a > b ? a : b; } /* fmaxf is a call */
static float smaller(float a, float b) { return a < b ? a : b; }
static float clamp(float v, float lo, float hi) { return v < lo ? lo : v > hi ? hi : v; }
static size_t area(const struct look *l) { return (size_t)l->side * (size_t)l->side; }

static void swap(struct look *l)
{
    float *t = l->x;
    l->x = l->y;
    l->y = t;
}

/* ---- shape */

/* A place between pixels: the four around it with their shares, and the share of what is outside of the picture. */
struct spot {
    int at[4];
    float share[4], outside;
};

static struct spot find_spot(int n, float x, float y)
{
    struct spot s = { .outside = 1 };
    if (!(x > -1 && y > -1 && x < (float)n && y < (float)n)) return s;
    const int ix = (int)(x + 1) - 1, iy = (int)(y + 1) - 1; /* both are above -1: floor */
    const float ax = x - (float)ix, ay = y - (float)iy;
    for (int k = 0; k < 4; k++) {
        const int cx = ix + (k & 1), cy = iy + (k >> 1);
        if (cx < 0 || cy < 0 || cx >= n || cy >= n) continue;
        s.at[k] = cy * n + cx;
        s.share[k] = (k & 1 ? ax : 1 - ax) * (k >> 1 ? ay : 1 - ay);
        s.outside -= s.share[k];
    }
    return s;
}

static float at_spot(const float *p, const struct spot *s, float out)
{
    float sum = out * s->outside;
    for (int k = 0; k < 4; k++) sum += s->share[k] * p[s->at[k]];
    return sum;
}

/* Displacements on a coarse grid, and between its knots: first along a column, then along a row. */
struct warp { float at[2][KNOTS][KNOTS]; };

/* The knot before place u of [-1, 1]; *share of the next one. */
static int knot_of(float u, float *share)
{
    const float x = (u + 1) / 2 * (KNOTS - 1);
    const int i = x < KNOTS - 2 ? (int)x : KNOTS - 2;
    const float a = x - (float)i;
    *share = a * a * (3 - 2 * a);
    return i;
}

static void warp_row(float row[2][KNOTS], const struct warp *w, float v)
{
    float share;
    const int i = knot_of(v, &share);
    for (int axis = 0; axis < 2; axis++)
        for (int k = 0; k < KNOTS; k++)
            row[axis][k] = w->at[axis][i][k] + share * (w->at[axis][i + 1][k] - w->at[axis][i][k]);
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

/* From a place in the picture to be made to one in the old one, both in [-1, 1]. */
struct bend {
    float m[2][3]; /* x or y = m[.][0] u + m[.][1] v + m[.][2], and the warp */
    struct warp warp;
};

static void draw_bend(struct look *l, struct bend *b)
{
    const double t = between(l, -1, 1), turn = t * t * t * 0.4, shear = between(l, -0.2, 0.2);
    const double zoom = exp(between(l, -0.2, 0.28)), w = between(l, 0, 1), amount = w * w * 0.09;
    double sx = zoom * exp(between(l, -0.12, 0.12)), sy = zoom * exp(between(l, -0.12, 0.12));
    const double dx = between(l, -0.12, 0.12), dy = between(l, -0.12, 0.12), c = cos(turn), s = sin(turn);
    if (l->may & MAY_MIRROR && chance(l, 0.3)) sx = -sx;
    const double m[2][3] = { { sx * c, sx * (shear - s), dx }, { sy * s, sy * c, dy } };
    for (int i = 0; i < 6; i++) b->m[i / 3][i % 3] = (float)m[i / 3][i % 3];
    for (int k = 0; k < 2 * KNOTS * KNOTS; k++) (&b->warp.at[0][0][0])[k] = (float)(amount * rng_normal(&l->rng));
}

static void reshape(struct look *l)
{
    struct bend b;
    float out[3], row[2][KNOTS];
    const int n = l->side;
    const size_t plane = area(l);
    draw_bend(l, &b);
    corner_colour(l, out);
    for (int i = 0; i < n; i++) {
        const float v = (2 * (float)i + 1) / (float)n - 1;
        warp_row(row, &b.warp, v);
        for (int j = 0; j < n; j++) {
            const float u = (2 * (float)j + 1) / (float)n - 1;
            float share, to[2];
            const int k = knot_of(u, &share);
            for (int axis = 0; axis < 2; axis++) {
                const float *r = row[axis] + k;
                const float x = b.m[axis][0] * u + b.m[axis][1] * v + b.m[axis][2] + r[0] + share * (r[1] - r[0]);
                to[axis] = ((x + 1) * (float)n - 1) / 2;
            }
            const struct spot s = find_spot(n, to[0], to[1]);
            for (size_t c = 0; c < 3; c++)
                l->y[c * plane + (size_t)(i * n + j)] = at_spot(l->x + c * plane, &s, out[c]);
        }
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

/* x to the power of a number, for x from 0 to 1 in small steps: exact enough for what bytes were. */
static void bend_light(struct look *l, float power)
{
    enum { STEPS = 1024 };
    float table[STEPS + 1];
    for (int i = 0; i <= STEPS; i++) table[i] = powf(larger((float)i / STEPS, 1e-4f), power);
    for (size_t i = 0; i < 3 * area(l); i++) l->x[i] = table[(int)(clamp(l->x[i], 0, 1) * STEPS + 0.5f)];
}

/* Gamma, and light from one side. */
static void relight(struct look *l)
{
    const int n = l->side;
    const float power = (float)exp(between(l, -0.35, 0.35)), angle = (float)between(l, 0, 6.2831853);
    const float much = (float)between(l, 0, 0.35), px = much * cosf(angle), py = much * sinf(angle);
    if (chance(l, 0.5)) bend_light(l, power);
    if (!chance(l, 0.3)) return;
    for (int row = 0; row < 3 * n; row++) {
        const float v = 2 * (float)(row % n) / (float)n - 1;
        float *x = l->x + (size_t)row * (size_t)n;
        for (int j = 0; j < n; j++) x[j] *= 1 + px * (2 * (float)j / (float)n - 1) + py * v;
    }
}

/* ---- lines and sharpness */

enum spread { MOST, LEAST, MEAN };

static float of(enum spread how, float a, float b, float c)
{
    if (how == MEAN) return (a + b + c) / 3;
    return how == MOST ? larger(a, larger(b, c)) : smaller(a, smaller(b, c));
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
        for (size_t i = 0; i < n; i++) l->z[i] = larger(l->z[i], l->y[i] - l->y[n + i]);
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
        for (size_t c = 0; c < 3; c++)
            for (size_t i = 0; i < n; i++) {
                const float line = 1 - clamp(l->z[i] * strength, 0, 1);
                l->x[c * n + i] = sketch ? line : l->x[c * n + i] * line;
            }
    } else if (lot < 0.26) {
        spread(l, MOST);
    } else if (lot < 0.32) {
        spread(l, LEAST);
    }
}

/* to[m,m] = from[n,n], three planes each, between the pixels. */
static void resize(float *to, int m, const float *from, int n)
{
    const float step = (float)n / (float)m, most = (float)(n - 1);
    for (int i = 0; i < m * m; i++) {
        const float x = ((float)(i % m) + 0.5f) * step - 0.5f, y = ((float)(i / m) + 0.5f) * step - 0.5f;
        const struct spot s = find_spot(n, clamp(x, 0, most), clamp(y, 0, most));
        for (int c = 0; c < 3; c++) to[c * m * m + i] = at_spot(from + c * n * n, &s, 0);
    }
}

/* As if it had been small. */
static void coarsen(struct look *l)
{
    const int n = l->side, small = (int)(between(l, 0.3, 0.9) * n);
    resize(l->z, small, l->x, n);
    resize(l->y, n, l->z, small);
    swap(l);
}

/* Shades become flat and edges stay: each pixel takes the mean of the calmest of the 3 x 3 squares that it is a corner
 * of (Kuwahara's filter). */
static void flatten(struct look *l)
{
    const int n = l->side;
    const size_t plane = area(l);
    float *light = l->z, *restless = l->z + plane, *room = l->z + 2 * plane;
    for (size_t i = 0; i < plane; i++) light[i] = (l->x[i] + l->x[plane + i] + l->x[2 * plane + i]) / 3;
    spread_plane(l->y, light, room, n, MEAN);
    for (size_t i = 0; i < plane; i++) light[i] *= light[i];
    spread_plane(restless, light, room, n, MEAN);
    for (size_t i = 0; i < plane; i++) restless[i] -= l->y[i] * l->y[i];
    for (size_t c = 0; c < 3; c++) spread_plane(l->y + c * plane, l->x + c * plane, room, n, MEAN);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++) {
            const int up = (i ? i - 1 : 0) * n, down = (i < n - 1 ? i + 1 : i) * n;
            const int left = j ? j - 1 : 0, right = j < n - 1 ? j + 1 : j;
            const int corner[] = { up + left, up + right, down + left, down + right };
            int best = corner[0];
            for (int k = 1; k < 4; k++)
                if (restless[corner[k]] < restless[best]) best = corner[k];
            for (size_t c = 0; c < 3; c++) l->x[c * plane + (size_t)(i * n + j)] = l->y[c * plane + (size_t)best];
        }
}

static void resharpen(struct look *l)
{
    const size_t n = 3 * area(l);
    const float levels = (float)(3 + rng_u64(&l->rng) % 6), grain = (float)between(l, 0, 0.08);
    for (int times = chance(l, 0.2) ? 1 + (int)(rng_u64(&l->rng) % 3) : 0; times > 0; times--) flatten(l);
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

/* ---- of two pictures */

static const double blended = 0.12, pasted = 0.15;

/* What is drawn of a twin is a function of the key too, and of nothing else that is drawn by it. */
static double draw_twin(struct rng *r, uint64_t key, uint64_t *which)
{
    rng_seed(r, ~key);
    *which = rng_u64(r);
    return rng_unit(r);
}

int augment_twin(uint64_t key, int n)
{
    struct rng r;
    uint64_t which;
    return n > 0 && draw_twin(&r, key, &which) < blended + pasted ? (int)(which % (uint64_t)n) : -1;
}

void augment_mix(float *pixels, const float *twin, int side, uint64_t key)
{
    struct look l = { .side = side };
    uint64_t which;
    const size_t n = area(&l);
    if (draw_twin(&l.rng, key, &which) < blended) {
        const float share = (float)between(&l, 0.3, 0.7);
        for (size_t i = 0; i < 3 * n; i++) pixels[i] += share * (twin[i] - pixels[i]);
        return;
    }
    const int w = (int)(between(&l, 0.3, 0.7) * side), h = (int)(between(&l, 0.3, 0.7) * side);
    const int x = (int)(rng_unit(&l.rng) * (side - w)), y = (int)(rng_unit(&l.rng) * (side - h));
    for (size_t c = 0; c < 3; c++)
        for (int i = y; i < y + h; i++) {
            const size_t at = c * n + (size_t)(i * side + x);
            memcpy(pixels + at, twin + at, (size_t)w * sizeof *pixels);
        }
}

/* pixels, as the processor makes them, to l.x, which is from 0 to 1; and back. */
static void begin(struct look *l, const float *pixels, const struct clip_processor *p, double range)
{
    const size_t n = area(l);
    for (size_t c = 0; c < 3; c++) {
        const float scale = (float)((p->do_normalize ? p->std[c] : 1) / range);
        const float shift = (float)(p->do_normalize ? p->mean[c] / range : 0);
        for (size_t i = 0; i < n; i++) l->x[c * n + i] = clamp(pixels[c * n + i] * scale + shift, 0, 1);
    }
}

static void end(const struct look *l, float *pixels, const struct clip_processor *p, double range)
{
    const size_t n = area(l);
    for (size_t c = 0; c < 3; c++) {
        const float scale = (float)(range / (p->do_normalize ? p->std[c] : 1));
        const float shift = (float)(p->do_normalize ? p->mean[c] / p->std[c] : 0);
        for (size_t i = 0; i < n; i++) pixels[c * n + i] = clamp(l->x[c * n + i], 0, 1) * scale - shift;
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
    begin(&l, pixels, p, range);
    reshape(&l);
    recolour(&l);
    relight(&l);
    redraw(&l);
    resharpen(&l);
    if (chance(&l, 0.35)) punch(&l);
    if (chance(&l, 0.4)) sieve(&l);
    end(&l, pixels, p, range);
    free(room);
    return 0;
}
