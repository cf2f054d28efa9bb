/* train/checkpoint: which files a checkpoint has in the three kinds of training, that what was written opens and holds
 * the same numbers, that a run goes on from it, what is refused, and what kills and full disks leave. */
#include "help/tmp.h"

#include <dirent.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <sys/resource.h>

#include "base/log.h"
#include "file/json.h"
#include "file/out.h"
#include "file/weights.h"
#include "train/checkpoint.h"

#define MODELS "tests/golden/models/"

enum { A = 6, B = 10 };
struct run {
    struct llava_model m;
    float w[A], moment[B];
    struct weight tensors[2];
    json_t *same;
    struct save_lora lora;
    struct checkpoint c;
    struct standing s;
    struct err e;
    char out[400], model[400];
};

static int train_projector(void *ctx, const struct bind_row *r, struct err *e)
{
    (void)ctx;
    (void)e;
    if (r->part == PART_PROJECTOR) r->param->flags |= PARAM_TRAIN;
    return 0;
}

static void run_begin(struct run *r, const char *model, enum train_kind kind, const char *out)
{
    *r = (struct run){ .w = { 1, 2, 3, 4, 5, 6 }, .moment = { -1 } };
    snprintf(r->out, sizeof r->out, "%s", out);
    snprintf(r->model, sizeof r->model, "%s", model);
    struct llava_source src = { .path = r->model, .dtype = DT_F32 };
    if (llava_model_open(&r->m, &src, &r->e) < 0) fail_msg("%s", r->e.msg);
    assert_int_equal(llava_each(&r->m, train_projector, NULL, &r->e), 0);
    r->tensors[0] = (struct weight){ "w", tensor_2d(r->w, DT_F32, 2, 3), NULL };
    r->tensors[1] = (struct weight){ "moment1/w", tensor_1d(r->moment, DT_F32, B), NULL };
    r->same = json_pack("{s:s,s:i}", "data", "abc", "world size", 1);
    r->lora = (struct save_lora){ "base", 2, 4, 0.05, "none" };
    r->c = (struct checkpoint){ .m = &r->m, .kind = kind, .output_dir = r->out, .model_dir = r->model, .dtype = DT_F32,
                                .lora = &r->lora, .same = r->same, .state = r->tensors, .n_state = 2, .max_steps = 9 };
    assert_int_equal(standing_init(&r->s, &r->e), 0);
    r->s.step = 4;
    r->s.loss_sum = 0.1;
    struct scalar v = { "loss", 2.5 };
    assert_int_equal(standing_log(&r->s, &v, 1, &r->e), 0);
}

static void run_end(struct run *r)
{
    llava_model_close(&r->m);
    json_decref(r->same);
    standing_fini(&r->s);
}

static void save(struct run *r)
{
    if (checkpoint_save(&r->c, &r->s, &r->e) < 0) fail_msg("%s", r->e.msg);
}

static int find(struct run *r, const char *from, const char *end)
{
    char *dir;
    int rc = checkpoint_find(&dir, r->c.output_dir, from, &r->e);
    if (rc < 0) return rc;
    if (end) assert_non_null(dir);
    if (end && strcmp(dir + strlen(dir) - strlen(end), end)) fail_msg("'%s' should end with '%s'", dir, end);
    if (!end) assert_null(dir);
    free(dir);
    return 0;
}

/* The folder holds these files, names parted by blanks, and no others. */
static void holds(const char *dir, const char *names)
{
    struct dirent **d;
    int n = scandir(dir, &d, NULL, alphasort), found = 0, wanted = 0;
    char want[1000], name[300];
    assert_true(n > 0);
    snprintf(want, sizeof want, " %s ", names);
    for (const char *p = names + strspn(names, " "); *p; p += strspn(p, " ")) wanted++, p += strcspn(p, " ");
    for (int i = 0; i < n; i++) {
        snprintf(name, sizeof name, " %.250s ", d[i]->d_name);
        bool dots = !strcmp(name, " . ") || !strcmp(name, " .. ");
        if (!dots && !strstr(want, name)) fail_msg("'%s' in '%s'", d[i]->d_name, dir);
        found += !dots;
        free(d[i]);
    }
    free(d);
    if (found != wanted) fail_msg("%d files in '%s', not all of '%s'", found, dir, names);
}

