/* What commands share. See cmd.h. */
#include "cmd/cmd.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

int cmd_fail(const char *message)
{
    fprintf(stderr, "llava: %s\n", message);
    return 1;
}

/* Is there a long option that begins with name[0..n)? */
static bool option_known(const struct argp *argp, const char *name, size_t n)
{
    for (const struct argp_option *o = argp->options; o && (o->name || o->key || o->doc); o++)
        if (o->name && !strncmp(o->name, name, n)) return true;
    for (const struct argp_child *c = argp->children; c && c->argp; c++)
        if (option_known(c->argp, name, n)) return true;
    return false;
}

/* --max_new_tokens=5 -> --max-new-tokens=5: LLaVA's scripts use both spellings. Values stay as they are. */
static void dashes(const struct argp *argp, char *arg)
{
    char name[64];
    size_t n = strcspn(arg + 2, "=");
    if (strncmp(arg, "--", 2) != 0 || n >= sizeof name) return;
    for (size_t i = 0; i < n; i++) name[i] = arg[2 + i] == '_' ? '-' : arg[2 + i];
    if (n && option_known(argp, name, n)) memcpy(arg + 2, name, n);
}

int cmd_parse(const struct argp *argp, int argc, char **argv, void *input)
{
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) dashes(argp, argv[i]);
    argp_err_exit_status = 2;
    return argp_parse(argp, argc, argv, 0, NULL, input) ? 2 : 0;
}

long cmd_int(struct argp_state *state, const char *option, const char *arg, long min, long max)
{
    char *end;
    errno = 0;
    long v = strtol(arg, &end, 10);
    if (end == arg || *end || errno || v < min || v > max)
        argp_error(state, "--%s wants a whole number from %ld to %ld, not '%s'", option, min, max, arg);
    return v;
}

double cmd_real(struct argp_state *state, const char *option, const char *arg, double min, double max)
{
    char *end;
    double v = strtod(arg, &end);
    if (end == arg || *end || !(v >= min && v <= max))
        argp_error(state, "--%s wants a number from %g to %g, not '%s'", option, min, max, arg);
    return v;
}

/* arg, when it is one of the words; else a usage error that lists them. */
static const char *one_of(struct argp_state *state, const char *option, const char *arg, const char *const *words)
{
    char list[200] = "";
    for (int i = 0; words[i]; i++) {
        if (!strcmp(arg, words[i])) return arg;
        size_t n = strlen(list);
        snprintf(list + n, sizeof list - n, "%s%s", i ? ", " : "", words[i]);
    }
    argp_error(state, "--%s wants one of %s, not '%s'", option, list, arg);
    return arg;
}

const char *cmd_conversation(struct argp_state *state, const char *arg)
{
    const char *names[64] = { NULL };
    for (int i = 0; i < 63 && (names[i] = llava_conversation_name(i)) != NULL;) i++;
    return one_of(state, "conv-mode", arg, names);
}

enum {
    K_PATH = CMD_MODEL_KEY,
    K_BASE,
    K_NAME,
    K_TOWER,
    K_DEVICE,
    K_DTYPE,
    K_CONTEXT,
    K_LORA,
    K_THREADS,
    K_QUIET,
    K_8BIT,
    K_KV,
    K_4BIT,
    K_FLASH
};

static const struct argp_option model_options[] = {
    { NULL, 0, NULL, 0, "Model:", 0 },
    { "model-path", K_PATH, "DIR|ORG/NAME", 0,
      "Folder of the model, or its name on the hub (downloaded once into the Hugging Face cache). A whole "
      "model, a LoRA adapter or a projector",
      0 },
    { "model-base", K_BASE, "DIR|ORG/NAME", 0, "Base model of an adapter or a projector", 0 },
    { "model-name", K_NAME, "NAME", 0, "What the model is called; chooses the conversation template", 0 },
    { "vision-tower", K_TOWER, "DIR|ORG/NAME", 0, "Vision tower, instead of the one that config.json names",
      0 },
    { "device", K_DEVICE, "auto|cpu|cuda[:N]|hip[:N]", 0,
      "Where to compute (auto: the GPU that this build is for, else the processor)", 0 },
    { "dtype", K_DTYPE, "auto|f32|bf16|f16", 0,
      "Precision. auto: f32 for models under 256 MB, else as the weights are stored", 0 },
    { "context", K_CONTEXT, "N", 0,
      "Positions that a conversation may take (default: all that the model knows)", 0 },
    { "lora", K_LORA, "NAME=DIR", 0,
      "A LoRA adapter beside the model, unmerged; several by repeating the option. A server's clients choose it by its "
      "name; run and chat use the first",
      0 },
    { "threads", K_THREADS, "N", 0, "Threads (default: as many as the machine gives)", 0 },
    { "quiet", K_QUIET, NULL, 0, "No progress and no statistics", 0 },
    { "load-8bit", K_8BIT, NULL, 0, "Quantise to 8 bits while loading", 0 },
    { "load-4bit", K_4BIT, NULL, 0, "Quantise to 4 bits while loading", 0 },
    { "kv-dtype", K_KV, "auto|f32|bf16|f16|q8", 0,
      "Cache of keys and values. auto: q8 (8 bits) with quantised weights, else as --dtype", 0 },
    { "use-flash-attn", K_FLASH, NULL, OPTION_HIDDEN, "Accepted; attention is always computed blockwise", 0 },
    { 0 },
};

