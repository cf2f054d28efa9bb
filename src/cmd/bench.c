/* llava bench: how fast, against what this machine could do. One JSON object a line on standard output. */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/plat.h"
#include "base/rng.h"
#include "cmd/cmd.h"
#include "kern/cpu/cpu.h"
#include "run/engine.h"

enum { K_RANDOM = CMD_KEY, K_PROMPT, K_GEN, K_BATCH, K_REPEAT, K_NO_IMAGE, K_PROFILE };

struct bench {
    struct llava_options model;
    const char *random;
    int prompt, gen, batch, repeat;
    bool no_image, profile;
};

static const struct argp_option options[] = {
    { NULL, 0, NULL, 0, "Bench:", 0 },
    { "random", K_RANDOM, "7b|13b|1b|tiny", 0,
      "Random weights of real shapes, made in memory, instead of --model-path", 0 },
    { "prompt", K_PROMPT, "N", 0, "Positions of the prompt (default 640)", 0 },
    { "gen", K_GEN, "N", 0, "Tokens to generate (default 32)", 0 },
    { "batch", K_BATCH, "N", 0, "Sequences that are generated at once (default 1)", 0 },
    { "repeat", K_REPEAT, "N", 0, "Times to measure each part; the median is given (default 3)", 0 },
    { "no-image", K_NO_IMAGE, NULL, 0, "Leave the vision tower out", 0 },
    { "profile", K_PROFILE, NULL, 0, "Print where the time goes, by kernel and shape, to standard error", 0 },
    { 0 },
};

