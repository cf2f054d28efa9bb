/* The rows of rows.c: each kernel's arguments, how it is called, in which sizes, and how long its sums are. */
#pragma once
#include <math.h>
#include <stdbool.h>
#include <stddef.h>

#include "kern/kern.h"

extern const struct kern kern_ref64; /* kern_ref with real = double */

enum { ARGS = 12, SAMPLES = 4 };

struct dims { int64_t n[26]; }; /* sizes by letter */
static int64_t size(const struct dims *d, char letter) { return d->n[letter - 'A']; }

enum role {
    END,
    IN, WIDE,                   /* act; WIDE has large values too */
    WEIGHT, MATRIX, CACHE,      /* weight type; that, or quantised; 16 bits, Q8 or act */
    TABLE, STAT,                /* cos and sin; given by the forward kernel */
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
    bool q8, q4;                /* MATRIX, CACHE and PUT may be quantised so */
    bool rounds;                /* rounds to act inside */
    bool own;                   /* what is stored is read, too: rounded to 8 bits where the store has them */
    bool normed, gated;         /* a product's x is multiplied by a norm's weight before; products are multiplied */
    bool fresh;                 /* gradients may be TENSOR_FRESH, if kern.fresh */
    bool by_place;              /* what a row becomes depends on where it stands */
    const char *shapes, *bench; /* "T1 I7 O33; T7 ..." */
    const char *large; /* more to check in decode on a card, where blocks have much to do; NULL: none */
    const char *prompts; /* as large, with bf16 and quantised weights, not in decode */
    const char *bench_dev;      /* on a device, where bench is too small */
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
#define SMOOTH ((float)size(d, 'S') / 10) /* of labels */
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
CALL(xent_fwd, a[0], a[1], a[2], a[3], SMOOTH)
CALL(xent_bwd, a[0], a[1], a[2], a[3], a[4], SMOOTH)
CALL(dropout, a[0], a[1], 0.3f, 77)
CALL(dropout_bwd, a[0], a[1], 0.3f, 77)
CALL(sumsq, a[0], a[1])
static const struct adamw step = { 0.02f, 0.9f, 0.98f, 1e-6f, 0.1f, 0.5f, 0.2f, 0.05f, 0 };
CALL(adamw, a[0], a[1], a[2], a[3], a[4], &step)

/* Composites, and what they are made of where a table has none. */
static struct tensor hidden(struct kctx *kc, struct tensor like, int64_t cols)
{
    struct tensor h = tensor_2d(NULL, (enum dtype)like.type, tensor_rows(like), cols);
    h.p = arena_take(kc->scratch, tensor_bytes(h));
    return h;
}

static void call_norm_matmul(const struct kern *k, struct kctx *kc, const struct tensor *a, const struct dims *d)
{
    const struct tensor none = { 0 }, b[3] = { a[8], none, none };
    (void)d;
    if (k->norm_matmul) {
        k->norm_matmul(kc, a, a[3], a[4], eps, a + 5, b, 3);
        return;
    }
    const size_t mark = arena_mark(kc->scratch);
    const struct tensor h = hidden(kc, a[3], tensor_cols(a[3]));
    k->rmsnorm_fwd(kc, h, none, a[3], a[4], eps);
    for (int i = 0; i < 3; i++) k->matmul(kc, a[i], h, a[5 + i], b[i], none);
    arena_rewind(kc->scratch, mark);
}

static void call_norm_glu(const struct kern *k, struct kctx *kc, const struct tensor *a, const struct dims *d)
{
    const struct tensor none = { 0 };
    (void)d;
    if (k->norm_glu) {
        k->norm_glu(kc, a[0], a[1], a[2], eps, a[3], a[4]);
        return;
    }
    const size_t mark = arena_mark(kc->scratch);
    const struct tensor h = hidden(kc, a[1], tensor_cols(a[1]));
    const struct tensor g = hidden(kc, a[0], tensor_cols(a[0])), u = hidden(kc, a[0], tensor_cols(a[0]));
    k->rmsnorm_fwd(kc, h, none, a[1], a[2], eps);
    k->matmul(kc, g, h, a[3], none, none);
    k->matmul(kc, u, h, a[4], none, none);
    k->swiglu_fwd(kc, a[0], g, u);
    arena_rewind(kc->scratch, mark);
}

/* Not in decode: a prompt's. */
static void call_matmul_each(const struct kern *k, struct kctx *kc, const struct tensor *a, const struct dims *d)
{
    const struct tensor y[] = { a[0], a[1], a[2] }, w[] = { a[4], a[5], a[6] }, b[] = { a[7], a[7], a[7] };
    const bool decode = kc->decode;
    (void)d;
    kc->decode = false;
    if (k->matmul_each) k->matmul_each(kc, y, a[3], w, b, 3);
    for (int i = 0; i < 3 && !k->matmul_each; i++) k->matmul(kc, y[i], a[3], w[i], b[i], (struct tensor){ 0 });
    kc->decode = decode;
}

static void call_rmsnorm_drop(const struct kern *k, struct kctx *kc, const struct tensor *a, const struct dims *d)
{
    (void)d;
    if (k->rmsnorm_drop) {
        k->rmsnorm_drop(kc, a[0], a[1], a[2], a[3], a[4], eps, 0.3f, 77);
        return;
    }
    const size_t mark = arena_mark(kc->scratch);
    const struct tensor y = a[0].p ? a[0] : hidden(kc, a[1], tensor_cols(a[1]));
    k->rmsnorm_fwd(kc, y, a[2], a[3], a[4], eps);
    k->dropout(kc, a[1], y, 0.3f, 77);
    arena_rewind(kc->scratch, mark);
}

static void call_swiglu_drop(const struct kern *k, struct kctx *kc, const struct tensor *a, const struct dims *d)
{
    (void)d;
    if (k->swiglu_drop) {
        k->swiglu_drop(kc, a[0], a[1], a[2], a[3], 0.3f, 77);
        return;
    }
    const size_t mark = arena_mark(kc->scratch);
    const struct tensor y = a[0].p ? a[0] : hidden(kc, a[1], tensor_cols(a[1]));
    k->swiglu_fwd(kc, y, a[2], a[3]);
    k->dropout(kc, a[1], y, 0.3f, 77);
    arena_rewind(kc->scratch, mark);
}

static void call_rope_store(const struct kern *k, struct kctx *kc, const struct tensor *a, const struct dims *d)
{
    (void)d;
    if (k->rope_store) {
        k->rope_store(kc, a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]);
        return;
    }
    k->rope(kc, a[0], a[3], a[4], 1);
    k->rope(kc, a[1], a[3], a[4], 1);
    k->rows_put(kc, a[5], a[7], a[1]);
    k->rows_put(kc, a[6], a[7], a[2]);
}

