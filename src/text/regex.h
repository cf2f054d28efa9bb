/* Regular expressions as grammars (grammar.h): what a schema's pattern and a request's own mean.
 *
 * Handled: characters, escapes, ., classes with \d \w \s and their opposites, groups of any kind that only group,
 * alternatives, * + ? {m} {m,} {m,n}, also lazy, and ^ $ where an alternative begins and ends. Not: looking around, \b,
 * references, flags, \p.
 */
#pragma once
#include <stdbool.h>

#include "base/buf.h"
#include "base/err.h"

/* Adds an expression of a grammar to `out`: every text that matches from its beginning to its end.
 * json: every inside of a JSON string whose value has a match anywhere in it, as JSON Schema says; characters that JSON
 * escapes are escaped, control characters other than \b \t \n \f \r left out, and a rule `char` is taken to be there.
 * ERR_FORMAT for what is no expression, ERR_UNSUPPORTED for what no grammar here says. */
int regex_write(struct buf *out, const char *pattern, size_t n, bool json, struct err *e);
