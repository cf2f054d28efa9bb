/* Which tensor goes where: one row a tensor. The same rows load, check, save, list and count. See llava.h. */
#include <stdio.h>
#include <string.h>

#include "model/llava.h"

/* Sizes as letters; a row's shape is a string of them. Q = H*D, W = K*D, I = 3 x p x p (three dimensions in a file). */
struct sizes {
    int64_t C, F, V, Q, W, patch, pos;
};

struct row {
    const char *name; /* %d: layer */
    size_t offset;    /* of the struct param in its owner (layer or part) */
    const char *shape;
    unsigned flags;
};

#define P(type, field) offsetof(struct type, field)
#define LIN(type, name, field, shape) { name ".weight", P(type, field.w), shape, BIND_DECAY | BIND_LINEAR }
#define BIAS(type, name, field, shape, flag) { name ".bias", P(type, field.b), shape, flag }

static const struct row llama_head_rows[] = {
    { "model.embed_tokens.weight", P(llama, embed), "VC", BIND_DECAY | BIND_Q8 }
};
static const struct row llama_layer_rows[] = {
    LIN(llama_layer, "model.layers.%d.self_attn.q_proj", q, "QC"),
    LIN(llama_layer, "model.layers.%d.self_attn.k_proj", k, "WC"),
    LIN(llama_layer, "model.layers.%d.self_attn.v_proj", v, "WC"),
    LIN(llama_layer, "model.layers.%d.self_attn.o_proj", o, "CQ"),
    LIN(llama_layer, "model.layers.%d.mlp.gate_proj", gate, "FC"),
    LIN(llama_layer, "model.layers.%d.mlp.up_proj", up, "FC"),
    LIN(llama_layer, "model.layers.%d.mlp.down_proj", down, "CF"),
    { "model.layers.%d.input_layernorm.weight", P(llama_layer, ln1), "C", 0 },
    { "model.layers.%d.post_attention_layernorm.weight", P(llama_layer, ln2), "C", 0 },
};
static const struct row llama_bias_rows[] = {
    BIAS(llama_layer, "model.layers.%d.self_attn.q_proj", q, "Q", 0),
    BIAS(llama_layer, "model.layers.%d.self_attn.k_proj", k, "W", 0),
    BIAS(llama_layer, "model.layers.%d.self_attn.v_proj", v, "W", 0),
    BIAS(llama_layer, "model.layers.%d.self_attn.o_proj", o, "C", 0),
};
static const struct row llama_norm_rows[] = { { "model.norm.weight", P(llama, norm), "C", 0 } };
static const struct row llama_out_rows[] = {
    { "lm_head.weight", P(llama, head.w), "VC", BIND_DECAY | BIND_Q8 }
};

#define VE "vision_model.embeddings."
#define VL "vision_model.encoder.layers.%d."
#define PAIR(type, name, field, shape, out, flag)                                    \
    { name ".weight", P(type, field.w), shape, BIND_DECAY | BIND_Q8 | (flag) },      \
    { name ".bias", P(type, field.b), out, flag }
#define NORM(type, name, field, flag)                                                \
    { name ".weight", P(type, field.w), "C", flag }, { name ".bias", P(type, field.b), "C", flag }

static const struct row clip_head_rows[] = {
    { VE "class_embedding", P(clip, cls), "1C", 0 },
    { VE "patch_embedding.weight", P(clip, patch.w), "CI", BIND_DECAY },
    { VE "position_embedding.weight", P(clip, pos), "NC", BIND_DECAY },
    NORM(clip, "vision_model.pre_layrnorm", pre, 0),
};
static const struct row clip_layer_rows[] = {
    PAIR(clip_layer, VL "self_attn.k_proj", k, "CC", "C", 0),
    PAIR(clip_layer, VL "self_attn.v_proj", v, "CC", "C", 0),
    PAIR(clip_layer, VL "self_attn.q_proj", q, "CC", "C", 0),
    PAIR(clip_layer, VL "self_attn.out_proj", o, "CC", "C", 0),
    NORM(clip_layer, VL "layer_norm1", ln1, 0),
    PAIR(clip_layer, VL "mlp.fc1", fc1, "FC", "F", 0),
    PAIR(clip_layer, VL "mlp.fc2", fc2, "CF", "C", 0),
    NORM(clip_layer, VL "layer_norm2", ln2, 0),
};
static const struct row clip_post_rows[] = { NORM(clip, "vision_model.post_layernorm", post, BIND_OPTIONAL) };

/* "1C" is [C] in a file and [1,C] to kernels; "CI" is [C,3,p,p] there and [C,3*p*p] here. */
static void row_shape(struct bind_row *r, const char *shape, const struct sizes *s)
{
    r->nd = 0;
    for (; *shape; shape++) {
        int64_t n = *shape == 'C' ? s->C : *shape == 'F' ? s->F : *shape == 'V' ? s->V : *shape == 'Q' ? s->Q
                  : *shape == 'W' ? s->W : *shape == 'N' ? s->pos : 0;
        if (n) r->shape[r->nd++] = n;
        if (*shape != 'I') continue;
        r->shape[r->nd++] = 3;
        r->shape[r->nd++] = s->patch;
        r->shape[r->nd++] = s->patch;
    }
}

