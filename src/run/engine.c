/* See engine.h. Opening and planning memory. */
#define _GNU_SOURCE
#include "run/step.h"

#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/plat.h"
#include "file/hub.h"
#include "model/fill.h"
#include "run/adapter.h"
#include "tensor/quant.h"
#include "text/conv.h"

enum { CHUNK = 1024, DEVICE_CHUNK = 4096 }; /* tokens of a prefill step: enough to keep matrix products busy */

/* Address space; pages are taken when a kernel touches them. */
enum { SCRATCH_MOST = 1 << 30, SCRATCH_LEAST = 1 << 26 };
/* Of a device: kernels' scratch, and that beside quantised weights, of which some rows at a time become numbers; what
 * the vendor's libraries take beside it. */
enum { DEVICE_SCRATCH = 256 << 20, DEVICE_SCRATCH_QUANT = 64 << 20, DEVICE_LIBRARIES = 256 << 20 };

/* ---- memory */

int cache_init(struct cache *c, const struct engine *g, int rows, struct err *e)
{
    const struct llama_config *l = &g->model.cfg.llama;
    *c = (struct cache){ .rows = rows };
    struct tensor t = tensor_2d(NULL, g->kv_type, rows, (int64_t)l->K * l->D);
    int rc = dev_arena(&c->mem, g->dev, 2 * (size_t)l->L * (tensor_bytes(t) + ARENA_ALIGN), e);
    if (rc < 0) return rc;
    c->layer = calloc((size_t)l->L, sizeof *c->layer);
    if (!c->layer) return err_set(e, ERR_NOMEM, "no memory for a cache");
    if (g->dev) dev_fill(g->dev, c->mem.base, 0, c->mem.cap); /* what is masked is multiplied by 0: no NaN there */
    for (int i = 0; i < l->L; i++) {
        c->layer[i].k = c->layer[i].v = t;
        c->layer[i].k.p = arena_take(&c->mem, tensor_bytes(t));
        c->layer[i].v.p = arena_take(&c->mem, tensor_bytes(t));
    }
    return 0;
}

void cache_fini(struct cache *c)
{
    free(c->layer);
    arena_fini(&c->mem);
    *c = (struct cache){ 0 };
}

static int64_t part_bytes(const struct engine *g, bool llama_only);

int64_t engine_weight_bytes(const struct engine *g) { return part_bytes(g, true); }

int64_t engine_cache_bytes(const struct engine *g)
{
    const struct llama_config *l = &g->model.cfg.llama;
    return 2 * (int64_t)l->L * (int64_t)dtype_row_bytes(g->kv_type, (int64_t)l->K * l->D);
}

struct sum {
    int64_t bytes;
    bool decode_only; /* what a decode step reads: matrices but the embedding, of which it reads a row */
};

static int add_bytes(void *ctx, const struct bind_row *r, struct err *e)
{
    (void)e;
    struct sum *s = ctx;
    if (s->decode_only && (r->part != PART_LLAMA || !strcmp(r->name, "model.embed_tokens.weight"))) return 0;
    if (r->param->w.p) s->bytes += (int64_t)tensor_bytes(r->param->w);
    return 0;
}

static int64_t part_bytes(const struct engine *g, bool decode_only)
{
    struct sum s = { 0, decode_only };
    struct llava_model *m = (struct llava_model *)&g->model; /* the walk hands out pointers; this one only reads */
    llava_each(m, add_bytes, &s, NULL);
    if (decode_only && m->cfg.llama.tied) s.bytes += (int64_t)tensor_bytes(m->llama.embed.w);
    return s.bytes;
}

/* ---- faults in weights */

/* n elements of t from `at` on, as f32; of a quantised t whole rows. `raw` holds n elements of any type. */
static void values_from(const struct engine *g, float *out, struct tensor t, int64_t at, int64_t n, void *raw)
{
    enum dtype type = (enum dtype)t.type;
    const int64_t cols = tensor_cols(t);
    for (int64_t i = 0; dtype_is_quant(type) && i < n; i += cols) {
        dev_get(g->dev, raw, tensor_row(t, (at + i) / cols), dtype_row_bytes(type, cols));
        dequant_row(out + i, type, raw, cols);
    }
    if (dtype_is_quant(type)) return;
    dev_get(g->dev, raw, (char *)t.p + (size_t)at * dtype_bytes(type), (size_t)n * dtype_bytes(type));
    dtype_convert(out, DT_F32, raw, type, n);
}

