/* Every op of op.h, alone and composed, on the reference kernels in double: gradients of inputs and
 * parameters are those by central differences; using an op twice doubles them; what is frozen is neither
 * touched nor walked and changes no other gradient; a dry run takes the memory that the real one takes; a
 * checkpoint changes no bit and needs less. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "help/pile.h"
#include "op/op.h"

enum { INS = 3, PARAMS = 10, AUX = 16, ROPE_POSITIONS = 5, ARENA_BYTES = 4 << 20 };

/* An op with its operands. `forward` may put parameters together in lin, lora and norm, which live as long as this. */
struct bench {
    const struct op_case *c;
    struct op_ctx o;
    struct kctx kc;
    struct arena act, scratch, keep;
    struct tensor in[INS], dy, table, aux;
    struct param p[PARAMS];
    struct linear lin[4];
    struct lora lora, pair[2];
    struct layernorm norm;
    struct tensor y;
};
struct op_case {
    const char *name;
    struct tensor (*forward)(struct bench *b, const struct tensor *in);
    struct tensor in[INS], param[PARAMS]; /* shapes */
    int n_aux;                            /* indices; twice that many for attention's ranges */
    int32_t aux[AUX];
    int number;                           /* heads, patch */
};

static const struct tensor none = { 0 };
static const float eps = 1e-5f;

/* ---- the ops */

