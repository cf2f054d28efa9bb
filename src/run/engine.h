/* The engine: an open model with its tokenizer, its picture processor, kernels and activation memory.
 *
 * Public functions are in include/llava.h (api.c); `bench` uses this header directly.
 */
#pragma once
#include "image/preprocess.h"
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
    float *logits;                /* [chunk,V] of a step on the host, where it is not the device */
    struct steps *steps;          /* step.c's, on a device: fixed inputs and recorded steps */
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
    const int32_t *feature; /* row of `features` where token is -1, else -1; not read without features */
    struct tensor features; /* [M,C] F32, M <= n, on the host; or p NULL */
    const int32_t *pos;     /* position */
    const int32_t *range;   /* [n,2] cache rows seen; with pages [n,3], see kern.h attn_fwd */
    const int32_t *pages;   /* [n_seqs,n_pages] pages of each sequence in the cache, or NULL */
    int n_seqs, n_pages;    /* at most ENGINE_SEQS, and pages of the context */
    const int32_t *row;     /* cache row to fill */
    const struct op_span *spans; /* [n_spans] rows that have adapters */
    int n_spans;
    const int32_t *out;     /* [n_out] rows whose logits are wanted; NULL: all */
    int n_out;
    bool decode;            /* see kctx.decode */
};
enum { ENGINE_SEQS = 256 };
/* Logits [n_out,V] on the host, of the rows that step.out names, in its order; NULL when it names none. Valid until the
 * next step. */
const float *engine_step(struct engine *g, struct cache *c, const struct step *s);
/* Rows from[0..n) of all layers to rows to[0..n), n < KV_PAGE. */
void engine_copy(struct engine *g, struct cache *c, const int32_t *from, const int32_t *to, int n);

/* Whose projector is used: the model's, or the number of an adapter that has its own. */
enum { SIGHT_MODEL = -1, SIGHTS = OP_ADAPTERS + 1 };
/* pixels [n,3,S,S] F32 -> out [n * rows of a tile, C] F32, one tile at a time. */
void engine_encode(struct engine *g, int sight, const float *pixels, int n, float *out);

/* The values of a (small) parameter as f32. */
void engine_values(const struct engine *g, float *out, struct tensor t);

/* NaN or infinity in logits: looks through the weights and names the tensor that holds one. Always < 0. */
int engine_blame(struct engine *g, struct err *e);
