/* Pictures behind addresses that strangers give us. Only http and https; at most so many bytes, seconds and redirects;
 * and, unless allowed, no address of a private network: what a connection is really made to is looked at, at every
 * redirect, so that a name that points inside, or does so at the second look, leads nowhere. */
#pragma once
#include <stdbool.h>
#include <sys/socket.h>

#include "base/buf.h"
#include "base/err.h"

struct fetch_limits {
    bool allowed;      /* at all */
    bool private_too;  /* also from localhost and private networks */
    double timeout_s;  /* 0: 10 */
};
enum { FETCH_REDIRECTS = 3 };

/* The body of url into *out, which has its limit. UNSUPPORTED: not allowed; USAGE: no address, or a private one; IO;
 * LIMIT. */
int fetch(struct buf *out, const char *url, const struct fetch_limits *l, struct err *e);

/* An address that belongs to nobody's own network: not loopback, link-local, private, shared, reserved or multicast,
 * and no IPv6 that stands for such an IPv4. */
bool fetch_is_public(const struct sockaddr *a);
