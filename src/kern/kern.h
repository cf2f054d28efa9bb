/* THE KERNEL TABLE: every computation of the program, one pointer and one contract each.
 *
 * `ref` (plain C, any float type, sums in `real`) is complete and is the contract; a backend starts from its
 * copy and overrides what it does faster. Model and op code never see a backend; only `run` and `train`
 * choose one.
 *
 * Letters: T tokens (rows), C width, I,O in and out of a linear, H heads, K key/value heads, D head size, F
 * feed-forward width, V vocabulary, S rows of a key/value store. All tensors are row-major and contiguous;
 * [.., C] may be seen as rows of C (tensor_rows, tensor_cols).
 *
 * For every kernel:
 *  - activations (x, y, dx, dy, ...) are all of one type, "act": F32; `ref` also takes F64, BF16 and F16, GPUs BF16
 * and F16;
 *  - weights w are any float type and may differ from act; norms' w and biases too; matrices that a product or
 * rows_get reads may be quantised (tensor/quant.h); gradients of weights are act or F32;
 *  - indices and positions are I32, statistics (rstd, mean, lse, loss) are act or F32;
 *  - gradients accumulate (+=); a gradient with p == NULL is not wanted. The one exception: see `fresh`;
 *  - it allocates nothing (scratch comes from kctx and is given back), keeps no state, and gives the same
 * bits for the same input and the same number of threads;
 *  - a row of a result depends on its own row alone: the same bits whatever the other rows are and however many.
 * So an answer does not depend on who else is served. Sums may be in another order when kctx.decode says so;
 * gradients of weights, sums over rows, are the exception;
 *  - shapes are checked by the op that calls it, so a wrong one here is a bug.
 */
#pragma once
#include "base/arena.h"
#include "dev/dev.h"
#include "tensor/tensor.h"

struct prof;

enum { KV_PAGE = 16 }; /* rows of a page of a key/value store */

/* Queries [t0, t1) of one attention: all are of one sequence, and see of its rows at most those before `to`. */
struct kv_extent {
    int32_t t0, t1, seq, to;
};
/* Of a range on the host, [n,width]; how many, 0 if they are more than `most`. */
int kv_extents(struct kv_extent *x, int most, const int32_t *range, int n, int width);

/* What a kernel may use besides its arguments. */
struct kctx {
    struct arena *scratch; /* rewound by the kernel that takes from it */
    int n_threads;
    enum dtype product;    /* F32: matrix products are exact to f32. BF16: with bf16 weights, the other input may be
                              rounded to bf16 too (sums stay f32), as a GPU or PyTorch in bf16 does. Q8: also, with
                              quantised weights it may be rounded to 8 bits in groups of 64 along the sum: x to
                              s rint(x/s), s = max|x| / 127, or w be rounded to an act of 16 bits */
    bool decode;           /* rows are next tokens of many sequences: few, and the weights' bytes are what counts. Else
                              they are a prompt's, a picture's or a training batch's. Says which kernel to choose where
                              two would add in different orders: T must not */
    bool training;         /* products may choose their kernel by the number of rows too: a row may have other bits in
                              other company. Equal calls still give equal bits */
    const struct kv_extent *extent; /* [n_extents] what the host knows of attn_fwd's range, all queries in order: less
                                       may be computed, and no bit depends on it. 0: nothing */
    int n_extents;
    struct dev *dev;       /* whose memory all tensors and scratch are in; NULL: the host */
    struct prof *prof;     /* times what ops call: prof.h; NULL: nobody */
};

struct adamw;

struct kern {
    const char *name; /* "ref", "avx2", "avx512" */
    bool fresh; /* y of axpy and gradients of activations (not of weights) by matmul_dx, attn_bwd, swiglu_bwd,
                   dropout_bwd and xent_bwd may be TENSOR_FRESH, as if they were zeros: what would be added is written,
                   and what is there is not read */