#define OURS "resume.json resume.safetensors trainer_state.json loss.svg "
#define TOKENS "tokenizer.model tokenizer_config.json special_tokens_map.json generation_config.json "

static void projector(void **state)
{
    (void)state;
    struct run r;
    run_begin(&r, MODELS "llava-self-trained", TRAIN_PROJECTOR, tmp_path("p"));
    r.c.config = json_pack("{s:b,s:s}", "tune_mm_mlp_adapter", 1, "image_aspect_ratio", "square");
    save(&r);
    holds(tmp_path("p/checkpoint-4"), OURS "config.json mm_projector.bin");
    assert_int_equal(checkpoint_finish(&r.c, &r.s, &r.e), 0);
    holds(tmp_path("p"), "checkpoint-4 config.json mm_projector.bin trainer_state.json loss.svg");
    json_t *o, *history;
    assert_int_equal(json_file_load(&o, tmp_path("p/config.json"), &r.e), 0);
    assert_true(json_is_true(json_object_get(o, "tune_mm_mlp_adapter")));
    assert_string_equal(json_string_value(json_object_get(o, "image_aspect_ratio")), "square");
    json_decref(o);
    struct weights *w;
    assert_int_equal(weights_open(&w, tmp_path("p/mm_projector.bin"), &r.e), 0);
    assert_int_equal(weights_count(w), 4);
    const struct weight *b = weights_find(w, "model.mm_projector.2.bias");
    assert_non_null(b);
    assert_int_equal(b->t.type, DT_F32);
    weights_close(w);
    assert_int_equal(json_file_load(&o, tmp_path("p/trainer_state.json"), &r.e), 0);
    assert_int_equal(json_integer_value(json_object_get(o, "global_step")), 4);
    history = json_object_get(o, "log_history");
    assert_int_equal(json_array_size(history), 1);
    assert_true(json_number_value(json_object_get(json_array_get(history, 0), "loss")) == 2.5);
    json_decref(o);
    json_decref((json_t *)r.c.config);

    /* LLaVA's special case */
    r.c.config = NULL;
    snprintf(r.out, sizeof r.out, "%s", tmp_path("q/checkpoint-7"));
    assert_int_equal(checkpoint_finish(&r.c, &r.s, &r.e), 0);
    holds(tmp_path("q"), "checkpoint-7 mm_projector");
    holds(tmp_path("q/mm_projector"), "checkpoint-7.bin");
    holds(tmp_path("q/checkpoint-7"), "config.json trainer_state.json loss.svg");
    run_end(&r);
}

enum { PARAMS = 2000 };
struct params { struct param *at[PARAMS]; int n; };

static int add_param(void *ctx, const struct bind_row *r, struct err *e)
{
    struct params *p = ctx;
    (void)e;
    assert_true(p->n < PARAMS);
    p->at[p->n++] = r->param;
    return 0;
}

/* Every parameter of m is what the folder holds, in f32. */
static void equal_model(struct llava_model *m, const char *path, const char *base)
{
    static struct params a, b;
    struct llava_model got;
    struct err e;
    struct llava_source src = { .path = path, .base = base, .dtype = DT_F32 };
    a.n = b.n = 0;
    if (llava_model_open(&got, &src, &e) < 0) fail_msg("%s", e.msg);
    llava_each(m, add_param, &a, &e);
    llava_each(&got, add_param, &b, &e);
    assert_int_equal(a.n, b.n);
    for (int i = 0; i < a.n; i++) {
        struct tensor x = a.at[i]->w, y = b.at[i]->w;
        int64_t n = tensor_count(x);
        assert_int_equal(!x.p, !y.p);
        if (!x.p) continue;
        assert_int_equal(n, tensor_count(y));
        float *u = malloc((size_t)n * 4), *v = malloc((size_t)n * 4);
        dtype_convert(u, DT_F32, x.p, (enum dtype)x.type, n);
        dtype_convert(v, DT_F32, y.p, (enum dtype)y.type, n);
        assert_memory_equal(u, v, (size_t)n * 4);
        free(u);
        free(v);
    }
    llava_model_close(&got);
}

