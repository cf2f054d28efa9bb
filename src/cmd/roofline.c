/* See roofline.h. */
#include "cmd/roofline.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/llava.h"

/* A card: memory in GB, what its memory and its matrix units (bf16, else f16; without sparsity, sums in f32) do at
 * most. The makers' data sheets: NVIDIA H100/H200 SXM, A100 80GB SXM, A100 40GB PCIe, L40S, A10, L4, T4, RTX 4090 and
 * RTX 3090 (Ada and Ampere GA102 white papers); AMD Instinct MI50, MI100, MI210, MI250X (one of its two dies), MI300X.
 * Hygon publishes none: K100_AI and BW1000 are from DCU-bench.md of wangzy0327/hblas-bench, K100 from the table of
 * cards in FlyAIBox/dcu-in-action. */
static const struct card {
    const char *name;
    double gb, gb_s, tflops;
} cards[] = {
    { "cuda:h100", 80, 3350, 989 },    { "cuda:h200", 141, 4800, 989 },  { "cuda:a100", 80, 2039, 312 },
    { "cuda:a100_40", 40, 1555, 312 }, { "cuda:l40s", 48, 864, 362 },    { "cuda:a10", 24, 600, 125 },
    { "cuda:l4", 24, 300, 121 },       { "cuda:t4", 16, 320, 65 },       { "cuda:rtx4090", 24, 1008, 165 },
    { "cuda:rtx3090", 24, 936, 71 },   { "hip:k100_ai", 64, 896, 196 },  { "hip:k100", 64, 768, 100 },
    { "hip:bw1000", 64, 1600, 480 },   { "hip:mi50", 32, 1024, 26.5 },   { "hip:mi100", 32, 1229, 184.6 },
    { "hip:mi210", 64, 1638, 181 },    { "hip:mi250x", 64, 1638, 191 },  { "hip:mi300x", 192, 5300, 1307 },
};

enum { TEXT = 64 };                   /* tokens behind the picture whose answer's first token is waited for */
static const double REST = 0.8;       /* GB of activations, kernels' scratch and the vendor's libraries */
static const double GROUP_BITS = 0.25; /* of a quantised weight, for its group's scale */

/* What the walk over a model's rows adds up: elements. */
struct amounts {
    double linear, q8, other;                /* by what quantising does to them */
    double read_linear, read_q8, read_other; /* of them, those that a decode step reads */
    struct llava_model model;
    struct llava_config cfg; /* the model's, which is empty again when its opening has ended */
};

static int add(void *ctx, const struct bind_row *r, struct err *e)
{
    (void)e;
    struct amounts *a = ctx;
    if (!r->param->w.p && (r->flags & BIND_OPTIONAL)) return 0;
    double n = 1;
    for (int i = 0; i < r->nd; i++) n *= (double)r->shape[i];
    const bool embed = !strcmp(r->name, "model.embed_tokens.weight");
    const bool read = r->part == PART_LLAMA && (!embed || a->model.cfg.llama.tied);
    double *all = r->flags & BIND_LINEAR ? &a->linear : r->flags & BIND_Q8 ? &a->q8 : &a->other;
    double *decode = r->flags & BIND_LINEAR ? &a->read_linear : r->flags & BIND_Q8 ? &a->read_q8 : &a->read_other;
    *all += n;
    if (read) *decode += n;
    return 0;
}

/* Asked when shapes are known and before memory is taken: the opening ends here. */
static int look(void *ctx, size_t bytes, struct err *e)
{
    (void)bytes;
    struct amounts *a = ctx;
    a->cfg = a->model.cfg;
    int rc = llava_each(&a->model, add, a, e);
    return rc < 0 ? rc : err_set(e, ERR_MISSING, "the plan is made");
}

static int amounts_of(struct amounts *a, const struct roofline_options *o, struct err *e)
{
    struct llava_source s = { .path = o->path, .auto_dtype = true, .dtype = DT_BF16, .admit = look, .ctx = a };
    int rc = 0;
    if (o->random) rc = llava_config_preset(&a->model.cfg, o->random, e);
    if (rc < 0) return rc;
    const struct llava_config cfg = a->model.cfg;
    rc = o->random ? llava_model_random(&a->model, &cfg, &s, 1, e) : llava_model_open(&a->model, &s, e);
    return a->linear > 0 ? 0 : rc < 0 ? rc : err_set(e, ERR_FORMAT, "'%s' has no linears", o->path);
}

