/* Opening a model: which folder is what, the index of canonical names, binding, conversion. See llava.h.
 *
 * Parameters view the mapped files wherever the wanted type allows it; what must be converted or merged, and for a
 * device everything, is counted first and then made in one arena. Adapters are merged in lora.c.
 */
#define _GNU_SOURCE
#include "model/load.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/rng.h"
#include "tensor/quant.h"
#include "model/place.h"

/* ---- index */

static int entry_order(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    int c = strcmp(x->name, y->name);
    return c ? c : x->rank - y->rank;
}

static int index_room(struct index *ix, size_t n, struct err *e)
{
    struct entry *at = realloc(ix->at, (ix->n + n + 1) * sizeof *at);
    if (!at) return err_set(e, ERR_NOMEM, "no memory for %zu names", n);
    ix->at = at;
    return 0;
}

/* Within index_room, before index_sort. */
static void index_put(struct index *ix, const struct weight *one)
{
    const char *name = one->name;
    if (!strncmp(name, "base_model.", 11)) { /* PEFT's wrapper around the model */
        name += 11;
        if (!strncmp(name, "model.", 6)) name += 6;
    }
    struct entry *en = &ix->at[ix->n];
    if (name_canonical(en->name, sizeof en->name, name) < 0) return;
    en->w = one;
    en->rank = ix->rank;
    ix->n++;
}

static void index_sort(struct index *ix)
{
    ix->rank++;
    qsort(ix->at, ix->n, sizeof *ix->at, entry_order);
    size_t k = 0;
    for (size_t i = 0; i < ix->n; i++)
        if (i + 1 == ix->n || strcmp(ix->at[i].name, ix->at[i + 1].name) != 0) ix->at[k++] = ix->at[i];
    ix->n = k;
}

int index_add(struct index *ix, const struct weights *w, struct err *e)
{
    size_t n = weights_count(w);
    int rc = index_room(ix, n, e);
    if (rc < 0) return rc;
    for (size_t i = 0; i < n; i++) index_put(ix, weights_at(w, i));
    index_sort(ix);
    return 0;
}

/* The whole tensors of an adapter. */
static int index_rest(struct index *ix, const struct lora_set *set, struct err *e)
{
    int rc = index_room(ix, set->n_rest, e);
    if (rc < 0) return rc;
    for (size_t i = 0; i < set->n_rest; i++) index_put(ix, set->rest[i].w);
    index_sort(ix);
    return 0;
}

const struct weight *index_find(const struct index *ix, const char *name)
{
    size_t lo = 0, hi = ix->n;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        int c = strcmp(name, ix->at[mid].name);
        if (!c) return ix->at[mid].w;
        if (c < 0) hi = mid;
        else lo = mid + 1;
    }
    return NULL;
}

/* ---- binding */

struct binder {
    struct llava_model *m;
    const struct llava_source *s;
    const struct index *ix;
    const struct index *projector; /* of a file that holds the projector; NULL: it is in ix */
    struct lora_set *lora; /* NULL: none */
    size_t bytes;          /* to own: counted in the first pass */
    bool count;
    struct rng rng;        /* of fresh weights */
    int64_t inputs;        /* of the linear whose rows are bound */
    struct placer placer;
};

/* The type a parameter is kept in. Vectors stay as they are; 16-bit matrices are exact in f32 arithmetic. */
enum dtype bind_type(enum dtype want, const struct bind_row *r, enum dtype file)
{
    if (dtype_is_quant(file)) return file;
    if (!(r->flags & BIND_DECAY) || want == DT_F32) return file == DT_F64 ? DT_F32 : file;
    return want;
}

enum dtype bind_quant(const struct bind_row *r, int bits, enum dtype keep)
{
    if (!bits || r->nd != 2 || !(r->flags & (BIND_LINEAR | BIND_Q8))) return keep;
    return bits == 4 && (r->flags & BIND_LINEAR) ? DT_Q4 : DT_Q8;
}

int bind_bits(struct llava_model *m, const struct bind_row *r, const struct weight *w, enum dtype file, struct err *e)
{
    const int has = file == DT_Q8 ? 8 : file == DT_Q4 ? 4 : 0;
    if (!(r->flags & BIND_LINEAR)) return 0;
    if (!has && m->cfg.bits)
        return err_set(e, ERR_FORMAT, "'%s' of '%s' is %s, but its config.json says that it is in %d bits", w->name,
                       w->file, dtype_name(file), m->cfg.bits);
    if (has && !m->bits) m->bits = has;
    if (has && has != m->bits)
        return err_set(e, ERR_USAGE, "'%s' of '%s' is in %d bits already, not %d", w->name, w->file, has, m->bits);
    return 0;
}

