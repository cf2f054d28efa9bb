/* What a training run decides before and between its steps: arguments, DeepSpeed's file, the learning rate's way, what
 * is trained in which group; and the step: recomputation, packing, dropout and frozen parameters, on tiny models. */
#include <math.h>

#include "help/tmp.h"
#include "train/deepspeed.h"
#include "train/feed.h"
#include "train/optim.h"
#include "train/plan.h"
#include "train/trainee.h"
#include "train/flops.h"
#include "train/step.h"

#define MODELS "tests/golden/models/"
#define PICTURES "tests/golden/pictures"

/* ---- arguments */

enum { WORDS_MAX = 64 };

/* Splits at blanks. */
static int parse(struct train_args *a, const char *line, struct err *e)
{
    static char text[2000];
    char *argv[WORDS_MAX], *save = NULL;
    int argc = 0;
    argv[argc++] = (char *)(uintptr_t)"train";
    snprintf(text, sizeof text, "%s", line);
    for (char *w = strtok_r(text, " ", &save); w; w = strtok_r(NULL, " ", &save)) argv[argc++] = w;
    return train_args_parse(a, argc, argv, e);
}

#define NEEDED "--data_path d --output_dir o "

static void must_parse(struct train_args *a, const char *line)
{
    struct err e = { 0 };
    if (parse(a, line, &e) < 0) fail_msg("%s: %s", line, e.msg);
}

static void test_defaults(void **state)
{
    struct train_args a;
    (void)state;
    must_parse(&a, NEEDED);
    assert_string_equal(a.version, "v0");
    assert_string_equal(a.mm_projector_type, "linear");
    assert_null(a.vision_tower);
    assert_int_equal(a.mm_vision_select_layer, -1);
    assert_true(a.mm_use_im_patch_token && !a.mm_use_im_start_end && !a.bf16);
    assert_int_equal(a.model_max_length, 512);
    assert_int_equal(a.lora_r, 64);
    assert_int_equal(a.lora_alpha, 16);
    assert_true(fabs(a.lora_dropout - 0.05) < 1e-12 && isnan(a.mm_projector_lr));
    assert_true(fabs(a.learning_rate - 5e-5) < 1e-18 && fabs(a.num_train_epochs - 3) < 1e-12);
    assert_int_equal(a.per_device_train_batch_size, 8);
    assert_int_equal(a.seed, 42);
    assert_int_equal(a.data_seed, 42);
    assert_string_equal(a.lr_scheduler_type, "linear");
}

static void test_forms(void **state)
{
    struct train_args a;
    (void)state;
    must_parse(&a, NEEDED "--bf16 --tf32 yes --lora_en=t --mm_projector_lr 2e-5 --learning-rate 1e-3 --seed 7 "
                   "--mm_vision_select_layer -2 --no_mm_use_im_patch_token --max_grad_norm=0 --report_to none");
    assert_true(a.bf16 && a.lora_enable && !a.mm_use_im_patch_token);
    assert_true(fabs(a.mm_projector_lr - 2e-5) < 1e-15 && fabs(a.learning_rate - 1e-3) < 1e-15);
    assert_int_equal(a.mm_vision_select_layer, -2);
    assert_int_equal(a.data_seed, 7);
    assert_true(train_args_given(&a, "max_grad_norm") && !train_args_given(&a, "weight_decay"));
    must_parse(&a, NEEDED "--label_names a b --report_to tensorboard jsonl --warmup_steps 0.25 "
                   "--include_for_metrics x y z --save_steps 0.5 --lr_scheduler_type cosine_with_min_lr "
                   "--lr_scheduler_kwargs {\"min_lr\":1e-6}");
    assert_string_equal(a.report_to, "tensorboard,jsonl");
    assert_true(fabs(a.warmup_steps - 0.25) < 1e-12 && fabs(a.save_steps - 0.5) < 1e-12);
    must_parse(&a, NEEDED "--bf16 False --bf16 1 --eval_strategy epoch --save_total_limit None --data_seed 3");
    assert_true(a.bf16 && a.save_total_limit == 0 && a.data_seed == 3);
    assert_string_equal(a.evaluation_strategy, "epoch");
}

#define FIFTY "tensorboard tensorboard tensorboard tensorboard a "

