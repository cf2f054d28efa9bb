/* The processor's backend: the reference kernels. */
#include "kern/cpu/cpu.h"

double cpu_read_ceiling(int n_threads) { return n_threads * 0.0; }

const char *kern_init_cpu(struct kern *k, const char *isa)
{
    (void)isa;
    *k = kern_ref;
    return k->name;
}
