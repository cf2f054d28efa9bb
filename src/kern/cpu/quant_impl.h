/* Products with quantised weights: x is rounded to int8 by groups (kctx.product permits it), so that a group of 64
 * is a sum of integers, scaled once. Decode (kctx says so) is computed here, the rest in
 * quant_gemm_impl.h.
 *
 * A row of w is read in chunks of VW groups, whose scales are one vector. Rows lie ROWS streams apart, as in
 * gemv_impl.h and for its reason. Weights are made unsigned where the instruction wants that, by an offset that is
 * taken off again through the sums of x. A sum's order depends on I and, for the few tokens
 * here, on nothing else.
 */
#include <math.h>

#include "kern/cpu/quant.h"

enum {
    ROWS = 4,
    TOKENS = 4,
    AHEAD = 4096,      /* bytes that a row is asked for in advance: scales come between, which hides what comes next */
    PARTS = 4,         /* of the outputs for each thread */
    EXACT_ROWS = 256,  /* outputs at a time where w becomes f32 */
};

/* ---- x */

/* A group: q, its sum; returns the scale. */
INLINE float round_group(int8_t *q, int32_t *sum, const float *x)
{
    vf v[QUANT_GROUP / VW], top = vf_zero(), fault = vf_zero();
    for (int i = 0; i < QUANT_GROUP / VW; i++) {
        v[i] = vf_load(x + i * VW);
        top = vf_max(vf_abs(v[i]), top);
        fault = vf_fma(v[i], vf_zero(), fault); /* NaN from NaN and from infinity */
    }
    const float most = vf_hmax(top), inverse = most > 0x1p-120f ? 127 / most : 0;
    int32_t total = 0, n[QUANT_GROUP];
    for (int i = 0; i < QUANT_GROUP / VW; i++) {
        float t[VW];
        vf_store(t, vf_round(vf_mul(v[i], vf_set(inverse))));
        for (int j = 0; j < VW; j++) n[i * VW + j] = (int32_t)t[j];
    }
    for (int i = 0; i < QUANT_GROUP; i++) {
        q[i] = (int8_t)n[i];
        total += q[i]; /* within bounds whatever a NaN became */
    }
    *sum = total;
    return (inverse != 0 ? most / 127 : 0) + vf_sum(fault);
}

struct xq ISA(cpu_xq)(struct kctx *kc, const float *x, int64_t tokens, int64_t in)
{
    const int64_t whole = quant_groups(in), groups = (whole + VW - 1) / VW * VW;
    const size_t n = (size_t)(tokens * groups);
    struct xq r = { arena_take(kc->scratch, n * QUANT_GROUP), arena_take(kc->scratch, n * sizeof(float)),
                    arena_take(kc->scratch, n * sizeof(int32_t)), groups };
#pragma omp parallel for num_threads(cpu_threads(kc, tokens *in)) schedule(static)
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t g = 0; g < groups; g++) {
            const int64_t left = in - g * QUANT_GROUP, at = t * groups + g;
            const float *from = x + t * in + g * QUANT_GROUP;
            float rest[QUANT_GROUP] = { 0 };
            if (left > 0 && left < QUANT_GROUP) memcpy(rest, from, (size_t)left * sizeof *from);
            r.scale[at] = round_group(r.q + at * QUANT_GROUP, r.sum + at, left < QUANT_GROUP ? rest : from);
        }
    return r;
}

/* ---- one row by one to TOKENS tokens */

/* What is multiplied at once: UNIT groups in N_VEC vectors. */
#ifdef __AVX512F__
#define UNIT(t) ((t) == DT_Q4 ? 2 : 1)
#define OFFSET(t) ((t) == DT_Q4 ? QUANT4_ZERO : 128)
#else
#define UNIT(t) 1
#define OFFSET(t) ((t) == DT_Q4 ? QUANT4_ZERO : 0)
#endif

/* A row's x as the units want it. */
struct xrow {
    const int8_t *q;      /* Q4 in 64-byte vectors: two groups' first halves, then their second halves */
    const uint8_t *mag;   /* |q| (AVX2, Q8) */
    const float *scale;   /* [groups] */
    const float *offset;  /* [groups] OFFSET * scale * sum */
};