static void test_refused(void **state)
{
    static const char *const rows[][2] = {
        { "--lerning_rate 1", "did you mean '--learning_rate'" }, { "--qqqqqqqq 1", "unknown option '--qqqqqqqq'" },
        { "--lora", "may be" }, { "--bf16 maybe", "True or False" }, { "--seed 1.5", "whole number" },
        { "--learning_rate fast", "a number" }, { "--learning_rate 0", "above 0" }, { "--learning_rate -1", "above 0" },
        { "--learning_rate nan", "a number" }, { "--lora_bias some", "none, all, lora_only" },
        { "--label_smoothing_factor 1", "below 1" }, { "--label_smoothing_factor -0.1", "0 or more" },
        { "--push_to_hub", "not supported" }, { "--optim sgd", "adamw_torch" },
        { "--bf16 --fp16", "without --fp16" }, { "--seed", "wants a value" }, { "stray", "'stray'" },
        { "--per_device_train_batch_size 0", "from 1" }, { "--lora_dropout 1", "below 1" },
        { "--lora_alpha 0", "--lora_alpha must be from 1" },
        { "--tune_mm_mlp_adapter --freeze_mm_mlp_adapter", "nothing to train" },
        { "--seed 99999999999999999999", "number" },
        { "--save_steps 3.5", "whole and at most 1e15, or below 1" }, { "--warmup_steps 1.5", "whole" },
        { "--save_steps 1e300", "at most 1e15" }, { "--max_steps 9223372036854775807", "--max_steps must be at most" },
        { "--num_train_epochs 1e300", "--num_train_epochs must be at most" }, { "--memory_limit x", "--memory_limit" },
        { "--host_memory_limit 1Q", "--host_memory_limit" }, { "--mm_projector_type mlp9x_gelu", "mlp9x_gelu" },
        { "--report_to paper", "paper" }, { "--model_max_length 1048577", "from 1 to 1048576" },
        { "--report_to a b stray c -x", "-x" },
        { "--lr_scheduler_kwargs {\"power\":1}", "has no 'power'" }, { "--warmup_steps -1", "0 or more" },
        { "--report_to " FIFTY FIFTY FIFTY FIFTY FIFTY, "too many words" },
        { "--bits 3", "16" }, { "--learning_rate None", "a number" },
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct train_args a;
        struct err e = { 0 };
        char line[300];
        snprintf(line, sizeof line, NEEDED "%s", rows[i][0]);
        if (parse(&a, line, &e) != ERR_USAGE || !strstr(e.msg, rows[i][1])) fail_msg("'%s': %s", rows[i][0], e.msg);
    }
    struct train_args a;
    must_parse(&a, NEEDED "--label_smoothing_factor 0.1 --push_to_hub false --lazy_preprocess True --local_rank -1");
    assert_true(fabs(a.label_smoothing_factor - 0.1) < 1e-12);
}

/* ---- DeepSpeed */

static void apply(struct train_args *a, const char *json, const char *more, int want)
{
    char line[600];
    struct err e = { 0 };
    tmp_text("ds.json", json);
    snprintf(line, sizeof line, NEEDED "--deepspeed %s %s", tmp_path("ds.json"), more);
    must_parse(a, line);
    const int rc = deepspeed_apply(a, &e);
    if (rc != want) fail_msg("%s %s: %d %s", json, more, rc, e.msg);
}

static void test_deepspeed(void **state)
{
    struct train_args a;
    const char *zero2 = "{\"bf16\": {\"enabled\": \"auto\"}, \"train_micro_batch_size_per_gpu\": \"auto\","
                        " \"zero_optimization\": {\"stage\": 2, \"overlap_comm\": true}}";
    (void)state;
    apply(&a, zero2, "--bf16 True", 0);
    assert_true(a.bf16 && !(a.max_grad_norm > 0));
    apply(&a, zero2, "--max_grad_norm 0.5", 0);
    assert_true(!a.bf16 && fabs(a.max_grad_norm - 0.5) < 1e-12);
    apply(&a, "{\"gradient_clipping\": \"auto\", \"zero_optimization\": {\"stage\": 3}}", "", 0);
    assert_true(fabs(a.max_grad_norm - 1) < 1e-12);
    apply(&a, "{\"gradient_clipping\": 0.3, \"bf16\": {\"enabled\": true}}", "", 0);
    assert_true(a.bf16 && fabs(a.max_grad_norm - 0.3) < 1e-12);
    apply(&a, "{\"bf16\": {\"enabled\": false}}", "--bf16", ERR_USAGE);
    apply(&a, "{\"bf16\": {\"enabled\": true}}", "--fp16", ERR_USAGE);
    apply(&a, "{\"train_micro_batch_size_per_gpu\": 4}", "--per_device_train_batch_size 2", ERR_USAGE);
    apply(&a, "{\"gradient_clipping\": \"some\"}", "", ERR_FORMAT);
    apply(&a, "{\"bf16\": {\"enabled\": 3}}", "", ERR_FORMAT);
    apply(&a, "[1]", "", ERR_FORMAT);
    apply(&a, "{\"bf16\"", "", ERR_FORMAT);
}

/* ---- the learning rate: numbers by transformers' optimization.py */

