/* A picture made to look otherwise, so that a few thousand stand for more: --image_augment. What changes keeps most
 * answers true: size, place, a little turn and bend, light and colour, thickness of lines, sharpness, grain, a hole.
 * What may change an answer is done only to records whose member "augment" allows it.
 */
#pragma once
#include "image/preprocess.h"

enum {
    MAY_MIRROR = 1,   /* left and right are all the same to the answers */
    MAY_RECOLOUR = 2, /* so are colours */
};

/* pixels[3,side,side], as p makes them, in place. All that is drawn is a function of key. ERR_NOMEM. */
int augment(float *pixels, int side, const struct clip_processor *p, unsigned may, uint64_t key, struct err *e);
