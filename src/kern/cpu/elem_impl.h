/* Kernels that work element by element, and rows by index. Tensors of f32 (and, for casts and rows, f16 and
 * bf16); other types are the reference's. */
#include "kern/cpu/math_impl.h"

/* ---- y = f(a, b, c), or y += f(a, b, c) */

struct map {
    float *y;
    const float *x[3]; /* NULL: that argument is `fixed` */
    float fixed;
};
typedef vf (*body)(vf a, vf b, vf c);
typedef void (*range)(const struct map *, int64_t from, int64_t n);

INLINE void map_range(const struct map *m, int64_t from, int64_t n, body f, bool plus)
{
    for (int64_t i = from; i < from + n; i += VW) {
        int64_t left = from + n - i;
        vf v[3];
        for (int k = 0; k < 3; k++)
            v[k] = !m->x[k]     ? vf_set(m->fixed)
                   : left >= VW ? vf_load(m->x[k] + i)
                                : vf_load_n(m->x[k] + i, left);
        vf y = f(v[0], v[1], v[2]);
        if (plus) y = vf_add(left >= VW ? vf_load(m->y + i) : vf_load_n(m->y + i, left), y);
        if (left >= VW) vf_store(m->y + i, y);
        else vf_store_n(m->y + i, y, left);
    }
}

static void map_run(const struct kctx *kc, range r, struct map m, int64_t n)
{
    enum { CHUNK = 1 << 13 };
#pragma omp parallel for num_threads(cpu_threads(kc, n)) schedule(static)
    for (int64_t i = 0; i < n; i += CHUNK) r(&m, i, n - i < CHUNK ? n - i : CHUNK);
}

static bool all_f32(struct tensor a, struct tensor b, struct tensor c)
{
    return (!a.p || a.type == DT_F32) && (!b.p || b.type == DT_F32) && (!c.p || c.type == DT_F32);
}
static const struct tensor none = { 0 };

INLINE vf silu_times(vf g, vf u, vf c)
{
    (void)c;
    return vf_mul(vf_mul(g, vf_sigmoid(g)), u);
}
/* d(silu(g) u)/dg = u s (1 + g (1 - s)) */
INLINE vf silu_slope(vf dy, vf g, vf u)
{
    vf rest, s = vf_sigmoid_and(g, &rest);
    return vf_mul(vf_mul(dy, u), vf_mul(s, vf_fma(g, rest, vf_set(1))));
}
INLINE vf gelu(vf x, vf b, vf c)
{
    vf pdf;
    (void)b, (void)c;
    return vf_mul(x, vf_normal(x, &pdf));
}
INLINE vf gelu_slope(vf dy, vf x, vf c)
{
    vf pdf, cdf = vf_normal(x, &pdf);
    (void)c;
    return vf_mul(dy, vf_fma(x, pdf, cdf));
}
INLINE vf quick_gelu(vf x, vf b, vf c)
{
    (void)b, (void)c;
    return vf_mul(x, vf_sigmoid(vf_mul(vf_set(1.702f), x)));
}
INLINE vf quick_gelu_slope(vf dy, vf x, vf c)
{
    vf z = vf_mul(vf_set(1.702f), x), rest, s = vf_sigmoid_and(z, &rest);
    (void)c;
    return vf_mul(dy, vf_mul(s, vf_fma(z, rest, vf_set(1))));
}
INLINE vf sum(vf a, vf b, vf c)
{
    (void)c;
    return vf_add(a, b);
}
INLINE vf product(vf a, vf b, vf c)
{
    (void)c;
    return vf_mul(a, b);
}