static struct tensor linear(struct bench *b, const struct tensor *in)
{
    b->lin[0] = (struct linear){ .w = b->p[0], .b = b->p[1] };
    return op_linear(&b->o, in[0], &b->lin[0]);
}
static struct tensor linear_add(struct bench *b, const struct tensor *in)
{
    b->lin[0] = (struct linear){ .w = b->p[0], .b = b->p[1] };
    return op_linear_add(&b->o, in[0], &b->lin[0], in[1]);
}
static struct tensor linear_lora(struct bench *b, const struct tensor *in)
{
    b->lora = (struct lora){ b->p[1], b->p[2], 0.7f, 0, 0 };
    b->lin[0] = (struct linear){ .w = b->p[0], .lora = &b->lora };
    return op_linear_add(&b->o, in[0], &b->lin[0], in[1]);
}
/* The same elements are dropped every time: the differences see a function without chance. */
static struct tensor linear_drop(struct bench *b, const struct tensor *in)
{
    b->o.drop_key = 0x123456789abcdefu;
    b->lora = (struct lora){ b->p[1], b->p[2], 0.7f, 0.4f, 99 };
    b->lin[0] = (struct linear){ .w = b->p[0], .lora = &b->lora };
    return op_linear_add(&b->o, in[0], &b->lin[0], in[1]);
}
/* Two side by side, whose adapters drop the same of what they read. */
static struct tensor linears_drop(struct bench *b, const struct tensor *in)
{
    const struct linear *const l[2] = { &b->lin[0], &b->lin[1] };
    struct tensor y[2];
    for (int i = 0; i < 2; i++) {
        b->pair[i] = (struct lora){ b->p[3 * i + 1], b->p[3 * i + 2], 0.7f, 0.3f, 5 };
        b->lin[i] = (struct linear){ .w = b->p[3 * i], .lora = &b->pair[i] };
    }
    b->o.drop_key = 99;
    op_linears(&b->o, y, in[0], l, 2);
    b->o.drop_key = 0;
    return op_add(&b->o, y[0], y[1]);
}
static struct tensor rmsnorm(struct bench *b, const struct tensor *in)
{
    return op_rmsnorm(&b->o, in[0], &b->p[0], eps);
}
static struct tensor layernorm(struct bench *b, const struct tensor *in)
{
    b->norm = (struct layernorm){ b->p[0], b->p[1] };
    return op_layernorm(&b->o, in[0], &b->norm, eps);
}
/* RoPE works in place: on a sum, which nothing else uses. */
static struct tensor rope(struct bench *b, const struct tensor *in)
{
    return op_rope(&b->o, op_add(&b->o, in[0], in[1]), b->aux, b->table);
}
static struct tensor attention(struct bench *b, const struct tensor *in)
{
    return op_attention(&b->o, in[0], in[1], in[2], b->aux, (struct tensor){ 0 }, b->c->number);
}
static struct tensor swiglu(struct bench *b, const struct tensor *in) { return op_swiglu(&b->o, in[0], in[1]); }
static struct tensor gelu(struct bench *b, const struct tensor *in) { return op_gelu(&b->o, in[0]); }
static struct tensor quick_gelu(struct bench *b, const struct tensor *in) { return op_quick_gelu(&b->o, in[0]); }
static struct tensor add(struct bench *b, const struct tensor *in) { return op_add(&b->o, in[0], in[1]); }
static struct tensor add_itself(struct bench *b, const struct tensor *in) { return op_add(&b->o, in[0], in[0]); }
static struct tensor embed(struct bench *b, const struct tensor *in)
{
    (void)in;
    return op_embed(&b->o, &b->p[0], b->aux);
}
static struct tensor gather(struct bench *b, const struct tensor *in) { return op_gather(&b->o, in[0], b->aux); }
static struct tensor splice(struct bench *b, const struct tensor *in) { return op_splice(&b->o, in[0], in[1], b->aux); }
static struct tensor patchify(struct bench *b, const struct tensor *in)
{
    return op_patchify(&b->o, in[0], b->c->number);
}
static struct tensor xent(struct bench *b, const struct tensor *in) { return op_xent(&b->o, in[0], b->aux, 0.3f); }
static struct tensor norm_glu_add(struct bench *b, const struct tensor *in)
{
    for (int i = 0; i < 3; i++) b->lin[i] = (struct linear){ .w = b->p[i + 1] };
    return op_norm_glu_add(&b->o, in[0], &b->p[0], eps, &b->lin[0], &b->lin[1], &b->lin[2], 0);
}
/* Two places: what is dropped in one says nothing of the other. */
static struct tensor joined(struct bench *b, const struct tensor *in)
{
    for (int i = 0; i < 4; i++) b->lin[i] = (struct linear){ .w = b->p[i + 1] };
    b->o.drop_key = 0x123456789abcdefu;
    b->o.drop = 0.3f;
    struct tensor x = op_norm_glu_add(&b->o, in[0], &b->p[0], eps, &b->lin[0], &b->lin[1], &b->lin[2], 1);
    x = op_linear_join(&b->o, x, &b->lin[3], in[0], 2);
    b->o.drop = 0;
    b->o.drop_key = 0;
    return x;
}
/* Attention as a block of a language model has it: norm, three projections, out, residual. */
static struct tensor norm_qkv(struct bench *b, const struct tensor *in)
{
    for (int i = 0; i < 4; i++) b->lin[i] = (struct linear){ .w = b->p[i + 1] };
    b->lin[0].b = b->p[5];
    struct op_qkv h = op_norm_qkv(&b->o, in[0], &b->p[0], eps, &b->lin[0], &b->lin[1], &b->lin[2]);
    struct tensor attention = op_attention(&b->o, h.q, h.k, h.v, b->aux, (struct tensor){ 0 }, b->c->number);
    return op_linear_add(&b->o, attention, &b->lin[3], in[0]);
}

