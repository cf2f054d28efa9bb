/* A GPU as a device: one stream in order, memory, captured graphs. See dev.h for what each function promises. */
#include "dev/gpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

extern "C" {
#include "dev/device.h"
}

enum { RING = 1 << 20 }; /* bytes of small puts that may be under way; larger ones go as they are */

void gpu_lost(const char *why)
{
    fprintf(stderr, "llava: the " GPU_KIND " device has failed: %s\n", why);
    fflush(NULL);
    _exit(70);
}

void gpu_check_at(gpu(Error_t) rc, const char *what)
{
    if (rc == gpu(Success)) return;
    if (rc == gpu(ErrorInvalidValue) || rc == gpu(ErrorInvalidConfiguration))
        BUG("%s: %s", what, gpu(GetErrorString)(rc));
    gpu_lost(gpu(GetErrorString)(rc));
}

static gpu(Stream_t) stream_of(struct dev *d) { return (gpu(Stream_t))d->stream; }
static gpu(Event_t) event_of(struct dev_event *v) { return (gpu(Event_t))v->event; }

static void on_use(struct dev *d) { gpu_check(gpu(SetDevice)(d->index)); }

/* ---- memory */

static struct dev_memory on_memory(struct dev *d)
{
    struct dev_memory m = { 0, 0, d->used, d->peak };
    on_use(d);
    gpu_check(gpu(MemGetInfo)(&m.free, &m.total));
    return m;
}

static int on_alloc(void **ret, struct dev *d, size_t bytes, struct err *e)
{
    on_use(d);
    gpu(Error_t) rc = gpu(Malloc)(ret, bytes ? bytes : 1);
    if (rc == gpu(ErrorMemoryAllocation)) {
        (void)gpu(GetLastError)();
        *ret = NULL;
        struct dev_memory m = on_memory(d);
        return err_set(e, ERR_NOMEM, "'%s' has %.2f GB free of %.2f GB, %.2f GB are needed", d->name,
                       1e-9 * (double)m.free, 1e-9 * (double)m.total, 1e-9 * (double)bytes);
    }
    gpu_check(rc);
    d->used += bytes;
    if (d->used > d->peak) d->peak = d->used;
    return 0;
}

static void on_free(struct dev *d, void *p, size_t bytes)
{
    on_use(d);
    gpu_check(gpu(Free)(p));
    d->used -= bytes;
}

static int on_pinned(void **ret, struct dev *d, size_t bytes, struct err *e)
{
    on_use(d);
    if (gpu_host_alloc(ret, bytes ? bytes : 1) == gpu(Success)) return 0;
    (void)gpu(GetLastError)();
    *ret = NULL;
    return err_set(e, ERR_NOMEM, "no page-locked memory for %zu bytes", bytes);
}

static void on_pinned_free(struct dev *, void *p) { gpu_check(gpu_host_free(p)); }

/* ---- order */

static void on_sync(struct dev *d) { gpu_check(gpu(StreamSynchronize)(stream_of(d))); }

static void on_send(struct dev *d, void *dst, const void *pinned, size_t bytes)
{
    if (bytes) gpu_check(gpu(MemcpyAsync)(dst, pinned, bytes, gpu(MemcpyHostToDevice), stream_of(d)));
}

/* Small ones through the ring, without waiting; of large ones the driver copies pageable memory before it returns. */
static void on_put(struct dev *d, void *dst, const void *host, size_t bytes)
{
    on_use(d);
    if (bytes > RING / 4) {
        on_send(d, dst, host, bytes);
        on_sync(d);
        return;
    }
    if (d->ring_at + bytes > RING) {
        on_sync(d);
        d->ring_at = 0;
    }
    memcpy(d->ring + d->ring_at, host, bytes);
    on_send(d, dst, d->ring + d->ring_at, bytes);
    d->ring_at += (bytes + 63) & ~(size_t)63;
}

static void on_fetch(struct dev *d, void *pinned, const void *src, size_t bytes)
{
    if (bytes) gpu_check(gpu(MemcpyAsync)(pinned, src, bytes, gpu(MemcpyDeviceToHost), stream_of(d)));
}

static void on_get(struct dev *d, void *host, const void *src, size_t bytes)
{
    on_use(d);
    on_fetch(d, host, src, bytes);
    on_sync(d);
}

static void on_copy(struct dev *d, void *dst, const void *src, size_t bytes)
{
    if (bytes) gpu_check(gpu(MemcpyAsync)(dst, src, bytes, gpu(MemcpyDeviceToDevice), stream_of(d)));
}

static void on_fill(struct dev *d, void *dst, int byte, size_t bytes)
{
    if (bytes) gpu_check(gpu(MemsetAsync)(dst, byte, bytes, stream_of(d)));
}

static struct dev_event *on_event_new(struct dev *d)
{
    gpu(Event_t) event;
    on_use(d);
    gpu_check(gpu(EventCreate)(&event));
    struct dev_event *v = (struct dev_event *)malloc(sizeof *v);
    if (!v) BUG("no memory for an event");
    *v = { d, (void *)event };
    return v;
}

