/* See trainee.h. The order of decisions is that of train() in llava/train/train.py. */
#include "train/trainee.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/hash.h"
#include "base/log.h"
#include "base/rng.h"
#include "file/hub.h"
#include "model/load.h"
#include "text/conv.h"

/* ---- opening */

static int locate(char **dir, const char *name, struct err *e) { return hub_find(dir, name, NULL, e); }

/* A weight of --random_start: matrices normal with deviation 0.7 / sqrt(inputs), which keeps the size of what goes
 * through; embeddings and lm_head with 0.02, as transformers draws them. Norms are 1 and biases 0 already. */
static int draw(void *ctx, const struct bind_row *r, struct err *e)
{
    const struct tensor w = r->param->w;
    const bool table = strstr(r->name, "embed_tokens") || strstr(r->name, "lm_head") ||
                       strstr(r->name, "class_embedding") || strstr(r->name, "position_embedding");
    const double size = table ? 0.02 : 0.7 / sqrt((double)tensor_cols(w));
    const int64_t n = tensor_count(w);
    if (w.nd != 2 || !w.p) return 0;
    float *f = malloc((size_t)n * sizeof *f);
    if (!f) return err_set(e, ERR_NOMEM, "no memory for '%s'", r->name);
    for (int64_t i = 0; i < n; i++) f[i] = (float)(size * rng_normal(ctx));
    dtype_convert(w.p, (enum dtype)w.type, f, DT_F32, n);
    free(f);
    return 0;
}

/* A model of the shapes in config.json, which must have all of it: the tower's are not looked for elsewhere. */
static int open_random(struct trainee *t, const struct train_args *a, struct err *e)
{
    static const char *const no[] = { "vision_tower", "pretrain_mm_mlp_adapter" };
    const struct llava_source s = { .dtype = t->dtype };
    struct llava_config c;
    struct rng r;
    int rc;
    for (size_t i = 0; i < sizeof no / sizeof *no; i++)
        if (train_args_given(a, no[i]))
            return err_set(e, ERR_USAGE, "--random_start True draws all weights: --%s has no use", no[i]);
    if (a->bits != 16) return err_set(e, ERR_USAGE, "--random_start True trains all weights: --bits has no use");
    TRY(llava_config_load(&c, t->dir, e));
    if (c.has_vision && !c.has_clip)
        TRY(err_set(e, ERR_MISSING, "'%s/config.json' has no \"vision_config\": --random_start True wants the shapes "
                    "of the vision tower in it", t->dir));
    TRY(llava_model_random(&t->model, &c, &s, 1, e));
    rng_seed(&r, (uint64_t)a->seed);
    TRY(llava_each(&t->model, draw, &r, e));
out:
    return rc;
}

/* What the arguments say of tower and projector; of a LLaVA c what they don't say is as it is. */
static int read_vision(struct llava_vision *v, const struct train_args *a, const struct llava_config *c, struct err *e)
{
    *v = (struct llava_vision){
        .tower = a->vision_tower, .seed = (uint64_t)a->seed, .projector = a->pretrain_mm_mlp_adapter,
        .select_layer = (int)a->mm_vision_select_layer,
        .select_cls = !strcmp(a->mm_vision_select_feature, "cls_patch"),
        .merge = !strcmp(a->mm_patch_merge_type, "flat") ? MERGE_FLAT
               : !strcmp(a->mm_patch_merge_type, "spatial") ? MERGE_SPATIAL : MERGE_UNPAD,
    };
    const int rc = train_args_projector(a->mm_projector_type, &v->n_projector, e);
    if (rc < 0 || !c->has_vision) return rc;
    if (!train_args_given(a, "mm_projector_type")) v->n_projector = c->n_projector;
    if (!train_args_given(a, "mm_vision_select_layer")) v->select_layer = c->select_layer;
    if (!train_args_given(a, "mm_vision_select_feature")) v->select_cls = c->select_cls;
    return 0;
}