static void silu_times_range(const struct map *m, int64_t i, int64_t n)
{
    map_range(m, i, n, silu_times, false);
}
static void silu_times_plus(const struct map *m, int64_t i, int64_t n)
{
    map_range(m, i, n, silu_times, true);
}
static void silu_slope_plus(const struct map *m, int64_t i, int64_t n)
{
    map_range(m, i, n, silu_slope, true);
}
static void gelu_range(const struct map *m, int64_t i, int64_t n) { map_range(m, i, n, gelu, false); }
static void gelu_slope_plus(const struct map *m, int64_t i, int64_t n)
{
    map_range(m, i, n, gelu_slope, true);
}
static void quick_gelu_range(const struct map *m, int64_t i, int64_t n)
{
    map_range(m, i, n, quick_gelu, false);
}
static void quick_gelu_slope_plus(const struct map *m, int64_t i, int64_t n)
{
    map_range(m, i, n, quick_gelu_slope, true);
}
static void sum_range(const struct map *m, int64_t i, int64_t n) { map_range(m, i, n, sum, false); }
static void product_plus(const struct map *m, int64_t i, int64_t n) { map_range(m, i, n, product, true); }

static void swiglu_fwd(struct kctx *kc, struct tensor y, struct tensor g, struct tensor u)
{
    if (all_f32(y, g, u))
        map_run(kc, silu_times_range, (struct map){ y.p, { g.p, u.p }, 0 }, tensor_count(y));
    else kern_ref.swiglu_fwd(kc, y, g, u);
}

static void swiglu_bwd(struct kctx *kc, struct tensor dg, struct tensor du, struct tensor dy, struct tensor g,
                       struct tensor u)
{
    if (!all_f32(dg, du, dy) || !all_f32(g, u, none)) {
        kern_ref.swiglu_bwd(kc, dg, du, dy, g, u);
        return;
    }
    if (dg.p) map_run(kc, silu_slope_plus, (struct map){ dg.p, { dy.p, g.p, u.p }, 0 }, tensor_count(dy));
    if (du.p) map_run(kc, silu_times_plus, (struct map){ du.p, { g.p, dy.p }, 0 }, tensor_count(dy));
}

static void gelu_fwd(struct kctx *kc, struct tensor y, struct tensor x)
{
    if (all_f32(y, x, none)) map_run(kc, gelu_range, (struct map){ y.p, { x.p }, 0 }, tensor_count(y));
    else kern_ref.gelu_fwd(kc, y, x);
}

static void gelu_bwd(struct kctx *kc, struct tensor dx, struct tensor dy, struct tensor x)
{
    if (!all_f32(dx, dy, x)) kern_ref.gelu_bwd(kc, dx, dy, x);
    else if (dx.p) map_run(kc, gelu_slope_plus, (struct map){ dx.p, { dy.p, x.p }, 0 }, tensor_count(dx));
}

static void quick_gelu_fwd(struct kctx *kc, struct tensor y, struct tensor x)
{
    if (all_f32(y, x, none)) map_run(kc, quick_gelu_range, (struct map){ y.p, { x.p }, 0 }, tensor_count(y));
    else kern_ref.quick_gelu_fwd(kc, y, x);
}

static void quick_gelu_bwd(struct kctx *kc, struct tensor dx, struct tensor dy, struct tensor x)
{
    if (!all_f32(dx, dy, x)) kern_ref.quick_gelu_bwd(kc, dx, dy, x);
    else if (dx.p)
        map_run(kc, quick_gelu_slope_plus, (struct map){ dx.p, { dy.p, x.p }, 0 }, tensor_count(dx));
}

static void add(struct kctx *kc, struct tensor y, struct tensor a, struct tensor b)
{
    if (all_f32(y, a, b)) map_run(kc, sum_range, (struct map){ y.p, { a.p, b.p }, 0 }, tensor_count(y));
    else kern_ref.add(kc, y, a, b);
}

static void axpy(struct kctx *kc, struct tensor y, struct tensor x, float a)
{
    if (!all_f32(y, x, none)) kern_ref.axpy(kc, y, x, a);
    else if (y.p) map_run(kc, product_plus, (struct map){ y.p, { x.p }, a }, tensor_count(y));
}

/* ---- types and rows */

