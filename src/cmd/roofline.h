/* `bench --plan`: what a card that is not there would allow. */
#pragma once
#include "model/config.h"
#include "run/engine.h"

struct roofline_options {
    const char *card;           /* "hip:k100_ai" */
    const char *random, *path;  /* a preset, or a folder */
    int prompt, batch, context; /* positions, sequences; positions that there is room for, 0: as the model has */
};
/* One JSON object a line to standard output, for 16, 8 and 4 bits: memory, and the times that the card's memory and
 * matrix units allow at most. Reads shapes only. */
int roofline_print(const struct roofline_options *o, struct err *e);

/* Multiplications and additions of a prompt of n positions (the linears, the head once, causal attention), and of a
 * tile through the tower. */
double prompt_flop(const struct llama_config *l, int n);
double picture_flop(const struct llava_config *c);