void engine_values(const struct engine *g, float *out, struct tensor t)
{
    enum { PIECE = 8192 };
    double raw[PIECE];
    for (int64_t at = 0, n = tensor_count(t); at < n; at += PIECE)
        values_from(g, out + at, t, at, n - at < PIECE ? n - at : PIECE, raw);
}

static int find_nan(void *ctx, const struct bind_row *r, struct err *e)
{
    enum { PIECE = 1 << 20 };
    const struct engine *g = ctx;
    struct tensor t = r->param->w;
    int64_t n = t.p ? tensor_count(t) : 0;
    const int64_t cols = n ? tensor_cols(t) : 1, piece = cols < PIECE ? PIECE / cols * cols : cols; /* whole rows */
    float *v = malloc((size_t)piece * sizeof *v);
    double *raw = malloc((size_t)piece * sizeof *raw);
    int rc = v && raw ? 0 : err_set(e, ERR_NOMEM, "no memory to look for '%s'", r->name);
    for (int64_t at = 0; at < n && rc == 0; at += piece) {
        int64_t k = n - at < piece ? n - at : piece;
        values_from(g, v, t, at, k, raw);
        for (int64_t i = 0; i < k && rc == 0; i++)
            if (!isfinite(v[i]))
                rc = err_set(e, ERR_FORMAT, "tensor '%s' of '%s' holds %s at element %lld", r->name, g->name,
                             isnan(v[i]) ? "NaN" : "infinity", (long long)(at + i));
    }
    free(v), free(raw);
    return rc;
}

int engine_blame(struct engine *g, struct err *e)
{
    int rc = llava_each(&g->model, find_nan, g, e);
    return rc < 0 ? rc : err_set(e, ERR_FORMAT, "the model '%s' gives numbers that are not finite", g->name);
}

/* ---- opening */

/* "auto" leaves the choice to the model. */
static int read_dtype(enum dtype *ret, bool *chosen, const char *name, struct err *e)
{
    *ret = DT_BF16;
    *chosen = !name || !strcmp(name, "auto");
    if (*chosen || (dtype_find(name, ret) >= 0 && (*ret == DT_F32 || *ret == DT_F16 || *ret == DT_BF16))) return 0;
    return err_set(e, ERR_USAGE, "dtype '%s' is not one of auto, f32, bf16, f16", name);
}

/* The cache's type; "auto" is decided when the model is known. */
static int read_kv_dtype(struct engine *g, const char *name, struct err *e)
{
    g->kv_auto = !name || !strcmp(name, "auto");
    if (g->kv_auto) return 0;
    if (!strcmp(name, "q8")) g->kv_type = DT_Q8;
    else if (dtype_find(name, &g->kv_type) < 0 ||
             (g->kv_type != DT_F32 && g->kv_type != DT_BF16 && g->kv_type != DT_F16))
        return err_set(e, ERR_USAGE, "kv dtype '%s' is not one of auto, f32, bf16, f16, q8", name);
    return 0;
}

/* 8 bits beside quantised weights, where the fast kernels read them; else as everything else. */
static enum dtype choose_kv_dtype(const struct engine *g)
{
    if (!g->kv_auto) return g->kv_type;
    return g->model.bits && !g->exact && g->model.cfg.llama.D % 16 == 0 ? DT_Q8 : g->model.dtype;
}

/* dtype and bits of a model that is opened or made. */
static int read_precision(struct engine *g, struct llava_source *s, const struct engine_options *o, struct err *e)
{
    int rc = read_dtype(&s->dtype, &s->auto_dtype, o->dtype, e);
    if (rc >= 0 && o->load_8bit && o->load_4bit)
        rc = err_set(e, ERR_USAGE, "a model is loaded in 8 bits or in 4, not in both");
    s->bits = o->load_4bit ? 4 : o->load_8bit ? 8 : 0;
    g->exact = !s->auto_dtype && s->dtype == DT_F32;
    return rc < 0 ? rc : read_kv_dtype(g, o->kv_dtype, e);
}

/* For the loops outside of kernels too: converting and merging while loading. */
static int set_threads(int threads)
{
    int n = threads > 0 ? plat_threads_startable(threads) : plat_threads();
    omp_set_num_threads(n);
    return n;
}

