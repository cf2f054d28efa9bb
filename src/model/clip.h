/* The vision tower: CLIP's ViT. Maths as transformers' CLIPVisionModel; features are hidden_states[select_layer]. */
#pragma once
#include "model/config.h"
#include "op/op.h"

struct clip_layer {
    struct layernorm ln1, ln2;  /* [C] */
    struct linear q, k, v, o;   /* [C,C], biases */
    struct linear fc1, fc2;     /* [F,C] [C,F], biases */
};

struct clip {
    struct clip_config cfg;
    struct param cls, pos;      /* [1,C]; [P+1,C] */
    struct linear patch;        /* [C,3*p*p], no bias: the convolution as a product with patches */
    struct layernorm pre, post; /* [C] pre_layrnorm (so spelt in checkpoints); post is kept for saving, unused here */
    struct clip_layer *layer;   /* [L] */
};

/* Patches in a picture. */
static inline int clip_patches(const struct clip_config *c)
{
    return (c->image / c->patch) * (c->image / c->patch);
}

/* pixels[N,3,S,S] act -> [N*P,C] (select_cls: [N*(P+1),C]): hidden_states[select_layer] as LLaVA indexes it,
 * where -1 is the output of the last layer and 0 that of pre_layrnorm. */
struct tensor clip_forward(struct op_ctx *o, const struct clip *m, struct tensor pixels, int select_layer,
                           bool select_cls);
/* Layers that clip_forward runs for this select_layer; -1 when there is no such layer. */
int clip_layers_used(const struct clip_config *c, int select_layer);
