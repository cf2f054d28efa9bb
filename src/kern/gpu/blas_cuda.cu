/* cuBLASLt, opened when the program runs, so that it starts where there is none. What the library chose for a
 * shape is kept: choosing takes longer than many products. */
#include "kern/gpu/blas.h"

#if !defined(GPU_EMU) && !defined(__HIPCC__)
#    include <cublasLt.h>
#    include <dlfcn.h>
#    include <stdio.h>
#    include <stdlib.h>

enum { PLANS = 1024, TRIES = 16 };
static const size_t WORKSPACE = 64 << 20;

#    define BLAS_MAP(XX)                                                                                     \
        XX(Create)                                                                                           \
        XX(Destroy)                                                                                          \
        XX(Matmul)                                                                                           \
        XX(MatmulDescCreate)                                                                                 \
        XX(MatmulDescDestroy)                                                                                \
        XX(MatmulDescSetAttribute)                                                                           \
        XX(MatrixLayoutCreate)                                                                               \
        XX(MatrixLayoutSetAttribute)                                                                         \
        XX(MatrixLayoutDestroy)                                                                              \
        XX(MatmulPreferenceCreate)                                                                           \
        XX(MatmulPreferenceDestroy)                                                                          \
        XX(MatmulPreferenceSetAttribute)                                                                     \
        XX(MatmulAlgoGetHeuristic)                                                                           \
        XX(MatmulAlgoConfigGetAttribute)                                                                     \
        XX(MatmulAlgoCheck)

/* What tells one product from another, but for addresses; compared as bytes. */
struct key {
    int64_t m, n, k, next_a, next_d, next_bias, batch;
    int32_t in, out, ta, tb, bias, add, divides,
        align[4]; /* add: c is there; align: of a, b, c, d in bytes, at most 256 */
};
struct plan {
    key of;
    bool used, none; /* none: the library has no kernel for it */
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t a, b, d;
    cublasLtMatmulAlgo_t algo;
};
struct library {
    void *so, *workspace;
    struct dev *dev;
    cublasLtHandle_t handle;
#define XX(name) decltype(cublasLt##name) *name;
    BLAS_MAP(XX)
#undef XX
    plan plans[PLANS];
    int n_plans;
};

static void check_at(cublasStatus_t rc, const char *what)
{
    char why[160];
    if (rc == CUBLAS_STATUS_SUCCESS) return;
    snprintf(why, sizeof why, "%.100s: status %d", what, (int)rc);
    gpu_lost(why);
}
#define check(call) check_at((call), #call)

static void *open_so(char *name, size_t size)
{
    static const char *const forms[] = { "libcublasLt.so.%d", "/usr/local/cuda/lib64/libcublasLt.so.%d",
                                         "libcublasLt.so" };
    void *so = NULL;
    for (size_t i = 0; i < sizeof forms / sizeof *forms && !so; i++) {
        snprintf(name, size, forms[i], CUBLAS_VER_MAJOR);
        so = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    }
    snprintf(name, size, forms[0], CUBLAS_VER_MAJOR);
    return so;
}

void blas_library_close(void *p)
{
    library *l = (library *)p;
    if (!l) return;
    for (plan *x = l->plans; x < l->plans + PLANS; x++) {
        if (!x->used) continue;
        (void)l->MatmulDescDestroy(x->desc);
        (void)l->MatrixLayoutDestroy(x->a);
        (void)l->MatrixLayoutDestroy(x->b);
        (void)l->MatrixLayoutDestroy(x->d);
    }
    if (l->handle) (void)l->Destroy(l->handle);
    dev_free(l->dev, l->workspace, WORKSPACE);
    if (l->so) dlclose(l->so);
    free(l);
}

