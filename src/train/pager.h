/* Memory in groups that lives on the host, page-locked, and visits the device a group at a time: gradients while a step
 * walks back through the layers, states of the optimiser while it goes through the parameters.
 *
 * A pass goes through all groups in order. The device has three places: one group is used, the next one is on its way,
 * and the one before is on its way back, over two lanes beside the kernels. On the host as a device the same is done by
 * copying, so that the results can be compared.
 */
#pragma once
#include "dev/dev.h"

enum { PAGER_PLACES = 3 };

struct pager {
    struct dev *dev;
    struct dev_lane *down, *up;
    int n;                /* groups */
    size_t *at;           /* [n+1] where each is in host */
    char *host;
    struct arena pages;   /* host's memory where it is not page-locked */
    struct arena mem;     /* the places */
    char *place[PAGER_PLACES];
    struct dev_event *sent[PAGER_PLACES], *used[PAGER_PLACES], *kept[PAGER_PLACES];
    int now, ahead;       /* the group in use, -1: none; the last one that was sent for */
    bool clear;           /* this pass reads nothing: groups begin as zeros */
};

/* Bytes on the device, and on the host, of groups of these sizes. */
size_t pager_device_bytes(const size_t *bytes, int n);
size_t pager_host_bytes(const size_t *bytes, int n);
/* All groups are zeros. pageable: not page-locked, which copies wait for. ERR_NOMEM where the system refuses memory. */
int pager_open(struct pager *p, struct dev *dev, const size_t *bytes, int n, bool pageable, struct err *e);
void pager_close(struct pager *p); /* accepts a zeroed one; waits */

/* Begins a pass. clear: what groups hold is of no use, they begin as zeros. */
void pager_begin(struct pager *p, bool clear);
/* The next group, on the device, once kernels called from here on run. */
char *pager_next(struct pager *p);
/* Kernels are done with the group; write: it goes back to the host as they left it. */
void pager_done(struct pager *p, bool write);
/* A group on the host, when all passes so far have ended: waits for it. May be read, and written between passes. */
char *pager_host(struct pager *p, int group);
