/* Every kernel of every backend against the reference in double: one row per kernel.
 *
 * A row says what each argument is (read, written, added to; which letters make its shape), so that one body
 * can fill, poison, run and compare all of them. The oracle is kern_ref compiled with real = double on F64
 * copies of the very values that the backend gets. Kernels that copy or add once must give its result,
 * rounded, to the bit. For the others the bound is derived: the oracle is run again with every input changed
 * by a relative +-delta at random, which gives the sensitivity S of each row of the output, and a result y is
 * right when
 *
 *     |y - oracle| <= u_out |oracle| + u_f32 (8 + 2 sqrt(n)) max(S, |oracle|)
 *
 * with u the unit roundoff of the output's type and of f32, and n the length of the longest sum (rounding
 * errors of a sum grow like the square root of its length; 8 covers what functions like exp add). So a kernel
 * must be as good as exact arithmetic on inputs that differ in their last bits. Besides: inputs stay as they
 * are, equal runs give equal bits, a token's row has the same bits alone and among others, scratch is given back,
 * y may be x where the contract says so, and absent arguments may be absent.
 *
 *     rows [--bench] [kernel ...]
 */
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/plat.h"
#include "base/rng.h"
#include "kern/kern.h"

extern const struct kern kern_ref64; /* kern_ref with real = double */

/* ---- rows */

enum { ARGS = 12, SAMPLES = 4 };

struct dims { int64_t n[26]; }; /* sizes by letter */
static int64_t size(const struct dims *d, char letter) { return d->n[letter - 'A']; }

enum role {
    END,
    IN, WIDE,                   /* act; WIDE has large values too */
    WEIGHT, CACHE, TABLE, STAT, /* weight type; that or act; cos and sin; given by the forward kernel */
    OUT, OUT_STAT,              /* written over, so poisoned before */
    CHANGE, PUT,                /* act changed in place; rows of a store of any type */
    STATE, SQUARES, STATE_IN,   /* act or F32: changed in place, squares in place, read */
    ADD, ADD_W,                 /* gradients; of weights */
    POS, RANGE, PAGES, INDEX, DISTINCT, TARGET,
};

struct arg {
    enum role role;
    const char *shape; /* "T.HD" is [T, H*D]; "?" first: may be absent */
};

struct row {
    const char *name;
    size_t slot; /* of the pointer in struct kern */
    void (*call)(const struct kern *, struct kctx *, const struct tensor *a, const struct dims *);
    void (*prepare)(struct kctx *, struct tensor *a, const struct dims *); /* by kern_ref64: STAT and such */
    struct arg arg[ARGS];
    const char *sum;            /* letters; the largest is n of the bound. EXACT: equal to the bit */
    int same;                   /* this argument may be argument 0 itself; 0: none */
    bool steps;                 /* rounds to act after every step of the sum */
    bool product;               /* obeys kctx.product */
    bool by_place;              /* what a row becomes depends on where it stands */
    const char *shapes, *bench; /* "T1 I7 O33; T7 ..." */
    const char *flops;          /* a product of letters and digits */
};

#define CALL(kernel, ...)                                                                                \
    static void call_##kernel(const struct kern *k, struct kctx *kc, const struct tensor *a,             \
                              const struct dims *d)                                                      \
    {                                                                                                    \
        (void)d;                                                                                         \
        k->kernel(kc, __VA_ARGS__);                                                                      \
    }
#define SCALE (1.5f / sqrtf((float)size(d, 'D')))
static const float eps = 1e-5f;

CALL(matmul, a[0], a[1], a[2], a[3], a[4])
CALL(matmul_dx, a[0], a[1], a[2])
CALL(matmul_dw, a[0], a[1], a[2], a[3])
CALL(rmsnorm_fwd, a[0], a[1], a[2], a[3], eps)
CALL(rmsnorm_bwd, a[0], a[1], a[2], a[3], a[4], a[5])
CALL(layernorm_fwd, a[0], a[1], a[2], a[3], a[4], a[5], eps)
CALL(layernorm_bwd, a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7])
CALL(rope, a[0], a[1], a[2], size(d, 'M') ? -1 : 1)
CALL(attn_fwd, a[0], a[1], a[2], a[3], a[4], a[5], a[6], (int)size(d, 'H'), SCALE)
CALL(attn_bwd, a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], (int)size(d, 'H'), SCALE)
CALL(swiglu_fwd, a[0], a[1], a[2])
CALL(swiglu_bwd, a[0], a[1], a[2], a[3], a[4])
CALL(gelu_fwd, a[0], a[1])
CALL(gelu_bwd, a[0], a[1], a[2])
CALL(quick_gelu_fwd, a[0], a[1])
CALL(quick_gelu_bwd, a[0], a[1], a[2])
CALL(add, a[0], a[1], a[2])
CALL(axpy, a[0], a[1], 0.37f)
CALL(cast, a[0], a[1])
CALL(zero, a[0])
CALL(rows_get, a[0], a[1], a[2])
CALL(rows_put, a[0], a[1], a[2])
CALL(rows_get_add, a[0], a[1], a[2])
CALL(rows_put_add, a[0], a[1], a[2])
CALL(patchify_fwd, a[0], a[1], (int)size(d, 'P'))
CALL(patchify_bwd, a[0], a[1], (int)size(d, 'P'))
CALL(xent_fwd, a[0], a[1], a[2], a[3])
CALL(xent_bwd, a[0], a[1], a[2], a[3], a[4])
CALL(dropout, a[0], a[1], 0.3f, 77)
CALL(sumsq, a[0], a[1])
static const struct adamw step = { 0.02f, 0.9f, 0.98f, 1e-6f, 0.1f, 0.5f, 0.2f, 0.05f };
CALL(adamw, a[0], a[1], a[2], a[3], a[4], &step)