/* Rows of U8 where a matrix may be quantised. */
static int read_quant(struct tensor *ret, const struct bind_row *r, const struct weight *w, struct err *e)
{
    enum dtype type;
    const int64_t O = r->shape[0], I = r->shape[1];
    if (w->t.n[0] != O || quant_find(&type, I, w->t.n[1]) < 0) {
        char a[TENSOR_SHAPE_MAX];
        return err_set(e, ERR_SHAPE,
                       "cannot bind '%s' of '%s': file has %s bytes, %lld rows of %lld numbers in groups of %d take "
                       "%zu in 8 bits and %zu in 4",
                       w->name, w->file, tensor_shape(w->t, a), (long long)O, (long long)I, QUANT_GROUP,
                       quant_row_bytes(DT_Q8, I), quant_row_bytes(DT_Q4, I));
    }
    *ret = tensor_2d(w->t.p, type, O, I);
    return 0;
}

int bind_read(struct tensor *ret, const struct bind_row *r, const struct weight *w, struct err *e)
{
    if (w->t.type == DT_U8 && w->t.nd == 2 && bind_quant(r, 8, DT_F32) == DT_Q8) return read_quant(ret, r, w, e);
    struct tensor want = { .nd = (int8_t)r->nd };
    memcpy(want.n, r->shape, sizeof want.n);
    struct tensor flat = w->t;
    if (r->nd == 1 && flat.nd == 2 && flat.n[0] == 1) flat = tensor_1d(flat.p, (enum dtype)flat.type, flat.n[1]);
    char a[TENSOR_SHAPE_MAX], b[TENSOR_SHAPE_MAX];
    if (!tensor_same_shape(want, flat))
        return err_set(e, ERR_SHAPE, "cannot bind '%s' of '%s': file has %s, model wants %s", w->name, w->file,
                       tensor_shape(w->t, a), tensor_shape(want, b));
    if (!dtype_is_float((enum dtype)w->t.type))
        return err_set(e, ERR_SHAPE, "cannot bind '%s' of '%s': type %s is not a float type", w->name, w->file,
                       dtype_name((enum dtype)w->t.type));
    *ret = bind_view(r, w->t.p, (enum dtype)w->t.type);
    return 0;
}

/* Kernels see matrices as [rows, cols]: a convolution's [C,3,p,p] as [C,3*p*p], one-row tables as [1,C]. */
struct tensor bind_view(const struct bind_row *r, void *p, enum dtype t)
{
    bool one_row = strstr(r->name, "class_embedding") || strstr(r->name, "image_newline");
    if (r->nd == 1) return one_row ? tensor_2d(p, t, 1, r->shape[0]) : tensor_1d(p, t, r->shape[0]);
    int64_t cols = 1;
    for (int i = 1; i < r->nd; i++) cols *= r->shape[i];
    return tensor_2d(p, t, r->shape[0], cols);
}

/* A projector that is made: uniform in +-1/sqrt(inputs), as torch.nn.Linear.reset_parameters; image_newline is normal
 * with deviation 1/sqrt(C), as in LLaVA. */
static int bind_fresh(struct binder *b, const struct bind_row *r, struct err *e)
{
    struct tensor t = bind_view(r, b->m, DT_F32), made; /* while counting an address that is not read */
    const int64_t n = tensor_count(t);
    int rc = 0;
    b->bytes += tensor_bytes(t) + ARENA_ALIGN;
    if (!b->count) t.p = arena_take(&b->m->own, tensor_bytes(t));
    r->param->w = made = t;
    r->param->flags = r->flags & BIND_DECAY ? PARAM_DECAY : 0;
    if (b->count) return 0;
    if (b->m->dev) rc = place_whole(&made.p, &b->placer, tensor_bytes(t), e);
    if (rc < 0) return rc;
    if (r->linear) b->inputs = tensor_cols(t);
    const bool newline = strstr(r->name, "image_newline") != NULL;
    const double size = 1 / sqrt((double)(newline ? n : b->inputs));
    for (int64_t i = 0; i < n; i++)
        ((float *)made.p)[i] = (float)(size * (newline ? rng_normal(&b->rng) : 2 * rng_unit(&b->rng) - 1));
    if (b->m->dev) place(&b->placer, t, made, false);
    return 0;
}

