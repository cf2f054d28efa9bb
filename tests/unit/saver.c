/* file/saver: shards and their index, side files, all or nothing, and that an older save leaves nothing
 * behind. */
#include "help/tmp.h"

#include "file/json.h"
#include "file/saver.h"
#include "file/weights.h"

static float data[10] = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 };

/* Tensors "t0".. of 4, 8, 12, 16 bytes. */
static struct weight *four(void)
{
    static struct weight w[4];
    static const char *const names[] = { "t0", "t1", "t2", "t3" };
    for (int i = 0; i < 4; i++) w[i] = (struct weight){ names[i], tensor_1d(data + i, DT_F32, i + 1), NULL };
    return w;
}

static bool there(const char *name) { return access(tmp_path(name), F_OK) == 0; }

static void save(const char *dir, size_t shard_bytes)
{
    struct saver *s;
    struct err e;
    assert_int_equal(saver_open(&s, tmp_path(dir), &e), 0);
    assert_int_equal(saver_weights(s, four(), 4, shard_bytes, NULL, NULL, &e), 0);
    assert_int_equal(saver_bytes(s, "config.json", "{}", 2, &e), 0);
    assert_int_equal(saver_commit(s, &e), 0);
    saver_close(s);
}

static void check(const char *dir)
{
    struct weights *w;
    struct err e;
    if (weights_open(&w, tmp_path(dir), &e) < 0) fail_msg("%s", e.msg);
    assert_int_equal(weights_count(w), 4);
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(weights_at(w, i)->t.n[0], i + 1);
        assert_memory_equal(weights_at(w, i)->t.p, data + i, 4 * (i + 1));
    }
    weights_close(w);
}

static void saves_one(void **state)
{
    (void)state;
    save("a/b/one", 0);
    check("a/b/one");
    assert_true(there("a/b/one/model.safetensors") && there("a/b/one/config.json"));
    assert_false(there("a/b/one/model.safetensors.index.json") || there("a/b/one.saving"));
}

static void saves_shards(void **state)
{
    (void)state;
    json_t *index;
    struct err e;
    int64_t total = 0;
    save("shards/", 20); /* t0 t1 = 12 | t2 = 12 | t3 = 16 */
    check("shards");
    assert_true(there("shards/model-00001-of-00003.safetensors") &&
                there("shards/model-00003-of-00003.safetensors"));
    assert_int_equal(json_file_load(&index, tmp_path("shards/model.safetensors.index.json"), &e), 0);
    assert_int_equal(json_get_int(json_object_get(index, "metadata"), "total_size", &total, &e), 1);
    assert_int_equal(total, 40);
    assert_string_equal(json_string_value(json_object_get(json_object_get(index, "weight_map"), "t1")),
                        "model-00001-of-00003.safetensors");
    json_decref(index);
    save("exact", 12); /* limits that are met exactly, and a tensor larger than the limit */
    check("exact");
    assert_true(there("exact/model-00003-of-00003.safetensors"));
    save("each", 1);
    check("each");
    assert_true(there("each/model-00004-of-00004.safetensors"));
}

/* Into a folder that exists: other layouts of weights go, other files stay. */
static void saves_again(void **state)
{
    (void)state;
    save("again", 20);
    tmp_text("again/notes.txt", "mine");
    save("again", 0);
    check("again");
    assert_false(there("again/model.safetensors.index.json") ||
                 there("again/model-00001-of-00003.safetensors") || there("again/.saving"));
    save("again", 30);
    check("again");
    assert_false(there("again/model.safetensors"));
    assert_true(there("again/model-00001-of-00002.safetensors") && there("again/notes.txt"));
}

