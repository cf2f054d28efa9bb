/* Which device a name means, and the host's side of dev.h: plain memory. Builds with a GPU link gpu.cu beside this. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/plat.h"
#include "dev/device.h"

/* The kind of GPU that this build has; "" if none. */
#if defined(LLAVA_GPU)
static const char gpu_kind[] = LLAVA_GPU;
#else
static const char gpu_kind[] = "";
int gpu_open(struct dev **ret, int index, struct err *e)
{
    *ret = NULL;
    return err_set(e, ERR_UNSUPPORTED, "no device %d in this build", index);
}
#endif

const char *dev_kinds(void)
{
#if defined(LLAVA_GPU)
    return "cpu, " LLAVA_GPU;
#else
    return "cpu";
#endif
}

/* "cuda:1" -> 1, "cuda" -> 0 for the build's kind; -1 for what it does not have. */
static int index_of(const char *name)
{
    size_t n = strlen(gpu_kind);
    if (!n || strncmp(name, gpu_kind, n) != 0) return -1;
    if (!name[n]) return 0;
    if (name[n] != ':' || name[n + 1] < '0' || name[n + 1] > '9') return -1;
    char *end;
    const long i = strtol(name + n + 1, &end, 10);
    return *end ? -1 : i < INT_MAX ? (int)i : INT_MAX; /* which no machine has */
}

int dev_open(struct dev **ret, const char *name, struct err *e)
{
    *ret = NULL;
    if (!name || !strcmp(name, "auto")) {
        struct err why = { 0 };
        if (*gpu_kind && gpu_open(ret, 0, &why) < 0) log_info("%s: running on the cpu", why.msg);
        return 0;
    }
    if (!strcmp(name, "cpu")) return 0;
    int i = index_of(name);
    if (i < 0) return err_set(e, ERR_USAGE, "no device '%s' in this build (there are auto, %s)", name, dev_kinds());
    return gpu_open(ret, i, e);
}

void dev_close(struct dev *d)
{
    if (!d) return;
    dev_attach(d, NULL, NULL);
    d->on->close(d);
}

void dev_attach(struct dev *d, void *what, void (*close)(void *))
{
    if (d->detach) d->detach(d->attached);
    d->attached = what;
    d->detach = close;
}

void *dev_attached(const struct dev *d) { return d->attached; }

const char *dev_name(const struct dev *d) { return d ? d->name : "cpu"; }
const char *dev_model(const struct dev *d) { return d ? d->model : ""; }
int dev_units(const struct dev *d) { return d ? d->units : plat_threads(); }

void dev_use(struct dev *d)
{
    if (d) d->on->use(d);
}

void *dev_stream(struct dev *d) { return d ? d->stream : NULL; }

/* ---- memory */

int dev_alloc(void **ret, struct dev *d, size_t bytes, struct err *e)
{
    if (d) return d->on->alloc(ret, d, bytes, e);
    struct arena a;
    int rc = arena_init(&a, bytes, e);
    *ret = a.base;
    return rc;
}

void dev_free(struct dev *d, void *p, size_t bytes)
{
    struct arena a;
    if (!p) return;
    if (d) {
        d->on->free(d, p, bytes);
    } else {
        arena_init_over(&a, p, (bytes + 4095) & ~(size_t)4095, NULL, NULL);
        arena_fini(&a);
    }
}

static void release(struct arena *a) { dev_free(a->owner, a->base, a->cap); }

int dev_arena(struct arena *a, struct dev *d, size_t bytes, struct err *e)
{
    if (!d) return arena_init(a, bytes, e);
    *a = (struct arena){ 0 };
    bytes = (bytes + 4095) & ~(size_t)4095;
    void *p = NULL;
    int rc = bytes ? dev_alloc(&p, d, bytes, e) : 0;
    if (p) arena_init_over(a, p, bytes, release, d);
    return rc;
}

int dev_pinned(void **ret, struct dev *d, size_t bytes, struct err *e)
{
    if (d) return d->on->pinned(ret, d, bytes, e);
    *ret = malloc(bytes + !bytes);
    return *ret ? 0 : err_set(e, ERR_NOMEM, "no memory for %zu bytes", bytes);
}