void *blas_library_open(struct dev *d, struct err *why)
{
    char name[64];
    library *l = (library *)calloc(1, sizeof *l);
    if (!l) return err_set(why, ERR_NOMEM, "no memory for cuBLAS"), (void *)NULL;
    l->dev = d;
    l->so = open_so(name, sizeof name);
    bool whole = l->so != NULL;
#define XX(f) whole = whole && (l->f = (decltype(l->f))dlsym(l->so, "cublasLt" #    f)) != NULL;
    BLAS_MAP(XX)
#undef XX
    if (!whole)
        err_set(why, ERR_MISSING, "no %s on this machine", name);
    else if (l->Create(&l->handle) != CUBLAS_STATUS_SUCCESS)
        err_set(why, ERR_UNSUPPORTED, "cuBLAS cannot be used on '%s'", dev_name(d));
    else if (dev_alloc(&l->workspace, d, WORKSPACE, why) >= 0)
        return l;
    blas_library_close(l);
    return NULL;
}

static cudaDataType_t type_of(enum dtype t)
{
    return t == DT_F32 ? CUDA_R_32F : t == DT_F16 ? CUDA_R_16F : CUDA_R_16BF;
}

static int32_t alignment(const void *p)
{
    const uintptr_t low = (uintptr_t)p & -(uintptr_t)p;
    return p && low < 256 ? (int32_t)low : 256;
}

template <class T>
static void set(library *l, cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t what, T v)
{
    check(l->MatmulDescSetAttribute(d, what, &v, sizeof v));
}

static cublasLtMatrixLayout_t layout(library *l, const blas_product *p, enum dtype t, int64_t rows, int64_t cols,
                                     int64_t ld, int64_t next)
{
    cublasLtMatrixLayout_t x;
    const int32_t batch = p->batch;
    check(l->MatrixLayoutCreate(&x, type_of(t), (uint64_t)rows, (uint64_t)cols, ld));
    if (batch > 1) {
        check(l->MatrixLayoutSetAttribute(x, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch, sizeof batch));
        check(l->MatrixLayoutSetAttribute(x, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &next, sizeof next));
    }
    return x;
}

static cublasLtMatrixLayout_t layout_b(library *l, const blas_product *p, int64_t n)
{
    return p->tb ? layout(l, p, p->in, n, p->k, p->ldb, 0) : layout(l, p, p->in, p->k, n, p->ldb, 0);
}

/* Does it not divide the sum, whose order is then the same for every column? Or, where that is allowed, into parts that
 * lie in the workspace until they are added up, in an order that does not change? */
static bool in_order(library *l, const cublasLtMatmulAlgo_t *algo, bool divides)
{
    int32_t split = 1;
    uint32_t reduction = 0;
    size_t n;
    check(l->MatmulAlgoConfigGetAttribute(algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &split, sizeof split, &n));
    check(l->MatmulAlgoConfigGetAttribute(algo, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &reduction,
                                          sizeof reduction, &n));
    if (divides) return !(reduction & CUBLASLT_REDUCTION_SCHEME_INPLACE);
    return split <= 1 && reduction == CUBLASLT_REDUCTION_SCHEME_NONE;
}

/* The first kernel that the library would take for like_n columns, that sums in order and can do n columns
 * too. */
static bool choose(library *l, plan *x, const blas_product *p)
{
    cublasLtMatmulPreference_t pref;
    cublasLtMatmulHeuristicResult_t found[TRIES], own;
    int n = 0;
    const cublasLtMatrixLayout_t b = layout_b(l, p, p->like_n);
    const cublasLtMatrixLayout_t d = layout(l, p, p->out, p->m, p->like_n, p->m, p->m * p->like_n);
    static const cublasLtMatmulPreferenceAttributes_t align[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES
    };
    check(l->MatmulPreferenceCreate(&pref));
    check(l->MatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &WORKSPACE,
                                          sizeof WORKSPACE));
    for (int i = 0; i < 4; i++)
        check(l->MatmulPreferenceSetAttribute(pref, align[i], &x->of.align[i], sizeof x->of.align[i]));
    if (l->MatmulAlgoGetHeuristic(l->handle, x->desc, x->a, b, d, d, pref, TRIES, found, &n) !=
        CUBLAS_STATUS_SUCCESS)
        n = 0;
    bool right = false;
    for (int i = 0; i < n && !right; i++) {
        if (found[i].state != CUBLAS_STATUS_SUCCESS || !in_order(l, &found[i].algo, p->divides)) continue;
        right = l->MatmulAlgoCheck(l->handle, x->desc, x->a, x->b, x->d, x->d, &found[i].algo, &own) ==
                    CUBLAS_STATUS_SUCCESS &&
                own.workspaceSize <= WORKSPACE;
        if (right) x->algo = found[i].algo;
    }
    (void)l->MatmulPreferenceDestroy(pref);
    (void)l->MatrixLayoutDestroy(b);
    (void)l->MatrixLayoutDestroy(d);
    return right;
}