static int open_model(struct trainee *t, const struct train_args *a, struct err *e)
{
    struct llava_vision v;
    struct llava_source s = { .path = t->dir, .locate = locate, .dtype = t->dtype, .linears_only = true,
                              .bits = t->bits, .keep_dtype = t->card };
    struct llava_config c;
    if (a->random_start) return open_random(t, a, e);
    if (model_has_file(t->dir, "adapter_config.json"))
        return err_set(e, ERR_USAGE, "'%s' is an adapter: merge it into its base first (llava merge)", t->dir);
    int rc = llava_config_load(&c, t->dir, e);
    if (rc < 0) return rc;
    const bool sees = a->vision_tower || c.has_vision; /* a LLaVA brings its tower */
    s.vision = sees ? &v : NULL;
    if (!sees && (a->pretrain_mm_mlp_adapter || a->tune_mm_mlp_adapter || a->unfreeze_mm_vision_tower))
        return err_set(e, ERR_USAGE, "--%s needs --vision_tower",
                       a->pretrain_mm_mlp_adapter ? "pretrain_mm_mlp_adapter"
                       : a->tune_mm_mlp_adapter   ? "tune_mm_mlp_adapter" : "unfreeze_mm_vision_tower");
    rc = read_vision(&v, a, &c, e);
    if (rc >= 0) rc = llava_model_open(&t->model, &s, e);
    return rc;
}

/* By names, shapes and first bytes of all tensors in the files. */
static uint64_t fingerprint(const struct llava_model *m)
{
    enum { FIRST = 256 };
    uint64_t sum = 0;
    for (int i = 0; i < m->n_weights; i++)
        for (size_t k = 0; k < weights_count(m->weights[i]); k++) {
            const struct weight *w = weights_at(m->weights[i], k);
            const size_t bytes = tensor_bytes(w->t);
            struct hash h;
            char hex[65];
            hash_init(&h, HASH_SHA256);
            hash_add(&h, w->name, strlen(w->name) + 1);
            hash_add(&h, &w->t.type, sizeof w->t.type);
            hash_add(&h, w->t.n, sizeof w->t.n);
            hash_add(&h, w->t.p, bytes < FIRST ? bytes : FIRST);
            hash_hex(&h, hex);
            hex[16] = 0;
            sum += strtoull(hex, NULL, 16);
        }
    return sum;
}

/* The template that --version names; LLaVA knows "v0" and "v0.5" as well, which leave its default, and falls back to
 * vicuna_v1 where a name is unknown. */
static const struct conv_template *find_template(const char *version)
{
    const bool old = !strcmp(version, "v0") || !strcmp(version, "v0.5");
    const struct conv_template *t = old ? NULL : conv_find(version);
    if (!t && !old) log_warn("no conversation template '%s': prompts are those of vicuna_v1, as in LLaVA", version);
    return t ? t : conv_find("vicuna_v1");
}

/* A padding token: for "v0" a new "[PAD]" where there is none; else <unk>, whose id LLaVA drops from every text. */
static int open_tokenizer(struct trainee *t, const struct train_args *a, struct err *e)
{
    int rc = tokenizer_open(&t->tokenizer, t->dir, e);
    if (rc < 0) return rc;
    const struct tokenizer_info *info = tokenizer_info(t->tokenizer);
    int32_t pad = info->pad;
    if (strcmp(a->version, "v0") != 0) pad = info->unk;
    else if (pad < 0) pad = tokenizer_add(t->tokenizer, "[PAD]", true, e);
    if (pad == ERR_NOMEM || pad == ERR_LIMIT) return pad;
    static const char *const names[] = { "<im_patch>", "<im_start>", "<im_end>" };
    for (int i = 0; i < 3 && t->model.cfg.has_vision; i++)
        if (i ? a->mm_use_im_start_end : a->mm_use_im_patch_token) {
            const int32_t id = tokenizer_add(t->tokenizer, names[i], true, e);
            if (id < 0) return id;
        }
    t->tpl = find_template(a->version);
    t->recipe.text = (struct supervise){ .tokenizer = t->tokenizer, .tpl = t->tpl,
                                         .im_start_end = a->mm_use_im_start_end && t->model.cfg.has_vision,
                                         .max_length = (size_t)a->model_max_length };
    t->recipe.pad = pad;
    return 0;
}