struct gemv {
    struct cpu_quant p;
    struct xrow *x; /* [tokens] */
    int64_t groups; /* of a row of w */
    size_t row_bytes;
};

#ifdef __AVX512F__

INLINE void unit_load(vi w[2], const char *p, enum dtype t, bool half)
{
    if (t == DT_Q8) {
        w[0] = _mm512_xor_si512(vi_load(p), _mm512_set1_epi8((char)0x80));
        return;
    }
    const vi v = half ? _mm512_maskz_loadu_epi64(0x0f, p) : vi_load(p), table = vi_table(quant_unsigned);
    w[0] = vi_lookup(table, vi_low4(v));
    w[1] = vi_lookup(table, vi_high4(v));
}

INLINE vi unit_dot(const vi w[2], const struct xrow *x, int64_t at, enum dtype t)
{
    vi sum = _mm512_dpbusd_epi32(vi_set(0), w[0], vi_load(x->q + at));
    return t == DT_Q8 ? sum : _mm512_dpbusd_epi32(sum, w[1], vi_load(x->q + at + 64));
}

INLINE vf unit_scale(const float *s, enum dtype t)
{
    const vf a = vf_set(s[0]);
    return t == DT_Q8 ? a : _mm512_mask_blend_ps(0xff00, a, vf_set(s[1]));
}

#else

INLINE void unit_load(vi w[2], const char *p, enum dtype t, bool half)
{
    (void)half;
    if (t == DT_Q8) {
        w[0] = vi_load(p);
        w[1] = vi_load(p + 32);
        return;
    }
    const vi v = vi_load(p), table = vi_table(quant_unsigned);
    w[0] = vi_lookup(table, vi_low4(v));
    w[1] = vi_lookup(table, vi_high4(v));
}

/* Q4's four products fit 16 bits; Q8's two do, as magnitude times signed. */
INLINE vi unit_dot(const vi w[2], const struct xrow *x, int64_t at, enum dtype t)
{
    const vi x0 = vi_load(x->q + at), x1 = vi_load(x->q + at + 32), one = _mm256_set1_epi16(1);
    if (t == DT_Q4) {
        const vi a = _mm256_maddubs_epi16(w[0], x0), b = _mm256_maddubs_epi16(w[1], x1);
        return _mm256_madd_epi16(_mm256_add_epi16(a, b), one);
    }
    const vi a = _mm256_maddubs_epi16(vi_load(x->mag + at), _mm256_sign_epi8(w[0], x0));
    const vi b = _mm256_maddubs_epi16(vi_load(x->mag + at + 32), _mm256_sign_epi8(w[1], x1));
    return _mm256_add_epi32(_mm256_madd_epi16(a, one), _mm256_madd_epi16(b, one));
}

INLINE vf unit_scale(const float *s, enum dtype t)
{
    (void)t;
    return vf_set(s[0]);
}

#endif

/* acc[r][j] += n <= VW groups from group g of `rows` rows `step` bytes apart times those of `tokens` tokens. */
INLINE void chunk(vf acc[ROWS][TOKENS], const char *w, size_t step, int64_t scales_at, const struct xrow *x,
                  enum dtype t, int rows, int tokens, int64_t g, int64_t n)
{
    const int64_t bytes = t == DT_Q8 ? QUANT_GROUP : QUANT_GROUP / 2;
    float s[ROWS][TOKENS][VW];
    for (int r = 0; r < rows; r++) {
        const uint16_t *ws = (const uint16_t *)(const void *)(w + (size_t)r * step + scales_at) + g;
        const vf sw = n == VW ? vf_load_f16(ws) : vf_load_f16_n(ws, n);
        for (int j = 0; j < tokens; j++) {
            vf_store(s[r][j], vf_mul(sw, vf_load(x[j].scale + g)));
            if (OFFSET(t)) acc[r][j] = vf_fnma(sw, vf_load(x[j].offset + g), acc[r][j]);
        }
    }
    w += g * bytes;
    for (int64_t u = 0; u < n; u += UNIT(t))
        for (int r = 0; r < rows; r++) {
            vi v[2];
            _mm_prefetch(w + (size_t)r * step + u * bytes + AHEAD, _MM_HINT_T0);
            unit_load(v, w + (size_t)r * step + u * bytes, t, UNIT(t) == 2 && u + 1 == n);
            for (int j = 0; j < tokens; j++) {
                const vi d = unit_dot(v, x + j, (g + u) * QUANT_GROUP, t);
                acc[r][j] = vf_fma(vf_from_int(d), unit_scale(s[r][j] + u, t), acc[r][j]);
            }
        }
}