/* out = w quantised, after its adapter was merged into it in f32. */
static int param_quantise(struct binder *b, struct tensor out, struct tensor w, struct lora_pair *pair, struct err *e)
{
    struct tensor sum = w, made = out;
    int rc = 0;
    sum.p = NULL;
    if (pair) {
        sum.type = DT_F32;
        sum.p = malloc(tensor_bytes(sum));
        if (!sum.p) TRY(err_set(e, ERR_NOMEM, "no memory for %zu bytes", tensor_bytes(sum)));
        TRY(lora_merge(pair, sum, w, e));
    }
    if (b->m->dev && b->placer.kern) {
        rc = place_quantised(&b->placer, out, pair ? sum : w, !pair, e);
        goto out;
    }
    if (b->m->dev) TRY(place_whole(&made.p, &b->placer, tensor_bytes(out), e));
    tensor_convert(made, pair ? sum : w);
    if (b->m->dev) place(&b->placer, out, made, false);
out:
    free(sum.p);
    return rc;
}

/* out = w, merged with its adapter or converted; out is on the model's device. */
static int param_make(struct binder *b, struct tensor out, struct tensor w, struct lora_pair *pair, struct err *e)
{
    struct tensor made = out;
    int rc = 0;
    if (dtype_is_quant((enum dtype)out.type) && out.type != w.type) return param_quantise(b, out, w, pair, e);
    if (pair && b->m->dev) rc = place_whole(&made.p, &b->placer, tensor_bytes(out), e);
    if (rc >= 0 && pair) rc = lora_merge(pair, made, w, e);
    if (rc < 0) return rc;
    if (b->m->dev) place(&b->placer, out, pair ? made : w, !pair);
    else if (!pair) tensor_convert(out, w);
    return 0;
}

/* Libraries for large products add a bias only in the result's type. */
bool bind_is_bias(const struct bind_row *r) { return strstr(r->name, ".bias") && !strstr(r->name, "norm"); }

/* The type of a row that is not quantised, and then of one that may be. */
static enum dtype kept_type(const struct llava_placing *p, const struct bind_row *r, enum dtype file)
{
    return p->dev && bind_is_bias(r) && p->dtype != DT_F32 ? p->dtype : bind_type(p->dtype, r, file);
}

static enum dtype kept_quant(const struct llava_placing *p, const struct bind_row *r, enum dtype file, enum dtype keep)
{
    const bool chosen = !p->linears_only || (r->flags & BIND_LINEAR);
    return !dtype_is_quant(file) && chosen ? bind_quant(r, p->bits, keep) : keep;
}

static int bind_one(void *ctx, const struct bind_row *r, struct err *e)
{
    struct binder *b = ctx;
    if (r->part == PART_PROJECTOR && b->m->no_projector) return 0;
    const bool other = r->part == PART_PROJECTOR && b->projector;
    const struct weight *w = index_find(other ? b->projector : b->ix, r->name);
    if (!w) {
        if (r->flags & BIND_OPTIONAL) return 0;
        if (r->part == PART_PROJECTOR && b->s->vision && (!other || strstr(r->name, "image_newline")))
            return bind_fresh(b, r, e);
        return err_set(e, ERR_MISSING, "no tensor '%s' in '%s'", r->name, other ? b->s->vision->projector : b->s->path);
    }
    struct tensor t;
    int rc = bind_read(&t, r, w, e);
    if (rc >= 0) rc = bind_bits(b->m, r, w, (enum dtype)t.type, e);
    if (rc < 0) return rc;
    if (b->lora) lora_mark(b->lora, w);
    const struct llava_placing how = { b->m->dev, b->m->dtype, b->m->bits, b->s->linears_only, NULL, NULL };
    enum dtype file = (enum dtype)t.type, keep = b->s->keep_dtype ? file : kept_type(&how, r, file);
    struct lora_pair *pair = b->lora ? lora_find(b->lora, r->name) : NULL;
    if (pair && !b->s->keep_dtype && b->m->dtype == DT_F32) keep = DT_F32; /* the sum has more digits than its parts */
    if (!b->s->keep_dtype) keep = kept_quant(&how, r, file, keep);
    if (pair && !b->s->unmerged && dtype_is_quant(file))
        return err_set(e, ERR_UNSUPPORTED, "an adapter cannot be merged into '%s' of '%s', which is quantised", w->name,
                       w->file);
    if (pair && b->s->unmerged) {
        rc = lora_fits(pair, t, e);
        pair->used = true;
        pair = NULL;
    }
    const bool askew = dtype_is_quant(file) && (uintptr_t)t.p % QUANT_ALIGN; /* of a file that others wrote */
    if (keep != file || pair || b->m->dev || askew) {
        struct tensor own = bind_view(r, b->m, keep); /* while counting an address that is not read */
        b->bytes += tensor_bytes(own) + ARENA_ALIGN;
        if (!b->count) own.p = arena_take(&b->m->own, tensor_bytes(own));
        if (!b->count) rc = param_make(b, own, t, pair, e);
        t = own;
    }
    r->param->w = t;
    r->param->flags = r->flags & BIND_DECAY ? PARAM_DECAY : 0;
    return rc;
}

