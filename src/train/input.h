/* A batch as a pass reads it: one block of memory, laid out alike on the host, where it is filled, and on the device,
 * where it is copied in one piece. */
#pragma once
#include "model/llava.h"
#include "train/batch.h"

struct input {
    int T, n_images, n_given, n_targets;
    struct tensor token, feature, pos; /* [T] I32 */
    struct tensor range;               /* [T,2] I32 */
    struct tensor at, target;          /* [n_targets] I32: positions that have a target, and what it is */
    struct tensor weight;              /* [n_targets] F32 */
    int kept;                          /* patches that are seen of a picture, 0: all */
    struct tensor patch, patch_pos;    /* I32: clip_seq.pick [n_images*kept] and pos [n_images*(kept+1)] of them */
    struct tensor given;               /* [n_given,rows*C] features that were kept, as activations */
    struct tensor pixels;              /* [n_images-n_given,3,side,side] F32, the block's end */
};

/* Numbers of a picture's features before the projector, rows*C. */
int64_t input_features(const struct llava_model *m);
/* Where everything of such a batch is in the block at base (NULL: only shapes), whose bytes are returned. act: type of
 * activations. */
size_t input_lay_out(struct input *in, const struct llava_model *m, enum dtype act, const struct batch_limits *b,
                     char *base);
/* Bytes of the block that are pixels. */
size_t input_pixel_bytes(const struct input *in);
/* Copies b into a block on the host; in.pixels may be elsewhere. */
void input_fill(const struct input *in, const struct llava_model *m, const struct batch *b);
