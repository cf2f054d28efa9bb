/* In which order the records are read: the same as LLaVA's under transformers 4.37 and accelerate 0.21, index by
 * index, for a seed.
 *
 *   SEQUENTIAL  as in the file (evaluation)
 *   RANDOM      torch's RandomSampler
 *   GROUPED     --group_by_modality_length: LLaVA's LengthGroupedSampler (llava/train/llava_trainer.py); needs lengths,
 *               none of them 0
 *   LENGTH      --group_by_length: transformers' LengthGroupedSampler (trainer_pt_utils.py); needs lengths, in tokens
 *
 * Numbers are drawn as there. set_seed(seed) seeds torch's global generator when the trainer is made; each epoch then
 * takes one 64-bit number for the loader's workers. In a single process RANDOM takes another one that seeds the
 * epoch's permutation, and GROUPED and LENGTH draw theirs from the global generator. With several processes accelerate
 * gives the sampler a generator of its own, which starts at torch's default seed whatever --seed says: RANDOM draws
 * from that one (two permutations an epoch, of which the second is thrown away), LENGTH too (one), GROUPED draws the
 * permutations within a kind from the global one and that of the batches from the sampler's.
 *
 * A micro-batch is `batch` consecutive indices of the list. With `world` processes micro-batch b belongs to process
 * b % world, and the list is filled up from its own beginning until every process has full ones; a single process has
 * a shorter last micro-batch.
 */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/mt19937.h"

enum order_kind { ORDER_SEQUENTIAL, ORDER_RANDOM, ORDER_GROUPED, ORDER_LENGTH };

struct order_options {
    enum order_kind kind;
    int64_t n;             /* records, at least 1 */
    const int32_t *length; /* [n] GROUPED: words, negative without picture (dataset_length); LENGTH: tokens; borrowed */
    uint64_t seed;
    int batch;             /* records of a micro-batch */
    int accum;             /* micro-batches of an optimiser step */
    int world, rank;       /* processes, and which this is; 1, 0 */
    bool drop_last;        /* --dataloader_drop_last */
};

struct order {
    struct order_options o;
    int epoch;             /* whose list is in index; -1: none yet */
    int64_t n_micro;       /* micro-batches of this process in each epoch */
    int64_t *index;        /* [n_index] records of this process, micro-batch by micro-batch */
    int64_t n_index;
    /* private: torch's global generator and the sampler's; the epoch's list, and room to make it */
    struct mt19937 global, own;
    int64_t *list, *part, *perm; /* [n] */
    int64_t *room; /* [records of an optimiser step + 2 for each micro-batch of it] */
};

/* ERR_USAGE for numbers below 1, ERR_LIMIT (too many records), ERR_NOMEM; ERR_FORMAT: GROUPED with a length 0. */
int order_init(struct order *r, const struct order_options *o, struct err *e);
void order_fini(struct order *r); /* accepts a zeroed one */
/* Makes the list of an epoch (from 0). Going forward by one is cheap; any other epoch draws all before it anew. */
void order_epoch(struct order *r, int epoch);
/* The records of micro-batch b of the epoch; returns how many. */
int order_micro(const struct order *r, int64_t b, const int64_t **index);
