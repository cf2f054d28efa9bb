/* Row-major tensors as the column-major products of the vendors' libraries. See blas.h. */
#include "kern/gpu/blas.h"

extern "C" {
#include "base/log.h"
}

/* Forward products choose their kernel as for so many rows, whatever the rows: kern.h wants a row's bits to
 * be its own. */
enum { LIKE_ROWS = 1024 };

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

static bool run(struct kctx *kc, struct blas_product p)
{
    void *library = dev_attached(kc->dev);
    if (!p.m || !p.n) return true;
    return p.k && blas_library_run(library, kc, &p);
}

bool blas_matmul(struct kctx *kc, struct tensor y, struct tensor x, struct tensor w, struct tensor b,
                 struct tensor res)
{
    const int64_t T = tensor_rows(x), I = tensor_cols(x), O = w.n[0];
    if (!dev_attached(kc->dev)) return false;
    const size_t mark = arena_mark(kc->scratch);
    w = in_type(kc, w, (enum dtype)x.type);
    struct tensor bias = in_type(kc, b, (enum dtype)y.type);
    const bool right = w.p && (bias.p || !b.p) &&
                       run(kc, { O, T, I, I, I, w.p, x.p, res.p, bias.p, y.p, (enum dtype)x.type,
                                 (enum dtype)y.type, true, false, LIKE_ROWS });
    arena_rewind(kc->scratch, mark);
    return right;
}

bool blas_matmul_dx(struct kctx *kc, struct tensor dx, struct tensor dy, struct tensor w)
{
    const int64_t T = tensor_rows(dy), O = w.n[0], I = w.n[1];
    if (!dev_attached(kc->dev)) return false;
    const size_t mark = arena_mark(kc->scratch);
    w = in_type(kc, w, (enum dtype)dy.type);
    const bool right = w.p && run(kc, { I, T, O, I, O, w.p, dy.p, dx.p, NULL, dx.p, (enum dtype)dy.type,
                                        (enum dtype)dx.type, false, false, LIKE_ROWS });
    arena_rewind(kc->scratch, mark);
    return right;
}

bool blas_matmul_dw(struct kctx *kc, struct tensor dw, struct tensor dy, struct tensor x)
{
    const int64_t T = tensor_rows(x), I = tensor_cols(x), O = tensor_cols(dy);
    if (!dev_attached(kc->dev) || x.type != dy.type) return false;
    return run(kc, { I, O, T, I, O, x.p, dy.p, dw.p, NULL, dw.p, (enum dtype)x.type, (enum dtype)dw.type,
                     false, true, O });
}

#if defined(GPU_EMU)
void *blas_library_open(struct dev *, struct err *)
{
    return NULL;
}
void blas_library_close(void *) {}
bool blas_library_run(void *, struct kctx *, const struct blas_product *)
{
    return false;
}
#endif