static void full(void **state)
{
    (void)state;
    struct run r;
    run_begin(&r, MODELS "llava-self-trained", TRAIN_FULL, tmp_path("f"));
    r.c.config = json_pack("{s:b}", "unfreeze_mm_vision_tower", 1);
    save(&r);
    holds(tmp_path("f/checkpoint-4"), OURS TOKENS "config.json model.safetensors vision_tower");
    equal_model(&r.m, tmp_path("f/checkpoint-4"), NULL);
    assert_int_equal(checkpoint_finish(&r.c, &r.s, &r.e), 0);
    assert_int_equal(checkpoint_finish(&r.c, &r.s, &r.e), 0); /* over an older one */
    equal_model(&r.m, tmp_path("f"), NULL);
    struct weights *w;
    assert_int_equal(weights_open(&w, tmp_path("f/model.safetensors"), &r.e), 0);
    assert_non_null(weights_find(w, "model.vision_tower.vision_tower.vision_model.embeddings.class_embedding"));
    assert_non_null(weights_find(w, "lm_head.weight"));
    weights_close(w);
    json_decref((json_t *)r.c.config);
    run_end(&r);
}

/* Adapters on two linears of each layer, with numbers in them. */
static void add_adapters(struct llava_model *m, struct lora *l, float *mem)
{
    for (int i = 0; i < m->llama.cfg.L; i++) {
        struct linear *on[] = { &m->llama.layer[i].q, &m->llama.layer[i].down };
        for (int k = 0; k < 2; k++, l++) {
            int64_t O = on[k]->w.w.n[0], I = on[k]->w.w.n[1];
            l->a.w = tensor_2d(mem, DT_F32, 2, I);
            for (int64_t j = 0; j < 2 * I; j++) *mem++ = (float)(j % 7) / 64 - 0.05f;
            l->b.w = tensor_2d(mem, DT_F32, O, 2);
            for (int64_t j = 0; j < 2 * O; j++) *mem++ = (float)(j % 5) / 32 - 0.05f;
            l->a.flags = l->b.flags = PARAM_TRAIN;
            l->scale = 2;
            on[k]->lora = l;
        }
    }
}

static void adapter(void **state)
{
    (void)state;
    struct run r;
    static struct lora l[64];
    static float mem[1 << 18];
    run_begin(&r, MODELS "llava-self-trained", TRAIN_LORA, tmp_path("l"));
    add_adapters(&r.m, l, mem);
    save(&r);
    holds(tmp_path("l/checkpoint-4"),
          OURS TOKENS "config.json adapter_config.json adapter_model.safetensors non_lora_trainables.bin");
    struct weights *w;
    assert_int_equal(weights_open(&w, tmp_path("l/checkpoint-4/non_lora_trainables.bin"), &r.e), 0);
    assert_int_equal(weights_count(w), 4);
    assert_non_null(weights_find(w, "base_model.model.model.mm_projector.0.weight"));
    weights_close(w);
    assert_int_equal(weights_open(&w, tmp_path("l/checkpoint-4/adapter_model.safetensors"), &r.e), 0);
    assert_int_equal(weights_count(w), 4 * (size_t)r.m.llama.cfg.L);
    assert_non_null(weights_find(w, "base_model.model.model.layers.0.mlp.down_proj.lora_B.weight"));
    weights_close(w);
    json_t *o;
    assert_int_equal(json_file_load(&o, tmp_path("l/checkpoint-4/adapter_config.json"), &r.e), 0);
    assert_int_equal(json_integer_value(json_object_get(o, "lora_alpha")), 4);
    assert_int_equal(json_array_size(json_object_get(o, "target_modules")), 2);
    json_decref(o);
    /* opened upon its base: the sum of both */
    struct llava_model got;
    struct llava_source src = {
        .path = tmp_path("l/checkpoint-4"), .base = MODELS "llava-self-trained", .dtype = DT_F32
    };
    if (llava_model_open(&got, &src, &r.e) < 0) fail_msg("%s", r.e.msg);
    const struct linear *was = &r.m.llama.layer[1].down, *is = &got.llama.layer[1].down;
    const float *a = was->lora->a.w.p, *b = was->lora->b.w.p, *sum = is->w.w.p;
    int64_t O = was->w.w.n[0], I = was->w.w.n[1];
    float *plain = malloc((size_t)(O * I) * 4);
    dtype_convert(plain, DT_F32, was->w.w.p, (enum dtype)was->w.w.type, O * I);
    for (int64_t i = 0; i < O; i++)
        for (int64_t j = 0; j < I; j++) {
            float want = plain[i * I + j] + 2 * (b[2 * i] * a[j] + b[2 * i + 1] * a[I + j]);
            assert_true(fabsf(sum[i * I + j] - want) < 1e-6f);
        }
    free(plain);
    llava_model_close(&got);
    run_end(&r);
}