void dev_pinned_free(struct dev *d, void *p)
{
    if (d && p) d->on->pinned_free(d, p);
    else free(p);
}

struct dev_memory dev_memory_now(struct dev *d)
{
    if (d) return d->on->memory(d);
    size_t total = plat_memory_total();
    return (struct dev_memory){ total, total, 0, plat_memory_peak() };
}

void dev_memory_forget(struct dev *d, const struct dev_memory *then)
{
    if (d) d->peak = d->used > then->peak ? d->used : then->peak;
}

/* ---- order */

void dev_put(struct dev *d, void *dst, const void *host, size_t bytes)
{
    if (d) d->on->put(d, dst, host, bytes);
    else if (bytes) memcpy(dst, host, bytes);
}

void dev_get(struct dev *d, void *host, const void *src, size_t bytes)
{
    if (d) d->on->get(d, host, src, bytes);
    else if (bytes) memcpy(host, src, bytes);
}

void dev_copy(struct dev *d, void *dst, const void *src, size_t bytes)
{
    if (d) d->on->copy(d, dst, src, bytes);
    else if (bytes) memmove(dst, src, bytes);
}

void dev_fill(struct dev *d, void *dst, int byte, size_t bytes)
{
    if (d) d->on->fill(d, dst, byte, bytes);
    else if (bytes) memset(dst, byte, bytes);
}

void dev_send(struct dev *d, void *dst, const void *pinned, size_t bytes)
{
    if (d) d->on->send(d, dst, pinned, bytes);
    else if (bytes) memcpy(dst, pinned, bytes);
}

void dev_fetch(struct dev *d, void *pinned, const void *src, size_t bytes)
{
    if (d) d->on->fetch(d, pinned, src, bytes);
    else if (bytes) memcpy(pinned, src, bytes);
}

void dev_sync(struct dev *d)
{
    if (d) d->on->sync(d);
}

struct dev_event *dev_event_new(struct dev *d) { return d ? d->on->event_new(d) : NULL; }

void dev_event_free(struct dev_event *v)
{
    if (v) v->d->on->event_free(v);
}

void dev_event_record(struct dev *d, struct dev_event *v)
{
    if (v) d->on->event_record(v);
}

void dev_event_wait(struct dev_event *v)
{
    if (v) v->d->on->event_wait(v);
}

double dev_event_s(struct dev_event *from, struct dev_event *to)
{
    return from && to ? from->d->on->event_s(from, to) : 0;
}

/* ---- lanes */

struct dev_lane *dev_lane_new(struct dev *d) { return d ? d->on->lane_new(d) : NULL; }

void dev_lane_free(struct dev_lane *l)
{
    if (l) l->d->on->lane_free(l);
}

void dev_lane_send(struct dev_lane *l, void *dst, const void *pinned, size_t bytes)
{
    if (l) l->d->on->lane_send(l, dst, pinned, bytes);
    else if (bytes) memcpy(dst, pinned, bytes);
}

void dev_lane_fetch(struct dev_lane *l, void *pinned, const void *src, size_t bytes)
{
    if (l) l->d->on->lane_fetch(l, pinned, src, bytes);
    else if (bytes) memcpy(pinned, src, bytes);
}

void dev_lane_record(struct dev_lane *l, struct dev_event *v)
{
    if (l) l->d->on->lane_record(l, v);
}

void dev_lane_follow(struct dev_lane *l, struct dev_event *v)
{
    if (l) l->d->on->lane_follow(l, v);
}

void dev_follow(struct dev *d, struct dev_event *v)
{
    if (d) d->on->follow(d, v);
}

/* ---- capture */

bool dev_captures(const struct dev *d) { return d != NULL; }

int dev_capture_begin(struct dev *d, struct err *e)
{
    return d ? d->on->capture_begin(d, e) : err_set(e, ERR_UNSUPPORTED, "the cpu records no graphs");
}

int dev_capture_end(struct dev_graph **ret, struct dev *d, struct err *e) { return d->on->capture_end(ret, d, e); }
void dev_graph_run(struct dev *d, struct dev_graph *g) { d->on->graph_run(g); }
int dev_graph_launches(const struct dev_graph *g) { return g ? g->n : 0; }

void dev_graph_free(struct dev_graph *g)
{
    if (g) g->d->on->graph_free(g);
}
