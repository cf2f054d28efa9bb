/* A picture on its way into the language model: preprocessed pixels, then rows of features. */
#pragma once
#include "run/engine.h"

struct image {
    struct pixels pixels;
    uint64_t key;    /* of the pixels: the same picture has the same key */
    int n_rows;      /* positions that it takes in a prompt */
    struct seen *seen[SIGHTS]; /* through each projector that was asked for, the model's first */
};
/* A picture through a tower and a projector. */
struct seen {
    float *features; /* [n_rows,C] as they enter the language model; NULL until the tower has run */
    float *tiles;    /* while it runs: [n tiles * rows of one, C], of which n_done tiles are there */
    int n_done;
};
/* Reads nothing of the engine that changes: any thread may call it. */
int image_new(struct image **ret, const struct engine *g, const struct picture *pic, struct err *e);
void image_free(struct image *im);
/* Its features [n_rows,C] through that projector; NULL: not all tiles have been through the tower. */
const float *image_features(const struct image *im, int sight);
bool image_begun(const struct image *im, int sight); /* some of it has been */
/* Runs a tile through the tower unless all have been; adds the seconds that took to *spent_s (may be NULL). */
int image_encode_tile(struct image *im, struct engine *g, int sight, double *spent_s, struct err *e);
/* All tiles. */
int image_encode(struct image *im, struct engine *g, int sight, double *spent_s, struct err *e);

/* Features of pictures that were seen last, by key: the same picture again does not go through the tower. */
enum { GALLERY_MAX = 256, GALLERY_BYTES = 256 << 20 };
struct gallery {
    struct kept {
        uint64_t key, used;
        float *features;
        size_t bytes;
    } kept[GALLERY_MAX];
    int n;
    size_t bytes;
    uint64_t clock;
};
void gallery_fini(struct gallery *y);
/* Gives im a copy of the features of the picture with its key; false: not there. */
bool gallery_find(struct gallery *y, struct image *im, int sight);
/* Keeps a copy of im's features, in the place of the least recently used where there is no room. */
void gallery_keep(struct gallery *y, const struct image *im, int sight, const struct engine *g);

/* Mixes v into a running 64-bit hash: keys of pictures and positions. */
static inline uint64_t key_mix(uint64_t h, uint64_t v)
{
    h = (h ^ v) * 0xff51afd7ed558ccdu;
    return h ^ (h >> 32);
}
