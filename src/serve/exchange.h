/* One request and its answer.
 *
 * A handler gets an exchange with the whole request (headers checked, body read and within its limit). It answers at
 * once, or starts something that answers later from any thread. An answer is either whole (exchange_reply and what
 * is built on it) or a stream (exchange_stream, then writes). Each exchange is finished exactly once, by
 * exchange_reply or exchange_end; after that the exchange must not be touched.
 *
 * The client may leave at any time. exchange_on_gone has a function called then, once, from another thread; the
 * exchange stays valid until it is finished all the same. Writing to a client that has gone does nothing.
 */
#pragma once
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct exchange;

/* ---- the request; all pointers are valid until the exchange is finished */

const char *exchange_path(const struct exchange *x);   /* "/v1/models" */
const char *exchange_tail(const struct exchange *x);   /* what a route's "*" stands for, or "" */
const char *exchange_ip(const struct exchange *x);     /* of the client */
uint64_t exchange_client(const struct exchange *x);    /* a number for that address (of IPv6: for its network) */
uint64_t exchange_realm(const struct exchange *x);     /* a number for the API key that was brought; 0: none is used */
const char *exchange_id(const struct exchange *x);     /* of this request: hex, in the log and in x-request-id */
const char *exchange_header(const struct exchange *x, const char *name); /* NULL: absent; only inside the handler */
const char *exchange_body(const struct exchange *x, size_t *n);          /* NUL-terminated */
/* The body is read, and freed; what was made of it still counts among the bytes of all bodies, which have a limit. */
void exchange_body_read(struct exchange *x);
/* So many bytes more are held for x, and count there. False: that is more than there is room for, in all or for one
 * client, and x is to be refused. */
bool exchange_charge(struct exchange *x, size_t n);
void exchange_body_drop(struct exchange *x);           /* nothing is held any more; the end does that too */

/* ---- the answer, whole */

/* type: "application/json"; body is copied. Finishes. */
void exchange_reply(struct exchange *x, int status, const char *type, const void *body, size_t n);
/* Takes the reference to v, which may be NULL: `null`. Finishes. */
void exchange_json(struct exchange *x, int status, json_t *v);
/* {"error":{"message","type","param","code"}}, the shape that OpenAI's clients know, used for every route. param: the
 * field at fault, or NULL; code: a word for programs, or NULL. Finishes. */
void exchange_error(struct exchange *x, int status, const char *param, const char *code, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
json_t *exchange_error_json(int status, const char *param, const char *code, const char *message);
/* One header of the answer, before it begins. Both strings must be constants. */
void exchange_set_header(struct exchange *x, const char *name, const char *value);
/* A word that the access log shows beside the request: which model. Copied. */
void exchange_note(struct exchange *x, const char *note);

/* ---- the answer, as a stream */

/* Begins one with status 200. Nothing is sent before the first write or the end; but where nothing was written for
 * some EXCHANGE_PING_S seconds, `ping` is sent, a constant that the client skips, so that nobody on the way loses
 * patience (NULL: nothing is). exchange_reply may still answer instead, as long as nothing was written or sent. */
void exchange_stream(struct exchange *x, const char *type, const char *ping);
/* Adds bytes; false when the client has gone (or reads so slowly that EXCHANGE_BACKLOG bytes wait: it is then cut
 * off). */
bool exchange_write(struct exchange *x, const void *p, size_t n);
/* The same for messages that each hold all of the one before: one that was not yet begun to be sent is replaced. A
 * stream uses one of the two. */
bool exchange_write_latest(struct exchange *x, const void *p, size_t n);
void exchange_end(struct exchange *x); /* finishes */

enum { EXCHANGE_BACKLOG = 16 << 20, EXCHANGE_PING_S = 8 };

bool exchange_gone(struct exchange *x);
/* Has any of a stream been sent? If not, exchange_reply may say that it failed: from the question on there are no
 * pings, so that it stays so. */
bool exchange_begun(struct exchange *x);
/* fn(ctx) when the client leaves before the answer is finished; at once if it has left already. It must return soon
 * and must not finish the exchange. Takes the place of an earlier fn (NULL: none does), after waiting for a call of
 * that one that has begun: what it used may be freed then. Finishing waits in the same way. */
void exchange_on_gone(struct exchange *x, void (*fn)(void *ctx), void *ctx);

/* Has a job thread call fn(ctx, x): for a handler that returned because it waits for something, once that has come;
 * and for pictures, which one thread unfolds for all, one at a time: a few hundred bytes may become half a gigabyte and
 * take seconds, which nobody who sent none shall wait for. Jobs have turns by client, as its address says.
 * False: too much is waiting, or the server closes; x is the caller's to finish. */
enum exchange_lane { LANE_WORK, LANE_PICTURES, LANES };
bool exchange_later(struct exchange *x, enum exchange_lane lane, void (*fn)(void *ctx, struct exchange *x),
                    void *ctx);
