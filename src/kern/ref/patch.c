/* Pictures cut into squares, and put together again. Scratch: none. */
#include "kern/ref/real.h"

/* Which element of the pictures x[N,3,S,S] is element k of the patches [N*g*g, 3*p*p]. */
static int64_t pixel_of(struct tensor x, int64_t k, int64_t p)
{
    const int64_t size = x.n[3], chans = x.n[1], g = size / p;
    const int64_t col = k % p, row = k / p % p, chan = k / (p * p) % chans, patch = k / (p * p * chans);
    const int64_t picture = patch / (g * g), down = patch / g % g * p + row, right = patch % g * p + col;
    return ((picture * chans + chan) * size + down) * size + right;
}

void ref_patchify_fwd(struct kctx *kc, struct tensor y, struct tensor x, int p)
{
    const int64_t n = tensor_count(y);
#pragma omp parallel for schedule(static) num_threads(kc->n_threads)
    for (int64_t k = 0; k < n; k++) put(y, k, at(x, pixel_of(x, k, p)));
}

/* Squares do not overlap, so no two threads meet. */
void ref_patchify_bwd(struct kctx *kc, struct tensor dx, struct tensor dy, int p)
{
    if (!dx.p) return;
    const int64_t n = tensor_count(dy);
#pragma omp parallel for schedule(static) num_threads(kc->n_threads)
    for (int64_t k = 0; k < n; k++) put_add(dx, pixel_of(dx, k, p), at(dy, k));
}
