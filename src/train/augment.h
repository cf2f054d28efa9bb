/* A picture made to look otherwise, so that a few thousand stand for more: --image_augment. What changes keeps most
 * answers true: size, place, a little turn and bend, light and colour, thickness of lines, sharpness, grain, a hole.
 * What may change an answer is done only to records whose member "augment" allows it. Of another picture of the same
 * thing, a twin, something may come in: so that what the two have in common is learned, and not how they are drawn.
 */
#pragma once
#include "image/preprocess.h"

enum {
    MAY_MIRROR = 1,   /* left and right are all the same to the answers */
    MAY_RECOLOUR = 2, /* so are colours */
};

/* pixels[3,side,side], as p makes them, in place. All that is drawn is a function of key. ERR_NOMEM. */
int augment(float *pixels, int side, const struct clip_processor *p, unsigned may, uint64_t key, struct err *e);

/* Before that: which of n twins comes into a picture with this key, by lot; -1: none, as most often. */
int augment_twin(uint64_t key, int n);
/* That twin, [3,side,side] like pixels: the two blended, or a box of it pasted in. */
void augment_mix(float *pixels, const float *twin, int side, uint64_t key);
