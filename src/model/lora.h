/* LoRA adapters in PEFT's folders: read, and merged into their base or put beside it. W' = W + scale * B A.
 * arXiv:2106.09685 eq. 3 */
#pragma once
#include "model/llava.h"

/* A LoRA folder: pairs of matrices by the canonical name of the weight they change. */
struct lora_pair {
    char name[NAME_MAX_BYTES]; /* "model.layers.0.self_attn.q_proj.weight" */
    const struct weight *a, *b; /* [R,I], [O,R] */
    double rank, scale;
    bool used;
};
struct lora_rest { const struct weight *w; bool used; };
struct lora_set {
    struct weights *weights;
    struct lora_pair *pair; /* sorted by name */
    size_t n;
    struct lora_rest *rest; /* whole tensors that win over the base's of that name: PEFT's modules_to_save */
    size_t n_rest;
};
/* Patterns of adapter_config.json are tried on names of modules as the adapter's file has them. UNSUPPORTED: another
 * kind of adapter, one that goes with another base (pissa, ...), a pattern that is not understood. */
int lora_open(struct lora_set *set, const char *dir, struct err *e);
void lora_mark(struct lora_set *set, const struct weight *w); /* w was bound: if it is of the rest, that is used */
void lora_close(struct lora_set *set); /* accepts a zeroed one */
struct lora_pair *lora_find(struct lora_set *set, const char *name);
/* Are the matrices of the right size for w? */
int lora_fits(const struct lora_pair *p, struct tensor w, struct err *e);
/* out = w + scale * B A, sums in f32, rounded once into out's type. Marks the pair as used. */
int lora_merge(struct lora_pair *p, struct tensor out, struct tensor w, struct err *e);
size_t lora_bytes(const struct lora_set *set); /* of all its matrices, one behind the other on a device */
/* Puts the set's matrices into linear.served[number] of m, whose device they are copied to (into *mem) unless that is
 * the host, where they stay in the mapped file: the set must stay open. Errors name what does not fit. */
int lora_serve(struct lora_set *set, struct llava_model *m, int number, struct arena *mem, const char *dir,
               struct err *e);
/* An adapter for a weight, or a tensor, that the model does not have is an error that names it. */
int lora_check_used(const struct lora_set *set, const char *dir, struct err *e);
/* base_model_name_or_path of DIR/adapter_config.json, or leaves name as it is. */
void lora_base_name(const char *dir, char *name, size_t size);
