/* The steps of llava_model_open (llava.h), for `inspect`, which goes on where one fails, and for whoever makes a model
 * otherwise. */
#pragma once
#include "model/index.h"

/* Configuration and files; of an adapter its own and its base's. */
int model_open_files(struct llava_model *m, const struct llava_source *s, struct index *ix, struct lora_set *lora,
                     struct err *e);
/* What was trained with an adapter and is none lies beside it: adds it, if it is there, to m's files and to ix. */
int model_add_beside(struct llava_model *m, struct index *ix, const char *dir, struct err *e);
int model_open_tower(struct llava_model *m, const struct llava_source *s, struct index *ix, struct err *e);
int model_make_layers(struct llava_model *m, struct err *e); /* the arrays of layers; ERR_NOMEM */
/* Do tower, projector and language model fit? What config.json leaves open is filled in; `path` is for messages. */
int model_check_vision(struct llava_model *m, const char *path, struct err *e);
bool model_has_file(const char *dir, const char *name);