static void resume(void **state)
{
    (void)state;
    struct run r, g;
    run_begin(&r, MODELS "llava-self-trained", TRAIN_PROJECTOR, tmp_path("r"));
    r.s.tokens = 77;
    save(&r);
    run_begin(&g, MODELS "llava-self-trained", TRAIN_PROJECTOR, tmp_path("r"));
    memset(g.w, 0, sizeof g.w);
    memset(g.moment, 0, sizeof g.moment);
    char *dir;
    assert_int_equal(checkpoint_find(&dir, g.c.output_dir, NULL, &g.e), 0);
    if (checkpoint_load(&g.c, dir, &g.s, &g.e) < 0) fail_msg("%s", g.e.msg);
    assert_memory_equal(r.w, g.w, sizeof g.w);
    assert_memory_equal(r.moment, g.moment, sizeof g.moment);
    assert_int_equal(g.s.tokens, 77);
    assert_true(g.s.loss_sum == r.s.loss_sum && json_equal(g.s.history, r.s.history));
    free(dir);
    run_end(&r);
    run_end(&g);
}

static void refused(struct run *r, const char *what)
{
    float w[A];
    memcpy(w, r->w, sizeof w);
    int64_t step = r->s.step = 1000;
    assert_true(checkpoint_load(&r->c, tmp_path("x/checkpoint-4"), &r->s, &r->e) < 0);
    assert_contains(r->e.msg, what);
    assert_contains(r->e.msg, "x/checkpoint-4'");
    assert_null(strchr(r->e.msg, '\n'));
    assert_memory_equal(w, r->w, sizeof w); /* nothing was touched */
    assert_int_equal(r->s.step, step);
}

static void refusals(void **state)
{
    (void)state;
    struct run r;
    run_begin(&r, MODELS "llava-self-trained", TRAIN_PROJECTOR, tmp_path("x"));
    save(&r);
    json_object_set_new(r.same, "data", json_string("other"));
    refused(&r, "data is \"abc\" there and \"other\" here");
    json_object_set_new(r.same, "data", json_string("abc"));
    json_object_set_new(r.same, "world size", json_integer(2));
    refused(&r, "world size is 1 there and 2 here");
    json_object_set_new(r.same, "world size", json_integer(1));
    json_object_set_new(r.same, "more", json_integer(1));
    refused(&r, "more is not said there and 1 here");
    json_object_del(r.same, "more");
    r.c.kind = TRAIN_FULL;
    refused(&r, "kind of training");
    r.c.kind = TRAIN_PROJECTOR;
    r.tensors[0].t.n[0] = 1;
    refused(&r, "'w' is [2, 3] there and [1, 3] here");
    r.tensors[0].t.n[0] = 2;
    r.tensors[1].name = "moment2/w";
    refused(&r, "no tensor 'moment2/w'");
    r.tensors[1].name = "moment1/w";
    r.c.n_state = 1;
    refused(&r, "2 tensors");
    r.c.n_state = 2;

    /* half of one */
    assert_int_equal(truncate(tmp_path("x/checkpoint-4/resume.safetensors"), 60), 0);
    refused(&r, "resume.safetensors");
    tmp_text("x/checkpoint-4/trainer_state.json", "{\"log_history\": [");
    refused(&r, "trainer_state.json");
    tmp_text("x/checkpoint-4/resume.json", "{\"format\": 2}");
    refused(&r, "format 2");
    tmp_text("x/checkpoint-4/resume.json", "[]");
    refused(&r, "resume.json");
    unlink(tmp_path("x/checkpoint-4/resume.json"));
    refused(&r, "no 'resume.json'");
    run_end(&r);
}

