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
 * 16-bit activations may be rounded once more inside attention (`rounds`): softmax's results meet v, and the scores'
 * gradients meet q and k, in that type, as matrix units want it. That is as if v, q and k had changed by a roundoff.
 *
 * On a device the arguments are put into its memory before a run and read back after it.
 *
 *     rows [--device cpu|emu|cuda:0|hip:0] [--bench] [--shape "T7 I33 O65; ..."] [--type BF16] [kernel ...]
 *
 * Without --device: the emulated device where the build has one, else the processor's backends. With --shape: these
 * and none of the table's, --type: of activations and weights, no other (Q8, Q4: of weights, activations being BF16);
 * for checkers that take their time.
 */
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/plat.h"
#include "base/rng.h"
#include "dev/dev.h"
#include "check/rows.h"

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
    [WEIGHT] = { W, false, fill_normal },       [MATRIX] = { W, false, fill_normal },
    [CACHE] = { ACT_OR_W, false, fill_normal },
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
    bool extents;             /* kctx.extent is known */
    bool fresh;               /* gradients are TENSOR_FRESH */
    bool grid;                /* a product's input, argument 1, is such that rounding it to 8 bits changes nothing */
    struct tensor a[ARGS];    /* inputs and prior contents, exact in the types of the run */
    void *packed[ARGS];       /* a quantised argument as kernels get it: a holds the values */
    struct tensor want[ARGS]; /* the oracle's results; where not written, a's */
    double *sense[ARGS];      /* S of the bound, per row of a written argument */
};

static bool is_written(const struct test *c, int i) { return roles[c->row->arg[i].role].written; }

