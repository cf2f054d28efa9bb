/* Where a training run is: everything beside tensors that its next step depends on, and what it has logged so far.
 *
 * One row a number in standing.c: the same rows write resume.json and read it back, doubles in 17 digits. The order of
 * records is a function of (seed, pass), so a position is two numbers; random bits of dropout are a function of
 * (seed, step), so there is no generator to keep.
 */
#pragma once
#include <jansson.h>
#include <stdint.h>

#include "base/err.h"

struct standing {
    int64_t step;          /* optimiser steps done */
    int64_t pass;          /* whole passes over the data done */
    int64_t batch;         /* micro-batches of the current pass done */
    double epoch;          /* passes with the fraction of the current one, as transformers counts: for people */
    int64_t samples;       /* records seen */
    int64_t tokens;        /* positions seen, features of pictures among them */
    int64_t skipped;       /* records that --on_bad_record skip left out */
    double flops;          /* total_flos of trainer_state.json */
    double seconds;        /* of training, over all starts of the run */
    double loss_sum;       /* of the steps since the last logged line */
    double loss_total;     /* of all steps: train_loss is loss_total / step */
    int64_t loss_steps;    /* steps in loss_sum */
    double best_metric;    /* smallest eval_loss */
    int64_t best_step;     /* where it was; 0: no evaluation yet */
    json_t *history;       /* log_history of trainer_state.json: an array, owned; see standing_log */
};

int standing_init(struct standing *s, struct err *e); /* zeros and an empty history */
void standing_fini(struct standing *s);               /* accepts a zeroed one */

/* The numbers as an object (a new reference, NULL without memory), and back: each must be there, with its type. */
json_t *standing_numbers(const struct standing *s);
int standing_numbers_load(struct standing *s, const json_t *o, struct err *e);

/* A named number of a logged line: "loss", "learning_rate", "grad_norm", "eval_loss", "train_runtime", ... */
struct scalar { const char *name; double value; };
/* Appends {epoch, the scalars, step} to the history: transformers' Trainer.log. In 12 digits; a value that is not
 * finite is kept as null, as JSON has no NaN. */
int standing_log(struct standing *s, const struct scalar *v, int n, struct err *e);
