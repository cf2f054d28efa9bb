/* llava bench train: how fast a training step is, with random weights and records made in memory. The work is
 * train/bench.c's; here its options become the arguments of `llava train`, of which all others may follow after --. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "cmd/cmd.h"
#include "train/bench.h"

enum {
    K_RANDOM = CMD_KEY, K_STAGE, K_BATCH, K_SEQ, K_ACCUM, K_LIMIT, K_STEPS, K_DEVICE, K_DTYPE, K_MIX, K_PADDED,
    K_THREADS, K_PROFILE, K_LIST, K_QUIET,
};
enum { WORDS_MAX = 120 };

struct options {
    struct train_bench bench;
    char *word[WORDS_MAX]; /* arguments of `llava train` */
    int n;
};

static const struct argp_option options[] = {
    { "random", K_RANDOM, "7b|13b|1b|tiny", 0, "Shapes of the model (default 1b)", 0 },
    { "stage", K_STAGE, "pretrain|lora|qlora|full", 0,
      "What is trained (default lora): the projector; adapters of rank 128 and the projector; those over 4 bits; all "
      "but the tower",
      0 },
    { "batch", K_BATCH, "N", 0, "Records of a micro-batch (default 16)", 0 },
    { "seq", K_SEQ, "N", 0, "Positions of a record, its picture among them (default 1024)", 0 },
    { "accum", K_ACCUM, "N", 0, "Micro-batches of a step (default 1)", 0 },
    { "steps", K_STEPS, "N", 0, "Steps that are measured, after one that is not (default 3)", 0 },
    { "mix665k", K_MIX, NULL, 0,
      "Records of real lengths instead, as LLaVA-1.5's second stage has them: text of lognormal length, 85% with a "
      "picture, --seq at most; a step's batch x accum records fill passes of batch x seq positions",
      0 },
    { "padded", K_PADDED, NULL, 0, "With --mix665k: a batch of --batch records, each padded to the longest", 0 },
    { "list", K_LIST, NULL, 0, "Add to the object its `records`: tokens of text and pictures of each", 0 },
    { "dtype", K_DTYPE, "bf16|f32", 0, "Of the weights (default bf16)", 0 },
    { "memory-limit", K_LIMIT, "SIZE", 0, "As --memory_limit of `llava train`", 0 },
    { "device", K_DEVICE, "auto|cpu|cuda[:N]|hip[:N]", 0, "Where to compute (default auto)", 0 },
    { "profile", K_PROFILE, NULL, 0, "Print where the time of a pass goes, by kernel and shape, to standard error", 0 },
    { "threads", K_THREADS, "N", 0, "Threads (default: as many as the machine gives)", 0 },
    { "quiet", K_QUIET, NULL, 0, "Errors and warnings only", 0 },
    { 0 },
};

static void add(struct options *o, const char *name, const char *value)
{
    char *word = NULL;
    if (o->n == WORDS_MAX || asprintf(&word, "--%s=%s", name, value) < 0) BUG("no memory for an option");
    o->word[o->n++] = word;
}

static void add_int(struct options *o, struct argp_state *state, const char *name, const char *option, const char *arg)
{
    char text[24];
    snprintf(text, sizeof text, "%ld", cmd_int(state, option, arg, 1, 1 << 20));
    add(o, name, text);
}

static void set_stage(struct options *o, struct argp_state *state, const char *arg)
{
    const bool qlora = !strcmp(arg, "qlora"), lora = qlora || !strcmp(arg, "lora"), pretrain = !strcmp(arg, "pretrain");
    if (!lora && !pretrain && strcmp(arg, "full") != 0)
        argp_error(state, "--stage wants one of pretrain, lora, qlora, full, not '%s'", arg);
    o->bench.stage = arg;
    if (pretrain) add(o, "tune_mm_mlp_adapter", "True");
    if (lora) add(o, "lora_enable", "True"), add(o, "lora_r", "128"), add(o, "lora_alpha", "256");
    if (qlora) add(o, "bits", "4");
}