static bool castable(struct tensor t) { return t.type == DT_F32 || t.type == DT_F16 || t.type == DT_BF16; }

static void span_cast(void *dst, enum dtype to, const void *src, enum dtype from, int64_t n)
{
    size_t d_size = dtype_bytes(to), s_size = dtype_bytes(from);
    if (to == from) {
        memcpy(dst, src, (size_t)n * d_size);
        return;
    }
    char *d = dst;
    const char *s = src;
    int64_t i = 0;
    for (; i + VW <= n; i += VW, d += VW * d_size, s += VW * s_size) vf_store_as(d, to, vf_load_as(s, from));
    if (i < n) vf_store_as_n(d, to, vf_load_as_n(s, from, n - i), n - i);
}

static char *row(struct tensor t, int64_t i)
{
    return (char *)t.p + (size_t)(i * tensor_cols(t)) * dtype_bytes((enum dtype)t.type);
}

static void cast(struct kctx *kc, struct tensor y, struct tensor x)
{
    enum { CHUNK = 1 << 13 };
    int64_t n = tensor_count(y);
    if (!castable(y) || !castable(x) || y.p == x.p) {
        kern_ref.cast(kc, y, x);
        return;
    }
    enum dtype to = (enum dtype)y.type, from = (enum dtype)x.type;
#pragma omp parallel for num_threads(cpu_threads(kc, n)) schedule(static)
    for (int64_t i = 0; i < n; i += CHUNK)
        span_cast((char *)y.p + (size_t)i * dtype_bytes(to), to,
                  (const char *)x.p + (size_t)i * dtype_bytes(from), from, n - i < CHUNK ? n - i : CHUNK);
}

static void rows_get(struct kctx *kc, struct tensor y, struct tensor x, struct tensor idx)
{
    const int32_t *at = idx.p;
    if (!castable(y) || !castable(x)) {
        kern_ref.rows_get(kc, y, x, idx);
        return;
    }
#pragma omp parallel for num_threads(cpu_threads(kc, tensor_count(y))) schedule(static)
    for (int64_t i = 0; i < tensor_count(idx); i++)
        if (at[i] < 0) memset(row(y, i), 0, (size_t)tensor_cols(y) * dtype_bytes((enum dtype)y.type));
        else span_cast(row(y, i), (enum dtype)y.type, row(x, at[i]), (enum dtype)x.type, tensor_cols(y));
}

static void rows_put(struct kctx *kc, struct tensor y, struct tensor idx, struct tensor x)
{
    const int32_t *at = idx.p;
    if (!castable(y) || !castable(x)) {
        kern_ref.rows_put(kc, y, idx, x);
        return;
    }
#pragma omp parallel for num_threads(cpu_threads(kc, tensor_count(x))) schedule(static)
    for (int64_t i = 0; i < tensor_count(idx); i++)
        if (at[i] >= 0)
            span_cast(row(y, at[i]), (enum dtype)y.type, row(x, i), (enum dtype)x.type, tensor_cols(x));
}

static void rows_get_add(struct kctx *kc, struct tensor y, struct tensor x, struct tensor idx)
{
    const int32_t *at = idx.p;
    if (!all_f32(y, x, none)) {
        kern_ref.rows_get_add(kc, y, x, idx);
        return;
    }
    int64_t cols = tensor_cols(x);
#pragma omp parallel for num_threads(cpu_threads(kc, tensor_count(x))) schedule(static)
    for (int64_t i = 0; i < (y.p ? tensor_count(idx) : 0); i++) {
        struct map m = { (float *)y.p + i * cols,
                         { (float *)y.p + i * cols, (const float *)x.p + at[i] * cols },
                         0 };
        if (at[i] >= 0) sum_range(&m, 0, cols);
    }
}