static void test_schedule(void **state)
{
    static const struct { const char *name /* and kwargs */; int64_t warmup, total, step; double want; } rows[] = {
        { "cosine", 8, 250, 0, 0 }, { "cosine", 8, 250, 1, 0.125 }, { "cosine", 8, 250, 8, 1 },
        { "cosine", 8, 250, 9, 0.99995787 }, { "cosine", 8, 250, 250, 0 }, { "cosine", 0, 4, 2, 0.5 },
        { "linear", 2, 10, 1, 0.5 }, { "linear", 2, 10, 4, 0.75 }, { "linear", 2, 10, 10, 0 },
        { "linear", 0, 3, 0, 1 }, { "constant", 5, 9, 0, 1 }, { "constant_with_warmup", 4, 9, 1, 0.25 },
        { "constant_with_warmup", 4, 9, 8, 1 }, { "cosine_with_restarts", 0, 8, 4, 0.5 },
        { "cosine_with_restarts", 2, 8, 8, 0 }, { "polynomial", 0, 10, 5, 0.5 * (1 + 1e-4) },
        { "polynomial", 0, 10, 10, 1e-4 }, { "polynomial", 0, 10, 11, 1e-4 }, { "inverse_sqrt", 4, 99, 16, 0.5 },
        { "inverse_sqrt", 0, 99, 30000, 0.5 }, { "linear", 3, 3, 3, 0 },
        { "cosine {\"num_cycles\": 1}", 2, 10, 6, 0 }, { "cosine {\"num_cycles\": 1}", 2, 10, 10, 1 },
        { "cosine_with_restarts {\"num_cycles\": 2}", 2, 10, 5, 0.14644660940672627 },
        { "cosine_with_restarts {\"num_cycles\": 2}", 2, 10, 6, 1 },
        { "cosine_with_restarts {\"num_cycles\": 2}", 2, 10, 10, 0 },
        { "polynomial {\"power\": 2, \"lr_end\": 1e-4}", 0, 10, 5, 0.1 + 0.9 * 0.25 },
        { "polynomial {\"power\": 2, \"lr_end\": 1e-4}", 0, 10, 11, 0.1 },
        { "inverse_sqrt {\"timescale\": 48}", 4, 99, 16, 0.8944271909999159 },
        { "inverse_sqrt {\"timescale\": null}", 4, 99, 16, 0.5 },
        { "cosine_with_min_lr {\"min_lr\": 2e-4}", 0, 10, 10, 0.2 },
        { "cosine_with_min_lr {\"min_lr_rate\": 0.1}", 0, 10, 5, 0.55 },
        { "cosine_with_min_lr {\"min_lr_rate\": 0.1}", 5, 10, 1, 0.2 },
    };
    static const struct { const char *name, *kwargs, *word; } wrong[] = {
        { "stairs", NULL, "stairs" }, { "linear", "{\"power\": 1}", "'linear' has no 'power'" },
        { "cosine", "{\"min_lr\": 1}", "'min_lr'" }, { "cosine", "[1]", "JSON object" },
        { "cosine", "{1}", "cannot parse" },
        { "cosine", "{\"num_cycles\": \"2\"}", "a number of 0" }, { "cosine", "{\"num_cycles\": -1}", "a number of 0" },
        { "cosine_with_min_lr", NULL, "min_lr_rate" }, { "polynomial", "{\"lr_end\": 1e-3}", "below --learning_rate" },
        { "inverse_sqrt", "{\"timescale\": 0}", "1 or more" },
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct schedule s;
        char name[40];
        const size_t n = strcspn(rows[i].name, " ");
        snprintf(name, sizeof name, "%.*s", (int)n, rows[i].name);
        const char *kwargs = rows[i].name[n] ? rows[i].name + n : NULL;
        assert_int_equal(schedule_make(&s, name, kwargs, 1e-3, NULL), 0);
        s.warmup = rows[i].warmup;
        s.total = rows[i].total;
        const double got = schedule_factor(&s, rows[i].step);
        if (!(fabs(got - rows[i].want) < 2e-8))
            fail_msg("%zu: %s gives %.9g, not %.9g", i, rows[i].name, got, rows[i].want);
    }
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        struct schedule s;
        struct err e = { 0 };
        if (schedule_make(&s, wrong[i].name, wrong[i].kwargs, 1e-3, &e) != ERR_USAGE || !strstr(e.msg, wrong[i].word))
            fail_msg("%zu: %s %s: %s", i, wrong[i].name, wrong[i].kwargs, e.msg);
    }
    assert_int_equal(schedule_warmup(0, 0.03, 2181), 66);
    assert_int_equal(schedule_warmup(0, 0.03, 5198), 156);
    assert_int_equal(schedule_warmup(10, 0.03, 5198), 10);
    assert_int_equal(schedule_warmup(0.5, 0.03, 5198), 2599);
}