static error_t option(int key, char *arg, struct argp_state *state)
{
    struct bench *b = state->input;
    switch (key) {
    case ARGP_KEY_INIT: state->child_inputs[0] = &b->model; break;
    case K_RANDOM: b->random = arg; break;
    case K_PROMPT: b->prompt = (int)cmd_int(state, "prompt", arg, 1, 1 << 17); break;
    case K_GEN: b->gen = (int)cmd_int(state, "gen", arg, 1, 1 << 17); break;
    case K_BATCH: b->batch = (int)cmd_int(state, "batch", arg, 1, 256); break;
    case K_REPEAT: b->repeat = (int)cmd_int(state, "repeat", arg, 1, 100); break;
    case K_NO_IMAGE: b->no_image = true; break;
    case K_PROFILE: b->profile = true; break;
    case ARGP_KEY_ARG: argp_error(state, "unexpected argument '%s'", arg); break;
    case ARGP_KEY_END:
        if (!b->model.model_path == !b->random) argp_error(state, "one of --model-path and --random is needed");
        if (b->model.n_lora) argp_error(state, "bench takes no --lora");
        break;
    default: return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

static const struct argp_child children[] = { { &cmd_model_argp, 0, "", 1 }, { 0 } };
static const struct argp argp = {
    options,
    option,
    NULL,
    "Measures the vision tower, prefill and decode, and prints one JSON object: tokens per second, "
    "milliseconds to the first "
    "token, bytes moved per second and their share of what this machine reads (measured in the same run), "
    "floating-point "
    "operations per second, peak memory. `llava bench train` measures training (it has a --help of its own).\v"
    "Example:\n  llava bench --random 1b --prompt 640 --gen 64 --dtype bf16\n\n" CMD_EXIT_STATUS,
    children,
    NULL,
    NULL
};

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *v, int n)
{
    qsort(v, (size_t)n, sizeof *v, by_value);
    return v[n / 2];
}

/* The arrays of a step of n tokens. */
struct rows {
    int32_t *token, *pos, *row, *range, *feature, *memory;
};

static struct rows rows_new(int n)
{
    int32_t *m = calloc((size_t)n * 6, sizeof *m);
    if (!m) BUG("no memory for %d rows", n);
    return (struct rows){ m, m + n, m + 2 * n, m + 3 * n, m + 5 * n, m };
}

/* Prompt positions from..to of sequence b, whose cache rows start at b * depth. */
static void prefill(struct engine *g, struct cache *c, const struct rows *r, int b, int depth, int prompt)
{
    for (int from = 0; from < prompt;) {
        int n = prompt - from < g->chunk ? prompt - from : g->chunk, base = b * depth;
        for (int i = 0; i < n; i++) {
            int p = from + i;
            r->token[i] = (p * 7919 + b * 31 + 13) % g->model.cfg.llama.V;
            r->pos[i] = p;
            r->row[i] = base + p;
            r->range[2 * i] = base;
            r->range[2 * i + 1] = base + p + 1;
        }
        const int32_t last = n - 1;
        struct step s = {
            .n = n, .token = r->token, .feature = r->feature, .pos = r->pos, .range = r->range, .row = r->row,
            .out = &last, .n_out = 1
        };
        engine_step(g, c, &s);
        from += n;
    }
}

/* One token of every sequence; the next token is the likeliest, as greedy decoding would have it. */
static void decode(struct engine *g, struct cache *c, const struct rows *r, int batch, int depth, int pos)
{
    int V = g->model.cfg.llama.V;
    for (int b = 0; b < batch; b++) {
        r->pos[b] = pos;
        r->row[b] = b * depth + pos;
        r->range[2 * b] = b * depth;
        r->range[2 * b + 1] = b * depth + pos + 1;
    }
    struct step s = { .n = batch, .decode = true,
                      .token = r->token,
                      .feature = r->feature,
                      .pos = r->pos,
                      .range = r->range,
                      .row = r->row };
    const float *logits = engine_step(g, c, &s);
    for (int b = 0; b < batch; b++) {
        int best = 0;
        for (int v = 1; v < V; v++)
            if (logits[(size_t)b * (size_t)V + (size_t)v] > logits[(size_t)b * (size_t)V + (size_t)best]) best = v;
        r->token[b] = best;
    }
}

/* Multiplications and additions of a prompt: the linears, the head once, causal attention. */
static double prompt_flop(const struct engine *g, int n)
{
    const struct llama_config *l = &g->model.cfg.llama;
    double lin = (double)l->L * (2.0 * l->C * l->H * l->D + 2.0 * l->C * l->K * l->D + 3.0 * l->C * l->F);
    return 2 * lin * n + 2.0 * l->C * l->V + 2.0 * l->L * l->H * l->D * (double)n * n;
}

static double clip_flop(const struct engine *g)
{
    const struct clip_config *c = &g->model.cfg.clip;
    double t = clip_patches(c) + 1, used = clip_layers_used(c, g->model.cfg.select_layer);
    return used * (2 * t * (4.0 * c->C * c->C + 2.0 * c->C * c->F) + 4.0 * t * t * c->C);
}

static double time_clip(struct engine *g, int repeat)
{
    int side = g->model.cfg.clip.image;
    size_t n = 3 * (size_t)side * (size_t)side, rows = (size_t)llava_tile_rows(&g->model);
    float *px = malloc(n * sizeof *px), *out = malloc(rows * (size_t)g->model.cfg.llama.C * sizeof *out);
    double *t = malloc((size_t)repeat * sizeof *t), result = 0;
    if (px && out && t) {
        struct rng rng;
        rng_seed(&rng, 7);
        for (size_t i = 0; i < n; i++) px[i] = (float)rng_normal(&rng);
        engine_encode(g, SIGHT_MODEL, px, 1, out); /* warms up */
        for (int i = 0; i < repeat; i++) {
            double from = plat_now_s();
            engine_encode(g, SIGHT_MODEL, px, 1, out);
            t[i] = plat_now_s() - from;
        }
        result = median(t, repeat);
    }
    free(px), free(out), free(t);
    return result;
}

/* What was measured; times are medians. */
struct figures {
    double image_s, prompt_s, step_s; /* a picture, the prompt without it, one token of every sequence */
    double ceiling;                   /* GB/s that all threads read, measured between the steps */
};

/* Steps and passes of reading by turns: other users of a shared machine then slow both alike. */
static void time_decode(const struct bench *b, struct engine *g, struct cache *c, const struct rows *r,
                        const struct cpu_reader *reader, double *t, struct figures *f)
{
    int depth = b->prompt + b->gen;
    double *gb = t + b->gen;
    for (int i = 0; i < b->batch; i++) r->token[i] = i + 1;
    for (int i = 0; i < b->gen; i++) {
        gb[i] = g->dev ? 0 : cpu_reader_pass(reader, g->kc.n_threads); /* a device's ceiling is not measured yet */
        double from = plat_now_s();
        decode(g, c, r, b->batch, depth, b->prompt + i);
        t[i] = plat_now_s() - from;
    }
    f->step_s = median(t, b->gen);
    f->ceiling = median(gb, b->gen);
}

static void time_prompt(const struct bench *b, struct engine *g, struct cache *c, const struct rows *r, double *t,
                        struct figures *f)
{
    int depth = b->prompt + b->gen;
    prefill(g, c, r, 0, depth, b->prompt < 64 ? b->prompt : 64); /* warms up */
    for (int i = 0; i < b->repeat; i++) {
        double from = plat_now_s();
        prefill(g, c, r, 0, depth, b->prompt);
        t[i] = plat_now_s() - from;
    }
    f->prompt_s = median(t, b->repeat);
    for (int s = 1; s < b->batch; s++) prefill(g, c, r, s, depth, b->prompt);
}

/* Each part once more, kernel by kernel. */
static int profile(const struct bench *b, struct engine *g, struct cache *c, const struct rows *r, struct err *e)
{
    const bool eager = g->eager;
    struct prof *p = prof_new(g->dev);
    if (!p) return err_set(e, ERR_NOMEM, "no memory for a profile");
    g->eager = true;
    g->kc.prof = p;
    if (g->model.cfg.has_vision && !b->no_image) {
        time_clip(g, 1);
        prof_print(p, stderr, "two pictures");
    }
    prefill(g, c, r, 0, b->prompt + b->gen, b->prompt);
    prof_print(p, stderr, "prompt");
    decode(g, c, r, b->batch, b->prompt + b->gen, b->prompt);
    prof_print(p, stderr, "token");
    g->kc.prof = NULL;
    g->eager = eager;
    prof_free(p);
    return 0;
}

static void print_figures(const struct bench *b, const struct engine *g, const struct figures *f)
{
    double cache = (double)engine_cache_bytes(g) * b->batch * (b->prompt + b->gen / 2.0);
    double bytes = (double)engine_weight_bytes(g) + cache, gb_s = bytes / f->step_s * 1e-9;
    const int bits = g->model.bits ? g->model.bits : 8 * (int)dtype_bytes(g->dtype);
    json_t *o = json_pack("{s:s, s:s, s:s, s:i, s:s, s:i, s:i, s:i, s:i}", "bench", "infer", "model", g->name,
                          "dtype", dtype_name(g->dtype), "bits", bits, "kernels", g->kern.name,
                          "threads", g->kc.n_threads, "prompt", b->prompt, "gen", b->gen, "batch", b->batch);
    const struct { const char *name; double value; } real[] = {
        { "prefill_tok_s", b->prompt / f->prompt_s },
        { "prefill_gflops", prompt_flop(g, b->prompt) / f->prompt_s * 1e-9 },
        { "decode_tok_s", b->batch / f->step_s },
        { "first_token_ms", 1e3 * (f->image_s + f->prompt_s) },
        { "bytes_per_step", bytes },
        { "gb_s", gb_s },
        { "ceiling_gb_s", f->ceiling },
        { "share_of_ceiling", f->ceiling > 0 ? gb_s / f->ceiling : 0 },
        { "clip_ms", 1e3 * f->image_s },
        { "clip_gflops", f->image_s > 0 ? clip_flop(g) / f->image_s * 1e-9 : 0 },
    };
    for (size_t i = 0; i < sizeof real / sizeof *real; i++)
        if ((f->image_s > 0 || strncmp(real[i].name, "clip", 4) != 0) && (!g->dev || !strstr(real[i].name, "ceiling")))
            json_object_set_new(o, real[i].name, json_real(real[i].value));
    json_object_set_new(o, "peak_memory_bytes", json_integer((json_int_t)dev_memory_now(g->dev).peak));
    char *line = json_dumps(o, JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(6));
    if (line) puts(line);
    free(line);
    json_decref(o);
}

static int measure(const struct bench *b, struct engine *g, struct err *e)
{
    struct cache c = { 0 };
    struct cpu_reader reader = { 0 };
    struct figures f = { 0 };
    struct rows r = { 0 };
    double *t = NULL;
    int rc;
    TRY(cache_init(&c, g, (b->prompt + b->gen) * b->batch, e));
    TRY(cpu_reader_init(&reader, e));
    r = rows_new(g->chunk > b->batch ? g->chunk : b->batch);
    t = malloc((size_t)(b->repeat + 2 * b->gen) * sizeof *t);
    if (!t) TRY(err_set(e, ERR_NOMEM, "no memory for the times"));
    if (g->model.cfg.has_vision && !b->no_image) f.image_s = time_clip(g, b->repeat);
    time_prompt(b, g, &c, &r, t, &f);
    time_decode(b, g, &c, &r, &reader, t, &f);
    print_figures(b, g, &f);
    if (b->profile) TRY(profile(b, g, &c, &r, e));
out:
    free(t);
    free(r.memory);
    cpu_reader_fini(&reader);
    cache_fini(&c);
    return rc;
}

int cmd_bench(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "train")) {
        static char name[] = "llava bench train";
        argv[1] = name;
        return cmd_bench_train(argc - 1, argv + 1);
    }
    struct bench b = { .model = llava_options_default(), .prompt = 640, .gen = 32, .batch = 1, .repeat = 3 };
    int rc = cmd_parse(&argp, argc, argv, &b);
    if (rc) return rc;
    struct err e = { 0 };
    struct engine *g = NULL;
    if (b.model.quiet) log_set_level(LOG_QUIET);
    struct engine_options o = { .path = b.model.model_path, .base = b.model.model_base, .name = b.model.model_name,
                                .tower = b.model.vision_tower, .device = b.model.device, .dtype = b.model.dtype,
                                .context = b.model.context, .threads = b.model.threads,
                                .kv_dtype = b.model.kv_dtype, .load_8bit = b.model.load_8bit,
                                .load_4bit = b.model.load_4bit };
    if (b.random) {
        rc = engine_random(&g, b.random, &o, &e);
    } else {
        rc = engine_open(&g, &o, &e);
    }
    if (rc >= 0 && b.prompt + b.gen > g->context)
        rc = err_set(&e, ERR_LIMIT, "%d + %d positions are more than the context of %d", b.prompt, b.gen, g->context);
    if (rc >= 0 && b.batch > g->chunk)
        rc = err_set(&e, ERR_LIMIT, "a batch of %d is more than a step of %d", b.batch, g->chunk);
    if (rc >= 0) rc = measure(&b, g, &e);
    engine_close(g);
    return rc < 0 ? cmd_fail(e.msg) : 0;
}
