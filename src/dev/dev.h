/* A device is memory, order and capture.
 *
 * Memory: what kernels read and write lives in the device's memory; only dev_put, dev_get and dev_copy move bytes
 * across. Nothing above this room dereferences device memory (the emulator's memory cannot be touched outside of
 * kernels, so that tests find who does). Order: copies and kernels of a device happen one after another, in the order
 * of the calls, while the caller goes on; dev_get, dev_event_wait and dev_sync wait. Capture: a sequence of kernels may
 * be recorded once and run again at the cost of one launch.
 *
 * NULL is the host: plain memory, where everything is done when the call returns, and which captures nothing. All
 * functions accept it. `gpu.cu` has the others; what a build has, dev_kinds tells. Kernels get at a GPU's stream
 * through gpu.h.
 *
 * A fault of the machine (a card that is lost in mid-step) ends the process: one line, exit status 70.
 */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/err.h"

struct dev;

/* "cpu"; "cuda", "cuda:1", "hip:0", "emu" in builds that have them; "auto" or NULL: the build's GPU if one works, else
 * the host, and the reason is logged. The host is NULL in *ret. */
int dev_open(struct dev **ret, const char *name, struct err *e);
void dev_close(struct dev *d);
const char *dev_kinds(void);                /* "cpu", "cpu, cuda", ...: for messages and help */
const char *dev_name(const struct dev *d);  /* "cpu", "cuda:0" */
const char *dev_model(const struct dev *d); /* "NVIDIA H100 80GB HBM3"; "" for the host */
int dev_units(const struct dev *d);         /* multiprocessors; the host: threads worth using */
/* Makes d the one that the calling thread's kernels run on: once per thread before it launches any. */
void dev_use(struct dev *d);

/* ---- memory */

/* At least 64-byte aligned, not cleared (host: zero pages, taken when touched). */
int dev_alloc(void **ret, struct dev *d, size_t bytes, struct err *e);
void dev_free(struct dev *d, void *p, size_t bytes); /* accepts NULL */
/* An arena over device memory; arena_fini gives the memory back. */
int dev_arena(struct arena *a, struct dev *d, size_t bytes, struct err *e);
/* Host memory that dev_send and dev_fetch copy from and to without waiting. */
int dev_pinned(void **ret, struct dev *d, size_t bytes, struct err *e);
void dev_pinned_free(struct dev *d, void *p);

struct dev_memory {
    size_t total, free; /* of the card, or of the machine */
    size_t used, peak;  /* by dev_alloc; the host: 0 and the process's peak */
};
struct dev_memory dev_memory_now(struct dev *d);
/* A device's peak is again that of `then`: what was taken and given back since is forgotten. */
void dev_memory_forget(struct dev *d, const struct dev_memory *then);

/* ---- order */

void dev_put(struct dev *d, void *dst, const void *host, size_t bytes); /* host may be reused at once */
void dev_get(struct dev *d, void *host, const void *src, size_t bytes); /* waits for the bytes */
void dev_copy(struct dev *d, void *dst, const void *src, size_t bytes); /* within the device */
void dev_fill(struct dev *d, void *dst, int byte, size_t bytes);
/* As put and get, with memory of dev_pinned, which must stay as it is until an event recorded after the call came. */
void dev_send(struct dev *d, void *dst, const void *pinned, size_t bytes);
void dev_fetch(struct dev *d, void *pinned, const void *src, size_t bytes);
void dev_sync(struct dev *d); /* waits for everything */

struct dev_event; /* NULL for the host, which never has to wait */
struct dev_event *dev_event_new(struct dev *d);
void dev_event_free(struct dev_event *v);
void dev_event_record(struct dev *d, struct dev_event *v);
void dev_event_wait(struct dev_event *v);
double dev_event_s(struct dev_event *from, struct dev_event *to); /* seconds between two that have come */

/* A lane is a second queue, for copies alone, which runs beside the kernels of the device: what it copies must stay as
 * it is, and must not be read, until an event says so. Events order the two: dev_follow makes what comes after it on
 * the device wait for an event, dev_lane_follow what comes on the lane; neither makes the caller wait. The host has
 * none: NULL, and a copy is done when the call returns. */
struct dev_lane;
struct dev_lane *dev_lane_new(struct dev *d);
void dev_lane_free(struct dev_lane *l); /* waits for its copies; accepts NULL */
void dev_lane_send(struct dev_lane *l, void *dst, const void *pinned, size_t bytes);
void dev_lane_fetch(struct dev_lane *l, void *pinned, const void *src, size_t bytes);
void dev_lane_record(struct dev_lane *l, struct dev_event *v);
void dev_lane_follow(struct dev_lane *l, struct dev_event *v);
void dev_follow(struct dev *d, struct dev_event *v);

/* ---- capture */

struct dev_graph;
bool dev_captures(const struct dev *d);
/* What follows is recorded and does not run: kernels and dev_copy, dev_fill; no other call of this header. */
int dev_capture_begin(struct dev *d, struct err *e);
/* Fails where the driver cannot record what ran: run it eagerly then. */
int dev_capture_end(struct dev_graph **ret, struct dev *d, struct err *e);
void dev_graph_run(struct dev *d, struct dev_graph *g);
int dev_graph_launches(const struct dev_graph *g); /* kernels and copies in it */
void dev_graph_free(struct dev_graph *g);

/* ---- for gpu.h and kern/gpu */

void *dev_stream(struct dev *d);
/* One thing that lives as long as the device: a vendor's library that is open. close may be NULL. */
void dev_attach(struct dev *d, void *what, void (*close)(void *));
void *dev_attached(const struct dev *d);