/* The device's; of the host's processor the best that it has, or what LLAVA_CPU asks for. */
static int choose_kernels(struct engine *g, struct err *e)
{
    const char *want = env_get(ENV_LLAVA_CPU);
    if (want && strcmp(want, "ref") && strcmp(want, "avx2") && strcmp(want, "avx512"))
        return err_set(e, ERR_USAGE, "LLAVA_CPU is '%s', not one of ref, avx2, avx512", want);
    int rc = kern_init(&g->kern, g->dev, want, e);
    if (rc >= 0 && !g->dev && want && strcmp(want, g->kern.name) != 0)
        log_warn("this processor has no %s, kernels are %s", want, g->kern.name);
    return rc;
}

/* What follows from the model's configuration. */
static int sizes(struct engine *g, struct err *e)
{
    int most = g->model.cfg.llama.max_pos;
    if (g->context > most)
        return err_set(e, ERR_USAGE, "a context of %d is more than the %d positions that '%s' knows", g->context, most,
                       g->name);
    if (!g->context) g->context = most;
    const int chunk = g->dev ? DEVICE_CHUNK : CHUNK;
    g->chunk = g->context < chunk ? g->context : chunk;
    g->dtype = g->model.dtype;
    g->kv_type = choose_kv_dtype(g);
    return 0;
}

static size_t device_scratch(const struct engine *g) { return g->model.bits ? DEVICE_SCRATCH_QUANT : DEVICE_SCRATCH; }

/* GB that parameters of so many bytes, adapters and one conversation take of a device. */
static int needed(double *ret, struct engine *g, size_t weights, struct err *e)
{
    size_t act;
    int rc = steps_plan(g, &act, e);
    if (rc < 0) return rc;
    const size_t rope = (size_t)g->context * (size_t)g->model.cfg.llama.D * sizeof(float);
    const size_t cache = (size_t)g->context * (size_t)engine_cache_bytes(g);
    *ret = 1e-9 * (double)(weights + adapters_bytes(g) + act + rope + cache + device_scratch(g) + DEVICE_LIBRARIES);
    return 0;
}

/* A precision that may be asked for instead of a larger one. */
struct precision {
    int bits;
    size_t bytes; /* of the parameters in it */
};

static int add_precision(void *ctx, const struct bind_row *r, struct err *e)
{
    (void)e;
    struct precision *p = ctx;
    struct tensor t = r->param->w;
    if (!t.p) return 0;
    if (t.type == DT_F32 && (r->flags & BIND_DECAY)) t.type = DT_BF16;
    if (p->bits < 16) t.type = (int8_t)bind_quant(r, p->bits, (enum dtype)t.type);
    p->bytes += tensor_bytes(t) + ARENA_ALIGN;
    return 0;
}

/* Too little: how much is missing, and what would do. g can only be closed then: it becomes what is tried. */
static int refuse(struct engine *g, double need, double have, struct err *e)
{
    char use[96] = "";
    const int first = g->model.bits;
    const int now = first ? first : 8 * (int)dtype_bytes(g->dtype);
    const enum dtype type = g->dtype;
    for (int bits = 16; bits >= 4 && !*use; bits /= 2) {
        struct precision p = { .bits = bits };
        double then;
        if (bits >= now) continue;
        llava_each(&g->model, add_precision, &p, NULL);
        g->exact = false;
        g->model.bits = bits < 16 ? bits : 0;
        if (g->dtype == DT_F32) g->dtype = g->model.dtype = DT_BF16;
        g->kv_type = choose_kv_dtype(g);
        int rc = needed(&then, g, p.bytes, e);
        if (rc < 0) return rc;
        if (then <= have || bits == 4)
            snprintf(use, sizeof use, "; in %d bits it would be %.1f GB%s", bits, then,
                     then > have ? ", too much as well" : "");
    }
    return err_set(e, ERR_NOMEM,
                   "'%s' in %s with a context of %d needs %.1f GB and '%s' has %.1f GB free: %.1f GB are missing%s",
                   g->name, first == 8 ? "8 bits" : first == 4 ? "4 bits" : dtype_name(type), g->context, need,
                   dev_name(g->dev), have, need - have, use);
}