static struct tensor copied(const struct kern *k, struct kctx *kc, struct tensor x)
{
    const struct tensor y = hidden(kc, x, tensor_cols(x));
    k->cast(kc, y, x);
    return y;
}

static void call_rope_attn(const struct kern *k, struct kctx *kc, const struct tensor *a, const struct dims *d)
{
    const size_t mark = arena_mark(kc->scratch);
    const struct tensor q = copied(k, kc, a[1]), own = copied(k, kc, a[2]), none = { 0 };
    if (k->rope_attn) {
        k->rope_attn(kc, a[0], q, own, a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], SCALE);
    } else {
        const struct tensor rope_store[] = { q, own, a[3], a[4], a[5], a[6], a[7], a[8] };
        call_rope_store(k, kc, rope_store, d);
        k->attn_fwd(kc, a[0], none, q, a[6], a[7], a[9], a[10], (int)size(d, 'H'), SCALE);
    }
    arena_rewind(kc->scratch, mark);
}

/* Where the last row of each token's range lies. */
static void prepare_rope_attn(struct kctx *kc, struct tensor *a, const struct dims *d)
{
    const int32_t *range = a[9].p, *pages = a[10].p;
    (void)kc;
    for (int64_t t = 0; t < size(d, 'T'); t++, range += 3) {
        const int32_t last = range[1] - 1;
        ((int32_t *)a[8].p)[t] = pages[range[2] * size(d, 'N') + last / KV_PAGE] * KV_PAGE + last % KV_PAGE;
    }
}

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
    kern_ref64.xent_fwd(kc, spare(kc, a[3]), a[3], a[2], a[4], SMOOTH);
}