#define D1(a) { .nd = 1, .type = DT_F64, .n = { a, 1, 1, 1 } }
#define D2(a, b) { .nd = 2, .type = DT_F64, .n = { a, b, 1, 1 } }
#define D4(a, b, c, d) { .nd = 4, .type = DT_F64, .n = { a, b, c, d } }
static const struct op_case cases[] = {
    { "linear", linear, { D2(3, 5) }, { D2(4, 5), D1(4) }, 0, { 0 }, 0 },
    { "linear, one token", linear, { D2(1, 5) }, { D2(4, 5), D1(4) }, 0, { 0 }, 0 },
    { "linear without bias", linear, { D2(3, 5) }, { D2(4, 5) }, 0, { 0 }, 0 },
    { "linear_add", linear_add, { D2(3, 5), D2(3, 4) }, { D2(4, 5), D1(4) }, 0, { 0 }, 0 },
    { "linear with LoRA", linear_lora, { D2(3, 5), D2(3, 4) }, { D2(4, 5), D2(2, 5), D2(4, 2) }, 0, { 0 }, 0 },
    { "linear with LoRA, dropout", linear_drop, { D2(4, 9), D2(4, 4) }, { D2(4, 9), D2(2, 9), D2(4, 2) }, 0, { 0 }, 0 },
    { "linears with LoRA, dropout", linears_drop, { D2(4, 9) },
      { D2(4, 9), D2(2, 9), D2(4, 2), D2(4, 9), D2(3, 9), D2(4, 3) }, 0, { 0 }, 0 },
    { "rmsnorm", rmsnorm, { D2(3, 7) }, { D1(7) }, 0, { 0 }, 0 },
    { "rmsnorm, one token", rmsnorm, { D2(1, 7) }, { D1(7) }, 0, { 0 }, 0 },
    { "layernorm", layernorm, { D2(3, 7) }, { D1(7), D1(7) }, 0, { 0 }, 0 },
    { "rope", rope, { D2(3, 8), D2(3, 8) }, { { 0 } }, 3, { 4, 0, 2 }, 4 },
    { "rope, one token", rope, { D2(1, 8), D2(1, 8) }, { { 0 } }, 1, { 3 }, 4 },
    { "attention, one token", attention, { D2(1, 6), D2(1, 6), D2(1, 6) }, { { 0 } }, 2, { 0, 1 }, 3 },
    { "attention, causal", attention, { D2(4, 6), D2(4, 6), D2(4, 6) }, { { 0 } }, 8, { 0, 1, 0, 2, 0, 3, 0, 4 }, 2 },
    { "attention, packed", attention, { D2(4, 4), D2(4, 4), D2(4, 4) }, { { 0 } }, 8, { 0, 1, 0, 2, 2, 3, 2, 4 }, 2 },
    { "attention, bidirectional", attention, { D2(3, 4), D2(3, 4), D2(3, 4) }, { { 0 } }, 6, { 0, 3, 0, 3, 0, 3 }, 2 },
    { "attention, grouped heads", attention, { D2(3, 8), D2(3, 4), D2(3, 4) }, { { 0 } }, 6, { 0, 1, 0, 2, 1, 3 }, 4 },
    { "swiglu", swiglu, { D2(3, 5), D2(3, 5) }, { { 0 } }, 0, { 0 }, 0 },
    { "gelu", gelu, { D2(3, 5) }, { { 0 } }, 0, { 0 }, 0 },
    { "quick_gelu", quick_gelu, { D2(3, 5) }, { { 0 } }, 0, { 0 }, 0 },
    { "add", add, { D2(3, 5), D2(3, 5) }, { { 0 } }, 0, { 0 }, 0 },
    { "add of a tensor and itself", add_itself, { D2(3, 5) }, { { 0 } }, 0, { 0 }, 0 },
    { "embed", embed, { { 0 } }, { D2(4, 3) }, 5, { 1, -1, 3, 1, 0 }, 0 },
    { "gather", gather, { D2(4, 3) }, { { 0 } }, 5, { 1, -1, 3, 1, 0 }, 0 },
    { "splice", splice, { D2(5, 3), D2(2, 3) }, { { 0 } }, 2, { 3, 1 }, 0 },
    { "patchify", patchify, { D4(2, 3, 5, 5) }, { { 0 } }, 0, { 0 }, 2 },
    { "cross entropy", xent, { D2(4, 5) }, { { 0 } }, 4, { 2, -1, 4, 0 }, 0 },
    { "norm_glu_add", norm_glu_add, { D2(3, 4) }, { D1(4), D2(6, 4), D2(6, 4), D2(4, 6) }, 0, { 0 }, 0 },
    { "joined, dropout", joined, { D2(3, 4) }, { D1(4), D2(6, 4), D2(6, 4), D2(4, 6), D2(4, 4) }, 0, { 0 }, 0 },
    { "norm_qkv", norm_qkv, { D2(3, 4) }, { D1(4), D2(8, 4), D2(4, 4), D2(4, 4), D2(4, 8), D1(8) }, 6,
      { 0, 1, 0, 2, 0, 3 }, 4 },
};
enum { CASES = sizeof cases / sizeof *cases };

