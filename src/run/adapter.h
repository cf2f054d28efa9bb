/* LoRA adapters that are served beside the model, unmerged: each request may name one. */
#pragma once
#include "run/engine.h"

/* Opens "NAME=FOLDER" each; before memory is planned. Errors name the entry. */
int adapters_open(struct engine *g, const char *const *list, int n, struct err *e);
void adapters_close(struct engine *g); /* before the model */
/* Its number; -1 for NULL, ERR_USAGE for a name that is not there. */
int adapter_find(int *ret, const struct engine *g, const char *name, struct err *e);
const char *adapter_name(const struct engine *g, int i); /* NULL past the last */
