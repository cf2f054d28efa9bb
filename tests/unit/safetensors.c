/* file/safetensors: what it reads, what it refuses and with which words, and that what it writes is read
 * back. */
#include "help/tmp.h"

#include "base/map.h"
#include "file/safetensors.h"

/* A file of this header and n zero bytes of data, at a given misalignment. Returns its length; *p is to
 * free(). */
static size_t make(char **p, char **base, const char *head, size_t n, size_t shift)
{
    size_t k = strlen(head), total = 8 + k + n;
    *base = calloc(1, total + 64);
    *p = *base + shift;
    for (int i = 0; i < 8; i++) (*p)[i] = (char)(k >> (8 * i));
    memcpy(*p + 8, head, k);
    return total;
}

/* The rows must not be read afterwards, only their shapes. */
static int parse(struct weight_list *l, const char *head, size_t n, struct err *e)
{
    char *p, *base;
    size_t total = make(&p, &base, head, n, 0);
    int rc = safetensors_parse(l, p, total, "x.safetensors", e);
    free(base);
    return rc;
}

#define ENTRY(type, shape, span) "{\"dtype\":\"" type "\",\"shape\":" shape ",\"data_offsets\":" span "}"

static void refuses(void **state)
{
    (void)state;
    static const struct {
        const char *head;
        size_t n;
        int code;
        const char *says;
    } rows[] = {
        { "", 0, ERR_FORMAT, "cannot parse 'x.safetensors': line 1" },
        { "[]", 0, ERR_FORMAT, "not a JSON object" },
        { "{\"a\":1}", 0, ERR_FORMAT, "tensor 'a'" },
        { "{\"a\":{}}", 0, ERR_FORMAT, "'dtype' is missing" },
        { "{\"a\":" ENTRY("F32", "[1]", "[0,4]") ",\"a\":" ENTRY("F32", "[1]", "[0,4]") "}", 4, ERR_FORMAT,
          "uplicate" },
        { "{\"a\":" ENTRY("F8_E4M3", "[4]", "[0,4]") "}", 4, ERR_UNSUPPORTED,
          "tensor 'a' has type 'F8_E4M3'" },
        { "{\"a\":" ENTRY("f32", "[1]", "[0,4]") "}", 4, ERR_UNSUPPORTED, "'f32'" },
        { "{\"a\":" ENTRY("F32", "[1,1,1,1,1]", "[0,4]") "}", 4, ERR_UNSUPPORTED, "5 dimensions" },
        { "{\"a\":" ENTRY("F32", "1", "[0,4]") "}", 4, ERR_FORMAT, "'shape'" },
        { "{\"a\":" ENTRY("F32", "[-1]", "[0,4]") "}", 4, ERR_FORMAT, "'shape'" },
        { "{\"a\":" ENTRY("F32", "[1.0]", "[0,4]") "}", 4, ERR_FORMAT, "'shape'" },
        { "{\"a\":" ENTRY("F32", "[4294967296,4294967296]", "[0,0]") "}", 0, ERR_FORMAT,
          "larger than any file" },
        { "{\"a\":" ENTRY("F32", "[4611686018427387904,4]", "[0,0]") "}", 0, ERR_FORMAT,
          "larger than any file" },
        { "{\"a\":" ENTRY("F32", "[1]", "[0,8]") "}", 8, ERR_FORMAT, "has 8 bytes, [1] of F32 wants 4" },
        { "{\"a\":" ENTRY("F32", "[1]", "[0]") "}", 4, ERR_FORMAT, "not a pair" },
        { "{\"a\":" ENTRY("F32", "[1]", "[0,4,8]") "}", 4, ERR_FORMAT, "not a pair" },
        { "{\"a\":" ENTRY("F32", "[1]", "[4,0]") "}", 4, ERR_FORMAT, "backwards" },
        { "{\"a\":" ENTRY("F32", "[1]", "[-4,0]") "}", 4, ERR_FORMAT, "backwards" },
        { "{\"a\":" ENTRY("F32", "[2]", "[0,8]") "}", 4, ERR_FORMAT, "truncated" },
        { "{\"a\":" ENTRY("F32", "[1]", "[4,8]") "}", 8, ERR_FORMAT, "hole" },
        { "{\"a\":" ENTRY("F32", "[1]", "[0,4]") "}", 8, ERR_FORMAT, "4 bytes at the end" },
        { "{\"a\":" ENTRY("F32", "[2]", "[0,8]") ",\"b\":" ENTRY("F32", "[1]", "[4,8]") "}", 8, ERR_FORMAT,
          "tensors 'a' and 'b' overlap" },
        { "{\"__metadata__\":{\"a\":1}}", 0, ERR_FORMAT, "__metadata__" },
        { "{\"__metadata__\":[]}", 0, ERR_FORMAT, "__metadata__" },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct weight_list l = { 0 };
        struct err e = { 0 };
        assert_int_equal(parse(&l, rows[i].head, rows[i].n, &e), rows[i].code);
        assert_contains(e.msg, rows[i].says);
        assert_contains(e.msg, "x.safetensors");
        weight_list_fini(&l);
    }
}

static void refuses_short(void **state)
{
    (void)state;
    struct weight_list l = { 0 };
    struct err e;
    char *p, *base;
    size_t n = make(&p, &base, "{\"a\":" ENTRY("F32", "[3]", "[0,12]") "}", 12, 0);
    for (size_t k = 0; k < n;
         k++) /* every prefix is refused; the copy has the exact size for the sanitizer */
    {
        char *cut = malloc(k + 1);
        memcpy(cut, p, k);
        assert_int_equal(safetensors_parse(&l, cut, k, "x", &e), ERR_FORMAT);
        free(cut);
    }
    memset(p, 0xff, 8);
    assert_int_equal(safetensors_parse(&l, p, n, "x", &e), ERR_FORMAT);
    assert_contains(e.msg, "not a safetensors file");
    weight_list_fini(&l);
    free(base);
}