    /* ---- matrix products. w[O,I] is a weight as checkpoints store it: rows are outputs. */

    /* y = x w^T + b + res.  x[T,I], y,res[T,O], b[O]; b, res may be absent; res may be y itself. Any T >= 1. Without
     * res, y may be F32 whatever act is (logits). */
    void (*matmul)(struct kctx *, struct tensor y, struct tensor x, struct tensor w, struct tensor b,
                   struct tensor res);
    /* dx[T,I] += dy[T,O] w[O,I] */
    void (*matmul_dx)(struct kctx *, struct tensor dx, struct tensor dy, struct tensor w);
    /* dw[O,I] += dy[T,O]^T x[T,I];  db[O] += column sums of dy.  dw or db may be absent. */
    void (*matmul_dw)(struct kctx *, struct tensor dw, struct tensor db, struct tensor dy, struct tensor x);

    /* ---- norms over the last dimension, statistics in real; C <= 16384. y may equal x. */

    /* y = w * x * rstd, rstd[T] = 1/sqrt(mean(x^2) + eps).  x,y[T,C], w[C].  arXiv:1910.07467 eq. 4 */
    void (*rmsnorm_fwd)(struct kctx *, struct tensor y, struct tensor rstd, struct tensor x, struct tensor w,
                        float eps);
    void (*rmsnorm_bwd)(struct kctx *, struct tensor dx, struct tensor dw, struct tensor dy, struct tensor x,
                        struct tensor w, struct tensor rstd);
    /* y = w * (x - mean) * rstd + b.  mean,rstd[T], variance without Bessel's correction.  arXiv:1607.06450 eq. 4 */
    void (*layernorm_fwd)(struct kctx *, struct tensor y, struct tensor mean, struct tensor rstd, struct tensor x,
                          struct tensor w, struct tensor b, float eps);
    void (*layernorm_bwd)(struct kctx *, struct tensor dx, struct tensor dw, struct tensor db, struct tensor dy,
                          struct tensor x, struct tensor w, struct tensor mean, struct tensor rstd);

    /* ---- attention */

    /* Rotates, in place, each head of x[T,H*D] by its token's position: with c = table[pos][i], s = table[pos][D/2+i],
     * (x_i, x_{i+D/2}) becomes (x_i c - x_{i+D/2} s*dir, x_{i+D/2} c + x_i s*dir) for i < D/2.
     * pos[T] I32; table[P,D] F32 = cos | sin; dir +1 forward, -1 undoes it (and is its own backward).
     * arXiv:2104.09864 eq. 34 in the half-split layout of transformers' rotate_half. */
    void (*rope)(struct kctx *, struct tensor x, struct tensor pos, struct tensor table, int dir);
    /* y[t] = softmax(scale * q[t] k[from..to)^T) v[from..to) for every head, [from,to) = range[t].
     * q,y[T,H*D]; k,v[S,K*D] act, F16, BF16 or Q8 (a cache); head h reads key/value head h / (H/K); range[T,2] I32 with
     * 0 <= from < to <= S; lse[T,H] = log of the sum of exponentials, or absent. Causal, bidirectional, packed and
     * cached attention are all just ranges. arXiv:1706.03762 eq. 1; softmax with running maximum.
     * pages present: k and v are a store of pages of KV_PAGE rows, pages[B,M] I32 says which pages a sequence has, and
     * range[T,3] = from, to, b counts the rows of sequence b: its row s is k[pages[b][s / KV_PAGE] * KV_PAGE
     * + s % KV_PAGE]. Entries of pages behind the last `to` are not read. */
    void (*attn_fwd)(struct kctx *, struct tensor y, struct tensor lse, struct tensor q, struct tensor k,
                     struct tensor v, struct tensor range, struct tensor pages, int heads, float scale);
    /* dq, dk, dv from dy. k,v are act here. */
    void (*attn_bwd)(struct kctx *, struct tensor dq, struct tensor dk, struct tensor dv, struct tensor dy,
                     struct tensor y, struct tensor lse, struct tensor q, struct tensor k, struct tensor v,
                     struct tensor range, int heads, float scale);

