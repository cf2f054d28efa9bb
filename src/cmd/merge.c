/* llava merge: a LoRA adapter and its base as one model. The command of scripts/merge_lora_weights.py. */
#include "cmd/export.h"

static const struct argp_option options[] = {
    { "model-path", EXPORT_PATH, "DIR|ORG/NAME", 0,
      "Folder of the adapter: adapter_config.json, adapter_model.safetensors or .bin, "
      "and, from LLaVA's training, config.json and non_lora_trainables.bin",
      0 },
    { "model-base", EXPORT_BASE, "DIR|ORG/NAME", 0, "The model that the adapter was trained on", 0 },
    { "save-model-path", EXPORT_OUT, "DIR", 0, "Folder to write; must be absent or empty", 0 },
    { "dtype", EXPORT_DTYPE, "keep|f32|f16|bf16", 0,
      "Type of the weights written (default keep: as the base has them)", 0 },
    EXPORT_SHARD_ROW,
    EXPORT_TOWER_ROW,
    EXPORT_QUIET_ROW,
    { 0 },
};

static error_t option(int key, char *arg, struct argp_state *state)
{
    struct export *x = state->input;
    switch (key) {
    case ARGP_KEY_END:
        if (!x->path || !x->base || !x->out)
            argp_error(state, "--model-path, --model-base and --save-model-path are needed");
        break;
    default: return export_option(x, key, arg, state);
    }
    return 0;
}

static const struct argp argp = {
    options,
    option,
    NULL,
    "Merges a LoRA adapter into its base model and writes the result as a folder that opens without a base: "
    "the base's layout and tokenizer, the adapter's config.json and other trained parts (the projector), and "
    "the same vision tower.\v"
    "Every weight that the adapter changes becomes W + (alpha/r) B A, summed in f32 and rounded once to the "
    "type that is written; all others are copied bit by bit. PEFT, which LLaVA's script uses, rounds the "
    "product to 16 bits before adding it, so its results can differ by one unit in the last place of f16 or "
    "bf16. One weight at a time is in memory.\n\n"
    "The tower stays where it is: the folder names it as the adapter's config.json does. One that lies "
    "beside the adapter or its base, or is changed by it, is written to DIR/vision_tower.\n\n"
    "Examples:\n"
    "  llava merge --model-path llava-v1.5-7b-lora --model-base vicuna-7b-v1.5 \\\n"
    "      --save-model-path llava-v1.5-7b-merged\n"
    "  llava merge --model-path A --model-base B --save-model-path C --dtype bf16\n\n" CMD_EXIT_STATUS,
    NULL,
    NULL,
    NULL
};

int cmd_merge(int argc, char **argv) { return export_command(&argp, argc, argv); }
