/* See clip.h. */
#include "model/clip.h"

struct layer_arg {
    const struct clip *m;
    const struct clip_layer *l;
    struct tensor range;
    int apart; /* rows that attention takes at a time; 0: all */
};

static struct tensor clip_layer_forward(struct op_ctx *o, const void *arg, struct tensor x)
{
    const struct layer_arg *a = arg;
    const struct clip_layer *l = a->l;
    float eps = a->m->cfg.eps;
    const int place = 2 * (int)(l - a->m->layer);
    struct tensor h = op_layernorm(o, x, &l->ln1, eps);
    const struct linear *const kvq[3] = { &l->k, &l->v, &l->q }; /* as they lie in files */
    struct tensor y[3];
    op_linears(o, y, h, kvq, 3);
    h = op_attention_parts(o, y[2], y[0], y[1], a->range, a->m->cfg.H, a->apart);
    x = op_linear_join(o, h, &l->o, x, place);
    h = op_linear(o, op_layernorm(o, x, &l->ln2, eps), &l->fc1);
    h = a->m->cfg.quick_gelu ? op_quick_gelu(o, h) : op_gelu(o, h);
    return op_linear_join(o, h, &l->fc2, x, place + 1);
}

/* I32 indices value(i, p), rows of `cols` (1: a vector), a piece at a time. p: patches of a picture. */
static struct tensor indices(struct op_ctx *o, int64_t rows, int cols, int64_t p, int64_t (*value)(int64_t, int64_t))
{
    int32_t piece[1024];
    struct tensor t = cols == 1 ? tensor_1d(NULL, DT_I32, rows) : tensor_2d(NULL, DT_I32, rows, cols);
    t.p = arena_take(o->act, tensor_bytes(t));
    for (int64_t at = 0, n = rows * cols; at < n && !o->dry; at += 1024) {
        int64_t k = n - at < 1024 ? n - at : 1024;
        for (int64_t i = 0; i < k; i++) piece[i] = (int32_t)value(at + i, p);
        dev_put(o->kc->dev, (int32_t *)t.p + at, piece, (size_t)k * sizeof *piece);
    }
    return t;
}

static int64_t cls_row(int64_t i, int64_t p) { return i % (p + 1) ? -1 : 0; }
static int64_t pos_row(int64_t i, int64_t p) { return i % (p + 1); }
static int64_t put_row(int64_t i, int64_t p) { return i + i / p + 1; }
static int64_t seen(int64_t i, int64_t p) { return (i / 2 / (p + 1) + i % 2) * (p + 1); }

struct clip_seq clip_seq_some(struct op_ctx *o, int n, int patches)
{
    const int64_t p = patches, rows = n * (p + 1);
    return (struct clip_seq){ .cls = indices(o, rows, 1, p, cls_row), .put = indices(o, n * p, 1, p, put_row),
                              .range = indices(o, rows, 2, p, seen) };
}

struct clip_seq clip_seq_new(struct op_ctx *o, const struct clip *m, int n)
{
    const int p = clip_patches(&m->cfg);
    struct clip_seq s = clip_seq_some(o, n, p);
    s.pos = indices(o, (int64_t)n * (p + 1), 1, p, pos_row);
    return s;
}

/* [class token | patches] + positions, for each picture. */
static struct tensor clip_embed(struct op_ctx *o, const struct clip *m, const struct clip_seq *seq,
                                struct tensor pixels)
{
    /* The table of class tokens has one row: it goes to the first row of each picture, zeros elsewhere. */
    struct tensor x = op_embed(o, &m->cls, seq->cls), patches = op_patchify(o, pixels, m->cfg.patch);
    if (seq->pick.p) patches = op_gather(o, patches, seq->pick);
    x = op_splice(o, x, op_linear(o, patches, &m->patch), seq->put);
    return op_add(o, x, op_embed(o, &m->pos, seq->pos));
}

int clip_layers_used(const struct clip_config *c, int select_layer)
{
    int n = select_layer < 0 ? c->L + 1 + select_layer : select_layer;
    return n < 0 || n > c->L ? -1 : n;
}

struct tensor clip_forward(struct op_ctx *o, const struct clip *m, const struct clip_seq *seq, struct tensor pixels,
                           int select_layer, bool select_cls)
{
    struct tensor x = op_layernorm(o, clip_embed(o, m, seq, pixels), &m->pre, m->cfg.eps);
    int layers = clip_layers_used(&m->cfg, select_layer);
    for (int i = 0; i < layers; i++) {
        struct layer_arg a = { m, &m->layer[i], seq->range, seq->apart ? clip_patches(&m->cfg) + 1 : 0 };
        if (o->tape && o->tower_again) {
            x = op_checkpoint(o, clip_layer_forward, &a, sizeof a, OP_KEPT_NONE, x);
            continue;
        }
        size_t mark = arena_mark(o->act);
        o->overwrite = !o->tape;
        x = clip_layer_forward(o, &a, x);
        o->overwrite = false;
        if (!o->tape) arena_rewind(o->act, mark);
    }
    return select_cls ? x : op_gather(o, x, seq->put);
}
