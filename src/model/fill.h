/* Parameters get their values: what a row of bind.c's table wants of a tensor in a file, and in which type it is kept.
 *
 * They view the mapped files wherever the wanted type allows it; what must be converted or merged, and for a device
 * everything, is counted in a first pass over the rows and made in one arena in a second.
 */
#pragma once
#include "model/index.h"

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

/* Every row of m, from ix; those of the projector from `projector`, if there is anything in it. Where s.vision asks for
 * a projector that is nowhere, it is made. lora: merged or, if s says so, only looked at; what is used is marked. */
int bind_all(struct llava_model *m, const struct llava_source *s, const struct index *ix,
             const struct index *projector, struct lora_set *lora, struct err *e);
/* The rows of the projector alone, into m.own. */
int bind_projector(struct llava_model *m, const struct llava_source *s, const struct index *ix, struct err *e);