static void drops(void **state)
{
    (void)state;
    struct saver *s;
    struct err e;
    tmp_text("old/model.safetensors", "old");
    assert_int_equal(saver_open(&s, tmp_path("old"), &e), 0);
    assert_int_equal(saver_weights(s, four(), 4, 0, NULL, NULL, &e), 0);
    saver_close(s);
    assert_false(there("old/.saving"));
    assert_true(there("old/model.safetensors"));
    assert_int_equal(saver_open(&s, tmp_path("new"), &e), 0);
    saver_close(s);
    assert_false(there("new") || there("new.saving"));
    saver_close(NULL);
    tmp_text("file", "x");
    assert_int_equal(saver_open(&s, tmp_path("file"), &e), ERR_IO);
    assert_contains(e.msg, "not a folder");
    assert_int_equal(saver_open(&s, "/dev/null/x", &e), ERR_IO);
    tmp_text("killed.saving/model.safetensors",
             "half"); /* what a killed run leaves does not get into the next */
    assert_int_equal(saver_open(&s, tmp_path("killed"), &e), 0);
    assert_int_equal(saver_bytes(s, "config.json", "{}", 2, &e), 0);
    assert_int_equal(saver_commit(s, &e), 0);
    saver_close(s);
    assert_true(there("killed/config.json"));
    assert_false(there("killed/model.safetensors"));
}

static int fetch(const void **ret, void *ctx, const struct weight *w, struct err *e)
{
    (void)w;
    *ret = data;
    return --*(int *)ctx < 0 ? err_set(e, ERR_UNSUPPORTED, "device lost") : 0;
}

static void saves_more(void **state)
{
    (void)state;
    struct saver *s;
    struct err e;
    json_t *config = json_pack("{s:i}", "hidden_size", 8);
    tmp_text("from/tokenizer.model", "spm");
    tmp_text("from/generation_config.json", "{}");
    tmp_text("from/README.md", "no");
    assert_int_equal(saver_open(&s, tmp_path("more"), &e), 0);
    assert_int_equal(saver_copy_side_files(s, tmp_path("from"), &e), 0);
    assert_int_equal(saver_json(s, "config.json", config, &e), 0);
    assert_int_equal(saver_tensors(s, "mm_projector.bin", four(), 4, NULL, NULL, &e), 0);
    assert_int_equal(saver_tensors(s, "adapter_model.safetensors", four(), 2, NULL, NULL, &e), 0);
    assert_int_equal(saver_commit(s, &e), 0);
    saver_close(s);
    json_decref(config);
    assert_true(there("more/tokenizer.model") && there("more/generation_config.json") &&
                there("more/config.json"));
    assert_false(there("more/README.md") || there("more/tokenizer.json"));
    struct weights *w;
    assert_int_equal(weights_open(&w, tmp_path("more/mm_projector.bin"), &e), 0);
    assert_int_equal(weights_count(w), 4);
    weights_close(w);
}

/* After an error nothing can be committed by mistake. */
static void stops(void **state)
{
    (void)state;
    struct saver *s;
    struct err e;
    int left = 3;
    struct weight twice[] = { four()[0], four()[0] };
    assert_int_equal(saver_open(&s, tmp_path("stops"), &e), 0);
    assert_int_equal(saver_weights(s, four(), 4, 20, fetch, &left, &e), ERR_UNSUPPORTED);
    assert_string_equal(e.msg, "device lost");
    assert_int_equal(saver_commit(s, &e), ERR_USAGE);
    saver_close(s);
    assert_int_equal(saver_open(&s, tmp_path("stops"), &e), 0);
    assert_int_equal(saver_weights(s, twice, 2, 4, NULL, NULL, &e), ERR_USAGE);
    assert_contains(e.msg, "'t0'");
    saver_close(s);
    assert_false(there("stops") || there("stops.saving"));
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(saves_one),   cmocka_unit_test(saves_shards),
                                        cmocka_unit_test(saves_again), cmocka_unit_test(drops),
                                        cmocka_unit_test(saves_more),  cmocka_unit_test(stops) };
    return cmocka_run_group_tests_name("saver", tests, tmp_begin, tmp_end);
}
