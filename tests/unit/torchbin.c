/* file/torchbin, file/zip, file/pickle: files of torch.save are read, ours are opened by torch (both only
 * where Python has torch), and hand-made damage and malice is refused. */
#include "help/tmp.h"

#include "base/buf.h"
#include "base/map.h"
#include "file/pickle.h"
#include "file/torchbin.h"
#include "file/zip.h"

static bool have_torch;

static int begin(void **state)
{
    char cmd[200];
    if (tmp_begin(state) < 0) return -1;
    snprintf(cmd, sizeof cmd, "/usr/bin/python3 tests/help/torch_files.py make %s 2>/dev/null", tmp_dir);
    have_torch = system(cmd) == 0;
    return 0;
}

struct file {
    struct map map;
    struct weight_list list;
};

static int file_open(struct file *f, const char *name, struct err *e)
{
    *f = (struct file){ 0 };
    assert_int_equal(map_open(&f->map, tmp_path(name), e), 0);
    return torchbin_parse(&f->list, f->map.p, f->map.n, name, e);
}

static void file_close(struct file *f)
{
    weight_list_fini(&f->list);
    map_close(&f->map);
}

static struct tensor get(const struct file *f, const char *name)
{
    for (size_t i = 0; i < f->list.n; i++)
        if (!strcmp(f->list.at[i].name, name)) return f->list.at[i].t;
    fail_msg("no tensor '%s'", name);
    return (struct tensor){ 0 };
}

static void floats(const struct file *f, const char *name, int n, const float *want)
{
    struct tensor t = get(f, name);
    assert_int_equal(t.type, DT_F32);
    assert_int_equal(tensor_count(t), n);
    assert_memory_equal(t.p, want, (size_t)n * sizeof *want);
}

static void reads_types(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        enum dtype type;
    } rows[] = { { "float32", DT_F32 }, { "float16", DT_F16 }, { "bfloat16", DT_BF16 }, { "float64", DT_F64 },
                 { "int32", DT_I32 },   { "int64", DT_I64 },   { "uint8", DT_U8 },      { "int8", DT_I8 },
                 { "int16", DT_I16 },   { "bool", DT_BOOL } };
    static const char *const files[] = { "types.bin", "proto4.bin" };
    if (!have_torch) skip();
    for (int k = 0; k < 2; k++) {
        struct file f;
        struct err e;
        assert_int_equal(file_open(&f, files[k], &e), 0);
        assert_int_equal(f.list.n, 10);
        for (size_t i = 0; i < 10; i++) {
            struct tensor t = get(&f, rows[i].name);
            float v[24];
            assert_int_equal(t.type, rows[i].type);
            assert_int_equal(t.nd, 2);
            assert_int_equal(t.n[1], 6);
            if (!dtype_is_float(rows[i].type)) {
                assert_int_equal(((unsigned char *)t.p)[6 * dtype_bytes(rows[i].type)],
                                 rows[i].type == DT_BOOL ? 1 : 6);
                continue;
            }
            dtype_convert(v, DT_F32, t.p, rows[i].type, 24);
            for (int j = 0; j < 24; j++) assert_true(v[j] == (float)(j % 7));
        }
        file_close(&f);
    }
}

static void reads_views(void **state)
{
    (void)state;
    struct file f;
    struct err e;
    if (!have_torch) skip();
    assert_int_equal(file_open(&f, "views.bin", &e), 0);
    floats(&f, "scalar", 1, (float[]){ 2.5 });
    assert_int_equal(get(&f, "scalar").nd, 1);
    assert_int_equal(tensor_count(get(&f, "empty")), 0);
    floats(&f, "part", 4, (float[]){ 3, 4, 5, 6 });
    floats(&f, "col", 4, (float[]){ 2, 8, 14, 20 });
    floats(&f, "rows", 12, (float[]){ 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17 });
    floats(&f, "param", 2, (float[]){ 1, 1 });
    struct tensor t = get(&f, "t"), c = get(&f, "conv");
    assert_int_equal(t.n[0], 6);
    for (int i = 0; i < 24; i++) assert_true(((float *)t.p)[i] == (float)(i % 4 * 6 + i / 4));
    for (int i = 0; i < 24; i++) assert_true(((float *)c.p)[i] == (float)(i % 2 * 12 + i / 2));
    assert_true(get(&f, "all").p == (char *)get(&f, "part").p - 12); /* one storage, no copy */
    file_close(&f);
}

