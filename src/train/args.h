/* The arguments of a training run: every field of LLaVA's ModelArguments, DataArguments and TrainingArguments with
 * its default, the fields of transformers' TrainingArguments (4.37), and a few of this program's own.
 *
 * One row of the table in args_table.c an argument: the same rows parse, print the help, tell what was given without
 * an effect, and write the arguments down. Parsed as transformers' HfArgumentParser over Python's argparse does:
 * --flag VALUE or --flag=VALUE, unique prefixes, - for _, a bare --flag for True, --no_flag for False.
 */
#pragma once
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/err.h"

enum { TRAIN_ARGS_MAX = 220, TRAIN_LIST_MAX = 200 };

/* Strings are borrowed from argv, or constants, or (several words of one argument) inside: not to be copied. "None" is
 * NULL for strings and NAN for numbers that may be None. */
struct train_args {
    /* model */
    const char *model_name_or_path, *version, *vision_tower, *pretrain_mm_mlp_adapter, *mm_projector_type;
    const char *mm_patch_merge_type, *mm_vision_select_feature;
    bool freeze_backbone, tune_mm_mlp_adapter, mm_use_im_start_end, mm_use_im_patch_token, unfreeze_mm_vision_tower;
    bool random_start;
    int64_t mm_vision_select_layer;
    /* data */
    const char *data_path, *eval_data_path, *image_folder, *image_aspect_ratio, *on_bad_record;
    const char *cache_features;
    bool packing, image_augment;
    /* what is trained, and how precisely */
    const char *optim, *lora_bias;
    bool master_weights;
    bool freeze_mm_mlp_adapter, lora_enable, bf16, fp16, gradient_checkpointing, group_by_modality_length;
    bool group_by_length;
    int64_t model_max_length, bits, lora_r, lora_alpha;
    double lora_dropout, residual_dropout, patch_dropout;
    double mm_projector_lr, mm_vision_tower_lr; /* NAN for the common one */
    /* steps */
    const char *lr_scheduler_type, *lr_scheduler_kwargs, *deepspeed;
    int64_t per_device_train_batch_size, per_device_eval_batch_size, gradient_accumulation_steps;
    int64_t max_steps;
    double learning_rate, weight_decay, adam_beta1, adam_beta2, adam_epsilon, max_grad_norm, num_train_epochs;
    double label_smoothing_factor, warmup_ratio, warmup_steps; /* warmup_steps below 1: a share, too */
    /* data loading */
    int64_t seed, data_seed, dataloader_num_workers;
    bool dataloader_drop_last;
    /* output */
    const char *output_dir, *logging_dir, *run_name, *report_to, *resume_from_checkpoint;
    const char *evaluation_strategy, *save_strategy, *logging_strategy;
    double logging_steps, eval_steps, save_steps; /* below 1: a share of all steps */
    int64_t save_total_limit;                     /* 0: all are kept */
    bool logging_first_step, overwrite_output_dir, disable_tqdm, load_best_model_at_end;
    /* this program's */
    const char *device, *memory_limit, *host_memory_limit, *offload;
    int64_t threads;
    bool dry_run, quiet, pageable, use_cpu, no_cuda;
    char list[TRAIN_LIST_MAX]; /* report_to's words with commas between them, where it has several */
    /* by row of the table: was it given */
    bool given[TRAIN_ARGS_MAX];
};

/* Defaults, then argv[1..argc). ERR_USAGE with one line that names the argument; for an unknown one the nearest known.
 * Then what goes together is checked: ranges, and that what is needed is there. */
int train_args_parse(struct train_args *a, int argc, char **argv, struct err *e);
bool train_args_given(const struct train_args *a, const char *name);
/* Logs one line that names what was given and has no effect here, if there is any. */
void train_args_report(const struct train_args *a);
void train_args_help(FILE *f);
/* Threads of the host's kernels: those asked for, as far as they can be started, else all that are worth using. */
int train_args_threads(const struct train_args *a);
/* By name, new references, NULL without memory: all that has an effect; what must be the same for a run to go on from
 * another's checkpoint (a NULL: the defaults, for checkpoints that are older than an argument). */
json_t *train_args_json(const struct train_args *a);
json_t *train_args_same(const struct train_args *a);
/* The linears of --mm_projector_type: "identity" 0, "linear" 1, "mlpNx_gelu" N. */
int train_args_projector(const char *type, int *n, struct err *e);

/* ---- the table, for args.c */

enum arg_kind { ARG_STR, ARG_LIST /* a word or several */, ARG_BOOL, ARG_INT, ARG_REAL, ARG_HEAD };
enum arg_use {
    ARG_USED,
    ARG_IGNORED, /* changes nothing here: accepted, and named once if given */
    ARG_ONLY,    /* other values than the default, or than `choices`, would change results and are refused */
};
struct arg_row {
    const char *name;
    enum arg_kind kind;
    enum arg_use use;
    size_t offset;       /* in struct train_args, of ARG_USED */
    const char *def;     /* as one would write it; NULL: None */
    const char *choices; /* "a|b|c", or NULL */
    bool same;           /* a run may only go on from a checkpoint whose run had the same value */
    const char *help;    /* ARG_HEAD: the heading; ARG_ONLY with choices: why there are no others */
};
extern const struct arg_row train_arg_rows[];
extern const int train_arg_count;
