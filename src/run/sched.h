/* The scheduler: which rows of which sequences the next step computes.
 *
 * A step is one of three: a tile of a picture through the tower; a chunk of prompts, of one sequence or of several; or
 * the next token of every sequence that writes. While some write, the others' prompts and pictures come between their
 * tokens, one step each in turn, and chunks are cut to what takes about SCHED_STALL_S, or, where that is too few rows
 * to be worth reading the weights or more wait than write, up to SCHED_STALL_MOST_S. What is computed for a sequence
 * does not depend on the others (kern.h: rows are alone), so neither does its answer.
 *
 * On a device a step is not waited for: while it runs, the next one is put together, with tokens that are not known
 * yet, and the last one's tokens become text. A sequence that ends may so have one row computed for nothing. Where
 * somebody needs logits on the host (grammars, candidates, forward), steps are waited for.
 *
 * A sequence is only taken when the pages it may come to need are there: none is ever thrown out again.
 */
#pragma once
#include "run/gallery.h"
#include "run/seq.h"

#define SCHED_STALL_S 0.25
#define SCHED_STALL_MOST_S 1.25

/* A step that has begun: of[i] (NULL: it has left) gets a token, or logits. */
struct under_way {
    bool there, logits;
    unsigned number;
    int n, n_rows;          /* rows of prompts */
    struct seq *of[ENGINE_SEQS];
};

struct sched {
    struct engine *g;
    struct store store;
    struct gallery gallery;
    struct seq *first;      /* in order of arrival */
    int n, n_most;          /* sequences */
    bool taken[ENGINE_SEQS]; /* slots for tokens */
    struct under_way under_way[2], *now; /* now: where the step that is put together goes */
    int promised;           /* pages that they may still take */
    bool read_last;         /* the last step was no token step */
    double row_s;           /* seconds that a row of a chunk takes, of late */
    int32_t *rows;          /* memory of the arrays of a step */
    struct tensor *features; /* rows of pictures in a chunk: runs of neighbours */
    struct llava_stats stats; /* but queue, and what submit counts */
};
int sched_init(struct sched *s, struct engine *g, int sequences, int64_t positions, struct err *e);
void sched_fini(struct sched *s); /* all sequences must have been removed */

/* Is there room for a sequence that may come to hold this many positions? */
bool sched_room(const struct sched *s, int positions);
void sched_add(struct sched *s, struct seq *q);
/* Takes it off and gives its pages back; what they hold stays for others. Not while a step runs. */
void sched_remove(struct sched *s, struct seq *q);
/* Computes one step. False: there is nothing to do, for all sequences are ready or done. */
bool sched_step(struct sched *s);
