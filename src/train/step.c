/* See step.h. */
#include "train/step.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/plat.h"
#include "base/rng.h"

/* A device has the memory to be busier at once. */
enum {
    TOWER_GROUP = 4, DEVICE_TOWER_GROUP = 16, /* pictures that a frozen tower sees at once */
    HEAD_ROWS = 128, DEVICE_HEAD_ROWS = 2048, /* rows of logits at a time */
    SCRATCH_BYTES = 1 << 30, DEVICE_SCRATCH_BYTES = 256 << 20, /* the host's is address space: pages are taken when a
                                                                  kernel touches them */
    DEVICE_LIBRARY_BYTES = 64 << 20, /* what a library of matrix products takes, where it cannot be seen */
};

/* ---- from the host */

/* The next part of a block. */
static struct tensor part(struct tensor t, char *base, size_t *at)
{
    t.p = base + *at;
    *at += arena_aligned(tensor_bytes(t));
    return t;
}

/* Of a picture's features, before the projector. */
static int64_t feature_numbers(const struct step *s)
{
    return s->m->cfg.has_vision ? (int64_t)llava_tile_rows(s->m) * s->m->cfg.clip.C : 0;
}

/* Where everything of such a batch is in a block, whose size is returned. Pictures are last. */
static size_t lay_out(struct step_in *in, const struct step *s, const struct batch_limits *b, char *base)
{
    const int64_t side = b->n_images ? s->m->cfg.clip.image : 0;
    size_t at = 0;
    const int64_t seen = (int64_t)b->n_images * b->kept;
    *in = (struct step_in){ .T = b->T, .n_images = b->n_images, .n_given = b->n_given, .n_targets = b->n_targets,
                            .kept = b->kept };
    in->token = part(tensor_1d(NULL, DT_I32, b->T), base, &at);
    in->feature = part(tensor_1d(NULL, DT_I32, b->T), base, &at);
    in->pos = part(tensor_1d(NULL, DT_I32, b->T), base, &at);
    in->range = part(tensor_2d(NULL, DT_I32, b->T, 2), base, &at);
    in->at = part(tensor_1d(NULL, DT_I32, b->n_targets), base, &at);
    in->target = part(tensor_1d(NULL, DT_I32, b->n_targets), base, &at);
    in->weight = part(tensor_1d(NULL, DT_F32, b->n_targets), base, &at);
    in->patch = part(tensor_1d(NULL, DT_I32, seen), base, &at);
    in->patch_pos = part(tensor_1d(NULL, DT_I32, b->kept ? seen + b->n_images : 0), base, &at);
    in->given = part(tensor_2d(NULL, s->act_type, b->n_given, feature_numbers(s)), base, &at);
    in->pixels = part((struct tensor){ NULL, DT_F32, 4, 0, { b->n_images - b->n_given, 3, side, side } }, base, &at);
    return at;
}

/* The same for the larger of a batch without kept features and one of nothing else. */
static size_t lay_out_most(struct step_in *in, const struct step *s, const struct batch_limits *b, char *base)
{
    struct batch_limits given = *b;
    given.n_given = s->keeps_features ? b->n_images : 0;
    const size_t bytes = lay_out(in, s, &given, base), other = lay_out(in, s, b, base);
    return bytes > other ? bytes : other;
}

static size_t pixel_bytes(const struct step_in *in) { return arena_aligned(tensor_bytes(in->pixels)); }

/* Pictures are most of a batch, and a device waits meanwhile: one core would copy them at a tenth of a link's speed. */
static void copy_pixels(struct tensor to, const float *from)
{
    enum { CHUNK = 1 << 20 };
    const int64_t n = (int64_t)tensor_bytes(to);
#pragma omp parallel for schedule(static)
    for (int64_t at = 0; at < n; at += CHUNK)
        memcpy((char *)to.p + at, (const char *)from + at, (size_t)(n - at < CHUNK ? n - at : CHUNK));
}

/* Which of all patches are seen, and where they are in their pictures; the class token is there too. patches: of a
 * picture. */
