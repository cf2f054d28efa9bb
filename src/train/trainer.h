/* A training run from its arguments to its output folder: `llava train`.
 *
 * The loop is that of transformers' Trainer (4.37) as LLaVA uses it: which micro-batches make a step, when it logs,
 * evaluates and saves, what is logged. Reading order: train_run, then the step in update().
 */
#pragma once
#include "train/args.h"

/* 0, TRAIN_STOPPED when SIGINT or SIGTERM ended it after a step that was saved (stop.h), or an error. Prints on stderr;
 * the plan of --dry_run goes to stdout. */
enum { TRAIN_STOPPED = 1 };
int train_run(struct train_args *a, struct err *e);
