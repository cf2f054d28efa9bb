/* A training run from its arguments to its output folder: `llava train`.
 *
 * The loop is that of transformers' Trainer (4.37) as LLaVA uses it: which micro-batches make a step, when it logs,
 * evaluates and saves, what is logged. Reading order: train_run, then the step in update().
 */
#pragma once
#include "train/args.h"

/* 0, or an error. Prints on stderr; the plan of --dry_run goes to stdout. */
int train_run(struct train_args *a, struct err *e);