    /* ---- element by element; y may equal the (first) input in forward kernels */

    /* y = silu(g) * u, silu(x) = x / (1 + e^-x).  all [T,F].  arXiv:2002.05202 eq. 6 */
    void (*swiglu_fwd)(struct kctx *, struct tensor y, struct tensor g, struct tensor u);
    void (*swiglu_bwd)(struct kctx *, struct tensor dg, struct tensor du, struct tensor dy, struct tensor g,
                       struct tensor u);
    /* y = x * Phi(x), exact (erf).  arXiv:1606.08415 */
    void (*gelu_fwd)(struct kctx *, struct tensor y, struct tensor x);
    void (*gelu_bwd)(struct kctx *, struct tensor dx, struct tensor dy, struct tensor x);
    /* y = x * sigmoid(1.702 x): CLIP's "quick_gelu" */
    void (*quick_gelu_fwd)(struct kctx *, struct tensor y, struct tensor x);
    void (*quick_gelu_bwd)(struct kctx *, struct tensor dx, struct tensor dy, struct tensor x);
    /* y = a + b */
    void (*add)(struct kctx *, struct tensor y, struct tensor a, struct tensor b);
    /* y += a * x */
    void (*axpy)(struct kctx *, struct tensor y, struct tensor x, float a);
    /* y = x in y's type; a float type or quantised, not both of them quantised. Same type: a copy. */
    void (*cast)(struct kctx *, struct tensor y, struct tensor x);
    void (*zero)(struct kctx *, struct tensor y);

    /* ---- rows by index. idx[n] I32. Embedding, splicing pictures into text, key/value stores and their backwards. */

    /* y[i] = x[idx[i]]; zeros where idx[i] < 0.  y[n,C] act, x[m,C] any float type */
    void (*rows_get)(struct kctx *, struct tensor y, struct tensor x, struct tensor idx);
    /* y[idx[i]] = x[i]; skipped where idx[i] < 0. Indices are distinct.  y[m,C] any float type or Q8, x[n,C] act */
    void (*rows_put)(struct kctx *, struct tensor y, struct tensor idx, struct tensor x);
    /* y[i] += x[idx[i]], nothing where idx[i] < 0 */
    void (*rows_get_add)(struct kctx *, struct tensor y, struct tensor x, struct tensor idx);
    /* y[idx[i]] += x[i], skipped where idx[i] < 0; indices may repeat and are added in order of i */
    void (*rows_put_add)(struct kctx *, struct tensor y, struct tensor idx, struct tensor x);

    /* ---- pictures */

    /* y[n*P + r*g + c] = the p x p square at row r, column c of picture n, channels outermost: a convolution
     * with stride = kernel = p is then a matmul with w[O, 3*p*p].  x[N,3,S,S], y[N*g*g, 3*p*p], g = S/p (a
     * rest is dropped). */
    void (*patchify_fwd)(struct kctx *, struct tensor y, struct tensor x, int p);
    void (*patchify_bwd)(struct kctx *, struct tensor dx, struct tensor dy, int p);

    /* ---- loss */

    /* loss[t] = logsumexp(logits[t]) - (1 - smooth) logits[t, target[t]] - smooth mean(logits[t]): the target has
     * 1 - smooth of the weight and all tokens share the rest (arXiv:1512.00567 section 7); 0 where target[t] < 0
     * (ignored).  logits[T,V], target[T] I32, loss[T], lse[T] kept for the backward. */
    void (*xent_fwd)(struct kctx *, struct tensor loss, struct tensor lse, struct tensor logits, struct tensor target,
                     float smooth);
    /* dlogits[t,v] += (softmax(logits[t])_v - (1 - smooth) [v == target[t]] - smooth / V) * dloss[t]; ignored rows add
     * nothing */
    void (*xent_bwd)(struct kctx *, struct tensor dlogits, struct tensor dloss, struct tensor logits, struct tensor lse,
                     struct tensor target, float smooth);

