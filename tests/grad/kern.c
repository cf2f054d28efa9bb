/* Every backward kernel of the reference, in double: its gradients are those of the forward kernel by central
 * differences, running it twice doubles them, and a gradient that nobody wants changes no other. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "kern/kern.h"

enum { INS = 3, AUX = 24 };

/* What the two directions of one kernel work on. Activations and statistics are F64. */
struct pass {
    struct kctx *kc;
    struct tensor in[INS], din[INS], y, dy, stat[2], table;
    const int32_t *aux; /* indices, positions, ranges or targets */
    int param;          /* heads, patch size or rotated head size */
};

struct pair {
    const char *name;
    void (*fwd)(struct pass *);
    void (*bwd)(struct pass *);
    struct tensor in[INS], y; /* shapes */
    int32_t aux[AUX];
    int param;
};

static const struct tensor none = { 0 };
static const float eps = 1e-5f, scale = 0.6f;

static void *aux(const struct pass *p) { return (void *)(uintptr_t)p->aux; }
static struct tensor ints(const struct pass *p, int64_t n) { return tensor_1d(aux(p), DT_I32, n); }
static struct tensor pairs(const struct pass *p, int64_t n) { return tensor_2d(aux(p), DT_I32, n, 2); }

/* ---- the kernels, each with its backward below it */

static void matmul_f(struct pass *p) { kern_ref.matmul(p->kc, p->y, p->in[0], p->in[1], p->in[2], none); }
static void matmul_b(struct pass *p)
{
    kern_ref.matmul_dx(p->kc, p->din[0], p->dy, p->in[1]);
    kern_ref.matmul_dw(p->kc, p->din[1], p->din[2], p->dy, p->in[0]);
}

static void rmsnorm_f(struct pass *p)
{
    kern_ref.rmsnorm_fwd(p->kc, p->y, p->stat[0], p->in[0], p->in[1], eps);
}
static void rmsnorm_b(struct pass *p)
{
    kern_ref.rmsnorm_bwd(p->kc, p->din[0], p->din[1], p->dy, p->in[0], p->in[1], p->stat[0]);
}

static void layernorm_f(struct pass *p)
{
    kern_ref.layernorm_fwd(p->kc, p->y, p->stat[0], p->stat[1], p->in[0], p->in[1], p->in[2], eps);
}
static void layernorm_b(struct pass *p)
{
    kern_ref.layernorm_bwd(p->kc, p->din[0], p->din[1], p->din[2], p->dy, p->in[0], p->in[1], p->stat[0],
                           p->stat[1]);
}

/* In place, and its own backward with dir -1. */
static void rope_f(struct pass *p)
{
    memcpy(p->y.p, p->in[0].p, tensor_bytes(p->y));
    kern_ref.rope(p->kc, p->y, ints(p, p->y.n[0]), p->table, 1);
}
static void rope_b(struct pass *p)
{
    double back[64];
    struct tensor t = p->dy;
    t.p = memcpy(back, p->dy.p, tensor_bytes(t));
    kern_ref.rope(p->kc, t, ints(p, t.n[0]), p->table, -1);
    if (p->din[0].p) kern_ref.axpy(p->kc, p->din[0], t, 1);
}

static void attn_f(struct pass *p)
{
    kern_ref.attn_fwd(p->kc, p->y, p->stat[0], p->in[0], p->in[1], p->in[2], pairs(p, p->y.n[0]), (struct tensor){ 0 },
                      p->param, scale);
}
static void attn_b(struct pass *p)
{
    kern_ref.attn_bwd(p->kc, p->din[0], p->din[1], p->din[2], p->dy, p->y, p->stat[0], p->in[0], p->in[1],
                      p->in[2], pairs(p, p->y.n[0]), p->param, scale);
}

static void swiglu_f(struct pass *p) { kern_ref.swiglu_fwd(p->kc, p->y, p->in[0], p->in[1]); }
static void swiglu_b(struct pass *p)
{
    kern_ref.swiglu_bwd(p->kc, p->din[0], p->din[1], p->dy, p->in[0], p->in[1]);
}

static void gelu_f(struct pass *p) { kern_ref.gelu_fwd(p->kc, p->y, p->in[0]); }
static void gelu_b(struct pass *p) { kern_ref.gelu_bwd(p->kc, p->din[0], p->dy, p->in[0]); }

static void quick_gelu_f(struct pass *p) { kern_ref.quick_gelu_fwd(p->kc, p->y, p->in[0]); }
static void quick_gelu_b(struct pass *p) { kern_ref.quick_gelu_bwd(p->kc, p->din[0], p->dy, p->in[0]); }

static void rows_get_f(struct pass *p) { kern_ref.rows_get(p->kc, p->y, p->in[0], ints(p, p->y.n[0])); }
static void rows_get_b(struct pass *p)
{
    kern_ref.rows_put_add(p->kc, p->din[0], ints(p, p->dy.n[0]), p->dy);
}