static void reads_nested(void **state)
{
    (void)state;
    struct file f;
    struct err e;
    if (!have_torch) skip();
    assert_int_equal(file_open(&f, "nested.pt", &e), 0);
    assert_int_equal(f.list.n, 4);
    floats(&f, "state.inner.0", 6, (float[]){ 0, 1, 2, 3, 4, 5 });
    floats(&f, "state.inner.l.0", 6, (float[]){ 6, 7, 8, 9, 10, 11 });
    floats(&f, "tuple.1", 6, (float[]){ 12, 13, 14, 15, 16, 17 });
    assert_int_equal(tensor_count(get(&f, "state.w")), 24);
    file_close(&f);
    assert_int_equal(file_open(&f, "module.pth", &e), 0);
    assert_int_equal(tensor_count(get(&f, "weight")), 6);
    assert_int_equal(tensor_count(get(&f, "bias")), 2);
    file_close(&f);
    assert_int_equal(file_open(&f, "bare.pt", &e), 0);
    assert_int_equal(tensor_count(get(&f, "tensor")), 24);
    file_close(&f);
}

static void refuses_torch(void **state)
{
    (void)state;
    static const struct {
        const char *file, *says;
        int code;
    } rows[] = {
        { "legacy.bin", "before 1.6", ERR_UNSUPPORTED },
        { "complex.bin", "'torch.ComplexFloatStorage'", ERR_UNSUPPORTED },
        { "expand.bin", "tensor 'a' is an expanded view", ERR_UNSUPPORTED },
        { "five.bin", "tensor 'a' has 5 dimensions", ERR_UNSUPPORTED },
        { "system.bin", "refuses to call 'posix.system'", ERR_UNSUPPORTED },
        { "eval.bin", "refuses to call '__builtin__.eval'", ERR_UNSUPPORTED },
        { "class.bin", "refuses to call 'torch.nn.modules.linear.Linear'", ERR_UNSUPPORTED },
        { "deflated.bin", "compressed", ERR_UNSUPPORTED },
        { "other.zip", "no data.pkl", ERR_FORMAT },
        { "big.bin", "big-endian", ERR_UNSUPPORTED },
    };
    if (!have_torch) skip();
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct file f;
        struct err e = { 0 };
        assert_int_equal(file_open(&f, rows[i].file, &e), rows[i].code);
        assert_contains(e.msg, rows[i].says);
        assert_contains(e.msg, rows[i].file);
        file_close(&f);
    }
    assert_int_not_equal(access(tmp_path("executed"), F_OK), 0);
}

/* What our writer makes: read by us, and by torch where there is one. */
static void writes(void **state)
{
    (void)state;
    uint16_t a[6] = { 0x3c00, 0x4000, 0x4200, 0x4400, 0x4500, 0x4600 },
             c[4] = { 0x3f80, 0x4000, 0x4040, 0x4080 };
    int64_t b = -1;
    char none;
    struct weight w[] = { { "a.weight", tensor_2d(a, DT_F16, 2, 3), NULL },
                          { "b", tensor_1d(&b, DT_I64, 1), NULL },
                          { "c", { c, DT_BF16, 4, 0, { 2, 1, 1, 2 } }, NULL },
                          { "\xc3\xa9", tensor_2d(&none, DT_F32, 0, 4), NULL } };
    struct file f;
    struct err e;
    char cmd[200];
    assert_int_equal(torchbin_write(tmp_path("ours.bin"), w, 4, NULL, NULL, &e), 0);
    assert_int_equal(file_open(&f, "ours.bin", &e), 0);
    assert_int_equal(f.list.n, 4);
    for (size_t i = 0; i < 4; i++) {
        assert_string_equal(f.list.at[i].name, w[i].name);
        assert_true(tensor_same_shape(f.list.at[i].t, w[i].t));
        assert_memory_equal(f.list.at[i].t.p, w[i].t.p, tensor_bytes(w[i].t));
        assert_int_equal((uintptr_t)f.list.at[i].t.p % 64, 0);
    }
    file_close(&f);
    snprintf(cmd, sizeof cmd, "/usr/bin/python3 tests/help/torch_files.py check %s", tmp_dir);
    if (have_torch) assert_int_equal(system(cmd), 0);
    assert_int_equal(torchbin_write(tmp_path("no/x.bin"), w, 4, NULL, NULL, &e), ERR_MISSING);
}