static int bind_all(struct llava_model *m, const struct llava_source *s, const struct index *ix,
                    const struct index *projector, struct lora_set *lora, struct err *e)
{
    struct binder b = { .m = m, .s = s, .ix = ix, .projector = projector->n ? projector : NULL, .lora = lora,
                        .count = true };
    int rc;
    rng_seed(&b.rng, s->vision ? s->vision->seed : 0);
    TRY(llava_each(m, bind_one, &b, e));
    if (m->cfg.llama.tied) m->llama.head.w = m->llama.embed;
    if (s->admit) TRY(s->admit(s->ctx, b.bytes, e));
    TRY(dev_arena(&m->own, m->dev, b.bytes, e));
    TRY(place_begin(&b.placer, m->dev, s->kern, s->kc, (int64_t)b.bytes, e));
    b.count = false;
    TRY(llava_each(m, bind_one, &b, e));
    if (m->cfg.llama.tied) m->llama.head.w = m->llama.embed;
out:
    place_end(&b.placer);
    return rc;
}

struct tensor llava_placed(const struct llava_placing *p, const struct bind_row *r)
{
    struct tensor t = r->param->w;
    const enum dtype file = (enum dtype)t.type;
    const bool trains = (r->param->flags & PARAM_TRAIN) != 0;
    t.type = (int8_t)(trains ? p->dtype : kept_quant(p, r, file, kept_type(p, r, file)));
    return t;
}

/* A model on its way to a device. */
struct mover {
    struct binder b; /* of whose model `own` is on the device already */
    const struct llava_placing *how;
};

static int move_one(void *ctx, const struct bind_row *r, struct err *e)
{
    struct mover *v = ctx;
    const struct tensor from = r->param->w;
    if (!from.p) return 0;
    struct tensor to = llava_placed(v->how, r);
    v->b.bytes += tensor_bytes(to) + ARENA_ALIGN;
    if (v->b.count) return 0;
    to.p = arena_take(&v->b.m->own, tensor_bytes(to));
    r->param->w = to;
    return param_make(&v->b, to, from, NULL, e);
}

int llava_model_place(struct llava_model *m, const struct llava_placing *p, struct err *e)
{
    struct arena host = m->own;
    struct mover v = { .b = { .m = m, .count = true }, .how = p };
    int rc;
    TRY(llava_each(m, move_one, &v, e));
    m->own = (struct arena){ 0 };
    m->dev = p->dev;
    m->bits = p->bits;
    TRY(dev_arena(&m->own, m->dev, v.b.bytes, e));
    TRY(place_begin(&v.b.placer, m->dev, p->kern, p->kc, (int64_t)v.b.bytes, e));
    v.b.count = false;
    TRY(llava_each(m, move_one, &v, e));
    if (m->cfg.llama.tied) m->llama.head.w = m->llama.embed;
out:
    place_end(&v.b.placer);
    arena_fini(&host);
    return rc;
}

enum { SMALL_MODEL = 256 << 20 }; /* bytes under which exact f32 products cost nothing that anyone notices */

static void choose_dtype(struct llava_model *m, const struct llava_source *s, const struct index *ix)
{
    const struct weight *embed = index_find(ix, "model.embed_tokens.weight");
    size_t bytes = 0;
    for (int i = 0; i < m->n_weights; i++) bytes += weights_bytes(m->weights[i]);
    m->dtype = s->dtype;
    m->bits = s->bits ? s->bits : m->cfg.bits;
    if (!s->auto_dtype) return;
    enum dtype stored = embed && dtype_is_float((enum dtype)embed->t.type) ? (enum dtype)embed->t.type : m->cfg.dtype;
    m->dtype = (m->dev || bytes >= SMALL_MODEL) && (stored == DT_BF16 || stored == DT_F16) ? stored : DT_F32;
}

/* ---- folders */

static bool exists(const char *dir, const char *name)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return access(path, F_OK) == 0;
}

static bool weights_present(const char *dir)
{
    static const char *const names[] = { "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
                                         "pytorch_model.bin.index.json" };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (exists(dir, names[i])) return true;
    return false;
}

static int add_file(struct llava_model *m, struct index *ix, const char *dir, const char *name, struct err *e)
{
    char path[4096];
    snprintf(path, sizeof path, name ? "%s/%s" : "%s", dir, name);
    ASSERT(m->n_weights < WEIGHTS_SETS);
    int rc = weights_open(&m->weights[m->n_weights], path, e);
    return rc < 0 ? rc : index_add(ix, m->weights[m->n_weights++], e);
}