/* An F64 tensor of t's shape, for results that nobody reads. */
static struct tensor spare(struct kctx *kc, struct tensor t)
{
    t.type = DT_F64;
    t.p = arena_take(kc->scratch, tensor_bytes(t));
    return t;
}

static void prepare_rmsnorm(struct kctx *kc, struct tensor *a, const struct dims *d)
{
    (void)d;
    kern_ref64.rmsnorm_fwd(kc, spare(kc, a[3]), a[5], a[3], a[4], eps);
}

static void prepare_layernorm(struct kctx *kc, struct tensor *a, const struct dims *d)
{
    (void)d;
    kern_ref64.layernorm_fwd(kc, spare(kc, a[4]), a[6], a[7], a[4], a[5], a[5], eps);
}

static void prepare_attn(struct kctx *kc, struct tensor *a, const struct dims *d)
{
    kern_ref64.attn_fwd(kc, a[4], a[5], a[6], a[7], a[8], a[9], (struct tensor){ 0 }, (int)size(d, 'H'), SCALE);
}

static void prepare_xent(struct kctx *kc, struct tensor *a, const struct dims *d)
{
    (void)d;
    kern_ref64.xent_fwd(kc, spare(kc, a[3]), a[3], a[2], a[4]);
}

#define MATMULS                                                                                          \
    "T1 I64 O33; T1 I577 O7; T2 I1 O1; T3 I7 O32; T4 I160 O48; T7 I33 O65; T8 I128 O96; T17 I576 O40; "  \
    "T33 I31 O130; T64 I512 O256; T130 I96 O192"
#define MATMUL_BENCH "T1 I4096 O8192; T4 I4096 O8192; T32 I2048 O5632; T640 I2048 O5632"
#define NORMS "T1 C1; T1 C7; T3 C33; T7 C577; T33 C128; T5 C1024"
#define NORM_BENCH "T1 C4096; T640 C4096"
/* M: 0 causal after a cache of S - T, 1 all of S, 2 packed segments */
#define ATTNS                                                                                            \
    "T1 S1 H1 K1 D2; T1 S33 H4 K4 D64; T1 S577 H8 K2 D128; T7 S7 H3 K3 D7; T5 S37 H4 K1 D32; "           \
    "T65 S65 H2 K2 D64; T33 S33 H4 K2 D80 M1; T70 S70 H2 K1 D64 M2; T19 S130 H2 K2 D128; "               \
    "T9 S577 H1 K1 D64 M1"
/* Two to five sequences (B) of up to N pages; M: the window, 0 none */
#define ATTNS_PAGED                                                                                      \
    "T2 B2 N1 S32 H1 K1 D8; T5 B5 N3 S240 H4 K4 D64; T40 B3 N9 S432 H4 K2 D128; T7 B2 N20 S640 H8 K1 D32; "\
    "T50 B2 N6 S192 H2 K2 D80 M20; T3 B3 N40 S1920 H2 K2 D64 M300"
#define ATTN_BENCH "T1 S2048 H32 K32 D128; T640 S640 H16 K16 D128; T577 S577 H16 K16 D64 M1"
#define ELEMS "T1 F1; T1 F7; T3 F33; T7 F577; T64 F512; T300 F250"
#define ELEM_BENCH "T640 F5632"
#define ROWS "N1 M1 C1; N3 M7 C7; N7 M33 C33; N33 M40 C577; N130 M200 C64"
#define XENTS "T1 V1; T1 V7; T7 V33; T33 V577; T3 V32000"
#define ROWS_BENCH "N2000 M2000 C4096"