/* ---- what is trained */

#define VISION "--model_name_or_path " MODELS "vicuna-base --vision_tower " MODELS "clip-tiny --version v1 " \
               "--mm_projector_type mlp2x_gelu --mm_vision_select_layer -2 --mm_use_im_patch_token False " \
               "--model_max_length 256 " NEEDED

static void open_trainee(struct trainee *t, struct train_args *a, const char *more)
{
    char line[1200];
    struct err e = { 0 };
    snprintf(line, sizeof line, VISION "%s", more);
    must_parse(a, line);
    if (trainee_open(t, a, NULL, &e) < 0) fail_msg("%s: %s", more, e.msg);
}

static const struct trained *find_trained(const struct trainee *t, const char *name)
{
    for (int i = 0; i < t->n; i++)
        if (!strcmp(t->p[i].name, name)) return &t->p[i];
    return NULL;
}

static void test_sets(void **state)
{
    static const struct {
        const char *args;
        bool projector, embed, head, norm, layer, tower;
        enum train_kind kind;
    } rows[] = {
        { "--tune_mm_mlp_adapter True", true, false, false, false, false, false, TRAIN_PROJECTOR },
        { "", true, true, true, true, true, false, TRAIN_FULL },
        { "--freeze_mm_mlp_adapter True", false, true, true, true, true, false, TRAIN_FULL },
        { "--freeze_backbone True", true, false, true, false, false, false, TRAIN_FULL },
        { "--unfreeze_mm_vision_tower True", true, true, true, true, true, true, TRAIN_FULL },
        { "--lora_enable True --lora_r 4", true, false, false, false, false, false, TRAIN_LORA },
        { "--tune_mm_mlp_adapter True --mm_use_im_start_end True", true, true, false, false, false, false,
          TRAIN_PROJECTOR },
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct trainee t;
        struct train_args a;
        open_trainee(&t, &a, rows[i].args);
        const struct { const char *name; bool want; } in[] = {
            { "model.mm_projector.0.weight", rows[i].projector }, { "model.mm_projector.2.bias", rows[i].projector },
            { "model.embed_tokens.weight", rows[i].embed }, { "lm_head.weight", rows[i].head },
            { "model.norm.weight", rows[i].norm }, { "model.layers.0.mlp.up_proj.weight", rows[i].layer },
            { "vision_model.encoder.layers.0.mlp.fc1.weight", rows[i].tower },
            { "model.layers.0.mlp.up_proj.lora_A.weight", rows[i].kind == TRAIN_LORA },
            { "model.layers.1.self_attn.o_proj.lora_B.weight", rows[i].kind == TRAIN_LORA },
        };
        for (size_t k = 0; k < sizeof in / sizeof *in; k++)
            if (!find_trained(&t, in[k].name) == in[k].want) fail_msg("'%s': %s", rows[i].args, in[k].name);
        assert_int_equal(t.kind, rows[i].kind);
        if (rows[i].kind == TRAIN_LORA) assert_int_equal(t.n_lora, 7 * t.model.cfg.llama.L);
        trainee_close(&t);
    }
}

static void test_groups(void **state)
{
    struct trainee t;
    struct train_args a;
    (void)state;
    open_trainee(&t, &a, "--mm_projector_lr 1e-5 --unfreeze_mm_vision_tower True --mm_vision_tower_lr 2e-6");
    const struct { const char *name; bool decays; enum rate rate; } rows[] = {
        { "model.embed_tokens.weight", true, RATE_COMMON }, { "lm_head.weight", true, RATE_COMMON },
        { "model.layers.0.input_layernorm.weight", false, RATE_COMMON }, { "model.norm.weight", false, RATE_COMMON },
        { "model.mm_projector.0.weight", true, RATE_PROJECTOR }, { "model.mm_projector.0.bias", false, RATE_PROJECTOR },
        { "vision_model.pre_layrnorm.weight", false, RATE_TOWER },
        { "vision_model.embeddings.class_embedding", true, RATE_TOWER },
        { "vision_model.encoder.layers.0.self_attn.q_proj.bias", false, RATE_TOWER },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const struct trained *p = find_trained(&t, rows[i].name);
        assert_non_null(p);
        if (p->decays != rows[i].decays || p->rate != rows[i].rate) fail_msg("%s", rows[i].name);
    }
    trainee_close(&t);
}

