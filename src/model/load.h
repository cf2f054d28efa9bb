/* Inside the model room: the index of canonical names, and adapters while a model is opened. See load.c, lora.c. */
#pragma once
#include "model/llava.h"

struct entry {
    char name[NAME_MAX_BYTES];
    const struct weight *w;
    int rank; /* of two entries with one name, the higher wins */
};
struct index {
    struct entry *at; /* sorted by name; the caller's, to free() */
    size_t n;
    int rank;
};
/* Adds the canonical names of a set; of two with one name the later set's wins. */
int index_add(struct index *ix, const struct weights *w, struct err *e);
const struct weight *index_find(const struct index *ix, const char *name); /* NULL: none */

/* The tensor of a file as kernels see it: does it fit the row? Quantised matrices [O,I] are rows of U8 in files.
 * Error: names both shapes, or the type. */
int bind_read(struct tensor *ret, const struct bind_row *r, const struct weight *w, struct err *e);
/* Is a linear whose file has `file` in as many bits as the model's others, and quantised if config.json says so? Sets
 * m->bits, if it is 0, to those of the first. */
int bind_bits(struct llava_model *m, const struct bind_row *r, const struct weight *w, enum dtype file, struct err *e);
/* The type to which a row is quantised when that is asked for, or keep. */
enum dtype bind_quant(const struct bind_row *r, int bits, enum dtype keep);

/* The type that a parameter is kept in when its file has `file` and `want` is asked for. */
enum dtype bind_type(enum dtype want, const struct bind_row *r, enum dtype file);
bool bind_is_bias(const struct bind_row *r); /* of a linear, not of a norm */
/* Data of a file's shape as kernels see it. */
struct tensor bind_view(const struct bind_row *r, void *p, enum dtype t);

/* The steps of llava_model_open, for `inspect`, which goes on where one fails: configuration and files (of an
 * adapter its own and its base's); the tower; the arrays of layers. */
struct lora_set;
int model_open_files(struct llava_model *m, const struct llava_source *s, struct index *ix, struct lora_set *lora,
                     struct err *e);
int model_open_tower(struct llava_model *m, const struct llava_source *s, struct index *ix, struct err *e);
int model_make_layers(struct llava_model *m, struct err *e);
/* Do tower, projector and language model fit? What config.json leaves open is filled in; `path` is for messages. */
int model_check_vision(struct llava_model *m, const char *path, struct err *e);

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
/* The projector that was trained with an adapter, for m's tower: it lies beside it (non_lora_trainables.bin) or among
 * its whole tensors. */
struct own_projector {
    struct projector projector;
    bool there; /* else the folder has none: m's own is the adapter's */
    struct weights *weights[2]; /* mapped files that it views, beside the set's */
    int n_weights;
    struct arena mem; /* what had to be converted; of a device everything */
};
/* set, of the same folder, must stay open. UNSUPPORTED: the adapter was trained with other pictures than m reads, or
 * more than a projector came with it. The caller closes *p (zeroed before) in any case. */
int projector_open(struct own_projector *p, const struct llava_model *m, const struct lora_set *set, const char *dir,
                   struct err *e);
void projector_close(struct own_projector *p); /* accepts a zeroed one */
/* An adapter for a weight, or a tensor, that the model does not have is an error that names it. */
int lora_check_used(const struct lora_set *set, const char *dir, struct err *e);
/* base_model_name_or_path of DIR/adapter_config.json, or leaves name as it is. */
void lora_base_name(const char *dir, char *name, size_t size);
