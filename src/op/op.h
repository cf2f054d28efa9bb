/* Ops: what models are written in.
 *
 * An op checks shapes, takes memory for its output from the activation arena, calls one kernel and, when a tape is
 * attached, records how to go back. Without a tape this is inference; with one it is training; nothing else changes.
 *
 *   struct op_ctx o = { .k = &kernels, .kc = &kc, .act = &arena, .type = DT_F32, .tape = NULL or &tape };
 *   x = op_linear_add(&o, op_swiglu(&o, op_linear(&o, h, &gate), op_linear(&o, h, &up)), &down, x);
 *   dloss = tape_grad(&o, loss); ... ; tape_back(&o);
 *
 * Rules: gradients accumulate; a parameter without PARAM_TRAIN is frozen; a tensor whose gradient nobody wants has id 0
 * and is not walked. A wrong shape is a bug (BUG), never an error. Outputs live until the arena is rewound.
 * A dry context (o.dry) takes memory and calls no kernel: with a counting arena it measures what a step needs.
 */
#pragma once
#include <stdbool.h>

#include "kern/kern.h"
#include "kern/prof.h"

/* ---- parameters */

enum {
    PARAM_TRAIN = 1,  /* has a gradient g that the optimiser will use */
    PARAM_DECAY = 2,  /* takes weight decay: matrices, not norms and biases */
};
struct param {
    struct tensor w;
    struct tensor g; /* same shape; p NULL unless PARAM_TRAIN */
    unsigned flags;
};
/* W + scale * B A, kept apart from W.  a[R,I], b[O,R].  arXiv:2106.09685 eq. 3 */
struct lora {
    struct param a, b;
    float scale; /* alpha / r */
    float drop;  /* probability with which A's inputs are zeroed while op_ctx.drop_key is set */
    uint64_t id; /* mixed into the key; random looking. Adapters with one id drop the same of what they read */
};
struct linear {
    struct param w, b; /* w[O,I]; b[O] or absent */
    struct lora *lora; /* NULL: none */
    const struct lora *served; /* [OP_ADAPTERS] by number, for rows that op_ctx.span says; a.w.p NULL: that adapter has
                                  none here. NULL: no adapter has */
};
enum { OP_ADAPTERS = 16 };
/* Rows [from, to) go through adapter `number` of linear.served. */
struct op_span { int from, to, number; };
struct layernorm {
    struct param w, b; /* [C] */
};

/* ---- tape */

struct op_ctx;
typedef struct tensor (*op_block_fn)(struct op_ctx *o, const void *arg, struct tensor x);

/* One step of the way back. Which fields mean what is private to the op that recorded it. */
struct rec {
    void (*bwd)(struct op_ctx *, const struct rec *);
    struct tensor x[3], y, saved[3];
    const void *arg;  /* parameters */
    op_block_fn fn;   /* checkpoint only */
    char local[80];   /* checkpoint only: a copy of the block's argument */
    float f;
    int i;
    uint64_t key;
    size_t at, end;
};

struct tape {
    struct rec *rec;
    struct tensor *g; /* gradient of the tensor with id i; p NULL until touched */
    int n, n_max, n_id, id_max;
    struct tape *inner; /* for op_checkpoint; made when first needed */
};
struct tape *tape_new(void);
void tape_free(struct tape *t);
void tape_reset(struct tape *t);

/* What a block keeps from the way forward for the way back; the rest is computed again, to the same bits. */
enum op_kept {
    OP_KEPT_ALL,  /* everything */
    OP_KEPT_DEAR, /* its input and what is dear to compute: results of products and of attention */
    OP_KEPT_AWAY, /* the same, what is dear in op_ctx.away's memory */
    OP_KEPT_NONE, /* its input */
};
/* Memory that is somebody else's for what is dear of one block after another, and on the way back of the last of them
 * first. It is the block's from open to close; back: it holds what it held when it was closed, of as many bytes. */
struct op_away {
    void *ctx;
    char *(*open)(void *ctx, size_t bytes, bool back);
    void (*close)(void *ctx, bool back);
};
/* What is dear of the block that runs, one tensor after another from base on. */
struct op_dear {
    char *base;
    size_t used, result_at; /* where the block's result would be, which is at `result` instead */
    void *result;
    bool passed;            /* it */
    bool there;             /* the block runs again: nothing of it needs to be computed */
};