static void finds(void **state)
{
    (void)state;
    struct run r;
    run_begin(&r, MODELS "llava-self-trained", TRAIN_PROJECTOR, tmp_path("n"));
    assert_int_equal(find(&r, NULL, NULL), 0);
    assert_int_equal(find(&r, "True", NULL), ERR_MISSING);
    mkdir(tmp_path("n"), 0777);
    assert_int_equal(find(&r, NULL, NULL), 0);
    static const char *const dirs[] = { "n/checkpoint-9", "n/checkpoint-10", "n/checkpoint-", "n/checkpoint-99x",
                                        "n/checkpoint-11.writing", "n/xcheckpoint-50",
                                        "n/checkpoint-99999999999999999999" };
    for (size_t i = 0; i < sizeof dirs / sizeof *dirs; i++) mkdir(tmp_path(dirs[i]), 0777);
    tmp_text("n/checkpoint-60", "a file");
    assert_int_equal(find(&r, NULL, "n/checkpoint-10"), 0);
    assert_int_equal(find(&r, "true", "n/checkpoint-10"), 0);
    assert_int_equal(find(&r, "False", NULL), 0);
    assert_int_equal(find(&r, tmp_path("n/checkpoint-9"), "n/checkpoint-9"), 0);
    assert_int_equal(find(&r, tmp_path("n/none"), NULL), ERR_MISSING);
    assert_int_equal(find(&r, tmp_path("n/checkpoint-60"), NULL), ERR_USAGE);
    run_end(&r);
}

static void rotates(void **state)
{
    (void)state;
    struct run r;
    run_begin(&r, MODELS "llava-self-trained", TRAIN_PROJECTOR, tmp_path("o"));
    for (r.s.step = 1; r.s.step <= 3; r.s.step++) save(&r);
    holds(tmp_path("o"), "checkpoint-1 checkpoint-2 checkpoint-3");
    r.c.total_limit = 2;
    r.s.step = 12;
    save(&r);
    holds(tmp_path("o"), "checkpoint-3 checkpoint-12");
    r.c.total_limit = 1;
    r.s.step = 5; /* resumed at an earlier one: what was just written stays */
    r.s.tokens = 5;
    save(&r);
    holds(tmp_path("o"), "checkpoint-5");
    r.s.tokens = 6; /* again: replaced */
    save(&r);
    r.s.tokens = 0;
    assert_int_equal(checkpoint_load(&r.c, tmp_path("o/checkpoint-5"), &r.s, &r.e), 0);
    assert_int_equal(r.s.tokens, 6);
    run_end(&r);
}

static void claims(void **state)
{
    (void)state;
    struct err e;
    int lock, second;
    static const char *const dirs[] = {
        "c", "c/checkpoint-1", "c/checkpoint-2.writing", "c/checkpoint-2.writing.saving", "c/checkpoint-3.removing",
        "c/checkpoint-4.old", "c/checkpoint-1.old", "c/checkpoint-x.old", "c/mine.writing"
    };
    for (size_t i = 0; i < sizeof dirs / sizeof *dirs; i++) mkdir(tmp_path(dirs[i]), 0777);
    tmp_text("c/checkpoint-2.writing/a", "1");
    log_set_level(LOG_QUIET);
    assert_int_equal(checkpoint_claim(&lock, tmp_path("c"), &e), 0);
    holds(tmp_path("c"), "checkpoint-1 checkpoint-4 checkpoint-x.old mine.writing");
    assert_int_equal(checkpoint_claim(&second, tmp_path("c"), &e), ERR_USAGE);
    assert_contains(e.msg, "another run");
    close(lock);
    assert_int_equal(checkpoint_claim(&lock, tmp_path("c"), &e), 0);
    close(lock);
    assert_true(checkpoint_claim(&lock, "/dev/null/x", &e) < 0);
}

