/* What the files of the processor's backend share, and what the rest of the program may ask it beyond the
 * table. */
#pragma once
#include <omp.h>

#include "kern/kern.h"

/* GB/s at which n_threads read a buffer several times larger than the last cache: what decode is measured
 * against. 0 where there is no memory for it (256 MiB). Takes about 0.1 s. */
double cpu_read_ceiling(int n_threads);

/* The same, a pass at a time, for those who measure between passes: on a shared machine the ceiling moves. */
struct cpu_reader {
    struct arena mem;
    char *p;
};
int cpu_reader_init(struct cpu_reader *r, struct err *e);
void cpu_reader_fini(struct cpu_reader *r);
double cpu_reader_pass(const struct cpu_reader *r, int n_threads); /* GB/s; takes some 10 ms */

/* ---- within the backend */

/* Threads worth starting for `work` elementary steps (a float moved or a few multiplied). */
static inline int cpu_threads(const struct kctx *kc, int64_t work)
{
    int64_t n = work >> 15;
    return n < 1 ? 1 : n < kc->n_threads ? (int)n : kc->n_threads;
}

/* One side of a matrix product: rows of the result's side, K steps of the sum.
 * by_k false: element (row, k) at p[row*ld + k]; true: at p[k*ld + row]. */
struct cpu_side {
    const void *p;
    enum dtype type; /* F32, BF16 or F16 */
    int64_t ld;      /* elements */
    bool by_k;
};
/* y[m,n] = a[m,k] b[n,k]^T + bias[n] + add[m,n]; add may be y. */
struct cpu_gemm {
    int64_t m, n, k;
    struct cpu_side a, b;
    float *y;
    const float *bias, *add; /* or NULL */
    bool pair;               /* multiply pairs of bf16: AVX-512 only */
    int64_t ld;              /* of y and add: n where that is 0 */
};
void cpu_gemm_avx2(struct kctx *, const struct cpu_gemm *);
void cpu_gemm_avx512(struct kctx *, const struct cpu_gemm *);

/* matmul and matmul_dx of kern.h with f32 activations and a quantised w. */
void cpu_quant_matmul_avx2(struct kctx *, struct tensor y, struct tensor x, struct tensor w, struct tensor b,
                           struct tensor res);
void cpu_quant_matmul_avx512(struct kctx *, struct tensor y, struct tensor x, struct tensor w, struct tensor b,
                             struct tensor res);
void cpu_quant_matmul_dx_avx2(struct kctx *, struct tensor dx, struct tensor dy, struct tensor w);
void cpu_quant_matmul_dx_avx512(struct kctx *, struct tensor dx, struct tensor dy, struct tensor w);

/* Each puts its kernels into the table. */
void cpu_fill_matmul_avx2(struct kern *);
void cpu_fill_matmul_avx512(struct kern *);
void cpu_fill_attn_avx2(struct kern *);
void cpu_fill_attn_avx512(struct kern *);
void cpu_fill_elem_avx2(struct kern *);
void cpu_fill_elem_avx512(struct kern *);
void cpu_fill_adamw8_avx2(struct kern *);
void cpu_fill_adamw8_avx512(struct kern *);
void cpu_fill_norm_avx2(struct kern *);
void cpu_fill_norm_avx512(struct kern *);
void cpu_fill_loss_avx2(struct kern *);
void cpu_fill_loss_avx512(struct kern *);
