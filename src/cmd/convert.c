/* llava convert: the same weights in another layout, type or format; the projector alone; llama2.c's
 * checkpoints. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/map.h"
#include "cmd/export.h"
#include "cmd/llama2c.h"

enum { K_TO = EXPORT_OWN, K_WITH, K_FROM, K_TOKENIZER };

struct convert {
    struct export x;
    const char *tokenizer;
    bool llama2c, to;
};

static const struct argp_option options[] = {
    { "model-path", EXPORT_PATH, "DIR|ORG/NAME", 0,
      "Folder of the model, or its name on the hub: a whole model in any layout, a "
      "projector or a LoRA adapter (with --model-base). With --from llama2c, a .bin file",
      0 },
    { "model-base", EXPORT_BASE, "DIR|ORG/NAME", 0, "Base model of a projector or an adapter", 0 },
    { "to", K_TO, "llava|hf|hf5|projector", 0, "Layout to write, see below", 0 },
    { "output", EXPORT_OUT, "DIR", 0, "Folder to write; must be absent or empty", 0 },
    { "dtype", EXPORT_DTYPE, "keep|f32|f16|bf16", 0,
      "Type of the weights written (default keep: each as it is stored)", 0 },
    EXPORT_SHARD_ROW,
    { "with-tower", K_WITH, NULL, 0, "llava: put the vision tower into the checkpoint", 0 },
    EXPORT_TOWER_ROW,
    { "from", K_FROM, "auto|llama2c", 0,
      "What is read: a model's folder (auto), or a legacy checkpoint of llama2.c", 0 },
    { "tokenizer", K_TOKENIZER, "FILE", 0, "llama2c: the SentencePiece model that goes with it", 0 },
    EXPORT_QUIET_ROW,
    { 0 },
};

static void set_layout(struct convert *c, const char *arg, struct argp_state *state)
{
    static const struct {
        const char *name;
        enum naming naming;
        bool projector;
    } layouts[] = {
        { "llava", NAMING_LLAVA, false },
        { "hf", NAMING_HF, false },
        { "hf5", NAMING_HF5, false },
        { "projector", NAMING_LLAVA, true },
    };
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++)
        if (!strcmp(arg, layouts[i].name)) {
            c->x.naming = layouts[i].naming;
            c->x.projector_only = layouts[i].projector;
            c->to = true;
            return;
        }
    argp_error(state, "--to wants llava, hf, hf5 or projector, not '%s'", arg);
}

static void check(const struct convert *c, struct argp_state *state)
{
    const struct export *x = &c->x;
    if (!x->path || !x->out) argp_error(state, "--model-path and --output are needed");
    if (!c->to && !c->llama2c) argp_error(state, "--to is needed: llava, hf, hf5 or projector");
    if (c->llama2c &&
        (x->base || x->tower || x->with_tower || x->projector_only || x->naming != NAMING_LLAVA))
        argp_error(state,
                   "--from llama2c makes a language model: no base, no tower, and no layout but llava");
    if (!c->llama2c && c->tokenizer) argp_error(state, "--tokenizer goes with --from llama2c");
    if (x->with_tower && (x->naming != NAMING_LLAVA || x->projector_only))
        argp_error(state, "--with-tower goes with --to llava");
}

static error_t option(int key, char *arg, struct argp_state *state)
{
    struct convert *c = state->input;
    struct export *x = &c->x;
    switch (key) {
    case K_TO: set_layout(c, arg, state); break;
    case K_WITH: x->with_tower = true; break;
    case K_FROM:
        c->llama2c = !strcmp(arg, "llama2c");
        if (!c->llama2c && strcmp(arg, "auto") != 0)
            argp_error(state, "--from wants auto or llama2c, not '%s'", arg);
        break;
    case K_TOKENIZER: c->tokenizer = arg; break;
    case ARGP_KEY_END: check(c, state); break;
    default: return export_option(x, key, arg, state);
    }
    return 0;
}

static const struct argp argp = {
    options,
    option,
    NULL,
    "Writes a model as a Hugging Face folder of safetensors in the layout asked for. Weights are copied bit "
    "by bit unless --dtype says otherwise, one at a time: memory use does not grow with the model. The "
    "folder appears whole, or not at all.\v"
    "Layouts:\n"
    "  llava      as LLaVA's training writes it: model.layers.*, model.mm_projector.*, and config.json with "
    "mm_* keys. The tower stays where mm_vision_tower says; one that lies beside the model, or inside "
    "transformers' layout, is written to DIR/vision_tower\n"
    "  hf         as transformers 4 has LlavaForConditionalGeneration: language_model.*, "
    "multi_modal_projector.*, vision_tower.vision_model.*\n"
    "  hf5        as transformers 5 writes it: vision_tower.* without vision_model, rope_parameters\n"
    "  projector  mm_projector.bin for torch.load, and config.json: what --pretrain-mm-mlp-adapter reads\n\n"
    "In hf and hf5 <image> and <pad> are tokens. Where the tokenizer lacks them they are added after its "
    "last one; embeddings and lm_head get rows up to a multiple of 64, each the mean of the old rows; a "
    "tokenizer.json is made where there is none, for transformers 5. --to llava takes the tokens and their rows "
    "away again, so that llava -> hf -> llava gives the same bits. "
    "image_aspect_ratio is kept as a key of config.json in all layouts; transformers itself does not read it "
    "and never pads pictures.\n\n"
    "--from llama2c reads the .bin that llama2.c's run.c reads and writes a Llama model; the rows of q_proj "
    "and k_proj are reordered from its RoPE (neighbours) to Hugging Face's (halves).\n\n"
    "Examples:\n"
    "  llava convert --model-path liuhaotian/llava-v1.5-7b --to hf --output 7b-hf\n"
    "  llava convert --model-path llava-hf/llava-1.5-7b-hf --to llava --output 7b\n"
    "  llava convert --model-path 7b --to projector --dtype bf16 --output projector\n"
    "  llava convert --from llama2c --model-path stories260K.bin \\\n"
    "      --tokenizer tok512.model --output stories\n\n" CMD_EXIT_STATUS,
    NULL,
    NULL,
    NULL
};

static int put_tokenizer(void *ctx, struct saver *s, struct err *e)
{
    const char *path = ctx;
    struct map m = { 0 };
    json_t *v = json_pack("{s:s,s:b,s:b,s:b,s:s,s:s,s:s}", "tokenizer_class", "LlamaTokenizer",
                          "add_bos_token", 1, "add_eos_token", 0, "legacy", 1, "bos_token", "<s>",
                          "eos_token", "</s>", "unk_token", "<unk>");
    int rc;
    TRY(save_json(s, "tokenizer_config.json", v, e));
    TRY(map_open(&m, path, e));
    TRY(saver_bytes(s, "tokenizer.model", m.p, m.n, e));
out:
    map_close(&m);
    json_decref(v);
    return rc;
}

/* Opened before anything is written: a file that is no SentencePiece model, or is too large for the
 * vocabulary, is an error. */
