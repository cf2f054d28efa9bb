/* UTF-8, one character at a time. */
#pragma once
#include <stddef.h>
#include <stdint.h>

enum utf8_kind { UTF8_OK, UTF8_BAD, UTF8_SHORT };

/* Looks at the character at p[0..n), n > 0. UTF8_OK: *cp and *len (1..4) are set. UTF8_SHORT: the bytes are
 * the start of a character that needs more bytes than n. UTF8_BAD: the first byte starts no character here
 * (overlong forms, surrogates and values above U+10FFFF are bad). */
enum utf8_kind utf8_next(const char *p, size_t n, uint32_t *cp, size_t *len);
