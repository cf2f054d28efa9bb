/* A whole training step - tower, projector, splice, language model, loss - on the reference kernels in double: the
 * gradient of every parameter is that by central differences, with checkpoints or without, and for the fixture that was
 * trained by PyTorch it is PyTorch's (tests/golden/expected/grads.safetensors and train.safetensors). */
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
#include "model/llava.h"

enum { TOKENS_MAX = 256, ARENA_BYTES = 64 << 20 };

/* A model, one row of tokens with a picture in it, and memory for a step. */
struct step {
    struct llava_model m;
    struct arena act, scratch, params;
    struct kctx kc;
    struct op_ctx o;
    struct tensor pixels;
    bool train_tower;
    const uint8_t *kept; /* of the language model's layers */
    int n, n_features, n_targets;
    int32_t token[TOKENS_MAX], pos[TOKENS_MAX], range[2 * TOKENS_MAX], feature[TOKENS_MAX], target[TOKENS_MAX];
};

static void step_init(struct step *s, enum dtype type)
{
    struct arena *const arenas[] = { &s->act, &s->scratch, &s->params };
    for (int i = 0; i < 3; i++) assert_int_equal(arena_init(arenas[i], ARENA_BYTES, NULL), 0);
    s->kc = (struct kctx){ .scratch = &s->scratch, .n_threads = 1 };
    s->o = (struct op_ctx){ .k = &kern_ref, .kc = &s->kc, .act = &s->act, .type = type };
}

static void step_fini(struct step *s)
{
    llava_model_close(&s->m);
    arena_fini(&s->act);
    arena_fini(&s->scratch);
    arena_fini(&s->params);
}

/* Parameters in s->o.type, with gradients of 0. */
static int own_param(void *ctx, const struct bind_row *row, struct err *e)
{
    struct step *s = ctx;
    struct param *p = row->param;
    struct tensor w = p->w;
    (void)e;
    if (!w.p) return 0;
    w.type = (int8_t)s->o.type;
    w.p = arena_take(&s->params, tensor_bytes(w));
    s->o.k->cast(&s->kc, w, p->w);
    p->w = p->g = w;
    p->g.p = memset(arena_take(&s->params, tensor_bytes(w)), 0, tensor_bytes(w));
    p->flags = row->part != PART_CLIP || s->train_tower ? PARAM_TRAIN : 0;
    return 0;
}

/* The mean loss over the targets; with a tape, gradients too. */
static double step_run(struct step *s)
{
    struct op_ctx *o = &s->o;
    const struct llama_seq seq = { .pos = tensor_1d(s->pos, DT_I32, s->n),
                                   .range = tensor_2d(s->range, DT_I32, s->n, 2) };
    arena_rewind(&s->act, 0);
    o->kept = s->kept;
    o->tower_again = s->kept != NULL;
    struct tensor x = op_embed(o, &s->m.llama.embed, tensor_1d(s->token, DT_I32, s->n));
    struct clip_seq tiles = clip_seq_new(o, &s->m.clip, (int)s->pixels.n[0]);
    struct tensor f = llava_encode(o, &s->m, &s->m.projector, &tiles, s->pixels);
    x = op_splice(o, x, f, tensor_1d(s->feature, DT_I32, s->n_features));
    struct tensor logits = llama_logits(o, &s->m.llama, llama_forward(o, &s->m.llama, x, &seq, NULL));
    struct tensor loss = op_xent(o, logits, tensor_1d(s->target, DT_I32, s->n), 0), g = tape_grad(o, loss);
    double sum = 0;
    for (int i = 0; i < s->n; i++) {
        sum += loss.type == DT_F64 ? ((double *)loss.p)[i] : (double)((float *)loss.p)[i];
        if (g.p && g.type == DT_F64) ((double *)g.p)[i] = 1.0 / s->n_targets;
        if (g.p && g.type == DT_F32) ((float *)g.p)[i] = 1.0f / (float)s->n_targets;
    }
    if (o->tape) tape_back(o);
    return sum / s->n_targets;
}

static double step_train(struct step *s)
{
    s->o.tape = tape_new();
    s->act.high = 0;
    const double loss = step_run(s);
    tape_free(s->o.tape);
    s->o.tape = NULL;
    return loss;
}