    /* ---- tokens */

    /* token[s] = the token chosen from logits[t], with s and how given by how[t]: -1 if a logit is NaN or +infinity, or
     * all are -infinity. Greedy: the largest, the first of equals. Else as transformers' logits processors have it:
     * temperature, then top-k (ties with the k-th stay), then top-p over what is left (of equals the first go first),
     * and one draw. In integers (choose.h): all backends choose the same.
     * logits[T,V] F32, V <= CHOOSE_V_MAX; token[S] I32; how[T,sizeof(struct choice)] U8, 8-byte aligned */
    void (*choose)(struct kctx *, struct tensor token, struct tensor logits, struct tensor how);
    /* y[i] = idx[i], and chosen[-2 - idx[i]] where idx[i] < -1: tokens of which the host may not know yet. all I32 */
    void (*tokens_get)(struct kctx *, struct tensor y, struct tensor chosen, struct tensor idx);

    /* ---- training. What is seen as one row of numbers here may have any shape. */

    /* y = x with each element zeroed with probability p, the others times 1/(1-p). Which: kern_drop of key and
     * the element's index, so that the same call gives the same zeros and nothing is kept.  0 <= p < 1.
     * JMLR 15 (2014) 1929, inverted */
    void (*dropout)(struct kctx *, struct tensor y, struct tensor x, float p, uint64_t key);
    /* dx += dropout(dy) */
    void (*dropout_bwd)(struct kctx *, struct tensor dx, struct tensor dy, float p, uint64_t key);
    /* y[1] = sum of x^2. y act or F32; sums in double, their order depends on x's length only. */
    void (*sumsq)(struct kctx *, struct tensor y, struct tensor x);
    /* One step of AdamW on w with the gradient g * a->scale; m, v are its moments; all in place.  w,m,v F32 (F64);
     * g act or F32; low, any float type, or absent: w once more, rounded.
     *   m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2;  w = w (1 - lr decay) - lr m / fix1 / (sqrt(v / fix2) + eps)
     * arXiv:1711.05101 algorithm 2, as torch.optim.AdamW orders it; scale, learning rate and decay may be 0. */
    void (*adamw)(struct kctx *, struct tensor w, struct tensor m, struct tensor v, struct tensor low, struct tensor g,
                  const struct adamw *a);
    /* The same with moments of 8 bits: m, v U8, each block of KERN_BLOCK8 elements times its scale, ms, vs F32
     * [ceil(n/KERN_BLOCK8)], codes of kern/code8.h (m signed, v unsigned). w F32, or BF16, which is then rounded up or
     * down at random (kern_drop_hash of a->key and the element's index).  arXiv:2110.02861 */
    void (*adamw8)(struct kctx *, struct tensor w, struct tensor m, struct tensor ms, struct tensor v, struct tensor vs,
                   struct tensor g, const struct adamw *a);

    /* ---- composites. NULL: there is none, and op uses the kernels above. */

    /* rmsnorm_fwd and swiglu_fwd, and yd = dropout(y, p, key) in one, for even widths; y absent: nobody reads it. The
     * bits of the kernels one by one. */
    void (*rmsnorm_drop)(struct kctx *, struct tensor y, struct tensor yd, struct tensor rstd, struct tensor x,
                         struct tensor w, float eps, float p, uint64_t key);
    void (*swiglu_drop)(struct kctx *, struct tensor y, struct tensor yd, struct tensor g, struct tensor u, float p,
                        uint64_t key);

    /* In decode only; h = rmsnorm(x, norm) may be rounded to act, before or after it is divided by the root. */

