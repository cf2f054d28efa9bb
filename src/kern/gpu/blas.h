/* Large matrix products by the vendor's library, which is opened when the program runs. The types and shapes
 * of kern.h; false: there is no library, or not for these types, and nothing was done. */
#pragma once
#include "kern/gpu/num.h"

/* Finds the library for d. Without one products run on the plain kernel, and a warning says so. */
int blas_open(struct dev *d, struct err *e);

/* w may be some of a weight's rows: y, b and res then start at the first one's column, dy too. */
bool blas_matmul(struct kctx *kc, struct tensor y, struct tensor x, struct tensor w, struct tensor b,
                 struct tensor res);
/* n products of x, w[i] to y[i], if each of w, b and y lie at equal distances in memory. */
bool blas_matmul_each(struct kctx *kc, const struct tensor *y, struct tensor x, const struct tensor *w,
                      const struct tensor *b, int n);
bool blas_matmul_dx(struct kctx *kc, struct tensor dx, struct tensor dy, struct tensor w);
bool blas_matmul_dw(struct kctx *kc, struct tensor dw, struct tensor dy, struct tensor x);

struct blas_product;
/* Many products of one shape, without bias. Does the library have such for this device? Then none fails. */
bool blas_has_batched(const struct kctx *kc);
bool blas_batched(struct kctx *kc, const struct blas_product *p);

/* ---- between blas.cu and the libraries (blas_cuda.cu, blas_hip.cu), column by column as they count:
 * d[m,n] = op(a)[m,k] op(b)[k,n] + c[m,n] + bias[m]; a, b of one type; c may be d or NULL; bias of d's type
 * or NULL. */
struct blas_product {
    int64_t m, n, k, lda, ldb, ldd; /* elements; ldd: of d and c */
    const void *a, *b, *c, *bias;
    void *d;
    enum dtype in, out;
    bool ta, tb;    /* transposed */
    int64_t like_n; /* choose the library's kernel as for so many columns: results do not depend on n */
    int batch;      /* 0 or 1: one product; else so many, and a, d, bias, b so many elements further each (c is d) */
    int64_t next_a, next_d, next_bias;
    bool divides;   /* the sum may be divided into parts, which are added up in a fixed order */
    int64_t next_b; /* 0: all have one b */
};
/* A library's handle, to be kept with the device; NULL and a reason where there is none. */
void *blas_library_open(struct dev *d, struct err *why);
void blas_library_close(void *library);
bool blas_library_run(void *library, struct kctx *kc, const struct blas_product *p);
/* Each with a b of its own. */
bool blas_library_batches(const void *library);
