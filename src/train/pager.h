/* Memory in groups that lives on the host, page-locked, and visits the device a group at a time: gradients while a step
 * walks back through the layers, states of the optimiser while it goes through the parameters, activations of layers
 * between the way forward and the way back.
 *
 * A pass goes through all groups in order, or from the last to the first. The device has two or three places: one group
 * is used, the next one is on its way, and (the third) the one before is on its way back, over two lanes beside the
 * kernels. On the host as a device the same is done by copying, so that the results can be compared.
 */
#pragma once
#include "dev/dev.h"

enum { PAGER_PLACES = 3 };
enum pager_pass {
    PAGER_READ,
    PAGER_CLEAR, /* what groups hold is of no use: they begin as zeros */
    PAGER_WRITE, /* the same, but they begin as anything; the next pass must be PAGER_BACK, and only it may read them */
    PAGER_BACK,  /* read only, from the last to the first */
};

struct pager {
    struct dev *dev;
    struct dev_lane *down, *up;
    int n, places;        /* groups; places on the device */
    size_t *at;           /* [n+1] where each is in host */
    char *host;
    struct arena pages;   /* host's memory where it is not page-locked */
    struct arena mem;     /* the places */
    char *place[PAGER_PLACES];
    struct dev_event *sent[PAGER_PLACES], *used[PAGER_PLACES], *kept[PAGER_PLACES];
    int now, ahead, left; /* the group in use; the last one that was sent for; groups to come in this pass */
    int holds[PAGER_PLACES]; /* which group, -1: none */
    enum pager_pass pass;
    size_t most;          /* so many bytes of a group are copied: the user's to set, SIZE_MAX */
};

/* Bytes on the device, and on the host, of groups of these sizes. */
size_t pager_device_bytes(const size_t *bytes, int n, int places);
size_t pager_host_bytes(const size_t *bytes, int n);
/* What groups hold is not defined. pageable: not page-locked, which copies wait for. ERR_NOMEM where the system refuses
 * memory. */
int pager_open(struct pager *p, struct dev *dev, const size_t *bytes, int n, int places, bool pageable, struct err *e);
void pager_close(struct pager *p); /* accepts a zeroed one; waits */

void pager_begin(struct pager *p, enum pager_pass pass);
/* The next group, on the device, once kernels called from here on run. */
char *pager_next(struct pager *p);
/* Kernels are done with the group; write: it goes back to the host as they left it. */
void pager_done(struct pager *p, bool write);
/* A group on the host, when all passes so far have ended: waits for it. May be read, and written between passes. */
char *pager_host(struct pager *p, int group);