static void on_event_free(struct dev_event *v)
{
    gpu_check(gpu(EventDestroy)(event_of(v)));
    free(v);
}

static void on_event_record(struct dev_event *v) { gpu_check(gpu(EventRecord)(event_of(v), stream_of(v->d))); }
static void on_event_wait(struct dev_event *v) { gpu_check(gpu(EventSynchronize)(event_of(v))); }

static double on_event_s(struct dev_event *from, struct dev_event *to)
{
    float ms = 0;
    gpu_check(gpu(EventElapsedTime)(&ms, event_of(from), event_of(to)));
    return 1e-3 * (double)ms;
}

/* ---- lanes */

static gpu(Stream_t) lane_of(const struct dev_lane *l) { return (gpu(Stream_t))l->stream; }

static struct dev_lane *on_lane_new(struct dev *d)
{
    gpu(Stream_t) stream;
    on_use(d);
    gpu_check(gpu(StreamCreateWithFlags)(&stream, gpu(StreamNonBlocking)));
    struct dev_lane *l = (struct dev_lane *)malloc(sizeof *l);
    if (!l) BUG("no memory for a lane");
    *l = { d, (void *)stream };
    return l;
}

static void on_lane_free(struct dev_lane *l)
{
    gpu_check(gpu(StreamSynchronize)(lane_of(l)));
    gpu_check(gpu(StreamDestroy)(lane_of(l)));
    free(l);
}

static void on_lane_send(struct dev_lane *l, void *dst, const void *pinned, size_t bytes)
{
    if (bytes) gpu_check(gpu(MemcpyAsync)(dst, pinned, bytes, gpu(MemcpyHostToDevice), lane_of(l)));
}

static void on_lane_fetch(struct dev_lane *l, void *pinned, const void *src, size_t bytes)
{
    if (bytes) gpu_check(gpu(MemcpyAsync)(pinned, src, bytes, gpu(MemcpyDeviceToHost), lane_of(l)));
}

static void on_lane_record(struct dev_lane *l, struct dev_event *v)
{
    gpu_check(gpu(EventRecord)(event_of(v), lane_of(l)));
}

static void on_lane_follow(struct dev_lane *l, struct dev_event *v)
{
    gpu_check(gpu(StreamWaitEvent)(lane_of(l), event_of(v), 0));
}

static void on_follow(struct dev *d, struct dev_event *v)
{
    gpu_check(gpu(StreamWaitEvent)(stream_of(d), event_of(v), 0));
}

/* ---- capture */

static int failed(const char *what, gpu(Error_t) rc, struct err *e)
{
    (void)gpu(GetLastError)();
    return err_set(e, ERR_UNSUPPORTED, "the driver cannot %s: %s", what, gpu(GetErrorString)(rc));
}

static int on_capture_begin(struct dev *d, struct err *e)
{
    on_use(d);
    gpu(Error_t) rc = gpu(StreamBeginCapture)(stream_of(d), gpu(StreamCaptureModeThreadLocal));
    return rc == gpu(Success) ? 0 : failed("record a graph", rc, e);
}

static int on_capture_end(struct dev_graph **ret, struct dev *d, struct err *e)
{
    gpu(Graph_t) graph = NULL;
    gpu(GraphExec_t) exec = NULL;
    size_t n = 0;
    *ret = NULL;
    gpu(Error_t) rc = gpu(StreamEndCapture)(stream_of(d), &graph);
    if (rc == gpu(Success)) rc = gpu(GraphGetNodes)(graph, NULL, &n);
    if (rc == gpu(Success)) rc = gpu(GraphInstantiateWithFlags)(&exec, graph, 0);
    if (graph) (void)gpu(GraphDestroy)(graph);
    if (rc != gpu(Success)) return failed("make a graph of a step", rc, e);
    struct dev_graph *g = (struct dev_graph *)malloc(sizeof *g);
    if (!g) BUG("no memory for a graph");
    *g = { d, (void *)exec, (int)n };
    *ret = g;
    return 0;
}

static void on_graph_run(struct dev_graph *g)
{
    gpu_check(gpu(GraphLaunch)((gpu(GraphExec_t))g->graph, stream_of(g->d)));
}

static void on_graph_free(struct dev_graph *g)
{
    gpu_check(gpu(GraphExecDestroy)((gpu(GraphExec_t))g->graph));
    free(g);
}

/* ---- opening */

static void on_close(struct dev *d)
{
    on_use(d);
    if (d->stream) gpu_check(gpu(StreamDestroy)(stream_of(d)));
    if (d->ring) gpu_check(gpu_host_free(d->ring));
    free(d);
}

__launch_bounds__(64) __global__ void probe(int *p) { *p = (int)threadIdx.x + 70; }

/* A card that is there and cannot be had: its memory is full, it belongs to one process alone, it is broken. */
static int unusable(const struct dev *d, gpu(Error_t) why, struct err *e)
{
    return err_set(e, why == gpu(ErrorMemoryAllocation) ? ERR_NOMEM : ERR_UNSUPPORTED, "'%s'%s%s%s cannot be used: %s",
                   d->name, *d->model ? " (" : "", d->model, *d->model ? ")" : "", gpu(GetErrorString)(why));
}

