/* Parameters on their way into a device's memory, a piece at a time, through two page-locked buffers: while one is sent
 * the other is filled, so that disk, processor and link work side by side and the host needs no memory for the model.
 * And on their way back, to be written into a file. */
#pragma once
#include "base/log.h"
#include "dev/dev.h"
#include "op/op.h"

enum { PLACE_BUFFERS = 2 };

struct placer {
    struct dev *dev;
    void *buffer[PLACE_BUFFERS];
    struct dev_event *sent[PLACE_BUFFERS];
    int turn;
    void *whole; /* a tensor that must be made as a whole before it is sent */
    size_t whole_bytes;
    const struct kern *kern;
    struct kctx *kc;
    void *rows; /* BUFFER bytes on the device: what is quantised there; made when needed */
    struct progress progress;
};

/* total: bytes that will be placed, for the progress bar. kern, kc: of dev. Nothing is done when dev is the host. */
int place_begin(struct placer *p, struct dev *dev, const struct kern *kern, struct kctx *kc, int64_t total,
                struct err *e);
void place_end(struct placer *p); /* waits; accepts a zeroed one */
/* dst on the device = src on the host, converted where types differ. mapped: src is of a file and the pages
 * are given back to the system: nobody reads it again. */
void place(struct placer *p, struct tensor dst, struct tensor src, bool mapped);
/* dst, of a quantised type, = src, whose float type dst's device quantises; to the bit what quant_row makes of it. */
int place_quantised(struct placer *p, struct tensor dst, struct tensor src, bool mapped, struct err *e);
/* Host memory of at least `bytes`, valid until the next call; what `place` took from it before has been sent. */
int place_whole(void **ret, struct placer *p, size_t bytes, struct err *e);

/* Where tensors of a device are read, one at a time. */
struct fetched {
    struct dev *dev; /* NULL: tensors are read where they are */
    void *mem;
    size_t bytes;
};
/* The bytes of t, which is on f's device, on the host: valid until the next call. */
int fetched_get(const void **ret, struct fetched *f, struct tensor t, struct err *e);
void fetched_fini(struct fetched *f); /* accepts a zeroed one */
