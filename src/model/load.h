/* Inside the model room: the index of canonical names, and adapters while a model is opened. See load.c, lora.c. */
#pragma once
#include "model/llava.h"

struct entry {
    char name[NAME_MAX_BYTES];
    const struct weight *w;
    int rank; /* of two entries with one name, the higher wins */
};
struct index {
    struct entry *at; /* sorted by name */
    size_t n;
    int rank;
};
const struct weight *index_find(const struct index *ix, const char *name); /* NULL: none */

/* A LoRA folder: pairs of matrices by the canonical name of the weight they change. */
struct lora_pair {
    char name[NAME_MAX_BYTES]; /* "model.layers.0.self_attn.q_proj.weight" */
    const struct weight *a, *b; /* [R,I], [O,R] */
    double scale;
    bool used;
};
struct lora_set {
    struct weights *weights;
    struct lora_pair *pair; /* sorted by name */
    size_t n;
};
int lora_open(struct lora_set *set, const char *dir, struct err *e);
void lora_close(struct lora_set *set); /* accepts a zeroed one */
struct lora_pair *lora_find(struct lora_set *set, const char *name);
/* out = w + scale * B A, sums in f32, rounded once into out's type. Marks the pair as used. */
int lora_merge(struct lora_pair *p, struct tensor out, struct tensor w, struct err *e);
/* An adapter for a weight that the model does not have is an error that names it. */
int lora_check_used(const struct lora_set *set, const char *dir, struct err *e);
/* base_model_name_or_path of DIR/adapter_config.json, or leaves name as it is. */
void lora_base_name(const char *dir, char *name, size_t size);
