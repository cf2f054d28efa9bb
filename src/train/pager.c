/* See pager.h. */
#include "train/pager.h"

#include <stdlib.h>
#include <string.h>

static size_t aligned(size_t bytes) { return (bytes + ARENA_ALIGN - 1) & ~(size_t)(ARENA_ALIGN - 1); }

size_t pager_device_bytes(const size_t *bytes, int n)
{
    size_t most = 0;
    for (int i = 0; i < n; i++)
        if (bytes[i] > most) most = bytes[i];
    return PAGER_PLACES * aligned(most);
}

size_t pager_host_bytes(const size_t *bytes, int n)
{
    size_t sum = 0;
    for (int i = 0; i < n; i++) sum += aligned(bytes[i]);
    return sum;
}

/* In all threads: tens of gigabytes. */
static void clear(char *p, size_t bytes)
{
    enum { PART = 1 << 22 };
#pragma omp parallel for schedule(static)
    for (size_t at = 0; at < bytes; at += PART) memset(p + at, 0, bytes - at < PART ? bytes - at : PART);
}

int pager_open(struct pager *p, struct dev *dev, const size_t *bytes, int n, bool pageable, struct err *e)
{
    const size_t all = pager_host_bytes(bytes, n), places = pager_device_bytes(bytes, n);
    int rc;
    *p = (struct pager){ .dev = dev, .n = n, .now = -1, .ahead = -1 };
    p->at = calloc((size_t)n + 1, sizeof *p->at);
    if (!p->at) TRY(err_set(e, ERR_NOMEM, "no memory for %d groups", n));
    for (int i = 0; i < n; i++) p->at[i + 1] = p->at[i] + aligned(bytes[i]);
    if (pageable) {
        TRY(arena_init(&p->pages, all, e));
        p->host = p->pages.base;
    } else {
        if (dev_pinned((void **)&p->host, dev, all, NULL) < 0)
            TRY(err_set(e, ERR_NOMEM, "the system refuses %.1f GB of page-locked memory (a limit of the container or "
                        "the account); --pageable True takes memory that is not, which a device copies at a sixth of "
                        "the speed and waits for", (double)all * 1e-9));
        clear(p->host, all);
    }
    TRY(dev_arena(&p->mem, dev, places, e));
    p->down = dev_lane_new(dev);
    p->up = dev_lane_new(dev);
    for (int i = 0; i < PAGER_PLACES; i++) {
        p->place[i] = arena_take(&p->mem, places / PAGER_PLACES);
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
    for (int i = 0; i < PAGER_PLACES; i++) {
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

void pager_begin(struct pager *p, bool clear_)
{
    ASSERT(p->now < 0 || p->now == p->n - 1);
    p->now = p->ahead = -1;
    p->clear = clear_;
}

/* A group's place is the same in every pass, so that what was the last one in it, and went back, is waited for whether
 * it is this group of the pass before or another one of this pass. */
static void send_for(struct pager *p, int group)
{
    const int i = group % PAGER_PLACES;
    if (group >= p->n || group <= p->ahead) return;
    dev_lane_follow(p->down, p->used[i]);
    dev_lane_follow(p->down, p->kept[i]);
    dev_lane_send(p->down, p->place[i], p->host + p->at[group], p->at[group + 1] - p->at[group]);
    dev_lane_record(p->down, p->sent[i]);
    p->ahead = group;
}

char *pager_next(struct pager *p)
{
    const int group = ++p->now, i = group % PAGER_PLACES;
    ASSERT(group < p->n);
    if (p->clear) {
        dev_follow(p->dev, p->kept[i]);
        dev_fill(p->dev, p->place[i], 0, p->at[group + 1] - p->at[group]);
    } else {
        send_for(p, group);
        dev_follow(p->dev, p->sent[i]);
        send_for(p, group + 1);
    }
    return p->place[i];
}

void pager_done(struct pager *p, bool write)
{
    const int i = p->now % PAGER_PLACES;
    dev_event_record(p->dev, p->used[i]);
    if (!write) return;
    dev_lane_follow(p->up, p->used[i]);
    dev_lane_fetch(p->up, p->host + p->at[p->now], p->place[i], p->at[p->now + 1] - p->at[p->now]);
    dev_lane_record(p->up, p->kept[i]);
}

char *pager_host(struct pager *p, int group)
{
    for (int i = 0; i < PAGER_PLACES; i++) dev_event_wait(p->kept[i]);
    return p->host + p->at[group];
}