/* Pictures: the tower's own preprocessing, else the model's, else CLIP's. */
static int open_pictures(struct trainee *t, const struct train_args *a, struct err *e)
{
    const struct llava_config *c = &t->model.cfg;
    const char *dirs[] = { t->model.clip_dir, t->dir };
    struct recipe *r = &t->recipe;
    r->image_folder = a->image_folder;
    r->vision = c->has_vision;
    if (!c->has_vision) return 0;
    r->side = c->clip.image;
    r->rows = llava_tile_rows(&t->model);
    clip_processor_default(&r->proc, r->side);
    for (int i = 0; i < 2; i++) {
        char path[4096];
        if (!dirs[i] || !model_has_file(dirs[i], "preprocessor_config.json")) continue;
        snprintf(path, sizeof path, "%s/preprocessor_config.json", dirs[i]);
        const int rc = clip_processor_load(&r->proc, path, e);
        if (rc < 0) return rc;
        if (r->proc.crop_w == r->side && r->proc.crop_h == r->side) break;
        return err_set(e, ERR_SHAPE, "'%s' makes pictures of %dx%d, the vision tower reads %dx%d", path, r->proc.crop_w,
                       r->proc.crop_h, r->side, r->side);
    }
    const int rc = aspect_parse(&r->aspect, a->image_aspect_ratio, e);
    if (rc >= 0 && r->aspect == ASPECT_ANYRES)
        log_warn("--image_aspect_ratio anyres: pictures are squares while training, as in LLaVA's, though the result's "
                 "config.json has them cut in tiles");
    return rc;
}

/* ---- rows for new tokens */

/* t[V,C] with `more` rows that are the mean of the others, in f32 and rounded once, as LLaVA initialises them. */
static void grow_rows(struct arena *to, struct param *p, int64_t more)
{
    const int64_t V = p->w.n[0], C = p->w.n[1];
    const enum dtype type = (enum dtype)p->w.type;
    struct tensor w = tensor_2d(NULL, type, V + more, C);
    w.p = arena_take(to, tensor_bytes(w));
    memcpy(w.p, p->w.p, tensor_bytes(p->w));
    double *sum = calloc((size_t)C, sizeof *sum);
    float *row = malloc((size_t)C * sizeof *row);
    if (!sum || !row) BUG("no memory for a row");
    for (int64_t v = 0; v < V; v++) {
        dtype_convert(row, DT_F32, (char *)p->w.p + (size_t)(v * C) * dtype_bytes(type), type, C);
        for (int64_t i = 0; i < C; i++) sum[i] += (double)row[i];
    }
    for (int64_t i = 0; i < C; i++) row[i] = (float)(sum[i] / (double)V);
    for (int64_t v = V; v < V + more; v++)
        dtype_convert((char *)w.p + (size_t)(v * C) * dtype_bytes(type), type, row, DT_F32, C);
    free(sum);
    free(row);
    p->w = w;
}

