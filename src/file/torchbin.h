/* PyTorch's .bin, .pt and .pth files (torch.save since 1.6): a zip archive NAME/ with data.pkl, a pickle of
 * dicts of tensors, and data/0, data/1, ..., the tensors' storages. Reading executes nothing (file/pickle.h)
 * and copies nothing: tensors are views of the archive's bytes. Sources: torch/serialization.py (_save,
 * _load), torch/_utils.py
 * (_rebuild_tensor_v2).
 */
#pragma once
#include <stddef.h>

#include "file/weight.h"

/* Appends every tensor of the archive at p..p+n. Dicts in dicts are joined with '.' (so are numbers of lists
 * and tuples); values that are no tensors are skipped. Tensors with strides are copied into row-major order.
 * Errors name the file and the tensor: FORMAT, LIMIT, UNSUPPORTED (files from before PyTorch 1.6, with a hint
 * how to convert; functions that the pickle wants to call; types that tensor/dtype.h does not have), NOMEM.
 * After an error the list may hold some rows. */
int torchbin_parse(struct weight_list *list, const void *p, size_t n, const char *file, struct err *e);

/* Writes an OrderedDict of n tensors, atomically (file/out.h), one storage each, such that
 * torch.load(weights_only=True) opens it. Names must differ and be UTF-8. fetch may be NULL (file/weight.h).
 */
int torchbin_write(const char *path, const struct weight *w, size_t n, weight_fetch_fn *fetch, void *ctx,
                   struct err *e);