static plan *make(library *l, plan *x, const key *of, const blas_product *p)
{
    const cublasOperation_t ops[] = { CUBLAS_OP_N, CUBLAS_OP_T };
    x->used = true;
    x->of = *of;
    check(l->MatmulDescCreate(&x->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    set(l, x->desc, CUBLASLT_MATMUL_DESC_TRANSA, ops[p->ta]);
    set(l, x->desc, CUBLASLT_MATMUL_DESC_TRANSB, ops[p->tb]);
    if (p->bias) set(l, x->desc, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    if (p->bias) set(l, x->desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, type_of(p->out));
    if (p->bias && p->batch > 1) set(l, x->desc, CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE, p->next_bias);
    const int64_t rows = p->ta ? p->k : p->m, cols = p->ta ? p->m : p->k;
    x->a = layout(l, p, p->in, rows, cols, p->lda, p->next_a);
    x->b = layout_b(l, p, p->n);
    x->d = layout(l, p, p->out, p->m, p->n, p->m, p->next_d);
    x->none = !choose(l, x, p);
    return x;
}

/* The plan for the product, made when it is asked for the first time. */
static plan *find(library *l, const blas_product *p)
{
    key of = {};
    of.m = p->m, of.n = p->n, of.k = p->k;
    of.batch = p->batch, of.next_a = p->next_a, of.next_d = p->next_d, of.next_bias = p->next_bias;
    of.in = p->in, of.out = p->out, of.ta = p->ta, of.tb = p->tb, of.bias = p->bias != NULL,
    of.add = p->c != NULL, of.divides = p->divides;
    const void *const at[] = { p->a, p->b, p->c, p->d };
    for (int i = 0; i < 4; i++) of.align[i] = alignment(at[i]);
    uint64_t h = 1;
    for (size_t i = 0; i < sizeof of / 8; i++)
        h = (h ^ ((const uint64_t *)(const void *)&of)[i]) * 0x9e3779b97f4a7c15u, h ^= h >> 29;
    for (unsigned i = 0; i < PLANS; i++) {
        plan *x = &l->plans[(h + i) % PLANS];
        if (x->used && !memcmp(&x->of, &of, sizeof of)) return x;
        if (!x->used && l->n_plans < PLANS * 3 / 4) return l->n_plans++, make(l, x, &of, p);
        if (!x->used) break;
    }
    static plan once; /* a full table: shapes that come now are chosen each time */
    if (once.used) {
        (void)l->MatmulDescDestroy(once.desc);
        (void)l->MatrixLayoutDestroy(once.a);
        (void)l->MatrixLayoutDestroy(once.b);
        (void)l->MatrixLayoutDestroy(once.d);
    }
    once = plan{};
    return make(l, &once, &of, p);
}

bool blas_library_run(void *library_, struct kctx *kc, const struct blas_product *p)
{
    library *l = (library *)library_;
    plan *x = find(l, p);
    if (x->none) return false;
    const float one = 1, beta = p->c ? 1 : 0;
    if (p->bias) set(l, x->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, p->bias);
    const void *c = p->c ? p->c : p->d;
    check(l->Matmul(l->handle, x->desc, &one, p->a, x->a, p->b, x->b, &beta, c, x->d, p->d, x->d, &x->algo,
                    l->workspace, WORKSPACE, stream_of(kc)));
    return true;
}
#endif
