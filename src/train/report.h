/* What people watch a run with: --report_to tensorboard, jsonl, wandb, none, all, or a list with commas.
 *
 *   tensorboard   LOGGING_DIR/events.out.tfevents.*, which TensorBoard opens while the run goes on
 *   wandb         the same files; the line for `wandb sync` is printed at the end
 *   jsonl         OUTPUT_DIR/log.jsonl, one object a logged line
 *   all           tensorboard and jsonl
 *
 * LOGGING_DIR is --logging_dir, or OUTPUT_DIR/runs/<date>_<host> as transformers has it. A run that is resumed at
 * step N drops the lines of jsonl after N and tells TensorBoard to forget what came after N, so that steps that are
 * done again stand there once. Writing a report never stops a training: a failure (a full disk) is warned about
 * once and that report is closed.
 */
#pragma once
#include "train/standing.h"

enum { REPORT_TENSORBOARD = 1, REPORT_WANDB = 2, REPORT_JSONL = 4 };
/* The value of --report_to as bits; ERR_USAGE names the part that is unknown and lists what there is. */
int report_kinds(unsigned *ret, const char *list, struct err *e);

struct report;
struct report_options {
    unsigned kinds;
    const char *output_dir, *logging_dir; /* logging_dir NULL or "": the default */
    const struct standing *state;      /* the run goes on after this step; 0: a new run */
    const json_t *args, *config;          /* shown on TensorBoard's TEXT page; NULL: none */
};
int report_open(struct report **ret, const struct report_options *o, struct err *e);
/* The last line of s->history, by transformers' names: loss -> train/loss, eval_loss -> eval/loss. */
void report_line(struct report *r, const struct standing *s);
void report_close(struct report *r); /* flushes, prints the line for wandb; accepts NULL */

/* loss.svg: loss of training (raw and smoothed) and of evaluation, learning rate, over steps; readable on white and on
 * dark pages. The text of the file, the caller's to free; NULL without memory. history: standing.history. */
char *report_svg(const json_t *history, const char *title);