/* `rows` outputs from o, `apart` outputs apart, for `tokens` tokens from t0; counts and type are constants. */
INLINE void dots(const struct gemv *g, enum dtype t, int rows, int tokens, int64_t o, int64_t apart, int64_t t0)
{
    const struct cpu_quant *p = &g->p;
    const char *w = (const char *)p->w.p + (size_t)o * g->row_bytes;
    const size_t step = (size_t)apart * g->row_bytes;
    const int64_t at = quant_scales_at(t, p->in);
    const struct xrow *x = g->x + t0;
    vf acc[ROWS][TOKENS];
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < tokens; j++) acc[r][j] = vf_zero();
    int64_t i = 0;
    for (; i + VW <= g->groups; i += VW) chunk(acc, w, step, at, x, t, rows, tokens, i, VW);
    if (i < g->groups) chunk(acc, w, step, at, x, t, rows, tokens, i, g->groups - i);
    for (int j = 0; j < tokens; j++)
        for (int r = 0; r < rows; r++) {
            const int64_t out = o + r * apart, to = (t0 + j) * p->out + out;
            float v = vf_sum(acc[r][j]);
            if (p->bias) v += p->bias[out];
            p->y[to] = p->res ? v + p->res[to] : v;
        }
}

INLINE void all_tokens(const struct gemv *g, enum dtype t, int rows, int64_t o, int64_t apart)
{
    int64_t i = 0;
    for (; i + TOKENS <= g->p.tokens; i += TOKENS) dots(g, t, rows, TOKENS, o, apart, i);
    switch (g->p.tokens - i) {
    case 1: dots(g, t, rows, 1, o, apart, i); break;
    case 2: dots(g, t, rows, 2, o, apart, i); break;
    case 3: dots(g, t, rows, 3, o, apart, i); break;
    }
}

INLINE void outputs(const struct gemv *g, enum dtype t, int64_t from, int64_t to)
{
    const int64_t n = (to - from) / ROWS;
    int64_t o = from;
    for (; o < from + n; o++) all_tokens(g, t, ROWS, o, n);
    for (o = from + ROWS * n; o < to; o++) all_tokens(g, t, 1, o, 1);
}

/* Token t's x as units read it. */
static void x_make(struct kctx *kc, struct gemv *g, int64_t t)
{
    const struct xq *x = &g->p.x;
    const enum dtype type = (enum dtype)g->p.w.type;
    const int64_t n = x->groups * QUANT_GROUP;
    const int8_t *q = x->q + t * n;
    float *offset = arena_take(kc->scratch, (size_t)x->groups * sizeof *offset);
    for (int64_t i = 0; i < x->groups; i++)
        offset[i] = OFFSET(type) * x->scale[t * x->groups + i] * (float)x->sum[t * x->groups + i];
    g->x[t] = (struct xrow){ q, NULL, x->scale + t * x->groups, offset };
    if (UNIT(type) == 2) {
        int8_t *to = arena_take(kc->scratch, (size_t)n);
        g->x[t].q = to;
        for (int64_t i = 0; i < n; i += 128)
            for (int64_t k = 0; k < 4; k++) memcpy(to + i + 32 * (k / 2 + k % 2 * 2), q + i + 32 * k, 32);
    }
    if (OFFSET(type) == 0) {
        uint8_t *mag = arena_take(kc->scratch, (size_t)n);
        g->x[t].mag = mag;
        for (int64_t i = 0; i < n; i++) mag[i] = (uint8_t)(q[i] < 0 ? -q[i] : q[i]);
    }
}

