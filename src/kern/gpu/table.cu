/* The GPU's table. */
#include "kern/gpu/num.h"

extern "C" int kern_init_gpu(struct kern *k, struct dev *d, struct err *e)
{
    (void)d, (void)e;
    *k = kern{};
    k->name = GPU_KIND;
#define XX(kernel) k->kernel = gpu_##kernel;
    GPU_MAP(XX)
#undef XX
    return 0;
}
