/* Row-major tensors as the column-major products of the vendors' libraries. See blas.h. */
#include "kern/gpu/blas.h"

extern "C" {
#include "base/log.h"
}

/* Products choose their kernel as for so many rows, whatever the rows: kern.h wants a row's bits to be its own, but for
 * training. */
enum { LIKE_ROWS = 1024 };
static int64_t like_rows(const struct kctx *kc, int64_t T) { return kc->training ? T : (int64_t)LIKE_ROWS; }

int blas_open(struct dev *d, struct err *e)
{
    struct err why = {};
    void *library = blas_library_open(d, &why);
    (void)e;
    if (library)
        dev_attach(d, library, blas_library_close);
    else if (why.msg[0])
        log_warn("%s: large products run on plain kernels, which are far slower", why.msg);
    return 0;
}

/* t in the type `want`: itself, or a copy in scratch that loses nothing; p NULL where there is none. */
static struct tensor in_type(struct kctx *kc, struct tensor t, enum dtype want)
{
    if (!t.p || t.type == want) return t;
    struct tensor c = t;
    c.type = (int8_t)want;
    c.p = NULL;
    const struct arena *s = kc->scratch;
    if (want != DT_F32 || tensor_bytes(c) + ARENA_ALIGN > s->cap - s->used) return c;
    c.p = arena_take(kc->scratch, tensor_bytes(c));
    gpu_cast(kc, c, t);
    return c;
}

/* y[T,C] = x[T,I] with zeros behind. */
template <class A>
__global__ __launch_bounds__(BLOCK) void widen(A *y, const A *x, int64_t n, int64_t C, int64_t I)
{
    const int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i < n) y[i] = i % C < I ? x[i / C * I + i % C] : gpu_from<A>(0.0f);
}

/* Rows that start on 16 bytes: the libraries' quick kernels want that. x itself where they do, or where scratch has no
 * room. */
static struct tensor widened(struct kctx *kc, struct tensor x)
{
    const int64_t I = tensor_cols(x), T = tensor_rows(x), C = (I + 7) / 8 * 8;
    struct tensor y = tensor_2d(NULL, (enum dtype)x.type, T, C);
    const struct arena *s = kc->scratch;
    if (C == I || dtype_bytes((enum dtype)x.type) != 2 || tensor_bytes(y) + ARENA_ALIGN > s->cap - s->used) return x;
    y.p = arena_take(kc->scratch, tensor_bytes(y));
    gpu_launch((widen<gpu_bf16>), dim3((unsigned)ceil_div(T * C, BLOCK)), BLOCK, 0, stream_of(kc), (gpu_bf16 *)y.p,
               (const gpu_bf16 *)x.p, T * C, C, I); /* 0 has the same bits in both types of 16 */
    return y;
}

static bool run(struct kctx *kc, struct blas_product p)
{
    void *library = dev_attached(kc->dev);
    if (!p.m || !p.n) return true;
    return p.k && blas_library_run(library, kc, &p);
}

bool blas_matmul(struct kctx *kc, struct tensor y, struct tensor x, struct tensor w, struct tensor b,
                 struct tensor res)
{
    const int64_t T = tensor_rows(x), O = w.n[0];
    if (!dev_attached(kc->dev)) return false;
    const size_t mark = arena_mark(kc->scratch);
    w = in_type(kc, w, (enum dtype)x.type);
    struct tensor wide = x;
    if (w.p && O > 64 && O % 8 == 0) { /* both or neither: a row of x alone has the sums that it has among others */
        wide = widened(kc, x);
        if (wide.p != x.p) w = widened(kc, w);
    }
    const int64_t I = tensor_cols(wide);
    if (w.p && tensor_cols(w) != I) return arena_rewind(kc->scratch, mark), false;
    x = wide;
    if (b.p) b.n[0] = O;
    struct tensor bias = in_type(kc, b, (enum dtype)y.type);
    const bool right = w.p && (bias.p || !b.p) &&
                       run(kc, { O, T, I, I, I, tensor_cols(y), w.p, x.p, res.p, bias.p, y.p, (enum dtype)x.type,
                                 (enum dtype)y.type, true, false, like_rows(kc, T), 1, 0, 0, 0, false, 0 });
    arena_rewind(kc->scratch, mark);
    return right;
}

/* Elements between neighbours, if these are equally far apart; else 0. */
static int64_t distance(const struct tensor *t, int n)
{
    const int64_t each = (int64_t)dtype_bytes((enum dtype)t[0].type);
    const int64_t bytes = (const char *)t[1].p - (const char *)t[0].p;
    for (int i = 2; i < n; i++)
        if ((const char *)t[i].p - (const char *)t[i - 1].p != bytes) return 0;
    return bytes % each ? 0 : bytes / each;
}