static void fill_patches(const struct step_in *in, const struct batch *b, int patches)
{
    int32_t *pick = in->patch.p, *pos = in->patch_pos.p;
    const int32_t *from = b->patch;
    for (int i = 0; i < b->n_images; i++) {
        *pos++ = 0;
        for (int k = 0; k < b->kept; k++, from++) {
            *pick++ = i * patches + *from;
            *pos++ = 1 + *from;
        }
    }
}

/* Copies the batch into a block on the host that is laid out as `in`. */
static void fill_in(const struct step_in *in, const struct batch *b)
{
    memcpy(in->token.p, b->token, tensor_bytes(in->token));
    memcpy(in->feature.p, b->feature, tensor_bytes(in->feature));
    memcpy(in->pos.p, b->pos, tensor_bytes(in->pos));
    memcpy(in->range.p, b->range, tensor_bytes(in->range));
    if (b->n_given) memcpy(in->given.p, b->features, tensor_bytes(in->given));
    if (b->n_images > b->n_given) copy_pixels(in->pixels, b->pixels);
    for (int i = 0, k = 0; i < b->T; i++) {
        if (b->target[i] < 0) continue;
        ((int32_t *)in->at.p)[k] = i;
        ((int32_t *)in->target.p)[k] = b->target[i];
        ((float *)in->weight.p)[k++] = b->weight[i];
    }
}

static void send(struct step *s, const struct batch *b)
{
    const struct batch_limits sizes = batch_sizes(b);
    struct step_host *h = &s->host;
    struct step_in on_host;
    size_t bytes = lay_out(&on_host, s, &sizes, (char *)h->mem + s->losses);
    arena_rewind(&s->act, s->base);
    lay_out(&s->in, s, &sizes, arena_take(&s->act, bytes));
    s->in.place = b->place;
    if (!s->kc.dev) { /* pictures are large: straight to where they are read */
        on_host.pixels.p = s->in.pixels.p;
        bytes -= pixel_bytes(&on_host);
    }
    fill_in(&on_host, b);
    if (b->kept) fill_patches(&on_host, b, clip_patches(&s->m->cfg.clip));
    h->loss = h->mem;
    h->weight = on_host.weight.p;
    dev_send(s->kc.dev, s->in.token.p, on_host.token.p, bytes);
}

/* ---- forward */

/* The way back of all from layer i on has ended. */
static void passed(void *ctx, int i)
{
    struct step *s = ctx;
    states_back_done(s->states, &s->kern, &s->kc, s->m->cfg.llama.L - i);
}

/* Layers that are away, in the order of both ways. */
static char *away_open(void *ctx, size_t bytes, bool back)
{
    struct step *s = ctx;
    (void)back; /* which pass it is */
    s->away.most = bytes; /* equal in all layers */
    return pager_next(&s->away);
}

static void away_close(void *ctx, bool back)
{
    struct step *s = ctx;
    pager_done(&s->away, !back);
}

static struct op_ctx context_of(struct step *s, bool back, uint64_t drop_key)
{
    return (struct op_ctx){ .k = &s->kern, .kc = &s->kc, .act = &s->act, .tape = back ? s->tape : NULL,
                            .type = s->act_type, .drop_key = drop_key, .drop = s->drop, .kept = s->layer,
                            .away = &s->away_ops,
                            .tower_again = s->kept.none + s->kept.dear + s->kept.away > 0,
                            .passed = back && s->states && s->states->how.grads_away ? passed : NULL, .passed_ctx = s };
}

/* Of the tower's sequences the first n pictures. */
static struct clip_seq first_pictures(const struct step *s, int n, bool apart)
{
    const int64_t p = clip_patches(&s->m->cfg.clip), rows = n * (p + 1);
    return (struct clip_seq){ tensor_slice(s->tower.cls, 0, rows), tensor_slice(s->tower.pos, 0, rows),
                              tensor_slice(s->tower.put, 0, n * p), tensor_slice(s->tower.range, 0, rows),
                              (struct tensor){ 0 }, apart };
}

/* Of n pictures, of which a part is seen. */
static struct clip_seq parts_seen(const struct step *s, int n)
{
    const int64_t seen = (int64_t)n * s->in.kept, rows = seen + n;
    return (struct clip_seq){ tensor_slice(s->some.cls, 0, rows), s->in.patch_pos, tensor_slice(s->some.put, 0, seen),
                              tensor_slice(s->some.range, 0, rows), s->in.patch, false };
}

