/* The thread that looks at every connection four times a second: at those that take too long to say what they want,
 * which are cut off however busily they trickle, and at those that wait for an answer, whose client may have left.
 *
 * A client that closed its side for writing (half-closed) looks like one that has left, until something is sent to
 * it. So where nothing has been sent yet a "100 Continue", which every HTTP/1.1 client skips, is sent on the socket:
 * who has left answers with a reset. */
#define _GNU_SOURCE
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>

#include "base/plat.h"
#include "serve/server_in.h"

static bool late(const struct server *s, const struct conn *c, double now)
{
    const struct server_options *o = &s->o;
    switch (c->phase) {
    case CONN_NEW: case CONN_HEAD: return now - c->since_s > o->head_s;
    case CONN_KEPT: return now - c->since_s > o->idle_s;
    case CONN_BODY: return now - c->since_s > o->body_s;
    case CONN_ANSWER: break;
    }
    return false;
}

/* Between requests or in the midst of one, a connection on which nothing more will be said: libmicrohttpd may have
 * missed that, its events being edges. A second for what it has read and not looked at yet. */
static bool silenced(struct conn *c, double now)
{
    struct pollfd p = { .fd = c->fd, .events = POLLRDHUP };
    int unread = 0;
    bool silent = c->phase != CONN_ANSWER && poll(&p, 1, 0) > 0 && p.revents & (POLLRDHUP | POLLHUP);
    silent = silent && ioctl(c->fd, FIONREAD, &unread) == 0 && !unread;
    if (!silent) c->silent_s = 0;
    else if (c->silent_s <= 0) c->silent_s = now;
    return silent && now - c->silent_s > 1;
}

/* Has the client left, or are we to leave? Called with s->lock held; a connection is not closed while that is. */
static bool left(struct conn *c)
{
    struct exchange *x = c->x;
    struct pollfd p = { .fd = c->fd, .events = POLLRDHUP };
    pthread_mutex_lock(&x->lock);
    bool waits = x->gone_fn && !x->calling, closing = x->server->closing;
    bool begun = x->bytes > 0, plain = !x->http10 && !server_is_tls(x->server), left = waits && closing;
    if (waits && !closing && x->suspended && poll(&p, 1, 0) > 0) {
        left = p.revents & (POLLERR | POLLHUP | POLLNVAL) || (!plain && !begun);
        if (!left && !begun && !x->probed && p.revents & POLLRDHUP) {
            static const char probe[] = "HTTP/1.1 100 Continue\r\n\r\n";
            left = send(c->fd, probe, sizeof probe - 1, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)sizeof probe - 1;
            x->probed = true;
        }
    }
    if (!left && !x->gone) exchange_ping(x, plat_now_s());
    if (left) x->calling = true; /* keeps x: tell below, without s->lock */
    pthread_mutex_unlock(&x->lock);
    return left;
}

static void tell(struct exchange *x)
{
    pthread_mutex_lock(&x->lock);
    void (*fn)(void *) = x->gone_fn;
    x->gone_fn = NULL;
    x->cut = true;
    pthread_mutex_unlock(&x->lock);
    if (fn) fn(x->gone_ctx);
    pthread_mutex_lock(&x->lock);
    x->calling = false;
    pthread_cond_broadcast(&x->calm);
    pthread_mutex_unlock(&x->lock);
}

void *watch_main(void *server)
{
    enum { MOST = 256 };
    struct server *s = server;
    struct exchange *gone[MOST];
    pthread_mutex_lock(&s->lock);
    while (s->watching) {
        double now = plat_now_s();
        int n = 0;
        for (struct conn *c = s->conns; c; c = c->next) {
            if (late(s, c, now) || silenced(c, now)) shutdown(c->fd, SHUT_RDWR);
            else if (c->x && n < MOST && left(c)) gone[n++] = c->x;
        }
        pthread_mutex_unlock(&s->lock);
        for (int i = 0; i < n; i++) tell(gone[i]);
        if (n < MOST) nanosleep(&(struct timespec){ .tv_nsec = 250000000 }, NULL);
        pthread_mutex_lock(&s->lock);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}
