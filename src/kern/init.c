/* Which backend a device gets. */
#include "kern/kern.h"

int kern_init(struct kern *k, struct dev *d, const char *isa, struct err *e)
{
    (void)e;
    if (!d) {
        kern_init_cpu(k, isa);
        return 0;
    }
#if defined(LLAVA_GPU)
    return kern_init_gpu(k, d, e);
#else
    BUG("a device without its kernels");
#endif
}
