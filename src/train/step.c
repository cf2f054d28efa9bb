/* See step.h. */
#include "train/step.h"

#include <stdlib.h>

#include "base/plat.h"

/* A device has the memory to be busier at once. */
enum {
    TOWER_GROUP = 4, DEVICE_TOWER_GROUP = 16, /* pictures that a frozen tower sees at once */
    HEAD_ROWS = 128, DEVICE_HEAD_ROWS = 2048, /* rows of logits at a time */
    SCRATCH_BYTES = 1 << 30, DEVICE_SCRATCH_BYTES = 256 << 20, /* the host's is address space: pages are taken when a
                                                                  kernel touches them */
    DEVICE_LIBRARY_BYTES = 64 << 20, /* what a library of matrix products takes, where it cannot be seen */
};

/* ---- from the host */

/* The larger of a batch without kept features and one of nothing else. */
static size_t lay_out_most(struct input *in, const struct step *s, const struct batch_limits *b)
{
    struct batch_limits given = *b;
    given.n_given = s->rule.keeps_features ? b->n_images : 0;
    const size_t bytes = input_lay_out(in, s->m, s->rule.act, &given, NULL);
    const size_t other = input_lay_out(in, s->m, s->rule.act, b, NULL);
    return bytes > other ? bytes : other;
}

static void send(struct step *s, const struct batch *b)
{
    const struct batch_limits sizes = batch_sizes(b);
    struct step_host *h = &s->host;
    struct input on_host;
    size_t bytes = input_lay_out(&on_host, s->m, s->rule.act, &sizes, (char *)h->mem + h->losses);
    arena_rewind(&s->act, s->base);
    input_lay_out(&s->in, s->m, s->rule.act, &sizes, arena_take(&s->act, bytes));
    if (!s->kc.dev) { /* pictures are large: straight to where they are read */
        on_host.pixels.p = s->in.pixels.p;
        bytes -= input_pixel_bytes(&on_host);
    }
    input_fill(&on_host, s->m, b);
    h->place = b->place;
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
    s->layers.away.most = bytes; /* equal in all layers */
    return pager_next(&s->layers.away);
}

static void away_close(void *ctx, bool back)
{
    struct step *s = ctx;
    pager_done(&s->layers.away, !back);
}

static struct op_ctx context_of(struct step *s, bool back, uint64_t drop_key)
{
    return (struct op_ctx){ .k = &s->kern, .kc = &s->kc, .act = &s->act, .tape = back ? s->tape : NULL,
                            .type = s->rule.act, .drop_key = drop_key, .drop = s->rule.drop, .kept = s->layers.kind,
                            .away = &s->layers.ops,
                            .tower_again = s->layers.kept.none + s->layers.kept.dear + s->layers.kept.away > 0,
                            .passed = back && s->states->how.grads_away ? passed : NULL, .passed_ctx = s };
}

/* Of the tower's sequences the first n pictures. */
static struct clip_seq first_pictures(const struct step *s, int n, bool apart)
{
    const struct clip_seq *all = &s->tower.whole;
    const int64_t p = clip_patches(&s->m->cfg.clip), rows = n * (p + 1);
    return (struct clip_seq){ tensor_slice(all->cls, 0, rows), tensor_slice(all->pos, 0, rows),
                              tensor_slice(all->put, 0, n * p), tensor_slice(all->range, 0, rows),
                              (struct tensor){ 0 }, apart };
}