/* New tokens: rows that are the mean of the old ones. */
static void test_tokens(void **state)
{
    struct trainee t;
    struct train_args a;
    (void)state;
    open_trainee(&t, &a, "--mm_use_im_start_end True");
    const struct tensor w = t.model.llama.embed.w;
    assert_int_equal(w.n[0], 322);
    assert_int_equal(t.model.cfg.llama.V, 322);
    assert_int_equal(t.model.llama.head.w.w.n[0], 322);
    const enum dtype type = (enum dtype)w.type;
    const size_t bytes = (size_t)w.n[1] * dtype_bytes(type);
    const char *row = w.p;
    float x[322];
    double sum = 0;
    for (int v = 0; v < 322; v++) dtype_convert(&x[v], DT_F32, row + (size_t)v * bytes, type, 1);
    for (int v = 0; v < 320; v++) sum += (double)x[v];
    assert_true(fabs((double)x[320] - sum / 320) < 1e-3 * fabs(sum / 320) + 1e-6);
    assert_memory_equal(row + 320 * bytes, row + 321 * bytes, bytes);
    trainee_close(&t);
}

/* ---- the step */

static void write_records(void)
{
    char text[4000] = "[";
    static const char *const pictures[] = { "square-50x50.png", "tall-20x61.jpg", "wide-37x23.png" };
    for (int i = 0; i < 9; i++) {
        const size_t n = strlen(text);
        char image[60] = "";
        if (i % 3) snprintf(image, sizeof image, "\"image\": \"%s\", ", pictures[i % 3]);
        snprintf(text + n, sizeof text - n,
                 "%s{\"id\": \"r%d\", %s\"conversations\": [{\"from\": \"human\", \"value\": \"%sWhat %d?\"}, "
                 "{\"from\": \"gpt\", \"value\": \"%.*s\"}]}", i ? ", " : "", i, image, i % 3 ? "<image>\\n" : "", i,
                 5 + 7 * i, "A red apple and a pear on a table, or what else is there to be seen in a picture?");
    }
    const size_t n = strlen(text);
    snprintf(text + n, sizeof text - n, "]");
    tmp_text("records.json", text);
}

/* A trainee with its data, ready for steps. */
struct rig {
    struct train_args a;
    struct trainee t;
    struct feed feed;
    struct step step;
    struct optim optim;
};

static void rig_open(struct rig *r, const char *more, int packing, int accum)
{
    struct err e = { 0 };
    char line[600];
    snprintf(line, sizeof line, "--image_folder " PICTURES " %s", more);
    write_records();
    memset(r, 0, sizeof *r);
    open_trainee(&r->t, &r->a, line);
    const struct feed_options o = { .path = tmp_path("records.json"), .kind = ORDER_RANDOM, .seed = 5, .batch = 2,
                                    .accum = accum, .epochs = 1, .packing = packing };
    if (feed_open(&r->feed, &r->t.recipe, &o, &e) < 0) fail_msg("%s", e.msg);
    if (loader_limits(&r->feed.most, &r->feed.options, &e) < 0) fail_msg("%s", e.msg);
    struct plan plan;
    if (step_open(&r->step, &r->t, &r->a, &r->feed.most, &r->feed.most, &e) < 0) fail_msg("%s", e.msg);
    const struct plan_speed speed = { 1e11, 0 };
    if (plan_make(&plan, &r->t, &r->step, &r->a, &speed, &e) < 0) fail_msg("%s", e.msg);
    const struct step_kept none = { .none = r->t.model.cfg.llama.L };
    if (r->a.gradient_checkpointing) step_keep(&r->step, &none); /* memory does not ask for it here */
    if (trainee_fill(&r->t, &r->a, &r->step.kern, &r->step.kc, &e) < 0 || step_fill(&r->step, &e) < 0)
        fail_msg("%s", e.msg);
    if (optim_open(&r->optim, &r->t, &r->a, 10, &e) < 0) fail_msg("%s", e.msg);
}

static void rig_close(struct rig *r)
{
    optim_close(&r->optim);
    step_close(&r->step);
    feed_close(&r->feed);
    trainee_close(&r->t);
}

/* Gradients of the first update's batches; the sum of their losses. */
static double gradients(struct rig *r, uint64_t drop_key)
{
    struct loader *l = NULL;
    const struct batch *b = NULL;
    struct err e = { 0 };
    double loss = 0;
    if (loader_open(&l, &r->feed.options, &e) < 0) fail_msg("%s", e.msg);
    do {
        const int rc = loader_next(l, &b, &e);
        if (rc <= 0) fail_msg("no batch: %s", e.msg);
        loss += step_run(&r->step, b, true, drop_key);
    } while (!b->update);
    loader_close(l);
    assert_true(isfinite(loss) && loss > 0);
    return loss;
}

