/* cuBLASLt, opened when the program runs, so that it starts where there is none. What the library chose for a
 * shape is kept: choosing takes longer than many products. */
#include "kern/gpu/blas.h"

#if !defined(GPU_EMU) && !defined(__HIPCC__)
#    include <cublasLt.h>
#    include <dlfcn.h>
#    include <stdio.h>
#    include <stdlib.h>

enum { PLANS = 1024, TRIES = 32, COMPARED = 256, TRIED = 512, FEW = 128, SOME = 16 };
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
    int64_t m, n, k, ldd, next_a, next_d, next_bias, batch;
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
/* Do these two kernels of the library give equal bits for products of such a shape, whatever n? */
struct compared {
    key of; /* n = 0 */
    cublasLtMatmulAlgo_t algo, base;
    bool equal;
};
/* The quickest for about so many columns. */
struct tried {
    key of; /* n rounded up to a multiple of FEW */
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
    compared seen[COMPARED];
    tried tried[TRIED];
    int n_seen, n_tried;
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

static void run_plan(library *l, const plan *x, const cublasLtMatmulAlgo_t *algo, struct kctx *kc,
                     const blas_product *p, void *d)
{
    const float one = 1, beta = p->c ? 1 : 0;
    if (p->bias) set(l, x->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, p->bias);
    check(l->Matmul(l->handle, x->desc, &one, p->a, x->a, p->b, x->b, &beta, p->c ? p->c : d, x->d, d, x->d, algo,
                    l->workspace, WORKSPACE, stream_of(kc)));
}

__global__ __launch_bounds__(BLOCK) void differences(int *n, const uint16_t *a, const uint16_t *b, int64_t count)
{
    const int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i < count && a[i] != b[i]) atomicAdd(n, 1);
}

/* Elements of d, gaps between the products of a batch among them. */
static int64_t extent(const blas_product *p)
{
    return (p->batch > 1 ? (p->batch - 1) * p->next_d : 0) + p->ldd * (p->n - 1) + p->m;
}

static bool has_room(const struct kctx *kc, const blas_product *p, int outputs)
{
    const size_t bytes = (size_t)extent(p) * dtype_bytes(p->out) + ARENA_ALIGN;
    return (size_t)outputs * bytes + ARENA_ALIGN <= kc->scratch->cap - kc->scratch->used;
}

/* Runs both on the product that is asked for, into scratch; waits. A sum in another order differs in some of so many
 * numbers, for all but a few bits of each are rounded away at other places. */
static bool try_both(library *l, const plan *x, struct kctx *kc, const blas_product *p,
                     const cublasLtMatmulAlgo_t *algo)
{
    const size_t bytes = (size_t)extent(p) * dtype_bytes(p->out), mark = arena_mark(kc->scratch);
    void *a = arena_take(kc->scratch, bytes), *b = arena_take(kc->scratch, bytes);
    int *n = (int *)arena_take(kc->scratch, sizeof *n), found = 0;
    dev_fill(kc->dev, a, 0, bytes);
    dev_fill(kc->dev, b, 0, bytes);
    dev_fill(kc->dev, n, 0, sizeof *n);
    run_plan(l, x, &x->algo, kc, p, a);
    run_plan(l, x, algo, kc, p, b);
    const int64_t words = (int64_t)bytes / 2;
    gpu_launch(differences, dim3((unsigned)ceil_div(words, BLOCK)), BLOCK, 0, stream_of(kc), n, (const uint16_t *)a,
               (const uint16_t *)b, words);
    dev_get(kc->dev, &found, n, sizeof found);
    arena_rewind(kc->scratch, mark);
    return found == 0;
}

/* Seconds of the product on this kernel, the quickest of a few; waits. */
static double time_one(library *l, const plan *x, struct kctx *kc, const blas_product *p,
                       const cublasLtMatmulAlgo_t *algo)
{
    const size_t mark = arena_mark(kc->scratch);
    void *d = arena_take(kc->scratch, (size_t)extent(p) * dtype_bytes(p->out));
    struct dev_event *from = dev_event_new(kc->dev), *to = dev_event_new(kc->dev);
    double best = 0;
    for (int i = 0; i < 3; i++) {
        dev_event_record(kc->dev, from);
        run_plan(l, x, algo, kc, p, d);
        dev_event_record(kc->dev, to);
        dev_event_wait(to);
        const double s = dev_event_s(from, to);
        if (i && (best <= 0 || s < best)) best = s;
    }
    dev_event_free(from);
    dev_event_free(to);
    arena_rewind(kc->scratch, mark);
    return best;
}

enum { ENOUGH = 1 << 20 }; /* numbers that say whether two kernels sum alike */

/* Does the product have the same bits on `algo` as on the plan's own? */
static bool equal_bits(library *l, const plan *x, struct kctx *kc, const blas_product *p,
                       const cublasLtMatmulAlgo_t *algo)
{
    compared c = { x->of, *algo, x->algo, false };
    c.of.n = c.of.next_d = 0;
    for (int i = 0; i < l->n_seen; i++)
        if (!memcmp(&l->seen[i].of, &c.of, sizeof c.of) && !memcmp(&l->seen[i].algo, algo, sizeof *algo) &&
            !memcmp(&l->seen[i].base, &x->algo, sizeof *algo))
            return l->seen[i].equal;
    if (l->n_seen == COMPARED || p->m * p->n < ENOUGH) return false;
    c.equal = try_both(l, x, kc, p, algo);
    l->seen[l->n_seen++] = c;
    return c.equal;
}

