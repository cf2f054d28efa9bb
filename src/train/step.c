/* See step.h. */
#include "train/step.h"

#include <math.h>
#include <stdlib.h>

#include "base/plat.h"
#include "base/rng.h"

enum {
    TOWER_GROUP = 4,  /* pictures that a frozen tower sees at once */
    HEAD_ROWS = 128,  /* rows of logits at a time */
    SCRATCH_BYTES = 1 << 30, /* address space; pages are taken when a kernel touches them */
};

/* ---- from the host */

static struct tensor ints(struct op_ctx *o, int32_t *host, int64_t rows, int64_t cols)
{
    return op_input(o, cols ? tensor_2d(host, DT_I32, rows, cols) : tensor_1d(host, DT_I32, rows));
}

static struct tensor pixels(struct op_ctx *o, const struct step *s, const struct batch *b, int from, int n)
{
    const int64_t side = s->m->cfg.clip.image;
    float *at = o->dry ? NULL : b->pixels + from * 3 * side * side;
    return op_input(o, (struct tensor){ at, DT_F32, 4, 0, { n, 3, side, side } });
}

/* Positions that have a target, and what is known of each: [n_targets]. Weights are f32 whatever activations are. */
struct targets { struct tensor at, token, weight; };

static struct targets put_targets(struct op_ctx *o, struct step *s, const struct batch *b)
{
    struct step_host *h = &s->host;
    for (int i = 0, k = 0; i < b->T && !o->dry; i++) {
        if (b->target[i] < 0) continue;
        h->at[k] = i;
        h->token[k] = b->target[i];
        h->weight[k++] = b->weight[i];
    }
    struct targets t = { .at = ints(o, h->at, b->n_targets, 0), .token = ints(o, h->token, b->n_targets, 0),
                         .weight = tensor_1d(NULL, DT_F32, b->n_targets) };
    t.weight.p = arena_take(o->act, tensor_bytes(t.weight));
    if (!o->dry) dev_put(s->kc.dev, t.weight.p, h->weight, tensor_bytes(t.weight));
    return t;
}

/* ---- forward */

static struct op_ctx context_of(struct step *s, bool back, uint64_t drop_key)
{
    return (struct op_ctx){ .k = &s->kern, .kc = &s->kc, .act = &s->act, .tape = back ? s->tape : NULL,
                            .type = s->act_type, .recompute = s->checkpoint ? s->m->cfg.llama.L : 0,
                            .drop_key = drop_key };
}

/* Features of a frozen tower, [n*rows,C], made without a tape. */
static struct tensor frozen_features(struct op_ctx *o, const struct step *s, const struct batch *b)
{
    const struct llava_config *c = &s->m->cfg;
    const int64_t rows = llava_tile_rows(s->m);
    struct tensor all = op_new(o, false, b->n_images * rows, c->clip.C);
    struct tape *tape = o->tape;
    o->tape = NULL;
    for (int i = 0; i < b->n_images; i += TOWER_GROUP) {
        const int n = b->n_images - i < TOWER_GROUP ? b->n_images - i : TOWER_GROUP;
        const size_t mark = arena_mark(o->act);
        struct clip_seq seq = clip_seq_new(o, &s->m->clip, n);
        struct tensor f = clip_forward(o, &s->m->clip, &seq, pixels(o, s, b, i, n), c->select_layer, c->select_cls);
        OP_RUN(o, cast, tensor_slice(all, i * rows, n * rows), f);
        arena_rewind(o->act, mark);
    }
    o->tape = tape;
    return all;
}

/* Embeddings of the tokens, features of pictures where a position has one. */
static struct tensor embed(struct op_ctx *o, const struct step *s, const struct batch *b)
{
    struct tensor x = op_embed(o, &s->m->llama.embed, ints(o, b->token, b->T, 0)), f;
    if (!b->n_images) return x;
    if (s->tower_trains) {
        struct clip_seq seq = clip_seq_new(o, &s->m->clip, b->n_images);
        f = llava_encode(o, s->m, &s->m->projector, &seq, pixels(o, s, b, 0, b->n_images));
    } else {
        f = projector_forward(o, s->m, &s->m->projector, frozen_features(o, s, b));
    }
    return op_add(o, x, op_gather(o, f, ints(o, b->feature, b->T, 0))); /* one of the two is 0 in every row */
}

