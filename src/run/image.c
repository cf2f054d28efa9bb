/* See image.h. */
#include "run/image.h"

#include <stdlib.h>
#include <string.h>

#include "base/hash.h"

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

bool image_is_plain(const struct image *im, const struct engine *g)
{
    const struct llava_config *c = &g->model.cfg;
    return im->pixels.n == 1 && (c->aspect != ASPECT_ANYRES || c->merge == MERGE_FLAT);
}

/* How many rows the language model reads; at: NULL, or which tile row each is, -1 for image_newline. */
static int64_t rows_of(const struct image *im, const struct engine *g, int32_t *at)
{
    const struct llava_config *c = &g->model.cfg;
    if (image_is_plain(im, g)) return llava_tile_rows(&g->model);
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

void image_rows(const struct image *im, const struct engine *g, int32_t *at)
{
    const int32_t newline = (int32_t)(im->pixels.n * llava_tile_rows(&g->model));
    rows_of(im, g, at);
    for (int i = 0; i < im->n_rows; i++)
        if (at[i] < 0) at[i] = newline;
}

void image_free(struct image *im)
{
    if (!im) return;
    pixels_free(&im->pixels);
    free(im);
}
