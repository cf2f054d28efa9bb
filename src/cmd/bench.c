/* llava bench: how fast, against what this machine could do. One JSON object a line on standard output. */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/median.h"
#include "base/plat.h"
#include "base/rng.h"
#include "cmd/cmd.h"
#include "cmd/roofline.h"
#include "kern/ceiling.h"
#include "kern/cpu/cpu.h"
#include "run/step.h"

enum { K_RANDOM = CMD_KEY, K_PROMPT, K_GEN, K_BATCH, K_REPEAT, K_NO_IMAGE, K_PROFILE, K_PLAN };

struct bench {
    struct llava_options model;
    const char *random, *plan;
    int prompt, gen, batch, repeat;
    bool no_image, profile;
    const char *measure; /* an option that only a measurement heeds, or NULL */
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
    { "plan", K_PLAN, "CARD", 0,
      "Measure nothing: print what the memory and the matrix units of a card allow at most, in 16, 8 and 4 bits "
      "(hip:k100_ai, hip:mi210, cuda:h100, ...; a name that is not known lists all). Heeds --prompt, --batch and "
      "--context",
      0 },
    { "profile", K_PROFILE, NULL, 0, "Print where the time goes, by kernel and shape, to standard error", 0 },
    { 0 },
};

/* What is said beside --plan and would have no effect; NULL: nothing. */
static const char *unplanned(const struct bench *b)
{
    const struct llava_options *o = &b->model, no = llava_options_default();
    return b->measure ? b->measure : o->load_8bit ? "load-8bit" : o->load_4bit ? "load-4bit"
         : o->kv_dtype ? "kv-dtype" : strcmp(o->device, no.device) != 0 ? "device"
         : strcmp(o->dtype, no.dtype) != 0 ? "dtype" : o->threads ? "threads" : NULL;
}