#define EXACT NULL
#define ROW(kernel) .name = #kernel, .slot = offsetof(struct kern, kernel), .call = call_##kernel
static const struct row rows[] = {
    { ROW(matmul),
      .arg = { { OUT, "T.O" }, { IN, "T.I" }, { WEIGHT, "O.I" }, { WEIGHT, "?O" }, { IN, "?T.O" } },
      .sum = "I", .same = 4, .product = true, .shapes = MATMULS, .bench = MATMUL_BENCH, .flops = "2TIO" },
    { ROW(matmul_dx), .arg = { { ADD, "T.I" }, { IN, "T.O" }, { WEIGHT, "O.I" } },
      .sum = "O", .product = true, .shapes = MATMULS, .bench = "T640 I2048 O5632", .flops = "2TIO" },
    { ROW(matmul_dw), .arg = { { ADD_W, "?O.I" }, { ADD_W, "?O" }, { IN, "T.O" }, { IN, "T.I" } },
      .sum = "T", .product = true, .shapes = MATMULS, .bench = "T640 I2048 O5632", .flops = "2TIO" },
    { ROW(rmsnorm_fwd), .arg = { { OUT, "T.C" }, { OUT_STAT, "?T" }, { IN, "T.C" }, { WEIGHT, "C" } },
      .sum = "C", .same = 2, .shapes = NORMS, .bench = NORM_BENCH, .flops = "4TC" },
    { ROW(rmsnorm_bwd), .prepare = prepare_rmsnorm,
      .arg = { { ADD, "?T.C" }, { ADD_W, "?C" }, { IN, "T.C" }, { IN, "T.C" }, { WEIGHT, "C" },
               { STAT, "T" } },
      .sum = "TC", .shapes = NORMS, .bench = NORM_BENCH, .flops = "9TC" },
    { ROW(layernorm_fwd),
      .arg = { { OUT, "T.C" }, { OUT_STAT, "?T" }, { OUT_STAT, "?T" }, { IN, "T.C" }, { WEIGHT, "C" },
               { WEIGHT, "C" } },
      .sum = "C", .same = 3, .shapes = NORMS, .bench = NORM_BENCH, .flops = "7TC" },
    { ROW(layernorm_bwd), .prepare = prepare_layernorm,
      .arg = { { ADD, "?T.C" }, { ADD_W, "?C" }, { ADD_W, "?C" }, { IN, "T.C" }, { IN, "T.C" },
               { WEIGHT, "C" }, { STAT, "T" }, { STAT, "T" } },
      .sum = "TC", .shapes = NORMS, .bench = NORM_BENCH, .flops = "9TC" },
    { ROW(rope), .arg = { { CHANGE, "T.HD" }, { POS, "T" }, { TABLE, "V.D" } },
      .sum = "", .shapes = "T1 H1 D2 V1; T7 H3 D14 V33; T33 H4 D64 V40; T5 H2 D128 V577 M1; T3 H1 D80 V9 M1",
      .bench = "T640 H32 D128 V2048", .flops = "3THD" },
    { ROW(attn_fwd),
      .arg = { { OUT, "T.HD" }, { OUT_STAT, "?T.H" }, { IN, "T.HD" }, { CACHE, "S.KD" }, { CACHE, "S.KD" },
               { RANGE, "T.2" } },
      .sum = "SD", .shapes = ATTNS, .bench = ATTN_BENCH, .flops = "4THSD" },
    { .name = "attn_fwd_paged", .slot = offsetof(struct kern, attn_fwd), .call = call_attn_fwd,
      .arg = { { OUT, "T.HD" }, { OUT_STAT, "?T.H" }, { IN, "T.HD" }, { CACHE, "S.KD" }, { CACHE, "S.KD" },
               { RANGE, "T.3" }, { PAGES, "B.N" } },
      .sum = "SD", .shapes = ATTNS_PAGED, .bench = "T16 B16 N64 S16384 H32 K32 D128", .flops = "4THSD" },
    { ROW(attn_bwd), .prepare = prepare_attn,
      .arg = { { ADD, "?T.HD" }, { ADD, "?S.KD" }, { ADD, "?S.KD" }, { IN, "T.HD" }, { IN, "T.HD" },
               { STAT, "T.H" }, { IN, "T.HD" }, { IN, "S.KD" }, { IN, "S.KD" }, { RANGE, "T.2" } },
      .sum = "SDT", .shapes = ATTNS, .bench = "T640 S640 H16 K16 D128; T577 S577 H16 K16 D64 M1",
      .flops = "52THSD" },
    { ROW(swiglu_fwd), .arg = { { OUT, "T.F" }, { WIDE, "T.F" }, { IN, "T.F" } },
      .sum = "", .same = 1, .shapes = ELEMS, .bench = ELEM_BENCH, .flops = "4TF" },
    { ROW(swiglu_bwd),
      .arg = { { ADD, "?T.F" }, { ADD, "?T.F" }, { IN, "T.F" }, { WIDE, "T.F" }, { IN, "T.F" } },
      .sum = "", .shapes = ELEMS, .bench = ELEM_BENCH, .flops = "9TF" },
    { ROW(gelu_fwd), .arg = { { OUT, "T.F" }, { WIDE, "T.F" } },
      .sum = "", .same = 1, .shapes = ELEMS, .bench = ELEM_BENCH, .flops = "4TF" },
    { ROW(gelu_bwd), .arg = { { ADD, "?T.F" }, { IN, "T.F" }, { WIDE, "T.F" } },
      .sum = "", .shapes = ELEMS, .bench = ELEM_BENCH, .flops = "8TF" },
    { ROW(quick_gelu_fwd), .arg = { { OUT, "T.F" }, { WIDE, "T.F" } },
      .sum = "", .same = 1, .shapes = ELEMS, .bench = ELEM_BENCH, .flops = "4TF" },
    { ROW(quick_gelu_bwd), .arg = { { ADD, "?T.F" }, { IN, "T.F" }, { WIDE, "T.F" } },
      .sum = "", .shapes = ELEMS, .bench = ELEM_BENCH, .flops = "8TF" },
    { ROW(add), .arg = { { OUT, "T.F" }, { IN, "T.F" }, { IN, "T.F" } },
      .sum = EXACT, .same = 1, .shapes = ELEMS, .bench = ELEM_BENCH, .flops = "TF" },
    { ROW(axpy), .arg = { { ADD, "T.F" }, { IN, "T.F" } },
      .sum = "", .shapes = ELEMS, .bench = ELEM_BENCH, .flops = "2TF" },
    { ROW(cast), .arg = { { PUT, "T.F" }, { IN, "T.F" } },
      .sum = EXACT, .shapes = ELEMS, .bench = ELEM_BENCH },
    { ROW(zero), .arg = { { OUT, "T.F" } }, .sum = EXACT, .shapes = ELEMS, .bench = ELEM_BENCH },
    { ROW(rows_get), .arg = { { OUT, "N.C" }, { WEIGHT, "M.C" }, { INDEX, "N" } },
      .sum = EXACT, .shapes = ROWS, .bench = ROWS_BENCH },
    { ROW(rows_put), .arg = { { PUT, "M.C" }, { DISTINCT, "N" }, { IN, "N.C" } },
      .sum = EXACT, .shapes = ROWS, .bench = ROWS_BENCH },
    { ROW(rows_get_add), .arg = { { ADD, "N.C" }, { IN, "M.C" }, { INDEX, "N" } },
      .sum = EXACT, .shapes = ROWS, .bench = ROWS_BENCH },
    { ROW(rows_put_add), .arg = { { ADD, "M.C" }, { INDEX, "N" }, { IN, "N.C" } },
      .sum = "N", .steps = true, .shapes = ROWS, .bench = ROWS_BENCH },
    { ROW(patchify_fwd), .arg = { { OUT, "NGG.3PP" }, { IN, "N.3.S.S" } },
      .sum = EXACT, .shapes = "N1 P1 G1 S1; N2 P3 G2 S7; N1 P14 G3 S42; N3 P7 G1 S13",
      .bench = "N1 P14 G24 S336" },
    { ROW(patchify_bwd), .arg = { { ADD, "?N.3.S.S" }, { IN, "NGG.3PP" } },
      .sum = EXACT, .shapes = "N1 P1 G1 S1; N2 P3 G2 S7; N1 P14 G3 S42; N3 P7 G1 S13",
      .bench = "N1 P14 G24 S336" },
    { ROW(xent_fwd), .arg = { { OUT_STAT, "T" }, { OUT_STAT, "T" }, { WIDE, "T.V" }, { TARGET, "T" } },
      .sum = "V", .shapes = XENTS, .bench = "T256 V32000", .flops = "4TV" },
    { ROW(xent_bwd), .prepare = prepare_xent,
      .arg = { { ADD, "?T.V" }, { IN, "T" }, { WIDE, "T.V" }, { STAT, "T" }, { TARGET, "T" } },
      .sum = "", .shapes = XENTS, .bench = "T256 V32000", .flops = "5TV" },
    { ROW(dropout), .by_place = true, .arg = { { OUT, "T.F" }, { IN, "T.F" } },
      .sum = EXACT, .same = 1, .shapes = ELEMS, .bench = ELEM_BENCH },
    { ROW(sumsq), .arg = { { OUT_STAT, "1" }, { IN, "T.F" } },
      .sum = "TF", .shapes = ELEMS "; T3 F4097", .bench = ELEM_BENCH, .flops = "2TF" },
    { ROW(adamw),
      .arg = { { STATE, "T.F" }, { STATE, "T.F" }, { SQUARES, "T.F" }, { PUT, "?T.F" }, { STATE_IN, "T.F" } },
      .sum = "", .shapes = ELEMS, .bench = "T5632 F2048", .flops = "14TF" },
};

