/* See quant.h. */
#include "tensor/quant.h"

#include <math.h>
#include <string.h>

const int8_t quant_level[16] = { -30, -22, -17, -13, -9, -6, -3, 0, 2, 4, 7, 10, 14, 18, 24, 33 };
const uint8_t quant_unsigned[16] = { 0, 8, 13, 17, 21, 24, 27, 30, 32, 34, 37, 40, 44, 48, 54, 63 };

int quant_find(enum dtype *ret, int64_t n, int64_t bytes)
{
    static const enum dtype types[] = { DT_Q8, DT_Q4 };
    for (int i = 0; i < 2; i++)
        if ((int64_t)quant_row_bytes(types[i], n) == bytes) return *ret = types[i], 0;
    return -1;
}

static const uint16_t *scales_of(const void *row, enum dtype t, int64_t n)
{
    return (const uint16_t *)(const void *)((const char *)row + quant_scales_at(t, n));
}

/* A scale as the row keeps it: never infinite. */
static uint16_t scale_put(float s)
{
    return f32_to_f16(s > 65504.0f ? 65504.0f : s < -65504.0f ? -65504.0f : s);
}

/* The largest magnitude. As bits NaN is above infinity, which is above all numbers. */
static float most_of(const float *x)
{
    int32_t bits[QUANT_GROUP], most = 0;
    float top;
    memcpy(bits, x, sizeof bits);
    for (int i = 0; i < QUANT_GROUP; i++) most = (bits[i] & INT32_MAX) > most ? bits[i] & INT32_MAX : most;
    memcpy(&top, &most, sizeof top);
    return top;
}

/* ---- 8 bits */

static uint16_t group8(int8_t *q, const float *x)
{
    const float top = most_of(x);
    const uint16_t h = isfinite(top) ? scale_put(top / 127) : QUANT_FAULT;
    const float s = f16_to_f32(h), inverse = s > 0 ? 1 / s : 0;
    for (int i = 0; i < QUANT_GROUP; i++) {
        float v = rintf(x[i] * inverse);
        v = v > -127 ? v : -127; /* NaN too */
        q[i] = (int8_t)(v < 127 ? v : 127);
    }
    return h;
}

/* ---- 4 bits */

/* Code of the level nearest to x: borders between levels are multiples of a half. */
struct nearest {
    uint8_t code[128]; /* by floor(2x) + 64 */
};

static void nearest_init(struct nearest *m)
{
    for (int i = 0, c = 0; i < 128; i++) {
        const int twice = i - 64;
        while (c < 15 && twice >= quant_level[c] + quant_level[c + 1]) c++;
        m->code[i] = (uint8_t)c;
    }
}

static inline uint8_t code_of(const struct nearest *m, float x)
{
    float v = 2 * x + 64;
    v = v > 0 ? v : 0; /* NaN too */
    return m->code[(int)(v < 127 ? v : 127)];
}

/* The scale of least squares for the codes that `s` leads to; 0 where all of them are zero. *gain: by how much these
 * codes with that scale take from the squared sum of x. */
static float refit(const struct nearest *m, const float *x, float s, float *gain)
{
    const float inverse = 1 / s;
    float xq = 0, qq = 0;
    for (int i = 0; i < QUANT_GROUP; i++) {
        const float q = quant_level[code_of(m, x[i] * inverse)];
        xq += x[i] * q;
        qq += q * q;
    }
    *gain = qq > 0 ? xq * xq / qq : 0;
    return qq > 0 ? xq / qq : 0;
}

/* The best scale from starts that put the largest element on or beyond either end of the levels. */
static float scale4(const struct nearest *m, const float *x, float top)
{
    static const float start[] = { 1 / 27.0f, 1 / 31.0f, 1 / 36.0f };
    float best = 0, most = -1, gain;
    for (int sign = 1; sign >= -1; sign -= 2)
        for (int i = 0; i < 3; i++) {
            float s = (float)sign * top * start[i];
            for (int again = 0; again < 2 && s != 0; again++) {
                const float next = refit(m, x, s, &gain);
                if (gain > most) {
                    most = gain;
                    best = next;
                }
                s = next;
            }
        }
    return best;
}

static uint16_t group4(const struct nearest *m, uint8_t *codes, const float *x)
{
    const float top = most_of(x);
    const uint16_t h = isfinite(top) ? scale_put(top > 0x1p-100f ? scale4(m, x, top) : 0) : QUANT_FAULT;
    const float s = f16_to_f32(h), inverse = s != 0 ? 1 / s : 0;
    for (int i = 0; i < QUANT_GROUP / 2; i++)
        codes[i] = (uint8_t)(code_of(m, x[i] * inverse) | code_of(m, x[i + QUANT_GROUP / 2] * inverse) << 4);
    return h;
}

/* ---- rows */

void quant_row(void *dst, enum dtype t, const void *src, enum dtype from, int64_t n)
{
    const int64_t each = t == DT_Q8 ? QUANT_GROUP : QUANT_GROUP / 2, bytes = (int64_t)quant_row_bytes(t, n);
    uint16_t *scales = (uint16_t *)(void *)((char *)dst + quant_scales_at(t, n));
    struct nearest m;
    if (t == DT_Q4) nearest_init(&m);
    for (int64_t g = 0; g < quant_groups(n); g++) {
        const int64_t left = n - g * QUANT_GROUP;
        const char *at = (const char *)src + (size_t)(g * QUANT_GROUP) * dtype_bytes(from);
        float x[QUANT_GROUP] = { 0 };
        dtype_convert(x, DT_F32, at, from, left < QUANT_GROUP ? left : QUANT_GROUP);
        char *to = (char *)dst + g * each;
        scales[g] = t == DT_Q8 ? group8((int8_t *)to, x) : group4(&m, (uint8_t *)to, x);
    }
    char *end = (char *)(scales + quant_groups(n));
    memset(end, 0, (size_t)((char *)dst + bytes - end));
}

void dequant_row(float *dst, enum dtype t, const void *src, int64_t n)
{
    enum { HALF = QUANT_GROUP / 2 };
    const uint16_t *scales = scales_of(src, t, n);
    for (int64_t g = 0; g < quant_groups(n); g++) {
        const float s = f16_to_f32(scales[g]);
        const int64_t left = n - g * QUANT_GROUP < QUANT_GROUP ? n - g * QUANT_GROUP : QUANT_GROUP;
        float out[QUANT_GROUP];
        const int8_t *q = (const int8_t *)src + g * QUANT_GROUP;
        const uint8_t *c = (const uint8_t *)src + g * HALF;
        for (int i = 0; i < QUANT_GROUP && t == DT_Q8; i++) out[i] = s * q[i];
        for (int i = 0; i < HALF && t == DT_Q4; i++) {
            out[i] = s * quant_level[c[i] & 15];
            out[i + HALF] = s * quant_level[c[i] >> 4];
        }
        memcpy(dst + g * QUANT_GROUP, out, (size_t)left * sizeof *out);
    }
}

double quant_at(const void *row, enum dtype t, int64_t n, int64_t i)
{
    const double s = f16_to_f32(scales_of(row, t, n)[i / QUANT_GROUP]);
    if (t == DT_Q8) return s * ((const int8_t *)row)[i];
    const int64_t in = i % QUANT_GROUP, half = QUANT_GROUP / 2;
    const uint8_t c = ((const uint8_t *)row)[i / QUANT_GROUP * half + in % half];
    return s * quant_level[in < half ? c & 15 : c >> 4];
}