/* The rows of <im_start> and <im_end> that stage 1 has learned: the whole table, or the two rows alone. */
static int read_token_rows(struct trainee *t, const char *path, struct err *e)
{
    struct weights *set = NULL;
    struct tensor w = t->model.llama.embed.w;
    char name[NAME_MAX_BYTES];
    int rc;
    TRY(weights_open(&set, path, e));
    for (size_t i = 0; i < weights_count(set); i++) {
        const struct weight *one = weights_at(set, i);
        if (name_canonical(name, sizeof name, one->name) < 0 || strcmp(name, "model.embed_tokens.weight")) continue;
        const int64_t rows = one->t.nd == 2 ? one->t.n[0] : 0;
        if ((rows != 2 && rows != w.n[0]) || one->t.n[1] != w.n[1] || !dtype_is_float((enum dtype)one->t.type))
            TRY(err_set(e, ERR_SHAPE, "'%s' of '%s' has neither 2 nor %lld rows of %lld numbers", one->name, path,
                        (long long)w.n[0], (long long)w.n[1]));
        const size_t size = dtype_bytes((enum dtype)w.type), from = dtype_bytes((enum dtype)one->t.type);
        dtype_convert((char *)w.p + (size_t)((w.n[0] - 2) * w.n[1]) * size, (enum dtype)w.type,
                      (char *)one->t.p + (size_t)((rows - 2) * w.n[1]) * from, (enum dtype)one->t.type, 2 * w.n[1]);
    }
out:
    weights_close(set);
    return rc;
}

static int grow_vocabulary(struct trainee *t, const struct train_args *a, struct err *e)
{
    struct llama *l = &t->model.llama;
    const int64_t more = tokenizer_info(t->tokenizer)->size - l->embed.w.n[0];
    if (more <= 0) return 0;
    if (dtype_is_quant((enum dtype)l->embed.w.type))
        return err_set(e, ERR_UNSUPPORTED, "'%s' is quantised: its vocabulary cannot get %lld more tokens", t->dir,
                       (long long)more);
    const size_t row = (size_t)l->embed.w.n[1] * sizeof(float);
    int rc = arena_init(&t->grown, 2 * ((size_t)(l->embed.w.n[0] + more) * row + ARENA_ALIGN), e);
    if (rc < 0) return rc;
    grow_rows(&t->grown, &l->embed, more);
    if (l->cfg.tied) l->head.w = l->embed;
    else grow_rows(&t->grown, &l->head.w, more);
    t->model.cfg.llama.V = l->cfg.V = (int)l->embed.w.n[0];
    log_info("the vocabulary has %lld more tokens: %d", (long long)more, l->cfg.V);
    if (a->mm_use_im_start_end && a->pretrain_mm_mlp_adapter) return read_token_rows(t, a->pretrain_mm_mlp_adapter, e);
    return 0;
}

/* ---- what is trained */

static bool ends_with(const char *s, const char *end)
{
    const size_t n = strlen(s), k = strlen(end);
    return n >= k && !strcmp(s + n - k, end);
}

static bool wanted(const struct train_args *a, const struct bind_row *r)
{
    if (r->part == PART_CLIP) return a->unfreeze_mm_vision_tower && !(r->flags & BIND_OPTIONAL);
    if (r->part == PART_PROJECTOR) return !a->freeze_mm_mlp_adapter;
    const bool embed = !strcmp(r->name, "model.embed_tokens.weight"), head = !strcmp(r->name, "lm_head.weight");
    if (a->tune_mm_mlp_adapter) return embed && a->mm_use_im_start_end;
    if (a->lora_enable) return strcmp(a->lora_bias, "none") != 0 && ends_with(r->name, ".bias");
    return head || !a->freeze_backbone;
}

static struct trained *trained_new(struct trainee *t)
{
    if (t->n == t->n_max) {
        t->n_max = t->n_max ? 2 * t->n_max : 256;
        t->p = realloc(t->p, (size_t)t->n_max * sizeof *t->p);
        if (!t->p) BUG("no memory for a list of parameters");
    }
    struct trained *p = &t->p[t->n++];
    *p = (struct trained){ 0 };
    return p;
}

struct chooser {
    struct trainee *t;
    const struct train_args *a;
};

/* What would be trained is in 8 or 4 bits: by --bits, or in the model's files. */
static int refuse_quantised(const struct chooser *c, const struct bind_row *r, struct err *e)
{
    const char *const way = r->part == PART_PROJECTOR ? "--freeze_mm_mlp_adapter True leaves it as it is"
                          : r->part == PART_CLIP      ? "--unfreeze_mm_vision_tower False leaves it as it is"
                                                      : "--lora_enable True trains adapters over it";
    if (!c->t->model.cfg.bits)
        return err_set(e, ERR_USAGE, "--bits %d is for what stays frozen, and '%s' is trained: %s", c->t->bits, r->name,
                       way);
    return err_set(e, ERR_USAGE, "'%s' of '%s' is quantised and cannot be trained: %s; to train it give the model that "
                   "this one was made from", r->name, c->t->dir, way);
}

