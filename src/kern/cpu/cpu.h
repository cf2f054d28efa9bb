/* What the program may ask the processor's backend beyond the table. */
#pragma once
#include "kern/kern.h"

/* GB/s at which n_threads read a buffer several times larger than the last cache. */
double cpu_read_ceiling(int n_threads);
