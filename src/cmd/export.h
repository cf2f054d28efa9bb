/* What `convert`, `merge` and `quantize` share: opening whatever holds a model and writing it as a folder.
 *
 * Ids of pictures: LLaVA's layout has no token "<image>", transformers' has. Going there, `<image>` and
 * `<pad>` become tokens after the last, and embed_tokens and lm_head get rows for them (the mean of the old
 * rows), padded to a multiple of 64; going back both tokens and all rows from them on are dropped. So a model
 * that went there and back is the same.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"
#include "cmd/cmd.h"
#include "file/saver.h"
#include "model/save.h"
#include "text/tokenizer.h"

struct export {
    const char *path, *base, *tower; /* folders or names; base and tower may be NULL */
    const char *out;
    enum naming naming;
    bool projector_only, with_tower;
    bool keep_naming; /* as the base has it: naming is not read */
    bool keep_dtype;
    enum dtype dtype;
    size_t shard_bytes;
    int bits; /* 8 or 4: quantise; 0: not */
};
int export_model(const struct export *x, struct err *e);

/* Options that the commands have in common; most are worded by each for itself. Its own keys begin at EXPORT_OWN. */
enum {
    EXPORT_PATH = CMD_KEY,
    EXPORT_BASE,
    EXPORT_TOWER,
    EXPORT_OUT,
    EXPORT_DTYPE,
    EXPORT_SHARD, /* "5GB", "500MB", "2GiB", "1000000" */
    EXPORT_QUIET,
    EXPORT_OWN
};
/* Rows that are the same in all. */
#define EXPORT_SHARD_ROW                                                                                          \
    { "max-shard-size", EXPORT_SHARD, "SIZE", 0, "Largest weights file, such as 5GB (the default) or 500MB", 0 }
#define EXPORT_TOWER_ROW                                                                                          \
    { "vision-tower", EXPORT_TOWER, "DIR|ORG/NAME", 0, "Vision tower, instead of the one that config.json names", 0 }
#define EXPORT_QUIET_ROW { "quiet", EXPORT_QUIET, NULL, 0, "No progress", 0 }
/* One of them into *x. An argument that is no option is a usage error; ARGP_ERR_UNKNOWN for all other keys. */
error_t export_option(struct export *x, int key, char *arg, struct argp_state *state);
/* The whole command of `merge` and `quantize`: the base's layout and types are kept. The exit code. */
int export_command(const struct argp *argp, int argc, char **argv);

/* The layout that an open model was read from. */
enum naming export_naming(const struct llava_model *m);

/* ---- the tokenizer's files, export_text.c */

/* Copies of the files in dirs (later ones win; entries may be NULL) with <image> and <pad> as tokens of these
 * ids. */
int export_tokens_add(struct saver *s, const char *const dirs[2], const struct tokenizer *t, int image,
                      int pad, const struct llava_config *c, struct err *e);
/* The same without them. */
int export_tokens_drop(struct saver *s, const char *const dirs[2], struct err *e);
