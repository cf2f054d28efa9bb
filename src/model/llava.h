/* LLaVA: a vision tower, a projector and a language model; its parameters as rows of a table; loading and merging.
 *
 * Reading order: config.h (what kind of model), this header, bind.c (which tensor goes where), llama.c and clip.c (the
 * maths), load.c (folders), index.h (names), fill.h (values), lora.h (adapters).
 */
#pragma once
#include "file/weights.h"
#include "model/clip.h"
#include "model/llama.h"

enum { WEIGHTS_SETS = 5 }; /* base, tower, projector or other trained parts (two forms), whole tensors of an adapter */

/* From the tower's features to the language model's width. */
struct projector {
    struct linear linear[PROJECTOR_MAX]; /* cfg.n_projector linears with exact gelu between them */
    struct param newline;                /* [1,C] image_newline of 1.6, or absent */
};

struct llava_model {
    struct llava_config cfg;
    struct llama llama;
    struct clip clip;                         /* valid if cfg.has_vision */
    struct projector projector;
    bool no_projector;                        /* a language model that reads pictures through an adapter's alone */
    struct weights *weights[WEIGHTS_SETS];    /* the mapped files that parameters view: of two tensors with one name, */
    int n_weights;                            /* the later set's is used */
    struct arena own;                         /* converted, merged and random parameters, and tables */
    struct arena own_more;                    /* what had to be made while merging adapters */
    struct lora_set *lora;                    /* adapters that are not merged (llava_source.unmerged), else NULL */
    int n_adapters;                           /* numbers of linear.served that are taken: lora_serve */
    bool tower_inside;                        /* the tower's weights are in the checkpoint */
    enum dtype dtype;                         /* what was asked for, or chosen, of what is not quantised */
    int bits;                                 /* 8, 4: the language model's linears are quantised; 0: not */
    struct dev *dev;                          /* where parameters are; NULL: the host */
    char *clip_dir;                           /* where the tower was found; NULL if inside the checkpoint */
};

/* ---- parameters as rows */

enum {
    BIND_DECAY = 1,    /* a matrix: takes weight decay, may be quantised */
    BIND_OPTIONAL = 2, /* may be absent */
    BIND_LINEAR = 4,   /* a linear of the language model: LoRA's targets; quantised to as many bits as are asked for */
    BIND_Q8 = 8,       /* quantised to 8 bits where others are to 8 or 4: embeddings, head, projector, tower */
};
enum part { PART_LLAMA, PART_CLIP, PART_PROJECTOR };

/* One tensor of a model, as LLaVA names it. shape is what a file holds; the view that kernels see may be flattened. */
struct bind_row {
    const char *name;     /* "model.layers.7.self_attn.q_proj.weight"; valid during the call */
    struct param *param;
    struct linear *linear; /* whose weight this is, or NULL */
    enum part part;
    unsigned flags;
    int nd;
    int64_t shape[4];
};
/* Calls fn for every tensor that this config has, in the order in which checkpoints list them; stops at the first
 * result < 0 and returns it. */
typedef int (*bind_fn)(void *ctx, const struct bind_row *row, struct err *e);
int llava_each(struct llava_model *m, bind_fn fn, void *ctx, struct err *e);

/* ---- names. LLaVA's own names are the canonical ones. */

enum naming { NAMING_LLAVA, NAMING_HF, NAMING_HF5 };
/* Canonical name of a tensor named as any known writer names it, into out; -1: a tensor that inference ignores
 * (inv_freq, position_ids, CLIP's text half). */
int name_canonical(char *out, size_t size, const char *name);
/* Canonical name -> the name that a scheme writes. */
void name_in(enum naming to, char *out, size_t size, const char *canonical);
enum { NAME_MAX_BYTES = 256 };

/* ---- opening */

/* For training: the tower and projector that a language model without one gets. Of a LLaVA its own projector stays. */
struct llava_vision {
    const char *tower;      /* a folder or org/name, as config.json will have it; NULL: a LLaVA's own */
    int n_projector;        /* linears of a projector that has to be made, with weights as torch's Linear draws them, */
    uint64_t seed;          /* from this seed */
    const char *projector;  /* mm_projector.bin, whose weights are taken; NULL: the model's own, or new ones */
    int select_layer;
    bool select_cls;
    enum merge merge;
};

