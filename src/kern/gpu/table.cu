/* The GPU's table. */
#include "kern/gpu/blas.h"

extern "C" int kern_init_gpu(struct kern *k, struct dev *d, struct err *e)
{
    *k = kern{};
    k->name = GPU_KIND;
    k->fresh = true;
#define XX(kernel) k->kernel = gpu_##kernel;
    GPU_MAP(XX)
#undef XX
    return blas_open(d, e);
}
