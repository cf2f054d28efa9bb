/* From a picture to the numbers a CLIP vision tower reads, bit for bit what LLaVA gives.
 *
 * Source: transformers 4.37 CLIPImageProcessor (the numpy one; the torch "fast" one of transformers 5 folds
 * rescaling and normalising into one step and differs in the last bit) and llava/mm_utils.py process_images.
 * One difference: pictures 1 or 3 pixels high, whose axes transformers takes for colours, are treated like
 * any other.
 */
#pragma once
#include <stdbool.h>

#include "image/anyres.h"
#include "image/picture.h"

enum { CLIP_SIDE_MAX = 4096, TILES_MAX = 1024 };

/* preprocessor_config.json. */
struct clip_processor {
    bool do_resize, do_center_crop, do_rescale, do_normalize;
    int shortest;       /* > 0: pixels the shorter side is resized to; 0: resize to size_w x size_h */
    int size_w, size_h; /* pixels; both = shortest where that is set */
    int crop_w, crop_h; /* pixels */
    double mean[3], std[3], scale; /* scale: what a byte is multiplied with, 1/255 */
};

/* openai/clip-vit-large-patch14-336, for another side than 336 too. */
void clip_processor_default(struct clip_processor *p, int side);

/* Reads a preprocessor_config.json, or the "image_processor" of a processor_config.json; what is absent is as
 * in clip_processor_default(336). size: N, {"shortest_edge": N} or {"height": H, "width": W}; crop_size: N or
 * an object. ERR_FORMAT: not JSON, a value of a wrong type or range; ERR_UNSUPPORTED: a resample other than
 * 3, bicubic. `load` of a file that does not exist gives the defaults and returns 1, else 0. */
int clip_processor_load(struct clip_processor *p, const char *path, struct err *e);
int clip_processor_parse(struct clip_processor *p, const char *json, size_t n, const char *name,
                         struct err *e);

/* What surrounds a picture padded to a square: int(mean * 255), (122, 116, 104) for CLIP. */
void clip_processor_background(const struct clip_processor *p, uint8_t colour[3]);

/* config.json image_aspect_ratio. */
enum aspect { ASPECT_SQUARE, ASPECT_PAD, ASPECT_ANYRES };

/* "pad", "anyres"; as in LLaVA NULL and anything else are square, but ERR_UNSUPPORTED for "anyres_...". */
int aspect_parse(enum aspect *a, const char *name, struct err *e);

/* data: float32 [n tiles, 3, h, w], owned; w0 x h0: the picture before anything was done to it, for
 * anyres_grid and merge_rows. */
struct pixels {
    float *data;
    int n, h, w, w0, h0;
};

/* process_images for one picture.
 *   SQUARE  shorter side resized, centre cropped (black where too small), rescaled, normalised: one tile
 *   PAD     first put in the middle of a square of the background colour: one tile
 *   ANYRES  tile 0: the whole picture squeezed to a square; then the picture, fitted into its best pinpoint
 *           on black, cut into tiles of crop_h pixels a side, row by row. Needs pp, else NULL will do.
 * ERR_LIMIT (more than TILES_MAX tiles, or a step too large for picture_new), ERR_NOMEM; ERR_MISSING: ANYRES
 * without pp; ERR_UNSUPPORTED: a pinpoint that is no multiple of the tile. Errors do not name the picture. On
 * failure *px is empty. */
int pixels_new(struct pixels *px, const struct picture *pic, const struct clip_processor *p, enum aspect a,
               const struct pinpoints *pp, struct err *e);
void pixels_free(struct pixels *px); /* accepts a zeroed one */

/* What the web page does to a picture before it sends it on (llava/conversation.py process_image): "Pad" to a
 * square on CLIP's background, "Resize" to 336 x 336, "Crop" or "Default" nothing; then, where a side is
 * longer than 1,344 pixels, shrinks it. Another mode: ERR_USAGE. */
int picture_for_web(struct picture *dst, const struct picture *src, const char *mode, struct err *e);
