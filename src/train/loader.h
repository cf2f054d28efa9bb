/* Batches ahead of the step: threads read records, make ids and labels and decode pictures while the model computes.
 *
 * Batches come in the order's order, with the same bits for any number of threads. No more samples are made ahead than
 * a micro-batch and the threads hold, so memory does not grow with the file. A loader may be closed at any time.
 */
#pragma once
#include <stdbool.h>

#include "train/batch.h"
#include "train/check.h"
#include "train/order.h"

/* When an update happens, as in transformers 4.37: after every `accum` micro-batches counted from the beginning of the
 * run, across the ends of epochs; and at the end of an epoch that has no more than `accum` micro-batches. */
struct loader_options {
    const struct dataset *data;
    const struct recipe *recipe;
    struct order *order;      /* used by the loader alone while it is open */
    const struct check_row *row; /* [order->o.n] records that the order's indices stand for; NULL: all of them */
    int threads;              /* 0: in the caller's thread */
    int epochs;               /* the run ends after so many; partial ones are the caller's to stop */
    int epoch;                /* where to begin: this epoch, ... */
    int64_t micro;            /* ... after so many of its micro-batches */
    int window;               /* the model's sliding window, 0: none */
    int packing;              /* positions that a packed batch may have; 0: a batch is a micro-batch */
    uint64_t augment;         /* pictures are augmented, by this seed; 0: they are as they are */
    bool skip_bad;            /* leave bad records out instead of failing */
};
struct loader;

int loader_open(struct loader **ret, const struct loader_options *o, struct err *e);
void loader_close(struct loader *l); /* accepts NULL */
/* The next batch, valid until the call after the next; 1, or 0 after the last one. Errors name the record. */
int loader_next(struct loader *l, const struct batch **ret, struct err *e);

/* What no batch of this run exceeds, for planning memory: from the counts of the check, over all epochs; where these
 * are too many to go through, what no batch of any order exceeds. Needs o->row. ERR_NOMEM. */
int loader_limits(struct batch_limits *most, const struct loader_options *o, struct err *e);