/* A tower in or beside dir, by its whole or its last name, or as save.h's tower_config leaves it. */
static bool tower_near(char *path, size_t size, const char *dir, const char *name)
{
    const char *slash = strrchr(name, '/'), *last = slash && slash[1] ? slash + 1 : name;
    const char *parts[][2] = { { "", name }, { "../", name }, { "", last }, { "../", last }, { "", "vision_tower" } };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        snprintf(path, size, "%s/%s%s", dir, parts[i][0], parts[i][1]);
        if (*parts[i][1] && exists(path, "config.json")) return true;
    }
    return false;
}

/* The tower's folder: as given, near the model's folder or its base's, or through the hub. */
static int find_tower(struct llava_model *m, const struct llava_source *s, struct err *e)
{
    const char *name = s->clip_path ? s->clip_path : m->cfg.tower;
    char path[4096];
    snprintf(path, sizeof path, "%s", name);
    if ((*name && exists(name, "config.json")) || tower_near(path, sizeof path, s->path, name) ||
        (s->base && tower_near(path, sizeof path, s->base, name)))
        return (m->clip_dir = strdup(path)) ? 0 : err_set(e, ERR_NOMEM, "no memory for a path");
    if (s->locate && *name && *name != '.' && *name != '/') {
        int rc = s->locate(&m->clip_dir, name, e);
        return rc < 0 ? err_prefix(e, "the vision tower '%s'", name), rc : 0;
    }
    if (s->clip_path || (s->vision && s->vision->tower)) return err_set(e, ERR_MISSING, "no vision tower '%s'", name);
    return err_set(e, ERR_MISSING, "no vision tower '%s' (config.json of '%s' names it; --vision-tower sets another)",
                   name, s->path);
}

/* A tower saved with the model, whose own config.json is out of reach: its shapes tell all but the head size, which is
 * 64 in the CLIP towers up to ViT-L; of others nothing is guessed. */
static int clip_from_shapes(struct llava_config *c, const struct index *ix, struct err *e)
{
    const struct weight *patch = index_find(ix, "vision_model.embeddings.patch_embedding.weight");
    const struct weight *pos = index_find(ix, "vision_model.embeddings.position_embedding.weight");
    const struct weight *fc1 = index_find(ix, "vision_model.encoder.layers.0.mlp.fc1.weight");
    if (!patch || !pos || !fc1 || patch->t.nd != 4 || pos->t.nd != 2 || fc1->t.nd != 2 || pos->t.n[0] < 2)
        return err_set(e, ERR_MISSING, "the checkpoint's vision tower is not whole and '%s' is not there", c->tower);
    int64_t width = patch->t.n[0], p = patch->t.n[2], side = (int64_t)lround(sqrt((double)(pos->t.n[0] - 1)));
    if (width < 64 || width > 1024 || width % 64 || p < 1 || p > 64 || side < 1 || side > 256 || fc1->t.n[0] > 1 << 16)
        return err_set(
            e, ERR_MISSING,
            "the checkpoint holds a vision tower but '%s', which says how it is built, is not there "
            "(--vision-tower gives its folder)",
            c->tower);
    log_warn("'%s' is not there: the vision tower in the checkpoint is taken for a CLIP with heads of 64", c->tower);
    int layers = 0;
    for (char name[NAME_MAX_BYTES];; layers++) {
        snprintf(name, sizeof name, "vision_model.encoder.layers.%d.mlp.fc1.weight", layers);
        if (!index_find(ix, name)) break;
    }
    c->clip = (struct clip_config){ (int)width,      (int)fc1->t.n[0], layers, (int)width / 64,
                                    (int)(side * p), (int)p,           1e-5f,  true };
    return 0;
}

static bool tower_inside(const struct index *ix)
{
    return index_find(ix, "vision_model.embeddings.class_embedding") != NULL;
}

/* Must the tower be opened? Not when its name is enough from wherever the model will be: it is a fixed place or on the
 * hub, and nothing of it changes. */
static bool tower_wanted(struct llava_model *m, const struct llava_source *s, const struct index *ix,
                         const struct lora_set *lora)
{
    const struct llava_config *c = &m->cfg;
    const char *name = s->clip_path ? s->clip_path : c->tower;
    if (!s->tower_by_name || c->has_clip || !c->mm_hidden || tower_inside(ix)) return true;
    for (size_t i = 0; i < lora->n; i++)
        if (!strncmp(lora->pair[i].name, "vision_model.", 13)) return true;
    if (*name == '/' && exists(name, "config.json")) return false;
    if (s->clip_path && (*name == '/' || *name == '.')) return true; /* or it is not there, which is said */
    struct llava_source here = { .path = s->path, .base = s->base, .clip_path = s->clip_path };
    bool found = find_tower(m, &here, NULL) >= 0;
    free(m->clip_dir);
    m->clip_dir = NULL;
    return found;
}

