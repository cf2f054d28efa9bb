/* See image.h. */
#include "run/image.h"

#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/plat.h"
#include "run/adapter.h"

/* SHA-256's first half word: nobody can make a picture that passes for another's. */
static uint64_t key_of(const struct pixels *p)
{
    const int32_t size[] = { p->n, p->w0, p->h0 };
    struct hash h;
    char hex[65];
    hash_init(&h, HASH_SHA256);
    hash_add(&h, size, sizeof size);
    hash_add(&h, p->data, (size_t)p->n * 3 * (size_t)p->w * (size_t)p->h * sizeof *p->data);
    hash_hex(&h, hex);
    hex[16] = 0;
    return strtoull(hex, NULL, 16);
}

/* Features of one tile, in the tower's order. */
static bool is_plain(const struct image *im, const struct llava_config *c)
{
    return im->pixels.n == 1 && (c->aspect != ASPECT_ANYRES || c->merge == MERGE_FLAT);
}

/* How many rows the language model reads; at: NULL, or which tile row each is, -1 for image_newline. */
static int64_t rows_of(const struct image *im, const struct engine *g, int32_t *at)
{
    const struct llava_config *c = &g->model.cfg;
    if (is_plain(im, c)) return llava_tile_rows(&g->model);
    struct grid grid = { 0, 0 };
    if (im->pixels.n > 1) grid = anyres_grid(&c->pinpoints, im->pixels.w0, im->pixels.h0, im->pixels.w);
    return merge_rows(at, c->merge, grid, c->clip.image / c->clip.patch, im->pixels.w0, im->pixels.h0);
}

int image_new(struct image **ret, const struct engine *g, const struct picture *pic, struct err *e)
{
    const struct llava_config *c = &g->model.cfg;
    if (!c->has_vision) return err_set(e, ERR_UNSUPPORTED, "the model '%s' has no vision tower", g->name);
    struct image *im = calloc(1, sizeof *im);
    if (!im) return err_set(e, ERR_NOMEM, "no memory for a picture");
    int rc = pixels_new(&im->pixels, pic, &g->proc, c->aspect, &c->pinpoints, e);
    if (rc < 0) {
        free(im);
        return rc;
    }
    int side = c->clip.image;
    if (im->pixels.w != side || im->pixels.h != side) {
        rc = err_set(e, ERR_SHAPE,
                     "the picture processor of '%s' makes pictures of %dx%d, its vision tower reads %dx%d",
                     g->name, im->pixels.w, im->pixels.h, side, side);
        image_free(im);
        return rc;
    }
    im->key = key_of(&im->pixels);
    im->n_rows = (int)rows_of(im, g, NULL);
    *ret = im;
    return 0;
}

void image_free(struct image *im)
{
    if (!im) return;
    pixels_free(&im->pixels);
    for (int i = 0; i < SIGHTS; i++) {
        if (im->seen[i]) free(im->seen[i]->features), free(im->seen[i]->tiles);
        free(im->seen[i]);
    }
    free(im);
}

const float *image_features(const struct image *im, int sight)
{
    const struct seen *v = im->seen[sight - SIGHT_MODEL];
    return v ? v->features : NULL;
}

bool image_begun(const struct image *im, int sight)
{
    const struct seen *v = im->seen[sight - SIGHT_MODEL];
    return v && (v->features || v->n_done > 0);
}

/* Where what is seen through that projector is kept; NULL: no memory. */
static struct seen *seen_at(struct image *im, int sight)
{
    struct seen **v = &im->seen[sight - SIGHT_MODEL];
    if (!*v) *v = calloc(1, sizeof **v);
    return *v;
}

