/* The engine: an open model with its tokenizer, its picture processor, kernels and activation memory.
 *
 * Public functions are in include/llava.h (api.c); `bench` uses this header directly.
 */
#pragma once
#include "image/preprocess.h"
#include "kern/choose.h"
#include "model/llava.h"
#include "text/tokenizer.h"

struct engine {
    struct llava_model model;
    struct tokenizer *tok;        /* NULL for a random model */
    struct clip_processor proc;
    struct dev *dev;              /* what it runs on; NULL: the host */
    struct kern kern;
    struct kctx kc;
    struct arena act, scratch;    /* activations of one step; kernels' own; both on the device */
    float *logits;                /* [ENGINE_SEQS,V] of a step on the host, where it is not the device */
    struct steps *steps;          /* step.c's: what was chosen; on a device fixed inputs and recorded steps */
    bool eager;                   /* a device's steps are launched kernel by kernel, not replayed: the same bits */
    enum dtype dtype, kv_type;
    bool kv_auto;                 /* kv_type follows from the model */
    bool exact;                   /* an explicit f32: products round nothing, quantised or not */
    int context;                  /* positions of a session */
    int chunk;                    /* most tokens of one step */
    char *dir, *name;             /* folder; name of the model */
    const char *conversation;     /* template that suits it */
    struct adapter *adapter;      /* [n_adapters] served beside the model, by number: adapter.h */
    int n_adapters;
};

struct engine_options {
    const char *const *lora; /* [n_lora] "NAME=FOLDER" */
    int n_lora;
    const char *path, *base, *name, *tower, *dtype, *device, *kv_dtype;
    int context, threads;
    bool load_8bit, load_4bit; /* quantise while loading; not both */
};
int engine_open(struct engine **ret, const struct engine_options *o, struct err *e);
/* Random weights of a preset's shapes (llava_config_preset), no tokenizer; of o device, dtype, context, threads. */
int engine_random(struct engine **ret, const char *preset, const struct engine_options *o, struct err *e);
void engine_close(struct engine *g);

/* Bytes besides weights and caches that a session of `context` positions needs: activations of the largest
 * step, and the table of RoPE. Needs the parameters' shapes only. */
int engine_plan(size_t *ret, const struct llava_model *m, enum dtype dtype, int context, struct err *e);

/* Bytes that one decode step reads: the language model's weights, and the cache of one position. */
int64_t engine_weight_bytes(const struct engine *g);
int64_t engine_cache_bytes(const struct engine *g);

/* ---- caches and steps */

/* Keys and values of some rows; a session has one, a batch shares one. */
struct cache {
    struct arena mem;
    struct llama_cache *layer; /* [L] */
    int rows;
};
int cache_init(struct cache *c, const struct engine *g, int rows, struct err *e);
void cache_fini(struct cache *c);

/* One step: n tokens, at most engine.chunk. Arrays of n; borrowed during the call. */
struct step {
    int n;
    const int32_t *token;   /* id, or -1: a row of features */
    const int32_t *feature; /* where token is -1 which row of `features`, else -1; not read without features */
    const struct tensor *features; /* [n_features] rows [.,C] on the device, of the activations' type, to be seen as */
    int n_features;         /* one behind the other: at most n in all */
    const int32_t *pos;     /* position */
    const int32_t *range;   /* [n,2] cache rows seen; with pages [n,3], see kern.h attn_fwd */
    const int32_t *pages;   /* [n_seqs,n_pages] pages of each sequence in the cache, or NULL */
    int n_seqs, n_pages;    /* at most ENGINE_SEQS, and pages of the context */
    const int32_t *row;     /* cache row to fill */
    const struct op_span *spans; /* [n_spans] rows that have adapters */
    int n_spans;
    const int32_t *out;     /* [n_out] rows whose logits are wanted; NULL: all */
    int n_out;              /* at most ENGINE_SEQS; also of all */
    const struct choice *choose; /* [n_out] how the token after each of those rows is chosen; NULL: it is not */
    bool logits;            /* with choose: those rows' logits are wanted as well */
    bool decode;            /* see kctx.decode */
};
enum { ENGINE_SEQS = 256 }; /* sequences of a step; rows whose logits are wanted */
/* Logits [n_out,V] on the host, of the rows that step.out names, in its order; NULL when it names none. Valid until the
 * next step. For steps without choose. */
const float *engine_step(struct engine *g, struct cache *c, const struct step *s);

/* Begins a step, and on a device does not wait for it: the arrays may be used again, and the next step may begin, with
 * tokens that are not known yet: in a step with choose -2 - k stands for the token that was chosen last for slot k.
 * Returns the step's number, with which it can be asked for until two more have begun. */
unsigned engine_begin(struct engine *g, struct cache *c, const struct step *s);
/* Waits for the step. By slot, the tokens that were chosen last. */
const int32_t *engine_tokens(struct engine *g, unsigned number);
/* Logits of the step that began last, if they were wanted. */
const float *engine_logits(const struct engine *g);
double engine_spent_s(struct engine *g, unsigned number); /* seconds that the step took; waits for it */
/* Rows from[0..n) of all layers to rows to[0..n), n < KV_PAGE. */
void engine_copy(struct engine *g, struct cache *c, const int32_t *from, const int32_t *to, int n);

/* Whose projector is used: the model's, or the number of an adapter that has its own. */
enum { SIGHT_MODEL = -1, SIGHTS = OP_ADAPTERS + 1 };
enum dtype engine_act(const struct engine *g); /* type of activations */
/* A tile, pixels [3,S,S] F32 on the host -> out [rows of a tile, C] on the device, through the projector of `sight`
 * (adapter.h). Does not wait. */
void engine_encode(struct engine *g, int sight, const float *pixels, struct tensor out);
/* out[i] = rows[at[i]], after the last of `rows` has become the projector's image_newline, if it has one. On the
 * device. */
void engine_arrange(struct engine *g, int sight, struct tensor out, struct tensor rows, const int32_t *at);

/* The values of a tensor on the device as f32. */
void engine_values(const struct engine *g, float *out, struct tensor t);

/* NaN or infinity in logits: looks through the weights and names the tensor that holds one. Always < 0. */
int engine_blame(struct engine *g, struct err *e);
