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

/* Which rows are what when N pictures run at once, of whose patches P are seen: the same for every N pictures of which
 * all is seen, so that a captured step may use it again. I32, on the device. */
struct clip_seq {
    struct tensor cls, pos; /* [N*(P+1)] row 0 of the class token's table or none; row of the positions' table */
    struct tensor put;      /* [N*P] where each patch goes, and is found at the end */
    struct tensor range;    /* [N*(P+1),2] rows that each sees: its picture's */
    struct tensor pick;     /* [N*P] which of all patches of the pictures they are; p NULL: all */
    bool apart;             /* no tape: attention takes them one by one, so that a picture's bits do not depend on its
                               place among them */
};
struct clip_seq clip_seq_new(struct op_ctx *o, const struct clip *m, int n); /* in o's arena */
/* Of `patches` of each picture; pos and pick are the caller's to set. */
struct clip_seq clip_seq_some(struct op_ctx *o, int n, int patches);

/* pixels[N,3,S,S] act -> [N*P,C] (select_cls: [N*(P+1),C]): hidden_states[select_layer] as LLaVA indexes it,
 * where -1 is the output of the last layer and 0 that of pre_layrnorm. */
struct tensor clip_forward(struct op_ctx *o, const struct clip *m, const struct clip_seq *seq, struct tensor pixels,
                           int select_layer, bool select_cls);
/* Layers that clip_forward runs for this select_layer; -1 when there is no such layer. */
int clip_layers_used(const struct clip_config *c, int select_layer);