/* Of n pictures, of which a part is seen. */
static struct clip_seq parts_seen(const struct step *s, int n)
{
    const struct clip_seq *all = &s->tower.some;
    const int64_t seen = (int64_t)n * s->in.kept, rows = seen + n;
    return (struct clip_seq){ tensor_slice(all->cls, 0, rows), s->in.patch_pos, tensor_slice(all->put, 0, seen),
                              tensor_slice(all->range, 0, rows), s->in.patch, false };
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
    const int64_t rows = llava_tile_rows(s->m), at = o->dry ? i : s->host.place[i];
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
    for (int i = 0; i < made; i += s->tower.group) {
        const int n = made - i < s->tower.group ? made - i : s->tower.group;
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
    s->tower.features = all;
    return all;
}

/* Embeddings of the tokens, features of pictures where a position has one. */
static struct tensor embed(struct op_ctx *o, struct step *s)
{
    struct tensor x = op_embed(o, &s->m->llama.embed, s->in.token), f;
    if (!s->in.n_images) return x;
    if (s->rule.tower_trains) {
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
    const struct input *in = &s->in;
    struct llama_seq seq = { .pos = in->pos, .range = in->range };
    struct tensor kept = op_new_1d(o, DT_F32, in->n_targets); /* the way back gives the memory of layers back */
    struct tensor h = llama_forward(o, l, embed(o, s), &seq, NULL);
    struct tensor loss = op_linear_xent(o, op_gather(o, h, in->at), &l->head, in->target, s->rule.smooth, in->weight,
                                        s->rule.card ? DEVICE_HEAD_ROWS : HEAD_ROWS);
    OP_RUN(o, cast, kept, loss);
    if (o->tape && s->layers.away.n) pager_begin(&s->layers.away, PAGER_BACK);
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
    if (back && s->layers.away.n) pager_begin(&s->layers.away, PAGER_WRITE);
    if (back) states_back_begin(s->states);
    const struct tensor loss = forward(&o, s);
    if (back) states_back_done(s->states, &s->kern, &s->kc, s->m->cfg.llama.L + 1);
    dev_fetch(s->kc.dev, h->loss, loss.p, tensor_bytes(loss));
    h->n_made = s->rule.keeps_features ? b->n_images - b->n_given : 0;
    const size_t each = step_feature_bytes(s);
    for (int i = 0; i < h->n_made; i++)
        dev_fetch(s->kc.dev, h->features + (size_t)i * each,
                  (char *)s->tower.features.p + (size_t)b->place[i] * each, each);
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

size_t step_feature_bytes(const struct step *s)
{
    return (size_t)input_features(s->m) * dtype_bytes(s->rule.act);
}

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
    const struct batch_limits *most = &s->rule.most;
    o.dry = dry;
    arena_rewind(&s->act, 0);
    if (s->tower.group) s->tower.whole = clip_seq_new(&o, &s->m->clip, s->tower.group);
    if (most->kept) s->tower.some = clip_seq_some(&o, most->n_images, most->kept);
    s->base = arena_mark(&s->act);
}

/* Bytes of activations of such a batch; *away: of a layer that is away. s is a copy that only counts. */
static size_t count(struct step *s, const struct batch_limits *most, bool back, size_t *away)
{
    arena_init_counting(&s->act);
    make_tower(s, true);
    struct op_ctx o = context_of(s, back, 1);
    o.dry = true;
    tape_reset(s->tape);
    input_lay_out(&s->in, s->m, s->rule.act, most, arena_take(&s->act, lay_out_most(&s->in, s, most)));
    if (most->n_targets) forward(&o, s);
    if (back) *away = o.away_most;
    return s->act.high;
}

/* kind[L] */
static void spread(uint8_t *kind, int L, const struct step_kept *k)
{
    for (int i = 0, rest = 0; i < L; i++) {
        const bool away = (int64_t)i * k->away % L < k->away; /* evenly, the first one among them */
        kind[i] = away ? OP_KEPT_AWAY : rest < k->none ? OP_KEPT_NONE
                : rest < k->none + k->dear ? OP_KEPT_DEAR : OP_KEPT_ALL;
        rest += !away;
    }
}

struct step_bytes step_bytes(const struct step *s, const struct step_kept *k)
{
    const int L = s->m->cfg.llama.L;
    struct step dry = *s;
    size_t each = 0;
    dry.layers = (struct step_layers){ .kept = *k, .kind = malloc((size_t)L + 1) };
    if (!dry.layers.kind) BUG("no memory for a list of layers");
    spread(dry.layers.kind, L, k);
    const size_t train = count(&dry, &s->rule.most, true, &each), eval = count(&dry, &s->rule.eval, false, &each);
    free(dry.layers.kind);
    return (struct step_bytes){ .here = train > eval ? train : eval,
                                .places = k->away ? pager_device_bytes(&each, 1, STEP_AWAY_PLACES) : 0,
                                .away = (size_t)k->away * pager_host_bytes(&each, 1) };
}

void step_keep(struct step *s, const struct step_kept *k)
{
    s->layers.kept = *k;
    spread(s->layers.kind, s->m->cfg.llama.L, k);
}

size_t step_scratch(const struct step *s)
{
    const struct llava_model *m = s->m;
    if (!s->rule.card) return 0;
    /* the table of positions goes there with the model; blocks end with a page that is not full */
    const size_t rest = (m->dev ? 0 : tensor_bytes(m->llama.rope)) + (32 << 10);
    if (!s->kc.dev) return rest + DEVICE_SCRATCH_BYTES + DEVICE_LIBRARY_BYTES;
    return rest + dev_memory_now(s->kc.dev).used - (m->dev ? m->own.cap : 0);
}

static struct step_rule rule_of(const struct trainee *t, const struct train_args *a, const struct batch_limits *most,
                                const struct batch_limits *eval)
{
    return (struct step_rule){ .card = t->card, .tower_trains = t->tower_trains,
                               .keeps_features = a->cache_features != NULL, .pageable = a->pageable,
                               .drop = (float)a->residual_dropout, .smooth = (float)a->label_smoothing_factor,
                               .act = t->card && t->dtype == DT_BF16 ? DT_BF16 : DT_F32, .most = *most,
                               .eval = eval ? *eval : (struct batch_limits){ 0 } };
}

static int larger(int a, int b) { return a > b ? a : b; }

static int most_pictures(const struct step_rule *r) { return larger(r->most.n_images, r->eval.n_images); }

int step_open(struct step *s, struct trainee *t, const struct train_args *a, const struct batch_limits *most,
              const struct batch_limits *eval, struct err *e)
{
    *s = (struct step){ .m = &t->model, .states = &t->states, .tape = tape_new(), .rule = rule_of(t, a, most, eval) };
    s->kc = (struct kctx){ .scratch = &s->scratch, .n_threads = train_args_threads(a), .training = true, .dev = t->dev,
                           .product = t->dtype == DT_BF16 ? DT_BF16 : DT_F32 };
    const int group = t->card ? DEVICE_TOWER_GROUP : TOWER_GROUP, pictures = most_pictures(&s->rule);
    s->tower.group = t->tower_trains || pictures < group ? pictures : group;
    s->host.losses = arena_aligned((size_t)larger(most->n_targets, s->rule.eval.n_targets) * sizeof(float));
    s->layers.ops = (struct op_away){ s, away_open, away_close };
    s->layers.kind = calloc((size_t)t->model.cfg.llama.L + 1, sizeof *s->layers.kind);
    if (!s->layers.kind) return err_set(e, ERR_NOMEM, "no memory for a list of layers");
    const int rc = kern_init(&s->kern, t->dev, env_get(ENV_LLAVA_CPU), e);
    return rc < 0 ? rc : dev_arena(&s->scratch, t->dev, t->dev ? DEVICE_SCRATCH_BYTES : SCRATCH_BYTES, e);
}

/* Bytes of a batch's block on the host. */
static size_t block_bytes(const struct step *s, const struct batch_limits *most)
{
    struct input in;
    const size_t bytes = lay_out_most(&in, s, most);
    return s->kc.dev || s->rule.keeps_features ? bytes : bytes - input_pixel_bytes(&in);
}

/* Room for the larger of the two kinds of batches, behind its losses. */
static int fill_host(struct step *s, struct err *e)
{
    const size_t train = block_bytes(s, &s->rule.most), eval = block_bytes(s, &s->rule.eval);
    s->host.done = dev_event_new(s->kc.dev);
    const int rc = dev_pinned(&s->host.mem, s->kc.dev, s->host.losses + (train > eval ? train : eval), e);
    if (rc < 0 || !s->rule.keeps_features) return rc;
    return dev_pinned((void **)&s->host.features, s->kc.dev,
                      (size_t)most_pictures(&s->rule) * step_feature_bytes(s), e);
}

static int open_away(struct step *s, size_t bytes, struct err *e)
{
    const int n = s->layers.kept.away;
    if (!n) return 0;
    size_t *each = malloc((size_t)n * sizeof *each);
    if (!each) return err_set(e, ERR_NOMEM, "no memory for a list of layers");
    for (int i = 0; i < n; i++) each[i] = bytes / (size_t)n;
    const int rc = pager_open(&s->layers.away, s->kc.dev, each, n, STEP_AWAY_PLACES, s->rule.pageable, e);
    free(each);
    return rc;
}

int step_fill(struct step *s, struct err *e)
{
    const struct step_bytes b = step_bytes(s, &s->layers.kept);
    int rc;
    TRY(dev_arena(&s->act, s->kc.dev, b.here, e));
    TRY(open_away(s, b.away, e));
    make_tower(s, false);
    TRY(fill_host(s, e));
out:
    return rc < 0 ? err_prefix(e, "memory for activations") : rc;
}

void step_close(struct step *s)
{
    dev_sync(s->kc.dev);
    pager_close(&s->layers.away);
    tape_free(s->tape);
    free(s->layers.kind);
    dev_pinned_free(s->kc.dev, s->host.mem);
    dev_pinned_free(s->kc.dev, s->host.features);
    dev_event_free(s->host.done);
    arena_fini(&s->act);
    arena_fini(&s->scratch);
    *s = (struct step){ 0 };
}
