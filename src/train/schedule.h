/* How the learning rate goes: the factors of transformers' optimization.py (4.37, and cosine_with_min_lr of 4.41). Step
 * s counts from 0, so the first update after a warm-up has rate 0, as there. */
#pragma once
#include <stdint.h>

#include "base/err.h"

enum schedule_kind {
    SCHEDULE_LINEAR, SCHEDULE_COSINE, SCHEDULE_COSINE_WITH_RESTARTS, SCHEDULE_COSINE_WITH_MIN_LR, SCHEDULE_POLYNOMIAL,
    SCHEDULE_CONSTANT, SCHEDULE_CONSTANT_WITH_WARMUP, SCHEDULE_INVERSE_SQRT, N_SCHEDULE
};
struct schedule {
    enum schedule_kind kind;
    int64_t warmup, total;   /* steps */
    double cycles;           /* of the cosines: half a wave is 0.5; restarts count whole ones */
    double end;              /* polynomial, cosine_with_min_lr: the last factor */
    double power, timescale; /* polynomial; inverse_sqrt, 0: the warm-up, or 10,000 steps */
};

/* name: as --lr_scheduler_type has it. kwargs: the JSON object of --lr_scheduler_kwargs, or NULL; a key that the kind
 * does not have, or a value that it cannot use, is ERR_USAGE. rate: the learning rate, to which "lr_end" and "min_lr"
 * are absolute. */
int schedule_make(struct schedule *s, const char *name, const char *kwargs, double rate, struct err *e);
double schedule_factor(const struct schedule *s, int64_t step);
/* Warm-up steps as TrainingArguments.get_warmup_steps: `steps` if above 0 (below 1, as transformers 5 has it, a share
 * of all), else ceil(total * ratio). */
int64_t schedule_warmup(double steps, double ratio, int64_t total);
