/* What one pass through the model reads: records one after another, without padding.
 *
 * LLaVA pads the records of a micro-batch to the longest. Here they lie end to end and the attention range of each
 * position keeps to its own record: the same logits at every position that counts, hence the same loss.
 *
 * The loss of the reference is the mean over the labelled tokens of a micro-batch, divided by
 * gradient_accumulation_steps: a token weighs 1 / (labelled tokens of its micro-batch * accumulation steps), which is
 * `weight`; the loss to go back from is the sum of weight * cross entropy. That keeps --packing exact: a packed batch
 * holds the records of several micro-batches of one optimiser step, and each token keeps the weight that it has
 * unpacked. A micro-batch without a single labelled token weighs nothing (the reference's loss there is 0/0).
 */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "train/sample.h"

struct batch {
    int n, T;          /* records, positions; both may be 0 where bad records are skipped */
    int32_t *token;    /* [T] id, or -1: a row of a picture */
    int32_t *feature;  /* [T] row of the pictures' features [n_images*rows,C], or -1 */
    int32_t *target;   /* [T] the token that the position predicts, or -1 */
    float *weight;     /* [T] of the position's cross entropy, 0 where target is -1 */
    int32_t *pos;      /* [T] from 0 in each record, with gaps where patches are not seen */
    int32_t *range;    /* [T,2] positions that each sees */
    int kept;          /* patches that are seen of each picture, 0: all */
    int32_t *patch;    /* [n_images*kept] which they are, each picture's from 0 and in order */
    int n_images, n_given; /* pictures; those whose features were kept (sample.h), the others have pixels */
    float *pixels;     /* [n_images-n_given,3,side,side] */
    char *features;    /* [n_given] of recipe.features->bytes each */
    struct sample_picture *picture; /* [n_images-n_given] names of those with pixels; NULL without recipe.features */
    int *place;        /* [n_images] which picture of the batch each is: of those with pixels, then of those without */
    int64_t *record;   /* [n] index in the dataset */
    int *from;         /* [n+1] first position of each record; from[n] = T */
    int n_targets;     /* target >= 0 */

    /* Where the batch stands: order.h says what a micro-batch is. */
    int epoch;         /* from 0 */
    int64_t micro;     /* micro-batches of this epoch that are done after this batch */
    bool update;       /* the optimiser steps after it */
    int n_skipped;     /* records left out because they are bad (--on_bad_record skip) */

    /* private: `token` is the memory of all that has T in its shape */
    size_t T_cap, pixels_cap, patch_cap;
    int n_cap, picture_cap;
};

/* Lays out s[0..n): everything but the place. weight[i]: of each of s[i]'s targets. window: sliding window of the
 * model, 0: none. Reuses b's memory. ERR_NOMEM. */
int batch_make(struct batch *b, const struct recipe *c, struct sample *const *s, const float *weight, int n,
               int window, struct err *e);
void batch_fini(struct batch *b); /* accepts a zeroed one */

/* What memory and time follow from: of a batch, or what many do not exceed. */
struct batch_limits { int n, T, n_images, n_targets, n_given, kept; }; /* n_given: of n_images, those without pixels */
struct batch_limits batch_sizes(const struct batch *b);
void batch_widen(struct batch_limits *most, const struct batch_limits *b); /* but n_given, of which fewer take more */
