/* See ceiling.h. */
#include "kern/ceiling.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/plat.h"
#include "base/rng.h"

enum {
    TIMES = 5,
    PIECE = 1 << 20,                                       /* numbers that come over and over */
    HOST_SIDE = 768, LEAST_SIDE = 128, MOST_SIDE = 8192,   /* of matrices */
    LARGE_UNITS = 8, READ_BYTES = 128 << 20, SMALL_BYTES = 8 << 10, /* an emulator is no large device */
    LINK_BYTES = 128 << 20,
};
static const double long_enough_s = 1e-3; /* a product that takes so long says enough */

struct work {
    const struct kern *k;
    struct kctx *kc;
    struct tensor x, w, y, sum;
};

static void run_read(struct work *w) { w->k->sumsq(w->kc, w->sum, w->x); }
static void run_add(struct work *w) { w->k->axpy(w->kc, w->y, w->x, 1e-3f); }
static void run_product(struct work *w)
{
    const struct tensor none = { 0 };
    w->k->matmul(w->kc, w->y, w->x, w->w, none, none);
}

/* Seconds of the quickest run. A device's own clock leaves out how long it takes to be waited for. */
static double quickest(struct work *w, void (*run)(struct work *))
{
    struct dev *d = w->kc->dev;
    struct dev_event *from = dev_event_new(d), *to = dev_event_new(d);
    double best = HUGE_VAL;
    for (int i = 0; i <= TIMES; i++) {
        const double start = plat_now_s();
        dev_event_record(d, from);
        run(w);
        dev_event_record(d, to);
        dev_sync(d);
        const double s = d ? dev_event_s(from, to) : plat_now_s() - start;
        if (i) best = fmin(best, s);
    }
    dev_event_free(from);
    dev_event_free(to);
    return best;
}

/* False: no memory. */
static bool fill(struct dev *d, struct tensor t)
{
    const int64_t n = tensor_count(t), piece = n < PIECE ? n : PIECE;
    const size_t each = dtype_bytes((enum dtype)t.type);
    float *x = malloc((size_t)piece * sizeof *x);
    void *raw = malloc((size_t)piece * sizeof *x);
    struct rng r;
    rng_seed(&r, 11);
    if (x && raw) {
        for (int64_t i = 0; i < piece; i++) x[i] = (float)rng_normal(&r);
        dtype_convert(raw, (enum dtype)t.type, x, DT_F32, piece);
        for (int64_t at = 0; at < n; at += piece)
            dev_put(d, (char *)t.p + (size_t)at * each, raw, (size_t)(n - at < piece ? n - at : piece) * each);
    }
    const bool ok = x && raw;
    free(x);
    free(raw);
    return ok;
}

/* Seconds of a product of such a side; 0: no memory to find out. */
static double product_time(const struct kern *k, struct kctx *kc, enum dtype x, enum dtype w, int64_t side)
{
    const struct dev_memory before = dev_memory_now(kc->dev);
    struct work o = { .k = k, .kc = kc, .x = tensor_2d(NULL, x, side, side), .w = tensor_2d(NULL, w, side, side) };
    struct arena mem;
    double s = 0;
    o.y = o.x;
    if (dev_arena(&mem, kc->dev, 2 * tensor_bytes(o.x) + tensor_bytes(o.w) + 3 * ARENA_ALIGN, NULL) < 0) return 0;
    o.x.p = arena_take(&mem, tensor_bytes(o.x));
    o.w.p = arena_take(&mem, tensor_bytes(o.w));
    o.y.p = arena_take(&mem, tensor_bytes(o.y));
    if (fill(kc->dev, o.x) && fill(kc->dev, o.w)) s = quickest(&o, run_product);
    arena_fini(&mem);
    dev_memory_forget(kc->dev, &before);
    return s;
}

double ceiling_product(const struct kern *k, struct kctx *kc, enum dtype x, enum dtype w)
{
    double best = 0;
    for (int64_t side = kc->dev ? LEAST_SIDE : HOST_SIDE; side <= MOST_SIDE; side *= 4) {
        const double s = product_time(k, kc, x, w, side);
        if (s <= 0) break; /* too large: what the one before said stands */
        best = 2 * pow((double)side, 3) / s;
        if (!kc->dev || s >= long_enough_s) break;
    }
    return best;
}

double ceiling_memory(const struct kern *k, struct kctx *kc)
{
    const struct dev_memory before = dev_memory_now(kc->dev);
    const size_t bytes = dev_units(kc->dev) > LARGE_UNITS ? READ_BYTES : SMALL_BYTES;
    struct work o = { .k = k, .kc = kc, .x = tensor_1d(NULL, DT_BF16, (int64_t)bytes / 2) };
    struct arena mem;
    double best = 0;
    if (dev_arena(&mem, kc->dev, 2 * bytes + 3 * ARENA_ALIGN, NULL) < 0) return 0;
    o.y = o.x;
    o.x.p = arena_take(&mem, bytes);
    o.y.p = arena_take(&mem, bytes);
    o.sum = tensor_1d(arena_take(&mem, sizeof(float)), DT_F32, 1);
    if (fill(kc->dev, o.x) && fill(kc->dev, o.y))
        best = fmax((double)bytes / quickest(&o, run_read), 3.0 * (double)bytes / quickest(&o, run_add));
    arena_fini(&mem);
    dev_memory_forget(kc->dev, &before);
    return best;
}

/* Seconds of copying so much, one way. */
static double link_time(struct dev *d, bool down, char *there, char *here, size_t bytes)
{
    struct dev_lane *lane = dev_lane_new(d);
    struct dev_event *end = dev_event_new(d);
    double best = HUGE_VAL;
    for (int i = 0; i < TIMES; i++) {
        const double start = plat_now_s();
        if (down) dev_lane_send(lane, there, here, bytes);
        else dev_lane_fetch(lane, here, there, bytes);
        dev_lane_record(lane, end);
        dev_event_wait(end);
        best = fmin(best, plat_now_s() - start);
    }
    dev_event_free(end);
    dev_lane_free(lane);
    return best;
}

double ceiling_link(struct dev *d)
{
    const struct dev_memory before = dev_memory_now(d);
    struct arena there = { 0 };
    void *here = NULL;
    double speed = 0;
    if (!d) return 0;
    if (dev_arena(&there, d, LINK_BYTES, NULL) >= 0 && dev_pinned(&here, d, LINK_BYTES, NULL) >= 0) {
        memset(here, 1, LINK_BYTES);
        const double up = link_time(d, false, there.base, here, LINK_BYTES);
        speed = LINK_BYTES / fmax(up, link_time(d, true, there.base, here, LINK_BYTES));
    }
    dev_pinned_free(d, here);
    arena_fini(&there);
    dev_memory_forget(d, &before);
    return speed;
}
