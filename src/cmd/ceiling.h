/* What a device can do at most, beside which `bench` shows what was reached. */
#pragma once
#include "run/engine.h"

struct ceilings {
    double read_gb_s, matrix_gflops; /* 0: not measured */
};
/* Of g's device, with its kernels: one that only reads, or reads and writes, much memory, whichever moves more; a
 * product of large square matrices of random numbers in g's type. Takes up to 1 GB for it. */
int ceilings_measure(struct ceilings *c, struct engine *g, struct err *e);
