/* Norms over the last dimension, and rotary positions. A row is summed in f32 by VW*4 sums side by side. */
#include <math.h>

#include "kern/cpu/math_impl.h"

static bool plain(struct tensor t) { return !t.p || t.type == DT_F32; }

INLINE vf load_some(const float *p, int64_t left) { return left >= VW ? vf_load(p) : vf_load_n(p, left); }
INLINE void store_some(float *p, vf v, int64_t left)
{
    if (left >= VW) vf_store(p, v);
    else vf_store_n(p, v, left);
}
INLINE float sum4(const vf s[4]) { return vf_sum(vf_add(vf_add(s[0], s[1]), vf_add(s[2], s[3]))); }

/* sum of x */
static float row_sum(const float *x, int64_t n)
{
    vf s[4] = { vf_zero(), vf_zero(), vf_zero(), vf_zero() };
    for (int64_t i = 0; i < n; i += 4 * VW)
        for (int j = 0; j < 4 && i + j * VW < n; j++)
            s[j] = vf_add(s[j], load_some(x + i + j * VW, n - i - j * VW));
    return sum4(s);
}

/* sum of (x - mean)^2 */
static float row_squares(const float *x, int64_t n, float mean)
{
    vf s[4] = { vf_zero(), vf_zero(), vf_zero(), vf_zero() }, m = vf_set(mean);
    for (int64_t i = 0; i < n; i += 4 * VW)
        for (int j = 0; j < 4 && i + j * VW < n; j++) {
            int64_t left = n - i - j * VW;
            vf d = vf_sub(load_some(x + i + j * VW, left), m);
            if (left < VW) {
                float t[VW];
                vf_store(t, d);
                d = vf_load_n(t, left); /* the lanes that were not there hold -mean */
            }
            s[j] = vf_fma(d, d, s[j]);
        }
    return sum4(s);
}

/* y = (x - mean) * rstd * w + b */
static void row_scale(float *y, const float *x, const float *w, const float *b, float mean, float rstd,
                      int64_t n)
{
    vf m = vf_set(mean), r = vf_set(rstd);
    for (int64_t i = 0; i < n; i += VW) {
        vf v = vf_mul(vf_mul(vf_sub(load_some(x + i, n - i), m), r), load_some(w + i, n - i));
        if (b) v = vf_add(v, load_some(b + i, n - i));
        store_some(y + i, v, n - i);
    }
}

static void rmsnorm_fwd(struct kctx *kc, struct tensor y, struct tensor rstd, struct tensor x,
                        struct tensor w, float eps)
{
    if (!plain(y) || !plain(x) || !plain(rstd)) {
        kern_ref.rmsnorm_fwd(kc, y, rstd, x, w, eps);
        return;
    }
    int64_t rows = tensor_rows(x), n = tensor_cols(x);
    size_t mark = arena_mark(kc->scratch);
    const float *wf = weight_f32(kc, w);
#pragma omp parallel for num_threads(cpu_threads(kc, rows *n)) schedule(static)
    for (int64_t t = 0; t < rows; t++) {
        const float *xt = (const float *)x.p + t * n;
        float r = 1 / sqrtf(row_squares(xt, n, 0) / (float)n + eps);
        row_scale((float *)y.p + t * n, xt, wf, NULL, 0, r, n);
        if (rstd.p) ((float *)rstd.p)[t] = r;
    }
    arena_rewind(kc->scratch, mark);
}

static void layernorm_fwd(struct kctx *kc, struct tensor y, struct tensor mean, struct tensor rstd,
                          struct tensor x, struct tensor w, struct tensor b, float eps)
{
    if (!plain(y) || !plain(x) || !plain(rstd) || !plain(mean)) {
        kern_ref.layernorm_fwd(kc, y, mean, rstd, x, w, b, eps);
        return;
    }
    int64_t rows = tensor_rows(x), n = tensor_cols(x);
    size_t mark = arena_mark(kc->scratch);
    const float *wf = weight_f32(kc, w), *bf = weight_f32(kc, b);
#pragma omp parallel for num_threads(cpu_threads(kc, rows *n)) schedule(static)
    for (int64_t t = 0; t < rows; t++) {
        const float *xt = (const float *)x.p + t * n;
        float m = row_sum(xt, n) / (float)n, r = 1 / sqrtf(row_squares(xt, n, m) / (float)n + eps);
        row_scale((float *)y.p + t * n, xt, wf, bf, m, r, n);
        if (mean.p) ((float *)mean.p)[t] = m;
        if (rstd.p) ((float *)rstd.p)[t] = r;
    }
    arena_rewind(kc->scratch, mark);
}

/* ---- backward. With g = w dy and h = (x - mean) rstd: dx += rstd (g - avg(g) - h avg(g h)); without a mean,
 * avg(g) is left out. */

