/* How fast a training step is: random weights, records made in memory, and the trainer's own parts from the plan to the
 * optimiser. */
#pragma once
#include <jansson.h>

#include "train/args.h"

enum bench_lengths {
    LENGTHS_FIXED, /* every record has one picture and model_max_length positions */
    LENGTHS_MIX,   /* as the 665k records of LLaVA-1.5's second stage: text of lognormal length, 85% with a picture */
};

struct train_bench {
    const struct train_args *a; /* what is trained and how; model_name_or_path is a preset of llava_config_preset */
    const char *stage;          /* how the result calls it */
    enum bench_lengths lengths;
    bool padded;                /* of LENGTHS_MIX: records are padded to the longest of their batch, as the reference
                                   does. Else a step has as many, end to end in batches of as many positions at most */
    bool profile;               /* a table of kernels to stderr, of one more pass */
    bool list;                  /* the result has `records`: [tokens of text, pictures] of each different one */
    int steps;                  /* that are measured, after one that is not */
};

/* *ret: the figures as one object, the caller's. Times are medians over steps. */
int train_bench(json_t **ret, const struct train_bench *b, struct err *e);