static void same_gradients(const struct rig *a, const struct rig *b, double tolerance)
{
    assert_int_equal(a->t.n, b->t.n);
    for (int i = 0; i < a->t.n; i++) {
        const struct tensor x = a->t.p[i].param->g, y = b->t.p[i].param->g;
        double top = 0, worst = 0;
        for (int64_t k = 0; k < tensor_count(x); k++) {
            top = fmax(top, fabs((double)((float *)x.p)[k]));
            worst = fmax(worst, fabs((double)((float *)x.p)[k] - (double)((float *)y.p)[k]));
        }
        if (!(worst <= tolerance * top)) fail_msg("%s: off by %g of %g", a->t.p[i].name, worst, top);
    }
}

/* Recomputing layers changes no bit of the gradients and takes less memory; with dropout too, and in the tower. */
static void test_checkpointing(void **state)
{
    static const char *const modes[] = { "", "--unfreeze_mm_vision_tower True", "--lora_enable True --lora_r 4",
                                         "--bf16" };
    (void)state;
    for (int m = 0; m < 4; m++) {
        struct rig plain, again;
        char line[200];
        snprintf(line, sizeof line, "%s --gradient_checkpointing True", modes[m]);
        rig_open(&plain, modes[m], 0, 1);
        rig_open(&again, line, 0, 1);
        assert_true(again.step.act.cap < plain.step.act.cap);
        const double a = gradients(&plain, 77), b = gradients(&again, 77);
        assert_memory_equal(&a, &b, sizeof a);
        same_gradients(&plain, &again, 0);
        assert_true(plain.step.act.high <= plain.step.act.cap && again.step.act.high <= again.step.act.cap);
        rig_close(&plain);
        rig_close(&again);
    }
}

static void test_packing(void **state)
{
    struct rig apart, packed;
    (void)state;
    rig_open(&apart, "", 0, 3);
    rig_open(&packed, "", 2000, 3);
    const double a = gradients(&apart, 0), b = gradients(&packed, 0);
    if (!(fabs(a - b) <= 1e-5 * a)) fail_msg("loss %.9g apart, %.9g packed", a, b);
    same_gradients(&apart, &packed, 1e-4);
    rig_close(&apart);
    rig_close(&packed);
}

/* The same key drops the same, another key something else, none nothing. */
static void test_dropout(void **state)
{
    struct rig r[3];
    double loss[3];
    (void)state;
    for (int i = 0; i < 3; i++) {
        rig_open(&r[i], "--lora_enable True --lora_r 4 --lora_dropout 0.5", 0, 1);
        for (int k = 0; k < r[i].t.n_lora; k++) { /* B is 0 at first: the adapter must say something */
            const struct tensor b = r[i].t.lora[k].b.w;
            for (int64_t j = 0; j < tensor_count(b); j++) ((float *)b.p)[j] = (float)(j % 7 - 3) * 0.02f;
        }
        loss[i] = gradients(&r[i], i < 2 ? 5 : 6);
    }
    assert_memory_equal(&loss[0], &loss[1], sizeof loss[0]);
    same_gradients(&r[0], &r[1], 0);
    assert_true(fabs(loss[0] - loss[2]) > 1e-4);
    for (int i = 0; i < 3; i++) rig_close(&r[i]);
}

/* Everything that is not trained keeps its bytes through steps, everything that is changes. */
static int hash_row(void *ctx, const struct bind_row *row, struct err *e)
{
    uint64_t *h = ctx;
    (void)e;
    if (row->param->flags & PARAM_TRAIN) return 0;
    for (size_t k = 0; row->param->w.p && k < tensor_bytes(row->param->w); k++)
        *h = (*h ^ ((unsigned char *)row->param->w.p)[k]) * 0x100000001b3u;
    return 0;
}

static void test_frozen(void **state)
{
    static const char *const modes[] = { "--tune_mm_mlp_adapter True", "--lora_enable True --lora_r 4", "",
                                         "--bf16 True" };
    (void)state;
    for (int m = 0; m < 4; m++) {
        struct rig r;
        uint64_t before = 1, after = 1;
        char line[200];
        snprintf(line, sizeof line, "%s --lr_scheduler_type constant --learning_rate 1e-2", modes[m]);
        rig_open(&r, line, 0, 1);
        llava_each(&r.t.model, hash_row, &before, NULL);
        for (int k = 1; k <= 2; k++) {
            float first[512];
            for (int i = 0; i < r.t.n && i < 512; i++) first[i] = *(float *)r.t.p[i].state.master.p;
            gradients(&r, 0);
            optim_step(&r.optim, &r.step, k, optim_norm(&r.optim, &r.step));
            for (int i = 0; i < r.t.n && i < 512 && k == 2; i++) /* A moves once B has */
                if (!(fabs((double)first[i] - (double)*(float *)r.t.p[i].state.master.p) > 0)) {
                    const float g = *(float *)r.t.p[i].state.m.p;
                    if (fabs((double)g) > 0) fail_msg("%s: %s does not move", modes[m], r.t.p[i].name);
                }
            for (int i = 0; i < r.t.n; i++)
                for (int64_t j = 0; j < tensor_count(r.t.p[i].param->g); j++)
                    assert_true(fabs((double)((float *)r.t.p[i].param->g.p)[j]) <= 0);
        }
        llava_each(&r.t.model, hash_row, &after, NULL);
        assert_true(before == after);
        rig_close(&r);
    }
}