/* May kernels be tried? Not while launches are recorded, and not where scratch is small. */
static bool may_try(struct kctx *kc, const blas_product *p)
{
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    gpu_check(cudaStreamIsCapturing(stream_of(kc), &capture));
    return capture == cudaStreamCaptureStatusNone && has_room(kc, p, 2);
}

/* The kernels that the library would take for n columns, best first. */
static int candidates(library *l, const plan *x, const blas_product *p, int64_t n,
                      cublasLtMatmulHeuristicResult_t *found)
{
    cublasLtMatmulPreference_t pref;
    int count = 0;
    const cublasLtMatrixLayout_t b = layout_b(l, p, n);
    const cublasLtMatrixLayout_t d = layout(l, p, p->out, p->m, n, p->ldd, p->batch > 1 ? p->ldd * n : 0);
    static const cublasLtMatmulPreferenceAttributes_t align[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES
    };
    check(l->MatmulPreferenceCreate(&pref));
    check(l->MatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &WORKSPACE,
                                          sizeof WORKSPACE));
    for (int i = 0; i < 4; i++)
        check(l->MatmulPreferenceSetAttribute(pref, align[i], &x->of.align[i], sizeof x->of.align[i]));
    if (l->MatmulAlgoGetHeuristic(l->handle, x->desc, x->a, b, d, d, pref, TRIES, found, &count) !=
        CUBLAS_STATUS_SUCCESS)
        count = 0;
    (void)l->MatmulPreferenceDestroy(pref);
    (void)l->MatrixLayoutDestroy(b);
    (void)l->MatrixLayoutDestroy(d);
    return count;
}

/* Sums in order and can do the plan's shape? */
static bool is_right(library *l, const plan *x, const cublasLtMatmulHeuristicResult_t *r)
{
    cublasLtMatmulHeuristicResult_t own;
    return r->state == CUBLAS_STATUS_SUCCESS && in_order(l, &r->algo, x->of.divides) &&
           l->MatmulAlgoCheck(l->handle, x->desc, x->a, x->b, x->d, x->d, &r->algo, &own) == CUBLAS_STATUS_SUCCESS &&
           own.workspaceSize <= WORKSPACE;
}

/* The quickest of the plan's own kernel and what the library would rather take for n columns, where the bits are
 * equal. */
static cublasLtMatmulAlgo_t quickest(library *l, const plan *x, struct kctx *kc, const blas_product *p)
{
    cublasLtMatmulHeuristicResult_t found[TRIES];
    cublasLtMatmulAlgo_t best = x->algo;
    double best_s = time_one(l, x, kc, p, &best);
    const int n = candidates(l, x, p, p->n, found);
    for (int i = 0, count = 0; i < n && count < SOME; i++) {
        const cublasLtMatmulAlgo_t *algo = &found[i].algo;
        if (!memcmp(algo, &x->algo, sizeof *algo) || !is_right(l, x, &found[i])) continue;
        count++;
        if (!equal_bits(l, x, kc, p, algo)) continue;
        const double s = time_one(l, x, kc, p, algo);
        if (s < best_s) best_s = s, best = *algo;
    }
    return best;
}

/* The first kernel that the library would take for like_n columns, that sums in order and can do n columns too; or one
 * with the same bits that was found to be quicker for about so many columns. */
static bool choose(library *l, plan *x, struct kctx *kc, const blas_product *p)
{
    cublasLtMatmulHeuristicResult_t found[TRIES];
    const int n = candidates(l, x, p, p->like_n, found);
    int i = 0;
    while (i < n && !is_right(l, x, &found[i])) i++;
    if (i == n) return false;
    x->algo = found[i].algo;
    tried t = { x->of, {} };
    t.of.n = (p->n + FEW - 1) / FEW * FEW;
    t.of.next_d = 0;
    for (i = 0; i < l->n_tried; i++) {
        if (memcmp(&l->tried[i].of, &t.of, sizeof t.of)) continue;
        found[0].algo = l->tried[i].algo;
        found[0].state = CUBLAS_STATUS_SUCCESS;
        if (is_right(l, x, &found[0])) x->algo = found[0].algo;
        return true;
    }
    if (p->n == p->like_n || p->n < FEW || l->n_tried == TRIED || !may_try(kc, p)) return true;
    t.algo = x->algo = quickest(l, x, kc, p);
    l->tried[l->n_tried++] = t;
    return true;
}

static plan *make(library *l, plan *x, struct kctx *kc, const key *of, const blas_product *p)
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
    x->d = layout(l, p, p->out, p->m, p->n, p->ldd, p->next_d);
    x->none = !choose(l, x, kc, p);
    return x;
}

/* The plan for the product, made when it is asked for the first time. */
static plan *find(library *l, struct kctx *kc, const blas_product *p)
{
    key of = {};
    of.m = p->m, of.n = p->n, of.k = p->k, of.ldd = p->ldd;
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
        if (!x->used && l->n_plans < PLANS * 3 / 4) return l->n_plans++, make(l, x, kc, &of, p);
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
    return make(l, &once, kc, &of, p);
}

bool blas_library_batches(const void *)
{
    return false; /* nobody asks where there are matrix units */
}

bool blas_library_run(void *library_, struct kctx *kc, const struct blas_product *p)
{
    library *l = (library *)library_;
    if (p->next_b) return false;
    plan *x = find(l, kc, p);
    if (x->none) return false;
    run_plan(l, x, &x->algo, kc, p, p->d);
    return true;
}
#endif
