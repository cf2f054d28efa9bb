/* What the checkpoints of a run hold and ask for, gathered from what is trained, the data and the arguments: every
 * tensor that a step changes, by name, and what a run that goes on must have in common with this one. */
#pragma once
#include "model/place.h"
#include "train/checkpoint.h"
#include "train/trainee.h"

struct snapshot {
    struct checkpoint ck;    /* points into the rest; the numbers that only trainer_state.json wants are the caller's */
    struct trainee *t;       /* borrowed */
    struct fetched fetched;  /* from t->dev */
    struct save_lora lora;
    struct weight *tensors;  /* [ck.n_state] */
    json_t *args, *config, *same, *unsaid, *tokens; /* of ck */
};

/* After trainee_fill; data: dataset.hash of the records. s must stay where it is. ERR_NOMEM. */
int snapshot_open(struct snapshot *s, struct trainee *t, const struct train_args *a, uint64_t data, struct err *e);
void snapshot_close(struct snapshot *s); /* accepts a zeroed one */