/* Pictures from..from+n in the type of activations. */
static struct tensor pixels(struct op_ctx *o, const struct step *s, int from, int n)
{
    struct tensor x = tensor_slice(s->in.pixels, from, n), y = x;
    if (o->type == DT_F32) return x;
    y.type = (int8_t)o->type;
    y.p = arena_take(o->act, tensor_bytes(y));
    OP_RUN(o, cast, y, x);
    return y;
}

/* Picture i's rows go where the batch has it. */
static void put_features(struct op_ctx *o, const struct step *s, struct tensor all, int i, struct tensor f)
{
    const int64_t rows = llava_tile_rows(s->m), at = o->dry ? i : s->in.place[i];
    f.nd = 2, f.n[0] = rows, f.n[1] = tensor_cols(all);
    OP_RUN(o, cast, tensor_slice(all, at * rows, rows), f);
}

/* Features of a frozen tower, [n*rows,C]: those that were kept; the others are made, without a tape, a picture's the
 * same in any company. */
static struct tensor frozen_features(struct op_ctx *o, struct step *s)
{
    const struct llava_config *c = &s->m->cfg;
    const int64_t rows = llava_tile_rows(s->m);
    const int made = s->in.n_images - s->in.n_given;
    struct tensor all = op_new(o, false, s->in.n_images * rows, c->clip.C);
    struct tape *tape = o->tape;
    const float drop = o->drop;
    o->tape = NULL;
    o->drop = 0;
    s->kc.training = false;
    for (int i = 0; i < made; i += s->group) {
        const int n = made - i < s->group ? made - i : s->group;
        const size_t mark = arena_mark(o->act);
        struct clip_seq seq = first_pictures(s, n, true);
        struct tensor f = clip_forward(o, &s->m->clip, &seq, pixels(o, s, i, n), c->select_layer, c->select_cls);
        for (int k = 0; k < n; k++) put_features(o, s, all, i + k, tensor_slice(f, k * rows, rows));
        arena_rewind(o->act, mark);
    }
    s->kc.training = true;
    for (int i = 0; i < s->in.n_given; i++) put_features(o, s, all, made + i, tensor_slice(s->in.given, i, 1));
    o->tape = tape;
    o->drop = drop;
    s->features = all;
    return all;
}

/* Embeddings of the tokens, features of pictures where a position has one. */
static struct tensor embed(struct op_ctx *o, struct step *s)
{
    struct tensor x = op_embed(o, &s->m->llama.embed, s->in.token), f;
    if (!s->in.n_images) return x;
    if (s->tower_trains) {
        const int n = s->in.n_images;
        struct clip_seq seq = s->in.kept ? parts_seen(s, n) : first_pictures(s, n, false);
        f = llava_encode(o, s->m, &s->m->projector, &seq, pixels(o, s, 0, s->in.n_images));
    } else {
        f = projector_forward(o, s->m, &s->m->projector, frozen_features(o, s));
    }
    return op_add(o, x, op_gather(o, f, s->in.feature)); /* one of the two is 0 in every row */
}

/* Losses of the targets, [n_targets]; gradients on the way where o has a tape. */
static struct tensor forward(struct op_ctx *o, struct step *s)
{
    const struct llama *l = &s->m->llama;
    const struct step_in *in = &s->in;
    struct llama_seq seq = { .pos = in->pos, .range = in->range };
    struct tensor kept = op_new_1d(o, DT_F32, in->n_targets); /* the way back gives the memory of layers back */
    struct tensor h = llama_forward(o, l, embed(o, s), &seq, NULL);
    struct tensor loss = op_linear_xent(o, op_gather(o, h, in->at), &l->head, in->target, s->smooth, in->weight,
                                        s->card ? DEVICE_HEAD_ROWS : HEAD_ROWS);
    OP_RUN(o, cast, kept, loss);
    if (o->tape && s->away.n) pager_begin(&s->away, PAGER_BACK);
    if (o->tape) tape_back(o);
    return kept;
}

/* ---- a batch */

