/* Base64 (RFC 4648), and pictures in it. */
#pragma once
#include <stdbool.h>
#include <stddef.h>

#include "base/buf.h"

/* Decodes text[0..n) into *out (made by the caller). White space is skipped, padding may be missing, the URL alphabet
 * is taken too. False: not base64, or out failed. */
bool base64_decode(struct buf *out, const char *text, size_t n);
/* The same for "data:TYPE;base64,..." or bare base64. */
bool base64_picture(struct buf *out, const char *text);
void base64_encode(struct buf *out, const void *p, size_t n);