/* Does code of this build run on the card at all? */
static int try_card(struct dev *d, struct err *e)
{
    int *p = NULL, got = 0;
    gpu(Error_t) rc = gpu(Malloc)((void **)&p, sizeof *p), ran = gpu(Success);
    if (rc == gpu(Success)) {
#if defined(GPU_EMU)
        gpu_launch(probe, 1, 1, 0, stream_of(d), p);
#else
        probe<<<1, 1, 0, stream_of(d)>>>(p);
        ran = gpu(GetLastError)();
#endif
        if (ran == gpu(Success)) rc = gpu(MemcpyAsync)(&got, p, sizeof got, gpu(MemcpyDeviceToHost), stream_of(d));
        if (ran == gpu(Success) && rc == gpu(Success)) rc = gpu(StreamSynchronize)(stream_of(d));
        (void)gpu(Free)(p);
    }
    if (rc == gpu(Success) && ran == gpu(ErrorMemoryAllocation)) rc = ran;
    if (rc != gpu(Success)) return unusable(d, rc, e);
    if (got == 70) return 0;
    return err_set(e, ERR_UNSUPPORTED, "this build has no code for '%s' (%s): %s", d->name, d->model,
                   gpu(GetErrorString)(ran));
}

static int count_cards(int *n, struct err *e)
{
    int driver = 0, runtime = 0;
    *n = 0;
    gpu(Error_t) rc = gpu(GetDeviceCount)(n);
    if (rc == gpu(Success) && *n > 0) return 0;
    (void)gpu(GetLastError)();
    (void)gpu(DriverGetVersion)(&driver);
    (void)gpu(RuntimeGetVersion)(&runtime);
    if (rc == gpu(ErrorInsufficientDriver) && driver > 0)
        return err_set(e, ERR_UNSUPPORTED, "the driver for " GPU_KIND " is version %d.%d, this build needs %d.%d",
                       driver / 1000, driver / 10 % 100, runtime / 1000, runtime / 10 % 100);
    if (rc == gpu(ErrorInsufficientDriver))
        return err_set(e, ERR_MISSING, "no driver for " GPU_KIND " on this machine");
    return err_set(e, ERR_MISSING, "no " GPU_KIND " device on this machine (%s)", gpu(GetErrorString)(rc));
}

static const struct dev_on on_gpu = {
    on_close, on_use, on_alloc, on_free, on_pinned, on_pinned_free, on_memory, on_put, on_get, on_copy, on_fill,
    on_send, on_fetch, on_sync, on_event_new, on_event_free, on_event_record, on_event_wait, on_event_s,
    on_lane_new, on_lane_free, on_lane_send, on_lane_fetch, on_lane_record, on_lane_follow, on_follow,
    on_capture_begin, on_capture_end, on_graph_run, on_graph_free,
};

/* What may fail of a card that is counted. An error of the machine is one to report here: nothing runs yet. */
static int take_card(struct dev *d, struct err *e)
{
    gpu_properties about;
    gpu(Stream_t) stream;
    gpu(Error_t) rc = gpu(SetDevice)(d->index);
    if (rc == gpu(Success)) rc = gpu(GetDeviceProperties)(&about, d->index);
    if (rc != gpu(Success)) return unusable(d, rc, e);
    snprintf(d->model, sizeof d->model, "%s", about.name);
    d->units = about.multiProcessorCount;
    rc = gpu(StreamCreateWithFlags)(&stream, gpu(StreamNonBlocking));
    if (rc != gpu(Success)) return unusable(d, rc, e);
    d->stream = (void *)stream;
    void *ring;
    if ((rc = gpu_host_alloc(&ring, RING)) != gpu(Success)) return unusable(d, rc, e);
    d->ring = (char *)ring;
    return try_card(d, e);
}

int gpu_open(struct dev **ret, int index, struct err *e)
{
    int n, rc = count_cards(&n, e);
    *ret = NULL;
    if (rc < 0) return rc;
    if (index >= n)
        return err_set(e, ERR_USAGE, "no device '" GPU_KIND ":%d': this machine has %d, " GPU_KIND ":0%s", index, n,
                       n > 1 ? " and so on" : "");
    struct dev *d = (struct dev *)calloc(1, sizeof *d);
    if (!d) return err_set(e, ERR_NOMEM, "no memory for a device");
    d->on = &on_gpu;
    d->index = index;
    snprintf(d->name, sizeof d->name, GPU_KIND ":%d", index);
    if ((rc = take_card(d, e)) >= 0) {
        *ret = d;
        return 0;
    }
    if (d->stream) (void)gpu(StreamDestroy)(stream_of(d)); /* as far as that goes: the card may be gone */
    if (d->ring) (void)gpu_host_free(d->ring);
    (void)gpu(GetLastError)();
    free(d);
    return rc;
}
