/* hipBLAS of ROCm and of Hygon's DTK, opened when the program runs: building needs neither. Declared here are the few
 * names that are used. Version 3 (ROCm 7) kept the names of the products and changed how they are told types: from
 * hipblasDatatype_t to hipDataType, and hipblasComputeType_t for the sums. */
#include "kern/gpu/blas.h"

#if defined(__HIPCC__)
#    include <dlfcn.h>
#    include <glob.h>
#    include <stdio.h>
#    include <stdlib.h>
#    include <unistd.h>

enum { HIPBLAS_OP_N = 111, HIPBLAS_OP_T = 112, HIPBLAS_GEMM_DEFAULT = 160 };

/* What a version calls types of elements, and sums in f32. */
struct type_names {
    int f32, f16, bf16, sums;
};
static const struct type_names names_1 = { 151, 150, 168, 151 }, names_3 = { 0, 2, 14, 2 };

struct library {
    void *so, *handle;
    struct type_names types;
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
                                         "libhipblas.so.3",
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
        /* The math mode came with 2.1; version 2 has the new interface under names of its own, beside the old one. */
        const bool third = dlsym(l->so, "hipblasGetMathMode") && !dlsym(l->so, "hipblasGemmEx_v2");
        l->types = third ? names_3 : names_1;
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

static int type_of(const library *l, enum dtype t)
{
    return t == DT_F32 ? l->types.f32 : t == DT_F16 ? l->types.f16 : l->types.bf16;
}

/* d = c + bias, column by column: what the product is then added to. */
__global__ __launch_bounds__(BLOCK) void prepare(view d, view c, view bias, int64_t m, int64_t ldd, int64_t count)
{
    const int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x, at = i / m * ldd + i % m;
    if (i < count) view_put(d, at, (c.p ? view_get(c, at) : 0.0f) + (bias.p ? view_get(bias, i % m) : 0.0f));
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
                           (int)p->m, (int)p->n, (int)p->k, &one, p->a, type_of(l, p->in), (int)p->lda, p->next_a,
                           p->b, type_of(l, p->in), (int)p->ldb, p->next_b, &beta, p->d, type_of(l, p->out),
                           (int)p->ldd, p->next_d, p->batch, l->types.sums, HIPBLAS_GEMM_DEFAULT);
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
                   view_of(c), view_of(bias), p->m, p->ldd, count);
    }
    const int rc = l->gemm_ex(l->handle, p->ta ? HIPBLAS_OP_T : HIPBLAS_OP_N,
                              p->tb ? HIPBLAS_OP_T : HIPBLAS_OP_N, (int)p->m, (int)p->n, (int)p->k, &one,
                              p->a, type_of(l, p->in), (int)p->lda, p->b, type_of(l, p->in), (int)p->ldb, &beta,
                              p->d, type_of(l, p->out), (int)p->ldd, l->types.sums, HIPBLAS_GEMM_DEFAULT);
    if (rc == 0) return true;
    gpu_lost("hipblasGemmEx");
}
#endif
