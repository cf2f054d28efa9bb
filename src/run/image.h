/* A picture for the vision tower: preprocessed pixels. What the tower makes of it is gallery.h's. */
#pragma once
#include "run/engine.h"

struct image {
    struct pixels pixels;
    uint64_t key;    /* of the pixels: the same picture has the same key */
    int n_rows;      /* positions that it takes in a prompt */
};
/* Reads nothing of the engine that changes: any thread may call it. */
int image_new(struct image **ret, const struct engine *g, const struct picture *pic, struct err *e);
void image_free(struct image *im);
/* Its features are those of one tile, in the tower's order. */
bool image_is_plain(const struct image *im, const struct engine *g);
/* Else which row of its tiles each of its n_rows positions is; image_newline's stands behind the last. */
void image_rows(const struct image *im, const struct engine *g, int32_t *at);

/* Mixes v into a running 64-bit hash: keys of pictures and positions. */
static inline uint64_t key_mix(uint64_t h, uint64_t v)
{
    h = (h ^ v) * 0xff51afd7ed558ccdu;
    return h ^ (h >> 32);
}