/* ---- setting up */

static struct tensor take(struct arena *a, struct tensor shape, struct rng *r)
{
    if (!shape.nd) return none;
    shape.p = arena_take(a, tensor_bytes(shape));
    for (int64_t i = 0; i < tensor_count(shape); i++) ((double *)shape.p)[i] = r ? rng_normal(r) : 0;
    return shape;
}

static void bench_init(struct bench *b, const struct op_case *c)
{
    struct rng r;
    memset(b, 0, sizeof *b);
    rng_seed(&r, 11);
    assert_int_equal(arena_init(&b->act, ARENA_BYTES, NULL), 0);
    assert_int_equal(arena_init(&b->scratch, ARENA_BYTES, NULL), 0);
    assert_int_equal(arena_init(&b->keep, ARENA_BYTES, NULL), 0);
    b->c = c;
    b->kc = (struct kctx){ .scratch = &b->scratch, .n_threads = 1 };
    b->o = (struct op_ctx){ .k = &kern_ref, .kc = &b->kc, .act = &b->act, .tape = tape_new(), .type = DT_F64 };
    for (int i = 0; i < INS; i++) b->in[i] = take(&b->keep, c->in[i], &r);
    for (int i = 0; i < PARAMS; i++)
        b->p[i] = (struct param){ take(&b->keep, c->param[i], &r), take(&b->keep, c->param[i], NULL), PARAM_TRAIN };
    int32_t *aux = (int32_t *)(uintptr_t)c->aux;
    b->aux = c->in[1].nd && (c->forward == attention) ? tensor_2d(aux, DT_I32, c->n_aux / 2, 2)
           : c->forward == norm_qkv                   ? tensor_2d(aux, DT_I32, c->n_aux / 2, 2)
                                                      : tensor_1d(aux, DT_I32, c->n_aux);
    if (c->forward == rope) {
        b->table = tensor_2d(NULL, DT_F64, ROPE_POSITIONS, c->number);
        b->table = take(&b->keep, b->table, NULL);
        for (int i = 0; i < ROPE_POSITIONS * c->number / 2; i++) {
            int pos = i / (c->number / 2), k = i % (c->number / 2);
            double *row = (double *)b->table.p + pos * c->number;
            row[k] = cos(pos / (k + 1.0));
            row[c->number / 2 + k] = sin(pos / (k + 1.0));
        }
    }
    b->dy = take(&b->keep, c->forward(b, b->in), &r);
    arena_rewind(&b->act, 0);
    tape_reset(b->o.tape);
}

static void bench_fini(struct bench *b)
{
    tape_free(b->o.tape);
    arena_fini(&b->act);
    arena_fini(&b->scratch);
    arena_fini(&b->keep);
}

/* ---- forward and backward */

/* The sum of dy * y, without a tape. */
static double objective(struct bench *b)
{
    struct tape *tape = b->o.tape;
    double sum = 0;
    b->o.tape = NULL;
    struct tensor y = b->c->forward(b, b->in);
    for (int64_t i = 0; i < tensor_count(y); i++) sum += ((double *)y.p)[i] * ((double *)b->dy.p)[i];
    b->o.tape = tape;
    arena_rewind(&b->act, 0);
    return sum;
}

/* Runs forward `times` times over the same operands, then back; gradients of inputs into din (p NULL: none
 * was made). */