/* In one thread: indices may repeat, and are added in order. */
static void rows_put_add(struct kctx *kc, struct tensor y, struct tensor idx, struct tensor x)
{
    const int32_t *at = idx.p;
    if (!all_f32(y, x, none)) {
        kern_ref.rows_put_add(kc, y, idx, x);
        return;
    }
    int64_t cols = tensor_cols(x);
    for (int64_t i = 0; i < (y.p ? tensor_count(idx) : 0); i++) {
        if (at[i] < 0) continue;
        float *to = (float *)y.p + at[i] * cols;
        sum_range(&(struct map){ to, { to, (const float *)x.p + i * cols }, 0 }, 0, cols);
    }
}

/* ---- training */

/* n elements from index `first` on, an even one; hashes first, so that all loops become vector code. */
static void drop_range(float *to, const float *from, int n, uint32_t first, uint64_t key, uint32_t below, float kept)
{
    enum { SOME = 256 };
    uint32_t hash[SOME / 2];
    uint16_t half[SOME];
    for (int i = 0; i < n; i += SOME) {
        const int many = n - i < SOME ? n - i : SOME;
        for (int j = 0; j < SOME / 2; j++) hash[j] = kern_drop_hash(key, first / 2 + (uint32_t)(i / 2 + j));
        for (int j = 0; j < SOME / 2; j++) half[2 * j] = (uint16_t)hash[j], half[2 * j + 1] = (uint16_t)(hash[j] >> 16);
        for (int j = 0; j < many; j++) to[i + j] = half[j] < below ? 0 : from[i + j] * kept;
    }
}

static void dropout(struct kctx *kc, struct tensor y, struct tensor x, float p, uint64_t key)
{
    enum { CHUNK = 1 << 13 };
    if (!all_f32(y, x, none)) {
        kern_ref.dropout(kc, y, x, p, key);
        return;
    }
    const int64_t n = tensor_count(x);
    const uint32_t below = kern_drop_below(p);
    const float kept = 1 / (1 - p);
#pragma omp parallel for num_threads(cpu_threads(kc, 4 * n)) schedule(static)
    for (int64_t c = 0; c < n; c += CHUNK)
        drop_range((float *)y.p + c, (const float *)x.p + c, (int)(n - c < CHUNK ? n - c : CHUNK), (uint32_t)c, key,
                   below, kept);
}

static void dropout_bwd(struct kctx *kc, struct tensor dx, struct tensor dy, float p, uint64_t key)
{
    enum { CHUNK = 1 << 10 };
    if (!all_f32(dx, dy, none)) {
        kern_ref.dropout_bwd(kc, dx, dy, p, key);
        return;
    }
    const int64_t n = tensor_count(dx);
    const uint32_t below = kern_drop_below(p);
    const float kept = 1 / (1 - p);
#pragma omp parallel for num_threads(cpu_threads(kc, 4 * n)) schedule(static)
    for (int64_t c = 0; c < n; c += CHUNK) {
        float part[CHUNK], *to = (float *)dx.p + c;
        const int many = (int)(n - c < CHUNK ? n - c : CHUNK);
        drop_range(part, (const float *)dy.p + c, many, (uint32_t)c, key, below, kept);
        for (int i = 0; i < many; i++) to[i] += part[i];
    }
}

/* Chunks have a sum of their own; these are added in order. */
static void sumsq(struct kctx *kc, struct tensor y, struct tensor x)
{
    enum { CHUNK = 1 << 12 };
    if (!all_f32(y, x, none)) {
        kern_ref.sumsq(kc, y, x);
        return;
    }
    const int64_t n = tensor_count(x), chunks = (n + CHUNK - 1) / CHUNK;
    const size_t mark = arena_mark(kc->scratch);
    float *part = arena_take(kc->scratch, (size_t)chunks * sizeof *part);
#pragma omp parallel for num_threads(cpu_threads(kc, n)) schedule(static)
    for (int64_t c = 0; c < chunks; c++) {
        vf s[2] = { vf_zero(), vf_zero() };
        const float *p = (const float *)x.p + c * CHUNK;
        const int64_t left = n - c * CHUNK < CHUNK ? n - c * CHUNK : CHUNK;
        for (int64_t i = 0; i < left; i += VW) {
            const vf v = left - i >= VW ? vf_load(p + i) : vf_load_n(p + i, left - i);
            s[i / VW % 2] = vf_fma(v, v, s[i / VW % 2]);
        }
        part[c] = vf_sum(vf_add(s[0], s[1]));
    }
    double sum = 0;
    for (int64_t c = 0; c < chunks; c++) sum += (double)part[c];
    *(float *)y.p = (float)sum;
    arena_rewind(kc->scratch, mark);
}