/* y[n,m] = x[n,k] z[k,m], in double */
static void product(double *y, const double *x, const double *z, int64_t n, int64_t k, int64_t m)
{
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < m; j++) {
            double sum = 0;
            for (int64_t l = 0; l < k; l++) sum += x[i * k + l] * z[l * m + j];
            y[i * m + j] = sum;
        }
}

/* Muon's update with gradient g[O,I] by its definition: 5 times x = a x + (b x x^T + c (x x^T)^2) x. */
static double *orthogonal(const float *g, int64_t O, int64_t I)
{
    double *x = malloc((size_t)(O * I) * sizeof *x), *t = malloc((size_t)(O * I) * sizeof *t), norm = 0;
    double *gram = malloc((size_t)(O * O) * sizeof *gram), *square = malloc((size_t)(O * O) * sizeof *square);
    double *y = malloc((size_t)(O * I) * sizeof *y);
    for (int64_t i = 0; i < O * I; i++) norm += (double)g[i] * (double)g[i];
    for (int64_t i = 0; i < O * I; i++) x[i] = (double)g[i] / sqrt(norm);
    for (int k = 0; k < 5; k++) {
        for (int64_t i = 0; i < O; i++)
            for (int64_t j = 0; j < I; j++) t[j * O + i] = x[i * I + j];
        product(gram, x, t, O, I, O);
        product(square, gram, gram, O, O, O);
        for (int64_t i = 0; i < O * O; i++) square[i] = -4.7750 * gram[i] + 2.0315 * square[i];
        product(y, square, x, O, O, I);
        for (int64_t i = 0; i < O * I; i++) x[i] = 3.4445 * x[i] + y[i];
    }
    free(t), free(gram), free(square), free(y);
    return x;
}

/* Matrices inside layers move by their orthogonal gradient, all else as with AdamW; tall, wide and square ones. */
static void test_muon(void **state)
{
    struct rig r;
    int tall = 0, wide = 0, square = 0;
    (void)state;
    rig_open(&r, "--optim muon --unfreeze_mm_vision_tower True --lr_scheduler_type constant --learning_rate 1e-2 "
                 "--weight_decay 0.1 --max_grad_norm 0", 0, 1);
    gradients(&r, 0);
    for (int i = 0; i < r.t.n; i++) {
        const struct trained *p = &r.t.p[i];
        const int64_t n = tensor_count(p->param->w), O = p->param->w.n[0], I = p->param->w.n[1];
        const bool matrix = strstr(p->name, ".layers.") || strstr(p->name, "mm_projector");
        assert_true(muon_takes(p) == (matrix && p->param->w.nd == 2));
        if (!muon_takes(p) || (tall && wide && square)) continue;
        tall += O > I, wide += O < I, square += O == I;
        float *g = malloc((size_t)n * sizeof *g), *w = malloc((size_t)n * sizeof *w);
        memcpy(g, p->param->g.p, (size_t)n * sizeof *g);
        memcpy(w, p->state.master.p, (size_t)n * sizeof *w);
        double *u = orthogonal(g, O, I);
        const double size = 0.2 * sqrt((double)(O > I ? O : I));
        muon_gather(&r.step, p, 1);
        double norm = 0;
        for (int64_t j = 0; j < n; j++) norm += pow((double)((float *)p->param->g.p)[j], 2);
        muon_step(&r.optim.muon, &r.step, p, sqrt(norm), 1e-2, 0.1);
        for (int64_t j = 0; j < n; j++) {
            const double want = (double)w[j] * (1 - 1e-3) - 1e-2 * size * u[j];
            const double got = (double)((float *)p->state.master.p)[j];
            if (!(fabs(got - want) <= 1e-4 * 1e-2 * size + 1e-6 * fabs(want)))
                fail_msg("%s, element %lld: %.8g, not %.8g", p->name, (long long)j, got, want);
        }
        free(g), free(w), free(u);
    }
    if (!(tall && wide && square)) fail_msg("%d tall, %d wide, %d square", tall, wide, square);
    rig_close(&r);
}

/* The records are learned by heart. */
static void test_muon_learns(void **state)
{
    struct rig r;
    double first = 0, last = 0;
    (void)state;
    rig_open(&r, "--optim muon --lr_scheduler_type constant --learning_rate 1e-2", 0, 1);
    for (int k = 1; k <= 12; k++) {
        last = gradients(&r, 0);
        if (k == 1) first = last;
        optim_step(&r.optim, &r.step, k, optim_norm(&r.optim, &r.step));
    }
    if (!(last < 0.1 * first)) fail_msg("from %g to %g", first, last);
    rig_close(&r);
}