/* Puts tile features into the order in which the language model reads them. Takes `tiles`. */
static int merge_features(float **ret, const struct image *im, const struct engine *g, int sight, float *tiles,
                          struct err *e)
{
    int width = g->model.cfg.llama.C, n = im->n_rows;
    if (is_plain(im, &g->model.cfg)) {
        *ret = tiles;
        return 0;
    }
    int32_t *at = malloc((size_t)n * sizeof *at);
    float *out = malloc((size_t)n * (size_t)width * sizeof *out), *newline = malloc((size_t)width * sizeof *newline);
    if (!at || !out || !newline) {
        free(at), free(out), free(newline), free(tiles);
        return err_set(e, ERR_NOMEM, "no memory for a picture's features");
    }
    struct tensor nl = sight_projector(g, sight)->newline.w;
    if (nl.p) engine_values(g, newline, nl);
    rows_of(im, g, at);
    for (int64_t i = 0; i < n; i++)
        memcpy(out + i * width, at[i] < 0 ? newline : tiles + (int64_t)at[i] * width, (size_t)width * sizeof *out);
    free(at), free(newline), free(tiles);
    *ret = out;
    return 0;
}

int image_encode_tile(struct image *im, struct engine *g, int sight, double *spent_s, struct err *e)
{
    if (image_features(im, sight)) return 0;
    struct seen *v = seen_at(im, sight);
    if (!v) return err_set(e, ERR_NOMEM, "no memory for a picture's features");
    double t = plat_now_s();
    size_t side = (size_t)g->model.cfg.clip.image, pixels = 3 * side * side;
    size_t tile = (size_t)llava_tile_rows(&g->model) * (size_t)g->model.cfg.llama.C;
    if (!v->tiles) v->tiles = malloc((size_t)im->pixels.n * tile * sizeof *v->tiles);
    if (!v->tiles) return err_set(e, ERR_NOMEM, "no memory for a picture's features");
    engine_encode(g, sight, im->pixels.data + (size_t)v->n_done * pixels, 1, v->tiles + (size_t)v->n_done * tile);
    int rc = 0;
    if (++v->n_done == im->pixels.n) {
        rc = merge_features(&v->features, im, g, sight, v->tiles, e);
        v->tiles = NULL;
        v->n_done = 0;
    }
    if (spent_s) *spent_s += plat_now_s() - t;
    return rc;
}

int image_encode(struct image *im, struct engine *g, int sight, double *spent_s, struct err *e)
{
    int rc = 0;
    while (rc >= 0 && !image_features(im, sight)) rc = image_encode_tile(im, g, sight, spent_s, e);
    return rc;
}

/* ---- pictures seen before */

void gallery_fini(struct gallery *y)
{
    for (int i = 0; i < y->n; i++) free(y->kept[i].features);
    *y = (struct gallery){ 0 };
}

static float *copy_of(const float *from, size_t bytes)
{
    float *to = malloc(bytes);
    return to ? memcpy(to, from, bytes) : NULL;
}

static uint64_t gallery_key(const struct image *im, int sight)
{
    return sight == SIGHT_MODEL ? im->key : key_mix(im->key, (uint64_t)sight + 1);
}

bool gallery_find(struct gallery *y, struct image *im, int sight)
{
    const uint64_t key = gallery_key(im, sight);
    struct seen *v = seen_at(im, sight);
    for (int i = 0; v && i < y->n; i++) {
        if (y->kept[i].key != key) continue;
        y->kept[i].used = ++y->clock;
        return (v->features = copy_of(y->kept[i].features, y->kept[i].bytes)) != NULL;
    }
    return false;
}

void gallery_keep(struct gallery *y, const struct image *im, int sight, const struct engine *g)
{
    size_t bytes = (size_t)im->n_rows * (size_t)g->model.cfg.llama.C * sizeof(float);
    if (bytes > GALLERY_BYTES) return;
    while (y->n == GALLERY_MAX || y->bytes + bytes > GALLERY_BYTES) {
        int oldest = 0;
        for (int i = 1; i < y->n; i++)
            if (y->kept[i].used < y->kept[oldest].used) oldest = i;
        free(y->kept[oldest].features);
        y->bytes -= y->kept[oldest].bytes;
        y->kept[oldest] = y->kept[--y->n];
    }
    float *features = copy_of(image_features(im, sight), bytes);
    if (!features) return; /* a picture that is not kept is computed again */
    y->kept[y->n++] = (struct kept){ gallery_key(im, sight), ++y->clock, features, bytes };
    y->bytes += bytes;
}
