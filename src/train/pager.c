/* See pager.h. */
#include "train/pager.h"

#include <stdlib.h>

size_t pager_device_bytes(const size_t *bytes, int n, int places)
{
    size_t most = 0;
    for (int i = 0; i < n; i++)
        if (bytes[i] > most) most = bytes[i];
    return (size_t)places * arena_aligned(most);
}

size_t pager_host_bytes(const size_t *bytes, int n)
{
    size_t sum = 0;
    for (int i = 0; i < n; i++) sum += arena_aligned(bytes[i]);
    return sum;
}

static int open_host(struct pager *p, bool pageable, struct err *e)
{
    const size_t all = p->at[p->n];
    if (pageable) {
        const int rc = arena_init(&p->pages, all, e);
        p->host = p->pages.base;
        return rc;
    }
    if (dev_pinned((void **)&p->host, p->dev, all, NULL) >= 0) return 0;
    return err_set(e, ERR_NOMEM, "the system refuses %.1f GB of page-locked memory (a limit of the container or the "
                   "account); --host_memory_limit or --offload none take less; --pageable True takes memory that is "
                   "not, which a device copies at a sixth of the speed and waits for", (double)all * 1e-9);
}

int pager_open(struct pager *p, struct dev *dev, const size_t *bytes, int n, int places, bool pageable, struct err *e)
{
    int rc;
    ASSERT(places >= 2 && places <= PAGER_PLACES);
    *p = (struct pager){ .dev = dev, .n = n, .places = places, .most = SIZE_MAX };
    p->at = calloc((size_t)n + 1, sizeof *p->at);
    if (!p->at) TRY(err_set(e, ERR_NOMEM, "no memory for %d groups", n));
    for (int i = 0; i < n; i++) p->at[i + 1] = p->at[i] + arena_aligned(bytes[i]);
    TRY(open_host(p, pageable, e));
    TRY(dev_arena(&p->mem, dev, pager_device_bytes(bytes, n, places), e));
    p->down = dev_lane_new(dev);
    p->up = dev_lane_new(dev);
    for (int i = 0; i < places; i++) {
        p->place[i] = arena_take(&p->mem, pager_device_bytes(bytes, n, 1));
        p->holds[i] = -1;
        p->sent[i] = dev_event_new(dev);
        p->used[i] = dev_event_new(dev);
        p->kept[i] = dev_event_new(dev);
    }
out:
    if (rc < 0) pager_close(p);
    return rc;
}

void pager_close(struct pager *p)
{
    dev_lane_free(p->down);
    dev_lane_free(p->up);
    if (p->dev) dev_sync(p->dev);
    for (int i = 0; i < p->places; i++) {
        dev_event_free(p->sent[i]);
        dev_event_free(p->used[i]);
        dev_event_free(p->kept[i]);
    }
    arena_fini(&p->mem);
    if (!p->pages.base) dev_pinned_free(p->dev, p->host);
    arena_fini(&p->pages);
    free(p->at);
    *p = (struct pager){ 0 };
}

void pager_begin(struct pager *p, enum pager_pass pass)
{
    ASSERT(!p->left);
    p->pass = pass;
    p->left = p->n;
    p->now = p->ahead = pass == PAGER_BACK ? p->n : -1;
}

static size_t bytes_of(const struct pager *p, int group)
{
    const size_t bytes = p->at[group + 1] - p->at[group];
    return bytes < p->most ? bytes : p->most;
}

/* A group's place is the same in every pass, so that what was the last one in it, and went back, is waited for whether
 * it is this group of the pass before or another one of this pass. What is only read is still there if it was the last
 * one. */
static void send_for(struct pager *p, int group)
{
    const bool back = p->pass == PAGER_BACK;
    if (group < 0 || group >= p->n || (back ? group >= p->ahead : group <= p->ahead)) return;
    const int i = group % p->places;
    p->ahead = group;
    if (back && p->holds[i] == group) return;
    p->holds[i] = group;
    dev_lane_follow(p->down, p->used[i]);
    dev_lane_follow(p->down, p->kept[i]);
    dev_lane_send(p->down, p->place[i], p->host + p->at[group], bytes_of(p, group));
    dev_lane_record(p->down, p->sent[i]);
}

char *pager_next(struct pager *p)
{
    const int way = p->pass == PAGER_BACK ? -1 : 1, group = p->now += way, i = group % p->places;
    ASSERT(p->left > 0);
    p->left--;
    if (p->pass == PAGER_READ || p->pass == PAGER_BACK) {
        send_for(p, group);
        dev_follow(p->dev, p->sent[i]);
        send_for(p, group + way);
    } else {
        p->holds[i] = group;
        dev_follow(p->dev, p->kept[i]);
        if (p->pass == PAGER_CLEAR) dev_fill(p->dev, p->place[i], 0, p->at[group + 1] - p->at[group]);
    }
    return p->place[i];
}

void pager_done(struct pager *p, bool write)
{
    const int i = p->now % p->places;
    dev_event_record(p->dev, p->used[i]);
    if (!write || (p->pass == PAGER_WRITE && p->now >= p->n - p->places)) return; /* or it stays where it is */
    dev_lane_follow(p->up, p->used[i]);
    dev_lane_fetch(p->up, p->host + p->at[p->now], p->place[i], bytes_of(p, p->now));
    dev_lane_record(p->up, p->kept[i]);
}

char *pager_host(struct pager *p, int group)
{
    for (int i = 0; i < p->places; i++) {
        dev_event_wait(p->kept[i]);
        p->holds[i] = -1; /* it may be written */
    }
    return p->host + p->at[group];
}
