/* llava quantize: a model's matrices in 8 or 4 bits, as a folder that is used from the file as it lies. */
#include <string.h>

#include "cmd/export.h"

enum { K_BITS = EXPORT_OWN };

static const struct argp_option options[] = {
    { "model-path", EXPORT_PATH, "DIR|ORG/NAME", 0,
      "Folder of the model, or its name on the hub: a whole model, or a LoRA adapter or projector (with --model-base), "
      "which is merged",
      0 },
    { "model-base", EXPORT_BASE, "DIR|ORG/NAME", 0, "Base model of an adapter or a projector", 0 },
    { "bits", K_BITS, "8|4", 0, "Bits of the language model's linears", 0 },
    { "output", EXPORT_OUT, "DIR", 0, "Folder to write; must be absent or empty", 0 },
    EXPORT_SHARD_ROW,
    EXPORT_TOWER_ROW,
    EXPORT_QUIET_ROW,
    { 0 },
};

static error_t option(int key, char *arg, struct argp_state *state)
{
    struct export *x = state->input;
    switch (key) {
    case K_BITS:
        x->bits = !strcmp(arg, "8") ? 8 : 4;
        if (strcmp(arg, "8") != 0 && strcmp(arg, "4") != 0) argp_error(state, "--bits wants 8 or 4, not '%s'", arg);
        break;
    case ARGP_KEY_END:
        if (!x->path || !x->bits || !x->out) argp_error(state, "--model-path, --bits and --output are needed");
        break;
    default: return export_option(x, key, arg, state);
    }
    return 0;
}

static const struct argp argp = {
    options,
    option,
    NULL,
    "Writes a model whose matrices are quantised, in the layout that it has, as a folder that every command opens as "
    "it opens any other, at once and without copying. The folder appears whole, or not at all; one tensor at a time is "
    "in memory."
    "\vThe language model's linears get the bits asked for; the embeddings, the head, the projector and a vision tower "
    "in the folder get 8. Norms, biases and the tower's first convolution stay as they are. In groups of 64 with a "
    "scale in f16 that is 8.25 or 4.25 bits a weight. --load-8bit and --load-4bit do the same while loading.\n\n"
    "Adapters are trained and merged on the weights before they are quantised: keep those.\n\n"
    "Examples:\n"
    "  llava quantize --model-path liuhaotian/llava-v1.5-13b --bits 4 --output 13b-4bit\n"
    "  llava run --model-path 13b-4bit --image-file cat.png --query \"What is this?\"\n\n" CMD_EXIT_STATUS,
    NULL,
    NULL,
    NULL
};

int cmd_quantize(int argc, char **argv) { return export_command(&argp, argc, argv); }