/* VW elements, or the first n: w, m and v in place; the new w. */
INLINE vf adamw_some(float *w, float *m, float *v, const float *g, const struct adamw *a, int64_t n)
{
    const vf d = vf_mul(n < VW ? vf_load_n(g, n) : vf_load(g), vf_set(a->scale));
    vf m1 = n < VW ? vf_load_n(m, n) : vf_load(m), v1 = n < VW ? vf_load_n(v, n) : vf_load(v);
    m1 = vf_fma(vf_sub(d, m1), vf_set(1 - a->beta1), m1);
    v1 = vf_fma(vf_mul(d, d), vf_set(1 - a->beta2), vf_mul(v1, vf_set(a->beta2)));
    const vf root = vf_add(vf_sqrt(vf_div(v1, vf_set(a->fix2))), vf_set(a->eps));
    vf w1 = vf_mul(n < VW ? vf_load_n(w, n) : vf_load(w), vf_set(1 - a->lr * a->decay));
    w1 = vf_sub(w1, vf_mul(vf_set(a->lr / a->fix1), vf_div(m1, root)));
    if (n < VW) {
        vf_store_n(m, m1, n);
        vf_store_n(v, v1, n);
        vf_store_n(w, w1, n);
    } else {
        vf_store(m, m1);
        vf_store(v, v1);
        vf_store(w, w1);
    }
    return w1;
}

static void adamw(struct kctx *kc, struct tensor w, struct tensor m, struct tensor v, struct tensor low,
                  struct tensor g, const struct adamw *a)
{
    if (!all_f32(w, m, v) || !all_f32(g, none, none) || (low.p && !castable(low))) {
        kern_ref.adamw(kc, w, m, v, low, g, a);
        return;
    }
    enum { CHUNK = 1 << 13 };
    const int64_t n = tensor_count(w);
    const enum dtype to = (enum dtype)low.type;
    const size_t size = dtype_bytes(to);
#pragma omp parallel for num_threads(cpu_threads(kc, 4 * n)) schedule(static)
    for (int64_t c = 0; c < n; c += CHUNK)
        for (int64_t i = c; i < n && i < c + CHUNK; i += VW) {
            const vf w1 = adamw_some((float *)w.p + i, (float *)m.p + i, (float *)v.p + i, (const float *)g.p + i, a,
                                     n - i);
            if (low.p && n - i >= VW) vf_store_as((char *)low.p + (size_t)i * size, to, w1);
            else if (low.p) vf_store_as_n((char *)low.p + (size_t)i * size, to, w1, n - i);
        }
}

void ISA(cpu_fill_elem)(struct kern *k)
{
    k->dropout = dropout;
    k->dropout_bwd = dropout_bwd;
    k->sumsq = sumsq;
    k->adamw = adamw;
    k->swiglu_fwd = swiglu_fwd;
    k->swiglu_bwd = swiglu_bwd;
    k->gelu_fwd = gelu_fwd;
    k->gelu_bwd = gelu_bwd;
    k->quick_gelu_fwd = quick_gelu_fwd;
    k->quick_gelu_bwd = quick_gelu_bwd;
    k->add = add;
    k->axpy = axpy;
    k->cast = cast;
    k->rows_get = rows_get;
    k->rows_put = rows_put;
    k->rows_get_add = rows_get_add;
    k->rows_put_add = rows_put_add;
}