static error_t option(int key, char *arg, struct argp_state *state)
{
    struct bench *b = state->input;
    switch (key) {
    case ARGP_KEY_INIT: state->child_inputs[0] = &b->model; break;
    case K_RANDOM: b->random = arg; break;
    case K_PROMPT: b->prompt = (int)cmd_int(state, "prompt", arg, 1, 1 << 17); break;
    case K_GEN: b->gen = (int)cmd_int(state, "gen", arg, 1, 1 << 17), b->measure = "gen"; break;
    case K_BATCH: b->batch = (int)cmd_int(state, "batch", arg, 1, 256); break;
    case K_REPEAT: b->repeat = (int)cmd_int(state, "repeat", arg, 1, 100), b->measure = "repeat"; break;
    case K_NO_IMAGE: b->no_image = true, b->measure = "no-image"; break;
    case K_PROFILE: b->profile = true, b->measure = "profile"; break;
    case K_PLAN: b->plan = arg; break;
    case ARGP_KEY_ARG: argp_error(state, "unexpected argument '%s'", arg); break;
    case ARGP_KEY_END:
        if (!b->model.model_path == !b->random) argp_error(state, "one of --model-path and --random is needed");
        if (b->model.n_lora) argp_error(state, "bench takes no --lora");
        if (b->plan && unplanned(b)) argp_error(state, "--plan measures nothing: --%s has no use", unplanned(b));
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
    "Measures the vision tower, the time from a picture and 64 tokens to the answer's first, prefill and decode, and "
    "prints one JSON object: milliseconds; tokens, bytes and floating-point operations per second and their shares of "
    "what is read and multiplied at most (measured in the same run); kernels of a step; peak memory. "
    "`llava bench train` measures training (it has a --help of its own).\v"
    "Example:\n  llava bench --random 1b --prompt 640 --gen 64 --dtype bf16\n\n" CMD_EXIT_STATUS,
    children,
    NULL,
    NULL
};

/* The arrays of a step of n tokens. */
struct rows {
    int32_t *token, *pos, *row, *range, *feature, *out, *memory;
    struct choice *choose; /* [ENGINE_SEQS] */
};

static struct rows rows_new(int n)
{
    int32_t *m = calloc((size_t)n * 7, sizeof *m);
    struct choice *choose = calloc(ENGINE_SEQS, sizeof *choose);
    if (!m || !choose) BUG("no memory for %d rows", n);
    return (struct rows){ m, m + n, m + 2 * n, m + 3 * n, m + 5 * n, m + 6 * n, m, choose };
}

/* The prompts of `batch` sequences of n positions, in chunks as large as the engine takes; the cache rows of sequence b
 * start at b * depth. picture: features that the prompts begin with, or p NULL. Waits for the token after the last. */
static void prefill(struct engine *g, struct cache *c, const struct rows *r, int batch, int depth, int n,
                    struct tensor picture)
{
    const int all = batch * n, pictured = picture.p ? (int)picture.n[0] : 0;
    unsigned number = 0;
    for (int from = 0, m; from < all; from += m) {
        m = all - from < g->chunk ? all - from : g->chunk;
        struct step s = { .n = m, .token = r->token, .feature = r->feature, .pos = r->pos, .range = r->range,
                          .row = r->row, .out = r->out, .n_out = 0, .choose = r->choose, .features = &picture,
                          .n_features = pictured > 0 };
        for (int i = 0; i < m; i++) {
            const int b = (from + i) / n, p = (from + i) % n, base = b * depth;
            r->token[i] = p < pictured ? -1 : (p * 7919 + b * 31 + 13) % g->model.cfg.llama.V;
            r->feature[i] = p < pictured ? p : -1;
            r->pos[i] = p;
            r->row[i] = base + p;
            r->range[2 * i] = base;
            r->range[2 * i + 1] = base + p + 1;
            if (p < n - 1) continue;
            r->out[s.n_out] = i;
            r->choose[s.n_out++] = choice_make(0, 0, 1, 0, b);
        }
        number = engine_begin(g, c, &s);
    }
    engine_tokens(g, number);
}

/* One token of every sequence; the next token is the likeliest, as greedy decoding would have it. As in the scheduler,
 * a device is waited for a step behind. The step's number. */
static unsigned decode(struct engine *g, struct cache *c, const struct rows *r, int batch, int depth, int pos)
{
    for (int b = 0; b < batch; b++) {
        r->pos[b] = pos;
        r->row[b] = b * depth + pos;
        r->range[2 * b] = b * depth;
        r->range[2 * b + 1] = b * depth + pos + 1;
    }
    struct step s = { .n = batch, .decode = true, .token = r->token, .feature = r->feature, .pos = r->pos,
                      .range = r->range, .row = r->row, .out = r->out, .n_out = batch, .choose = r->choose };
    const unsigned number = engine_begin(g, c, &s);
    if (!g->dev) memcpy(r->token, engine_tokens(g, number), (size_t)batch * sizeof *r->token);
    return number;
}

/* Before the first step. */
static void decode_begin(const struct engine *g, const struct rows *r, int batch)
{
    for (int b = 0; b < batch; b++) {
        r->out[b] = b;
        r->choose[b] = choice_make(0, 0, 1, 0, b);
        r->token[b] = g->dev ? -2 - b : b + 1; /* of a device: what was chosen before, whatever it is */
    }
}

/* What was measured; times are medians. */
struct figures {
    size_t before, reader; /* peak of the memory before the host's ceiling took its own; how much that is */
    double image_s, first_s, prompt_s, step_s; /* a picture; a picture and FIRST tokens; all prompts; a token of each */
    double read_s, product_s; /* bytes and operations a second that the machine does at most; 0: not measured */
};

/* A picture's random pixels and where its features go; pixels NULL: no memory. */
struct picture_bench {
    float *pixels;
    struct tensor features;
};

static int picture_begin(struct picture_bench *p, struct engine *g, struct err *e)
{
    const size_t side = (size_t)g->model.cfg.clip.image, n = 3 * side * side;
    struct rng rng;
    rng_seed(&rng, 7);
    if (!(p->pixels = malloc(n * sizeof *p->pixels))) return err_set(e, ERR_NOMEM, "no memory for a picture");
    for (size_t i = 0; i < n; i++) p->pixels[i] = (float)rng_normal(&rng);
    p->features = tensor_2d(NULL, engine_act(g), llava_tile_rows(&g->model), g->model.cfg.llama.C);
    return dev_alloc(&p->features.p, g->dev, tensor_bytes(p->features), e);
}

static void picture_end(struct picture_bench *p, struct engine *g)
{
    dev_free(g->dev, p->features.p, tensor_bytes(p->features));
    free(p->pixels);
}

static void see(struct engine *g, const struct picture_bench *p)
{
    engine_encode(g, SIGHT_MODEL, p->pixels, p->features);
    dev_sync(g->dev);
}

/* A picture through the tower; then once more with FIRST tokens behind it, up to the first token of the answer, where
 * the context has room for them. */
enum { FIRST = 64 };
static int first_rows(const struct engine *g)
{
    const int n = g->model.cfg.has_vision ? llava_tile_rows(&g->model) + FIRST : 0;
    return n <= g->chunk ? n : 0;
}

static int time_picture(struct engine *g, struct cache *c, const struct rows *r, int repeat, double *t,
                        struct figures *f, struct err *e)
{
    struct picture_bench p = { 0 };
    int rc = picture_begin(&p, g, e);
    const int n = first_rows(g);
    for (int i = -1; i < repeat && rc >= 0; i++) { /* once to warm up */
        const double from = plat_now_s();
        see(g, &p);
        if (i >= 0) t[i] = plat_now_s() - from;
    }
    if (rc >= 0) f->image_s = median(t, repeat);
    for (int i = -1; i < repeat && rc >= 0 && n; i++) {
        const double from = plat_now_s();
        engine_encode(g, SIGHT_MODEL, p.pixels, p.features);
        prefill(g, c, r, 1, n, n, p.features);
        if (i >= 0) t[i] = plat_now_s() - from, f->first_s = median(t, i + 1);
    }
    picture_end(&p, g);
    return rc;
}

/* The host's ceiling is measured between the steps: other users of a shared machine then slow both alike. */
static void time_decode(const struct bench *b, struct engine *g, struct cache *c, const struct rows *r,
                        const struct cpu_reader *reader, double *t, struct figures *f)
{
    int depth = b->prompt + b->gen;
    double *gb = t + b->gen;
    decode_begin(g, r, b->batch);
    unsigned number = decode(g, c, r, b->batch, depth, b->prompt); /* recorded here, where that is done */
    engine_tokens(g, number);
    decode_begin(g, r, b->batch);
    double from = plat_now_s();
    for (int i = 0; i < b->gen; i++) {
        if (!g->dev) {
            gb[i] = cpu_reader_pass(reader, g->kc.n_threads);
            from = plat_now_s();
        }
        const unsigned last = number;
        number = decode(g, c, r, b->batch, depth, b->prompt + i);
        engine_tokens(g, g->dev ? last : number);
        t[i] = plat_now_s() - from;
        from += t[i];
    }
    engine_tokens(g, number);
    f->step_s = median(t, b->gen);
    if (!g->dev) f->read_s = 1e9 * median(gb, b->gen);
}

static void time_prompt(const struct bench *b, struct engine *g, struct cache *c, const struct rows *r, double *t,
                        struct figures *f)
{
    const struct tensor none = { 0 };
    const int depth = b->prompt + b->gen;
    prefill(g, c, r, b->batch, depth, b->prompt, none); /* warms up */
    for (int i = 0; i < b->repeat; i++) {
        double from = plat_now_s();
        prefill(g, c, r, b->batch, depth, b->prompt, none);
        t[i] = plat_now_s() - from;
    }
    f->prompt_s = median(t, b->repeat);
}

/* Each part once more, kernel by kernel. */
static int profile(const struct bench *b, struct engine *g, struct cache *c, const struct rows *r, struct err *e)
{
    const bool eager = g->eager;
    const int depth = b->prompt + b->gen;
    struct picture_bench p = { 0 };
    struct prof *prof = prof_new(g->dev);
    int rc = prof ? 0 : err_set(e, ERR_NOMEM, "no memory for a profile");
    if (rc >= 0 && !b->no_image && g->model.cfg.has_vision) rc = picture_begin(&p, g, e);
    g->eager = true;
    g->kc.prof = prof;
    if (rc >= 0 && p.pixels) {
        see(g, &p);
        prof_print(prof, stderr, "picture");
    }
    if (rc >= 0) {
        prefill(g, c, r, b->batch, depth, b->prompt, (struct tensor){ 0 });
        prof_print(prof, stderr, "prompt");
        decode_begin(g, r, b->batch);
        engine_tokens(g, decode(g, c, r, b->batch, depth, b->prompt));
        prof_print(prof, stderr, "token");
    }
    g->kc.prof = NULL;
    g->eager = eager;
    if (p.pixels) picture_end(&p, g);
    prof_free(prof);
    return rc;
}

static void print_figures(const struct bench *b, const struct engine *g, const struct figures *f)
{
    double cache = (double)engine_cache_bytes(g) * b->batch * (b->prompt + b->gen / 2.0);
    double bytes = (double)engine_weight_bytes(g) + cache, gb_s = bytes / f->step_s * 1e-9;
    const int bits = g->model.bits ? g->model.bits : 8 * (int)dtype_bytes(g->dtype);
    json_t *o = json_pack("{s:s, s:s, s:s, s:i, s:s, s:i, s:i, s:i, s:i}", "bench", "infer", "model", g->name,
                          "dtype", dtype_name(g->dtype), "bits", bits, "kernels", g->kern.name,
                          "threads", g->kc.n_threads, "prompt", b->prompt, "gen", b->gen, "batch", b->batch);
    const double prompts = (double)b->batch * b->prompt,
                 flop_s = b->batch * prompt_flop(&g->model.cfg.llama, b->prompt) / f->prompt_s;
    const double read = 1e-9 * f->read_s, product = 1e-9 * f->product_s;
    const struct { const char *name; double value; } real[] = { /* 0: not measured */
        { "prefill_tok_s", prompts / f->prompt_s },
        { "prefill_gflops", flop_s * 1e-9 },
        { "ceiling_gflops", product },
        { "prefill_share", product > 0 ? flop_s * 1e-9 / product : 0 },
        { "decode_tok_s", b->batch / f->step_s },
        { "first_token_ms", 1e3 * f->first_s },
        { "bytes_per_step", bytes },
        { "gb_s", gb_s },
        { "ceiling_gb_s", read },
        { "share_of_ceiling", read > 0 ? gb_s / read : 0 },
        { "clip_ms", 1e3 * f->image_s },
        { "clip_gflops", f->image_s > 0 ? picture_flop(&g->model.cfg) / f->image_s * 1e-9 : 0 },
    };
    for (size_t i = 0; i < sizeof real / sizeof *real; i++)
        if (real[i].value > 0) json_object_set_new(o, real[i].name, json_real(real[i].value));
    if (g->dev) json_object_set_new(o, "launches", json_integer(steps_launches(g)));
    const size_t peak = dev_memory_now(g->dev).peak - f->reader; /* which was there all the while */
    json_object_set_new(o, "peak_memory_bytes", json_integer((json_int_t)(peak > f->before ? peak : f->before)));
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
    const int rows = (b->prompt + b->gen) * b->batch, first = b->no_image ? 0 : first_rows(g);
    TRY(cache_init(&c, g, rows > first ? rows : first, e));
    f.before = dev_memory_now(g->dev).peak;
    if (!g->dev) TRY(cpu_reader_init(&reader, e));
    f.reader = reader.mem.cap;
    r = rows_new(g->chunk > b->batch ? g->chunk : b->batch);
    t = malloc((size_t)(b->repeat + 2 * b->gen) * sizeof *t);
    if (!t) TRY(err_set(e, ERR_NOMEM, "no memory for the times"));
    dev_use(g->dev);
    if (g->dev) f.read_s = ceiling_memory(&g->kern, &g->kc);
    if (g->dev) f.product_s = ceiling_product(&g->kern, &g->kc, g->dtype, g->dtype);
    if (g->model.cfg.has_vision && !b->no_image) TRY(time_picture(g, &c, &r, b->repeat, t, &f, e));
    time_prompt(b, g, &c, &r, t, &f);
    time_decode(b, g, &c, &r, &reader, t, &f);
    print_figures(b, g, &f);
    if (b->profile) TRY(profile(b, g, &c, &r, e));
out:
    free(t);
    free(r.memory);
    free(r.choose);
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
    if (b.plan) {
        const struct roofline_options p = { b.plan, b.random, b.model.model_path, b.prompt, b.batch, b.model.context };
        rc = roofline_print(&p, &e);
        return rc < 0 ? cmd_fail(e.msg) : 0;
    }
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