static void rows_put_f(struct pass *p)
{
    kern_ref.zero(p->kc, p->y);
    kern_ref.rows_put(p->kc, p->y, ints(p, p->in[0].n[0]), p->in[0]);
}
static void rows_put_b(struct pass *p)
{
    kern_ref.rows_get_add(p->kc, p->din[0], p->dy, ints(p, p->in[0].n[0]));
}

static void patchify_f(struct pass *p) { kern_ref.patchify_fwd(p->kc, p->y, p->in[0], p->param); }
static void patchify_b(struct pass *p) { kern_ref.patchify_bwd(p->kc, p->din[0], p->dy, p->param); }

static float smooth(const struct pass *p) { return (float)p->param / 10; }
static void xent_f(struct pass *p)
{
    kern_ref.xent_fwd(p->kc, p->y, p->stat[0], p->in[0], ints(p, p->y.n[0]), smooth(p));
}
static void xent_b(struct pass *p)
{
    kern_ref.xent_bwd(p->kc, p->din[0], p->dy, p->in[0], p->stat[0], ints(p, p->y.n[0]), smooth(p));
}

#define D1(a) { .nd = 1, .type = DT_F64, .n = { a, 1, 1, 1 } }
#define D2(a, b) { .nd = 2, .type = DT_F64, .n = { a, b, 1, 1 } }
#define D4(a, b, c, d) { .nd = 4, .type = DT_F64, .n = { a, b, c, d } }
#define PAIR(kernel) kernel##_f, kernel##_b
static const struct pair table[] = {
    { "matmul", PAIR(matmul), { D2(3, 9), D2(5, 9), D1(5) }, D2(3, 5), { 0 }, 0 },
    { "matmul of many tokens", PAIR(matmul), { D2(19, 4), D2(3, 4), D1(3) }, D2(19, 3), { 0 }, 0 },
    { "rmsnorm", PAIR(rmsnorm), { D2(3, 7), D1(7) }, D2(3, 7), { 0 }, 0 },
    { "rmsnorm of more than one block", PAIR(rmsnorm), { D2(2, 67), D1(67) }, D2(2, 67), { 0 }, 0 },
    { "layernorm", PAIR(layernorm), { D2(3, 7), D1(7), D1(7) }, D2(3, 7), { 0 }, 0 },
    { "rope", PAIR(rope), { D2(3, 12) }, D2(3, 12), { 0, 4, 2 }, 6 },
    { "attn, causal", PAIR(attn), { D2(4, 6), D2(4, 6), D2(4, 6) },
      D2(4, 6), { 0, 1, 0, 2, 0, 3, 0, 4 }, 2 },
    { "attn, bidirectional", PAIR(attn), { D2(3, 4), D2(5, 4), D2(5, 4) },
      D2(3, 4), { 0, 5, 0, 5, 0, 5 }, 1 },
    { "attn, packed", PAIR(attn), { D2(4, 4), D2(4, 4), D2(4, 4) },
      D2(4, 4), { 0, 1, 0, 2, 2, 3, 2, 4 }, 2 },
    { "attn, grouped heads", PAIR(attn), { D2(3, 12), D2(4, 6), D2(4, 6) },
      D2(3, 12), { 0, 2, 0, 3, 1, 4 }, 4 },
    { "swiglu", PAIR(swiglu), { D2(3, 7), D2(3, 7) }, D2(3, 7), { 0 }, 0 },
    { "gelu", PAIR(gelu), { D2(3, 7) }, D2(3, 7), { 0 }, 0 },
    { "quick_gelu", PAIR(quick_gelu), { D2(3, 7) }, D2(3, 7), { 0 }, 0 },
    { "rows_get, rows_put_add", PAIR(rows_get), { D2(4, 3) }, D2(6, 3), { 1, -1, 3, 1, 0, 1 }, 0 },
    { "rows_put, rows_get_add", PAIR(rows_put), { D2(4, 3) }, D2(6, 3), { 5, -1, 0, 2 }, 0 },
    { "patchify", PAIR(patchify), { D4(2, 3, 5, 5) }, D2(8, 12), { 0 }, 2 },
    { "cross entropy", PAIR(xent), { D2(4, 5) }, D1(4), { 2, -1, 4, 0 }, 0 },
    { "cross entropy of smoothed labels", PAIR(xent), { D2(4, 5) }, D1(4), { 2, -1, 4, 0 }, 3 },
};

/* ---- one pair's test */

static struct tensor take(struct kctx *kc, struct tensor shape, struct rng *r)
{
    if (!shape.nd) return none;
    shape.p = arena_take(kc->scratch, tensor_bytes(shape));
    for (int64_t i = 0; i < tensor_count(shape); i++) ((double *)shape.p)[i] = r ? rng_normal(r) : 0;
    return shape;
}