/* Every byte of a small archive changed, and every length cut: never a crash; the sanitizers watch. */
static void survives_damage(void **state)
{
    (void)state;
    float x[2] = { 1, 2 };
    struct weight w[] = { { "a", tensor_1d(x, DT_F32, 2), NULL } };
    struct map m;
    struct err e;
    assert_int_equal(torchbin_write(tmp_path("d.bin"), w, 1, NULL, NULL, &e), 0);
    assert_int_equal(map_open(&m, tmp_path("d.bin"), &e), 0);
    for (size_t i = 0; i < m.n; i++) {
        static const unsigned char flips[] = { 0xff, 0x80, 0x01 };
        for (int k = 0; k < 4; k++) {
            size_t n = k == 3 ? i : m.n;
            struct weight_list l = { 0 };
            unsigned char *p = malloc(n + 1);
            memcpy(p, m.p, n);
            if (k < 3) p[i] ^= flips[k];
            int rc = torchbin_parse(&l, p, n, "d", &e);
            if (k == 3) assert_true(rc < 0);
            weight_list_fini(&l);
            free(p);
        }
    }
    map_close(&m);
}

static int pickle_try(const void *p, size_t n, struct err *e)
{
    struct pickle t;
    void *copy = malloc(n + 1); /* exact size for the sanitizer */
    memcpy(copy, p, n);
    int rc = pickle_open(&t, copy, n, "x.pkl", e);
    pickle_close(&t);
    free(copy);
    return rc;
}

static void refuses_pickles(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        size_t n;
        const char *says;
    } rows[] = {
#define P(text) text, sizeof text - 1
        { P(""), "ends too early" },
        { P("\x80\x02"), "ends too early" },
        { P("\x80\x01."), "protocol 1" },
        { P("\x80\x02."), "one value" },
        { P("\x80\x02NN."), "one value" },
        { P("\x80\x02(N."), "one value" },
        { P("\x80\x02t."), "no mark" },
        { P("\x80\x02\x86."), "stack is empty" },
        { P("\x80\x02(NN\x85\x87."), "stack is empty" }, /* may not reach below a mark */
        { P("\x80\x02NNs."), "stack is empty" },
        { P("\x80\x02NNNs."), "another type" },
        { P("\x80\x02}(Nu."), "key without" },
        { P("\x80\x02(Nu."), "stack is empty" },
        { P("\x80\x02]NNs."), "another type" },
        { P("\x80\x02}Na."), "another type" },
        { P("\x80\x02h\x05."), "memo" },
        { P("\x80\x02j\xff\xff\xff\xff."), "memo" },
        { P("\x80\x02Nr\xff\xff\xff\xff."), "more than" },
        { P("\x80\x02q\x01."), "stack is empty" },
        { P("\x80\x02X\xff\xff\xff\xff"
            "a."),
          "ends too early" },
        { P("\x80\x02\x8d\xff\xff\xff\xff\xff\xff\xff\xff"
            "a."),
          "ends too early" },
        { P("\x80\x02\x8a\x09"
            "123456789."),
          "64 bits" },
        { P("\x80\x02N)R."), "uncallable" },
        { P("\x80\x02"
            "ctorch\nSize\n)R."),
          "without arguments" },
        { P("\x80\x02"
            "ctorch._utils\n_rebuild_tensor_v2\n)R."),
          "too few" },
        { P("\x80\x02"
            "ccollections\nOrderedDict\n]\x85R."),
          "with arguments" },
        { P("\x80\x02"
            "cos\nsystem\nX\x04\0\0\0true\x85R."),
          "refuses to call 'os.system'" },
        { P("\x80\x04\x8c\x02os\x8c\x06system\x93."), "refuses to call 'os.system'" },
        { P("\x80\x04\x8c\x02osN\x93."), "without a name" },
        { P("\x80\x02"
            "ctorch\nQUInt8Storage\n."),
          "'torch.QUInt8Storage'" },
        { P("\x80\x02"
            "ctorch\nload\n."),
          "refuses to call 'torch.load'" },
        { P("\x80\x02"
            "ctorch\n"),
          "ends too early" },
        { P("\x80\x02(ios\nsystem\n."), "opcode 0x69" },
        { P("\x80\x02NQ."), "persistent id" },
        { P("\x80\x02NNb."), "another type" },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct err e = { 0 };
        assert_true(pickle_try(rows[i].text, rows[i].n, &e) < 0);
        assert_contains(e.msg, rows[i].says);
        assert_contains(e.msg, "'x.pkl'");
    }
}

