/* llava forward: the numbers of one prompt as a safetensors file, for comparison with other implementations. */
#include <stdlib.h>
#include <string.h>

#include "cmd/ask.h"
#include "file/safetensors.h"

enum { K_IMAGE = CMD_KEY, K_PROMPT, K_OUT };

struct forward {
    struct llava_options model;
    struct ask_images images;
    const char *prompt, *out;
};

static const struct argp_option options[] = {
    { NULL, 0, NULL, 0, "Forward:", 0 },
    { "image-file", K_IMAGE, "FILE[,FILE...]", 0,
      "Picture; several are separated by commas, or given by repeating the option", 0 },
    { "prompt", K_PROMPT, "TEXT", 0, "The whole prompt, with its <image>", 0 },
    { "out", K_OUT, "FILE", 0, "The safetensors file to write", 0 },
    { 0 },
};

static error_t option(int key, char *arg, struct argp_state *state)
{
    struct forward *f = state->input;
    switch (key) {
    case ARGP_KEY_INIT: state->child_inputs[0] = &f->model; break;
    case K_IMAGE: ask_images_option(&f->images, arg, state); break;
    case K_PROMPT: f->prompt = arg; break;
    case K_OUT: f->out = arg; break;
    case ARGP_KEY_ARG: argp_error(state, "unexpected argument '%s'", arg); break;
    case ARGP_KEY_END:
        if (!f->model.model_path || !f->prompt || !f->out)
            argp_error(state, "--model-path, --prompt and --out are needed");
        if (f->model.n_lora) argp_error(state, "forward takes no --lora: give the adapter as --model-path");
        break;
    default: return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

static const struct argp_child children[] = { { &cmd_model_argp, 0, "", 1 }, { 0 } };
static const struct argp argp = {
    options, option, NULL,
    "Runs one prompt through the model and writes what comes out, as a safetensors file:\n"
    "  input_ids       [ids] I64, -200 stands for a picture\n"
    "  pixel_values    [tiles,3,side,side] F32\n"
    "  image_features  [positions of pictures,width] F32, as they enter the language model\n"
    "  logits          [positions,vocabulary] F32\v"
    "Example:\n  llava forward --model-path D --image-file cat.png \\\n"
    "      --prompt \"USER: <image> Hi ASSISTANT:\" --dtype f32 \\\n"
    "      --out cat.safetensors\n\n" CMD_EXIT_STATUS,
    children, NULL, NULL
};

static int save(const char *path, const struct llava_forward *f, struct llava_error *e)
{
    struct weight w[4];
    int n = 0;
    int64_t *ids = malloc(((size_t)f->n_ids + 1) * sizeof *ids);
    if (!ids) return snprintf(e->message, sizeof e->message, "no memory"), LLAVA_NOMEM;
    for (int i = 0; i < f->n_ids; i++) ids[i] = f->ids[i];
    w[n++] = (struct weight){ .name = "input_ids", .t = tensor_1d(ids, DT_I64, f->n_ids) };
    if (f->n_tiles) {
        struct tensor px = { f->pixels, DT_F32, 4, 0, { f->n_tiles, 3, f->side, f->side } };
        w[n++] = (struct weight){ .name = "pixel_values", .t = px };
        w[n++] = (struct weight){ .name = "image_features",
                                  .t = tensor_2d(f->features, DT_F32, f->n_features, f->width) };
    }
    w[n++] = (struct weight){ .name = "logits", .t = tensor_2d(f->logits, DT_F32, f->n_positions, f->vocab) };
    static const char *const meta[] = { "format", "pt", NULL };
    struct err err = { 0 };
    int rc = safetensors_write(path, w, (size_t)n, meta, NULL, NULL, &err);
    if (rc < 0) {
        e->code = rc;
        memcpy(e->message, err.msg, sizeof e->message);
    }
    free(ids);
    return rc;
}

int cmd_forward(int argc, char **argv)
{
    struct forward f = { .model = llava_options_default() };
    int rc = cmd_parse(&argp, argc, argv, &f);
    if (rc) return rc;
    struct llava_error e = { 0 };
    struct llava_engine *engine = NULL;
    struct llava_forward out = { 0 };
    rc = ask_images_find(&f.images, ",", &e);
    if (rc >= 0) rc = llava_open(&engine, &f.model, &e);
    if (rc >= 0) rc = ask_images_open(&f.images, engine, &e);
    if (rc >= 0) rc = llava_engine_forward(&out, engine, f.prompt, f.images.image, f.images.n, &e);
    if (rc >= 0) rc = save(f.out, &out, &e);
    llava_forward_free(&out);
    ask_images_close(&f.images);
    llava_close(engine);
    return rc < 0 ? cmd_fail(e.message) : 0;
}