/* Losses of the targets, [n_targets]; gradients on the way where o has a tape. */
static struct tensor forward(struct op_ctx *o, const struct step *s, const struct batch *b, const struct targets *t)
{
    const struct llama *l = &s->m->llama;
    struct llama_seq seq = { .pos = ints(o, b->pos, b->T, 0), .range = ints(o, b->range, b->T, 2) };
    struct tensor kept = op_new_1d(o, DT_F32, b->n_targets); /* the way back gives the memory of layers back */
    struct tensor h = llama_forward(o, l, embed(o, s, b), &seq, NULL);
    struct tensor loss = op_linear_xent(o, op_gather(o, h, t->at), &l->head, t->token, t->weight, HEAD_ROWS);
    OP_RUN(o, cast, kept, loss);
    if (o->tape) tape_back(o);
    return kept;
}

/* ---- a batch */

double step_run(struct step *s, const struct batch *b, bool back, uint64_t drop_key)
{
    if (!b->n_targets) return 0;
    struct op_ctx o = context_of(s, back, drop_key);
    double sum = 0;
    arena_rewind(&s->act, 0);
    tape_reset(s->tape);
    struct targets t = put_targets(&o, s, b);
    op_output(&o, s->host.loss, forward(&o, s, b, &t));
    for (int i = 0; i < b->n_targets; i++) sum += (double)s->host.weight[i] * (double)s->host.loss[i];
    return sum;
}

/* ---- memory */

static size_t plan_one(struct step *s, const struct batch_limits *most, bool back)
{
    struct arena count, was = s->act;
    const struct batch b = { .n = most->n, .T = most->T, .n_images = most->n_images, .n_targets = most->n_targets };
    arena_init_counting(&count);
    s->act = count;
    struct op_ctx o = context_of(s, back, 1);
    o.dry = true;
    tape_reset(s->tape);
    struct targets t = put_targets(&o, s, &b);
    if (b.n_targets) op_output(&o, NULL, forward(&o, s, &b, &t));
    const size_t high = s->act.high;
    s->act = was;
    return high;
}

size_t step_plan(struct step *s)
{
    const size_t train = plan_one(s, &s->most, true), eval = plan_one(s, &s->eval, false);
    return train > eval ? train : eval;
}

int step_open(struct step *s, const struct llava_model *m, bool tower_trains, bool checkpoint, enum dtype product,
              int threads, const struct batch_limits *most, const struct batch_limits *eval, struct err *e)
{
    *s = (struct step){ .m = m, .tape = tape_new(), .tower_trains = tower_trains, .checkpoint = checkpoint,
                        .act_type = DT_F32, .most = *most, .eval = *eval };
    kern_init_cpu(&s->kern, env_get(ENV_LLAVA_CPU));
    s->kc = (struct kctx){ .scratch = &s->scratch, .n_threads = threads, .product = product };
    const size_t n = (size_t)(most->n_targets > eval->n_targets ? most->n_targets : eval->n_targets) + 1;
    s->host = (struct step_host){ malloc(n * sizeof(int32_t)), malloc(n * sizeof(int32_t)), malloc(n * sizeof(float)),
                                  malloc(n * sizeof(float)) };
    if (!s->host.at || !s->host.token || !s->host.weight || !s->host.loss)
        return err_set(e, ERR_NOMEM, "no memory for %zu targets", n);
    return arena_init(&s->scratch, SCRATCH_BYTES, e);
}

int step_fill(struct step *s, struct err *e)
{
    const int rc = arena_init(&s->act, step_plan(s), e);
    return rc < 0 ? err_prefix(e, "memory for activations") : 0;
}

void step_close(struct step *s)
{
    tape_free(s->tape);
    free(s->host.at);
    free(s->host.token);
    free(s->host.weight);
    free(s->host.loss);
    arena_fini(&s->act);
    arena_fini(&s->scratch);
    *s = (struct step){ 0 };
}

/* ---- work */

/* Operations of a product with w for each row and number: 2 forward, 2 for the input's gradient, 2 for its own. */
static double linear_flops(const struct linear *l, bool dx)
{
    const double n = l->w.w.p ? (double)tensor_count(l->w.w) : 0;
    double f = n * (2 + (dx ? 2 : 0) + (param_trains(&l->w) ? 2 : 0));
    if (l->lora) f += 6 * (double)(tensor_count(l->lora->a.w) + tensor_count(l->lora->b.w));
    return f;
}

