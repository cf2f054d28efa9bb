/* When a composite may be one kernel: not where a linear has an adapter that the kernel knows nothing of. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "op/op.h"

static int n_fused; /* calls of the kernels below */

static void norm_matmul(struct kctx *kc, const struct tensor *y, struct tensor x, struct tensor nw, float eps,
                        const struct tensor *w, const struct tensor *b, int n)
{
    (void)kc, (void)y, (void)x, (void)nw, (void)eps, (void)w, (void)b, (void)n;
    n_fused++;
}

static void norm_glu(struct kctx *kc, struct tensor y, struct tensor x, struct tensor nw, float eps, struct tensor gate,
                     struct tensor up)
{
    (void)kc, (void)y, (void)x, (void)nw, (void)eps, (void)gate, (void)up;
    n_fused++;
}

static int n_each;

/* As the plain kernel does it, one by one. */
static void matmul_each(struct kctx *kc, const struct tensor *y, struct tensor x, const struct tensor *w,
                        const struct tensor *b, int n)
{
    const struct tensor none = { 0 };
    for (int i = 0; i < n; i++) kern_ref.matmul(kc, y[i], x, w[i], b[i], none);
    n_each += n;
}

enum { C = 4 };

/* Both composites of one row with this linear everywhere: how many became one kernel. */
static int fused(struct linear *l, bool decode)
{
    struct arena act, scratch;
    struct err e;
    assert_true(arena_init(&act, 1 << 16, &e) >= 0 && arena_init(&scratch, 1 << 16, &e) >= 0);
    struct kern k = kern_ref;
    k.norm_matmul = norm_matmul;
    k.norm_glu = norm_glu;
    struct kctx kc = { .scratch = &scratch, .n_threads = 1, .decode = decode };
    struct op_ctx o = { .k = &k, .kc = &kc, .act = &act, .type = DT_F32 };
    float x[C] = { 1, 2, 3, 4 }, ones[C] = { 1, 1, 1, 1 };
    const struct param norm = { .w = tensor_1d(ones, DT_F32, C) };
    n_fused = 0;
    op_norm_qkv(&o, tensor_2d(x, DT_F32, 1, C), &norm, 1e-5f, l, l, l);
    op_norm_glu_add(&o, tensor_2d(x, DT_F32, 1, C), &norm, 1e-5f, l, l, l, 0);
    arena_fini(&act);
    arena_fini(&scratch);
    return n_fused;
}

static void adapters_are_not_passed_over(void **state)
{
    (void)state;
    float w[C * C] = { 1 }, a[C] = { 1 }, b[C] = { 1 };
    struct lora lora = { .a.w = tensor_2d(a, DT_F32, 1, C), .b.w = tensor_2d(b, DT_F32, C, 1), .scale = 1 };
    struct lora served[OP_ADAPTERS] = { lora };
    struct linear l = { .w.w = tensor_2d(w, DT_F32, C, C) };
    assert_int_equal(fused(&l, true), 2);
    assert_int_equal(fused(&l, false), 0);
    l.lora = &lora;
    assert_int_equal(fused(&l, true), 0);
    l.lora = NULL;
    l.served = served;
    assert_int_equal(fused(&l, true), 0);
}

/* Of three linears on rows of a prompt: their results with the kernel and without. How many it got. */
static int side_by_side(struct linear *l, bool decode)
{
    float x[2 * C] = { 1, 2, 3, 4, 5, -6, 7, 8 }, got[2][3][2 * C] = { 0 };
    struct arena act, scratch;
    struct err e;
    assert_true(arena_init(&act, 1 << 16, &e) >= 0 && arena_init(&scratch, 1 << 16, &e) >= 0);
    struct kern k = kern_ref;
    struct kctx kc = { .scratch = &scratch, .n_threads = 1, .decode = decode };
    struct op_ctx o = { .k = &k, .kc = &kc, .act = &act, .type = DT_F32 };
    const struct linear *const all[3] = { &l[0], &l[1], &l[2] };
    n_each = 0;
    for (int with = 0; with < 2; with++) {
        struct tensor y[3];
        k.matmul_each = with ? matmul_each : NULL;
        op_linears(&o, y, tensor_2d(x, DT_F32, 2, C), all, 3);
        for (int i = 0; i < 3; i++) memcpy(got[with][i], y[i].p, tensor_bytes(y[i]));
    }
    assert_memory_equal(got[0], got[1], sizeof got[0]);
    arena_fini(&act);
    arena_fini(&scratch);
    return n_each;
}

static void alike_linears_are_one_kernel(void **state)
{
    (void)state;
    float w[3][C * C] = { { 1, 2 }, { 0, 3, -1 }, { 4 } }, b[C] = { 1, 2, 3, 4 }, few[2 * C] = { 1 };
    struct lora served[OP_ADAPTERS] = { 0 };
    struct linear l[3];
    for (int i = 0; i < 3; i++) l[i] = (struct linear){ .w.w = tensor_2d(w[i], DT_F32, C, C) };
    assert_int_equal(side_by_side(l, false), 3);
    assert_int_equal(side_by_side(l, true), 0);
    l[1].b.w = tensor_1d(b, DT_F32, C); /* one has a bias */
    assert_int_equal(side_by_side(l, false), 0);
    l[0].b.w = l[2].b.w = l[1].b.w;
    assert_int_equal(side_by_side(l, false), 3);
    l[2].served = served;
    assert_int_equal(side_by_side(l, false), 0);
    l[2].served = NULL;
    l[2].w.w = tensor_2d(few, DT_F32, 2, C); /* fewer heads */
    l[2].b.w.n[0] = 2;
    assert_int_equal(side_by_side(l, false), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(adapters_are_not_passed_over),
                                        cmocka_unit_test(alike_linears_are_one_kernel) };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
