/* HTTP requests for the hub: GET into memory or a file, HEAD, with resuming, redirects and retries, over
 * libcurl. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"
#include "base/log.h"

struct http {
    void *curl;           /* CURL *, kept to reuse connections */
    const char *endpoint; /* "https://huggingface.co"; the only place that gets the token */
    const char *token;    /* NULL: none */
};

/* Where a body goes: memory, or a file that is continued where it ends. */
struct http_sink {
    struct buf *buf;      /* or NULL */
    int fd;               /* used when buf is NULL; open for writing */
    const char *path;     /* of fd, for messages */
    struct progress *bar; /* or NULL; counts bytes of the file */
};

struct http_reply {
    long status; /* of the last response: 200, 206, 404, ...; 302 for HEAD of something that lies elsewhere */
    char etag[200];      /* X-Linked-Etag or ETag, without W/ and quotes; "" when there is none */
    char error_code[60]; /* X-Error-Code: RepoNotFound, GatedRepo, ... */
    int64_t size;        /* X-Linked-Size or Content-Length; -1: unknown */
    int64_t from;        /* start of Content-Range; -1: none */
};

int http_open(struct http *h, const char *endpoint, const char *token, struct err *e);
void http_close(struct http *h); /* accepts a zeroed one */

/* One request. Server errors (5xx, 429), timeouts and broken connections are tried again up to 5 times with
 * growing pauses as long as nothing new arrives; a file goes on where it ends. HEAD (sink NULL) does not
 * leave the endpoint: headers about a large file come with the redirect. Returns 0 with any status, or IO,
 * FORMAT (redirects to nowhere). */
int http_request(struct http *h, const char *url, struct http_sink *sink, struct http_reply *r,
                 struct err *e);