void step_begin(struct step *s, const struct batch *b, bool back, uint64_t drop_key)
{
    struct step_host *h = &s->host;
    h->n = b->n_targets;
    h->n_made = 0;
    if (!h->n) return;
    struct op_ctx o = context_of(s, back, drop_key);
    send(s, b);
    tape_reset(s->tape);
    if (back && s->away.n) pager_begin(&s->away, PAGER_WRITE);
    if (back && s->states) states_back_begin(s->states);
    const struct tensor loss = forward(&o, s);
    if (back && s->states) states_back_done(s->states, &s->kern, &s->kc, s->m->cfg.llama.L + 1);
    dev_fetch(s->kc.dev, h->loss, loss.p, tensor_bytes(loss));
    h->n_made = s->keeps_features ? b->n_images - b->n_given : 0;
    const size_t each = step_feature_bytes(s);
    for (int i = 0; i < h->n_made; i++)
        dev_fetch(s->kc.dev, h->features + (size_t)i * each, (char *)s->features.p + (size_t)b->place[i] * each, each);
    dev_event_record(s->kc.dev, h->done);
}

double step_loss(struct step *s)
{
    const struct step_host *h = &s->host;
    double sum = 0;
    if (h->n) dev_event_wait(h->done);
    for (int i = 0; i < h->n; i++) sum += (double)h->weight[i] * (double)h->loss[i];
    return sum;
}

size_t step_feature_bytes(const struct step *s) { return (size_t)feature_numbers(s) * dtype_bytes(s->act_type); }

const void *step_made(const struct step *s, int i)
{
    ASSERT(i < s->host.n_made);
    return s->host.features + (size_t)i * step_feature_bytes(s);
}

double step_run(struct step *s, const struct batch *b, bool back, uint64_t drop_key)
{
    step_begin(s, b, back, drop_key);
    return step_loss(s);
}

/* ---- memory */

/* What stays: the sequences of the pictures that the tower sees at once. */
static void make_tower(struct step *s, bool dry)
{
    struct op_ctx o = context_of(s, false, 0);
    o.dry = dry;
    arena_rewind(&s->act, 0);
    if (s->group) s->tower = clip_seq_new(&o, &s->m->clip, s->group);
    if (s->most.kept) s->some = clip_seq_some(&o, s->most.n_images, s->most.kept);
    s->base = arena_mark(&s->act);
}

static size_t plan_one(struct step *s, const struct batch_limits *most, bool back)
{
    struct arena count, was = s->act;
    arena_init_counting(&count);
    s->act = count;
    make_tower(s, true);
    struct op_ctx o = context_of(s, back, 1);
    o.dry = true;
    tape_reset(s->tape);
    const size_t bytes = lay_out_most(&s->in, s, most, NULL);
    lay_out(&s->in, s, most, arena_take(&s->act, bytes));
    if (most->n_targets) forward(&o, s);
    const size_t high = s->act.high;
    s->act = was;
    if (back) s->away_bytes = o.away_most;
    return high;
}

/* Of each layer that is away. */
static size_t *away_sizes(const struct step *s)
{
    size_t *bytes = malloc((size_t)(s->kept.away + 1) * sizeof *bytes);
    if (!bytes) BUG("no memory for a list of layers");
    for (int i = 0; i < s->kept.away; i++) bytes[i] = s->away_bytes;
    return bytes;
}

static size_t place_bytes(const struct step *s)
{
    return s->kept.away ? pager_device_bytes(&s->away_bytes, 1, STEP_AWAY_PLACES) : 0;
}

size_t step_plan(struct step *s)
{
    const size_t train = plan_one(s, &s->most, true), eval = plan_one(s, &s->eval, false);
    return (train > eval ? train : eval) + place_bytes(s);
}

size_t step_away(const struct step *s) { return (size_t)s->kept.away * pager_host_bytes(&s->away_bytes, 1); }

void step_keep(struct step *s, const struct step_kept *k)
{
    const int L = s->m->cfg.llama.L;
    s->kept = *k;
    for (int i = 0, rest = 0; i < L; i++) {
        const bool away = (int64_t)i * k->away % L < k->away; /* evenly, the first one among them */
        s->layer[i] = away ? OP_KEPT_AWAY : rest < k->none ? OP_KEPT_NONE
                    : rest < k->none + k->dear ? OP_KEPT_DEAR : OP_KEPT_ALL;
        rest += !away;
    }
}