static void few_tokens(struct kctx *kc, const struct cpu_quant *p)
{
    struct gemv g = { *p, arena_take(kc->scratch, (size_t)p->tokens * sizeof(struct xrow)), quant_groups(p->in),
                      quant_row_bytes((enum dtype)p->w.type, p->in) };
    for (int64_t t = 0; t < p->tokens; t++) x_make(kc, &g, t);
    const int n_threads = cpu_threads(kc, p->in * p->out / 4 * p->tokens);
    const int64_t parts = n_threads > 1 ? PARTS * n_threads : 1, part = (p->out + parts - 1) / parts;
#pragma omp parallel for num_threads(n_threads) schedule(dynamic)
    for (int64_t o = 0; o < p->out; o += part) {
        const int64_t end = o + part < p->out ? o + part : p->out;
        if (p->w.type == DT_Q8) outputs(&g, DT_Q8, o, end);
        else outputs(&g, DT_Q4, o, end);
    }
}

/* ---- without rounding x: w becomes f32, EXACT_ROWS outputs at a time */

static void rows_to_f32(struct kctx *kc, struct tensor w, int64_t o, int64_t n, float *to)
{
#pragma omp parallel for num_threads(cpu_threads(kc, n *w.n[1])) schedule(static)
    for (int64_t i = 0; i < n; i++)
        dequant_row(to + i * w.n[1], (enum dtype)w.type, tensor_row(w, o + i), w.n[1]);
}

static void exact(struct kctx *kc, float *y, const float *x, int64_t tokens, struct tensor w, const float *bias,
                  const float *res)
{
    const int64_t in = w.n[1], out = w.n[0];
    float *rows = arena_take(kc->scratch, (size_t)(EXACT_ROWS * in) * sizeof *rows);
    for (int64_t o = 0; o < out; o += EXACT_ROWS) {
        const int64_t n = out - o < EXACT_ROWS ? out - o : EXACT_ROWS;
        rows_to_f32(kc, w, o, n, rows);
        struct cpu_gemm g = { tokens, n, in, { x, DT_F32, in, false }, { rows, DT_F32, in, false }, y + o,
                              bias ? bias + o : NULL, res ? res + o : NULL, false, out };
        ISA(cpu_gemm)(kc, &g);
    }
}

void ISA(cpu_quant_matmul)(struct kctx *kc, struct tensor y, struct tensor x, struct tensor w, struct tensor b,
                           struct tensor res)
{
    const int64_t tokens = tensor_rows(x), in = tensor_cols(x), out = w.n[0];
    const size_t mark = arena_mark(kc->scratch);
    const float *bias = weight_f32(kc, b);
    if (kc->product != DT_Q8) {
        exact(kc, y.p, x.p, tokens, w, bias, res.p);
    } else {
        struct cpu_quant p = { w, ISA(cpu_xq)(kc, x.p, tokens, in), y.p, bias, res.p, tokens, in, out };
        if (!kc->decode) ISA(cpu_quant_gemm)(kc, &p);
        else few_tokens(kc, &p);
    }
    arena_rewind(kc->scratch, mark);
}

/* dx += dy w: w in f32, EXACT_ROWS of its rows at a time. */
void ISA(cpu_quant_matmul_dx)(struct kctx *kc, struct tensor dx, struct tensor dy, struct tensor w)
{
    const int64_t tokens = tensor_rows(dy), in = w.n[1], out = w.n[0];
    const size_t mark = arena_mark(kc->scratch);
    float *rows = arena_take(kc->scratch, (size_t)(EXACT_ROWS * in) * sizeof *rows);
    for (int64_t o = 0; o < out; o += EXACT_ROWS) {
        const int64_t n = out - o < EXACT_ROWS ? out - o : EXACT_ROWS;
        rows_to_f32(kc, w, o, n, rows);
        struct cpu_gemm g = { tokens, in, n, { (const float *)dy.p + o, DT_F32, out, false },
                              { rows, DT_F32, in, true }, dx.p, NULL, dx.p, false, 0 };
        ISA(cpu_gemm)(kc, &g);
    }
    arena_rewind(kc->scratch, mark);
}
