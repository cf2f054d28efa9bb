/* See ceiling.h. */
#include "cmd/ceiling.h"

#include <stdlib.h>

#include "base/rng.h"

enum { SIDE = 8192, TIMES = 5, PIECE = 1 << 20 };

struct work {
    struct engine *g;
    struct tensor a, b, c, one;
};

static void run_read(struct work *w) { w->g->kern.sumsq(&w->g->kc, w->one, w->a); }
static void run_add(struct work *w) { w->g->kern.axpy(&w->g->kc, w->c, w->a, 1e-3f); }
static void run_product(struct work *w)
{
    const struct tensor none = { 0 };
    w->g->kern.matmul(&w->g->kc, w->c, w->a, w->b, none, none);
}

/* Seconds of the quickest of some runs, after one to warm up. */
static double quickest(struct work *w, void (*run)(struct work *))
{
    struct dev *d = w->g->dev;
    struct dev_event *from = dev_event_new(d), *to = dev_event_new(d);
    double best = 0;
    for (int i = 0; i <= TIMES; i++) {
        dev_event_record(d, from);
        run(w);
        dev_event_record(d, to);
        dev_event_wait(to);
        const double s = dev_event_s(from, to);
        if (i && (best <= 0 || s < best)) best = s;
    }
    dev_event_free(from);
    dev_event_free(to);
    return best;
}

/* Random numbers, the same ones over and over: what is multiplied must not be zeros, which are quicker. */
static int fill(struct engine *g, struct tensor t, struct err *e)
{
    const int64_t n = tensor_count(t);
    const size_t each = dtype_bytes((enum dtype)t.type);
    float *x = malloc(PIECE * sizeof *x);
    void *raw = malloc(PIECE * sizeof *x);
    struct rng r;
    rng_seed(&r, 11);
    if (x && raw) {
        for (int i = 0; i < PIECE; i++) x[i] = (float)rng_normal(&r);
        dtype_convert(raw, (enum dtype)t.type, x, DT_F32, PIECE);
        for (int64_t at = 0; at < n; at += PIECE)
            dev_put(g->dev, (char *)t.p + (size_t)at * each, raw, (size_t)(n - at < PIECE ? n - at : PIECE) * each);
    }
    int rc = x && raw ? 0 : err_set(e, ERR_NOMEM, "no memory for random numbers");
    free(x), free(raw);
    return rc;
}

int ceilings_measure(struct ceilings *c, struct engine *g, struct err *e)
{
    const int side = dev_memory_now(g->dev).total > (size_t)8 << 30 && dev_units(g->dev) > 8 ? SIDE : 64;
    const size_t bytes = (size_t)side * (size_t)side * dtype_bytes(g->dtype);
    struct work w = { .g = g };
    struct arena mem;
    int rc = dev_arena(&mem, g->dev, 3 * bytes + 4096, e);
    if (rc < 0) return rc;
    w.a = w.b = w.c = tensor_2d(NULL, g->dtype, side, side);
    w.a.p = arena_take(&mem, bytes), w.b.p = arena_take(&mem, bytes), w.c.p = arena_take(&mem, bytes);
    w.one = tensor_1d(arena_take(&mem, sizeof(float)), DT_F32, 1);
    dev_use(g->dev);
    if ((rc = fill(g, w.a, e)) >= 0 && (rc = fill(g, w.b, e)) >= 0) {
        dev_fill(g->dev, w.c.p, 0, bytes);
        const double read = (double)bytes / quickest(&w, run_read), add = 3.0 * (double)bytes / quickest(&w, run_add);
        c->read_gb_s = 1e-9 * (read > add ? read : add);
        c->matrix_gflops = 2e-9 * side * (double)side * side / quickest(&w, run_product);
    }
    dev_sync(g->dev);
    arena_fini(&mem);
    return rc;
}
