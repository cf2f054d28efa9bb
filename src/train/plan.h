/* The memory of a run by name, before any of it is taken, and what the run will be: `--dry_run`. */
#pragma once
#include "train/feed.h"
#include "train/setup.h"
#include "train/step.h"

enum { PLAN_ROWS = 12 };
struct plan {
    struct { const char *name; size_t bytes; } row[PLAN_ROWS];
    int n;
    struct dev *dev;   /* whose memory it is; NULL: the host's */
    size_t sum, limit; /* limit: --memory_limit, or what the device or the machine has */
    bool limited;      /* it is --memory_limit */
};

/* threads: of the loader. Bytes of "48G", "512M", ... in limit; NULL: what the machine has. ERR_USAGE for others. */
int plan_make(struct plan *p, struct trainee *t, struct step *s, int threads, const char *limit, struct err *e);
/* ERR_NOMEM with the sum where the plan is larger than the limit. */
int plan_check(const struct plan *p, struct err *e);
void plan_print(const struct plan *p, FILE *f);
void plan_bytes(char out[16], double bytes); /* "1.23 GB" */
