/* JSON text walked through where it lies, without building anything: what an index of a gigabyte needs, where jansson
 * would make a tree of it. Accepts what Python's json accepts, with the file in UTF-8: NaN, Infinity and -Infinity are
 * values, half surrogate pairs may be escaped.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>

#include "text/utf8.h"

enum { SCAN_DEPTH_MAX = 256 };

/* SCAN_MORE: the text ends before the value does, and `whole` is false: more of it may come. */
enum scan_rc { SCAN_OK, SCAN_MORE, SCAN_BAD };

struct scan {
    const char *p, *end; /* what is left; after SCAN_BAD p is where it went wrong */
    bool whole;          /* nothing comes after end */
    const char *why;     /* SCAN_BAD: "expected ','" */
};

/* Skips white space. SCAN_MORE also where nothing but white space is left, unless `whole`. */
enum scan_rc scan_space(struct scan *s);
/* One character of punctuation, with the white space before it. `why` is what is said where another one stands. */
enum scan_rc scan_mark(struct scan *s, char mark, const char *why);
/* A string at p, which must be its '"': *raw is what lies between the quotes. */
enum scan_rc scan_string(struct scan *s, struct span *raw);
/* Any value; white space before it is skipped. */
enum scan_rc scan_value(struct scan *s);
/* Fails with `why` at p. */
enum scan_rc scan_bad(struct scan *s, const char *why);

/* ---- what a string says: `raw` is what scan_string gave */

/* Its text, which is never longer, and a NUL, to to[0..raw.n]; `to` may be raw.p. Returns the length, -1 where it holds
 * half a surrogate pair, which UTF-8 cannot say. */
ptrdiff_t scan_text(char *to, struct span raw);
bool scan_is(struct span raw, const char *text);
/* len(text.split()) in Python. */
size_t scan_words(struct span raw);