/* Is there room for `weights` bytes of parameters and all that a conversation needs? Asked before memory is taken. */
static int admit(void *ctx, size_t weights, struct err *e)
{
    struct engine *g = ctx;
    double need;
    int rc = sizes(g, e);
    if (rc < 0 || !g->dev) return rc;
    if ((rc = needed(&need, g, weights, e)) < 0) return rc;
    double have = 1e-9 * (double)dev_memory_now(g->dev).free;
    return need <= have ? 0 : refuse(g, need, have, e);
}

static int scratch_init(struct engine *g, struct err *e)
{
    int rc;
    if (g->dev) return dev_arena(&g->scratch, g->dev, device_scratch(g), e);
    for (size_t bytes = SCRATCH_MOST; (rc = arena_init(&g->scratch, bytes, e)) < 0; bytes /= 2)
        if (bytes == SCRATCH_LEAST) return err_prefix(e, "kernels' scratch memory");
    return rc;
}

/* The device and its kernels: before the model, whose parameters go there. */
static int engine_new(struct engine **ret, const struct engine_options *o, struct err *e)
{
    struct engine *g = calloc(1, sizeof *g);
    *ret = g;
    if (!g) return err_set(e, ERR_NOMEM, "no memory for an engine");
    g->context = o->context;
    g->kc = (struct kctx){ .scratch = &g->scratch, .n_threads = set_threads(o->threads) };
    int rc = dev_open(&g->dev, o->device, e);
    if (rc < 0) return rc;
    g->kc.dev = g->dev;
    if (g->dev) log_info("running on %s, %s", dev_name(g->dev), dev_model(g->dev));
    return choose_kernels(g, e);
}

/* Memory for steps, once the model is there. */
static int engine_finish(struct engine *g, struct err *e)
{
    size_t act;
    int rc;
    TRY(sizes(g, e));
    g->kc.product = g->exact ? DT_F32 : g->model.bits ? DT_Q8 : g->dtype == DT_BF16 ? DT_BF16 : DT_F32;
    TRY(scratch_init(g, e));
    TRY(steps_plan(g, &act, e));
    TRY(dev_arena(&g->act, g->dev, act, e));
    TRY(llava_model_context(&g->model, g->context, e));
    TRY(steps_open(g, e));
    size_t logits = sizeof(float) * ENGINE_SEQS * (size_t)g->model.cfg.llama.V;
    if (g->dev) TRY(dev_pinned((void **)&g->logits, g->dev, logits, e));
out:
    return rc;
}

static int locate_tower(char **dir, const char *name, struct err *e) { return hub_find(dir, name, NULL, e); }

/* The picture processor of the model's folder, of its base's, or of the tower's. */
static int load_processor(struct engine *g, const char *base, struct err *e)
{
    const struct llava_config *c = &g->model.cfg;
    static const char *const files[] = { "preprocessor_config.json", "processor_config.json" };
    const char *dirs[] = { g->dir, base, g->model.clip_dir };
    for (int d = 0; d < 3; d++)
        for (int f = 0; f < 2 && dirs[d]; f++) {
            char path[4096];
            snprintf(path, sizeof path, "%s/%s", dirs[d], files[f]);
            int rc = clip_processor_load(&g->proc, path, e);
            if (rc < 0) return rc;
            if (rc > 0) continue;
            if (g->proc.crop_w != c->clip.image || g->proc.crop_h != c->clip.image)
                return err_set(e, ERR_SHAPE, "'%s' makes pictures of %dx%d, the vision tower reads %dx%d", path,
                               g->proc.crop_w, g->proc.crop_h, c->clip.image, c->clip.image);
            return 0;
        }
    clip_processor_default(&g->proc, c->clip.image);
    return 0;
}

/* Name of a folder as the reference takes it: its last part, with the parent for checkpoint-N. */
static char *name_of(const char *path)
{
    char *copy = strdup(path), *out = NULL;
    if (!copy) return NULL;
    size_t n = strlen(copy);
    while (n > 1 && copy[n - 1] == '/') copy[--n] = 0;
    char *last = strrchr(copy, '/');
    if (last && !strncmp(last + 1, "checkpoint-", 11)) {
        *last = 0;
        char *parent = strrchr(copy, '/');
        if (asprintf(&out, "%s_%s", parent ? parent + 1 : copy, last + 1) < 0) out = NULL;
    } else {
        out = strdup(last ? last + 1 : copy);
    }
    free(copy);
    return out;
}