static int choose(void *ctx, const struct bind_row *r, struct err *e)
{
    struct chooser *c = ctx;
    if (!r->param->w.p) return 0;
    r->param->flags &= ~(unsigned)PARAM_TRAIN;
    if (!wanted(c->a, r)) return 0;
    const bool becomes_quant = c->t->bits && (r->flags & BIND_LINEAR); /* on its way to a device */
    if (becomes_quant || dtype_is_quant((enum dtype)r->param->w.type)) return refuse_quantised(c, r, e);
    struct trained *p = trained_new(c->t);
    snprintf(p->name, sizeof p->name, "%s", r->name);
    p->param = r->param;
    p->decays = !ends_with(r->name, ".bias") && !strstr(r->name, "norm");
    p->rate = r->part == PART_PROJECTOR && !isnan(c->a->mm_projector_lr)   ? RATE_PROJECTOR
            : r->part == PART_CLIP && !isnan(c->a->mm_vision_tower_lr) ? RATE_TOWER : RATE_COMMON;
    r->param->flags |= PARAM_TRAIN;
    c->t->tower_trains |= r->part == PART_CLIP;
    c->t->projector_trains |= r->part == PART_PROJECTOR;
    return 0;
}

/* Scatters the bits of an adapter's number: what dropout's key is mixed with. */
static uint64_t scatter(uint64_t i)
{
    struct rng r;
    rng_seed(&r, i);
    return rng_u64(&r);
}

/* A matrix of the adapter on `linear`, "....weight". */
static void train_matrix(struct trainee *t, struct param *param, const char *linear, char which)
{
    struct trained *p = trained_new(t);
    const int stem = (int)(strlen(linear) - strlen("weight"));
    snprintf(p->name, sizeof p->name, "%.*slora_%c.weight", stem, linear, which);
    p->param = param;
    p->decays = true;
    param->flags = PARAM_TRAIN;
    param->w.p = param; /* not NULL, never read: trainee_fill gives it memory */
}

/* An adapter on every linear of the language model. */
static int adapt(void *ctx, const struct bind_row *r, struct err *e)
{
    struct chooser *c = ctx;
    (void)e;
    if (!(r->flags & BIND_LINEAR)) return 0;
    struct trainee *t = c->t;
    struct lora *l = &t->lora[t->n_lora++];
    const int64_t R = c->a->lora_r;
    *l = (struct lora){ .scale = (float)c->a->lora_alpha / (float)R, .drop = (float)c->a->lora_dropout,
                        .id = scatter((uint64_t)t->n_lora) };
    /* rows follow each other so: these read what the row before reads, and drop the same of it */
    if (strstr(r->name, ".k_proj.") || strstr(r->name, ".v_proj.") || strstr(r->name, ".up_proj.")) l->id = l[-1].id;
    l->a.w = tensor_2d(NULL, DT_F32, R, r->param->w.n[1]);
    l->b.w = tensor_2d(NULL, DT_F32, r->param->w.n[0], R);
    r->linear->lora = l;
    train_matrix(t, &l->a, r->name, 'A');
    train_matrix(t, &l->b, r->name, 'B');
    return 0;
}

