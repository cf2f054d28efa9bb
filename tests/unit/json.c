/* file/json: positions in errors, duplicates, getters and their type errors, saving. */
#include "help/tmp.h"

#include "file/json.h"

static void loads(void **state)
{
    (void)state;
    struct err e;
    json_t *v = NULL;
    assert_int_equal(json_file_load(&v, tmp_text("a.json", "{\"x\": 1}"), &e), 0);
    assert_int_equal(json_integer_value(json_object_get(v, "x")), 1);
    json_decref(v);
    assert_int_equal(json_file_load(&v, tmp_text("b.json", "{\n \"x\": 1,\n \"y\" 2}"), &e), ERR_FORMAT);
    assert_contains(e.msg, "b.json': line 3 column ");
    assert_int_equal(json_file_load(&v, tmp_text("c.json", "{\"x\": 1, \"x\": 2}"), &e), ERR_FORMAT);
    assert_int_equal(json_file_load(&v, tmp_text("d.json", ""), &e), ERR_FORMAT);
    assert_int_equal(json_file_load(&v, tmp_path("none.json"), &e), ERR_MISSING);
    assert_contains(e.msg, "none.json");
}

static void gets(void **state)
{
    (void)state;
    struct err e;
    json_t *v, *sub = NULL;
    const char *text = "{\"i\":7,\"r\":1.5,\"b\":true,\"s\":\"hi\",\"o\":{},\"a\":[1],\"n\":null}";
    assert_int_equal(json_text_load(&v, text, strlen(text), "t", &e), 0);
    int64_t i = 3;
    double r = 0;
    bool b = false;
    const char *s = NULL;
    assert_int_equal(json_get_int(v, "i", &i, &e), 1);
    assert_int_equal(i, 7);
    assert_int_equal(json_get_int(v, "none", &i, &e), 0);
    assert_int_equal(json_get_int(v, "n", &i, &e), 0);
    assert_int_equal(i, 7);
    assert_int_equal(json_get_int(v, "r", &i, &e), ERR_FORMAT);
    assert_string_equal(e.msg, "'r' is a number, want an integer");
    assert_int_equal(json_get_real(v, "i", &r, &e), 1);
    assert_true(r == 7);
    assert_int_equal(json_get_real(v, "s", &r, &e), ERR_FORMAT);
    assert_int_equal(json_get_bool(v, "b", &b, &e), 1);
    assert_true(b);
    assert_int_equal(json_get_bool(v, "i", &b, &e), ERR_FORMAT);
    assert_int_equal(json_get_str(v, "s", &s, &e), 1);
    assert_string_equal(s, "hi");
    assert_int_equal(json_get_str(v, "b", &s, &e), ERR_FORMAT);
    assert_string_equal(e.msg, "'b' is true, want a string");
    assert_int_equal(json_get_object(v, "o", &sub, &e), 1);
    assert_int_equal(json_get_object(v, "a", &sub, &e), ERR_FORMAT);
    assert_int_equal(json_get_array(v, "a", &sub, &e), 1);
    assert_int_equal(json_get_array(v, "o", &sub, &e), ERR_FORMAT);
    assert_int_equal(json_get_int(json_object_get(v, "a"), "i", &i, &e), ERR_FORMAT);
    json_decref(v);
}

static void saves(void **state)
{
    (void)state;
    struct err e;
    json_t *v = json_pack("{s:i, s:f}", "width", 4096, "eps", 1e-5), *back = NULL;
    assert_int_equal(json_file_save(tmp_path("s.json"), v, &e), 0);
    assert_int_equal(json_file_load(&back, tmp_path("s.json"), &e), 0);
    assert_true(json_equal(v, back));
    assert_int_equal(json_file_save(tmp_path("no/such/s.json"), v, &e), ERR_MISSING);
    assert_contains(e.msg, "no/such/s.json");
    json_decref(v);
    json_decref(back);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(loads), cmocka_unit_test(gets),
                                        cmocka_unit_test(saves) };
    return cmocka_run_group_tests_name("json", tests, tmp_begin, tmp_end);
}