/* A matmul that waits: see op_put_off. */
struct op_late { struct tensor y, x, w, b, res; };

struct op_ctx {
    const struct kern *k;
    struct kctx *kc;
    struct arena *act;
    struct tape *tape;
    enum dtype type; /* of activations: F32; F64 in gradient tests */
    bool dry;
    const uint8_t *kept; /* [L] enum op_kept of the language model's layers, with a tape; NULL: they keep all */
    bool tower_again;    /* with a tape: a tower's layers keep their input only */
    const struct op_away *away;
    size_t away_most;    /* of a dry run: bytes of the largest block that has been away */
    struct op_dear *dear; /* of the block that runs; NULL: it keeps all, or nothing */
    /* Called on the way back where op_mark marked it; not in a dry run. */
    void (*passed)(void *ctx, int i);
    void *passed_ctx;
    bool overwrite;    /* without a tape: what is added to (op_linear_add's res) is not needed any more */
    uint64_t drop_key; /* dropout's key of this step; 0: no dropout. Recomputation drops the same elements */
    float drop;        /* while there is a key: probability with which what op_join adds is zeroed */
    bool puts_off;     /* a block runs again: products wait until a kernel is called after them, so that its last one,
                          whose result nobody reads, is left out */
    struct op_late late[2];
    int n_late;
    const struct op_span *span; /* [n_spans] which rows have adapters of their own; no tape */
    int n_spans;
};

/* Gradient of x: a buffer of x's shape in the activation arena, zeroed when first asked for; p NULL if x has id 0. */
struct tensor tape_grad(struct op_ctx *o, struct tensor x);
/* The same for a kernel that adds to all of it and takes fresh gradients (kern.h): not zeroed if nothing is there. Ask
 * once, outside of OP_RUN. */
struct tensor tape_grad_fresh(struct op_ctx *o, struct tensor x);
/* Adds dy to x's gradient. dy is of no use after it: its memory may have become that gradient. */
void tape_pass(struct op_ctx *o, struct tensor x, struct tensor dy);
/* Walks all records backwards and empties the tape. Seed it first: write into tape_grad(o, loss). */
void tape_back(struct op_ctx *o);
/* Marks an input (pixels, embeddings made elsewhere) as one whose gradient is wanted. */
struct tensor tape_want(struct op_ctx *o, struct tensor x);

/* ---- from the host */

/* The values of a host tensor on the device, in o->type if they are floats: a copy in the arena, so host may change. */
struct tensor op_input(struct op_ctx *o, struct tensor host);

/* ---- ops. x is [T,C] unless said; results are new [T,..] tensors of o->type. */

struct tensor op_linear(struct op_ctx *o, struct tensor x, const struct linear *l); /* [T,I] -> [T,O] */
/* + res[T,O], in whose place the result is with op_ctx.overwrite */
struct tensor op_linear_add(struct op_ctx *o, struct tensor x, const struct linear *l, struct tensor res);
/* res + y, a block's result on its way back into the stream; of y elements are dropped if op_ctx.drop says so. place:
 * another number for each place of a model. The second and op_linear are op_linear_add where nothing is dropped. */
bool op_joins(const struct op_ctx *o);
struct tensor op_join(struct op_ctx *o, struct tensor y, struct tensor res, int place);
struct tensor op_linear_join(struct op_ctx *o, struct tensor x, const struct linear *l, struct tensor res, int place);
/* Logits for sampling: F32 whatever o->type is; never on a tape. */
struct tensor op_linear_f32(struct op_ctx *o, struct tensor x, const struct linear *l);
struct tensor op_rmsnorm(struct op_ctx *o, struct tensor x, const struct param *w, float eps);
struct tensor op_layernorm(struct op_ctx *o, struct tensor x, const struct layernorm *n, float eps);
struct tensor op_rope(struct op_ctx *o, struct tensor x, struct tensor pos,
                      struct tensor table); /* in place */
/* k,v: this call's own rows, or a cache (then no tape). range[T,2], or [T,3] with pages[B,M] (no tape). scale:
 * 1/sqrt(D). See kern.h attn_fwd. */
struct tensor op_attention(struct op_ctx *o, struct tensor q, struct tensor k, struct tensor v,
                           struct tensor range, struct tensor pages, int heads);
