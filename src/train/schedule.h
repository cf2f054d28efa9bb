/* How the learning rate goes: the factors of transformers' optimization.py (4.37). Step s counts from 0, so the first
 * update after a warm-up has rate 0, as there. */
#pragma once
#include <stdint.h>

enum schedule_kind {
    SCHEDULE_LINEAR, SCHEDULE_COSINE, SCHEDULE_COSINE_WITH_RESTARTS, SCHEDULE_POLYNOMIAL, SCHEDULE_CONSTANT,
    SCHEDULE_CONSTANT_WITH_WARMUP, SCHEDULE_INVERSE_SQRT, N_SCHEDULE
};
struct schedule {
    enum schedule_kind kind;
    int64_t warmup, total; /* steps */
    double rate;           /* the optimiser's own learning rate: polynomial ends at 1e-7 of absolute size */
};

int schedule_find(const char *name); /* enum schedule_kind, -1: none */
double schedule_factor(const struct schedule *s, int64_t step);
/* Warm-up steps as TrainingArguments.get_warmup_steps: `steps` if above 0, else ceil(total * ratio). */
int64_t schedule_warmup(int64_t steps, double ratio, int64_t total);
