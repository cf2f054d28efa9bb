/* LoRA adapters that are served beside the model, unmerged: each request may name one. One that was trained with a
 * projector of its own (LLaVA's training leaves it beside the adapter) has pictures read through that. */
#pragma once
#include "run/engine.h"

/* Finds the folders of "NAME=FOLDER" each and opens what is in them, before the model is. Errors name the entry. */
int adapters_find(struct engine *g, const char *const *list, int n, struct err *e);
size_t adapters_bytes(const struct engine *g); /* that their matrices take on a device */
/* The first folder whose config.json says how pictures are read, or NULL: see llava_source.sees_as. */
const char *adapters_sight(const struct engine *g);
/* Puts them into the model, once that is open and before memory is planned. */
int adapters_open(struct engine *g, struct err *e);
void adapters_close(struct engine *g); /* before the model */
/* Its number; -1 for NULL, ERR_USAGE for a name that is not there. */
int adapter_find(int *ret, const struct engine *g, const char *name, struct err *e);
const char *adapter_name(const struct engine *g, int i); /* NULL past the last */

/* Through whose projector pictures are read: SIGHT_MODEL, or the number of an adapter that has one. */
int adapter_sight(const struct engine *g, int adapter); /* adapter: -1: none */
bool sight_there(const struct engine *g, int sight);
const struct projector *sight_projector(const struct engine *g, int sight);
/* UNSUPPORTED: there are pictures, and no projector for them. */
int adapter_sees(const struct engine *g, int adapter, int n_images, struct err *e);