size_t step_scratch(const struct step *s)
{
    const struct llava_model *m = s->m;
    if (!s->card) return 0;
    /* the table of positions goes there with the model; blocks end with a page that is not full */
    const size_t rest = (m->dev ? 0 : tensor_bytes(m->llama.rope)) + (32 << 10);
    if (!s->kc.dev) return rest + DEVICE_SCRATCH_BYTES + DEVICE_LIBRARY_BYTES;
    return rest + dev_memory_now(s->kc.dev).used - (m->dev ? m->own.cap : 0);
}

static int most_pictures(const struct step *s)
{
    return s->most.n_images > s->eval.n_images ? s->most.n_images : s->eval.n_images;
}

int step_open(struct step *s, const struct llava_model *m, const struct step_options *o, struct err *e)
{
    const bool low = o->dtype == DT_BF16;
    *s = (struct step){ .m = m, .tape = tape_new(), .tower_trains = o->tower_trains,
                        .keeps_features = o->keeps_features, .card = o->dev || o->card,
                        .states = o->states, .act_type = (o->dev || o->card) && low ? DT_BF16 : DT_F32,
                        .smooth = (float)o->smooth, .drop = o->drop, .most = o->most, .eval = o->eval };
    s->kc = (struct kctx){ .scratch = &s->scratch, .n_threads = o->threads, .product = low ? DT_BF16 : DT_F32,
                           .training = true, .dev = o->dev };
    const int group = s->card ? DEVICE_TOWER_GROUP : TOWER_GROUP, most = most_pictures(s);
    s->group = s->tower_trains || most < group ? most : group;
    s->losses = arena_aligned((size_t)(o->most.n_targets > o->eval.n_targets ? o->most.n_targets : o->eval.n_targets) *
                        sizeof(float));
    s->layer = calloc((size_t)m->cfg.llama.L + 1, sizeof *s->layer);
    if (!s->layer) return err_set(e, ERR_NOMEM, "no memory for a list of layers");
    s->away_ops = (struct op_away){ s, away_open, away_close };
    const int rc = kern_init(&s->kern, o->dev, env_get(ENV_LLAVA_CPU), e);
    return rc < 0 ? rc : dev_arena(&s->scratch, o->dev, o->dev ? DEVICE_SCRATCH_BYTES : SCRATCH_BYTES, e);
}

/* Bytes of a batch's block on the host. */
static size_t block_bytes(const struct step *s, const struct batch_limits *most)
{
    struct step_in in;
    const size_t bytes = lay_out_most(&in, s, most, NULL);
    return s->kc.dev || s->keeps_features ? bytes : bytes - pixel_bytes(&in);
}

/* Room for the larger of the two kinds of batches, behind its losses. */
static int fill_host(struct step *s, struct err *e)
{
    const size_t train = block_bytes(s, &s->most), eval = block_bytes(s, &s->eval);
    s->host.done = dev_event_new(s->kc.dev);
    const int rc = dev_pinned(&s->host.mem, s->kc.dev, s->losses + (train > eval ? train : eval), e);
    if (rc < 0 || !s->keeps_features) return rc;
    return dev_pinned((void **)&s->host.features, s->kc.dev,
                      (size_t)most_pictures(s) * step_feature_bytes(s), e);
}

int step_fill(struct step *s, struct err *e)
{
    const size_t bytes = step_plan(s), places = place_bytes(s);
    size_t *away = away_sizes(s);
    int rc;
    TRY(dev_arena(&s->act, s->kc.dev, bytes - places, e));
    if (s->kept.away) TRY(pager_open(&s->away, s->kc.dev, away, s->kept.away, STEP_AWAY_PLACES, s->pageable, e));
    make_tower(s, false);
    rc = fill_host(s, e);
out:
    free(away);
    return rc < 0 ? err_prefix(e, "memory for activations") : rc;
}

void step_close(struct step *s)
{
    dev_sync(s->kc.dev);
    pager_close(&s->away);
    tape_free(s->tape);
    free(s->layer);
    dev_pinned_free(s->kc.dev, s->host.mem);
    dev_pinned_free(s->kc.dev, s->host.features);
    dev_event_free(s->host.done);
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
    double token = 0, patch = 0, project = 0;
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
    for (int i = 0; i < m->cfg.n_projector; i++) project += linear_flops(&m->projector.linear[i], i > 0);
    const double rows = b->kept ? b->kept : m->cfg.has_vision ? (double)llava_tile_rows(m) : 0;
    return token * b->T + rows * (patch * (b->n_images - b->n_given) + project * b->n_images) +
           linear_flops(&m->llama.head, true) * b->n_targets;
}

