/* file/weights: which files of a folder are taken, shards and their index, stacking, and the words for what
 * is wrong. */
#include "help/tmp.h"

#include "file/safetensors.h"
#include "file/torchbin.h"
#include "file/weights.h"

/* A file with one float `value` under each of the names. */
static void put(const char *file, float value, const char *a, const char *b)
{
    struct err e;
    struct weight w[] = { { a, tensor_1d(&value, DT_F32, 1), NULL },
                          { b, tensor_1d(&value, DT_F32, 1), NULL } };
    char *path = tmp_text(file, "");
    int rc = strstr(file, ".safetensors") ? safetensors_write(path, w, b ? 2 : 1, NULL, NULL, NULL, &e)
                                          : torchbin_write(path, w, b ? 2 : 1, NULL, NULL, &e);
    assert_int_equal(rc, 0);
}

static float value(const struct weights *w, const char *name)
{
    const struct weight *x = weights_find(w, name);
    if (!x) fail_msg("no '%s'", name);
    return *(float *)x->t.p;
}

static struct weights *opened(const char *path)
{
    struct weights *w = NULL;
    struct err e;
    if (weights_open(&w, tmp_path(path), &e) < 0) fail_msg("%s", e.msg);
    return w;
}

static void fails(const char *path, int code, const char *says)
{
    struct weights *w = NULL;
    struct err e = { 0 };
    assert_int_equal(weights_open(&w, tmp_path(path), &e), code);
    assert_contains(e.msg, says);
    assert_null(w);
}

/* Each file that is added is preferred to those before. */
static void prefers(void **state)
{
    (void)state;
    static const char index[] = "{\"metadata\":{},\"weight_map\":{\"a\":\"%s\"}}";
    char text[200];
    tmp_text("p/config.json", "{}");
    fails("p", ERR_MISSING, "holds no weights");
    fails("none", ERR_MISSING, "none");
    for (int i = 0; i < 5; i++) {
        if (i == 0) put("p/consolidated.safetensors", 0, "a", NULL);
        if (i == 1) put("p/s1.bin", 1, "a", NULL);
        snprintf(text, sizeof text, index, i == 1 ? "s1.bin" : "s3.safetensors");
        if (i == 1) tmp_text("p/pytorch_model.bin.index.json", text);
        if (i == 2) put("p/pytorch_model.bin", 2, "a", NULL);
        if (i == 3) put("p/s3.safetensors", 3, "a", NULL);
        if (i == 3) tmp_text("p/model.safetensors.index.json", text);
        if (i == 4) put("p/model.safetensors", 4, "a", NULL);
        struct weights *w = opened("p");
        assert_true(value(w, "a") == (float)i);
        assert_int_equal(weights_count(w), 1);
        weights_close(w);
    }
    put("q/x.safetensors", 1, "a", NULL);
    put("q/y.safetensors", 1, "b", NULL);
    fails("q", ERR_FORMAT, "several .safetensors");
}

static void joins_shards(void **state)
{
    (void)state;
    const char *index = "s/model.safetensors.index.json";
    put("s/1.safetensors", 1, "a", "c");
    put("s/2.safetensors", 2, "b", NULL);
    tmp_text(index,
             "{\"weight_map\":{\"a\":\"1.safetensors\",\"b\":\"2.safetensors\",\"c\":\"1.safetensors\"}}");
    struct weights *w = opened("s");
    assert_int_equal(weights_count(w), 3);
    assert_int_equal(weights_bytes(w), 12);
    assert_string_equal(weights_at(w, 0)->name, "a");
    assert_string_equal(weights_at(w, 2)->name, "c");
    assert_true(value(w, "b") == 2 && value(w, "c") == 1);
    assert_contains(weights_find(w, "b")->file, "/s/2.safetensors");
    assert_null(weights_find(w, "d"));
    assert_null(weights_find(w, ""));
    weights_advise(w);
    weights_close(w);

    static const struct {
        const char *text, *says;
        int code;
    } rows[] = {
        { "{}", "has no 'weight_map'", ERR_FORMAT },
        { "{\"weight_map\":{}}", "has no 'weight_map'", ERR_FORMAT },
        { "{\"weight_map\":[]}", "'weight_map' is an array", ERR_FORMAT },
        { "{", "line 1", ERR_FORMAT },
        { "{\"weight_map\":{\"a\":1}}", "the file of 'a' is not a plain file name", ERR_FORMAT },
        { "{\"weight_map\":{\"a\":\"../s/1.safetensors\"}}", "plain file name", ERR_FORMAT },
        { "{\"weight_map\":{\"a\":\"/etc/passwd\"}}", "plain file name", ERR_FORMAT },
        { "{\"weight_map\":{\"a\":\"\"}}", "plain file name", ERR_FORMAT },
        { "{\"weight_map\":{\"a\":\"3.safetensors\"}}",
          "3.safetensors' is missing, 'model.safetensors.index.json' lists", ERR_MISSING },
        { "{\"weight_map\":{\"x\":\"1.safetensors\"}}", "1.safetensors' lacks tensor 'x'", ERR_FORMAT },
        { "{\"weight_map\":{\"a\":\"1.safetensors\",\"c\":\"2.safetensors\"}}",
          "2.safetensors' lacks tensor 'c'", ERR_FORMAT },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        tmp_text(index, rows[i].text);
        fails("s", rows[i].code, rows[i].says);
    }
    put("s/2.safetensors", 2, "b", "a");
    tmp_text(index, "{\"weight_map\":{\"a\":\"1.safetensors\",\"b\":\"2.safetensors\"}}");
    fails("s", ERR_FORMAT, "tensor 'a' is twice in");
}

static void stacks(void **state)
{
    (void)state;
    struct err e;
    put("base.safetensors", 1, "a", "m");
    put("mm_projector.bin", 2, "m", "z");
    struct weights *w = opened("base.safetensors");
    assert_int_equal(weights_add(w, tmp_path("mm_projector.bin"), &e), 0);
    assert_int_equal(weights_count(w), 3);
    assert_true(value(w, "a") == 1 && value(w, "m") == 2 && value(w, "z") == 2);
    assert_int_equal(weights_add(w, tmp_path("none.bin"), &e), ERR_MISSING);
    tmp_text("broken.bin", "xx");
    assert_int_equal(weights_add(w, tmp_path("broken.bin"), &e), ERR_FORMAT);
    assert_int_equal(weights_count(w), 3);
    assert_true(value(w, "a") == 1 && value(w, "m") == 2);
    weights_close(w);
    weights_close(NULL);
}

static void names_the_trouble(void **state)
{
    (void)state;
    tmp_text("lfs/model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n");
    fails("lfs", ERR_FORMAT, "git lfs pull");
    tmp_text("empty.safetensors", "");
    fails("empty.safetensors", ERR_FORMAT, "too short");
    tmp_text("empty.bin", "");
    fails("empty.bin", ERR_FORMAT, "empty.bin' is not a file of torch.save");
    /* a flat dict and a nested one that give the same name */
    put("twice.bin", 1, "a", "a");
    fails("twice.bin", ERR_FORMAT, "tensor 'a' is twice");
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(prefers), cmocka_unit_test(joins_shards),
                                        cmocka_unit_test(stacks), cmocka_unit_test(names_the_trouble) };
    return cmocka_run_group_tests_name("weights", tests, tmp_begin, tmp_end);
}