static void run(struct bench *b, unsigned frozen_in, int times, struct tensor din[INS])
{
    struct tensor in[INS];
    arena_rewind(&b->act, 0);
    tape_reset(b->o.tape);
    for (int i = 0; i < PARAMS; i++)
        if (b->p[i].flags & PARAM_TRAIN && b->p[i].g.p) memset(b->p[i].g.p, 0, tensor_bytes(b->p[i].g));
    for (int i = 0; i < INS; i++)
        in[i] = b->in[i].p && !(frozen_in >> i & 1) ? tape_want(&b->o, b->in[i]) : b->in[i];
    for (int t = 0; t < times; t++) {
        b->y = b->c->forward(b, in);
        struct tensor g = tape_grad(&b->o, b->y);
        if (g.p && !b->o.dry) memcpy(g.p, b->dy.p, tensor_bytes(g));
    }
    tape_back(&b->o);
    for (int i = 0; i < INS; i++) din[i] = in[i].id ? tape_grad(&b->o, in[i]) : none;
}

static struct tensor kept(struct bench *b, struct tensor t)
{
    if (!t.p) return none;
    void *p = memcpy(arena_take(&b->keep, tensor_bytes(t)), t.p, tensor_bytes(t));
    t.p = p;
    return t;
}

static void assert_multiple(const char *what, struct tensor got, struct tensor of, double factor)
{
    if (!of.p) return;
    assert_non_null(got.p);
    for (int64_t k = 0; k < tensor_count(of); k++) {
        const double want = factor * ((double *)of.p)[k], g = ((double *)got.p)[k];
        if (!(fabs(g - want) <= 1e-13 * fmax(1, fabs(want))))
            fail_msg("%s: element %lld is %.17g, not %.17g", what, (long long)k, g, want);
    }
}

/* grad against (objective(x + h) - objective(x - h)) / 2h, to 1e-6 of the largest in the tensor. */
static void assert_differences(struct bench *b, const char *what, struct tensor x, struct tensor grad)
{
    const double h = 1e-5;
    double top = 0, worst = 0;
    if (!x.p) return;
    for (int64_t k = 0; k < tensor_count(x); k++) {
        double *at = (double *)x.p + k, was = *at;
        *at = was + h;
        const double up = objective(b);
        *at = was - h;
        const double want = (up - objective(b)) / (2 * h);
        *at = was;
        top = fmax(top, fabs(want));
        worst = fmax(worst, fabs(want - ((double *)grad.p)[k]));
    }
    if (!(worst <= 1e-6 * top + 1e-9)) fail_msg("%s: off by %.3g where the largest gradient is %.3g", what, worst, top);
}

/* ---- one op's test */

static void test_differences(struct bench *b, struct tensor din[INS])
{
    char what[32];
    struct tensor keep[INS];
    run(b, 0, 1, din);
    for (int i = 0; i < INS; i++) din[i] = keep[i] = kept(b, din[i]);
    for (int i = 0; i < INS; i++) {
        snprintf(what, sizeof what, "input %d", i);
        assert_differences(b, what, b->in[i], keep[i]);
    }
    for (int i = 0; i < PARAMS; i++) {
        snprintf(what, sizeof what, "parameter %d", i);
        assert_differences(b, what, b->p[i].w, b->p[i].g);
    }
}

/* Each operand in turn is frozen; then all are, and nothing may be recorded. */
static void test_frozen(struct bench *b, const struct tensor din[INS], const struct tensor *dp)
{
    struct tensor got[INS];
    for (int f = 0; f < INS; f++) {
        run(b, 1u << f, 1, got);
        if (b->in[f].p) assert_null(got[f].p);
        for (int i = 0; i < INS; i++)
            if (i != f) assert_multiple("input beside a frozen one", got[i], din[i], 1);
        for (int i = 0; i < PARAMS; i++) assert_multiple("parameter beside a frozen input", b->p[i].g, dp[i], 1);
    }
    for (int f = 0; f < PARAMS && b->p[f].w.p; f++) {
        b->p[f].flags = 0;
        memset(b->p[f].g.p, 0x5a, tensor_bytes(b->p[f].g));
        run(b, 0, 1, got);
        for (size_t k = 0; k < tensor_bytes(b->p[f].g); k++) assert_int_equal(((char *)b->p[f].g.p)[k], 0x5a);
        for (int i = 0; i < INS; i++) assert_multiple("input beside a frozen parameter", got[i], din[i], 1);
        for (int i = 0; i < PARAMS; i++)
            if (i != f) assert_multiple("parameter beside a frozen one", b->p[i].g, dp[i], 1);
        b->p[f].flags = PARAM_TRAIN;
    }
    for (int i = 0; i < PARAMS; i++) b->p[i].flags = 0;
    tape_reset(b->o.tape);
    b->c->forward(b, b->in);
    assert_int_equal(b->o.tape->n, 0);
    for (int i = 0; i < PARAMS; i++) b->p[i].flags = PARAM_TRAIN;
}