#define MATMULS                                                                                          \
    "T1 I64 O33; T1 I577 O7; T2 I1 O1; T3 I7 O32; T4 I160 O48; T7 I33 O65; T8 I128 O96; T17 I576 O40; "  \
    "T33 I31 O130; T64 I512 O256; T130 I96 O192; T2 I4200 O9; T21 I4200 O40"
/* For each size of tile that kernels know, and two tiles to a block; the last rows and tokens of most are missing. As
 * few columns as there can be: the oracle takes its time. */
#define PROMPTS "T40 I64 O136; T200 I192 O4296; T340 I64 O5760; T640 I64 O5120; T760 I64 O5112; T1300 I64 O3080"
/* 13B: q, k and v; o; gate and up; down; head */
#define MATMUL_BENCH_DEV                                                                                   \
    "T1 I5120 O15360; T1 I5120 O5120; T1 I5120 O27648; T1 I13824 O5120; T1 I5120 O32000; T4 I5120 O15360; "\
    "T16 I5120 O15360; T32 I5120 O15360; T32 I13824 O5120; T640 I5120 O5120; T640 I13824 O5120"
#define MATMUL_BENCH "T1 I4096 O8192; T4 I4096 O8192; T32 I2048 O5632; T640 I2048 O5632"
#define NORMS "T1 C1; T1 C7; T3 C33; T7 C577; T33 C128; T5 C1024"
#define NORM_BENCH_DEV "T1 C5120; T8192 C5120"
#define NORM_BENCH "T1 C4096; T640 C4096"
#define COMPOSITES                                                                                         \
    "T1 I64 O33 F8; T3 I577 O7 F5; T9 I160 O48 F40; T1 I512 O256 F96; T17 I1088 O40 F24; T40 I256 O64 F33; " \
    "T66 I96 O20 F18"
/* M: 0 causal after a cache of S - T, 1 all of S, 2 packed segments */
#define ATTNS                                                                                            \
    "T1 S1 H1 K1 D2; T1 S33 H4 K4 D64; T1 S577 H8 K2 D128; T7 S7 H3 K3 D7; T5 S37 H4 K1 D32; "           \
    "T65 S65 H2 K2 D64; T33 S33 H4 K2 D80 M1; T70 S70 H2 K1 D64 M2; T19 S130 H2 K2 D128; "               \
    "T9 S577 H1 K1 D64 M1"
#define ATTNS_LARGE                                                                                        \
    "T300 S300 H2 K1 D128 M2; T290 S290 H2 K2 D64 M2; T200 S520 H1 K1 D128; T577 S577 H1 K1 D64 M1; T257 S385 H3 K1 D64"
/* Two to five sequences (B) of up to N pages; M: the window, 0 none */
#define ATTNS_PAGED                                                                                      \
    "T2 B2 N1 S32 H1 K1 D8; T5 B5 N3 S240 H4 K4 D64; T40 B3 N9 S432 H4 K2 D128; T7 B2 N20 S640 H8 K1 D32; "\
    "T50 B2 N6 S192 H2 K2 D80 M20; T3 B3 N40 S1920 H2 K2 D64 M300; T90 B2 N12 S384 H4 K2 D64; T75 B3 N9 S432 H2 K1 D128"
