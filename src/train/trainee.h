/* What a run trains: the model with its tokenizer and the recipe for its records, the parameters that change and the
 * tensors that a step keeps of each.
 *
 * trainee_open decides and counts; trainee_fill takes the memory. Between the two the plan is made. On the host what is
 * frozen is used where the files have it and what is trained is copied out of them; a device gets all of it.
 */
#pragma once
#include "model/llava.h"
#include "train/args.h"
#include "train/checkpoint.h"
#include "train/sample.h"
#include "train/states.h"

struct trainee {
    struct llava_model model; /* until trainee_fill on the host; after it on dev, if there is one */
    struct dev *dev;         /* borrowed; NULL: the host */
    bool card;               /* dev, or a dry run plans for one that is not here: nothing can run then */
    int bits;                /* of the language model's frozen linears; 0: as the files have them */
    struct tokenizer *tokenizer;
    const struct conv_template *tpl;
    struct recipe recipe;
    char *dir;               /* the base's folder */
    uint64_t base;           /* of its files: equal for the same tensors, whatever the files' order and format */
    enum train_kind kind;
    enum dtype dtype;        /* of weights: F32, BF16, F16 */
    bool tower_trains, projector_trains;
    bool muon;               /* --optim muon */
    struct trained *p;       /* [n], in the order of llava_each, adapters last */
    int n, n_max;
    struct lora *lora;       /* [n_lora] */
    int n_lora;
    struct arena grown;      /* on the host: embeddings with rows for new tokens */
    struct arena state;      /* weights and states of what is trained, where they are not the model's and not away */
    struct states states;
};

/* Bytes of what trainee_fill takes, and of what stays in the files. */
struct trainee_bytes {
    size_t frozen, tower, weights;
    int64_t n_all, n_trained; /* numbers in parameters */
};

int trainee_open(struct trainee *t, const struct train_args *a, struct dev *dev, struct err *e);
/* Of random weights instead, on dev at once: a.model_name_or_path is a preset (llava_config_preset). Without a
 * tokenizer. */
int trainee_random(struct trainee *t, const struct train_args *a, struct dev *dev, struct err *e);
struct trainee_bytes trainee_count(struct trainee *t);
/* How states are kept: before trainee_fill. */
int trainee_keep(struct trainee *t, const struct states_how *how, struct err *e);
/* Places, copies, rounds and clears. Masters of rounded weights are the rounded values, as DeepSpeed makes them. k, kc:
 * of dev. A model that is on dev already stays where it is. */
int trainee_fill(struct trainee *t, const struct train_args *a, const struct kern *k, struct kctx *kc, struct err *e);
void trainee_close(struct trainee *t); /* accepts a zeroed one */
/* Does a pass need a key for what it drops? */
bool trainee_drops(const struct trainee *t, const struct train_args *a);

/* Keys of config.json that LLaVA's train() sets, a new reference. */
json_t *trainee_config(const struct trainee *t, const struct train_args *a);