static void test_dry(struct bench *b)
{
    struct arena real = b->act, counting;
    struct tensor din[INS];
    b->act.high = 0;
    run(b, 0, 2, din);
    real.high = b->act.high;
    struct arena was = b->act;
    arena_init_counting(&counting);
    b->act = counting;
    b->o.dry = true;
    run(b, 0, 2, din);
    assert_int_equal(b->act.high, real.high);
    b->o.dry = false;
    b->act = was;
}

static void test_op(void **state)
{
    struct bench b;
    struct tensor once[INS], twice[INS], dp[PARAMS];
    bench_init(&b, *state);
    test_differences(&b, once);
    for (int i = 0; i < PARAMS; i++) dp[i] = kept(&b, b.p[i].g);
    run(&b, 0, 2, twice);
    for (int i = 0; i < INS; i++) assert_multiple("input, used twice", twice[i], once[i], 2);
    for (int i = 0; i < PARAMS; i++) assert_multiple("parameter, used twice", b.p[i].g, dp[i], 2);
    test_frozen(&b, once, dp);
    test_dry(&b);
    bench_fini(&b);
}

/* ---- checkpoints: a stack of blocks that keep the width */

enum { BLOCKS = 4 };

static struct tensor block(struct op_ctx *o, const void *arg, struct tensor x)
{
    struct bench *b = *(struct bench *const *)arg;
    assert_ptr_equal(o, &b->o);
    return b->c->forward(b, &x);
}

static void stack(struct bench *b, enum op_kept how, struct tensor *dx)
{
    struct pile pile = { .n = 0 };
    const struct op_away away = { &pile, pile_open, pile_close };
    b->o.away = &away;
    arena_rewind(&b->act, 0);
    b->act.high = 0;
    tape_reset(b->o.tape);
    for (int i = 0; i < PARAMS; i++)
        if (b->p[i].g.p) memset(b->p[i].g.p, 0, tensor_bytes(b->p[i].g));
    struct tensor in = tape_want(&b->o, b->in[0]), x = in;
    for (int i = 0; i < BLOCKS; i++)
        x = how == OP_KEPT_ALL ? block(&b->o, &b, x) : op_checkpoint(&b->o, block, &b, sizeof b, how, x);
    b->y = kept(b, x); /* a checkpoint's result is written over */
    memcpy(tape_grad(&b->o, x).p, b->dy.p, tensor_bytes(x));
    tape_back(&b->o);
    *dx = tape_grad(&b->o, in);
    assert_int_equal(pile.n, 0);
    b->o.away = NULL;
}

static void assert_same_bits(struct tensor a, struct tensor b)
{
    if (a.p) assert_memory_equal(a.p, b.p, tensor_bytes(a));
}

static void test_checkpoint(void **state)
{
    struct bench b;
    struct tensor dx, dp[PARAMS];
    bench_init(&b, *state);
    stack(&b, OP_KEPT_ALL, &dx);
    const size_t plain = b.act.high;
    struct tensor y = kept(&b, b.y);
    dx = kept(&b, dx);
    for (int i = 0; i < PARAMS; i++) dp[i] = kept(&b, b.p[i].g);
    for (enum op_kept how = OP_KEPT_DEAR; how <= OP_KEPT_NONE; how++) {
        struct tensor again;
        stack(&b, how, &again);
        assert_same_bits(y, b.y);
        assert_same_bits(dx, again);
        for (int i = 0; i < PARAMS; i++) assert_same_bits(dp[i], b.p[i].g);
        if (b.act.high >= plain) fail_msg("%zu bytes with checkpoints, %zu without", b.act.high, plain);
    }
    bench_fini(&b);
}