/* As those in pages, but each token is alone in its sequence: B is T. */
#define DECODES                                                                                          \
    "T1 B1 N1 S16 H1 K1 D2 V5; T2 B2 N1 S32 H3 K3 D14 V9; T5 B5 N3 S240 H4 K4 D64 V33; T3 B3 N9 S432 H4 K2 D128 V40; "\
    "T2 B2 N20 S640 H8 K1 D32 V7; T4 B4 N6 S384 H2 K2 D80 V8 M20; T3 B3 N20 S960 H2 K2 D64 V9 M200; "   \
    "T1 B1 N40 S640 H6 K3 D128 V640; T7 B7 N2 S224 H5 K1 D128 V40; T2 B2 N3 S96 H2 K1 D256 V9; "  \
    "T4 B4 N12 S768 H4 K4 D128 V9"
#define DECODES_LARGE                                                                                    \
    "T1 B1 N256 S4096 H40 K40 D128 V99; T33 B33 N40 S21120 H8 K8 D128 V99; T4 B4 N80 S5120 H32 K8 D128 V99 M1000"
#define ATTN_BENCH_DEV                                                                                     \
    "T1 S640 H40 K40 D128; T1 S4096 H40 K40 D128; T2048 S2048 H40 K40 D128; T2048 S2048 H40 K40 D128 M1; " \
    "T577 S577 H16 K16 D64 M1"
#define ATTN_BWD_BENCH_DEV "T2048 S2048 H40 K40 D128; T2048 S2048 H40 K40 D128 M1; T2048 S2048 H64 K64 D64 M1"
#define ATTN_BENCH "T1 S2048 H32 K32 D128; T640 S640 H16 K16 D128; T577 S577 H16 K16 D64 M1"
#define ELEMS "T1 F1; T1 F7; T3 F33; T7 F577; T64 F512; T300 F250"
#define ELEM_BENCH_DEV "T8192 F13824"
#define ELEM_BENCH "T640 F5632"
#define ROWS "N1 M1 C1; N3 M7 C7; N7 M33 C33; N33 M40 C577; N130 M200 C64"
#define XENTS "T1 V1; T1 V7; T7 V33; T33 V577; T3 V32000; T1 V1 S1; T7 V33 S3; T3 V577 S9; T3 V32000 S1"
#define ROWS_BENCH_DEV "N8192 M32000 C5120"
#define ROWS_BENCH "N2000 M2000 C4096"