static void reads(void **state)
{
    (void)state;
    struct weight_list l = { 0 };
    struct err e;
    assert_int_equal(
        parse(&l,
              "{\"__metadata__\":{\"format\":\"pt\"},\"b\":" ENTRY("F16", "[2,3]", "[4,16]") ",\"a\":" ENTRY(
                  "F32", "[]", "[0,4]") ",\"z\":" ENTRY("I64", "[0,5]", "[16,16]") "}   ",
              16, &e),
        0);
    assert_int_equal(l.n, 3);
    assert_string_equal(l.at[0].name, "b");
    assert_int_equal(l.at[0].t.type, DT_F16);
    assert_int_equal(l.at[0].t.nd, 2);
    assert_int_equal(l.at[0].t.n[1], 3);
    assert_int_equal(l.at[1].t.nd, 1);
    assert_int_equal(l.at[1].t.n[0], 1);
    assert_int_equal(tensor_count(l.at[2].t), 0);
    weight_list_fini(&l);
}

/* Data that is not aligned for its type is copied, aligned. */
static void misaligned(void **state)
{
    (void)state;
    for (size_t shift = 0; shift < 8; shift++) {
        struct weight_list l = { 0 };
        struct err e;
        char *p, *base;
        const char *head = "{\"a\":" ENTRY("U8", "[1]", "[0,1]") ",\"b\":" ENTRY("F64", "[2]", "[1,17]") "}";
        size_t n = make(&p, &base, head, 17, shift);
        double v[2] = { 1.5, -2.5 };
        memcpy(p + n - 16, v, 16);
        assert_int_equal(safetensors_parse(&l, p, n, "x", &e), 0);
        assert_int_equal((uintptr_t)l.at[1].t.p % 8, 0);
        assert_memory_equal(l.at[1].t.p, v, 16);
        weight_list_fini(&l);
        free(base);
    }
}

static int fetch(const void **ret, void *ctx, const struct weight *w, struct err *e)
{
    static char bytes[64];
    if (!strcmp(w->name, ctx)) return err_set(e, ERR_UNSUPPORTED, "no");
    memset(bytes, w->name[0], sizeof bytes);
    *ret = bytes;
    return 0;
}

static void writes(void **state)
{
    (void)state;
    static const char *const meta[] = { "format", "pt", NULL };
    unsigned char u[3] = { 1, 2, 3 };
    float f[6] = { 1, 2, 3, 4, 5, 6 };
    uint16_t h[2] = { 0x3c00, 0x4000 };
    struct weight w[] = { { "u \"quoted\" \xc3\xa9", tensor_1d(u, DT_U8, 3), NULL },
                          { "f", tensor_2d(f, DT_F32, 2, 3), NULL },
                          { "h", tensor_1d(h, DT_BF16, 2), NULL } };
    struct weight_list l = { 0 };
    struct map m;
    struct err e;
    char *path = tmp_path("w.safetensors");
    assert_int_equal(safetensors_write(path, w, 3, meta, NULL, NULL, &e), 0);
    assert_int_equal(map_open(&m, path, &e), 0);
    assert_int_equal((8 + m.p[0] + 256 * m.p[1]) % 8, 0);
    assert_int_equal(safetensors_parse(&l, m.p, m.n, path, &e), 0);
    assert_int_equal(l.n, 3);
    assert_string_equal(l.at[0].name, "f"); /* wider types first */
    assert_memory_equal(l.at[0].t.p, f, sizeof f);
    assert_memory_equal(l.at[1].t.p, h, sizeof h);
    assert_string_equal(l.at[2].name, w[0].name);
    assert_memory_equal(l.at[2].t.p, u, sizeof u);
    weight_list_fini(&l);
    map_close(&m);
    assert_int_equal(safetensors_write(path, w, 3, NULL, fetch, "x", &e), 0);
    assert_int_equal(map_open(&m, path, &e), 0);
    assert_int_equal(m.p[m.n - 1], 'u');
    map_close(&m);
}

/* A failed write leaves the old file and no other. */
static void writes_whole(void **state)
{
    (void)state;
    float f[2] = { 1, 2 };
    struct weight w[] = { { "a", tensor_1d(f, DT_F32, 2), NULL }, { "b", tensor_1d(f, DT_F32, 2), NULL } };
    struct err e;
    struct stat st;
    char *path = tmp_text("old.safetensors", "old");
    assert_int_equal(safetensors_write(path, w, 2, NULL, fetch, "b", &e), ERR_UNSUPPORTED);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_size, 3);
    assert_int_equal(stat(tmp_path("old.safetensors.tmp"), &st), -1);
    w[1].name = "a";
    assert_int_equal(safetensors_write(path, w, 2, NULL, NULL, NULL, &e), ERR_USAGE);
    w[1].name = "\xff";
    assert_int_equal(safetensors_write(path, w, 2, NULL, NULL, NULL, &e), ERR_USAGE);
    assert_int_equal(safetensors_write(tmp_path("no/x"), w, 1, NULL, NULL, NULL, &e), ERR_MISSING);
    assert_contains(e.msg, "no/x");
    assert_int_equal(safetensors_write("/dev/full/x", w, 1, NULL, NULL, NULL, &e), ERR_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refuses),    cmocka_unit_test(refuses_short), cmocka_unit_test(reads),
        cmocka_unit_test(misaligned), cmocka_unit_test(writes),        cmocka_unit_test(writes_whole),
    };
    return cmocka_run_group_tests_name("safetensors", tests, tmp_begin, tmp_end);
}