static int choose_all(struct trainee *t, const struct train_args *a, struct err *e)
{
    struct chooser c = { t, a };
    t->muon = !strcmp(a->optim, "muon");
    int rc = llava_each(&t->model, choose, &c, e);
    if (rc < 0) return rc;
    if (a->lora_enable && !a->tune_mm_mlp_adapter) {
        t->lora = calloc((size_t)t->model.cfg.llama.L * 7, sizeof *t->lora);
        if (!t->lora) return err_set(e, ERR_NOMEM, "no memory for adapters");
        llava_each(&t->model, adapt, &c, e);
    }
    if (t->model.llama.cfg.tied) t->model.llama.head.w = t->model.llama.embed;
    t->kind = a->tune_mm_mlp_adapter && !t->tower_trains ? TRAIN_PROJECTOR : t->n_lora ? TRAIN_LORA : TRAIN_FULL;
    return t->n ? 0 : err_set(e, ERR_USAGE, "these arguments freeze everything: there is nothing to train");
}

/* --patch_dropout */
static int drop_patches(struct trainee *t, const struct train_args *a, struct err *e)
{
    struct recipe *r = &t->recipe;
    if (!(a->patch_dropout > 0)) return 0;
    if (!t->tower_trains || t->model.cfg.select_cls)
        return err_set(e, ERR_USAGE, t->tower_trains ? "--patch_dropout: not with --mm_vision_select_feature cls_patch"
                                                     : "--patch_dropout has no use: the vision tower is not trained");
    r->of = r->rows;
    r->rows = (int)lround((1 - a->patch_dropout) * r->of);
    r->seed = (uint64_t)a->seed;
    if (r->rows > 0) return 0;
    return err_set(e, ERR_USAGE, "--patch_dropout %g leaves nothing of %d patches", a->patch_dropout, r->of);
}

bool trainee_drops(const struct trainee *t, const struct train_args *a)
{
    return a->residual_dropout > 0 || (t->n_lora && a->lora_dropout > 0);
}

static enum dtype precision_of(const struct train_args *a) { return a->bf16 ? DT_BF16 : a->fp16 ? DT_F16 : DT_F32; }

/* Does a dry run ask about a device that was not opened? */
static bool plans_card(const struct train_args *a)
{
    return a->dry_run && strcmp(a->device, "auto") != 0 && strcmp(a->device, "cpu") != 0;
}

static struct trainee trainee_new(const struct train_args *a, struct dev *dev)
{
    return (struct trainee){ .dev = dev, .card = dev || plans_card(a), .dtype = precision_of(a),
                             .bits = a->bits == 16 ? 0 : (int)a->bits };
}

/* What follows once there is a model: how long it may read, what of it is trained, which patches are left out. */
static int prepare(struct trainee *t, const struct train_args *a, struct err *e)
{
    int rc;
    TRY(llava_model_context(&t->model, (int)a->model_max_length, e));
    TRY(choose_all(t, a, e));
    TRY(drop_patches(t, a, e));
out:
    return rc;
}

int trainee_open(struct trainee *t, const struct train_args *a, struct dev *dev, struct err *e)
{
    int rc;
    *t = trainee_new(a, dev);
    TRY(hub_find(&t->dir, a->model_name_or_path, NULL, e));
    TRY(open_model(t, a, e));
    t->base = fingerprint(&t->model);
    TRY(open_tokenizer(t, a, e));
    TRY(grow_vocabulary(t, a, e));
    TRY(open_pictures(t, a, e));
    if (a->model_max_length > t->model.cfg.llama.max_pos)
        log_warn("--model_max_length %lld is more than the %d positions that the model was made for",
                 (long long)a->model_max_length, t->model.cfg.llama.max_pos);
    TRY(prepare(t, a, e));
out:
    if (rc < 0) trainee_close(t);
    return rc;
}

int trainee_random(struct trainee *t, const struct train_args *a, struct dev *dev, struct err *e)
{
    struct llava_config c;
    struct kern k;
    struct kctx kc = { .n_threads = 1, .dev = dev };
    int rc;
    *t = trainee_new(a, dev);
    const struct llava_source s = { .dtype = t->dtype, .linears_only = true, .bits = t->bits, .dev = dev, .kern = &k,
                                    .kc = &kc };
    TRY(kern_init(&k, dev, NULL, e));
    TRY(llava_config_preset(&c, a->model_name_or_path, e));
    TRY(llava_model_random(&t->model, &c, &s, (uint64_t)a->seed, e));
    t->recipe = (struct recipe){ .pad = -1, .vision = true, .side = c.clip.image, .rows = llava_tile_rows(&t->model) };
    TRY(prepare(t, a, e));
out:
    if (rc < 0) trainee_close(t);
    return rc;
}