/* ids with one -200, where n_features rows of the picture go; labels (< 0: none) are those of the ids. */
static void step_tokens(struct step *s, const int32_t *ids, const int32_t *labels, int n, int n_features)
{
    s->n = s->n_targets = s->n_features = 0;
    for (int i = 0; i < n; i++)
        for (int k = 0; k < (ids[i] == -200 ? n_features : 1); k++) {
            const int t = s->n++;
            assert_true(t < TOKENS_MAX);
            s->token[t] = ids[i] == -200 ? -1 : ids[i];
            if (ids[i] == -200) s->feature[s->n_features++] = t;
            s->pos[t] = t;
            s->range[2 * t] = 0;
            s->range[2 * t + 1] = t + 1;
            s->target[t] = -1;
            if (t > 0) s->target[t - 1] = ids[i] == -200 ? -1 : labels[i];
        }
    for (int t = 0; t < s->n; t++) s->n_targets += s->target[t] >= 0;
}

/* ---- central differences */

/* Gradients that nothing can change are 0: positions and tower layers behind the one that is used. */
static int differences(void *ctx, const struct bind_row *row, struct err *e)
{
    struct step *s = ctx;
    const double h = 1e-5;
    double top = 0, worst = 0;
    (void)e;
    for (int64_t k = 0; row->param->w.p && k < tensor_count(row->param->w); k++) {
        double *at = (double *)row->param->w.p + k, was = *at;
        *at = was + h;
        const double up = step_run(s);
        *at = was - h;
        const double want = (up - step_run(s)) / (2 * h);
        *at = was;
        top = fmax(top, fabs(want));
        worst = fmax(worst, fabs(want - ((double *)row->param->g.p)[k]));
    }
    if (!(worst <= 1e-6 * top + 1e-10)) fail_msg("%s: off by %.3g where the largest is %.3g", row->name, worst, top);
    return 0;
}

static const struct llava_config tiny = {
    .llama = { .C = 8, .F = 10, .L = 2, .H = 4, .K = 2, .D = 2, .V = 11, .max_pos = 32, .eps = 1e-5f, .rope_theta = 1e4,
               .bias = true },
    .clip = { .C = 6, .F = 7, .L = 2, .H = 2, .image = 6, .patch = 3, .eps = 1e-5f, .quick_gelu = true },
    .has_vision = true, .has_clip = true, .n_projector = 2, .mm_hidden = 6, .select_layer = -2,
};

/* Random parameters are small; larger ones make every path count. */
static int enlarge(void *ctx, const struct bind_row *row, struct err *e)
{
    struct rng *r = ctx;
    (void)e;
    for (int64_t k = 0; row->param->w.p && k < tensor_count(row->param->w); k++)
        ((double *)row->param->w.p)[k] += 0.4 * rng_normal(r);
    return 0;
}

static void tiny_init(struct step *s)
{
    static const int32_t ids[] = { 1, 5, -200, 7, 9, 3, 2 }, labels[] = { -100, -100, -100, 7, -100, 3, 2 };
    struct rng r;
    rng_seed(&r, 3);
    *s = (struct step){ .train_tower = true };
    step_init(s, DT_F64);
    const struct llava_source source = { .dtype = DT_F32 };
    assert_int_equal(llava_model_random(&s->m, &tiny, &source, 5, NULL), 0);
    assert_int_equal(llava_model_context(&s->m, tiny.llama.max_pos, NULL), 0);
    llava_each(&s->m, own_param, s, NULL);
    llava_each(&s->m, enlarge, &r, NULL);
    s->pixels = (struct tensor){ NULL, DT_F64, 4, 0, { 1, 3, 6, 6 } };
    double *px = s->pixels.p = arena_take(&s->params, tensor_bytes(s->pixels));
    for (int64_t i = 0; i < tensor_count(s->pixels); i++) px[i] = rng_normal(&r);
    step_tokens(s, ids, labels, sizeof ids / sizeof *ids, clip_patches(&tiny.clip));
    assert_int_equal(s->n_targets, 3);
}

static void test_differences(void **state)
{
    struct step s;
    (void)state;
    tiny_init(&s);
    step_train(&s);
    llava_each(&s.m, differences, &s, NULL);
    step_fini(&s);
}

/* A running hash over the bits of all gradients. */
static int gradient_bits(void *ctx, const struct bind_row *row, struct err *e)
{
    uint64_t *h = ctx;
    (void)e;
    for (size_t k = 0; row->param->g.p && k < tensor_bytes(row->param->g); k++)
        *h = (*h ^ ((unsigned char *)row->param->g.p)[k]) * 0x100000001b3u;
    return 0;
}

/* ctx: how many, and which. */
static void note(void *ctx, int i)
{
    int *passed = ctx;
    if (++passed[0] < 8) passed[passed[0]] = i;
}

