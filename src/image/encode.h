/* Pictures as files in memory: what the web server keeps and sends on. */
#pragma once
#include "base/buf.h"
#include "image/picture.h"

/* Both add to *out (made by the caller with its limit). NOMEM, LIMIT. */
int picture_png(struct buf *out, const struct picture *p, struct err *e);
/* 4:2:0; Pillow's default quality is 75. */
int picture_jpeg(struct buf *out, const struct picture *p, int quality, struct err *e);