void trainee_close(struct trainee *t)
{
    states_fini(&t->states);
    llava_model_close(&t->model);
    tokenizer_close(t->tokenizer);
    arena_fini(&t->state);
    arena_fini(&t->grown);
    free(t->dir);
    free(t->p);
    free(t->lora);
    *t = (struct trainee){ 0 };
}

/* ---- memory */

/* How parameters are kept on the device. */
static struct llava_placing placing(const struct trainee *t)
{
    return (struct llava_placing){ .dev = t->dev, .dtype = t->dtype, .bits = t->bits, .linears_only = true };
}

struct counter {
    struct trainee_bytes *b;
    struct llava_placing placing;
    bool moves; /* from the host to a device */
};

static int count_all(void *ctx, const struct bind_row *r, struct err *e)
{
    const struct counter *c = ctx;
    (void)e;
    if (!r->param->w.p) return 0;
    const struct tensor w = c->moves ? llava_placed(&c->placing, r) : r->param->w;
    c->b->n_all += tensor_count(w);
    if (!(r->param->flags & PARAM_TRAIN))
        *(r->part == PART_CLIP ? &c->b->tower : &c->b->frozen) += tensor_bytes(w) + ARENA_ALIGN;
    return 0;
}

static bool is_adapter(const struct trained *p) { return strstr(p->name, ".lora_") != NULL; }

/* Does it need memory for its weight, or is that where it shall be, in the right type? */
static bool weight_is_new(const struct trainee *t, const struct trained *p)
{
    return is_adapter(p) || !t->dev || p->param->w.type != (int8_t)t->dtype;
}

struct trainee_bytes trainee_count(struct trainee *t)
{
    struct trainee_bytes b = { 0 };
    struct counter c = { &b, placing(t), t->card && !t->model.dev };
    llava_each(&t->model, count_all, &c, NULL);
    for (int i = 0; i < t->n; i++) {
        const size_t n = (size_t)tensor_count(t->p[i].param->w);
        b.n_trained += (int64_t)n;
        b.weights += n * dtype_bytes(t->dtype) + ARENA_ALIGN;
        if (t->model.dev && !is_adapter(&t->p[i]) && weight_is_new(t, &t->p[i])) /* the old one stays */
            b.frozen += tensor_bytes(t->p[i].param->w) + ARENA_ALIGN;
    }
    if (t->n_lora)
        for (int i = 0; i < t->n_lora; i++) b.n_all += tensor_count(t->lora[i].a.w) + tensor_count(t->lora[i].b.w);
    return b;
}

/* A: uniform in +-1/sqrt(inputs), which is kaiming_uniform(a = sqrt 5); B: zeros. host: memory for twice as many. */
static void fill_adapter(struct trainee *t, const struct trained *p, struct tensor w, float *host, struct rng *r)
{
    const int64_t n = tensor_count(w);
    void *rounded = host + n;
    const double size = 1 / sqrt((double)tensor_cols(w));
    for (int64_t i = 0; i < n; i++)
        host[i] = strstr(p->name, ".lora_A.") ? (float)(size * (2 * rng_unit(r) - 1)) : 0;
    dtype_convert(rounded, t->dtype, host, DT_F32, n);
    dev_put(t->dev, w.p, rounded, tensor_bytes(w));
}

static void fill_weight(struct trainee *t, struct trained *p, float *host, struct rng *r, const struct kern *k,
                        struct kctx *kc)
{
    struct tensor old = p->param->w, w = old;
    w.type = (int8_t)t->dtype;
    if (weight_is_new(t, p)) w.p = arena_take(&t->state, tensor_bytes(w));
    if (is_adapter(p)) fill_adapter(t, p, w, host, r);
    else if (w.p != old.p) k->cast(kc, w, old);
    p->param->w = w;
}

