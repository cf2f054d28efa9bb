/* A JSON schema as a grammar (grammar.h): every text that it lets through is JSON that satisfies the schema.
 *
 * Handled: type (also a list), properties, required, additionalProperties, items, prefixItems, minItems, maxItems,
 * minLength, maxLength, pattern (regex.h), minimum, maximum and their exclusive kin (of numbers that are not whole, by
 * whole bounds), enum, const, anyOf, oneOf (as anyOf), allOf of one, $ref within the schema, which says all there.
 * Properties come in the schema's order; others are written only where it names none. Where no pattern stands, the
 * formats date, time, date-time, duration, email, uuid and ipv4 are held. Other keywords that restrict what is valid
 * (not, multipleOf, ...) are refused; those that describe (title, ...) are passed over.
 * White space is at most one character, or a line break and up to 20 characters, and there is none around the whole.
 * Numbers of enum and const are written in as few digits as read back the same.
 */
#pragma once
#include "text/grammar.h"

enum { SCHEMA_PARTS_MAX = 1 << 15 }; /* a schema within it is one, a property three more */
/* As grammar_parse. ERR_FORMAT, ERR_UNSUPPORTED, ERR_LIMIT with the keyword or the limit. */
int schema_parse(struct grammar **ret, const char *json, size_t n, struct err *e);
