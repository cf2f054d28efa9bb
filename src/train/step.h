/* One pass through the model over a batch: the loss and, on the way back, the gradients of what is trained, added to
 * those that are there.
 *
 * Pictures go through a frozen tower without a tape, a few at a time; their features are kept instead of its layers.
 * Only positions that have a target go through lm_head, some rows of logits at a time.
 */
#pragma once
#include "train/input.h"
#include "train/loader.h"
#include "train/trainee.h"

/* What all passes of a run have in common. */
struct step_rule {
    bool card;            /* on a device, or the plan is for one that is not here: nothing can run then */
    bool tower_trains;
    bool keeps_features;  /* batches may have features, and those that were made are to come back */
    bool pageable;        /* what is away is not in page-locked memory: as states.h has it */
    float drop, smooth;   /* --residual_dropout; share of a label's weight that all tokens get (kern.h) */
    enum dtype act;       /* of activations */
    struct batch_limits most, eval; /* of all batches with a way back, and without: memory is made for them */
};

/* What the language model's layers keep for the way back (op.h): so many of each kind, the others all. Those that are
 * away are spread over the layers, of the others the first keep nothing and the last keep all. */
struct step_kept { int none, dear, away; };
enum { STEP_AWAY_PLACES = 2 }; /* on the device, where the last of them stay */

struct step_layers {
    struct step_kept kept;   /* by step_keep */
    uint8_t *kind;           /* [L] enum op_kept */
    struct pager away;       /* what they keep on the host */
    struct op_away ops;      /* the way to it */
};

struct step_tower {
    int group;               /* pictures that it sees at once */
    struct clip_seq whole;   /* of so many pictures */
    struct clip_seq some;    /* of rule.most.kept patches of rule.most.n_images pictures; pos and pick are `in`'s */
    struct tensor features;  /* [n*rows,C] of this pass's pictures, by a frozen tower */
};

/* The host's side of a batch under way: page-locked memory for the losses and, behind them, what is laid out as on the
 * device. */
struct step_host {
    void *mem;
    size_t losses;          /* bytes of the losses in it */
    float *weight, *loss;   /* [n] */
    int n;                  /* targets of the batch */
    const int *place;       /* [n_images] the batch's */
    char *features;         /* [n_made] what the frozen tower made of the batch's pixels, if it is to be kept */
    int n_made;
    struct dev_event *done; /* the losses are there */
};

struct step {
    const struct llava_model *m; /* the trainee's, as are the states */
    struct states *states;
    struct step_rule rule;
    struct kern kern;
    struct kctx kc;
    struct tape *tape;
    struct arena act, scratch;
    size_t base;                 /* of act: what stays from batch to batch */
    struct step_layers layers;
    struct step_tower tower;
    struct input in;
    struct step_host host;
};

/* Opens kernels, and takes their work space. most, eval: of all batches that will come; eval NULL: none without a way
 * back. t must outlive s. ERR_NOMEM. */
int step_open(struct step *s, struct trainee *t, const struct train_args *a, const struct batch_limits *most,
              const struct batch_limits *eval, struct err *e);
/* Bytes of activations if layers kept so, found by running the largest batches dry. Changes nothing. */
struct step_bytes {
    size_t here;   /* on the device */
    size_t places; /* beside them, through which comes back what is away */
    size_t away;   /* on the host: of all layers, equal parts */
};
struct step_bytes step_bytes(const struct step *s, const struct step_kept *k);
/* Bytes of a device that kernels and libraries take beside what is planned; after a product ran, which opens them. */
size_t step_scratch(const struct step *s);
/* What layers keep, before step_fill; nothing is taken yet. A tower that trains keeps nothing unless they keep all. */
void step_keep(struct step *s, const struct step_kept *k);
/* Takes the memory for it. */
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