/* ---- arguments by role */

static void fill_normal(struct rng *r, struct tensor t, const struct dims *d)
{
    (void)d;
    for (int64_t i = 0, n = tensor_count(t); i < n; i++) ((double *)t.p)[i] = rng_normal(r);
}

static void fill_wide(struct rng *r, struct tensor t, const struct dims *d)
{
    (void)d;
    for (int64_t i = 0, n = tensor_count(t); i < n; i++)
        ((double *)t.p)[i] = rng_normal(r) * (rng_u64(r) % 4 ? 1 : 20);
}

static void fill_squares(struct rng *r, struct tensor t, const struct dims *d)
{
    fill_normal(r, t, d);
    for (int64_t i = 0, n = tensor_count(t); i < n; i++) ((double *)t.p)[i] *= ((double *)t.p)[i];
}

static void fill_table(struct rng *r, struct tensor t, const struct dims *d)
{
    const int64_t half = size(d, 'D') / 2;
    for (int64_t i = 0, n = tensor_count(t); i < n; i += 2 * half)
        for (int64_t j = 0; j < half; j++) {
            const double angle = 6.3 * rng_unit(r);
            ((double *)t.p)[i + j] = cos(angle);
            ((double *)t.p)[i + half + j] = sin(angle);
        }
}

/* Nothing: NaN in every float type. */
static void fill_poison(struct rng *r, struct tensor t, const struct dims *d)
{
    (void)r, (void)d;
    memset(t.p, 0xff, tensor_bytes(t));
}

static void fill_pos(struct rng *r, struct tensor t, const struct dims *d)
{
    for (int64_t i = 0; i < t.n[0]; i++) ((int32_t *)t.p)[i] = (int32_t)(rng_u64(r) % (uint64_t)size(d, 'V'));
}

/* Tokens of a sequence stand together and end where it ends; sequences end anywhere in their pages. */
static void fill_range_paged(struct rng *r, struct tensor t, const struct dims *d)
{
    const int64_t T = size(d, 'T'), B = size(d, 'B'), most = size(d, 'N') * KV_PAGE, window = size(d, 'M');
    int32_t *to = t.p;
    for (int64_t b = 0, i = 0; b < B; b++) {
        const int64_t n = (b + 1) * T / B - i, end = n + (int64_t)(rng_u64(r) % (uint64_t)(most - n + 1));
        for (int64_t k = 0; k < n; k++, i++) {
            to[3 * i + 1] = (int32_t)(end - n + k + 1);
            to[3 * i] = window && to[3 * i + 1] > window ? to[3 * i + 1] - (int32_t)window : 0;
            to[3 * i + 2] = (int32_t)b;
        }
    }
}

/* Every page of the store once, in any order. */
static void fill_pages(struct rng *r, struct tensor t, const struct dims *d)
{
    (void)d;
    int32_t *p = t.p;
    for (int64_t i = 0, n = tensor_count(t); i < n; i++) {
        const int64_t k = (int64_t)(rng_u64(r) % (uint64_t)(i + 1));
        p[i] = p[k];
        p[k] = (int32_t)i;
    }
}

static void fill_range(struct rng *r, struct tensor t, const struct dims *d)
{
    if (t.n[1] == 3) {
        fill_range_paged(r, t, d);
        return;
    }
    const int64_t T = size(d, 'T'), S = size(d, 'S');
    int64_t segment = 0;
    for (int64_t i = 0; i < T; i++) {
        if (size(d, 'M') == 2 && rng_u64(r) % 16 == 0) segment = i;
        ((int32_t *)t.p)[2 * i] = (int32_t)segment;
        ((int32_t *)t.p)[2 * i + 1] = (int32_t)(size(d, 'M') == 1 ? S : S - T + i + 1);
    }
}

/* Rows of M, with repeats and, one in five, none. */
static void fill_index(struct rng *r, struct tensor t, const struct dims *d)
{
    for (int64_t i = 0; i < t.n[0]; i++)
        ((int32_t *)t.p)[i] = rng_u64(r) % 5 ? (int32_t)(rng_u64(r) % (uint64_t)size(d, 'M')) : -1;
}

/* Ascending, so distinct, with gaps while there is room; one in five is none. */
static void fill_distinct(struct rng *r, struct tensor t, const struct dims *d)
{
    int64_t spare_rows = size(d, 'M') - t.n[0];
    for (int64_t i = 0, row = 0; i < t.n[0]; i++, row++) {
        if (spare_rows && rng_u64(r) % 2) row++, spare_rows--;
        ((int32_t *)t.p)[i] = rng_u64(r) % 5 ? (int32_t)row : -1;
    }
}