/* Whether this build and this machine have it is found out when it is opened. */
static const char *device_word(struct argp_state *state, const char *arg)
{
    static const char *const kinds[] = { "cuda", "hip", "emu" };
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        const char *rest = arg + strlen(kinds[i]);
        if (strncmp(arg, kinds[i], strlen(kinds[i])) != 0) continue;
        if (!*rest || (*rest == ':' && rest[1] && strspn(rest + 1, "0123456789") == strlen(rest + 1))) return arg;
    }
    if (strcmp(arg, "auto") != 0 && strcmp(arg, "cpu") != 0)
        argp_error(state, "--device wants one of auto, cpu, cuda[:N], hip[:N], not '%s'", arg);
    return arg;
}

static error_t model_option(int key, char *arg, struct argp_state *state)
{
    struct llava_options *o = state->input;
    switch (key) {
    case K_PATH: o->model_path = arg; break;
    case K_BASE: o->model_base = arg; break;
    case K_NAME: o->model_name = arg; break;
    case K_TOWER: o->vision_tower = arg; break;
    case K_DEVICE: o->device = device_word(state, arg); break;
    case K_DTYPE: o->dtype = one_of(state, "dtype", arg, (const char *[]){ "auto", "f32", "bf16", "f16", "float32",
                                                                           "bfloat16", "float16", NULL }); break;
    case K_CONTEXT: o->context = (int)cmd_int(state, "context", arg, 1, 1 << 20); break;
    case K_LORA:
        if (o->n_lora == sizeof o->lora / sizeof *o->lora) argp_error(state, "more than %d --lora", o->n_lora);
        if (!strchr(arg, '=')) argp_error(state, "--lora wants NAME=DIR, not '%s'", arg);
        o->lora[o->n_lora++] = arg;
        break;
    case K_THREADS: o->threads = (int)cmd_int(state, "threads", arg, 1, 1024); break;
    case K_QUIET: o->quiet = true; break;
    case K_KV: o->kv_dtype = one_of(state, "kv-dtype", arg, (const char *[]){ "auto", "f32", "bf16", "f16", "q8",
                                                                              NULL }); break;
    case K_8BIT: o->load_8bit = true; break;
    case K_4BIT: o->load_4bit = true; break;
    case K_FLASH: break;
    default: return ARGP_ERR_UNKNOWN;
    }
    return 0;
}
const struct argp cmd_model_argp = { model_options, model_option, NULL, NULL, NULL, NULL, NULL };

enum { K_TEMP = CMD_SAMPLING_KEY, K_TOP_P, K_TOP_K, K_SEED, K_NEW, K_BEAMS };

static const struct argp_option sampling_options[] = {
    { NULL, 0, NULL, 0, "Generation:", 0 },
    { "temperature", K_TEMP, "T", 0, "0: always the likeliest token (default 0.2)", 0 },
    { "top-p", K_TOP_P, "P", 0, "Draw from the likeliest tokens that together have probability P (default 1)", 0 },
    { "top-k", K_TOP_K, "K", 0, "Draw from the K likeliest tokens, 0: from all (default 50)", 0 },
    { "seed", K_SEED, "N", 0, "Seed of the draws; the same seed gives the same answer (default 0)", 0 },
    { "max-new-tokens", K_NEW, "N", 0, "Longest answer (default 512)", 0 },
    { "num-beams", K_BEAMS, "N", 0, "Only 1: beam search is not supported", 0 },
    { 0 },
};

static error_t sampling_option(int key, char *arg, struct argp_state *state)
{
    struct llava_sampling *s = state->input;
    switch (key) {
    case K_TEMP: s->temperature = (float)cmd_real(state, "temperature", arg, 0, 100); break;
    case K_TOP_P:
        s->top_p = strcasecmp(arg, "none") ? (float)cmd_real(state, "top-p", arg, 1e-6, 1) : 1;
        break;
    case K_TOP_K: s->top_k = (int)cmd_int(state, "top-k", arg, 0, 1 << 30); break;
    case K_SEED: s->seed = (uint64_t)cmd_int(state, "seed", arg, 0, __LONG_MAX__); break;
    case K_NEW: s->max_new_tokens = (int)cmd_int(state, "max-new-tokens", arg, 1, 1 << 20); break;
    case K_BEAMS:
        if (cmd_int(state, "num-beams", arg, 1, 1000) != 1)
            argp_error(state, "--num-beams %s: beam search is not supported, only 1", arg);
        break;
    default: return ARGP_ERR_UNKNOWN;
    }
    return 0;
}
const struct argp cmd_sampling_argp = { sampling_options, sampling_option, NULL, NULL, NULL, NULL, NULL };
