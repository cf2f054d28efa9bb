/* The reference backend as a table, and the helpers of real.h that are too long for a header. */
#include "kern/ref/real.h"

const struct kern kern_ref = {
    .name = "ref",
#define XX(kernel) .kernel = ref_##kernel,
    REF_MAP(XX)
#undef XX
};

const real *reals_span(struct tensor t, int64_t from, int64_t n, real *buf)
{
    const float *f32 = (const float *)t.p + from;
    const double *f64 = (const double *)t.p + from; /* of these three one is used */
    const uint16_t *u16 = (const uint16_t *)t.p + from;
    const enum dtype own = sizeof(real) == sizeof(double) ? DT_F64 : DT_F32;
    if (t.type == own) return (const real *)t.p + from;
    switch (t.type) {
    case DT_F32: for (int64_t i = 0; i < n; i++) buf[i] = (real)f32[i]; break;
    case DT_F64: for (int64_t i = 0; i < n; i++) buf[i] = (real)f64[i]; break;
    case DT_F16: for (int64_t i = 0; i < n; i++) buf[i] = (real)f16_to_f32(u16[i]); break;
    case DT_BF16: for (int64_t i = 0; i < n; i++) buf[i] = (real)bf16_to_f32(u16[i]); break;
    case DT_Q8:
    case DT_Q4: for (int64_t i = 0; i < n; i++) buf[i] = (real)at(t, from + i); break;
    default: BUG("%s is not a float type", dtype_name((enum dtype)t.type));
    }
    return buf;
}

const real *reals(struct kctx *kc, struct tensor t)
{
    const int64_t n = tensor_count(t);
    real *buf = NULL;
    if (dtype_is_quant((enum dtype)t.type) || dtype_bytes((enum dtype)t.type) != sizeof(real))
        buf = arena_take(kc->scratch, (size_t)n * sizeof(real));
    return reals_span(t, 0, n, buf);
}

struct lanes lanes_take(struct kctx *kc, size_t bytes)
{
    const size_t stride = arena_aligned(bytes);
    return (struct lanes){ arena_take(kc->scratch, stride * (size_t)kc->n_threads), stride };
}