static void fill_target(struct rng *r, struct tensor t, const struct dims *d)
{
    for (int64_t i = 0; i < t.n[0]; i++)
        ((int32_t *)t.p)[i] = rng_u64(r) % 4 ? (int32_t)(rng_u64(r) % (uint64_t)size(d, 'V')) : -1;
}

enum type_rule { ACT, W, ACT_OR_W, ACT_OR_F32, F32, I32 };
static const struct {
    enum type_rule type;
    bool written;
    void (*fill)(struct rng *, struct tensor, const struct dims *);
} roles[] = {
    [IN] = { ACT, false, fill_normal },         [WIDE] = { ACT, false, fill_wide },
    [WEIGHT] = { W, false, fill_normal },       [CACHE] = { ACT_OR_W, false, fill_normal },
    [TABLE] = { F32, false, fill_table },       [STAT] = { ACT_OR_F32, false, fill_normal },
    [OUT] = { ACT, true, fill_poison },         [OUT_STAT] = { ACT_OR_F32, true, fill_poison },
    [CHANGE] = { ACT, true, fill_normal },      [PUT] = { W, true, fill_normal },
    [STATE] = { ACT_OR_F32, true, fill_normal }, [SQUARES] = { ACT_OR_F32, true, fill_squares },
    [STATE_IN] = { ACT_OR_F32, false, fill_normal },
    [ADD] = { ACT, true, fill_normal },         [ADD_W] = { ACT_OR_F32, true, fill_normal },
    [POS] = { I32, false, fill_pos },           [RANGE] = { I32, false, fill_range },
    [PAGES] = { I32, false, fill_pages },
    [INDEX] = { I32, false, fill_index },       [DISTINCT] = { I32, false, fill_distinct },
    [TARGET] = { I32, false, fill_target },
};

/* One run of a row: sizes, types, and the arguments in F64. */
struct test {
    const struct row *row;
    struct dims d;
    enum dtype act, weight, product;
    int n_args, absent; /* argument that is left out; -1: none, ARGS: all that may be */
    int threads;
    bool decode;
    struct tensor a[ARGS];    /* inputs and prior contents, exact in the types of the run */
    struct tensor want[ARGS]; /* the oracle's results; where not written, a's */
    double *sense[ARGS];      /* S of the bound, per row of a written argument */
};

static bool is_written(const struct test *c, int i) { return roles[c->row->arg[i].role].written; }

static enum dtype type_of(const struct test *c, int i)
{
    const bool small = dtype_bytes(c->act) == 2;
    switch (roles[c->row->arg[i].role].type) {
    case ACT: return c->act;
    case W: return c->weight;
    case ACT_OR_W: return dtype_bytes(c->weight) == 2 ? c->weight : c->act;
    case ACT_OR_F32: return small ? DT_F32 : c->act;
    case F32: return DT_F32;
    default: return DT_I32;
    }
}

/* Product of the letters and digits up to a dot or the end. */
static int64_t product_of(const struct dims *d, const char *s)
{
    int64_t v = 1;
    for (; *s && *s != '.'; s++) v *= isdigit((unsigned char)*s) ? *s - '0' : size(d, *s);
    return v;
}

static struct tensor shaped(const struct dims *d, const char *s, enum dtype type)
{
    struct tensor t = { .type = (int8_t)type };
    for (s += *s == '?'; s; s = strchr(s, '.')) {
        s += *s == '.';
        t.n[t.nd++] = product_of(d, s);
    }
    return t;
}

/* "T1 I7; T2 I8": reads the sizes up to ';' and returns what follows it, or NULL at the end. */
static const char *dims_next(const char *s, struct dims *d)
{
    *d = (struct dims){ { 0 } };
    while (*s && *s != ';') {
        char letter = *s++;
        if (!isupper((unsigned char)letter)) continue;
        d->n[letter - 'A'] = strtol(s, (char **)&s, 10);
    }
    return *s ? s + 1 : NULL;
}

/* ---- the oracle */

static struct tensor tensor_dup(struct kctx *kc, struct tensor t)
{
    const void *from = t.p;
    if (from) t.p = memcpy(arena_take(kc->scratch, tensor_bytes(t)), from, tensor_bytes(t));
    return t;
}

/* Rounds F64 values to a type, in place. */
static void round_to(struct kctx *kc, struct tensor t, enum dtype type)
{
    const size_t mark = arena_mark(kc->scratch);
    void *small = arena_take(kc->scratch, tensor_bytes(t));
    dtype_convert(small, type, t.p, DT_F64, tensor_count(t));
    dtype_convert(t.p, DT_F64, small, type, tensor_count(t));
    arena_rewind(kc->scratch, mark);
}

static void fill(struct test *c, struct kctx *kc, struct rng *r)
{
    for (int i = 0; i < c->n_args; i++) {
        const struct arg *arg = &c->row->arg[i];
        const enum dtype type = type_of(c, i);
        c->a[i] = shaped(&c->d, arg->shape, type == DT_I32 ? DT_I32 : DT_F64);
        c->a[i].p = arena_take(kc->scratch, tensor_bytes(c->a[i]));
        roles[arg->role].fill(r, c->a[i], &c->d);
        if (type != DT_I32) round_to(kc, c->a[i], type);
    }
    if (c->row->prepare) {
        c->row->prepare(kc, c->a, &c->d);
        for (int i = 0; i < c->n_args; i++)
            if (c->a[i].type == DT_F64) round_to(kc, c->a[i], type_of(c, i));
    }
    for (int i = 0; i < c->n_args; i++)
        if (c->row->arg[i].shape[0] == '?' && (c->absent == i || c->absent == ARGS)) c->a[i].p = NULL;
}