double step_flops_again(const struct step *s, const struct batch_limits *b)
{
    const struct llama *l = &s->m->llama;
    double token = 0;
    for (int i = 0; i < l->cfg.L; i++) {
        if (s->layer[i] != OP_KEPT_NONE) continue;
        const struct linear *all[] = { &l->layer[i].q, &l->layer[i].k, &l->layer[i].v, &l->layer[i].o,
                                       &l->layer[i].gate, &l->layer[i].up, &l->layer[i].down };
        for (int k = 0; k < 7; k++) { /* the last one's result is not needed again, but for what its B reads */
            const struct lora *a = all[k]->lora;
            if (k < 6) token += 2.0 * (double)tensor_count(all[k]->w.w);
            if (a) token += 2.0 * (double)(tensor_count(a->a.w) + (k < 6 ? tensor_count(a->b.w) : 0));
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

/* Of n x n products, the best of a few; 0: no memory to find out. *time: of one. */
static double ceiling_of(struct step *s, enum dtype w_type, int64_t n, double *time)
{
    enum { TIMES = 5 };
    struct tensor x = { 0 }, w = { 0 }, y, none = { 0 };
    struct arena mem = { 0 };
    *time = HUGE_VAL;
    if (dev_arena(&mem, s->kc.dev, (size_t)(3 * n * n) * sizeof(float) + 4 * ARENA_ALIGN, NULL) < 0) return 0;
    if (put_noise(s, &x, n, s->act_type, &mem, NULL) < 0 || put_noise(s, &w, n, w_type, &mem, NULL) < 0) goto out;
    y = x;
    y.p = arena_take(&mem, tensor_bytes(y));
    for (int i = 0; i <= TIMES; i++) {
        const double start = plat_now_s();
        s->kern.matmul(&s->kc, y, x, w, none, none);
        dev_sync(s->kc.dev);
        if (i) *time = fmin(*time, plat_now_s() - start); /* the first one opens libraries */
    }
out:
    arena_fini(&mem);
    return 2 * pow((double)n, 3) / *time;
}

double step_ceiling(struct step *s, enum dtype w_type)
{
    enum { HOST_N = 768, DEVICE_LEAST = 128, DEVICE_MOST = 8192 };
    double best = 0, time = 0;
    if (!s->kc.dev) return ceiling_of(s, w_type, HOST_N, &time);
    for (int64_t n = DEVICE_LEAST; n <= DEVICE_MOST && time < 1e-3; n *= 4) best = ceiling_of(s, w_type, n, &time);
    return best;
}

/* Seconds of copying so much over the link, one way. */
static double link_time(struct dev *d, bool down, char *there, char *here, size_t bytes)
{
    struct dev_lane *lane = dev_lane_new(d);
    struct dev_event *end = dev_event_new(d);
    double best = HUGE_VAL;
    for (int i = 0; i < 3; i++) {
        const double start = plat_now_s();
        if (down) dev_lane_send(lane, there, here, bytes);
        else dev_lane_fetch(lane, here, there, bytes);
        dev_lane_record(lane, end);
        dev_event_wait(end);
        best = fmin(best, plat_now_s() - start);
    }
    dev_event_free(end);
    dev_lane_free(lane);
    return best;
}

double step_link(struct step *s)
{
    const size_t bytes = (size_t)128 << 20;
    struct arena there = { 0 };
    void *here = NULL;
    double speed = 0;
    if (!s->kc.dev) return 0;
    if (dev_arena(&there, s->kc.dev, bytes, NULL) >= 0 && dev_pinned(&here, s->kc.dev, bytes, NULL) >= 0) {
        memset(here, 1, bytes);
        const double up = link_time(s->kc.dev, false, there.base, here, bytes);
        speed = (double)bytes / fmax(up, link_time(s->kc.dev, true, there.base, here, bytes));
    }
    dev_pinned_free(s->kc.dev, here);
    arena_fini(&there);
    return speed;
}