/* Clipping: the step is that of gradients cut to the norm; its length without it. */
static void test_clipping(void **state)
{
    struct rig r;
    (void)state;
    rig_open(&r, "--max_grad_norm 0.25 --lr_scheduler_type constant", 0, 1);
    gradients(&r, 0);
    double sum = 0;
    for (int i = 0; i < r.t.n; i++)
        for (int64_t j = 0; j < tensor_count(r.t.p[i].param->g); j++)
            sum += pow((double)((float *)r.t.p[i].param->g.p)[j], 2);
    const double norm = optim_norm(&r.optim, &r.step);
    assert_true(fabs(norm - sqrt(sum)) <= 1e-5 * norm && norm > 0.25);
    float moment[64], grad[64];
    memcpy(grad, r.t.p[1].param->g.p, sizeof grad);
    optim_step(&r.optim, &r.step, 1, norm);
    memcpy(moment, r.t.p[1].state.m.p, sizeof moment);
    for (int j = 0; j < 64; j++) {
        const double x = (double)grad[j], want = 0.1 * 0.25 / (norm + 1e-6) * x;
        assert_true(fabs((double)moment[j] - want) <= 1e-6 * fabs(x));
    }
    rig_close(&r);
}

/* From the shapes alone: a number of a matrix costs 2 for each row that goes through it, 2 more for the input's
 * gradient and 2 for its own. */
static double hand_flops(const struct llava_config *c, bool tower_trains, const struct batch_limits *b)
{
    const struct llama_config *l = &c->llama;
    const struct clip_config *v = &c->clip;
    const double q = l->H * l->D, kv = l->K * l->D, way = tower_trains ? 6 : 2;
    const double layer = 2.0 * l->C * q + 2.0 * l->C * kv + 3.0 * l->C * l->F;
    const double text = l->L * (6 * layer + 12 * q * 0.5 * b->T / b->n) * b->T + 6.0 * l->C * l->V * b->n_targets;
    const double patches = pow((double)(v->image / v->patch), 2), rows = patches + 1;
    const double tower = 4.0 * v->C * v->C + 2.0 * v->C * v->F;
    const double picture = clip_layers_used(v, c->select_layer) * rows * (way * tower + 2 * way * rows * v->C) +
                           (tower_trains ? 4 : 2) * 3.0 * v->patch * v->patch * v->C * patches;
    const double projector = (tower_trains ? 6.0 : 4.0) * v->C * l->C + 6.0 * l->C * l->C;
    return text + b->n_images * (picture + projector * patches);
}

static void test_flops(void **state)
{
    static const char *const modes[] = { "", "--unfreeze_mm_vision_tower True" };
    const struct batch_limits b = { .n = 4, .T = 600, .n_images = 3, .n_targets = 70 };
    const struct batch_limits text = { .n = 4, .T = 600, .n_targets = 70 }, *const both[] = { &b, &text };
    (void)state;
    for (int m = 0; m < 2; m++) {
        struct trainee t;
        struct train_args a;
        open_trainee(&t, &a, modes[m]);
        for (int k = 0; k < 2; k++) {
            const double got = flops_pass(&t.model, m, both[k]), want = hand_flops(&t.model.cfg, m, both[k]);
            if (!(fabs(got - want) <= 1e-9 * want)) fail_msg("'%s': %.0f operations, not %.0f", modes[m], got, want);
        }
        const int L = t.model.cfg.llama.L;
        assert_true(flops_again(&t.model, L, &b) > flops_again(&t.model, L - 1, &b));
        assert_true(flops_again(&t.model, L, &b) < flops_pass(&t.model, m, &text) / 3);
        assert_true(flops_again(&t.model, 0, &b) == 0);
        trainee_close(&t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults), cmocka_unit_test(test_forms),     cmocka_unit_test(test_refused),
        cmocka_unit_test(test_deepspeed), cmocka_unit_test(test_schedule), cmocka_unit_test(test_sets),
        cmocka_unit_test(test_groups),   cmocka_unit_test(test_tokens),    cmocka_unit_test(test_checkpointing),
        cmocka_unit_test(test_packing),  cmocka_unit_test(test_dropout),   cmocka_unit_test(test_frozen),
        cmocka_unit_test(test_muon), cmocka_unit_test(test_muon_learns), cmocka_unit_test(test_clipping),
        cmocka_unit_test(test_flops),
    };
    return cmocka_run_group_tests_name("train", tests, tmp_begin, tmp_end);
}