/* S: the largest change of the results, root mean square over each row, when inputs change by +-delta, over
 * delta. */
static void find_sense(struct test *c, struct kctx *kc, struct rng *r)
{
    const double delta = 0x1p-20;
    const size_t mark = arena_mark(kc->scratch);
    for (int sample = 0; sample < SAMPLES; sample++) {
        struct tensor b[ARGS] = { 0 };
        for (int i = 0; i < c->n_args; i++) {
            b[i] = tensor_dup(kc, c->a[i]);
            const enum role role = c->row->arg[i].role;
            const bool kept = is_written(c, i) && role != CHANGE && role != STATE && role != SQUARES;
            if (!b[i].p || b[i].type != DT_F64 || kept) continue;
            for (int64_t k = 0, n = tensor_count(b[i]); k < n; k++)
                ((double *)b[i].p)[k] *= rng_u64(r) & 1 ? 1 + delta : 1 - delta;
        }
        c->row->call(&kern_ref64, kc, b, &c->d);
        for (int i = 0; i < c->n_args; i++) {
            const int64_t cols = tensor_cols(b[i]);
            for (int64_t t = 0; b[i].p && is_written(c, i) && t < tensor_rows(b[i]); t++) {
                double sum = 0;
                for (int64_t k = t * cols; k < (t + 1) * cols; k++) {
                    const double diff = ((double *)b[i].p)[k] - ((double *)c->want[i].p)[k];
                    sum += diff * diff;
                }
                c->sense[i][t] = fmax(c->sense[i][t], sqrt(sum / (double)cols) / delta);
            }
        }
        arena_rewind(kc->scratch, mark);
    }
}

static void find_wanted(struct test *c, struct kctx *kc, struct rng *r)
{
    for (int i = 0; i < c->n_args; i++) {
        c->want[i] = is_written(c, i) ? tensor_dup(kc, c->a[i]) : c->a[i];
        const size_t bytes = (size_t)tensor_rows(c->a[i]) * sizeof(double);
        c->sense[i] = memset(arena_take(kc->scratch, bytes), 0, bytes);
    }
    c->row->call(&kern_ref64, kc, c->want, &c->d);
    if (c->row->sum) find_sense(c, kc, r);
    for (int i = 0; i < c->n_args && !c->row->sum; i++)
        if (is_written(c, i) && c->want[i].p) round_to(kc, c->want[i], type_of(c, i));
}

/* ---- a backend's run, and its judgement */

/* The arguments in the types of the run, each in a block of its own so that sanitizers see its end. */
static void args_new(const struct test *c, struct tensor *got)
{
    for (int i = 0; i < c->n_args; i++) {
        got[i] = c->a[i];
        if (!got[i].p) continue;
        got[i].type = (int8_t)type_of(c, i);
        got[i].p = malloc(tensor_bytes(got[i]));
        ASSERT(got[i].p);
        if (roles[c->row->arg[i].role].fill == fill_poison) fill_poison(NULL, got[i], NULL);
        else if (got[i].type == DT_I32) memcpy(got[i].p, c->a[i].p, tensor_bytes(got[i]));
        else dtype_convert(got[i].p, (enum dtype)got[i].type, c->a[i].p, DT_F64, tensor_count(got[i]));
    }
}

static void args_free(const struct test *c, struct tensor *got)
{
    for (int i = 0; i < c->n_args; i++) free(got[i].p);
}

static double unit_roundoff(enum dtype t)
{
    return t == DT_F64 ? 0x1p-53 : t == DT_F32 ? 0x1p-24 : t == DT_F16 ? 0x1p-11 : 0x1p-8;
}

/* All elements in F64, in scratch. */
static const double *values(struct kctx *kc, struct tensor t)
{
    double *v = arena_take(kc->scratch, (size_t)tensor_count(t) * sizeof *v);
    dtype_convert(v, DT_F64, t.p, (enum dtype)t.type, tensor_count(t));
    return v;
}

static int complain(const struct test *c, const char *what)
{
    printf("# %s: %s; act %s, weight %s, product %s, threads %d, decode %d, absent %d, sizes", c->row->name, what,
           dtype_name(c->act), dtype_name(c->weight), dtype_name(c->product), c->threads, c->decode, c->absent);
    for (int i = 0; i < 26; i++)
        if (c->d.n[i]) printf(" %c%lld", 'A' + i, (long long)c->d.n[i]);
    printf("\n");
    return -1;
}

/* Argument i, of the values `got`, against the oracle. *worst: the largest error as a share of its bound. */
static int judge(const struct test *c, int i, const double *got, double *worst)
{
    const enum dtype type = type_of(c, i);
    const double u_out = unit_roundoff(type), tiny = type == DT_F16 ? 0x1p-24 : 0x1p-126;
    double n = 1;
    for (const char *s = c->row->sum; s && *s; s++) n = fmax(n, (double)size(&c->d, *s));
    const double u_step = c->row->steps ? fmax(u_out, 0x1p-24) : 0x1p-24;
    const double u_sum = u_step * (8 + 2 * sqrt(n)) + (c->product == DT_BF16 ? 2 * 0x1p-8 : 0);
    for (int64_t k = 0, cols = tensor_cols(c->want[i]), count = tensor_count(c->want[i]); k < count; k++) {
        const double want = ((double *)c->want[i].p)[k], diff = fabs(got[k] - want);
        double bound = u_out * fabs(want) + u_sum * fmax(c->sense[i][k / cols], fabs(want)) + tiny;
        if (!c->row->sum) bound = 0;
        if (!(diff <= bound)) {
            char what[160];
            snprintf(what, sizeof what, "argument %d, element %lld is %g, oracle %g, error %.3g, bound %.3g",
                     i, (long long)k, got[k], want, diff, bound);
            return complain(c, what);
        }
        if (diff > 0) *worst = fmax(*worst, diff / bound);
    }
    return 0;
}

