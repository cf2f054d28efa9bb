/* Choosing the next token from logits, as transformers' generate does with its defaults. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/rng.h"

struct sampler {
    float temperature; /* 0: greedy, the first of equals */
    int top_k;         /* 0: off; ties with the k-th are kept */
    float top_p;       /* 1: off */
    struct rng rng;
    float *p;          /* [n] scratch */
    int32_t *order;    /* [n] scratch */
    int n;
};
int sampler_init(struct sampler *s, int n, struct err *e); /* n: vocabulary; the caller sets the rest */
void sampler_fini(struct sampler *s);

/* A token, or -1 when a logit is NaN or +infinity. logits[n] are not changed.
 * Order: temperature, top-k, top-p over what is left, softmax, one draw (transformers' logits processors). */
int32_t sampler_next(struct sampler *s, const float *logits);
