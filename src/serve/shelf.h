/* Responses that are kept for a while, in memory: the newest, so that a request may name the one before instead of
 * repeating it. Each belongs to the realm (exchange_realm) that asked for it, and another finds nothing. */
#pragma once
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

enum { SHELF_BYTES = 64 << 20, SHELF_ID = 48 };

struct shelf;
struct shelf *shelf_new(void); /* NULL: no memory */
void shelf_free(struct shelf *s); /* accepts NULL */

/* Takes a conversation (an array of items) that is to be answered. The oldest make room for it; one that takes more
 * than a quarter of all is not kept: false. So what waits for an answer takes no memory beyond SHELF_BYTES either. */
bool shelf_begin(struct shelf *s, uint64_t realm, const char *id, const json_t *items);
/* The response, whose output goes behind its conversation: from here on it is found. */
void shelf_end(struct shelf *s, uint64_t realm, const char *id, const json_t *response);
/* Each gives a new reference, or NULL: there is none of that name (or no memory). */
json_t *shelf_items(struct shelf *s, uint64_t realm, const char *id);
json_t *shelf_response(struct shelf *s, uint64_t realm, const char *id);
bool shelf_drop(struct shelf *s, uint64_t realm, const char *id);
