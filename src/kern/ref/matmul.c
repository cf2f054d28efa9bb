/* Matrix products with weights stored as [O,I]. Threads share the outputs (or the tokens, for dx); each
 * converts a few rows of w and uses them for all the tokens it has. Scratch: activations that are not
 * reals, and rows per thread. */
#include "kern/ref/real.h"

enum { TILE = 8 }; /* rows of w, or tokens, that a thread works on at a time */

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

void ref_matmul(struct kctx *kc, struct tensor y, struct tensor x, struct tensor w, struct tensor b,
                struct tensor res)
{
    const int64_t T = tensor_rows(x), I = tensor_cols(x), O = w.n[0];
    const size_t mark = arena_mark(kc->scratch);
    const real *xr = reals(kc, x);
    const struct lanes bufs = lanes_take(kc, (size_t)(TILE * I) * sizeof(real));
#pragma omp parallel for schedule(static) num_threads(kc->n_threads)
    for (int64_t o0 = 0; o0 < O; o0 += TILE) {
        const int64_t n = least(TILE, O - o0);
        const real *wr = reals_span(w, o0 * I, n * I, lane(bufs));
        for (int64_t t = 0; t < T; t++)
            for (int64_t o = o0; o < o0 + n; o++) {
                double v = dot(xr + t * I, wr + (o - o0) * I, I);
                if (b.p) v += at(b, o);
                if (res.p) v += at(res, t * O + o);
                put(y, t * O + o, v);
            }
    }
    arena_rewind(kc->scratch, mark);
}

void ref_matmul_dx(struct kctx *kc, struct tensor dx, struct tensor dy, struct tensor w)
{
    if (!dx.p) return;
    const int64_t T = tensor_rows(dx), I = tensor_cols(dx), O = w.n[0];
    const size_t mark = arena_mark(kc->scratch);
    const struct lanes rows = lanes_take(kc, (size_t)I * sizeof(real));
    const struct lanes sums = lanes_take(kc, (size_t)(TILE * I) * sizeof(double));
#pragma omp parallel for schedule(static) num_threads(kc->n_threads)
    for (int64_t t0 = 0; t0 < T; t0 += TILE) {
        const int64_t n = least(TILE, T - t0);
        double *acc = lane(sums);
        for (int64_t i = 0; i < n * I; i++) acc[i] = 0;
        for (int64_t o = 0; o < O; o++) {
            const real *wr = reals_span(w, o * I, I, lane(rows));
            for (int64_t t = 0; t < n; t++) accumulate(acc + t * I, at(dy, (t0 + t) * O + o), wr, I);
        }
        for (int64_t i = 0; i < n * I; i++) put_add(dx, t0 * I + i, acc[i]);
    }
    arena_rewind(kc->scratch, mark);
}

void ref_matmul_dw(struct kctx *kc, struct tensor dw, struct tensor db, struct tensor dy, struct tensor x)
{
    const int64_t T = tensor_rows(x), I = tensor_cols(x), O = tensor_cols(dy);
    const size_t mark = arena_mark(kc->scratch);
    const real *xr = dw.p ? reals(kc, x) : NULL;
    const struct lanes sums = lanes_take(kc, (size_t)I * sizeof(double));
#pragma omp parallel for schedule(static) num_threads(kc->n_threads)
    for (int64_t o = 0; o < O; o++) {
        double *acc = lane(sums), bias = 0;
        for (int64_t i = 0; i < I; i++) acc[i] = 0;
        for (int64_t t = 0; t < T; t++) {
            const double d = at(dy, t * O + o);
            bias += d;
            if (dw.p) accumulate(acc, d, xr + t * I, I);
        }
        for (int64_t i = 0; dw.p && i < I; i++) put_add(dw, o * I + i, acc[i]);
        if (db.p) put_add(db, o, bias);
    }
    arena_rewind(kc->scratch, mark);
}
