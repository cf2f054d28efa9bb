/* See clip.h. */
#include "model/clip.h"

struct layer_arg {
    const struct clip *m;
    const struct clip_layer *l;
    struct tensor range;
};

static struct tensor clip_layer_forward(struct op_ctx *o, const void *arg, struct tensor x)
{
    const struct layer_arg *a = arg;
    const struct clip_layer *l = a->l;
    float eps = a->m->cfg.eps;
    struct tensor h = op_layernorm(o, x, &l->ln1, eps);
    struct tensor q = op_linear(o, h, &l->q), k = op_linear(o, h, &l->k), v = op_linear(o, h, &l->v);
    x = op_linear_add(o, op_attention(o, q, k, v, a->range, (struct tensor){ 0 }, a->m->cfg.H), &l->o, x);
    h = op_linear(o, op_layernorm(o, x, &l->ln2, eps), &l->fc1);
    h = a->m->cfg.quick_gelu ? op_quick_gelu(o, h) : op_gelu(o, h);
    return op_linear_add(o, h, &l->fc2, x);
}

/* I32 indices that the host fills: rows of width `cols` (1: a vector). NULL when the run is dry. */
static struct tensor indices(struct op_ctx *o, int64_t rows, int cols, int32_t **host)
{
    struct tensor t = cols == 1 ? tensor_1d(NULL, DT_I32, rows) : tensor_2d(NULL, DT_I32, rows, cols);
    t.p = arena_take(o->act, tensor_bytes(t));
    *host = o->dry ? NULL : t.p;
    return t;
}

/* [class token | patches] + positions, for each picture. */
static struct tensor clip_embed(struct op_ctx *o, const struct clip *m, struct tensor pixels)
{
    int64_t n = pixels.n[0], p = clip_patches(&m->cfg), rows = n * (p + 1);
    int32_t *cls, *pos, *put;
    struct tensor i_cls = indices(o, rows, 1, &cls), i_pos = indices(o, rows, 1, &pos),
                  i_put = indices(o, n * p, 1, &put);
    for (int64_t i = 0; i < rows && cls; i++) {
        cls[i] = i % (p + 1) ? -1 : 0;
        pos[i] = (int32_t)(i % (p + 1));
    }
    for (int64_t i = 0; i < n * p && put; i++) put[i] = (int32_t)(i + i / p + 1);
    /* The table of class tokens has one row: it goes to the first row of each picture, zeros elsewhere. */
    struct tensor x = op_embed(o, &m->cls, i_cls);
    x = op_splice(o, x, op_linear(o, op_patchify(o, pixels, m->cfg.patch), &m->patch), i_put);
    return op_add(o, x, op_embed(o, &m->pos, i_pos));
}

int clip_layers_used(const struct clip_config *c, int select_layer)
{
    int n = select_layer < 0 ? c->L + 1 + select_layer : select_layer;
    return n < 0 || n > c->L ? -1 : n;
}

struct tensor clip_forward(struct op_ctx *o, const struct clip *m, struct tensor pixels, int select_layer,
                           bool select_cls)
{
    int64_t n = pixels.n[0], p = clip_patches(&m->cfg);
    struct tensor x = op_layernorm(o, clip_embed(o, m, pixels), &m->pre, m->cfg.eps);
    int32_t *range, *keep;
    struct tensor i_range = indices(o, n * (p + 1), 2, &range);
    for (int64_t i = 0; i < n * (p + 1) && range; i++) {
        range[2 * i] = (int32_t)(i / (p + 1) * (p + 1));
        range[2 * i + 1] = (int32_t)((i / (p + 1) + 1) * (p + 1));
    }
    int layers = clip_layers_used(&m->cfg, select_layer);
    for (int i = 0; i < layers; i++) {
        struct layer_arg a = { m, &m->layer[i], i_range };
        if (o->tape && o->checkpoint) {
            x = op_checkpoint(o, clip_layer_forward, &a, sizeof a, x);
            continue;
        }
        size_t mark = arena_mark(o->act);
        struct tensor y = clip_layer_forward(o, &a, x);
        if (o->tape) x = y;
        else {
            OP_RUN(o, cast, x, y);
            arena_rewind(o->act, mark);
        }
    }
    if (select_cls) return x;
    struct tensor i_keep = indices(o, n * p, 1, &keep);
    for (int64_t i = 0; i < n * p && keep; i++) keep[i] = (int32_t)(i + i / p + 1);
    return op_gather(o, x, i_keep);
}