static enum dtype type_of(const struct test *c, int i)
{
    const bool small = dtype_bytes(c->act) == 2, quant = dtype_is_quant(c->weight);
    const enum role role = c->row->arg[i].role;
    switch (roles[role].type) {
    case ACT: return c->act;
    case W: return quant && role == WEIGHT ? DT_BF16 : c->weight; /* vectors are not quantised */
    case ACT_OR_W: return quant || dtype_bytes(c->weight) == 2 ? c->weight : c->act;
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

/* Values of any type as F64. */
static void to_f64(struct kctx *kc, double *to, struct tensor t)
{
    const size_t mark = arena_mark(kc->scratch);
    if (dtype_is_quant((enum dtype)t.type)) {
        struct tensor f = t;
        f.type = DT_F32;
        f.p = arena_take(kc->scratch, tensor_bytes(f));
        tensor_convert(f, t);
        t = f;
    }
    dtype_convert(to, DT_F64, t.p, (enum dtype)t.type, tensor_count(t));
    arena_rewind(kc->scratch, mark);
}

/* F64 values as rows of a quantised type; the values become what those say. */
static void *pack(struct kctx *kc, struct tensor t, enum dtype type)
{
    struct tensor q = t;
    q.type = (int8_t)type;
    q.p = arena_take(kc->scratch, tensor_bytes(q));
    tensor_convert(q, t);
    to_f64(kc, t.p, q);
    return q.p;
}

/* Rounds F64 values to a type, in place. */
static void round_to(struct kctx *kc, struct tensor t, enum dtype type)
{
    const size_t mark = arena_mark(kc->scratch);
    if (dtype_is_quant(type)) {
        pack(kc, t, type);
        arena_rewind(kc->scratch, mark);
        return;
    }
    void *small = arena_take(kc->scratch, tensor_bytes(t));
    dtype_convert(small, type, t.p, DT_F64, tensor_count(t));
    dtype_convert(t.p, DT_F64, small, type, tensor_count(t));
    arena_rewind(kc->scratch, mark);
}

/* Makes each group of 64 whole multiples of 1/127 of its largest value, which is 127 times a power of two so that types
 * of 16 bits hold them: rounding to 8 bits then changes nothing. */
static void put_on_grid(struct tensor t)
{
    for (int64_t row = 0, cols = tensor_cols(t); row < tensor_rows(t); row++)
        for (int64_t from = 0; from < cols; from += 64) {
            double *x = (double *)t.p + row * cols + from;
            int64_t top = 0, n = cols - from < 64 ? cols - from : 64;
            for (int64_t i = 0; i < n; i++) top = fabs(x[i]) > fabs(x[top]) ? i : top;
            const double s = exp2(ceil(log2(fabs(x[top]) / 127)));
            for (int64_t i = 0; i < n; i++) x[i] = s * rint(x[i] / s);
            x[top] = copysign(127 * s, x[top]);
        }
}

static void fill(struct test *c, struct kctx *kc, struct rng *r)
{
    for (int i = 0; i < c->n_args; i++) {
        const struct arg *arg = &c->row->arg[i];
        const enum dtype type = type_of(c, i);
        c->a[i] = shaped(&c->d, arg->shape, type == DT_I32 ? DT_I32 : DT_F64);
        c->a[i].p = arena_take(kc->scratch, tensor_bytes(c->a[i]));
        roles[arg->role].fill(r, c->a[i], &c->d);
        if (c->fresh && arg->role == ADD) memset(c->a[i].p, 0, tensor_bytes(c->a[i]));
        c->packed[i] = NULL;
        if (c->grid && i == 1) put_on_grid(c->a[i]);
        if (dtype_is_quant(type)) c->packed[i] = pack(kc, c->a[i], type);
        else if (type != DT_I32) round_to(kc, c->a[i], type);
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
            const bool kept = is_written(c, i) && role != CHANGE && role != STATE && role != SQUARES &&
                              (role != PUT || !c->row->own);
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

struct backend {
    const char *name;
    struct kern k;
    struct kctx kc; /* with scratch in the device's memory */
    enum dtype act[4];
    int n_act;
    const char *shape, *type; /* the only ones; NULL: the table's, all */
    struct kv_extent extent[8];
};

/* What an engine knows of the ranges; on the host. */
static void find_extents(const struct test *c, struct backend *b, const struct tensor *got)
{
    enum { MOST = sizeof b->extent / sizeof *b->extent };
    b->kc.extent = b->extent;
    b->kc.n_extents = 0;
    for (int i = 0; i < c->n_args && c->extents; i++)
        if (c->row->arg[i].role == RANGE)
            b->kc.n_extents = kv_extents(b->extent, MOST, got[i].p, (int)got[i].n[0], (int)got[i].n[1]);
}

/* What a backend computes from `got`, in place. On a device a block of its own for each argument, so that the emulator
 * and memory checkers see its end. */
static void run(const struct test *c, struct backend *b, struct tensor *got, const struct dims *sizes)
{
    struct tensor there[ARGS] = { { 0 } };
    struct dev *d = b->kc.dev;
    struct err e;
    b->kc.n_threads = c->threads;
    b->kc.product = c->product;
    b->kc.decode = c->decode;
    find_extents(c, b, got);
    if (!d) {
        c->row->call(&b->k, &b->kc, got, sizes);
        return;
    }
    for (int i = 0; i < c->n_args; i++) {
        there[i] = got[i];
        if (!got[i].p) continue;
        if (i && got[i].p == got[0].p) {
            there[i].p = there[0].p;
            continue;
        }
        if (dev_alloc(&there[i].p, d, tensor_bytes(got[i]), &e) < 0) BUG("%s", e.msg);
        dev_put(d, there[i].p, got[i].p, tensor_bytes(got[i]));
    }
    c->row->call(&b->k, &b->kc, there, sizes);
    for (int i = 0; i < c->n_args; i++) {
        if (!got[i].p || (i && got[i].p == got[0].p)) continue;
        dev_get(d, got[i].p, there[i].p, tensor_bytes(got[i]));
        dev_free(d, there[i].p, tensor_bytes(got[i]));
    }
}

/* The arguments in the types of the run, each in a block of its own so that sanitizers see its end. */
static void args_new(const struct test *c, struct tensor *got)
{
    for (int i = 0; i < c->n_args; i++) {
        got[i] = c->a[i];
        if (!got[i].p) continue;
        got[i].type = (int8_t)type_of(c, i);
        got[i].p = malloc(tensor_bytes(got[i]));
        ASSERT(got[i].p);
        const bool fresh = c->fresh && c->row->arg[i].role == ADD;
        if (fresh) got[i].id = TENSOR_FRESH;
        if (fresh || roles[c->row->arg[i].role].fill == fill_poison) fill_poison(NULL, got[i], NULL);
        else if (c->packed[i]) memcpy(got[i].p, c->packed[i], tensor_bytes(got[i]));
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
    return t == DT_F64 ? 0x1p-53 : t == DT_F32 || dtype_is_quant(t) ? 0x1p-24 : t == DT_F16 ? 0x1p-11 : 0x1p-8;
}

/* All elements in F64, in scratch. */
static const double *values(struct kctx *kc, struct tensor t)
{
    double *v = arena_take(kc->scratch, (size_t)tensor_count(t) * sizeof *v);
    to_f64(kc, v, t);
    return v;
}

static int complain(const struct test *c, const char *what)
{
    printf("# %s: %s; act %s, weight %s, product %s, threads %d, decode %d, extents %d, fresh %d, absent %d, sizes",
           c->row->name, what, dtype_name(c->act), dtype_name(c->weight), dtype_name(c->product), c->threads, c->decode,
           c->extents, c->fresh, c->absent);
    for (int i = 0; i < 26; i++)
        if (c->d.n[i]) printf(" %c%lld", 'A' + i, (long long)c->d.n[i]);
    printf("\n");
    return -1;
}

/* Errors are normal, and six deviations are allowed; but those of a product of products (SwiGLU) are normal times what
 * they are multiplied with, whose tail is exp(-sqrt(2) t): thirteen. */
static double tail(const struct row *row) { return row->gated ? 13 / 6.0 : 1; }

/* Rounding to 8 bits errs by max/127/sqrt(12) of a group at the root mean square, over that of its values. The largest
 * of 64 normal values is at most four times theirs, of 64 products of two (x and the norm's weight) eight times. Of S's
 * square x has one part, as has w, and the norm's weight. */
static double u_group(const struct row *row)
{
    const double most = row->normed ? 8 : 4, parts = row->normed ? 3 : 2;
    return 6 * tail(row) * most / (127 * sqrt(12) * sqrt(parts));
}

/* What may be rounded on the way, besides sums: see kctx.product; where types of 16 bits meet quantised weights in a
 * product these become such a type, too, and a library may round a product before it adds what is there. A step of a
 * row that is stored in 8 bits is 1/127 of its largest value. A cache in 8 bits becomes such a type besides what
 * attention rounds; S is a mean over a row, and elements that the greatest values of v make feel more. Where attention
 * turns and stores its own keys, these and q are rounded as well as what attention rounds: two errors of one size. */
static double rounding_of(const struct test *c, enum dtype out)
{
    const double u_act = 2 * unit_roundoff(c->act);
    if (dtype_is_quant(out)) return 4 / 127.0;
    if (c->row->own)
        return dtype_is_quant(c->weight) ? u_group(c->row) : sqrt(2) * fmax(u_act, 2 * unit_roundoff(c->weight));
    if (c->product == DT_BF16) return 2 * 0x1p-8 * tail(c->row);
    if (c->product == DT_Q8 && !c->grid) return u_group(c->row);
    if (c->row->rounds && c->row->product) return 2 * u_act; /* what lies between, in elements that feel it more */
    if (c->row->rounds && dtype_is_quant(c->weight)) return 2 * u_act;
    return c->row->rounds || c->product == DT_Q8 ? u_act : c->row->product ? u_act / 2 : 0;
}

/* Argument i, of the values `got`, against the oracle. *worst: the largest error as a share of its bound. */
static int judge(const struct test *c, int i, const double *got, double *worst)
{
    const enum dtype type = type_of(c, i);
    const double u_out = unit_roundoff(type), tiny = type == DT_F16 ? 0x1p-24 : 0x1p-126;
    double n = 1;
    for (const char *s = c->row->sum; s && *s; s++) n = fmax(n, (double)size(&c->d, *s));
    const double u_step = c->row->steps ? fmax(u_out, 0x1p-24) : 0x1p-24;
    const double u_round = rounding_of(c, type);
    const double u_sum = u_step * (8 + 2 * sqrt(n)) + u_round;
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
static int run_again(const struct test *c, struct backend *b, const struct tensor *first, size_t high)
{
    enum { BEYOND = 1 << 14 };
    struct tensor got[ARGS] = { 0 };
    char beyond[BEYOND];
    int rc = 0;
    dev_fill(b->kc.dev, b->kc.scratch->base + high, 0x5a, BEYOND);
    args_new(c, got);
    run(c, b, got, &c->d);
    dev_get(b->kc.dev, beyond, b->kc.scratch->base + high, BEYOND);
    for (int i = 0; i < BEYOND && rc == 0; i++)
        if (beyond[i] != 0x5a) rc = complain(c, "more scratch was used than taken");
    for (int i = 0; i < c->n_args && rc == 0; i++)
        if (got[i].p && memcmp(got[i].p, first[i].p, tensor_bytes(got[i])))
            rc = complain(c, "two equal runs differ");
    args_free(c, got);
    return rc;
}

/* With y in the place of the input that it may share. */
static int run_shared(const struct test *c, struct backend *b, struct kctx *kc, double *worst)
{
    struct tensor got[ARGS] = { 0 };
    const int same = c->row->same;
    if (!same || !c->a[same].p) return 0;
    args_new(c, got);
    void *own = got[0].p;
    got[0].p = got[same].p;
    run(c, b, got, &c->d);
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
static int run_alone(const struct test *c, struct backend *b, const struct tensor *all, int64_t t)
{
    struct tensor got[ARGS] = { 0 }, one[ARGS] = { 0 };
    struct dims d = c->d;
    int rc = 0;
    if (c->row->by_place) return 0;
    for (int i = 0; i < c->n_args; i++)
        if (is_written(c, i) && !is_by_token(&c->row->arg[i]) && c->row->arg[i].role != PUT) return 0;
    d.n['T' - 'A'] = 1;
    args_new(c, got);
    for (int i = 0; i < c->n_args; i++) {
        one[i] = got[i].p && is_by_token(&c->row->arg[i]) ? tensor_slice(got[i], t, 1) : got[i];
        one[i].id = got[i].id;
    }
    run(c, b, one, &d);
    for (int i = 0; i < c->n_args && rc == 0; i++)
        if (got[i].p && is_written(c, i) && is_by_token(&c->row->arg[i]) &&
            memcmp(one[i].p, tensor_slice(all[i], t, 1).p, tensor_bytes(one[i])))
            rc = complain(c, "a row alone differs from the same among others");
    args_free(c, got);
    return rc;
}

static int run_test(const struct test *c, struct backend *b, struct kctx *kc, double *worst)
{
    struct tensor got[ARGS] = { 0 };
    struct arena *scratch = b->kc.scratch;
    const size_t mark = arena_mark(scratch);
    args_new(c, got);
    scratch->high = mark;
    run(c, b, got, &c->d);
    const size_t high = scratch->high;
    int rc = arena_mark(scratch) == mark ? 0 : complain(c, "scratch was not given back");
    if (rc == 0) rc = judge_all(c, kc, got, worst);
    if (rc == 0) rc = run_again(c, b, got, high);
    for (int64_t t = 0, T = size(&c->d, 'T'); t < T && rc == 0; t += 1 + T / 3) rc = run_alone(c, b, got, t);
    if (rc == 0) rc = run_shared(c, b, kc, worst);
    args_free(c, got);
    return rc;
}

/* ---- rows x backends */

static bool has_own(const struct backend *b, const struct row *row)
{
    const char *own = (const char *)&b->k + row->slot, *refs = (const char *)&kern_ref + row->slot;
    return b->n_act > 1 || memcmp(own, refs, sizeof(void (*)(void)));
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

/* The product other than F32 that may change what the row computes; F32: none. */
static enum dtype other_product(const struct test *c)
{
    if (!c->row->product) return DT_F32;
    if (!uses_weight(c->row)) return DT_BF16;
    return dtype_is_quant(c->weight) ? DT_Q8 : c->weight == DT_BF16 ? DT_BF16 : DT_F32;
}

/* Weight types of a row, F32 alone where it has no weights. */
static int types_of(const struct row *row, enum dtype types[5])
{
    int n = 0;
    types[n++] = DT_F32;
    if (!uses_weight(row)) return n;
    types[n++] = DT_F16;
    types[n++] = DT_BF16;
    if (row->q8) types[n++] = DT_Q8;
    if (row->q4) types[n++] = DT_Q4;
    return n;
}

/* All shapes of a list, for one choice of types. decode: -1 either way. The absent argument changes from run to run. */
static int check_shapes(struct test *c, struct backend *b, struct kctx *kc, const char *next, int decode, int *runs,
                        double *worst)
{
    while (next) {
        struct rng r;
        rng_seed(&r, (uint64_t)*runs);
        next = dims_next(next, &c->d);
        c->absent = *runs % (c->n_args + 2);
        c->absent = c->absent == c->n_args ? ARGS : c->absent > c->n_args ? -1 : c->absent;
        ++*runs;
        const size_t mark = arena_mark(kc->scratch);
        c->decode = decode < 0 ? (int)(rng_u64(&r) % 2) : decode;
        c->fresh = c->row->fresh && b->k.fresh && rng_u64(&r) % 2;
        c->extents = rng_u64(&r) % 3;
        c->grid = c->product == DT_Q8 && c->row->arg[1].role == IN && !c->row->rounds && *runs % 2;
        fill(c, kc, &r);
        find_wanted(c, kc, &r);
        const int rc = run_test(c, b, kc, worst);
        arena_rewind(kc->scratch, mark);
        if (rc < 0) return rc;
    }
    return 0;
}

static int check_types(struct test *c, struct backend *b, struct kctx *kc, int *runs, double *worst)
{
    const bool card = b->kc.dev && strcmp(b->name, "emu");
    if (b->shape) return check_shapes(c, b, kc, b->shape, -1, runs, worst);
    if (check_shapes(c, b, kc, c->row->shapes, -1, runs, worst) < 0) return -1;
    if (card && check_shapes(c, b, kc, c->row->large, 1, runs, worst) < 0) return -1;
    const bool prompt = card && c->product == DT_Q8 && c->act == DT_BF16;
    return prompt ? check_shapes(c, b, kc, c->row->prompts, 0, runs, worst) : 0;
}

/* Of a --type. */
static bool is_of_type(const struct test *c, const char *type)
{
    const bool weights = uses_weight(c->row), quant = weights && dtype_is_quant(c->weight);
    if (quant) return c->act == DT_BF16 && !strcmp(type, dtype_name(c->weight));
    return (!weights || c->weight == c->act) && !strcmp(type, dtype_name(c->act));
}

static int check_row(const struct row *row, struct backend *b, struct kctx *kc, int *runs, double *worst)
{
    enum dtype weights[5];
    const int n_weights = types_of(row, weights);
    for (int i = 0; i < b->n_act * n_weights; i++) {
        struct test c = { .row = row, .n_args = count_args(row), .threads = 1 + i % 3,
                          .act = b->act[i / n_weights], .weight = weights[i % n_weights], .product = DT_F32 };
        if (b->type && !is_of_type(&c, b->type)) continue;
        if (check_types(&c, b, kc, runs, worst) < 0) return -1;
        c.product = other_product(&c);
        if (c.product != DT_F32 && check_types(&c, b, kc, runs, worst) < 0) return -1;
    }
    return 0;
}

/* ---- how fast */

enum { PATTERN = 99991 }; /* numbers that a large argument repeats: making more would take longer than the kernel */

/* Rows of a quantised argument: 64 of them, again and again. */
static void pack_bench(struct kctx *kc, struct rng *r, struct tensor host)
{
    const int64_t some = host.n[0] < 64 ? host.n[0] : 64;
    struct tensor wide = tensor_2d(NULL, DT_F64, some, tensor_cols(host)), few = host;
    const size_t mark = arena_mark(kc->scratch);
    wide.p = arena_take(kc->scratch, tensor_bytes(wide));
    fill_normal(r, wide, NULL);
    few.n[0] = some;
    tensor_convert(few, wide);
    const size_t bytes = tensor_bytes(few) / (size_t)some;
    for (int64_t i = some; i < host.n[0]; i++) memcpy(tensor_row(host, i), tensor_row(host, i % some), bytes);
    arena_rewind(kc->scratch, mark);
}

/* Arguments in the device's memory. Statistics are any numbers. */
static void args_bench(struct test *c, struct backend *b, struct kctx *kc, struct tensor *a)
{
    struct rng r;
    struct err e;
    rng_seed(&r, 1);
    for (int i = 0; i < c->n_args; i++) {
        const enum role role = c->row->arg[i].role;
        const enum dtype type = type_of(c, i);
        const bool quant = dtype_is_quant(type);
        const size_t mark = arena_mark(kc->scratch), size = quant ? 0 : dtype_bytes(type);
        a[i] = shaped(&c->d, c->row->arg[i].shape, type);
        const int64_t n = tensor_count(a[i]), some = n < PATTERN || type == DT_I32 || role == TABLE ? n : PATTERN;
        struct tensor wide = some == n ? a[i] : tensor_1d(NULL, type, some);
        wide.type = type == DT_I32 ? DT_I32 : DT_F64;
        wide.p = arena_take(kc->scratch, tensor_bytes(wide));
        (roles[role].written ? fill_normal : roles[role].fill)(&r, wide, &c->d);
        char *host = arena_take(kc->scratch, tensor_bytes(a[i]));
        if (quant) pack_bench(kc, &r, tensor_2d(host, type, tensor_rows(a[i]), tensor_cols(a[i])));
        else if (type == DT_I32) memcpy(host, wide.p, tensor_bytes(a[i]));
        else dtype_convert(host, type, wide.p, DT_F64, some);
        for (int64_t k = some; k < n && !quant; k += some)
            memcpy(host + (size_t)k * size, host, (size_t)(n - k < some ? n - k : some) * size);
        if (dev_alloc(&a[i].p, b->kc.dev, tensor_bytes(a[i]), &e) < 0) BUG("%s", e.msg);
        dev_put(b->kc.dev, a[i].p, host, tensor_bytes(a[i]));
        arena_rewind(kc->scratch, mark);
    }
}

/* On a device: sets of the arguments, taken in turn, so that its cache does not hold them; else one. */
enum { SETS = 64 };
static const double CACHED = 400e6;

static void launch_calls(const struct test *c, struct backend *b, struct tensor (*a)[ARGS], int sets, int n)
{
    for (int i = 0; i < n; i++) c->row->call(&b->k, &b->kc, a[i % sets], &c->d);
}

/* Of one call: the best of some rounds; on a device of many calls each, recorded where it can do that, so that
 * launching and waiting do not count. */
static double best_time(const struct test *c, struct backend *b, struct tensor (*a)[ARGS], int sets)
{
    struct dev *d = b->kc.dev;
    struct dev_graph *graph = NULL;
    struct err e;
    double best = INFINITY, total = 0, once = plat_now_s();
    for (int i = 0; i < 2; i++) {
        launch_calls(c, b, a, sets, 1);
        dev_sync(d);
    }
    once = (plat_now_s() - once) / 2;
    const int calls = d ? (int)fmax(1, fmin(256, 0.01 / once)) / sets * sets + sets : 1;
    if (d && dev_captures(d) && dev_capture_begin(d, &e) >= 0) {
        launch_calls(c, b, a, sets, calls);
        if (dev_capture_end(&graph, d, &e) < 0) graph = NULL;
    }
    for (int n = 0; n < 3 || (total < 0.3 && n < 1000); n++) {
        const double start = plat_now_s();
        if (graph) dev_graph_run(d, graph);
        else launch_calls(c, b, a, sets, calls);
        dev_sync(d);
        const double s = plat_now_s() - start;
        best = fmin(best, s / calls);
        total += s;
        if (total > 3) break;
    }
    dev_graph_free(graph);
    return best;
}

static void bench_shape(struct test *c, struct backend *b, struct kctx *kc, const char *shape)
{
    struct tensor a[SETS][ARGS] = { { { 0 } } };
    double bytes = 0, all = 0;
    args_bench(c, b, kc, a[0]);
    for (int i = 0; i < c->n_args; i++) {
        const bool twice = roles[c->row->arg[i].role].written && roles[c->row->arg[i].role].fill != fill_poison;
        bytes += (twice ? 2 : 1) * (double)tensor_bytes(a[0][i]);
        all += (double)tensor_bytes(a[0][i]);
    }
    const int sets = b->kc.dev ? (int)fmax(1, fmin(SETS, ceil(CACHED / all))) : 1;
    for (int i = 1; i < sets; i++) args_bench(c, b, kc, a[i]);
    b->kc.n_threads = plat_threads();
    b->kc.product = c->product;
    b->kc.decode = size(&c->d, 'T') <= 64;
    const double s = best_time(c, b, a, sets);
    const double flops = c->row->flops ? (double)product_of(&c->d, c->row->flops) : 0;
    printf("%-14s %-7s %-5s %-5s %-5s %10.1f us %8.1f GB/s %8.1f GFLOP/s  %.*s\n", c->row->name, b->name,
           dtype_name(c->act), dtype_name(c->weight), c->product == DT_F32 ? "" : dtype_name(c->product), s * 1e6,
           bytes / s * 1e-9, flops / s * 1e-9, (int)strcspn(shape, ";"), shape);
    for (int k = 0; k < sets; k++)
        for (int i = 0; i < c->n_args; i++) dev_free(b->kc.dev, a[k][i].p, tensor_bytes(a[k][i]));
}

/* The processor with f32 activations and weights of each type; a device in bf16, in the sizes of large models. */
static void bench_row(const struct row *row, struct backend *b, struct kctx *kc)
{
    enum dtype weights[5] = { DT_F32, DT_F32, DT_BF16 };
    const bool dev = b->kc.dev != NULL;
    const int n_weights = dev && !uses_weight(row) ? 3 : types_of(row, weights);
    const char *list = b->shape ? b->shape : dev && row->bench_dev ? row->bench_dev : row->bench;
    for (const char *shape = list, *next = NULL; shape; shape = next) {
        shape += strspn(shape, " ");
        for (int j = dev ? 2 : 0; j < n_weights; j++) {
            struct test c = { .row = row, .act = dev ? DT_BF16 : DT_F32, .weight = weights[j],
                              .n_args = count_args(row), .absent = -1 };
            next = dims_next(shape, &c.d);
            c.product = other_product(&c);
            if (c.product != DT_F32) bench_shape(&c, b, kc, shape);
            c.product = DT_F32;
            if (!dev || !row->product) bench_shape(&c, b, kc, shape);
        }
    }
}

/* ---- the program */

struct options {
    const char *device; /* NULL: the default */
    bool bench;
    const char *shape, *type;
    char **kernel;
    int n_kernel; /* 0: all */
};

static void options_read(struct options *o, int argc, char **argv)
{
    *o = (struct options){ .kernel = argv };
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--bench")) o->bench = true;
        else if (!strcmp(argv[i], "--device") && i + 1 < argc) o->device = argv[++i];
        else if (!strcmp(argv[i], "--shape") && i + 1 < argc) o->shape = argv[++i];
        else if (!strcmp(argv[i], "--type") && i + 1 < argc) o->type = argv[++i];
        else argv[o->n_kernel++] = argv[i];
    }
    if (!o->device) o->device = strstr(dev_kinds(), "emu") ? "emu" : "cpu";
}

static bool is_wanted(const struct options *o, const struct row *row)
{
    for (int i = 0; i < o->n_kernel; i++)
        if (!strcmp(o->kernel[i], row->name)) return true;
    return o->n_kernel == 0;
}

/* One TAP line; true when the row holds. */
static bool report_row(const struct row *row, struct backend *b, struct kctx *kc, int number)
{
    int runs = 0;
    double worst = 0;
    const bool right = check_row(row, b, kc, &runs, &worst) == 0;
    if (!runs) printf("ok %d - %s %s # SKIP not of type %s\n", number, row->name, b->name, b->type);
    else printf("%s %d - %s %s: %d runs, worst error %.2f of its bound\n", right ? "ok" : "not ok", number, row->name,
                b->name, runs, worst);
    return right;
}

/* How many rows failed; *n counts them all. */
static int backend_run(struct backend *b, struct kctx *kc, const struct options *o, int *n)
{
    int failed = 0;
    for (const struct row *row = rows; row < rows + sizeof rows / sizeof *rows; row++) {
        if (!is_wanted(o, row) || !has_own(b, row)) continue;
        b->shape = o->shape;
        b->type = o->type;
        if (o->bench) bench_row(row, b, kc);
        else failed += !report_row(row, b, kc, ++*n);
        fflush(stdout);
    }
    return failed;
}

static int run_processor(struct kctx *kc, const struct options *o, int *n)
{
    struct backend backends[] = {
        { .name = "ref", .k = kern_ref, .kc = *kc, .act = { DT_F32, DT_F64, DT_BF16, DT_F16 }, .n_act = 4 },
        { .name = "avx2", .k = kern_ref, .kc = *kc, .act = { DT_F32 }, .n_act = 1 },
        { .name = "avx512", .k = kern_ref, .kc = *kc, .act = { DT_F32 }, .n_act = 1 }
    };
    int failed = 0;
    for (struct backend *b = backends; b < backends + sizeof backends / sizeof *backends; b++) {
        if (b->n_act > 1 || !strcmp(kern_init_cpu(&b->k, b->name), b->name)) failed += backend_run(b, kc, o, n);
        else printf("# this processor has no %s\n", b->name);
    }
    return failed;
}

static int run_device(struct kctx *kc, const struct options *o, int *n)
{
    struct backend b = { .name = o->device, .kc = *kc, .act = { DT_F32, DT_BF16, DT_F16 }, .n_act = 3 };
    struct arena scratch = { 0 };
    struct err e;
    int failed = 1, rc;
    b.kc.scratch = &scratch;
    TRY(dev_open(&b.kc.dev, o->device, &e));
    TRY(dev_arena(&scratch, b.kc.dev, (size_t)1 << 30, &e));
    TRY(kern_init(&b.k, b.kc.dev, NULL, &e));
    printf("# %s\n", dev_model(b.kc.dev));
    failed = backend_run(&b, kc, o, n);
out:
    if (rc < 0) printf("Bail out! %s\n", e.msg);
    arena_fini(&scratch);
    dev_close(b.kc.dev);
    return failed;
}

int main(int argc, char **argv)
{
    struct options o;
    struct arena scratch;
    struct err e;
    int n = 0;
    options_read(&o, argc, argv);
    if (arena_init(&scratch, (size_t)8 << 30, &e) < 0) return fprintf(stderr, "rows: %s\n", e.msg), 1;
    struct kctx kc = { .scratch = &scratch, .n_threads = 1 };
    const int failed = (strcmp(o.device, "cpu") ? run_device : run_processor)(&kc, &o, &n);
    if (!o.bench) printf("1..%d\n", n);
    arena_fini(&scratch);
    return failed ? 1 : 0;
}
