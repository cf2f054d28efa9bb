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

int kv_extents(struct kv_extent *x, int most, const int32_t *range, int n, int width)
{
    int count = 0;
    for (int i = 0; i < n; i++) {
        const int32_t *r = range + (int64_t)i * width, seq = width == 3 ? r[2] : 0;
        if (!count || x[count - 1].seq != seq) {
            if (count == most) return 0;
            x[count++] = (struct kv_extent){ i, i, seq, 0 };
        }
        x[count - 1].t1 = i + 1;
        if (r[1] > x[count - 1].to) x[count - 1].to = r[1];
    }
    return count;
}
