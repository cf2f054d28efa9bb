/* See gallery.h. */
#include "run/gallery.h"

#include <stdlib.h>
#include <string.h>

#include "run/adapter.h"

void gallery_init(struct gallery *y, struct engine *g) { *y = (struct gallery){ .g = g }; }
void gallery_begin(struct gallery *y) { y->needed = y->clock + 1; }

static void give_back(struct gallery *y, struct tensor *t)
{
    if (!t->p) return;
    y->bytes -= tensor_bytes(*t);
    dev_free(y->g->dev, t->p, tensor_bytes(*t));
    t->p = NULL;
}

static void drop(struct gallery *y, struct kept *k)
{
    give_back(y, &k->tiles);
    give_back(y, &k->features);
    *k = y->kept[--y->n];
}

void gallery_fini(struct gallery *y)
{
    while (y->n) drop(y, y->kept);
}

static uint64_t key_of(const struct image *im, int sight, uint64_t realm)
{
    const uint64_t key = sight == SIGHT_MODEL ? im->key : key_mix(im->key, (uint64_t)sight + 1);
    return realm ? key_mix(realm, key) : key;
}

static struct kept *find(struct gallery *y, uint64_t key)
{
    for (struct kept *k = y->kept; k < y->kept + y->n; k++)
        if (k->key == key) return k->used = ++y->clock, k;
    return NULL;
}

struct tensor gallery_find(struct gallery *y, const struct image *im, int sight, uint64_t realm)
{
    const struct kept *k = find(y, key_of(im, sight, realm));
    return k ? k->features : (struct tensor){ 0 };
}

/* The one that was asked for longest ago, if it is not needed. */
static struct kept *oldest(struct gallery *y)
{
    struct kept *k = NULL;
    for (int i = 0; i < y->n; i++)
        if (y->kept[i].used < y->needed && (!k || y->kept[i].used < k->used)) k = &y->kept[i];
    return k;
}

/* Memory of [rows,C], in the place of what is not needed. */
static int take(struct gallery *y, struct tensor *t, int64_t rows, struct err *e)
{
    *t = tensor_2d(NULL, engine_act(y->g), rows, y->g->model.cfg.llama.C);
    const size_t bytes = tensor_bytes(*t);
    for (struct kept *k; y->bytes + bytes > GALLERY_BYTES && (k = oldest(y));) drop(y, k);
    int rc = dev_alloc(&t->p, y->g->dev, bytes, e);
    if (rc >= 0) y->bytes += bytes;
    return rc;
}

static int add(struct gallery *y, const struct image *im, uint64_t key, struct err *e)
{
    struct kept *k = oldest(y);
    struct tensor tiles;
    if (y->n == GALLERY_MAX && !k) return err_set(e, ERR_LIMIT, "more than %d pictures at once", GALLERY_MAX);
    if (y->n == GALLERY_MAX) drop(y, k);
    const int64_t rows = (int64_t)im->pixels.n * llava_tile_rows(&y->g->model);
    int rc = take(y, &tiles, rows + !image_is_plain(im, y->g), e);
    if (rc < 0) return rc;
    y->kept[y->n++] = (struct kept){ .key = key, .used = ++y->clock, .tiles = tiles };
    return 0;
}

/* Tile features in the order in which the language model reads them. */
static int arrange(struct gallery *y, struct kept *k, const struct image *im, int sight, struct err *e)
{
    if (image_is_plain(im, y->g)) {
        k->features = k->tiles;
        k->tiles.p = NULL;
        return 0;
    }
    struct tensor to;
    const uint64_t key = k->key;
    int32_t *at = malloc((size_t)im->n_rows * sizeof *at);
    int rc = at ? take(y, &to, im->n_rows, e) : err_set(e, ERR_NOMEM, "no memory for a picture's features");
    if (rc >= 0) {
        for (k = y->kept; k->key != key; k++) {} /* others may have gone */
        image_rows(im, y->g, at);
        engine_arrange(y->g, sight, to, k->tiles, at);
        give_back(y, &k->tiles);
        k->features = to;
    }
    free(at);
    return rc;
}

int gallery_add_tile(struct gallery *y, const struct image *im, int sight, uint64_t realm, struct err *e)
{
    const uint64_t key = key_of(im, sight, realm);
    struct kept *k = find(y, key);
    const size_t side = (size_t)y->g->model.cfg.clip.image;
    const int64_t rows = llava_tile_rows(&y->g->model);
    int rc = k ? 0 : add(y, im, key, e);
    if (rc < 0) return rc;
    if (!k) k = &y->kept[y->n - 1];
    engine_encode(y->g, sight, im->pixels.data + (size_t)k->n_done * 3 * side * side,
                  tensor_slice(k->tiles, k->n_done * rows, rows));
    return ++k->n_done == im->pixels.n ? arrange(y, k, im, sight, e) : 0;
}
