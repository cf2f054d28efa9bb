/* hipBLAS of ROCm and of Hygon's DTK, opened when the program runs: building needs neither. Declared here are
 * the few names of its first interface that are used; later versions keep them. */
#include "kern/gpu/blas.h"

#if defined(__HIPCC__)
#    include <dlfcn.h>
#    include <glob.h>
#    include <stdio.h>
#    include <stdlib.h>
#    include <unistd.h>

enum {
    HIPBLAS_OP_N = 111,
    HIPBLAS_OP_T = 112,
    HIPBLAS_R_16F = 150,
    HIPBLAS_R_32F = 151,
    HIPBLAS_R_16B = 168
};
enum { HIPBLAS_GEMM_DEFAULT = 160 };

struct library {
    void *so, *handle;
    int (*create)(void **);
    int (*destroy)(void *);
    int (*set_stream)(void *, hipStream_t);
    int (*gemm_ex)(void *, int, int, int, int, int, const void *, const void *, int, int, const void *, int,
                   int, const void *, void *, int, int, int, int);
    int (*gemm_batched)(void *, int, int, int, int, int, const void *, const void *, int, int, long long, const void *,
                        int, int, long long, const void *, void *, int, int, long long, int, int, int); /* or NULL */
};

static void *open_so(void)
{
    static const char *const names[] = { "libhipblas.so",
                                         "libhipblas.so.0",
                                         "libhipblas.so.1",
                                         "libhipblas.so.2",
                                         "/opt/dtk*/lib/libhipblas.so*",
                                         "/opt/rocm*/lib/libhipblas.so*" };
    void *so = NULL;
    for (size_t i = 0; i < sizeof names / sizeof *names && !so; i++) {
        glob_t found;
        if (names[i][0] != '/')
            so = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
        else if (glob(names[i], 0, NULL, &found) == 0) {
            for (size_t k = 0; k < found.gl_pathc && !so; k++)
                so = dlopen(found.gl_pathv[k], RTLD_NOW | RTLD_LOCAL);
            globfree(&found);
        }
    }
    return so;
}

void blas_library_close(void *p)
{
    library *l = (library *)p;
    if (!l) return;
    if (l->handle) (void)l->destroy(l->handle);
    if (l->so) dlclose(l->so);
    free(l);
}

void *blas_library_open(struct dev *d, struct err *why)
{
    library *l = (library *)calloc(1, sizeof *l);
    if (!l) return err_set(why, ERR_NOMEM, "no memory for hipBLAS"), (void *)NULL;
    l->so = open_so();
    if (l->so) {
        l->create = (decltype(l->create))dlsym(l->so, "hipblasCreate");
        l->destroy = (decltype(l->destroy))dlsym(l->so, "hipblasDestroy");
        l->set_stream = (decltype(l->set_stream))dlsym(l->so, "hipblasSetStream");
        l->gemm_ex = (decltype(l->gemm_ex))dlsym(l->so, "hipblasGemmEx");
        l->gemm_batched = (decltype(l->gemm_batched))dlsym(l->so, "hipblasGemmStridedBatchedEx");
    }
    if (!l->so || !l->create || !l->destroy || !l->set_stream || !l->gemm_ex)
        err_set(why, ERR_MISSING, "no libhipblas.so on this machine");
    else if (l->create(&l->handle) || l->set_stream(l->handle, gpu_stream_of(d)))
        err_set(why, ERR_UNSUPPORTED, "hipBLAS cannot be used on '%s'", dev_name(d));
    else
        return l;
    blas_library_close(l);
    return NULL;
}

static int type_of(enum dtype t)
{
    return t == DT_F32 ? HIPBLAS_R_32F : t == DT_F16 ? HIPBLAS_R_16F : HIPBLAS_R_16B;
}

/* d = c + bias, column by column: what the product is then added to. */
__global__ __launch_bounds__(BLOCK) void prepare(view d, view c, view bias, int64_t m, int64_t count)
{
    const int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i < count) view_put(d, i, (c.p ? view_get(c, i) : 0.0f) + (bias.p ? view_get(bias, i % m) : 0.0f));
}

bool blas_library_batches(const void *library_)
{
    const library *l = (const library *)library_;
    return l && l->gemm_batched;
}

static int run_batched(library *l, const struct blas_product *p)
{
    const float one = 1, beta = p->c ? 1 : 0;
    return l->gemm_batched(l->handle, p->ta ? HIPBLAS_OP_T : HIPBLAS_OP_N, p->tb ? HIPBLAS_OP_T : HIPBLAS_OP_N,
                           (int)p->m, (int)p->n, (int)p->k, &one, p->a, type_of(p->in), (int)p->lda, p->next_a, p->b,
                           type_of(p->in), (int)p->ldb, p->next_b, &beta, p->d, type_of(p->out), (int)p->m, p->next_d,
                           p->batch, HIPBLAS_R_32F, HIPBLAS_GEMM_DEFAULT);
}

bool blas_library_run(void *library_, struct kctx *kc, const struct blas_product *p)
{
    library *l = (library *)library_;
    if (p->batch > 1) {
        if (p->bias || (p->c && p->c != p->d) || !l->gemm_batched) return false; /* one by one, then */
        if (run_batched(l, p) == 0) return true;
        gpu_lost("hipblasGemmStridedBatchedEx");
    }
    const int64_t count = p->m * p->n;
    const float one = 1, beta = p->c || p->bias ? 1 : 0;
    if (p->bias || (p->c && p->c != p->d)) {
        const struct tensor d = tensor_1d(p->d, p->out, count), c = tensor_1d((void *)p->c, p->out, count),
                            bias = tensor_1d((void *)p->bias, p->out, p->m);
        gpu_launch(prepare, dim3((unsigned)ceil_div(count, BLOCK)), BLOCK, 0, stream_of(kc), view_of(d),
                   view_of(c), view_of(bias), p->m, count);
    }
    const int rc = l->gemm_ex(l->handle, p->ta ? HIPBLAS_OP_T : HIPBLAS_OP_N,
                              p->tb ? HIPBLAS_OP_T : HIPBLAS_OP_N, (int)p->m, (int)p->n, (int)p->k, &one,
                              p->a, type_of(p->in), (int)p->lda, p->b, type_of(p->in), (int)p->ldb, &beta,
                              p->d, type_of(p->out), (int)p->m, HIPBLAS_R_32F, HIPBLAS_GEMM_DEFAULT);
    if (rc == 0) return true;
    gpu_lost("hipblasGemmEx");
}
#endif
