/* Floating point operations of a training pass, counted from shapes: products and attention, a multiplication and an
 * addition as two; norms and what else goes by elements are left out. */
#pragma once
#include "model/llava.h"
#include "train/batch.h"

/* There and back over such a batch, each once: what is useful. tower_trains: the way back goes through it too. */
double flops_pass(const struct llava_model *m, bool tower_trains, const struct batch_limits *b);
/* Of `layers` of the language model's layers that keep nothing, run again on the way back. */
double flops_again(const struct llava_model *m, int layers, const struct batch_limits *b);