/* The first `rows` positions see themselves alone, as range says, and so do the next ones: one part after another, so
 * that each has the bits that it has alone. 0: op_attention of all. No tape but with 0. */
struct tensor op_attention_parts(struct op_ctx *o, struct tensor q, struct tensor k, struct tensor v,
                                 struct tensor range, int heads, int rows);
struct tensor op_swiglu(struct op_ctx *o, struct tensor g, struct tensor u);
struct tensor op_gelu(struct op_ctx *o, struct tensor x);
struct tensor op_quick_gelu(struct op_ctx *o, struct tensor x);
struct tensor op_add(struct op_ctx *o, struct tensor a, struct tensor b);
/* Table lookup in a parameter: idx[n] -> [n,C]; zeros where idx < 0. */
struct tensor op_embed(struct op_ctx *o, const struct param *w, struct tensor idx);
/* Rows of an activation: idx[n] -> [n,C]; zeros where idx < 0. */
struct tensor op_gather(struct op_ctx *o, struct tensor x, struct tensor idx);
/* A copy of y with rows idx replaced by x's: how picture features go into a text. Indices are distinct. */
struct tensor op_splice(struct op_ctx *o, struct tensor y, struct tensor x, struct tensor idx);
/* Rows of x into a cache, in place; never on a tape. */
void op_store(struct op_ctx *o, struct tensor cache, struct tensor idx, struct tensor x);
struct tensor op_patchify(struct op_ctx *o, struct tensor x, int patch); /* [N,3,S,S] -> [N*g*g,3*p*p] */
/* Loss of each row, 0 where target < 0: logits[T,V], target[T] I32 -> [T]; smooth: as kern.h has it. */
struct tensor op_xent(struct op_ctx *o, struct tensor logits, struct tensor target, float smooth);
/* op_xent(op_linear(x, l), target, smooth), `chunk` rows of logits at a time: they are never all there. The losses'
 * gradient is given beforehand, dloss[T], so that x's gradient and l's are made on the way; there is no record. */
struct tensor op_linear_xent(struct op_ctx *o, struct tensor x, const struct linear *l, struct tensor target,
                             float smooth, struct tensor dloss, int chunk);

/* The token after each row of logits[T,V] into chosen[S] I32, and tokens of which some are chosen ones: kern.h choose,
 * tokens_get. Never on a tape. */
void op_choose(struct op_ctx *o, struct tensor chosen, struct tensor logits, struct tensor how);
struct tensor op_tokens(struct op_ctx *o, struct tensor chosen, struct tensor idx);

/* Runs fn(o, arg, x) and keeps of it what `kept` says; if that is not all, runs it again on the way back, with a tape
 * of its own. Same bits whatever it says. When the block was walked back the memory that it took, and all that was
 * taken after it (its result too), is given back or written over. The `bytes` (at most 80) of arg are copied; what it
 * points to must live until tape_back. A block that runs again is walked back even if nothing in it trains and x wants
 * no gradient.  arXiv:1604.06174 */
struct tensor op_checkpoint(struct op_ctx *o, op_block_fn fn, const void *arg, size_t bytes, enum op_kept kept,
                            struct tensor x);
/* Calls o->passed(o->passed_ctx, i) when everything after x was walked back. Nothing where x wants no gradient. */
void op_mark(struct op_ctx *o, struct tensor x, int i);

/* ---- composites: default bodies made of the ops above; a backend may later override one with a single kernel. */

/* x[T,I] through n <= 3 linears side by side: y[i] [T,O_i]. */
void op_linears(struct op_ctx *o, struct tensor *y, struct tensor x, const struct linear *const *l, int n);
/* Norm, then one projection each. q, k, v out. */
struct op_qkv { struct tensor q, k, v; };
struct op_qkv op_norm_qkv(struct op_ctx *o, struct tensor x, const struct param *norm, float eps,
                          const struct linear *q, const struct linear *k, const struct linear *v);
/* Rotary positions of h's q and k, then k and v into a cache's rows idx; h's k and v are the cache from here on. */
void op_rope_store(struct op_ctx *o, struct op_qkv *h, struct tensor pos, struct tensor table, struct tensor k_store,
                   struct tensor v_store, struct tensor idx);