struct llava_source {
    const char *path;      /* a folder: whole model, projector only, or LoRA adapter */
    const char *base;      /* base model's folder for the latter two, else NULL */
    const char *clip_path; /* overrides the tower that config.json names; NULL: as it says */
    /* How an org/name (a tower's) becomes a folder: the hub's function, or NULL to allow folders only. */
    int (*locate)(char **dir, const char *name, struct err *e);
    bool keep_dtype;       /* parameters stay as the files have them, whatever dtype and bits say */
    int bits;              /* 8 or 4: matrices are quantised while loading (bind_quant); 0: as they are stored */
    bool linears_only;     /* with bits: only the language model's linears, as under adapters that are trained */
    bool auto_dtype;  /* choose: f32 for models under 256 MB, where it costs nothing, else as the weights are
                         stored */
    enum dtype dtype; /* otherwise the type parameters are wanted in; F32 keeps 16-bit ones (they are exact in
                         f32) */
    bool text_only;        /* don't load the tower */
    bool tower_by_name;    /* leave a tower closed that is on the hub or at an absolute path (for saving) */
    const struct llava_vision *vision; /* NULL: as config.json says */
    bool unmerged; /* leave adapters in llava_model.lora: the parameters are the base's (for saving, see
                      save.h) */
    const char *sees_as; /* a folder by whose config.json a language model without a tower gets one, but no projector
                            (llava_model.no_projector): adapters that are served beside it bring theirs; NULL: none */
    struct dev *dev; /* where parameters go; NULL: the host, where they view the mapped files if they can */
    const struct kern *kern; /* dev's, with kc: what is quantised while loading is quantised there */
    struct kctx *kc;
    /* Asked before memory is taken for `bytes` of parameters: the model's are then shapes whose data must not be read.
     * < 0 ends the opening. NULL: nobody. */
    int (*admit)(void *ctx, size_t bytes, struct err *e);
    void *ctx;
};
/* Opens, binds, checks shapes, merges adapters. Parameters view the mapped files wherever their type allows. */
int llava_model_open(struct llava_model *m, const struct llava_source *s, struct err *e);
/* Random parameters of the given shapes, in memory; reproducible. Of s only dtype, bits, linears_only, dev, kern, kc
 * and admit matter. */
int llava_model_random(struct llava_model *m, const struct llava_config *cfg, const struct llava_source *s,
                       uint64_t seed, struct err *e);
void llava_model_close(struct llava_model *m); /* accepts a zeroed one */
/* Moves a model that is open on the host, its parameters as the files have them (keep_dtype), to a device, where they
 * are kept as an opening there would keep them, and what has PARAM_TRAIN in dtype. The files stay mapped. After an
 * error the model can only be closed. */
struct llava_placing {
    struct dev *dev;
    enum dtype dtype;
    int bits;          /* these as in llava_source */
    bool linears_only;
    const struct kern *kern;
    struct kctx *kc;
};
int llava_model_place(struct llava_model *m, const struct llava_placing *p, struct err *e);
/* The shape and type that a row will have there; its p is that of now. */
struct tensor llava_placed(const struct llava_placing *p, const struct bind_row *r);
/* cos|sin for positions [0, n). Must be called once before forward; takes its memory from m->own_more. */
int llava_model_context(struct llava_model *m, int n, struct err *e);

/* ---- forward */

/* pixels[N,3,S,S] -> features [N*P,C] in the language model's width, through a projector of m's shapes; seq is
 * clip_seq_new's for N pictures */
struct tensor llava_encode(struct op_ctx *o, const struct llava_model *m, const struct projector *p,
                           const struct clip_seq *seq, struct tensor pixels);
/* Rows of encode's result for one picture tile. */
int llava_tile_rows(const struct llava_model *m);
struct tensor projector_forward(struct op_ctx *o, const struct llava_model *m, const struct projector *p,
                                struct tensor x);