/* Files that may not grow past 100 kB, as on a disk that is full. */
static void full_disk(void **state)
{
    (void)state;
    struct run r;
    run_begin(&r, MODELS "llava-self-trained", TRAIN_PROJECTOR, tmp_path("d"));
    r.c.total_limit = 1;
    save(&r);
    struct rlimit was, small;
    getrlimit(RLIMIT_FSIZE, &was);
    small = was;
    small.rlim_cur = 300;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    r.s.step = 5;
    int other = checkpoint_save(&r.c, &r.s, &r.e);
    char msg[1000];
    snprintf(msg, sizeof msg, "%s", r.e.msg);
    r.s.step = 4;
    int again = checkpoint_save(&r.c, &r.s, &r.e);
    setrlimit(RLIMIT_FSIZE, &was);
    assert_int_equal(other, ERR_IO);
    assert_contains(msg, "checkpoint-5");
    assert_int_equal(again, ERR_IO);
    holds(tmp_path("d"), "checkpoint-4");
    r.s.step = 0;
    assert_int_equal(checkpoint_load(&r.c, tmp_path("d/checkpoint-4"), &r.s, &r.e), 0);
    assert_int_equal(r.s.step, 4);

    r.tensors[1].t = tensor_1d(r.moment, DT_F32, (int64_t)1 << 50); /* found before anything is written */
    r.s.step = 6;
    assert_int_equal(checkpoint_save(&r.c, &r.s, &r.e), ERR_IO);
    assert_contains(r.e.msg, "free");
    holds(tmp_path("d"), "checkpoint-4");
    run_end(&r);
}

/* A plain model that got a tower says so; a temperature without sampling does not reach transformers. */
static void configs(void **state)
{
    (void)state;
    struct run r;
    json_t *o;
    run_begin(&r, MODELS "llava-self-trained", TRAIN_FULL, tmp_path("g"));
    tmp_text("vicuna/config.json",
             "{\"model_type\": \"llama\", \"architectures\": [\"LlamaForCausalLM\"], \"kept\": 1}");
    tmp_text("vicuna/generation_config.json", "{\"temperature\": 0.9, \"top_p\": 0.6, \"max_length\": 4096}");
    snprintf(r.model, sizeof r.model, "%s", tmp_path("vicuna"));
    tmp_text("vicuna/tokenizer_config.json", "{\"model_max_length\": 1000000000000000019884624838656, "
                                             "\"added_tokens_decoder\": {\"1\": {\"content\": \"<s>\"}}}");
    json_t *tokens = json_pack("{s:i,s:i}", "<im_start>", 320, "<im_end>", 321);
    r.c.tokens = tokens;
    assert_int_equal(checkpoint_finish(&r.c, &r.s, &r.e), 0);
    assert_int_equal(json_file_load(&o, tmp_path("g/config.json"), &r.e), 0);
    assert_string_equal(json_string_value(json_object_get(o, "model_type")), "llava_llama");
    assert_int_equal(json_integer_value(json_object_get(o, "kept")), 1);
    json_decref(o);
    assert_int_equal(json_file_load(&o, tmp_path("g/generation_config.json"), &r.e), 0);
    assert_true(json_is_true(json_object_get(o, "do_sample")));
    assert_int_equal(json_integer_value(json_object_get(o, "max_length")), 4096);
    json_decref(o);
    assert_int_equal(json_file_load(&o, tmp_path("g/added_tokens.json"), &r.e), 0);
    assert_true(json_equal(o, tokens));
    json_decref(o);
    assert_int_equal(json_file_load_wide(&o, tmp_path("g/tokenizer_config.json"), &r.e), 0);
    json_t *decoder = json_object_get(o, "added_tokens_decoder"), *end = json_object_get(decoder, "321");
    assert_int_equal(json_object_size(decoder), 3);
    assert_string_equal(json_string_value(json_object_get(end, "content")), "<im_end>");
    assert_true(json_number_value(json_object_get(o, "model_max_length")) > 9e29);
    json_decref(o);
    json_decref(tokens);
    run_end(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(projector), cmocka_unit_test(full),    cmocka_unit_test(adapter), cmocka_unit_test(resume),
        cmocka_unit_test(refusals),  cmocka_unit_test(finds),   cmocka_unit_test(rotates), cmocka_unit_test(claims),
        cmocka_unit_test(full_disk), cmocka_unit_test(configs),
    };
    log_set_level(LOG_QUIET);
    return cmocka_run_group_tests(tests, tmp_begin, tmp_end);
}