/* A pickle inside an otherwise good archive, with one 8-byte storage '0'. */
static int archive_try(const void *pkl, size_t n, struct err *e)
{
    struct out o;
    struct zip_out z = { .o = &o };
    struct file f;
    assert_int_equal(out_open(&o, tmp_path("a.bin"), e), 0);
    assert_int_equal(zip_out_add(&z, "archive/data.pkl", pkl, n, e), 0);
    assert_int_equal(zip_out_add(&z, "archive/data/0", "12345678", 8, e), 0);
    assert_int_equal(zip_out_end(&z, e), 0);
    assert_int_equal(out_commit(&o, e), 0);
    zip_out_fini(&z);
    int rc = file_open(&f, "a.bin", e);
    file_close(&f);
    return rc;
}

#define S(text, n) "X" n "\0\0\0" text
#define STORAGE(key, count) \
    "(" S("storage", "\7") "ctorch\nFloatStorage\n" S(key, "\1") S("cpu", "\3") "J" count "tQ"
#define TENSOR(storage, rest) \
    "\x80\x02}" S("a", "\1") "ctorch._utils\n_rebuild_tensor_v2\n(" storage rest "tRs."

static void refuses_tensors(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        size_t n;
        const char *says;
    } rows[] = {
        { P(TENSOR(STORAGE("0", "\2\0\0\0"), "K\0K\2\x85K\1\x85")), NULL },
        { P(TENSOR(STORAGE("0", "\2\0\0\0"), "K\1K\2\x85K\1\x85")), "outside its storage" },
        { P(TENSOR(STORAGE("0", "\2\0\0\0"), "J\xff\xff\xff\xffK\1\x85K\1\x85")), "outside its storage" },
        { P(TENSOR(STORAGE("0", "\2\0\0\0"), "K\0K\2\x85K\2\x85")), "outside its storage" },
        { P(TENSOR(STORAGE("0", "\2\0\0\0"), "K\0\x8a\x08\0\0\0\0\0\0\0\x40K\4\x86K\4K\1\x86")),
          "outside its storage" },
        { P(TENSOR(STORAGE("0", "\2\0\0\0"), "K\0K\2\x85\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x85")),
          "outside" },
        { P(TENSOR(STORAGE("0", "\2\0\0\0"), "K\0\x8a\x08\0\0\0\0\0\0\0\x40K\4K\0\x87K\4K\1K\1\x87")),
          "outside" },
        { P(TENSOR(STORAGE("0", "\3\0\0\0"), "K\0K\2\x85K\1\x85")), "has 8 bytes, too few for 3" },
        { P(TENSOR(STORAGE("0", "\xff\xff\xff\xff"), "K\0K\2\x85K\1\x85")), "too few for -1" },
        { P(TENSOR(STORAGE("1", "\2\0\0\0"), "K\0K\2\x85K\1\x85")), "has no 'archive/data/1'" },
        { P(TENSOR(STORAGE("0", "\2\0\0\0"), "K\0K\2K\1\x86K\1\x85")), "do not fit" },
        { P(TENSOR(STORAGE("0", "\2\0\0\0"), "K\0K\2K\1")), "not a tuple" },
        { P(TENSOR(STORAGE("0", "\2\0\0\0"), "K\0J\xff\xff\xff\xff\x85K\1\x85")), "not sizes" },
        { P(TENSOR("N", "K\0K\2\x85K\1\x85")), "its storage is not described" },
        { P("\x80\x02}(K\1NNNu."), "key that is not a string" },
        { P("\x80\x02}q\1" S("a", "\1") "h\1s."), "nested too deep" }, /* a dict that holds itself */
        { P("\x80\x02]q\1(h\1h\1h\1h\1h\1h\1h\1h\1h\1e."), "nested too deep" },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct err e = { 0 };
        int rc = archive_try(rows[i].text, rows[i].n, &e);
        if (rows[i].says && rc >= 0) fail_msg("row %zu is not refused", i);
        if (rows[i].says) assert_contains(e.msg, rows[i].says);
        else assert_int_equal(rc, 0);
    }
}

/* Zip directories that lie. Offsets are those of the archive that archive_make writes: two entries "a" and
 * "b". */
