/* A picture on its way into the language model: preprocessed pixels, then rows of features. */
#pragma once
#include "run/engine.h"

struct image {
    struct pixels pixels;
    uint64_t key;    /* of the pixels: the same picture has the same key */
    int n_rows;      /* positions that it takes in a prompt */
    float *features; /* [n_rows,C] as they enter the language model; NULL until the tower has run */
};
/* Reads nothing of the engine that changes: any thread may call it. */
int image_new(struct image **ret, const struct engine *g, const struct picture *pic, struct err *e);
void image_free(struct image *im);
/* Runs the tower if it has not run; adds the seconds that took to *spent_s (may be NULL). */
int image_encode(struct image *im, struct engine *g, double *spent_s, struct err *e);

/* Mixes v into a running 64-bit hash: keys of pictures and positions. */
static inline uint64_t key_mix(uint64_t h, uint64_t v)
{
    h = (h ^ v) * 0xff51afd7ed558ccdu;
    return h ^ (h >> 32);
}