/* What is written must be right, what is read must have stayed. */
static int judge_all(const struct test *c, struct kctx *kc, const struct tensor *got, double *worst)
{
    int rc = 0;
    for (int i = 0; i < c->n_args && rc == 0; i++) {
        const size_t mark = arena_mark(kc->scratch), bytes = tensor_bytes(c->a[i]);
        if (!got[i].p) continue;
        if (is_written(c, i)) rc = judge(c, i, values(kc, got[i]), worst);
        else if (memcmp(got[i].type == DT_I32 ? got[i].p : values(kc, got[i]), c->a[i].p, bytes))
            rc = complain(c, "an input was changed");
        arena_rewind(kc->scratch, mark);
    }
    return rc;
}

/* Once more: the same bits, and nothing written beyond `high`, where the scratch of the first run ended. */
static int run_again(const struct test *c, const struct kern *k, struct kctx *kc, const struct tensor *first,
                     size_t high)
{
    enum { BEYOND = 1 << 14 };
    struct tensor got[ARGS] = { 0 };
    int rc = 0;
    char *beyond = memset(kc->scratch->base + high, 0x5a, BEYOND);
    args_new(c, got);
    c->row->call(k, kc, got, &c->d);
    for (int i = 0; i < BEYOND && rc == 0; i++)
        if (beyond[i] != 0x5a) rc = complain(c, "more scratch was used than taken");
    for (int i = 0; i < c->n_args && rc == 0; i++)
        if (got[i].p && memcmp(got[i].p, first[i].p, tensor_bytes(got[i])))
            rc = complain(c, "two equal runs differ");
    args_free(c, got);
    return rc;
}

/* With y in the place of the input that it may share. */
static int run_shared(const struct test *c, const struct kern *k, struct kctx *kc, double *worst)
{
    struct tensor got[ARGS] = { 0 };
    const int same = c->row->same;
    if (!same || !c->a[same].p) return 0;
    args_new(c, got);
    void *own = got[0].p;
    got[0].p = got[same].p;
    c->row->call(k, kc, got, &c->d);
    const size_t mark = arena_mark(kc->scratch);
    const int rc = judge(c, 0, values(kc, got[0]), worst);
    arena_rewind(kc->scratch, mark);
    got[0].p = own;
    args_free(c, got);
    return rc;
}

/* Is T the first letter of its shape: one row a token? */
static bool is_by_token(const struct arg *a)
{
    const char *s = a->shape + (a->shape[0] == '?');
    return s[0] == 'T' && (s[1] == 0 || s[1] == '.');
}

/* One token alone: the bits that it has in `all`. Sums over tokens have no rows of their own. */
static int run_alone(const struct test *c, const struct kern *k, struct kctx *kc, const struct tensor *all, int64_t t)
{
    struct tensor got[ARGS] = { 0 }, one[ARGS] = { 0 };
    struct dims d = c->d;
    int rc = 0;
    if (c->row->by_place) return 0;
    for (int i = 0; i < c->n_args; i++)
        if (is_written(c, i) && !is_by_token(&c->row->arg[i])) return 0;
    d.n['T' - 'A'] = 1;
    args_new(c, got);
    for (int i = 0; i < c->n_args; i++)
        one[i] = got[i].p && is_by_token(&c->row->arg[i]) ? tensor_slice(got[i], t, 1) : got[i];
    c->row->call(k, kc, one, &d);
    for (int i = 0; i < c->n_args && rc == 0; i++)
        if (got[i].p && is_written(c, i) && memcmp(one[i].p, tensor_slice(all[i], t, 1).p, tensor_bytes(one[i])))
            rc = complain(c, "a row alone differs from the same among others");
    args_free(c, got);
    return rc;
}

static int run_test(const struct test *c, const struct kern *k, struct kctx *kc, double *worst)
{
    struct tensor got[ARGS] = { 0 };
    const size_t mark = arena_mark(kc->scratch);
    args_new(c, got);
    kc->scratch->high = mark;
    c->row->call(k, kc, got, &c->d);
    const size_t high = kc->scratch->high;
    int rc = arena_mark(kc->scratch) == mark ? 0 : complain(c, "scratch was not given back");
    if (rc == 0) rc = judge_all(c, kc, got, worst);
    if (rc == 0) rc = run_again(c, k, kc, got, high);
    for (int64_t t = 0, T = size(&c->d, 'T'); t < T && rc == 0; t += 1 + T / 3) rc = run_alone(c, k, kc, got, t);
    if (rc == 0) rc = run_shared(c, k, kc, worst);
    args_free(c, got);
    return rc;
}

/* ---- rows x backends */

struct backend {
    const char *name;
    struct kern k;
    bool any_type; /* activations of any type */
};

static bool has_own(const struct backend *b, const struct row *row)
{
    const char *own = (const char *)&b->k + row->slot, *refs = (const char *)&kern_ref + row->slot;
    return b->any_type || memcmp(own, refs, sizeof(void (*)(void)));
}

static bool uses_weight(const struct row *row)
{
    for (int i = 0; i < ARGS; i++) {
        const enum type_rule type = roles[row->arg[i].role].type;
        if (row->arg[i].role && (type == W || type == ACT_OR_W)) return true;
    }
    return false;
}

static int count_args(const struct row *row)
{
    int n = 0;
    while (n < ARGS && row->arg[n].role) n++;
    return n;
}

/* Whether product = BF16 may change what the row computes. */
static bool obeys_product(const struct test *c)
{
    return c->row->product && (c->weight == DT_BF16 || !uses_weight(c->row));
}