/* cos and sin of five positions */
static struct tensor take_table(struct kctx *kc, int64_t head)
{
    enum { POSITIONS = 5 };
    struct tensor t = tensor_2d(NULL, DT_F32, POSITIONS, head);
    t.p = arena_take(kc->scratch, tensor_bytes(t));
    for (int64_t i = 0; i < POSITIONS * head / 2; i++) {
        const int64_t pos = i / (head / 2), k = i % (head / 2);
        ((float *)t.p)[pos * head + k] = (float)cos((double)pos / (double)(k + 1));
        ((float *)t.p)[pos * head + head / 2 + k] = (float)sin((double)pos / (double)(k + 1));
    }
    return t;
}

static void pass_init(struct pass *p, const struct pair *pair, struct kctx *kc, struct rng *r)
{
    *p = (struct pass){ .kc = kc, .aux = pair->aux, .param = pair->param };
    for (int i = 0; i < INS; i++) p->in[i] = take(kc, pair->in[i], r);
    p->y = take(kc, pair->y, NULL);
    p->dy = take(kc, pair->y, r);
    for (int i = 0; i < 2; i++) p->stat[i] = take(kc, pair->y, NULL); /* [T] or [T,H] is at the start of it */
    for (int i = 0; i < 2 && p->stat[i].nd == 2; i++) p->stat[i].n[1] = pair->fwd == attn_f ? pair->param : 1;
    if (pair->fwd == rope_f) p->table = take_table(kc, pair->param);
}

/* Gradients of 0, but for `skip`, which nobody wants (INS: none is wanted; -1: all are). */
static void gradients_init(struct pass *p, int skip)
{
    for (int i = 0; i < INS; i++) {
        p->din[i] = take(p->kc, p->in[i], NULL);
        if (i == skip || skip == INS) p->din[i].p = NULL;
    }
}

/* The sum of dy * y: its gradient is what the backward of dy must give. */
static double objective(const struct pair *pair, struct pass *p)
{
    double sum = 0;
    pair->fwd(p);
    for (int64_t i = 0; i < tensor_count(p->y); i++) sum += ((double *)p->y.p)[i] * ((double *)p->dy.p)[i];
    return sum;
}

static void check_differences(const struct pair *pair, struct pass *p)
{
    const double h = 1e-5;
    for (int i = 0; i < INS && p->in[i].p; i++)
        for (int64_t k = 0; k < tensor_count(p->in[i]); k++) {
            double *x = (double *)p->in[i].p + k, was = *x;
            *x = was + h;
            const double up = objective(pair, p);
            *x = was - h;
            const double want = (up - objective(pair, p)) / (2 * h), got = ((double *)p->din[i].p)[k];
            *x = was;
            if (!(fabs(got - want) <= 1e-6 * fmax(1, fabs(want))))
                fail_msg("%s: gradient %lld of input %d is %.9g, differences say %.9g", pair->name,
                         (long long)k, i, got, want);
        }
}

static void assert_multiple(const struct pair *pair, struct tensor got, struct tensor of, double factor)
{
    for (int64_t k = 0; got.p && k < tensor_count(got); k++) {
        const double want = factor * ((double *)of.p)[k], g = ((double *)got.p)[k];
        if (!(fabs(g - want) <= 1e-13 * fmax(1, fabs(want))))
            fail_msg("%s: element %lld is %.17g instead of %.17g", pair->name, (long long)k, g, want);
    }
}

static void test_pair(void **state)
{
    const struct pair *pair = *state;
    struct arena arena;
    struct rng r;
    struct pass p;
    assert_int_equal(arena_init(&arena, 1 << 24, NULL), 0);
    struct kctx kc = { .scratch = &arena, .n_threads = 2 };
    rng_seed(&r, 7);
    pass_init(&p, pair, &kc, &r);
    gradients_init(&p, -1);
    pair->fwd(&p);
    pair->bwd(&p);
    check_differences(pair, &p);

    struct tensor once[INS];
    memcpy(once, p.din, sizeof once);
    pair->fwd(&p);
    for (int skip = 0; skip <= INS; skip++) {
        gradients_init(&p, skip);
        pair->bwd(&p);
        for (int i = 0; i < INS; i++) assert_multiple(pair, p.din[i], once[i], 1);
        pair->bwd(&p);
        for (int i = 0; i < INS; i++) assert_multiple(pair, p.din[i], once[i], 2);
    }
    arena_fini(&arena);
}

int main(void)
{
    struct CMUnitTest tests[sizeof table / sizeof *table];
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        tests[i] = (struct CMUnitTest){ table[i].name, test_pair, NULL, NULL, (void *)(uintptr_t)&table[i] };
    return cmocka_run_group_tests_name("kern", tests, NULL, NULL);
}