/* Adds the tokens that LLaVA's builder adds when the config asks for them. */
static int add_image_tokens(struct engine *g, struct err *e)
{
    const struct llava_config *c = &g->model.cfg;
    if (!c->has_vision || c->hf_layout) return 0;
    static const char *const names[] = { "<im_patch>", "<im_start>", "<im_end>" };
    for (int i = 0; i < 3; i++)
        if (i ? c->im_start_end : c->im_patch) {
            int32_t id = tokenizer_add(g->tok, names[i], true, e);
            if (id < 0) return id;
        }
    return 0;
}

static int load_text(struct engine *g, const char *base_dir, struct err *e)
{
    struct err first = { 0 };
    int rc = tokenizer_open(&g->tok, g->dir, &first);
    if (rc == ERR_MISSING && base_dir) rc = tokenizer_open(&g->tok, base_dir, e);
    else if (rc < 0 && e) *e = first;
    if (rc >= 0) rc = add_image_tokens(g, e);
    if (rc < 0) return rc;
    const struct conv_template *t = conv_pick(g->name, CONV_CLI);
    if (g->model.cfg.mistral && !strstr(g->name, "istral")) t = conv_find("mistral_instruct");
    else if (!strcasestr(g->name, "v0") && t == conv_find("llava_v0")) t = conv_find("llava_v1");
    g->conversation = t->name;
    return 0;
}

int engine_open(struct engine **ret, const struct engine_options *o, struct err *e)
{
    struct engine *g = NULL;
    char *base = NULL;
    int rc;
    *ret = NULL;
    TRY(engine_new(&g, o, e));
    TRY(hub_find(&g->dir, o->path, NULL, e));
    if (o->base) TRY(hub_find(&base, o->base, NULL, e));
    g->name = o->name ? strdup(o->name) : name_of(o->path);
    if (!g->name) TRY(err_set(e, ERR_NOMEM, "no memory for a name"));
    struct llava_source s = { .path = g->dir, .base = base, .clip_path = o->tower, .locate = locate_tower,
                              .dev = g->dev, .kern = &g->kern, .kc = &g->kc, .admit = admit, .ctx = g };
    TRY(read_precision(g, &s, o, e));
    TRY(adapters_find(g, o->lora, o->n_lora, e));
    s.sees_as = adapters_sight(g);
    TRY(llava_model_open(&g->model, &s, e));
    if (g->model.cfg.has_vision) TRY(load_processor(g, base, e));
    TRY(load_text(g, base, e));
    TRY(adapters_open(g, e));
    TRY(engine_finish(g, e));
    *ret = g;
    g = NULL;
out:
    free(base);
    engine_close(g);
    return rc;
}

int engine_random(struct engine **ret, const char *preset, const struct engine_options *o, struct err *e)
{
    struct engine *g = NULL;
    struct llava_config cfg;
    int rc;
    *ret = NULL;
    TRY(engine_new(&g, o, e));
    struct llava_source s = { .dev = g->dev, .kern = &g->kern, .kc = &g->kc, .admit = admit, .ctx = g };
    TRY(llava_config_preset(&cfg, preset, e));
    TRY(read_precision(g, &s, o, e));
    if (!(g->name = strdup(preset))) TRY(err_set(e, ERR_NOMEM, "no memory for a name"));
    TRY(llava_model_random(&g->model, &cfg, &s, 1, e));
    clip_processor_default(&g->proc, cfg.clip.image);
    TRY(engine_finish(g, e));
    *ret = g;
    g = NULL;
out:
    engine_close(g);
    return rc;
}

int engine_plan(size_t *ret, const struct llava_model *m, enum dtype dtype, int context, struct err *e)
{
    struct engine g = { .model = *m, .dtype = dtype, .kv_type = dtype, .context = context };
    g.chunk = context < CHUNK ? context : CHUNK;
    kern_init_cpu(&g.kern, env_get(ENV_LLAVA_CPU));
    int rc = steps_plan(&g, ret, e);
    *ret += (size_t)context * (size_t)m->cfg.llama.D * sizeof(float);
    return rc;
}

void engine_close(struct engine *g)
{
    if (!g) return;
    steps_close(g);
    adapters_close(g);
    llava_model_close(&g->model);
    tokenizer_close(g->tok);
    arena_fini(&g->act);
    arena_fini(&g->scratch);
    dev_pinned_free(g->dev, g->logits);
    dev_close(g->dev);
    free(g->dir);
    free(g->name);
    free(g);
}
