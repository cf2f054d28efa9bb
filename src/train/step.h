/* One pass through the model over a batch: the loss and, on the way back, the gradients of what is trained, added to
 * those that are there.
 *
 * Pictures go through a frozen tower without a tape, a few at a time; their features are kept instead of its layers.
 * Only positions that have a target go through lm_head, some rows of logits at a time.
 */
#pragma once
#include "model/llava.h"
#include "train/loader.h"
#include "train/states.h"

/* What a pass reads of its batch, on the device. */
struct step_in {
    int T, n_images, n_given, n_targets;
    struct tensor token, feature, pos; /* [T] I32 */
    struct tensor range;               /* [T,2] I32 */
    struct tensor at, target;          /* [n_targets] I32: positions that have a target, and what it is */
    struct tensor weight;              /* [n_targets] F32 */
    const int *place;                  /* [n_images] on the host: batch.place */
    int kept;                          /* patches that are seen of a picture, 0: all */
    struct tensor patch, patch_pos;    /* clip_seq.pick and pos of them */
    struct tensor given;               /* [n_given,rows*C] features that were kept, as activations */
    struct tensor pixels;              /* [n_images-n_given,3,side,side] F32 */
};

/* The host's side of a batch under way: page-locked memory for the losses and, behind them, what is laid out as on the
 * device. */
struct step_host {
    void *mem;
    float *weight, *loss; /* [n] */
    int n;                /* targets of the batch */
    char *features;       /* [n_made] what the frozen tower made of the batch's pixels; only where features are kept */
    int n_made;
    struct dev_event *done; /* the losses are there */
};

/* What the language model's layers keep for the way back (op.h): so many of each kind, the others all. Those that are
 * away are spread over the layers, of the others the first keep nothing and the last keep all. */
struct step_kept { int none, dear, away; };
enum { STEP_AWAY_PLACES = 2 }; /* on the device, where the last of them stay */

struct step {
    const struct llava_model *m;
    struct kern kern;
    struct kctx kc;
    struct arena act, scratch;
    size_t base;             /* of act: what stays from batch to batch */
    struct clip_seq tower;   /* of `group` pictures */
    struct clip_seq some;    /* of most.kept patches of most.n_images pictures; pos and pick are `in`'s */
    int group;               /* pictures that the tower sees at once */
    struct step_in in;
    struct step_host host;
    size_t losses;           /* bytes of the losses in it */
    struct tape *tape;
    bool tower_trains, keeps_features;
    float drop;              /* op_ctx.drop of what is trained */
    struct tensor features;  /* of this pass's pictures, by a frozen tower */
    struct step_kept kept;   /* by step_keep */
    uint8_t *layer;          /* [L] enum op_kept */
    struct pager away;       /* what layers keep on the host */
    struct op_away away_ops;
    bool pageable;           /* the host's share is not page-locked: as states.h has it */
    size_t away_bytes;       /* of a layer of the largest batch, by step_plan */
    bool card;               /* kc.dev is a device, or the plan is for one that is not here */
    struct states *states;   /* borrowed, or NULL: gradients are where they are */
    enum dtype act_type;     /* of activations */
    float smooth;            /* of labels */
    struct batch_limits most, eval; /* what act is made for: batches with a way back, and without */
};

struct step_options {
    struct dev *dev;      /* where m will be when passes run; NULL: the host */
    enum dtype dtype;     /* of m's weights */
    bool tower_trains;
    bool card;            /* plan as for a device, though dev is NULL: nothing can run then */
    double smooth;        /* share of a label's weight that all tokens get: kern.h */
    bool keeps_features;  /* batches may have features, and those that were made are to come back */
    float drop;           /* --residual_dropout */
    struct states *states;
    int threads;          /* of the host's kernels */
    struct batch_limits most, eval; /* of all batches that will come */
};
int step_open(struct step *s, const struct llava_model *m, const struct step_options *o, struct err *e);
/* May be called until step_fill. A tower that trains keeps nothing unless its layers keep all. */
void step_keep(struct step *s, const struct step_kept *k);
/* Bytes of activations that those batches take, found by running them dry; of the host: what is away. */
size_t step_plan(struct step *s);
size_t step_away(const struct step *s);
/* Bytes of a device that kernels and libraries take beside what is planned; after step_ceiling, which opens them. */
size_t step_scratch(const struct step *s);
/* Takes the memory that the plan says. */
int step_fill(struct step *s, struct err *e);
void step_close(struct step *s); /* accepts a zeroed one */

/* A pass in two calls, so that a device computes while the host makes the next batch. back: gradients too; drop_key: of
 * this batch's dropout, 0: none. What is needed of b is copied first. step_loss waits for the pass: the sum of weight *
 * cross entropy over the batch's targets. Without a target: 0, and nothing is computed. */
void step_begin(struct step *s, const struct batch *b, bool back, uint64_t drop_key);
double step_loss(struct step *s);
/* Bytes of a picture's features as a frozen tower makes them, before the projector. */
size_t step_feature_bytes(const struct step *s);
/* After step_loss: features of batch picture i, i < n_images - n_given, if they are to be kept. */
const void *step_made(const struct step *s, int i);
/* Both. */
double step_run(struct step *s, const struct batch *b, bool back, uint64_t drop_key);

/* Useful floating point operations of a batch, recomputation left out; and those of the recomputation. */
double step_flops(const struct step *s, const struct batch_limits *b);
double step_flops_again(const struct step *s, const struct batch_limits *b);
/* Operations a second of one large matrix product, on numbers that are not zeros; w: the weights' type. 0 without
 * memory for it. Waits. */
double step_ceiling(struct step *s, enum dtype w);
/* Bytes a second between a device and page-locked memory, in the slower direction; 0: unknown.
 * Waits. */
double step_link(struct step *s);
