/* The safetensors file format: reading from memory, writing from views.
 *
 * A file is: u64 little-endian header length; a JSON object {"name": {"dtype", "shape", "data_offsets":
 * [begin, end]},
 * "__metadata__": {string: string}}, padded with spaces to 8 bytes; then the tensors' bytes, which must cover
 * the rest of the file without holes or overlaps. Source: README.md of huggingface/safetensors, section
 * Format.
 */
#pragma once
#include <stddef.h>

#include "file/weight.h"

enum { SAFETENSORS_HEADER_MAX = 100 << 20 }; /* bytes, the reference implementation's limit */

/* Appends every tensor of a file that is in memory at p..p+n to the list; the rows are views of those bytes.
 * A 0-d tensor is read as [1]. Every error names the file and the tensor: FORMAT, LIMIT, UNSUPPORTED (a type
 * that tensor/dtype.h does not have, more than 4 dimensions), NOMEM. After an error the list may hold some of
 * the rows. */
int safetensors_parse(struct weight_list *list, const void *p, size_t n, const char *file, struct err *e);

/* Writes n tensors, atomically (see out.h), without copying them. `meta` is NULL or key, value, ..., NULL;
 * transformers wants {"format", "pt"}. Types of more bytes come first in the file so that every tensor is
 * aligned; within one size the given order is kept. Names must differ. fetch may be NULL (see weight.h). */
int safetensors_write(const char *path, const struct weight *w, size_t n, const char *const *meta,
                      weight_fetch_fn *fetch, void *ctx, struct err *e);