/* The shapes, for one choice of types. The absent argument changes from run to run. */
static int check_types(struct test *c, const struct kern *k, struct kctx *kc, int *runs, double *worst)
{
    const char *next = c->row->shapes;
    while (next) {
        struct rng r;
        rng_seed(&r, (uint64_t)*runs);
        next = dims_next(next, &c->d);
        c->absent = *runs % (c->n_args + 2);
        c->absent = c->absent == c->n_args ? ARGS : c->absent > c->n_args ? -1 : c->absent;
        ++*runs;
        const size_t mark = arena_mark(kc->scratch);
        kc->n_threads = c->threads;
        kc->product = c->product;
        kc->decode = c->decode = rng_u64(&r) % 2;
        fill(c, kc, &r);
        find_wanted(c, kc, &r);
        const int rc = run_test(c, k, kc, worst);
        arena_rewind(kc->scratch, mark);
        if (rc < 0) return rc;
    }
    return 0;
}

static int check_row(const struct row *row, const struct backend *b, struct kctx *kc, int *runs,
                     double *worst)
{
    static const enum dtype acts[] = { DT_F32, DT_F64, DT_BF16, DT_F16 };
    static const enum dtype weights[] = { DT_F32, DT_F16, DT_BF16 };
    const int n_acts = b->any_type ? 4 : 1, n_weights = uses_weight(row) ? 3 : 1;
    for (int i = 0; i < n_acts * n_weights; i++) {
        struct test c = { .row = row, .n_args = count_args(row), .threads = 1 + i % 3,
                          .act = acts[i / n_weights], .weight = weights[i % n_weights], .product = DT_F32 };
        if (check_types(&c, &b->k, kc, runs, worst) < 0) return -1;
        c.product = DT_BF16;
        if (obeys_product(&c) && check_types(&c, &b->k, kc, runs, worst) < 0) return -1;
    }
    return 0;
}

/* ---- how fast */

static double best_time(const struct test *c, const struct kern *k, struct kctx *kc, struct tensor *a)
{
    double best = INFINITY, total = 0;
    for (int n = 0; n < 3 || (total < 0.3 && n < 1000); n++) {
        const double start = plat_now_s();
        c->row->call(k, kc, a, &c->d);
        const double s = plat_now_s() - start;
        best = fmin(best, s);
        total += s;
        if (total > 3) break;
    }
    return best;
}

static void bench_shape(struct test *c, const struct backend *b, struct kctx *kc, const char *shape)
{
    struct rng r;
    struct tensor a[ARGS] = { 0 };
    double bytes = 0;
    const size_t mark = arena_mark(kc->scratch);
    rng_seed(&r, 1);
    kc->product = DT_F32;
    fill(c, kc, &r);
    args_new(c, a);
    arena_rewind(kc->scratch, mark);
    for (int i = 0; i < c->n_args; i++) bytes += a[i].p ? (double)tensor_bytes(a[i]) : 0;
    kc->n_threads = plat_threads();
    kc->product = c->product;
    kc->decode = size(&c->d, 'T') <= 16;
    const double s = best_time(c, &b->k, kc, a);
    const double flops = c->row->flops ? (double)product_of(&c->d, c->row->flops) : 0;
    printf("%-14s %-7s %-5s %-5s %10.1f us %8.1f GB/s %8.1f GFLOP/s  %.*s\n", c->row->name, b->name,
           dtype_name(c->weight), c->product == DT_BF16 ? "bf16" : "", s * 1e6, bytes / s * 1e-9,
           flops / s * 1e-9, (int)strcspn(shape, ";"), shape);
    args_free(c, a);
}

static void bench_row(const struct row *row, const struct backend *b, struct kctx *kc)
{
    static const enum dtype weights[] = { DT_F32, DT_F16, DT_BF16 };
    for (const char *shape = row->bench, *next = NULL; shape; shape = next) {
        shape += strspn(shape, " ");
        for (int j = 0; j < (uses_weight(row) ? 3 : 1); j++) {
            struct test c = { .row = row, .act = DT_F32, .weight = weights[j], .n_args = count_args(row),
                              .absent = -1, .product = DT_F32 };
            next = dims_next(shape, &c.d);
            bench_shape(&c, b, kc, shape);
            c.product = DT_BF16;
            if (obeys_product(&c)) bench_shape(&c, b, kc, shape);
        }
    }
}

static bool is_wanted(const char *name, int argc, char **argv)
{
    bool any = false;
    for (int i = 1; i < argc; i++) {
        if (argv[i][0] == '-') continue;
        if (!strcmp(argv[i], name)) return true;
        any = true;
    }
    return !any;
}

/* One TAP line; true when the row holds. */
static bool report_row(const struct row *row, const struct backend *b, struct kctx *kc, int number)
{
    int runs = 0;
    double worst = 0;
    const bool right = check_row(row, b, kc, &runs, &worst) == 0;
    printf("%s %d - %s %s: %d runs, worst error %.2f of its bound\n", right ? "ok" : "not ok", number,
           row->name, b->name, runs, worst);
    return right;
}

int main(int argc, char **argv)
{
    struct backend backends[] = { { "ref", kern_ref, true }, { "avx2", kern_ref, false },
                                  { "avx512", kern_ref, false } };
    const bool bench = argc > 1 && !strcmp(argv[1], "--bench");
    struct arena scratch;
    struct err e;
    int n = 0, failed = 0;
    if (arena_init(&scratch, (size_t)8 << 30, &e) < 0) return fprintf(stderr, "rows: %s\n", e.msg), 1;
    struct kctx kc = { .scratch = &scratch, .n_threads = 1 };
    for (struct backend *b = backends; b < backends + sizeof backends / sizeof *backends; b++) {
        if (!b->any_type && strcmp(kern_init_cpu(&b->k, b->name), b->name)) {
            printf("# this processor has no %s\n", b->name);
            continue;
        }
        for (const struct row *row = rows; row < rows + sizeof rows / sizeof *rows; row++) {
            if (!is_wanted(row->name, argc, argv) || !has_own(b, row)) continue;
            if (bench) bench_row(row, b, &kc);
            else failed += !report_row(row, b, &kc, ++n);
        }
    }
    if (!bench) printf("1..%d\n", n);
    arena_fini(&scratch);
    return failed ? 1 : 0;
}