static void row_dx(float *dx, const float *dy, const float *x, const float *w, const float *mean, float rstd,
                   int64_t n)
{
    vf sg = vf_zero(), sgh = vf_zero(), m = vf_set(mean ? *mean : 0), r = vf_set(rstd);
    for (int64_t i = 0; i < n; i += VW) {
        vf g = vf_mul(load_some(w + i, n - i), load_some(dy + i, n - i));
        vf h = vf_mul(vf_sub(load_some(x + i, n - i), m), r);
        sg = vf_add(sg, g);
        sgh = vf_fma(g, h, sgh);
    }
    vf ag = vf_set(mean ? vf_sum(sg) / (float)n : 0), agh = vf_set(vf_sum(sgh) / (float)n);
    for (int64_t i = 0; i < n; i += VW) {
        vf g = vf_mul(load_some(w + i, n - i), load_some(dy + i, n - i));
        vf h = vf_mul(vf_sub(load_some(x + i, n - i), m), r);
        vf d = vf_mul(r, vf_fnma(h, agh, vf_sub(g, ag)));
        store_some(dx + i, vf_add(load_some(dx + i, n - i), d), n - i);
    }
}

/* dw += sum over t of dy h, db += sum of dy, for VW columns from c; each sum runs over t in order. */
static void columns_dw(float *dw, float *db, const float *dy, const float *x, const float *mean,
                       const float *rstd, int64_t rows, int64_t n, int64_t c)
{
    vf sw = vf_zero(), sb = vf_zero();
    for (int64_t t = 0; t < rows; t++) {
        vf d = load_some(dy + t * n + c, n - c), v = load_some(x + t * n + c, n - c);
        if (mean) v = vf_sub(v, vf_set(mean[t]));
        sw = vf_fma(d, vf_mul(v, vf_set(rstd[t])), sw);
        sb = vf_add(sb, d);
    }
    if (dw) store_some(dw + c, vf_add(load_some(dw + c, n - c), sw), n - c);
    if (db) store_some(db + c, vf_add(load_some(db + c, n - c), sb), n - c);
}

static void norm_bwd(struct kctx *kc, struct tensor dx, struct tensor dw, struct tensor db, struct tensor dy,
                     struct tensor x, struct tensor w, const float *mean, const float *rstd)
{
    int64_t rows = tensor_rows(x), n = tensor_cols(x);
    size_t mark = arena_mark(kc->scratch);
    const float *wf = weight_f32(kc, w);
#pragma omp parallel num_threads(cpu_threads(kc, rows *n))
    {
#pragma omp for schedule(static) nowait
        for (int64_t t = 0; t < (dx.p ? rows : 0); t++)
            row_dx((float *)dx.p + t * n, (const float *)dy.p + t * n, (const float *)x.p + t * n, wf,
                   mean ? mean + t : NULL, rstd[t], n);
#pragma omp for schedule(static)
        for (int64_t c = 0; c < (dw.p || db.p ? n : 0); c += VW)
            columns_dw(dw.p, db.p, dy.p, x.p, mean, rstd, rows, n, c);
    }
    arena_rewind(kc->scratch, mark);
}

static void rmsnorm_bwd(struct kctx *kc, struct tensor dx, struct tensor dw, struct tensor dy,
                        struct tensor x, struct tensor w, struct tensor rstd)
{
    if (plain(dx) && plain(dw) && plain(dy) && plain(x) && plain(rstd))
        norm_bwd(kc, dx, dw, (struct tensor){ 0 }, dy, x, w, NULL, rstd.p);
    else kern_ref.rmsnorm_bwd(kc, dx, dw, dy, x, w, rstd);
}

static void layernorm_bwd(struct kctx *kc, struct tensor dx, struct tensor dw, struct tensor db,
                          struct tensor dy, struct tensor x, struct tensor w, struct tensor mean,
                          struct tensor rstd)
{
    if (plain(dx) && plain(dw) && plain(db) && plain(dy) && plain(x) && plain(mean) && plain(rstd))
        norm_bwd(kc, dx, dw, db, dy, x, w, mean.p, rstd.p);
    else kern_ref.layernorm_bwd(kc, dx, dw, db, dy, x, w, mean, rstd);
}

/* ---- rotary positions */

static void rotate(float *x, const float *c, const float *s, int64_t half, float dir)
{
    vf d = vf_set(dir);
    for (int64_t i = 0; i < half; i += VW) {
        int64_t left = half - i;
        vf cos = load_some(c + i, left), sin = vf_mul(load_some(s + i, left), d);
        vf a = load_some(x + i, left), b = load_some(x + half + i, left);
        store_some(x + i, vf_fnma(b, sin, vf_mul(a, cos)), left);
        store_some(x + half + i, vf_fma(a, sin, vf_mul(b, cos)), left);
    }
}

static void rope(struct kctx *kc, struct tensor x, struct tensor pos, struct tensor table, int dir)
{
    if (!plain(x) || !plain(table)) {
        kern_ref.rope(kc, x, pos, table, dir);
        return;
    }
    int64_t rows = tensor_rows(x), n = tensor_cols(x), dim = tensor_cols(table);
#pragma omp parallel for num_threads(cpu_threads(kc, rows *n)) schedule(static)
    for (int64_t t = 0; t < rows; t++) {
        const float *c = (const float *)table.p + ((const int32_t *)pos.p)[t] * dim;
        for (int64_t i = 0; i < n; i += dim)
            rotate((float *)x.p + t * n + i, c, c + dim / 2, dim / 2, (float)dir);
    }
}

void ISA(cpu_fill_norm)(struct kern *k)
{
    k->rmsnorm_fwd = rmsnorm_fwd;
    k->rmsnorm_bwd = rmsnorm_bwd;
    k->layernorm_fwd = layernorm_fwd;
    k->layernorm_bwd = layernorm_bwd;
    k->rope = rope;
}