static int check_tokenizer(const char *path, int vocab, struct err *e)
{
    struct tokenizer *t = NULL;
    int rc = tokenizer_open_model(&t, path, TOKENIZER_LEGACY, e);
    if (rc >= 0 && tokenizer_info(t)->size > vocab)
        rc = err_set(e, ERR_SHAPE, "'%s' has %d tokens, the model only %d", path, tokenizer_info(t)->size,
                     vocab);
    tokenizer_close(t);
    return rc;
}

static int convert_llama2c(const struct convert *c, struct err *e)
{
    struct llama2c l = { 0 };
    const struct export *x = &c->x;
    struct save_options o = {
        .dir = x->out, .keep_dtype = x->keep_dtype, .dtype = x->dtype, .shard_bytes = x->shard_bytes
    };
    int rc;
    TRY(save_dir_check(x->out, e));
    TRY(llama2c_open(&l, x->path, e));
    if (c->tokenizer) {
        TRY(check_tokenizer(c->tokenizer, l.model.cfg.llama.V, e));
        o.more = put_tokenizer;
        o.ctx = (void *)c->tokenizer;
    } else {
        log_warn("no --tokenizer: the model can be opened by what brings its own");
    }
    TRY(llava_model_save(&l.model, &o, e));
out:
    llama2c_close(&l);
    return rc;
}

int cmd_convert(int argc, char **argv)
{
    struct convert c = { .x = { .naming = NAMING_LLAVA, .keep_dtype = true } };
    int rc = cmd_parse(&argp, argc, argv, &c);
    if (rc) return rc;
    struct err e = { 0 };
    rc = c.llama2c ? convert_llama2c(&c, &e) : export_model(&c.x, &e);
    return rc < 0 ? cmd_fail(e.msg) : 0;
}