#define EXACT NULL
#define ROW(kernel) .name = #kernel, .slot = offsetof(struct kern, kernel), .call = call_##kernel
static const struct row rows[] = {
    { ROW(matmul),
      .arg = { { OUT, "T.O" }, { IN, "T.I" }, { MATRIX, "O.I" }, { WEIGHT, "?O" }, { IN, "?T.O" } },
      .sum = "I", .same = 4, .product = true, .q8 = true, .q4 = true, .shapes = MATMULS,
      .large = "T5 I96 O18000; T20 I200 O18000; T40 I72 O9000", .prompts = PROMPTS, .bench_dev = MATMUL_BENCH_DEV,
      .bench = MATMUL_BENCH, .flops = "2TIO" },
    { ROW(matmul_dx), .arg = { { ADD, "T.I" }, { IN, "T.O" }, { MATRIX, "O.I" } },
      .sum = "O", .product = true, .q8 = true, .q4 = true, .fresh = true,
      .shapes = MATMULS, .bench = "T640 I2048 O5632", .flops = "2TIO" },
    { ROW(matmul_dw), .arg = { { ADD_W, "?O.I" }, { ADD_W, "?O" }, { IN, "T.O" }, { IN, "T.I" } },
      .sum = "T", .product = true, .shapes = MATMULS, .bench = "T640 I2048 O5632", .flops = "2TIO" },
    { ROW(rmsnorm_fwd), .arg = { { OUT, "T.C" }, { OUT_STAT, "?T" }, { IN, "T.C" }, { WEIGHT, "C" } },
      .sum = "C", .same = 2, .shapes = NORMS, .bench_dev = NORM_BENCH_DEV,
      .bench = NORM_BENCH, .flops = "4TC" },
    { ROW(rmsnorm_bwd), .prepare = prepare_rmsnorm,
      .arg = { { ADD, "?T.C" }, { ADD_W, "?C" }, { IN, "T.C" }, { IN, "T.C" }, { WEIGHT, "C" },
               { STAT, "T" } },
      .sum = "TC", .shapes = NORMS, .bench_dev = NORM_BENCH_DEV,
      .bench = NORM_BENCH, .flops = "9TC" },
    { ROW(layernorm_fwd),
      .arg = { { OUT, "T.C" }, { OUT_STAT, "?T" }, { OUT_STAT, "?T" }, { IN, "T.C" }, { WEIGHT, "C" },
               { WEIGHT, "C" } },
      .sum = "C", .same = 3, .shapes = NORMS, .bench_dev = NORM_BENCH_DEV,
      .bench = NORM_BENCH, .flops = "7TC" },
    { ROW(layernorm_bwd), .prepare = prepare_layernorm,
      .arg = { { ADD, "?T.C" }, { ADD_W, "?C" }, { ADD_W, "?C" }, { IN, "T.C" }, { IN, "T.C" },
               { WEIGHT, "C" }, { STAT, "T" }, { STAT, "T" } },
      .sum = "TC", .shapes = NORMS, .bench_dev = NORM_BENCH_DEV,
      .bench = NORM_BENCH, .flops = "9TC" },
    { ROW(rope), .arg = { { CHANGE, "T.HD" }, { POS, "T" }, { TABLE, "V.D" } },
      .sum = "", .shapes = "T1 H1 D2 V1; T7 H3 D14 V33; T33 H4 D64 V40; T5 H2 D128 V577 M1; T3 H1 D80 V9 M1",
      .bench_dev = "T8192 H40 D128 V2048",
      .bench = "T640 H32 D128 V2048", .flops = "3THD" },
    { ROW(attn_fwd),
      .arg = { { OUT, "T.HD" }, { OUT_STAT, "?T.H" }, { IN, "T.HD" }, { CACHE, "S.KD" }, { CACHE, "S.KD" },
               { RANGE, "T.2" } },
      .sum = "SD", .rounds = true, .q8 = true, .shapes = ATTNS, .large = ATTNS_LARGE, .bench_dev = ATTN_BENCH_DEV,
      .bench = ATTN_BENCH, .flops = "4THSD" },
    { .name = "attn_fwd_paged", .slot = offsetof(struct kern, attn_fwd), .call = call_attn_fwd,
      .arg = { { OUT, "T.HD" }, { OUT_STAT, "?T.H" }, { IN, "T.HD" }, { CACHE, "S.KD" }, { CACHE, "S.KD" },
               { RANGE, "T.3" }, { PAGES, "B.N" } },
      .sum = "SD", .rounds = true, .q8 = true, .shapes = ATTNS_PAGED,
      .large = "T290 B2 N40 S1280 H2 K1 D128; T300 B5 N20 S1600 H2 K2 D64 M100; T130 B1 N50 S800 H1 K1 D128",
      .bench = "T16 B16 N64 S16384 H32 K32 D128",
      .flops = "4THSD" },
    { ROW(attn_bwd), .prepare = prepare_attn,
      .arg = { { ADD, "?T.HD" }, { ADD, "?S.KD" }, { ADD, "?S.KD" }, { IN, "T.HD" }, { IN, "T.HD" },
               { STAT, "T.H" }, { IN, "T.HD" }, { IN, "S.KD" }, { IN, "S.KD" }, { RANGE, "T.2" } },
      .sum = "SDT", .rounds = true, .fresh = true, .shapes = ATTNS, .large = ATTNS_LARGE,
      .bench_dev = ATTN_BWD_BENCH_DEV,
      .bench = "T640 S640 H16 K16 D128; T577 S577 H16 K16 D64 M1",
      .flops = "52THSD" },
    { ROW(matmul_each),
      .arg = { { OUT, "T.O" }, { OUT, "T.O" }, { OUT, "T.O" }, { IN, "T.I" }, { MATRIX, "O.I" }, { MATRIX, "O.I" },
               { MATRIX, "O.I" }, { WEIGHT, "?O" } },
      .sum = "I", .product = true, .q8 = true, .q4 = true, .shapes = "T1 I64 O33; T9 I160 O48; T130 I128 O72",
      .prompts = "T300 I192 O264; T70 I320 O40", .bench = "T64 I2048 O2048",
      .bench_dev = "T577 I1024 O1024; T128 I5120 O5120; T640 I5120 O5120; T640 I5120 O13824; T2560 I5120 O5120",
      .flops = "6TIO" },
    { ROW(norm_matmul),
      .arg = { { OUT, "T.O" }, { OUT, "T.F" }, { OUT, "T.F" }, { IN, "T.I" }, { WEIGHT, "I" }, { MATRIX, "O.I" },
               { MATRIX, "F.I" }, { MATRIX, "F.I" }, { WEIGHT, "?O" } },
      .sum = "I", .product = true, .q8 = true, .q4 = true, .rounds = true, .normed = true,
      .shapes = COMPOSITES, .bench = "T1 I2048 O2048 F2048",
      .bench_dev = "T1 I5120 O5120 F5120; T16 I5120 O5120 F5120; T32 I5120 O5120 F5120", .flops = "6TIO" },
    { ROW(norm_glu),
      .arg = { { OUT, "T.F" }, { IN, "T.I" }, { WEIGHT, "I" }, { MATRIX, "F.I" }, { MATRIX, "F.I" } },
      .sum = "I", .product = true, .q8 = true, .q4 = true, .rounds = true, .normed = true, .gated = true,
      .shapes = COMPOSITES, .large = "T1 I576 F4500; T20 I128 F9000", .bench = "T1 I2048 F5632",
      .bench_dev = "T1 I5120 F13824; T32 I5120 F13824", .flops = "4TIF" },
    { ROW(rmsnorm_drop),
      .arg = { { OUT, "?T.C" }, { OUT, "T.C" }, { OUT_STAT, "?T" }, { IN, "T.C" }, { WEIGHT, "C" } },
      .sum = "C", .rounds = true, .by_place = true, .shapes = "T1 C2; T3 C34; T7 C578; T33 C128; T5 C1024",
      .bench_dev = NORM_BENCH_DEV, .bench = NORM_BENCH, .flops = "5TC" },
    { ROW(swiglu_drop), .arg = { { OUT, "?T.F" }, { OUT, "T.F" }, { WIDE, "T.F" }, { IN, "T.F" } },
      .sum = "", .rounds = true, .by_place = true, .shapes = "T1 F2; T3 F34; T7 F578; T64 F512; T300 F250",
      .bench_dev = ELEM_BENCH_DEV, .bench = ELEM_BENCH, .flops = "5TF" },
    { ROW(rope_store),
      .arg = { { CHANGE, "T.HD" }, { CHANGE, "T.KD" }, { IN, "T.KD" }, { POS, "T" }, { TABLE, "V.D" },
               { PUT, "M.KD" }, { PUT, "M.KD" }, { DISTINCT, "T" } },
      .sum = "", .rounds = true, .q8 = true,
      .shapes = "T1 H1 K1 D2 V1 M1; T5 H3 K1 D14 V33 M7; T33 H4 K2 D64 V40 M40; T3 H2 K2 D80 V9 M5",
      .bench = "T1 H32 K32 D128 V2048 M2048", .bench_dev = "T1 H40 K40 D128 V2048 M2048", .flops = "6THD" },
    { ROW(rope_attn), .prepare = prepare_rope_attn,
      .arg = { { OUT, "T.HD" }, { IN, "T.HD" }, { IN, "T.KD" }, { IN, "T.KD" }, { POS, "T" }, { TABLE, "V.D" },
               { PUT, "S.KD" }, { PUT, "S.KD" }, { POS, "T" }, { RANGE, "T.3" }, { PAGES, "B.N" } },
      .sum = "SD", .rounds = true, .own = true, .q8 = true, .shapes = DECODES, .large = DECODES_LARGE,
      .bench = "T1 B1 N40 S640 H32 K32 D128 V640", .bench_dev = "T1 B1 N40 S640 H40 K40 D128 V640",
      .flops = "4THSD" },
    { ROW(swiglu_fwd), .arg = { { OUT, "T.F" }, { WIDE, "T.F" }, { IN, "T.F" } },
      .sum = "", .same = 1, .shapes = ELEMS, .bench_dev = ELEM_BENCH_DEV,
      .bench = ELEM_BENCH, .flops = "4TF" },
    { ROW(swiglu_bwd),
      .arg = { { ADD, "?T.F" }, { ADD, "?T.F" }, { IN, "T.F" }, { WIDE, "T.F" }, { IN, "T.F" } },
      .sum = "", .fresh = true, .shapes = ELEMS, .bench_dev = ELEM_BENCH_DEV,
      .bench = ELEM_BENCH, .flops = "9TF" },
    { ROW(gelu_fwd), .arg = { { OUT, "T.F" }, { WIDE, "T.F" } },
      .sum = "", .same = 1, .shapes = ELEMS, .bench_dev = ELEM_BENCH_DEV,
      .bench = ELEM_BENCH, .flops = "4TF" },
    { ROW(gelu_bwd), .arg = { { ADD, "?T.F" }, { IN, "T.F" }, { WIDE, "T.F" } },
      .sum = "", .shapes = ELEMS, .bench_dev = ELEM_BENCH_DEV,
      .bench = ELEM_BENCH, .flops = "8TF" },
    { ROW(quick_gelu_fwd), .arg = { { OUT, "T.F" }, { WIDE, "T.F" } },
      .sum = "", .same = 1, .shapes = ELEMS, .bench_dev = ELEM_BENCH_DEV,
      .bench = ELEM_BENCH, .flops = "4TF" },
    { ROW(quick_gelu_bwd), .arg = { { ADD, "?T.F" }, { IN, "T.F" }, { WIDE, "T.F" } },
      .sum = "", .shapes = ELEMS, .bench_dev = ELEM_BENCH_DEV,
      .bench = ELEM_BENCH, .flops = "8TF" },
    { ROW(add), .arg = { { OUT, "T.F" }, { IN, "T.F" }, { IN, "T.F" } },
      .sum = EXACT, .same = 1, .shapes = ELEMS, .bench_dev = ELEM_BENCH_DEV,
      .bench = ELEM_BENCH, .flops = "TF" },
    { ROW(axpy), .arg = { { ADD, "T.F" }, { IN, "T.F" } },
      .sum = "", .fresh = true, .shapes = ELEMS, .bench_dev = ELEM_BENCH_DEV,
      .bench = ELEM_BENCH, .flops = "2TF" },
    { ROW(cast), .arg = { { PUT, "T.F" }, { IN, "T.F" } },
      .sum = EXACT, .q8 = true, .q4 = true, .shapes = ELEMS, .bench_dev = ELEM_BENCH_DEV,
      .bench = ELEM_BENCH },
    { ROW(zero), .arg = { { OUT, "T.F" } }, .sum = EXACT, .shapes = ELEMS, .bench_dev = ELEM_BENCH_DEV,
      .bench = ELEM_BENCH },
    { ROW(rows_get), .arg = { { OUT, "N.C" }, { MATRIX, "M.C" }, { INDEX, "N" } },
      .sum = EXACT, .q8 = true, .q4 = true, .shapes = ROWS, .bench_dev = ROWS_BENCH_DEV,
      .bench = ROWS_BENCH },
    { ROW(rows_put), .arg = { { PUT, "M.C" }, { DISTINCT, "N" }, { IN, "N.C" } },
      .sum = EXACT, .q8 = true, .shapes = ROWS, .bench_dev = ROWS_BENCH_DEV,
      .bench = ROWS_BENCH },
    { ROW(rows_get_add), .arg = { { ADD, "N.C" }, { IN, "M.C" }, { INDEX, "N" } },
      .sum = EXACT, .shapes = ROWS, .bench_dev = ROWS_BENCH_DEV,
      .bench = ROWS_BENCH },
    { ROW(rows_put_add), .arg = { { ADD, "M.C" }, { INDEX, "N" }, { IN, "N.C" } },
      .sum = "N", .steps = true, .shapes = ROWS, .bench_dev = ROWS_BENCH_DEV,
      .bench = ROWS_BENCH },
    { ROW(patchify_fwd), .arg = { { OUT, "NGG.3PP" }, { IN, "N.3.S.S" } },
      .sum = EXACT, .shapes = "N1 P1 G1 S1; N2 P3 G2 S7; N1 P14 G3 S42; N3 P7 G1 S13",
      .bench = "N1 P14 G24 S336" },
    { ROW(patchify_bwd), .arg = { { ADD, "?N.3.S.S" }, { IN, "NGG.3PP" } },
      .sum = EXACT, .shapes = "N1 P1 G1 S1; N2 P3 G2 S7; N1 P14 G3 S42; N3 P7 G1 S13",
      .bench = "N1 P14 G24 S336" },
    { ROW(xent_fwd), .arg = { { OUT_STAT, "T" }, { OUT_STAT, "T" }, { WIDE, "T.V" }, { TARGET, "T" } },
      .sum = "V", .shapes = XENTS, .bench_dev = "T4096 V32000",
      .bench = "T256 V32000", .flops = "4TV" },
    { ROW(xent_bwd), .prepare = prepare_xent,
      .arg = { { ADD, "?T.V" }, { IN, "T" }, { WIDE, "T.V" }, { STAT, "T" }, { TARGET, "T" } },
      .sum = "", .fresh = true, .shapes = XENTS, .bench_dev = "T4096 V32000",
      .bench = "T256 V32000", .flops = "5TV" },
    { ROW(dropout_bwd), .by_place = true, .fresh = true, .arg = { { ADD, "T.F" }, { IN, "T.F" } },
      .sum = "", .shapes = ELEMS, .bench_dev = ELEM_BENCH_DEV,
      .bench = ELEM_BENCH },
    { ROW(dropout), .by_place = true, .arg = { { OUT, "T.F" }, { IN, "T.F" } },
      .sum = EXACT, .same = 1, .shapes = ELEMS, .bench_dev = ELEM_BENCH_DEV,
      .bench = ELEM_BENCH },
    { ROW(sumsq), .arg = { { OUT_STAT, "1" }, { IN, "T.F" } },
      .sum = "TF", .shapes = ELEMS "; T3 F4097", .bench = ELEM_BENCH, .flops = "2TF" },
    { ROW(adamw),
      .arg = { { STATE, "T.F" }, { STATE, "T.F" }, { SQUARES, "T.F" }, { PUT, "?T.F" }, { STATE_IN, "T.F" } },
      .sum = "", .shapes = ELEMS, .bench_dev = ELEM_BENCH_DEV,
      .bench = "T5632 F2048", .flops = "14TF" },
};
