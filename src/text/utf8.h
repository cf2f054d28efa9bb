/* UTF-8: writing (reading is base/utf8.h's), and white space as Python's str.strip() understands it. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/utf8.h"

/* Writes cp, up to U+10FFFF (a surrogate as if it were a character), to `to`: how many bytes, 1..4. */
size_t utf8_put(char *to, uint32_t cp);

/* 0, or ERR_FORMAT with `what` and the offset of the first bad byte. */
int text_check_utf8(const char *p, size_t n, const char *what, struct err *e);

bool utf8_is_space(uint32_t cp); /* str.isspace() */
bool utf8_is_cjk(uint32_t cp);   /* the ranges of transformers' TextStreamer (generation/streamers.py) */

/* A piece of text that someone else owns. */
struct span { const char *p; size_t n; };
struct span span_of(const char *s);
struct span span_lstrip(struct span s); /* str.lstrip(); bad bytes are no white space */
struct span span_rstrip(struct span s);
struct span span_strip(struct span s);
/* The offset of `what` in s at or after `from`; s.n where it is not there. what.n > 0. */
size_t span_find(struct span s, size_t from, struct span what);
