/* See fill.h. */
#include "model/fill.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "model/place.h"
#include "tensor/quant.h"

struct binder {
    struct llava_model *m;
    const struct llava_source *s;
    const struct index *ix;
    const struct index *projector; /* of a file that holds the projector; NULL: it is in ix */
    struct lora_set *lora; /* NULL: none */
    const struct llava_placing *how; /* of a model on its way to a device */
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

static int bind_part(void *ctx, const struct bind_row *r, struct err *e)
{
    return r->part == PART_PROJECTOR ? bind_one(ctx, r, e) : 0;
}

static void tie(struct llava_model *m)
{
    if (m->cfg.llama.tied) m->llama.head.w = m->llama.embed;
}

/* Counts the bytes of what fn has to make, takes them and makes it. fn's ctx is b. */
static int twice(struct binder *b, bind_fn fn, const struct llava_source *s, const struct kern *kern, struct kctx *kc,
                 struct err *e)
{
    struct llava_model *m = b->m;
    int rc;
    b->count = true;
    TRY(llava_each(m, fn, b, e));
    tie(m);
    if (s && s->admit) TRY(s->admit(s->ctx, b->bytes, e));
    TRY(dev_arena(&m->own, m->dev, b->bytes, e));
    TRY(place_begin(&b->placer, m->dev, kern, kc, (int64_t)b->bytes, e));
    b->count = false;
    TRY(llava_each(m, fn, b, e));
    tie(m);
out:
    place_end(&b->placer);
    return rc;
}

int bind_all(struct llava_model *m, const struct llava_source *s, const struct index *ix,
             const struct index *projector, struct lora_set *lora, struct err *e)
{
    struct binder b = { .m = m, .s = s, .ix = ix, .projector = projector->n ? projector : NULL, .lora = lora };
    rng_seed(&b.rng, s->vision ? s->vision->seed : 0);
    return twice(&b, bind_one, s, s->kern, s->kc, e);
}

int bind_projector(struct llava_model *m, const struct llava_source *s, const struct index *ix, struct err *e)
{
    struct binder b = { .m = m, .s = s, .ix = ix };
    return twice(&b, bind_part, NULL, NULL, NULL, e);
}

struct tensor llava_placed(const struct llava_placing *p, const struct bind_row *r)
{
    struct tensor t = r->param->w;
    const enum dtype file = (enum dtype)t.type;
    const bool trains = (r->param->flags & PARAM_TRAIN) != 0;
    t.type = (int8_t)(trains ? p->dtype : kept_quant(p, r, file, kept_type(p, r, file)));
    return t;
}

/* ---- to a device */

static int move_one(void *ctx, const struct bind_row *r, struct err *e)
{
    struct binder *b = ctx;
    const struct tensor from = r->param->w;
    if (!from.p) return 0;
    struct tensor to = llava_placed(b->how, r);
    b->bytes += tensor_bytes(to) + ARENA_ALIGN;
    if (b->count) return 0;
    to.p = arena_take(&b->m->own, tensor_bytes(to));
    r->param->w = to;
    return param_make(b, to, from, NULL, e);
}

int llava_model_place(struct llava_model *m, const struct llava_placing *p, struct err *e)
{
    struct binder b = { .m = m, .how = p };
    struct arena host = m->own;
    m->own = (struct arena){ 0 };
    m->dev = p->dev;
    m->bits = p->bits;
    const int rc = twice(&b, move_one, NULL, p->kern, p->kc, e);
    arena_fini(&host);
    return rc;
}
