/* llava merge: a LoRA adapter and its base as one model. The command of scripts/merge_lora_weights.py. */
#include "cmd/export.h"

#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "cmd/cmd.h"

enum { K_PATH = CMD_KEY, K_BASE, K_TOWER, K_OUT, K_DTYPE, K_SHARD, K_QUIET };

static const struct argp_option options[] = {
    { "model-path", K_PATH, "DIR|ORG/NAME", 0,
      "Folder of the adapter: adapter_config.json, adapter_model.safetensors or .bin, "
      "and, from LLaVA's training, config.json and non_lora_trainables.bin",
      0 },
    { "model-base", K_BASE, "DIR|ORG/NAME", 0, "The model that the adapter was trained on", 0 },
    { "save-model-path", K_OUT, "DIR", 0, "Folder to write; must be absent or empty", 0 },
    { "dtype", K_DTYPE, "keep|f32|f16|bf16", 0,
      "Type of the weights written (default keep: as the base has them)", 0 },
    { "max-shard-size", K_SHARD, "SIZE", 0, "Largest weights file, such as 5GB (the default) or 500MB", 0 },
    { "vision-tower", K_TOWER, "DIR|ORG/NAME", 0, "Vision tower, instead of the one that config.json names",
      0 },
    { "quiet", K_QUIET, NULL, 0, "No progress", 0 },
    { 0 },
};

static error_t option(int key, char *arg, struct argp_state *state)
{
    struct export *x = state->input;
    switch (key) {
    case K_PATH: x->path = arg; break;
    case K_BASE: x->base = arg; break;
    case K_OUT: x->out = arg; break;
    case K_TOWER: x->tower = arg; break;
    case K_DTYPE:
        if (export_dtype(&x->keep_dtype, &x->dtype, arg) < 0)
            argp_error(state, "--dtype wants keep, f32, f16 or bf16, not '%s'", arg);
        break;
    case K_SHARD:
        if (export_size(&x->shard_bytes, arg) < 0)
            argp_error(state, "--max-shard-size wants a size such as 5GB, not '%s'", arg);
        break;
    case K_QUIET: log_set_level(LOG_QUIET); break;
    case ARGP_KEY_ARG: argp_error(state, "unexpected argument '%s'", arg); break;
    case ARGP_KEY_END:
        if (!x->path || !x->base || !x->out)
            argp_error(state, "--model-path, --model-base and --save-model-path are needed");
        break;
    default: return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

static const struct argp argp = {
    options,
    option,
    NULL,
    "Merges a LoRA adapter into its base model and writes the result as a folder that opens without a base: "
    "the base's "
    "layout and tokenizer, the adapter's config.json and other trained parts (the projector), and the same "
    "vision tower."
    "\vEvery weight that the adapter changes becomes W + (alpha/r) B A, summed in f32 and rounded once to "
    "the type that is "
    "written; all others are copied bit by bit. PEFT, which LLaVA's script uses, rounds the product to 16 "
    "bits before "
    "adding it, so its results can differ by one unit in the last place of f16 or bf16. One weight at a time "
    "is in memory.\n\n"
    "The tower stays where it is: the folder names it as the adapter's config.json does. One that lies "
    "beside the adapter, "
    "or is changed by it, is written to DIR/vision_tower.\n\n"
    "Examples:\n"
    "  llava merge --model-path llava-v1.5-7b-lora --model-base vicuna-7b-v1.5 \\\n"
    "      --save-model-path llava-v1.5-7b-merged\n"
    "  llava merge --model-path A --model-base B --save-model-path C --dtype bf16\n\n" CMD_EXIT_STATUS,
    NULL,
    NULL,
    NULL
};

int cmd_merge(int argc, char **argv)
{
    struct export x = { .keep_naming = true, .keep_dtype = true };
    int rc = cmd_parse(&argp, argc, argv, &x);
    if (rc) return rc;
    struct err e = { 0 };
    rc = export_model(&x, &e);
    return rc < 0 ? cmd_fail(e.msg) : 0;
}
