/* Numbers between two bounds as grammars (grammar.h). */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"

#define NUMBER_MOST INT64_C(9999999999999999) /* sixteen digits, as grammars of numbers have */

/* Adds an expression of a grammar to `out`: the whole numbers lo..hi, which are within +-NUMBER_MOST (lo <= hi, else
 * none); and with fractions the numbers between two neighbours of from..to, from < to, that are not whole (else none).
 * False: that leaves none. */
bool number_write(struct buf *out, int64_t lo, int64_t hi, bool fractions, int64_t from, int64_t to);
