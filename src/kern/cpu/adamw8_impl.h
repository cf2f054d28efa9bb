/* AdamW with moments of 8 bits: the reference's arithmetic to the bit, in loops over a block of moments that the
 * compiler makes vectors of. No branch and no call is in them. */
#include <math.h>

#include "kern/code8.h"
#include "kern/cpu/isa.h"

/* The values of all codes, so that decoding is a look-up. */
struct codes { float m[256], v[256]; };

static void codes_make(struct codes *c)
{
    for (int i = 0; i < 256; i++) {
        c->m[i] = code8_value((uint8_t)i, true);
        c->v[i] = code8_value((uint8_t)i, false);
    }
}

/* code8_of without its loop: the decade by comparisons, the bins of a decade by a shift. */
INLINE int code_of(float x, bool is_signed)
{
    const float a = fabsf(x), top = 0.5f * (1 + code8_middle(6, is_signed ? 63 : 127, is_signed ? 64 : 128));
    const float least = 0.5f * code8_middle(0, 0, is_signed ? 1 : 2);
    const int e = (a > 1e-6f) + (a > 1e-5f) + (a > 1e-4f) + (a > 1e-3f) + (a > 1e-2f) + (a > 1e-1f);
    const float decade = a > 1e-1f ? 1.0f : a > 1e-2f ? 1e-1f : a > 1e-3f ? 1e-2f : a > 1e-4f ? 1e-3f
                       : a > 1e-5f ? 1e-4f : a > 1e-6f ? 1e-5f : 1e-6f;
    const int n = (is_signed ? 1 : 2) << e;
    const float at = (a / decade - 0.1f) / 0.9f * (float)n;
    int j = (int)(at > 0 ? at : 0); /* a NaN too */
    j = j < n ? j : n - 1;
    int code = is_signed ? n + j : n + j - 1;
    code = a > least ? code : 0;
    code |= is_signed && code && x < 0 ? 0x80 : 0;
    return x > top ? (is_signed ? 0x80 : 0xff) : code;
}

INLINE float block_codes(uint8_t *code, const float *x, int n, bool is_signed)
{
    float most = 0;
    int32_t wide[KERN_BLOCK8];
#pragma omp simd reduction(max : most)
    for (int i = 0; i < n; i++) most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    const float inverse = most > 0 ? 1 / most : 0;
#pragma omp simd
    for (int i = 0; i < n; i++) wide[i] = code_of(x[i] * inverse, is_signed);
    for (int i = 0; i < n; i++) code[i] = (uint8_t)wide[i];
    return most;
}

/* x: the weights as f32, in place. */
static void block_step(float *x, uint8_t *m, float *ms, uint8_t *v, float *vs, const float *g, int n,
                       const struct adamw *a, const struct codes *c)
{
    float m1[KERN_BLOCK8], v1[KERN_BLOCK8], md[KERN_BLOCK8], vd[KERN_BLOCK8];
    for (int i = 0; i < n; i++) md[i] = c->m[m[i]], vd[i] = c->v[v[i]];
#pragma omp simd
    for (int i = 0; i < n; i++) {
        const float d = g[i] * a->scale;
        m1[i] = a->beta1 * *ms * md[i] + (1 - a->beta1) * d;
        v1[i] = a->beta2 * *vs * vd[i] + (1 - a->beta2) * d * d;
        const float step = a->lr / a->fix1 * m1[i] / (sqrtf(v1[i] / a->fix2) + a->eps);
        x[i] = x[i] * (1 - a->lr * a->decay) - step;
    }
    *ms = block_codes(m, m1, n, true);
    *vs = block_codes(v, v1, n, false);
}

static void adamw8(struct kctx *kc, struct tensor w, struct tensor m, struct tensor ms, struct tensor v,
                   struct tensor vs, struct tensor g, const struct adamw *a)
{
    const int64_t n = tensor_count(w);
    if (g.type != DT_F32 || (w.type != DT_F32 && w.type != DT_BF16)) {
        kern_ref.adamw8(kc, w, m, ms, v, vs, g, a);
        return;
    }
    struct codes c;
    codes_make(&c);
#pragma omp parallel for num_threads(cpu_threads(kc, 8 * n)) schedule(static)
    for (int64_t b = 0; b < n; b += KERN_BLOCK8) {
        const int k = (int)(n - b < KERN_BLOCK8 ? n - b : KERN_BLOCK8);
        const int64_t block = b / KERN_BLOCK8;
        uint16_t *low = w.type == DT_BF16 ? (uint16_t *)w.p + b : NULL;
        float wide[KERN_BLOCK8], *x = low ? wide : (float *)w.p + b;
        if (low) span_to_f32(x, low, DT_BF16, k);
        block_step(x, (uint8_t *)m.p + b, (float *)ms.p + block, (uint8_t *)v.p + b, (float *)vs.p + block,
                   (const float *)g.p + b, k, a, &c);
        for (int i = 0; low && i < k; i++) low[i] = kern_bf16_random(x[i], kern_drop_hash(a->key, (uint32_t)(b + i)));
    }
}

void ISA(cpu_fill_adamw8)(struct kern *k) { k->adamw8 = adamw8; }
