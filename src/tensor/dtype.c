/* See dtype.h. */
#include "tensor/dtype.h"

#include <string.h>
#include <strings.h>

#include "base/err.h"
#include "tensor/quant.h"

static const struct {
    size_t bytes;
    const char *name, *torch;
    bool real;
} types[N_DTYPE] = {
#define XX(name, bytes, st, torch, real) { bytes, st, torch, real },
    DTYPE_MAP(XX)
#undef XX
};

size_t dtype_bytes(enum dtype t)
{
    ASSERT(t < N_DTYPE);
    return types[t].bytes;
}

size_t dtype_row_bytes(enum dtype t, int64_t n)
{
    return dtype_is_quant(t) ? quant_row_bytes(t, n) : (size_t)n * types[t].bytes;
}

bool dtype_is_float(enum dtype t) { return t < N_DTYPE && types[t].real; }
const char *dtype_name(enum dtype t) { return t == DT_Q8 ? "Q8" : t == DT_Q4 ? "Q4" : types[t].name; }

int dtype_find(const char *name, enum dtype *ret)
{
    static const char *const alias[][2] = { { "float32", "F32" }, { "float", "F32" }, { "float16", "F16" },
                                            { "half", "F16" }, { "fp16", "F16" }, { "fp32", "F32" },
                                            { "bfloat16", "BF16" }, { "float64", "F64" }, { "double", "F64" } };
    if (!strncmp(name, "torch.", 6)) name += 6;
    for (size_t i = 0; i < sizeof alias / sizeof *alias; i++)
        if (!strcasecmp(name, alias[i][0])) name = alias[i][1];
    for (int t = 0; t < N_DTYPE; t++)
        if (!strcasecmp(name, types[t].name)) return *ret = (enum dtype)t, 0;
    return -1;
}

int dtype_find_torch(const char *storage, enum dtype *ret)
{
    for (int t = 0; t < N_DTYPE; t++)
        if (!strcmp(storage, types[t].torch)) return *ret = (enum dtype)t, 0;
    return -1;
}

union bits { float f; uint32_t u; };

uint16_t f32_to_bf16(float f)
{
    union bits v = { f };
    if ((v.u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((v.u >> 16) | 0x40u);
    return (uint16_t)((v.u + 0x7fffu + ((v.u >> 16) & 1u)) >> 16);
}

uint16_t f32_to_f16(float f)
{
    union bits v = { f };
    uint32_t sign = (v.u >> 16) & 0x8000u, mag = v.u & 0x7fffffffu;
    if (mag > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | ((mag >> 13) & 0x3ffu));
    if (mag >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* rounds past 65504 */
    if (mag < 0x38800000u) {                                   /* subnormal half: let the FPU round at 2^-24 */
        union bits m = { 0 };
        m.u = mag;
        m.f += 0.5f; /* aligns the mantissa so that its last bit is 2^-24 */
        return (uint16_t)(sign | (m.u - 0x3f000000u));
    }
    mag += 0xfffu + ((mag >> 13) & 1u);
    return (uint16_t)(sign | ((mag - 0x38000000u) >> 13));
}

float f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, e = (h >> 10) & 31u, m = h & 0x3ffu;
    union bits v = { 0 };
    if (e == 31) v.u = sign | 0x7f800000u | (m << 13);
    else if (e) v.u = sign | ((e + 112) << 23) | (m << 13);
    else {
        v.f = (float)m * 0x1p-24f;
        v.u |= sign;
    }
    return v.f;
}

static double load(const void *p, enum dtype t, int64_t i)
{
    switch (t) {
    case DT_F32: return ((const float *)p)[i];
    case DT_F64: return ((const double *)p)[i];
    case DT_F16: return f16_to_f32(((const uint16_t *)p)[i]);
    case DT_BF16: return bf16_to_f32(((const uint16_t *)p)[i]);
    default: BUG("%s is not a float type", dtype_name(t));
    }
}

static void convert(void *dst, enum dtype to, const void *src, enum dtype from, int64_t begin, int64_t end)
{
    for (int64_t i = begin; i < end; i++) {
        double v = load(src, from, i);
        switch (to) {
        case DT_F32: ((float *)dst)[i] = (float)v; break;
        case DT_F64: ((double *)dst)[i] = v; break;
        case DT_F16: ((uint16_t *)dst)[i] = f32_to_f16((float)v); break;
        case DT_BF16: ((uint16_t *)dst)[i] = f32_to_bf16((float)v); break;
        default: BUG("%s is not a float type", dtype_name(to));
        }
    }
}

void dtype_convert(void *dst, enum dtype to, const void *src, enum dtype from, int64_t n)
{
    enum { BLOCK = 1 << 16 };
    if (to == from) {
        memmove(dst, src, (size_t)n * dtype_bytes(to));
    } else if (n <= BLOCK) {
        convert(dst, to, src, from, 0, n); /* not worth waking other threads */
    } else {
#pragma omp parallel for schedule(static)
        for (int64_t at = 0; at < n; at += BLOCK) convert(dst, to, src, from, at, at + BLOCK < n ? at + BLOCK : n);
    }
}