double prompt_flop(const struct llama_config *l, int n)
{
    double lin = (double)l->L * (2.0 * l->C * l->H * l->D + 2.0 * l->C * l->K * l->D + 3.0 * l->C * l->F);
    return 2 * lin * n + 2.0 * l->C * l->V + 2.0 * l->L * l->H * l->D * (double)n * n;
}

double picture_flop(const struct llava_config *v)
{
    const struct clip_config *c = &v->clip;
    double t = clip_patches(c) + 1, used = clip_layers_used(c, v->select_layer);
    return used * (2 * t * (4.0 * c->C * c->C + 2.0 * c->C * c->F) + 4.0 * t * t * c->C);
}

static double most(double a, double b) { return a > b ? a : b; }

static void print_bits(const struct card *card, const struct roofline_options *o, const struct amounts *a, int bits)
{
    const struct llava_config *c = &a->cfg;
    const struct llama_config *l = &c->llama;
    const double linear = bits == 16 ? 2 : (bits + GROUP_BITS) / 8, q8 = bits == 16 ? 2 : (8 + GROUP_BITS) / 8;
    const double weights = a->linear * linear + a->q8 * q8 + a->other * 2;
    const double read = a->read_linear * linear + a->read_q8 * q8 + a->read_other * 2;
    const double row = 2.0 * l->L * l->K * l->D * q8; /* of a position in the cache */
    const int context = o->context ? o->context : l->max_pos;
    const double need = 1e-9 * (weights + row * most(context, (double)o->batch * o->prompt)) + REST;
    const double gb_s = card->gb_s * 1e9, flop_s = card->tflops * 1e12;
    const double cache = row * o->prompt, per_token = prompt_flop(l, 1);
    const double step = most((read + cache * o->batch) / gb_s, per_token * o->batch / flop_s);
    const int first = (c->has_vision ? clip_patches(&c->clip) : 0) + TEXT;
    double first_s = most(prompt_flop(l, first) / flop_s, read / gb_s);
    if (c->has_vision) first_s += picture_flop(c) / flop_s;
    const double prompt_s = most(prompt_flop(l, o->prompt) / flop_s, read / gb_s);
    json_t *j = json_pack("{s:s, s:s, s:s, s:i, s:i, s:i, s:i}", "bench", "plan", "card", card->name, "model",
                          o->random ? o->random : o->path, "bits", bits, "prompt", o->prompt, "batch", o->batch,
                          "context", context);
    const struct { const char *name; double value; } real[] = {
        { "memory_gb", need },
        { "card_gb", card->gb },
        { "missing_gb", most(need - card->gb, 0) },
        { "decode_tok_s", o->batch / step },
        { "prefill_tok_s", o->prompt / prompt_s },
        { "first_token_ms", 1e3 * first_s },
    };
    for (size_t i = 0; i < sizeof real / sizeof *real; i++)
        json_object_set_new(j, real[i].name, json_real(real[i].value));
    json_object_set_new(j, "fits", json_boolean(need <= card->gb));
    char *line = json_dumps(j, JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(5));
    if (line) puts(line);
    free(line);
    json_decref(j);
}

static const struct card *find(const char *name, struct err *e)
{
    char all[512] = "";
    for (size_t i = 0; i < sizeof cards / sizeof *cards; i++) {
        if (!strcmp(cards[i].name, name)) return &cards[i];
        snprintf(all + strlen(all), sizeof all - strlen(all), "%s%s", i ? ", " : "", cards[i].name);
    }
    err_set(e, ERR_USAGE, "no card '%s' in the table (there are %s)", name, all);
    return NULL;
}

int roofline_print(const struct roofline_options *o, struct err *e)
{
    const struct card *card = find(o->card, e);
    if (!card) return ERR_USAGE;
    struct amounts *a = calloc(1, sizeof *a);
    if (!a) return err_set(e, ERR_NOMEM, "no memory for a plan");
    int rc = amounts_of(a, o, e);
    const int most = o->context ? o->context : a->cfg.llama.max_pos;
    if (rc >= 0 && o->prompt > most)
        rc = err_set(e, ERR_LIMIT, "a prompt of %d positions is more than the context of %d", o->prompt, most);
    for (int bits = 16; bits >= 4 && rc >= 0; bits /= 2) print_bits(card, o, a, bits);
    llava_model_close(&a->model);
    free(a);
    return rc;
}