int model_open_tower(struct llava_model *m, const struct llava_source *s, struct index *ix, struct err *e)
{
    if (m->cfg.hf_layout && s->clip_path)
        return err_set(e, ERR_USAGE, "'%s' has its vision tower inside: another one ('%s') cannot be given", s->path,
                       s->clip_path);
    bool inside = tower_inside(ix);
    int rc = 0;
    m->tower_inside = inside;
    if (!m->cfg.has_clip) {
        struct err why = { 0 };
        rc = find_tower(m, s, &why);
        if (rc >= 0) rc = clip_config_load(&m->cfg.clip, m->clip_dir, e);
        else if (inside) rc = clip_from_shapes(&m->cfg, ix, e);
        else if (e) *e = why;
        if (rc >= 0 && !inside) rc = add_file(m, ix, m->clip_dir, NULL, e);
        m->cfg.has_clip = rc >= 0;
    }
    return rc;
}

int model_check_vision(struct llava_model *m, const char *path, struct err *e)
{
    struct llava_config *c = &m->cfg;
    if (clip_layers_used(&c->clip, c->select_layer) < 0)
        return err_set(e, ERR_SHAPE, "'%s': the vision tower has %d layers, no hidden state %d", path, c->clip.L,
                       c->select_layer);
    if (c->select_cls && c->aspect == ASPECT_ANYRES)
        return err_set(e, ERR_UNSUPPORTED, "'%s': the class token cannot be kept with any-resolution pictures", path);
    if (!c->mm_hidden) c->mm_hidden = c->clip.C;
    if (c->mm_hidden != c->clip.C)
        return err_set(e, ERR_SHAPE, "'%s': mm_hidden_size is %d, the vision tower's width %d", path, c->mm_hidden,
                       c->clip.C);
    if (!c->n_projector && c->clip.C != c->llama.C)
        return err_set(e, ERR_SHAPE, "'%s': an identity projector cannot turn width %d into %d", path, c->clip.C,
                       c->llama.C);
    return 0;
}

int model_make_layers(struct llava_model *m, struct err *e)
{
    m->llama.cfg = m->cfg.llama;
    m->clip.cfg = m->cfg.clip;
    m->llama.layer = calloc((size_t)m->cfg.llama.L, sizeof *m->llama.layer);
    m->clip.layer = m->cfg.has_clip ? calloc((size_t)m->cfg.clip.L, sizeof *m->clip.layer) : NULL;
    if (!m->llama.layer || (m->cfg.has_clip && !m->clip.layer)) return err_set(e, ERR_NOMEM, "no memory for the model");
    return 0;
}

/* What was trained with an adapter and is none: LLaVA's training leaves it beside the adapter. */
static int add_beside(struct llava_model *m, struct index *ix, const char *dir, struct err *e)
{
    static const char *const files[] = { "non_lora_trainables.bin", "non_lora_trainables.safetensors" };
    int rc = 0;
    for (int i = 0; i < 2 && rc >= 0; i++)
        if (exists(dir, files[i])) rc = add_file(m, ix, dir, files[i], e);
    return rc;
}

/* What kind of folder: the files in it say. */
int model_open_files(struct llava_model *m, const struct llava_source *s, struct index *ix, struct lora_set *lora,
                      struct err *e)
{
    bool adapter = exists(s->path, "adapter_config.json");
    bool projector = !adapter && (s->base || !weights_present(s->path)) && exists(s->path, "mm_projector.bin");
    int rc = 0;
    if ((adapter || projector) && !s->base) {
        char name[512] = "its base model";
        if (adapter) lora_base_name(s->path, name, sizeof name);
        return err_set(e, ERR_USAGE, "'%s' holds only %s: give the base model with --model-base (%s)", s->path,
                       adapter ? "a LoRA adapter" : "a projector", name);
    }
    if (!adapter && !projector && s->base)
        return err_set(e, ERR_USAGE, "'%s' is neither an adapter nor a projector, so --model-base '%s' has no use",
                       s->path, s->base);
    TRY(llava_config_load(&m->cfg, exists(s->path, "config.json") || !s->base ? s->path : s->base, e));
    TRY(llava_config_bits(&m->cfg.bits, s->base ? s->base : s->path, e));
    TRY(add_file(m, ix, s->base ? s->base : s->path, NULL, e));
    if (projector) TRY(add_file(m, ix, s->path, "mm_projector.bin", e));
    if (adapter) TRY(add_beside(m, ix, s->path, e));
    if (adapter) TRY(lora_open(lora, s->path, e));
    if (adapter) TRY(index_rest(ix, lora, e));
out:
    return rc;
}

