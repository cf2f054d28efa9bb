/* Writing a model's folder, so that it appears whole: everything goes into a folder beside it first
 * (DIR.saving, or DIR/.saving when DIR exists already), is synced there and then renamed.
 *
 * A new DIR appears in one step. In a DIR that exists the files are renamed one after the other, weights'
 * index last; a kill in these milliseconds can leave old and new files side by side. Weights files of an
 * older save that the new one does not have (model*.safetensors and their index) are removed at the end.
 */
#pragma once
#include <jansson.h>
#include <stddef.h>

#include "file/weight.h"

struct saver;

/* Creates the temporary folder; what a killed run left there is removed. *ret is the caller's, to
 * saver_close. */
int saver_open(struct saver **ret, const char *dir, struct err *e);

/* n tensors as model.safetensors, or, when they are more than shard_bytes (0: 5e9, as transformers), as
 * model-00001-of-0000N.safetensors and model.safetensors.index.json; in the given order. A tensor larger than
 * shard_bytes gets a file of its own. fetch may be NULL (file/weight.h). */
int saver_weights(struct saver *s, const struct weight *w, size_t n, size_t shard_bytes,
                  weight_fetch_fn *fetch, void *ctx, struct err *e);
/* n tensors in one file, `file` ending in .safetensors or, for torch.load, in .bin. */
int saver_tensors(struct saver *s, const char *file, const struct weight *w, size_t n, weight_fetch_fn *fetch,
                  void *ctx, struct err *e);
int saver_json(struct saver *s, const char *file, const json_t *v, struct err *e);
int saver_bytes(struct saver *s, const char *file, const void *p, size_t n, struct err *e);
/* Copies the tokenizer's, generation's and image processor's files that `from` has. */
int saver_copy_side_files(struct saver *s, const char *from, struct err *e);

/* Renames it all into place; refused after a failure of any of the above. Nothing can be added afterwards. */
int saver_commit(struct saver *s, struct err *e);
void saver_close(struct saver *s); /* without a commit: removes what was written; accepts NULL */