/* Whatever layers keep: the same bits. Each is told of when it is done. */
static void test_checkpoint(void **state)
{
    enum { WAYS = 8, ALL = OP_KEPT_ALL, DEAR = OP_KEPT_DEAR, AWAY = OP_KEPT_AWAY, NONE = OP_KEPT_NONE };
    static const uint8_t ways[WAYS][2] = { { ALL, ALL }, { NONE, ALL }, { NONE, NONE }, { DEAR, ALL }, { DEAR, DEAR },
                                           { NONE, DEAR }, { AWAY, NONE }, { AWAY, AWAY } };
    double loss[WAYS];
    uint64_t bits[WAYS];
    size_t high[WAYS];
    int passed[WAYS][8], n[WAYS] = { 0 };
    (void)state;
    for (int i = 0; i < WAYS; i++) {
        struct step s;
        struct pile pile = { .n = 0 };
        const struct op_away away = { &pile, pile_open, pile_close };
        tiny_init(&s);
        assert_int_equal(s.m.cfg.llama.L, 2);
        s.kept = ways[i];
        s.o.away = &away;
        s.o.passed = note;
        s.o.passed_ctx = passed[i];
        passed[i][0] = 0;
        loss[i] = step_train(&s);
        high[i] = s.act.high;
        bits[i] = 14695981039346656037u;
        llava_each(&s.m, gradient_bits, &bits[i], NULL);
        n[i] = s.m.cfg.llama.L;
        step_fini(&s);
        assert_int_equal(pile.n, 0);
    }
    for (int i = 0; i < WAYS; i++) {
        assert_true(loss[0] == loss[i]);
        assert_true(bits[0] == bits[i]);
        assert_int_equal(passed[i][0], n[i] + 1);
        for (int k = 0; k <= n[i]; k++) assert_int_equal(passed[i][1 + k], n[i] - k);
    }
    for (int i = 1; i < WAYS; i++)
        if (high[i] >= high[0])
            fail_msg("way %d: %zu bytes of activations, %zu where all is kept", i, high[i], high[0]);
}

/* Stage 1: only the projector learns. Other gradients stay what they were, and its own are the same. */
static int freeze(void *ctx, const struct bind_row *row, struct err *e)
{
    (void)ctx, (void)e;
    if (row->part != PART_PROJECTOR) row->param->flags = 0;
    return 0;
}

static int projector_only(void *ctx, const struct bind_row *row, struct err *e)
{
    const struct step *all = ctx;
    (void)e;
    const struct param *p = row->param;
    for (size_t k = 0; row->part != PART_PROJECTOR && p->g.p && k < tensor_bytes(p->g); k++)
        if (((char *)p->g.p)[k]) fail_msg("%s is frozen and its gradient was written", row->name);
    for (int i = 0; i < 2 && row->part == PART_PROJECTOR; i++) {
        const struct linear *l = &all->m.projector.linear[i];
        if (strstr(row->name, i ? ".2.weight" : ".0.weight")) assert_memory_equal(p->g.p, l->w.g.p, tensor_bytes(p->g));
        if (strstr(row->name, i ? ".2.bias" : ".0.bias")) assert_memory_equal(p->g.p, l->b.g.p, tensor_bytes(p->g));
    }
    return 0;
}

static void test_projector_only(void **state)
{
    struct step all, one;
    (void)state;
    tiny_init(&all);
    tiny_init(&one);
    llava_each(&one.m, freeze, NULL, NULL);
    step_train(&all);
    step_train(&one);
    llava_each(&one.m, projector_only, &all, NULL);
    assert_true(one.act.high < all.act.high);
    step_fini(&all);
    step_fini(&one);
}

/* ---- PyTorch's gradients */

#define GOLDEN "tests/golden/"
struct golden {
    struct weights *grads, *train, *expected;
    const char *name; /* "v1", "plain" */
    bool projector_only;
    int compared;
};

static const struct weight *find(const struct weights *w, const char *a, const char *b)
{
    char name[NAME_MAX_BYTES + 16];
    snprintf(name, sizeof name, "%s.%s", a, b);
    const struct weight *found = weights_find(w, name);
    if (!found) fail_msg("'%s' is not in the fixture", name);
    return found;
}

