/* Llama (and Mistral, Vicuna): a decoder-only transformer. Maths as transformers' LlamaForCausalLM.
 *
 * The maths of a layer is written once, in llama.c; inference, training and recomputation run the same lines.
 */
#pragma once
#include "model/config.h"
#include "op/op.h"

struct llama_layer {
    struct param ln1, ln2;                      /* [C] input_layernorm, post_attention_layernorm */
    struct linear q, k, v, o;                   /* [H*D,C] [K*D,C] [K*D,C] [C,H*D] */
    struct linear gate, up, down;               /* [F,C] [F,C] [C,F] */
};

struct llama {
    struct llama_config cfg;
    struct param embed;                         /* [V,C] */
    struct llama_layer *layer;                  /* [L] */
    struct param norm;                          /* [C] */
    struct linear head;                         /* [V,C] */
    struct tensor rope;                         /* [max_pos,D] F32: cos | sin */
};

/* Which tokens a call runs on. All I32, on the device of the kernels. */
struct llama_seq {
    struct tensor pos;   /* [T] position of each token: its angle in RoPE */
    struct tensor range; /* [T,2] rows of k and v that each token sees: [from, to). With pages [T,3]: and which
                            sequence's rows these are */
    struct tensor pages; /* [B,M] pages of each sequence in the caches; p NULL: a cache is one sequence */
    struct tensor row;   /* [T] cache row where each token's k and v are put; p NULL: no cache, they are this
                            call's own */
    bool few;            /* of a prompt some rows' hidden states are wanted, or none, and behind the last layer's
                            attention nothing else is computed. Not with a tape, not with adapters by rows */
    struct tensor out;   /* [n] few: which; p NULL: none */
};
struct llama_cache {
    struct tensor k, v; /* [S,K*D] of one layer */
};

/* Fills t[n,D] with cos | sin of pos * theta^(-2i/D), scaled as cfg says, on the host.  arXiv:2104.09864 */
void llama_rope_table(const struct llama_config *c, float *t, int n);

/* x[T,C] embeddings (overwritten when there is no tape) -> [T,C] hidden states after the last norm; with seq->few
 * [n,C], after which o->kc->decode is set, for what is left has few rows; or p NULL. cache: one per layer, or NULL.
 * With a tape layers keep what o->kept says and give their memory back when they were walked back (op_checkpoint); seq
 * must live until tape_back, and o->passed is called with i where layer i's way back ends. */
struct tensor llama_forward(struct op_ctx *o, const struct llama *m, struct tensor x, const struct llama_seq *seq,
                            const struct llama_cache *cache);
/* h[T,C] -> logits [T,V], F32 without a tape */
struct tensor llama_logits(struct op_ctx *o, const struct llama *m, struct tensor h);