    /* y[i] = h w[i]^T + b[i], i < n <= 3.  x[T,I], norm[I], w[i][O_i,I] of one type of matmul's, y[i][T,O_i] act; b[i]
     * may be absent */
    void (*norm_matmul)(struct kctx *, const struct tensor *y, struct tensor x, struct tensor norm, float eps,
                        const struct tensor *w, const struct tensor *b, int n);
    /* y = silu(h gate^T) * (h up^T).  gate,up[F,I] of one type, y[T,F] */
    void (*norm_glu)(struct kctx *, struct tensor y, struct tensor x, struct tensor norm, float eps, struct tensor gate,
                     struct tensor up);
    /* y[i] = x w[i]^T + b[i], i < n <= 3, all of one shape and type; b[i] all there or all absent. Not in decode: what
     * one product leaves of the machine the next one takes */
    void (*matmul_each)(struct kctx *, const struct tensor *y, struct tensor x, const struct tensor *w,
                        const struct tensor *b, int n);
    /* rope of q and k in place, then rows of k and v into their stores, as rows_put has it: not in decode only. */
    void (*rope_store)(struct kctx *, struct tensor q, struct tensor k, struct tensor v, struct tensor pos,
                       struct tensor table, struct tensor k_store, struct tensor v_store, struct tensor idx);
    /* In decode only: rope_store, and attn_fwd over the stores. The last row of a token's range is its own: its k and v
     * go to idx[t], where that row lies, and no other token sees it; k_store and v_store are not written by what was
     * called just before. Where idx[t] < 0 nothing is stored, and y is anything. q and k may be left rotated. */
    void (*rope_attn)(struct kctx *, struct tensor y, struct tensor q, struct tensor k, struct tensor v,
                      struct tensor pos, struct tensor table, struct tensor k_store, struct tensor v_store,
                      struct tensor idx, struct tensor range, struct tensor pages, float scale);
};

/* What a step of AdamW needs besides its tensors. */
struct adamw {
    float lr, beta1, beta2, eps, decay;
    float scale;      /* of the gradient: clipping */
    float fix1, fix2; /* 1 - beta1^t, 1 - beta2^t of step t = 1, 2, ... */
    uint64_t key;     /* adamw8: of the step and the tensor, random looking */
};

/* Is element i dropped? Half of a hash of key and i / 2, below p 2^16: the lower half for an even i. Two rounds of a
 * 32-bit mixer whose bias is small (C. Wellons, "lowbias32"): cheap on every device. Keys should look random
 * themselves; i < 2^33. */
#ifndef KERN_FN
#define KERN_FN static inline /* and on the device, where there is one */
#endif
KERN_FN uint32_t kern_mix(uint32_t x)
{
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}
KERN_FN uint32_t kern_drop_below(float p) { return (uint32_t)((double)p * 65536.0); }
KERN_FN uint32_t kern_drop_hash(uint64_t key, uint32_t i)
{
    return kern_mix(kern_mix(i ^ (uint32_t)key) + (uint32_t)(key >> 32));
}
KERN_FN bool kern_drop(uint64_t key, int64_t i, uint32_t below)
{
    const uint32_t h = kern_drop_hash(key, (uint32_t)(i / 2));
    return (i % 2 ? h >> 16 : h & 0xffff) < below;
}

/* Complete, slow, exact; the oracle of every other backend. Compiled once with real = float and, for the
 * gradient tests, once more with real = double. */
extern const struct kern kern_ref;

/* Fills *k for the processor this runs on: kern_ref overridden with AVX2 or AVX-512 kernels.
 * `isa` NULL: the best there is; "ref", "avx2", "avx512": at most that. Returns k->name. */
const char *kern_init_cpu(struct kern *k, const char *isa);
/* For the GPU that d is, in builds that have one. Matrix products of F32 activations are exact to f32 there whatever
 * kctx.product says. */
int kern_init_gpu(struct kern *k, struct dev *d, struct err *e);
/* Either; isa is the host's. */
int kern_init(struct kern *k, struct dev *d, const char *isa, struct err *e);
