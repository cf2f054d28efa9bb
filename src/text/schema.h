/* A JSON schema as a grammar (grammar.h): every text that it lets through is JSON that satisfies the schema.
 *
 * Handled: type (also a list), properties, required, additionalProperties, items, prefixItems, minItems, maxItems,
 * minLength, maxLength, enum, const, anyOf, oneOf (as anyOf), allOf of one, $ref within the schema. Properties come in
 * the schema's order; others are written only where it names none. Other keywords that restrict what is valid (pattern,
 * minimum, ...) are refused; those that describe (title, format, ...) are passed over. White space is at most one
 * character, or a line break and up to 20 characters.
 */
#pragma once
#include "base/buf.h"
#include "base/err.h"

/* Adds the grammar to `out`. ERR_FORMAT, ERR_UNSUPPORTED, ERR_LIMIT with the keyword and where it stands. */
int schema_grammar(struct buf *out, const char *json, size_t n, struct err *e);