/* All parameters are frozen, and then all but one. */
static void test_checkpoint_frozen(void **state)
{
    struct bench b;
    struct tensor dx, x = none;
    bench_init(&b, *state);
    for (int i = 0; i < PARAMS; i++) b.p[i].flags = 0;
    stack(&b, OP_KEPT_ALL, &dx);
    dx = kept(&b, dx);
    for (enum op_kept how = OP_KEPT_DEAR; how <= OP_KEPT_NONE; how++) {
        stack(&b, how, &x);
        assert_same_bits(dx, x);
    }
    b.p[0].flags = PARAM_TRAIN;
    struct tensor before;
    stack(&b, OP_KEPT_ALL, &x);
    before = kept(&b, b.p[0].g);
    for (enum op_kept how = OP_KEPT_DEAR; how <= OP_KEPT_NONE; how++) {
        stack(&b, how, &x);
        assert_same_bits(before, b.p[0].g);
    }
    bench_fini(&b);
}

/* Head and loss in chunks are op_linear and op_xent: the same losses and gradients, chunks of any size. */
static void test_linear_xent(void **state)
{
    static const struct op_case c = { "linear_xent", linear, { D2(7, 5) }, { D2(6, 5), D1(6) }, 7,
                                      { 2, -1, 4, 0, 5, 5, 1 }, 0 };
    struct bench b;
    (void)state;
    bench_init(&b, &c);
    struct tensor dloss = take(&b.keep, (struct tensor)D1(7), NULL), x = tape_want(&b.o, b.in[0]);
    for (int i = 0; i < 7; i++) ((double *)dloss.p)[i] = 0.1 + i;
    struct tensor loss = op_xent(&b.o, linear(&b, &x), b.aux, 0.1f);
    memcpy(tape_grad(&b.o, loss).p, dloss.p, tensor_bytes(dloss));
    tape_back(&b.o);
    struct tensor dx = kept(&b, tape_grad(&b.o, x)), dw = kept(&b, b.p[0].g), db = kept(&b, b.p[1].g);
    loss = kept(&b, loss);
    for (int chunk = 1; chunk <= 8; chunk++) {
        tape_reset(b.o.tape);
        arena_rewind(&b.act, 0);
        for (int i = 0; i < 2; i++) memset(b.p[i].g.p, 0, tensor_bytes(b.p[i].g));
        b.in[0].id = 0;
        x = tape_want(&b.o, b.in[0]);
        b.lin[0] = (struct linear){ .w = b.p[0], .b = b.p[1] };
        struct tensor got = op_linear_xent(&b.o, x, &b.lin[0], b.aux, 0.1f, dloss, chunk);
        assert_multiple("loss", got, loss, 1);
        assert_multiple("dx", tape_grad(&b.o, x), dx, 1);
        assert_multiple("dw", b.p[0].g, dw, 1);
        assert_multiple("db", b.p[1].g, db, 1);
    }
    bench_fini(&b);
}

int main(void)
{
    struct CMUnitTest tests[CASES + 5] = {
        { "checkpoint of norm_glu_add", test_checkpoint, NULL, NULL, (void *)(uintptr_t)&cases[CASES - 2] },
        { "checkpoint of norm_qkv", test_checkpoint, NULL, NULL, (void *)(uintptr_t)&cases[CASES - 1] },
        { "frozen checkpoint of norm_glu_add", test_checkpoint_frozen, NULL, NULL,
          (void *)(uintptr_t)&cases[CASES - 2] },
        { "frozen checkpoint of norm_qkv", test_checkpoint_frozen, NULL, NULL,
          (void *)(uintptr_t)&cases[CASES - 1] },
        { "head and loss in chunks", test_linear_xent, NULL, NULL, NULL },
    };
    for (int i = 0; i < CASES; i++)
        tests[5 + i] = (struct CMUnitTest){ cases[i].name, test_op, NULL, NULL, (void *)(uintptr_t)&cases[i] };
    return cmocka_run_group_tests_name("ops", tests, NULL, NULL);
}