static error_t option(int key, char *arg, struct argp_state *state)
{
    struct options *o = state->input;
    switch (key) {
    case K_RANDOM: add(o, "model_name_or_path", arg); break;
    case K_STAGE: set_stage(o, state, arg); break;
    case K_BATCH: add_int(o, state, "per_device_train_batch_size", "batch", arg); break;
    case K_SEQ: add_int(o, state, "model_max_length", "seq", arg); break;
    case K_ACCUM: add_int(o, state, "gradient_accumulation_steps", "accum", arg); break;
    case K_STEPS: o->bench.steps = (int)cmd_int(state, "steps", arg, 1, 1000); break;
    case K_MIX: o->bench.lengths = LENGTHS_MIX; break;
    case K_PADDED: o->bench.padded = true; break;
    case K_LIMIT: add(o, "memory_limit", arg); break;
    case K_DEVICE: add(o, "device", arg); break;
    case K_THREADS: add_int(o, state, "threads", "threads", arg); break;
    case K_LIST: o->bench.list = true; break;
    case K_PROFILE: o->bench.profile = true; break;
    case K_QUIET: log_set_level(LOG_QUIET); break;
    case K_DTYPE:
        if (strcmp(arg, "bf16") != 0 && strcmp(arg, "f32") != 0) argp_error(state, "--dtype wants one of bf16, f32");
        add(o, "bf16", strcmp(arg, "f32") ? "True" : "False");
        break;
    case ARGP_KEY_ARG:
        if (strncmp(arg, "--", 2) != 0 || !strchr(arg, '='))
            argp_error(state, "arguments of `llava train` follow after -- as --name=value, not '%s'", arg);
        if (o->n == WORDS_MAX) argp_error(state, "too many arguments");
        if (!(o->word[o->n++] = strdup(arg))) BUG("no memory for an option");
        break;
    case ARGP_KEY_END:
        if (o->bench.padded && o->bench.lengths == LENGTHS_FIXED) argp_error(state, "--padded wants --mix665k");
        if (!o->bench.stage) set_stage(o, state, "lora");
        break;
    default: return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

static const struct argp argp = {
    options,
    option,
    "[-- --NAME=VALUE...]",
    "Measures training steps of random weights on records made in memory, through the trainer's own step, and prints "
    "one JSON object: seconds of a step (median), records and tokens per second, operations per second with what is "
    "computed again for want of memory (tflops) and without (useful_tflops), their share of what a matrix product "
    "reaches here (measured in the same run), planned memory and what was taken. Other arguments of `llava train` "
    "follow after --; those about data, files and the number of steps change nothing here.\v"
    "Example:\n  llava bench train --random 13b --stage lora --batch 16 --seq 1024 --memory-limit 60G -- "
    "--optim=adamw_8bit\n\n" CMD_EXIT_STATUS,
    NULL,
    NULL,
    NULL
};

/* What holds unless the command line says otherwise; the last of two with one name counts. */
static const struct { const char *name, *value; } defaults[] = {
    { "model_name_or_path", "1b" }, { "data_path", "none" }, { "output_dir", "none" }, { "bf16", "True" },
    { "gradient_checkpointing", "True" }, { "per_device_train_batch_size", "16" }, { "model_max_length", "1024" },
};

int cmd_bench_train(int argc, char **argv)
{
    struct options o = { .bench.steps = 3, .n = 1 };
    struct train_args a;
    struct err e = { 0 };
    json_t *figures = NULL;
    for (size_t i = 0; i < sizeof defaults / sizeof *defaults; i++) add(&o, defaults[i].name, defaults[i].value);
    int rc = cmd_parse(&argp, argc, argv, &o);
    if (!rc && train_args_parse(&a, o.n, o.word, &e) < 0) {
        fprintf(stderr, "llava bench train: %s\nTry `llava bench train --help' for more information.\n", e.msg);
        rc = 2;
    }
    if (!rc) {
        o.bench.a = &a;
        if (train_bench(&figures, &o.bench, &e) < 0) rc = cmd_fail(e.msg);
    }
    char *line = rc ? NULL : json_dumps(figures, JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(6));
    if (line) puts(line);
    free(line);
    json_decref(figures);
    for (int i = 1; i < o.n; i++) free(o.word[i]);
    return rc;
}
