/* Any resolution (LLaVA 1.6): the grid of tiles that suits a picture, and the order in which the features of
 * its tiles go to the language model. Integers only; the pictures themselves are cut in preprocess.h.
 *
 * Source: llava/mm_utils.py select_best_resolution and get_anyres_image_grid_shape; llava/model/llava_arch.py
 * unpad_image and prepare_inputs_labels_for_multimodal.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

enum { PINPOINTS_MAX = 64, PINPOINT_SIDE_MAX = 16384 };

/* The resolutions a picture may be brought to, in the order of the config (it decides ties). */
struct pinpoints {
    int n;
    struct { int w, h; } at[PINPOINTS_MAX]; /* pixels */
};

/* Reads a list of pairs, as JSON or Python writes it: "[[336, 672], [672, 336]]", "[(336, 672), (672, 336)]".
 * LLaVA's image_grid_pinpoints are (width, height); those of Hugging Face's llava_next are (height, width):
 * pass height_first. ERR_FORMAT, ERR_LIMIT (more than PINPOINTS_MAX pairs). A side is 1 to
 * PINPOINT_SIDE_MAX. */
int pinpoints_parse(struct pinpoints *p, const char *text, size_t n, bool height_first, struct err *e);

/* Index of the pinpoint that keeps most pixels of w x h pixels, and wastes least among equals; p->n >= 1. */
int pinpoints_best(const struct pinpoints *p, int w, int h);

/* Tiles across and down, the whole picture not counted; 0 x 0: only the whole picture. */
struct grid { int w, h; };

/* The grid of a picture of w x h pixels whose tiles have `tile` pixels a side. */
struct grid anyres_grid(const struct pinpoints *p, int w, int h, int tile);

enum merge { MERGE_FLAT, MERGE_SPATIAL, MERGE_UNPAD };

/* config.json mm_patch_merge_type: NULL or "flat"; "spatial..."; "spatial..." with "unpad" in it. Else
 * ERR_UNSUPPORTED. */
int merge_parse(enum merge *m, const char *name, struct err *e);

/* Rows of features in the order the language model takes them. Features are [1 + grid.w*grid.h tiles,
 * side*side, C], tile 0 the whole picture; an entry is tile*side*side + patch, or -1 for the learned
 * image_newline row.
 *   FLAT     every row of every tile in order
 *   SPATIAL  tile 0, then the grid's rows of patches, each straight across the tiles
 *   UNPAD    the same without the rows or columns that hold only padding around a picture of w x h pixels,
 *            and image_newline after each row; of a single tile, its rows and one image_newline
 * Returns how many there are; `to` may be NULL to only count. */
int64_t merge_rows(int32_t *to, enum merge m, struct grid grid, int side, int w, int h);