/* The same, and op_attention over the cache; in decode the last row of a token's range is its own, in row idx, which no
 * other token sees: kern.h rope_attn. */
struct tensor op_rope_attention(struct op_ctx *o, struct op_qkv *h, struct tensor pos, struct tensor table,
                                struct tensor k_store, struct tensor v_store, struct tensor idx, struct tensor range,
                                struct tensor pages, int heads);
/* down(silu(gate(norm(x))) * up(norm(x))) + x */
struct tensor op_norm_glu_add(struct op_ctx *o, struct tensor x, const struct param *norm, float eps,
                              const struct linear *gate, const struct linear *up, const struct linear *down,
                              int place);

/* ---- for op files only */

struct tensor op_new(struct op_ctx *o, bool want, int64_t rows, int64_t cols); /* want: give it a gradient slot */
struct tensor op_new_1d(struct op_ctx *o, enum dtype t, int64_t n);            /* statistics; no slot */
/* op_new of what is dear, in any type; the same calls in the same order each time a block runs. It is to be computed
 * unless op_has: then it is there. */
struct tensor op_new_dear(struct op_ctx *o, bool want, enum dtype t, int64_t rows, int64_t cols);
static inline bool op_has(const struct op_ctx *o) { return o->dear && o->dear->there; }
/* A record to fill, or NULL when y has no slot (no tape, or nobody wants it). */
struct rec *op_record(struct op_ctx *o, void (*bwd)(struct op_ctx *, const struct rec *), struct tensor y);
/* t, which holds nothing, as a kernel that takes fresh gradients wants it. */
struct tensor op_fresh(struct op_ctx *o, struct tensor t);
/* Of statistics and losses. */
static inline enum dtype op_stat_type(const struct op_ctx *o) { return o->type == DT_F64 ? DT_F64 : DT_F32; }
static inline bool param_trains(const struct param *p) { return p && (p->flags & PARAM_TRAIN) != 0; }
static inline struct tensor param_grad(const struct param *p)
{
    return param_trains(p) ? p->g : (struct tensor){ 0 };
}
/* What linears side by side read: x, and x with elements dropped for their adapters if that was made with it. unread:
 * nobody reads x's values any more (the linears' results are there), and its memory is that of `dropped`. */
struct op_read { struct tensor x, dropped; bool unread; };
/* The adapter that drops x, of so many columns, for all of l[0..n) alike; NULL: there is none. */
const struct lora *op_drop_alike(const struct op_ctx *o, const struct linear *const *l, int n, int64_t cols);
/* Memory for what they read; d: op_drop_alike's, or NULL. */
struct op_read op_read_new(struct op_ctx *o, bool want, int64_t rows, int64_t cols, const struct lora *d,
                           const struct linear *const *l, int n);
struct op_read op_rmsnorm_for(struct op_ctx *o, struct tensor x, const struct param *w, float eps,
                              const struct linear *const *l, int n);
struct op_read op_swiglu_for(struct op_ctx *o, struct tensor g, struct tensor u, const struct linear *const *l, int n);
/* op_linears made of single products, each + res if that is there; adapters of one id have x dropped once. */
void op_linear_each(struct op_ctx *o, struct tensor *y, struct op_read h, const struct linear *const *l, int n,
                    struct tensor res);
/* The product is computed before the next kernel, if there is one while o->puts_off; at most two may wait. */
void op_put_off(struct op_ctx *o, struct op_late p);
void op_run_late(struct op_ctx *o);
#define OP_RUN(o, kernel, ...)                                                              \
    do {                                                                                    \
        if ((o)->dry) break;                                                                \
        if ((o)->n_late) op_run_late(o);                                                    \
        if ((o)->kc->prof) prof_begin((o)->kc->prof, #kernel, PROF_ARGS(__VA_ARGS__));      \
        (o)->k->kernel((o)->kc, __VA_ARGS__);                                               \
        if ((o)->kc->prof) prof_end((o)->kc->prof);                                         \
    } while (0)
/* A wrong shape is our bug: say which op and which shapes. */
void op_check_failed(const char *op, const char *what, struct tensor a, struct tensor b);
#define OP_CHECK(cond, a, b)                                          \
    do {                                                              \
        if (!(cond)) op_check_failed(__func__, #cond, a, b);          \
    } while (0)
