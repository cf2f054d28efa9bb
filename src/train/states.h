/* What a step keeps of each tensor that is trained beside its weight: an f32 master, AdamW's moments, a gradient. In
 * which precision is the arguments' to say, where it is the plan's.
 *
 * Where it is the host's memory (away), it visits the device in blocks (pager.h), in the order of the way back: lm_head
 * and the last norm, the layers from the last to the first, and then all that comes before them. Gradients are added up
 * on the device in f32 wherever they live, so that they have the same bits; so have moments.
 */
#pragma once
#include "model/llava.h"
#include "train/pager.h"

enum rate { RATE_COMMON, RATE_PROJECTOR, RATE_TOWER }; /* which of the learning rates */

struct trained_state {
    struct tensor master;      /* F32; the weight itself where that is F32; p NULL: there is none */
    struct tensor m, v;        /* AdamW's moments: F32, or U8 with */
    struct tensor ms, vs;      /* F32 scales, one for KERN_BLOCK8 */
    bool eight, has_master;    /* moments of 8 bits; a master of its own */
    bool paged;                /* master and moments are away */
    int block;                 /* that it visits the device with */
};

/* A parameter that a step changes. */
struct trained {
    char name[NAME_MAX_BYTES]; /* canonical; adapters: "model.layers.0.self_attn.q_proj.lora_A.weight" */
    struct param *param;       /* w: what is computed with, in trainee.dtype; g F32 */
    enum rate rate;
    bool decays;               /* takes weight decay: neither norm nor bias */
    struct trained_state state;
};

struct states_how {
    bool eight;        /* moments of 8 bits, but of what is small or an embedding */
    bool masters;      /* f32 masters of rounded weights; else 8-bit steps round them at random */
    bool grads_away;
    bool moments_away; /* with them what else the optimiser keeps; of 8 bits: not of those that have 32 all the same */
    bool pageable;     /* away, but in memory that the system may page: slower */
};

struct states {
    struct states_how how;
    struct trained *p;  /* [n] borrowed */
    int n, blocks;
    size_t *grad_bytes, *moment_bytes; /* [blocks] of what is away */
    struct pager grads, moments;
    struct tensor squares;  /* [n] F32 on the device: of each gradient, once it is added up */
    bool fresh;             /* gradients that are away are of a step that is done */
};

/* Bytes that p[n] would take if they were kept so, `away` on the host. The places of the pagers count as what visits
 * them. L: layers of the language model; dtype: of weights. Changes nothing. */
struct states_bytes { size_t masters, moments, gradients, masters_away, moments_away, gradients_away; };
struct states_bytes states_bytes(const struct trained *p, int n, int L, enum dtype dtype, const struct states_how *how);
/* Shapes, types and blocks of everything; no memory but the lists. p is borrowed. May be called again. */
int states_init(struct states *s, struct trained *p, int n, int L, enum dtype dtype, const struct states_how *how,
                struct err *e);
/* Bytes of what states_fill takes from an arena. */
size_t states_here_bytes(const struct states *s);
/* Memory for all of it, zeros; masters are made from the weights. */
int states_fill(struct states *s, struct arena *here, struct dev *dev, const struct kern *k, struct kctx *kc,
                struct err *e);
void states_fini(struct states *s); /* accepts a zeroed one */

/* ---- while a step runs; where nothing is away they do nothing */

/* Before the way forward of a pass that goes back. */
void states_back_begin(struct states *s);
/* The way back through block `block` has ended, for the blocks before it too: their gradients' squares are summed and
 * they go back; the next block's gradients are there. */
void states_back_done(struct states *s, const struct kern *k, struct kctx *kc, int block);

/* The optimiser's pass. */
void states_update_begin(struct states *s);
void states_update_next(struct states *s, int block); /* block's tensors are there */
void states_update_done(struct states *s);            /* and have been changed */

/* Weights from their masters. */
void states_round(struct states *s, const struct kern *k, struct kctx *kc);

/* A tensor of a trained one where a checkpoint may read and write it between steps: on the host if it is away. */
struct tensor states_rest(struct states *s, int i, struct tensor t);
void states_wait(struct states *s); /* until what is away is as the last step left it */
bool states_on_host(const struct states *s, const void *p);
