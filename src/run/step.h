/* Inside the run room: how steps run. On the host, and for prompts, op by op. On a device the steps of decoding, which
 * are small and many, are recorded once for each number of rows and replayed: their inputs lie in fixed places of the
 * device's memory, filled by one copy, and nothing that changes from step to step is a host value. So is the tower. */
#pragma once
#include "run/engine.h"

/* Bytes of activations of the largest step and of a tile in the tower. Needs shapes only. */
int steps_plan(struct engine *g, size_t *ret, struct err *e);
/* What steps need besides activations. */
int steps_open(struct engine *g, struct err *e);
void steps_close(struct engine *g);
/* Launches in the recorded step that was used last; 0: none. */
int steps_launches(const struct engine *g);