double step_flops(const struct step *s, const struct batch_limits *b)
{
    const struct llava_model *m = s->m;
    double token = 0, patch = 0;
    for (int i = 0; i < m->cfg.llama.L; i++) {
        const struct llama_layer *l = &m->llama.layer[i];
        const struct linear *all[] = { &l->q, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down };
        for (int k = 0; k < 7; k++) token += linear_flops(all[k], true);
        /* attention: two products forward, four back, over half the positions of a record */
        token += 6.0 * m->cfg.llama.H * m->cfg.llama.D * b->T / (b->n ? b->n : 1);
    }
    for (int i = 0; m->cfg.has_clip && i < clip_layers_used(&m->cfg.clip, m->cfg.select_layer); i++) {
        const struct clip_layer *l = &m->clip.layer[i];
        const struct linear *all[] = { &l->q, &l->k, &l->v, &l->o, &l->fc1, &l->fc2 };
        for (int k = 0; k < 6; k++) patch += linear_flops(all[k], s->tower_trains);
    }
    for (int i = 0; i < m->cfg.n_projector; i++) patch += linear_flops(&m->projector.linear[i], i > 0);
    const double rows = m->cfg.has_vision ? (double)llava_tile_rows(m) : 0;
    return token * b->T + patch * rows * b->n_images + linear_flops(&m->llama.head, true) * b->n_targets;
}

double step_flops_again(const struct step *s, const struct batch_limits *b)
{
    const struct llama *l = &s->m->llama;
    double token = 0;
    if (!s->checkpoint) return 0;
    for (int i = 0; i < l->cfg.L; i++) {
        const struct linear *all[] = { &l->layer[i].q, &l->layer[i].k, &l->layer[i].v, &l->layer[i].o,
                                       &l->layer[i].gate, &l->layer[i].up, &l->layer[i].down };
        for (int k = 0; k < 7; k++) {
            token += 2.0 * (double)tensor_count(all[k]->w.w);
            if (all[k]->lora)
                token += 2.0 * (double)(tensor_count(all[k]->lora->a.w) + tensor_count(all[k]->lora->b.w));
        }
        token += 2.0 * l->cfg.H * l->cfg.D * b->T / (b->n ? b->n : 1);
    }
    return token * b->T;
}

/* t[n,n] with random numbers in its type. */
static int put_noise(struct step *s, struct tensor *t, int64_t n, enum dtype type, struct arena *mem, struct err *e)
{
    const int64_t count = n * n;
    float *wide = malloc((size_t)count * sizeof *wide);
    void *host = malloc((size_t)count * sizeof *wide);
    struct rng r;
    if (wide && host) {
        rng_seed(&r, (uint64_t)n);
        for (int64_t i = 0; i < count; i++) wide[i] = (float)(rng_unit(&r) - 0.5);
        dtype_convert(host, type, wide, DT_F32, count);
        *t = tensor_2d(NULL, type, n, n);
        t->p = arena_take(mem, tensor_bytes(*t));
        dev_put(s->kc.dev, t->p, host, tensor_bytes(*t));
    }
    const int rc = wide && host ? 0 : err_set(e, ERR_NOMEM, "no memory for a matrix");
    free(wide);
    free(host);
    return rc;
}

double step_ceiling(struct step *s, enum dtype w_type)
{
    enum { TIMES = 5, HOST_N = 768, DEVICE_N = 8192 };
    const int64_t n = s->kc.dev ? DEVICE_N : HOST_N;
    struct tensor x = { 0 }, w = { 0 }, y, none = { 0 };
    struct arena mem = { 0 };
    double best = 0;
    if (dev_arena(&mem, s->kc.dev, (size_t)(3 * n * n) * sizeof(float) + 4 * ARENA_ALIGN, NULL) < 0) return 0;
    if (put_noise(s, &x, n, s->act_type, &mem, NULL) < 0 || put_noise(s, &w, n, w_type, &mem, NULL) < 0) goto out;
    y = x;
    y.p = arena_take(&mem, tensor_bytes(y));
    for (int i = 0; i <= TIMES; i++) {
        const double start = plat_now_s();
        s->kern.matmul(&s->kc, y, x, w, none, none);
        dev_sync(s->kc.dev);
        const double speed = 2 * pow((double)n, 3) / (plat_now_s() - start);
        if (i && speed > best) best = speed; /* the first one opens libraries */
    }
out:
    arena_fini(&mem);
    return best;
}
