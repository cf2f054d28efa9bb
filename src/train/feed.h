/* Records on their way to the step: a file, checked, in an order, read ahead. */
#pragma once
#include "train/loader.h"

struct feed {
    struct dataset data;
    struct check_result check;
    struct order order;
    struct loader_options options;
    struct batch_limits most; /* that no batch of it exceeds */
};

struct feed_options {
    const char *path;
    enum order_kind kind;
    uint64_t seed;
    int batch, accum, epochs, window, threads;
    int packing;   /* positions of a packed batch, 0: not packed */
    uint64_t augment; /* see loader.h */
    bool drop_last, skip_bad;
};
/* Opens and reads the whole file once: the recipe is borrowed. */
int feed_open(struct feed *f, const struct recipe *r, const struct feed_options *o, struct err *e);
void feed_close(struct feed *f); /* accepts a zeroed one */
