/* Inside the dev room: what a device that is not the host does for each function of dev.h. */
#pragma once
#include "dev/dev.h"

struct dev_on {
    void (*close)(struct dev *);
    void (*use)(struct dev *);
    int (*alloc)(void **, struct dev *, size_t, struct err *);
    void (*free)(struct dev *, void *, size_t);
    int (*pinned)(void **, struct dev *, size_t, struct err *);
    void (*pinned_free)(struct dev *, void *);
    struct dev_memory (*memory)(struct dev *);
    void (*put)(struct dev *, void *, const void *, size_t);
    void (*get)(struct dev *, void *, const void *, size_t);
    void (*copy)(struct dev *, void *, const void *, size_t);
    void (*fill)(struct dev *, void *, int, size_t);
    void (*send)(struct dev *, void *, const void *, size_t);
    void (*fetch)(struct dev *, void *, const void *, size_t);
    void (*sync)(struct dev *);
    struct dev_event *(*event_new)(struct dev *);
    void (*event_free)(struct dev_event *);
    void (*event_record)(struct dev_event *);
    void (*event_wait)(struct dev_event *);
    double (*event_s)(struct dev_event *, struct dev_event *);
    struct dev_lane *(*lane_new)(struct dev *);
    void (*lane_free)(struct dev_lane *);
    void (*lane_send)(struct dev_lane *, void *, const void *, size_t);
    void (*lane_fetch)(struct dev_lane *, void *, const void *, size_t);
    void (*lane_record)(struct dev_lane *, struct dev_event *);
    void (*lane_follow)(struct dev_lane *, struct dev_event *);
    void (*follow)(struct dev *, struct dev_event *);
    int (*capture_begin)(struct dev *, struct err *);
    int (*capture_end)(struct dev_graph **, struct dev *, struct err *);
    void (*graph_run)(struct dev_graph *);
    void (*graph_free)(struct dev_graph *);
};

struct dev {
    const struct dev_on *on;
    char name[24], model[256];
    int index, units;
    void *stream;
    size_t used, peak;
    char *ring; /* pinned, through which small puts go */
    size_t ring_at;
    void *attached;
    void (*detach)(void *);
};
struct dev_event { struct dev *d; void *event; };
struct dev_lane { struct dev *d; void *stream; };
struct dev_graph { struct dev *d; void *graph; int n; };

int gpu_open(struct dev **ret, int index, struct err *e); /* gpu.cu */