struct walk {
    bind_fn fn;
    void *ctx;
    struct err *e;
    enum part part;
    struct sizes s;
    unsigned flags; /* added to every row */
};

static int walk_row(const struct walk *w, const struct row *row, void *owner, int layer)
{
    char name[NAME_MAX_BYTES];
    snprintf(name, sizeof name, row->name, layer);
    struct param *p = (struct param *)((char *)owner + row->offset);
    struct bind_row r = { .name = name, .param = p, .part = w->part, .flags = row->flags | w->flags };
    if (row->flags & BIND_LINEAR) r.linear = (struct linear *)p; /* w is a linear's first member */
    row_shape(&r, row->shape, &w->s);
    return w->fn(w->ctx, &r, w->e);
}

#define WALK(w, rows, owner, layer)                                                              \
    for (size_t row_i = 0; row_i < sizeof(rows) / sizeof *(rows) && rc >= 0; row_i++)            \
        rc = walk_row(w, &(rows)[row_i], owner, layer)

static int each_llama(const struct walk *w, struct llama *m)
{
    int rc = 0;
    WALK(w, llama_head_rows, m, 0);
    for (int i = 0; i < m->cfg.L && rc >= 0; i++) {
        WALK(w, llama_layer_rows, &m->layer[i], i);
        if (m->cfg.bias) WALK(w, llama_bias_rows, &m->layer[i], i);
    }
    WALK(w, llama_norm_rows, m, 0);
    if (!m->cfg.tied) WALK(w, llama_out_rows, m, 0);
    return rc;
}

/* Layers past the one whose output is used may be absent: they change nothing. */
static int each_clip(struct walk *w, struct clip *m, int used)
{
    int rc = 0;
    WALK(w, clip_head_rows, m, 0);
    for (int i = 0; i < m->cfg.L && rc >= 0; i++) {
        w->flags = i < used ? 0 : BIND_OPTIONAL;
        WALK(w, clip_layer_rows, &m->layer[i], i);
    }
    w->flags = 0;
    WALK(w, clip_post_rows, m, 0);
    return rc;
}

/* nn.Sequential(Linear, GELU, Linear, ...): linears have even indices; a lone linear has none. */
static int each_projector(const struct walk *w, struct llava_model *m)
{
    int rc = 0, in = m->cfg.mm_hidden, out = m->cfg.llama.C;
    for (int i = 0; i < m->cfg.n_projector && rc >= 0; i++) {
        char stem[64], name[NAME_MAX_BYTES];
        if (m->cfg.n_projector == 1) snprintf(stem, sizeof stem, "model.mm_projector");
        else snprintf(stem, sizeof stem, "model.mm_projector.%d", 2 * i);
        struct linear *l = &m->projector.linear[i];
        snprintf(name, sizeof name, "%s.weight", stem);
        struct bind_row r = { .name = name, .param = &l->w, .linear = l, .part = PART_PROJECTOR,
                              .flags = BIND_DECAY | BIND_Q8,
                              .nd = 2, .shape = { out, i ? out : in } };
        rc = w->fn(w->ctx, &r, w->e);
        if (rc < 0) return rc;
        snprintf(name, sizeof name, "%s.bias", stem);
        r = (struct bind_row){ .name = name, .param = &l->b, .part = PART_PROJECTOR, .nd = 1, .shape = { out } };
        rc = w->fn(w->ctx, &r, w->e);
    }
    if (rc >= 0 && m->cfg.merge == MERGE_UNPAD) {
        struct bind_row r = { .name = "model.image_newline", .param = &m->projector.newline,
                              .part = PART_PROJECTOR, .nd = 1, .shape = { out } };
        rc = w->fn(w->ctx, &r, w->e);
    }
    return rc;
}

int llava_each(struct llava_model *m, bind_fn fn, void *ctx, struct err *e)
{
    const struct llama_config *l = &m->cfg.llama;
    const struct clip_config *c = &m->cfg.clip;
    struct walk w = {
        fn, ctx, e, PART_LLAMA, { l->C, l->F, l->V, (int64_t)l->H * l->D, (int64_t)l->K * l->D, 0, 0 }, 0
    };
    int rc = each_llama(&w, &m->llama);
    if (rc < 0 || !m->cfg.has_vision) return rc;
    w.part = PART_PROJECTOR;
    rc = each_projector(&w, m);
    if (rc < 0 || !m->cfg.has_clip) return rc;
    w.part = PART_CLIP;
    w.s = (struct sizes){ c->C, c->F, 0, 0, 0, c->patch, clip_patches(c) + 1 };
    return each_clip(&w, &m->clip, clip_layers_used(c, m->cfg.select_layer));
}