/* Hands the adapters to the model, for whoever merges them one at a time. */
static int keep_lora(struct llava_model *m, struct lora_set *lora, struct err *e)
{
    m->lora = malloc(sizeof *m->lora);
    if (!m->lora) return err_set(e, ERR_NOMEM, "no memory for an adapter");
    *m->lora = *lora;
    *lora = (struct lora_set){ 0 };
    return 0;
}

/* Gives a language model a tower and a projector, or a LLaVA other settings of them. */
static int add_vision(struct llava_model *m, const struct llava_vision *v, struct index *projector, struct err *e)
{
    struct llava_config *c = &m->cfg;
    c->select_layer = v->select_layer;
    c->select_cls = v->select_cls;
    if (!c->has_vision) {
        c->has_vision = true;
        c->n_projector = v->n_projector;
        c->merge = v->merge;
    } else if (c->n_projector != v->n_projector) {
        log_info("the model has a projector of %d linears and keeps it", c->n_projector);
    }
    if (c->hf_layout && v->tower) log_warn("the model has its vision tower inside: '%s' is not read", v->tower);
    if (!c->hf_layout && v->tower) snprintf(c->tower, sizeof c->tower, "%s", v->tower);
    return v->projector ? add_file(m, projector, v->projector, NULL, e) : 0;
}

/* Gives a language model the tower that adapters beside it were trained with, and how pictures are cut for it. */
static int add_sight(struct llava_model *m, const char *dir, struct err *e)
{
    struct llava_config *c = &m->cfg, with;
    int rc = llava_config_load(&with, dir, e);
    if (rc < 0) return rc;
    m->no_projector = c->has_vision = with.has_vision;
    memcpy(c->tower, with.tower, sizeof c->tower);
    c->n_projector = with.n_projector;
    c->mm_hidden = with.mm_hidden;
    c->select_layer = with.select_layer;
    c->select_cls = with.select_cls;
    c->aspect = with.aspect;
    c->merge = with.merge;
    c->pinpoints = with.pinpoints;
    c->text_max = with.text_max;
    return 0;
}

int llava_model_open(struct llava_model *m, const struct llava_source *s, struct err *e)
{
    *m = (struct llava_model){ .dev = s->dev };
    struct llava_source sight = *s; /* where the tower is looked for */
    struct index ix = { 0 }, projector = { 0 };
    struct lora_set lora = { 0 };
    int rc;
    TRY(model_open_files(m, s, &ix, &lora, e));
    if (s->text_only) m->cfg.has_vision = m->cfg.has_clip = false;
    if (s->vision) TRY(add_vision(m, s->vision, &projector, e));
    if (s->sees_as && !m->cfg.has_vision) TRY(add_sight(m, s->sees_as, e));
    if (m->no_projector) sight.path = s->sees_as;
    if (m->cfg.has_vision && tower_wanted(m, &sight, &ix, &lora)) {
        TRY(model_open_tower(m, &sight, &ix, e));
        TRY(model_check_vision(m, sight.path, e));
    }
    TRY(model_make_layers(m, e));
    choose_dtype(m, s, &ix);
    TRY(bind_all(m, s, &ix, &projector, &lora, e));
    TRY(lora_check_used(&lora, s->path, e));
    if (s->unmerged && lora.n) TRY(keep_lora(m, &lora, e));
    if (lora.n_rest) { /* parameters view its file */
        ASSERT(m->n_weights < WEIGHTS_SETS);
        m->weights[m->n_weights++] = lora.weights;
        lora.weights = NULL;
    }
out:
    lora_close(&lora);
    free(ix.at);
    free(projector.at);
    if (rc < 0) llava_model_close(m);
    return rc;
}

/* ---- a projector that comes with an adapter */

