/* Server-sent events, and the text of an answer as people see it. */
#pragma once
#include <jansson.h>
#include <stdbool.h>

#include "base/buf.h"
#include "serve/exchange.h"

#define EVENT_TYPE "text/event-stream; charset=utf-8"
#define EVENT_PING ": ping\n\n"

/* "data: {...}" to a stream. Takes the reference. */
void event_send(struct exchange *x, json_t *v);
/* The same with "event: name" before it. */
void event_send_as(struct exchange *x, const char *name, json_t *v);

/* White space around an answer is not part of it, as on the command line: what may be at its end is held back until
 * something follows. */
struct trim {
    struct buf held;
    bool begun;
};
void trim_init(struct trim *t);
void trim_fini(struct trim *t); /* accepts a zeroed one */
void trim_feed(struct trim *t, struct buf *out, const char *text, size_t n);