static int compare_one(void *ctx, const struct bind_row *row, struct err *e)
{
    struct golden *g = ctx;
    (void)e;
    if (row->part == PART_CLIP || (g->projector_only && row->part != PART_PROJECTOR)) return 0;
    const struct tensor want = find(g->grads, g->name, row->name)->t, got = row->param->g;
    assert_int_equal(tensor_count(want), tensor_count(got));
    double top = 0, worst = 0, dd = 0, ww = 0;
    for (int64_t k = 0; k < tensor_count(want); k++) {
        const double w = (double)((float *)want.p)[k];
        const double v = got.type == DT_F64 ? ((double *)got.p)[k] : (double)((float *)got.p)[k];
        top = fmax(top, fabs(w));
        worst = fmax(worst, fabs(v - w));
        dd += (v - w) * (v - w);
        ww += w * w;
    }
    if (!(worst <= 1e-5 * top && dd <= 1e-10 * ww))
        fail_msg("%s %s: off by %.3g where the largest is %.3g", g->name, row->name, worst, top);
    g->compared++;
    return 0;
}

static int ints(int32_t *to, struct tensor t)
{
    assert_int_equal(t.type, DT_I64);
    assert_true(tensor_count(t) <= TOKENS_MAX);
    for (int64_t i = 0; i < tensor_count(t); i++) to[i] = (int32_t)((int64_t *)t.p)[i];
    return (int)tensor_count(t);
}

/* CLIP's normalisation of the fixture's crop: its own line, so that nothing of src/image is trusted here. */
static void golden_pixels(struct step *s, struct tensor crop)
{
    static const double mean[] = { 0.48145466, 0.4578275, 0.40821073 }, dev[] = { 0.26862954, 0.26130258, 0.27577711 };
    const int64_t side = crop.n[1];
    s->pixels = (struct tensor){ NULL, (int8_t)s->o.type, 4, 0, { 1, 3, side, side } };
    s->pixels.p = arena_take(&s->params, tensor_bytes(s->pixels));
    for (int64_t i = 0; i < 3 * side * side; i++) {
        const int64_t c = i / (side * side), at = i % (side * side) * 3 + c;
        const double v = (((uint8_t *)crop.p)[at] / 255.0 - mean[c]) / dev[c];
        if (s->o.type == DT_F64) ((double *)s->pixels.p)[i] = v;
        else ((float *)s->pixels.p)[i] = (float)v;
    }
}

static void compare_with_pytorch(const char *name, enum dtype type)
{
    struct step s = { 0 };
    struct golden g = { .name = name, .projector_only = !strcmp(name, "plain") };
    struct err e = { 0 };
    int32_t ids[TOKENS_MAX], labels[TOKENS_MAX];
    const struct llava_source source = { .path = GOLDEN "models/llava-self-trained", .dtype = DT_F32 };
    step_init(&s, type);
    if (llava_model_open(&s.m, &source, &e) < 0) fail_msg("%s", e.msg);
    assert_int_equal(llava_model_context(&s.m, TOKENS_MAX, &e), 0);
    assert_int_equal(weights_open(&g.grads, GOLDEN "expected/grads.safetensors", &e), 0);
    assert_int_equal(weights_open(&g.train, GOLDEN "expected/train.safetensors", &e), 0);
    assert_int_equal(weights_open(&g.expected, GOLDEN "expected/llava-self-trained.safetensors", &e), 0);
    golden_pixels(&s, find(g.expected, "c0", "crop_u8")->t);
    llava_each(&s.m, own_param, &s, NULL);
    const int n = ints(ids, find(g.train, name, "input_ids")->t);
    assert_int_equal(n, ints(labels, find(g.train, name, "labels")->t));
    step_tokens(&s, ids, labels, n, llava_tile_rows(&s.m));
    const double loss = step_train(&s), want = (double)*(float *)find(g.train, name, "loss")->t.p;
    if (!(fabs(loss - want) <= 1e-5 * want)) fail_msg("%s: loss %.9g, PyTorch's %.9g", name, loss, want);
    llava_each(&s.m, compare_one, &g, NULL);
    assert_int_equal(g.compared, g.projector_only ? 4 : weights_count(g.grads) - 4);
    weights_close(g.grads);
    weights_close(g.train);
    weights_close(g.expected);
    step_fini(&s);
}

static void test_pytorch_v1(void **state) { (void)state; compare_with_pytorch("v1", DT_F64); }
static void test_pytorch_plain(void **state) { (void)state; compare_with_pytorch("plain", DT_F64); }
static void test_pytorch_v1_f32(void **state) { (void)state; compare_with_pytorch("v1", DT_F32); }

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_differences),     cmocka_unit_test(test_checkpoint),
        cmocka_unit_test(test_projector_only),  cmocka_unit_test(test_pytorch_v1),
        cmocka_unit_test(test_pytorch_plain),   cmocka_unit_test(test_pytorch_v1_f32),
    };
    return cmocka_run_group_tests_name("model", tests, NULL, NULL);
}
