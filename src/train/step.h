/* One pass through the model over a batch: the loss and, on the way back, the gradients of what is trained, added to
 * those that are there.
 *
 * Pictures go through a frozen tower without a tape, a few at a time; their features are kept instead of its layers.
 * Only positions that have a target go through lm_head, some rows of logits at a time.
 */
#pragma once
#include "model/llava.h"
#include "train/loader.h"

/* [most.n_targets]: where targets are gathered. */
struct step_host {
    int32_t *at, *token;
    float *weight, *loss;
};

struct step {
    const struct llava_model *m;
    struct kern kern;
    struct kctx kc;
    struct arena act, scratch;
    struct step_host host;
    struct tape *tape;
    bool tower_trains, checkpoint;
    enum dtype act_type;     /* of activations */
    struct batch_limits most, eval; /* what act is made for: batches with a way back, and without */
};

/* Kernels of this processor. most, eval: of all batches that will come. product: as struct kctx has it. */
int step_open(struct step *s, const struct llava_model *m, bool tower_trains, bool checkpoint, enum dtype product,
              int threads, const struct batch_limits *most, const struct batch_limits *eval, struct err *e);
/* Bytes of activations that those batches take, found by running them dry. */
size_t step_plan(struct step *s);
/* Takes the memory that the plan says. */
int step_fill(struct step *s, struct err *e);
void step_close(struct step *s); /* accepts a zeroed one */

/* The sum of weight * cross entropy over the batch's targets. back: gradients too; drop_key: of this batch's dropout,
 * 0: none. Without a target: 0, and nothing is computed. */
double step_run(struct step *s, const struct batch *b, bool back, uint64_t drop_key);

/* Useful floating point operations of a batch, recomputation left out; and those of the recomputation. */
double step_flops(const struct step *s, const struct batch_limits *b);
double step_flops_again(const struct step *s, const struct batch_limits *b);
/* Operations a second of one large matrix product, on numbers that are not zeros; w: the weights' type. 0 without
 * memory for it. Waits. */
double step_ceiling(struct step *s, enum dtype w);