/* Was the adapter trained with pictures as this model gets them? */
static int check_sight(const struct llava_config *have, const char *dir, struct err *e)
{
    struct llava_config c;
    int rc = exists(dir, "config.json") ? llava_config_load(&c, dir, e) : 1;
    if (rc) return rc < 0 ? rc : 0;
    if (!c.has_vision || !have->has_vision) return 0;
    const struct { const char *key; bool same; } rows[] = {
        { "mm_projector_type", c.n_projector == have->n_projector },
        { "mm_vision_select_layer", c.select_layer == have->select_layer },
        { "mm_vision_select_feature", c.select_cls == have->select_cls },
        { "image_aspect_ratio", c.aspect == have->aspect },
        { "mm_patch_merge_type", c.merge == have->merge },
        { "image_grid_pinpoints", c.aspect != ASPECT_ANYRES || c.aspect != have->aspect ||
                                      !memcmp(&c.pinpoints, &have->pinpoints, sizeof c.pinpoints) },
        { "mm_use_im_start_end", c.im_start_end == have->im_start_end },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (!rows[i].same)
            return err_set(e, ERR_UNSUPPORTED, "'%s/config.json' has another '%s' than the model: merge the adapter",
                           dir, rows[i].key);
    return 0;
}

static int bind_projector(void *ctx, const struct bind_row *r, struct err *e)
{
    return r->part == PART_PROJECTOR ? bind_one(ctx, r, e) : 0;
}

int projector_open(struct own_projector *p, const struct llava_model *m, const struct lora_set *set, const char *dir,
                   struct err *e)
{
    struct llava_source s = { .path = dir, .bits = m->bits, .dev = m->dev };
    struct llava_model view = *m; /* the same shapes, types and device, but another projector and its own memory */
    struct index ix = { 0 };
    struct binder b = { .m = &view, .s = &s, .ix = &ix, .count = true };
    int rc;
    view.projector = (struct projector){ 0 };
    view.no_projector = false;
    view.n_weights = 0;
    view.own = (struct arena){ 0 };
    TRY(check_sight(&m->cfg, dir, e));
    TRY(add_beside(&view, &ix, dir, e));
    TRY(index_rest(&ix, set, e));
    if (!ix.n) goto out;
    for (size_t i = 0; i < ix.n; i++)
        if (strncmp(ix.at[i].name, "model.mm_projector", 18) != 0 && strcmp(ix.at[i].name, "model.image_newline") != 0)
            TRY(err_set(e, ERR_UNSUPPORTED, "'%s' of '%s' was trained with the adapter and is no part of a projector: "
                        "merge it", ix.at[i].w->name, ix.at[i].w->file));
    if (!m->cfg.has_vision)
        TRY(err_set(e, ERR_UNSUPPORTED, "it has a projector, but the model reads no pictures and no config.json of an "
                                        "adapter says how it might"));
    TRY(llava_each(&view, bind_projector, &b, e));
    TRY(dev_arena(&view.own, m->dev, b.bytes, e));
    TRY(place_begin(&b.placer, m->dev, NULL, NULL, (int64_t)b.bytes, e));
    b.count = false;
    TRY(llava_each(&view, bind_projector, &b, e));
    p->projector = view.projector;
    p->there = true;
out:
    place_end(&b.placer);
    free(ix.at);
    memcpy(p->weights, view.weights, sizeof p->weights);
    p->n_weights = view.n_weights;
    p->mem = view.own;
    return rc;
}

void projector_close(struct own_projector *p)
{
    for (int i = 0; i < p->n_weights; i++) weights_close(p->weights[i]);
    arena_fini(&p->mem);
    *p = (struct own_projector){ 0 };
}

static int free_served(void *ctx, const struct bind_row *r, struct err *e)
{
    (void)ctx, (void)e;
    if (r->linear) free((void *)r->linear->served);
    return 0;
}

void llava_model_close(struct llava_model *m)
{
    if (m->n_adapters) llava_each(m, free_served, NULL, NULL);
    free(m->llama.layer);
    free(m->clip.layer);
    free(m->clip_dir);
    if (m->lora) lora_close(m->lora);
    free(m->lora);
    for (int i = 0; i < m->n_weights; i++) weights_close(m->weights[i]);
    arena_fini(&m->own);
    arena_fini(&m->own_more);
    *m = (struct llava_model){ 0 };
}

int llava_model_context(struct llava_model *m, int n, struct err *e)
{
    arena_fini(&m->own_more);
    struct tensor t = tensor_2d(NULL, DT_F32, n, m->cfg.llama.D);
    float *host = malloc(tensor_bytes(t));
    if (!host) return err_set(e, ERR_NOMEM, "no memory for %d positions", n);
    int rc = dev_arena(&m->own_more, m->dev, tensor_bytes(t) + ARENA_ALIGN, e);
    if (rc >= 0) {
        t.p = arena_take(&m->own_more, tensor_bytes(t));
        llama_rope_table(&m->cfg.llama, host, n);
        dev_put(m->dev, t.p, host, tensor_bytes(t));
        m->llama.rope = t;
    }
    free(host);
    return rc;
}