bool blas_matmul_each(struct kctx *kc, const struct tensor *y, struct tensor x, const struct tensor *w,
                      const struct tensor *b, int n)
{
    const int64_t T = tensor_rows(x), I = tensor_cols(x), O = w[0].n[0];
    const int64_t next_w = distance(w, n), next_y = distance(y, n), next_b = b[0].p ? distance(b, n) : 0;
    if (!dev_attached(kc->dev) || w[0].type != x.type || y[0].type != x.type || next_w < O * I || next_y < O * T ||
        (b[0].p && (b[0].type != x.type || next_b < O)))
        return false;
    return run(kc, { O, T, I, I, I, O, w[0].p, x.p, NULL, b[0].p, y[0].p, (enum dtype)x.type, (enum dtype)x.type, true,
                     false, LIKE_ROWS, n, next_w, next_y, next_b, false, 0 });
}

bool blas_matmul_dx(struct kctx *kc, struct tensor dx, struct tensor dy, struct tensor w)
{
    const int64_t T = tensor_rows(dy), O = w.n[0], I = w.n[1];
    if (!dev_attached(kc->dev)) return false;
    const size_t mark = arena_mark(kc->scratch);
    w = in_type(kc, w, (enum dtype)dy.type);
    const void *add = is_fresh(dx) ? NULL : dx.p;
    const bool right = w.p && run(kc, { I, T, O, I, tensor_cols(dy), I, w.p, dy.p, add, NULL, dx.p, (enum dtype)dy.type,
                                        (enum dtype)dx.type, false, false, like_rows(kc, T), 1, 0, 0, 0, false, 0 });
    arena_rewind(kc->scratch, mark);
    return right;
}

bool blas_matmul_dw(struct kctx *kc, struct tensor dw, struct tensor dy, struct tensor x)
{
    const int64_t T = tensor_rows(x), I = tensor_cols(x), O = tensor_cols(dy);
    if (!dev_attached(kc->dev) || x.type != dy.type) return false;
    return run(kc, { I, O, T, I, O, I, x.p, dy.p, dw.p, NULL, dw.p, (enum dtype)x.type, (enum dtype)dw.type,
                     false, true, O, 1, 0, 0, 0, true, 0 });
}

bool blas_has_batched(const struct kctx *kc) { return blas_library_batches(dev_attached(kc->dev)); }
bool blas_batched(struct kctx *kc, const struct blas_product *p)
{
    return blas_library_run(dev_attached(kc->dev), kc, p);
}

#if defined(GPU_EMU)
/* There is no library: products run on the kernels that are to be tested. But what needs batches of products gets them,
 * from loops. */
void *blas_library_open(struct dev *, struct err *)
{
    return NULL;
}
void blas_library_close(void *) {}
bool blas_library_batches(const void *)
{
    return true;
}

/* y[rows][cols], row by row; x has its rows one behind the other, or its columns. */
static std::vector<float> gather(view x, bool by_rows, int64_t rows, int64_t cols, int64_t ld)
{
    std::vector<float> y((size_t)(rows * cols));
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++) y[(size_t)(i * cols + j)] = view_get(x, by_rows ? i * ld + j : j * ld + i);
    return y;
}

static void multiply_one(const struct blas_product *p, int i)
{
    const view a = view_at({ (char *)p->a, p->in }, i * p->next_a), b = view_at({ (char *)p->b, p->in }, i * p->next_b),
               d = view_at({ (char *)p->d, p->out }, i * p->next_d);
    const std::vector<float> at = gather(a, !p->ta, p->k, p->m, p->lda), bt = gather(b, !p->tb, p->n, p->k, p->ldb);
    std::vector<double> sum((size_t)p->m); /* at least as exact as a library, which adds up in parts */
    for (int64_t n = 0; n < p->n; n++) {
        for (double &s : sum) s = 0;
        for (int64_t k = 0; k < p->k; k++) {
            const float f = bt[(size_t)(n * p->k + k)], *row = &at[(size_t)(k * p->m)];
            for (int64_t m = 0; m < p->m; m++) sum[(size_t)m] += (double)f * row[m];
        }
        for (int64_t m = 0; m < p->m; m++)
            view_put(d, n * p->m + m, (float)sum[(size_t)m] + (p->c ? view_get(d, n * p->m + m) : 0.0f));
    }
}

bool blas_library_run(void *, struct kctx *, const struct blas_product *product)
{
    const struct blas_product p = *product;
    ASSERT(!p.bias && (!p.c || p.c == p.d) && p.ldd == p.m);
    emu_do([=] {
        for (int i = 0; i < p.batch; i++) multiply_one(&p, i);
    });
    return true;
}
#endif
