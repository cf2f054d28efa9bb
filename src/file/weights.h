/* The weights of a model: named tensors over the mapped files of a checkpoint, whatever their format.
 *
 * Nothing goes through the heap but names (and the rare tensor that its file holds misaligned or with
 * strides), so opening a checkpoint of 26 GB takes milliseconds; pages are read when a tensor is first used.
 *
 * A path is a file (*.safetensors, or *.bin, *.pt, *.pth of torch.save) or a folder, in which the first of
 * these is taken, as transformers does: model.safetensors, model.safetensors.index.json with its shards,
 * pytorch_model.bin, pytorch_model.bin.index.json with its shards, the only *.safetensors there is.
 */
#pragma once
#include <stddef.h>

#include "file/weight.h"

struct weights;

/* Errors name the file: MISSING (no such path, no weights in the folder, a shard that the index lists is not
 * there), FORMAT (damaged, the same tensor in two shards, a tensor that is not in the shard that the index
 * says), UNSUPPORTED, LIMIT, IO, NOMEM. On success *ret is the caller's, to weights_close. */
int weights_open(struct weights **ret, const char *path, struct err *e);

/* Adds another path's tensors (a vision tower, mm_projector.bin, an adapter). A name that is already there
 * now means the tensor of this path. On an error w is as before. */
int weights_add(struct weights *w, const char *path, struct err *e);
void weights_close(struct weights *w); /* accepts NULL; the tensors' memory is gone afterwards */

/* Rows stay where they are until the next weights_add or weights_close; t.p must not be written to.
 * find: O(log n), NULL when there is none. at: by name, 0 <= i < count. */
const struct weight *weights_find(const struct weights *w, const char *name);
size_t weights_count(const struct weights *w);
const struct weight *weights_at(const struct weights *w, size_t i);
size_t weights_bytes(const struct weights *w); /* sum over all tensors */

/* Tells the kernel that all of it will be read soon, in order. */
void weights_advise(const struct weights *w);
