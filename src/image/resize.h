/* Pillow's bicubic resize, to the byte.
 *
 * Image.resize(size, BICUBIC) of Pillow 9 and 10 (src/libImaging/Resample.c): Keys' cubic with a = -0.5,
 * widened by the scale when shrinking; weights are rounded to 22 fractional bits; columns first, then rows,
 * with 8-bit values in between; an axis whose size does not change is not filtered. Every instruction set
 * gives the same bytes.
 */
#pragma once
#include "image/picture.h"

/* dst = src resized to w x h. Errors as picture_new. On failure *dst is empty. */
int picture_resize(struct picture *dst, const struct picture *src, int w, int h, struct err *e);

/* The window at (x, y) of cw x ch pixels of what picture_resize would give, computed without the rest; the
 * window may reach outside the resized picture, where it is black. w, h >= 1 up to INT32_MAX; cw, ch are what
 * picture_new takes. */
struct window { int x, y, w, h; };
int picture_resize_window(struct picture *dst, const struct picture *src, int w, int h, struct window win,
                          struct err *e);