int trainee_keep(struct trainee *t, const struct states_how *how, struct err *e)
{
    return states_init(&t->states, t->p, t->n, t->model.cfg.llama.L, t->dtype, how, e);
}

/* Bytes of trainee.state, and numbers of the largest adapter. */
static size_t state_bytes(const struct trainee *t, int64_t *largest)
{
    size_t bytes = states_here_bytes(&t->states);
    *largest = 0;
    for (int i = 0; i < t->n; i++) {
        const struct trained *p = &t->p[i];
        const int64_t n = tensor_count(p->param->w);
        if (weight_is_new(t, p)) bytes += (size_t)n * dtype_bytes(t->dtype) + ARENA_ALIGN;
        if (is_adapter(p) && n > *largest) *largest = n;
    }
    return bytes;
}

int trainee_fill(struct trainee *t, const struct train_args *a, const struct kern *k, struct kctx *kc, struct err *e)
{
    struct llava_placing how = placing(t);
    int64_t largest;
    struct rng r;
    float *host = NULL;
    int rc;
    how.kern = k;
    how.kc = kc;
    if (t->dev && !t->model.dev) {
        TRY(llava_model_place(&t->model, &how, e));
        TRY(llava_model_context(&t->model, (int)a->model_max_length, e));
        arena_fini(&t->grown);
    }
    rc = dev_arena(&t->state, t->dev, state_bytes(t, &largest), e);
    if (rc < 0) TRY(err_prefix(e, "memory for what is trained"));
    host = malloc((size_t)largest * 2 * sizeof *host + 1);
    if (!host) TRY(err_set(e, ERR_NOMEM, "no memory for adapters"));
    rng_seed(&r, scatter((uint64_t)a->seed));
    for (int i = 0; i < t->n; i++) fill_weight(t, &t->p[i], host, &r, k, kc);
    rc = states_fill(&t->states, &t->state, t->dev, k, kc, e);
    if (t->model.llama.cfg.tied) t->model.llama.head.w = t->model.llama.embed;
out:
    free(host);
    return rc;
}

/* ---- config.json */

json_t *trainee_config(const struct trainee *t, const struct train_args *a)
{
    json_t *rate = isnan(a->mm_projector_lr) ? json_null() : json_real(a->mm_projector_lr);
    json_t *o = json_pack("{sb, so}", "use_cache", 1, "mm_projector_lr", rate);
    const struct llava_config *c = &t->model.cfg;
    char type[32];
    if (!o || !c->has_vision) return o;
    save_projector_type(type, sizeof type, c->n_projector);
    json_t *more = json_pack(
        "{sb, ss, si, si, ss, ss, ss, ss, si, sb, sb, sb, sb, sb}", "use_mm_proj", 1, "mm_projector_type", type,
        "mm_hidden_size", c->mm_hidden, "mm_vision_select_layer", c->select_layer, "mm_vision_select_feature",
        c->select_cls ? "cls_patch" : "patch", "mm_patch_merge_type", a->mm_patch_merge_type, "image_aspect_ratio",
        a->image_aspect_ratio, "tokenizer_padding_side", "right", "tokenizer_model_max_length",
        (int)a->model_max_length, "tune_mm_mlp_adapter", a->tune_mm_mlp_adapter, "freeze_mm_mlp_adapter",
        a->freeze_mm_mlp_adapter, "mm_use_im_start_end", a->mm_use_im_start_end, "mm_use_im_patch_token",
        a->mm_use_im_patch_token, "unfreeze_mm_vision_tower", a->unfreeze_mm_vision_tower);
    if (more) json_object_update(o, more);
    if (a->vision_tower) json_object_set_new(o, "mm_vision_tower", json_string(a->vision_tower));
    json_decref(more);
    return o;
}