static void refuses_zips(void **state)
{
    (void)state;
    struct out o;
    struct zip_out zo = { .o = &o };
    struct map m;
    struct zip z;
    struct err e;
    assert_int_equal(out_open(&o, tmp_path("z.zip"), &e), 0);
    assert_int_equal(zip_out_add(&zo, "a", "hello", 5, &e), 0);
    assert_int_equal(zip_out_add(&zo, "b", "", 0, &e), 0);
    assert_int_equal(zip_out_end(&zo, &e), 0);
    uint64_t head_b = zo.at[1].head;
    assert_int_equal(out_commit(&o, &e), 0);
    zip_out_fini(&zo);
    assert_int_equal(map_open(&m, tmp_path("z.zip"), &e), 0);
    size_t dir = m.n - 22 - 20 - 56 - 2 * (46 + 1 + 28), a = dir, size_a = a + 47 + 4,
           head_of_b = a + 75 + 47 + 4 + 16;
    const struct {
        size_t at;
        unsigned char v;
        const char *says;
    } rows[] = {
        { 0, 'P', NULL },
        { 30, 'x', "disagree about entry 'a'" },
        { 8, 8, "disagree" },
        { 6, 1, "disagree" },
        { a, 'x', "directory is damaged" },
        { a + 10, 8, "compressed" },
        { a + 8, 1, "encrypted" },
        { a + 28, 255, "damaged" },
        { size_a + 6, 1, "compressed" }, /* sizes differ */
        { head_of_b, 1, "no local header for entry 'b'" },
        { head_of_b + 7, 0xff, "no local header for entry 'b'" },
        { a + 47, 2, "zip64 field is missing" },
        { m.n - 22, 'x', "no end record" },
        { m.n - 2, 1, "no end record" },
        { m.n - 22 - 20 + 8, 0, "zip64 end record" },
        { m.n - 98 + 32, 3, "damaged" },
        { m.n - 98 + 34, 2, "too short for its entries" },
        { m.n - 98 + 55, 0xff, "outside the file" },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        unsigned char *p = malloc(m.n);
        memcpy(p, m.p, m.n);
        p[rows[i].at] = rows[i].v;
        int rc = zip_open(&z, p, m.n, "z.zip", &e);
        if (rows[i].says) {
            assert_true(rc < 0);
            assert_contains(e.msg, rows[i].says);
        } else {
            assert_int_equal(rc, 0);
            assert_int_equal(z.n, 2);
            assert_int_equal(zip_find(&z, "a")->n, 5);
            assert_memory_equal(zip_find(&z, "a")->p, "hello", 5);
            assert_null(zip_find(&z, "c"));
            assert_null(zip_find(&z, ""));
            zip_close(&z);
        }
        free(p);
    }
    /* the second entry of the directory is the first once more: they overlap */
    unsigned char *p = malloc(m.n);
    memcpy(p, m.p, m.n);
    memcpy(p + a + 75, p + a, 75);
    assert_int_equal(zip_open(&z, p, m.n, "z.zip", &e), ERR_FORMAT);
    assert_contains(e.msg, "'a' and 'a' overlap");
    assert_true(head_b > 0);
    free(p);
    map_close(&m);
}

/* Entries past 4 GB: sparse files, so they cost no disk. */
static void reads_zip64(void **state)
{
    (void)state;
    struct out o;
    struct zip_out zo = { .o = &o };
    struct map m;
    struct zip z;
    struct err e;
    assert_int_equal(out_open(&o, tmp_path("big.zip"), &e), 0);
    assert_int_equal(zip_out_add(&zo, "small", "hello", 5, &e), 0);
    const uint64_t hole = (uint64_t)5
                          << 30; /* "small" now has 5 GB behind its bytes: rewrite its size below */
    assert_int_equal(lseek(o.fd, (off_t)hole, SEEK_CUR) > 0, 1);
    o.at += hole;
    zo.at[0].n += hole;
    assert_int_equal(zip_out_add(&zo, "far", "world", 5, &e), 0);
    assert_int_equal(zip_out_end(&zo, &e), 0);
    assert_int_equal(out_commit(&o, &e), 0);
    zip_out_fini(&zo);
    assert_int_equal(map_open(&m, tmp_path("big.zip"), &e), 0);
    assert_int_equal(zip_open(&z, m.p, m.n, "big.zip", &e), 0);
    assert_true(zip_find(&z, "small")->n == hole + 5);
    assert_memory_equal(zip_find(&z, "far")->p, "world", 5);
    assert_true((uint64_t)(zip_find(&z, "far")->p - m.p) > hole);
    zip_close(&z);
    map_close(&m);
    unlink(tmp_path("big.zip"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_types),     cmocka_unit_test(reads_views),
        cmocka_unit_test(reads_nested),    cmocka_unit_test(refuses_torch),
        cmocka_unit_test(writes),          cmocka_unit_test(survives_damage),
        cmocka_unit_test(refuses_pickles), cmocka_unit_test(refuses_tensors),
        cmocka_unit_test(refuses_zips),    cmocka_unit_test(reads_zip64),
    };
    return cmocka_run_group_tests_name("torchbin", tests, begin, tmp_end);
}
