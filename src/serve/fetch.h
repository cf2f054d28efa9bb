/* Pictures behind addresses that strangers give us. Nothing here waits. Only http and https; at most so many bytes,
 * seconds and redirects; and, unless allowed, no address of a private network: what a connection is really made to is
 * looked at, at every redirect, so that a name that points inside, or does so at the second look, leads nowhere. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "base/err.h"

struct fetch_limits {
    bool allowed;      /* at all */
    bool private_too;  /* also from localhost and private networks */
    double timeout_s;  /* 0: 10 */
};
enum { FETCH_REDIRECTS = 3 };

struct fetcher; /* one thread for all of a server */
int fetcher_open(struct fetcher **ret, const struct fetch_limits *l, struct err *e);
void fetcher_close(struct fetcher *f); /* breaks off what is under way; accepts NULL */

/* Some addresses that are fetched side by side. So many connections are open at a time, so many to one host, and so
 * many bytes are held for all requests. What waits for a connection has turns by client, of whom none may have all:
 * whoever is slow takes none of them from the others. The seconds of an address begin with its connection. */
enum { FETCH_CONNECTIONS = 64, FETCH_HOST = 8, FETCH_BYTES = 512 << 20 };
struct fetches;
/* client: a number for whoever asks; most: bytes of one. */
int fetches_new(struct fetches **ret, struct fetcher *f, uint64_t client, int n, size_t most, struct err *e);
/* Is url one that may be fetched, as far as can be seen by looking at it? USAGE: it is no address; UNSUPPORTED: not
 * allowed. Then it will be the next that fetches_start asks for. */
int fetches_add(struct fetches *s, const char *url, struct err *e);
/* on_end(ctx) when all have ended, from the fetcher's thread or from within; it must not block. Not for none. */
void fetches_start(struct fetches *s, void (*on_end)(void *ctx), void *ctx);
void fetches_cancel(struct fetches *s); /* on_end comes soon; while it comes or after it nothing happens */
/* What came of the i-th: its bytes, valid until fetches_free. USAGE: a private address; IO; LIMIT. */
int fetches_take(const void **bytes, size_t *n, const struct fetches *s, int i, struct err *e);
void fetches_free(struct fetches *s); /* not while under way; accepts NULL */

/* An address that belongs to nobody's own network: not loopback, link-local, private, shared, reserved or multicast,
 * and no IPv6 that stands for such an IPv4. */
bool fetch_is_public(const struct sockaddr *a);
