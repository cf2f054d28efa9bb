/* See torchbin.h. */
#include "file/torchbin.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "file/pickle.h"
#include "file/zip.h"

enum {
    ROOT_MAX = 500,      /* bytes in the archive's folder name */
    DEPTH_MAX = 16,      /* dicts in dicts */
    VISITS_MAX = 1 << 22 /* a small pickle can name the same dict very often */
};

struct reader {
    struct weight_list *list;
    const char *file;
    struct err *e;
    struct zip zip;
    struct pickle pickle;
    char root[ROOT_MAX + 1];
    char name[WEIGHT_NAME_MAX + 1]; /* of the value being visited */
    size_t n_name;
    int visits;
};

static int bad(const struct reader *r, const char *what)
{
    return err_set(r->e, ERR_FORMAT, "'%s': tensor '%.200s': %s", r->file, r->name, what);
}

/* A storage: its bytes, type and number of elements. */
struct storage {
    const unsigned char *p;
    enum dtype type;
    int64_t count;
};

static int storage_find(const struct reader *r, struct storage *s, const struct pickle_value *v)
{
    const struct pickle *t = &r->pickle;
    const struct pickle_value *tag = pickle_member(t, v, 0), *type = pickle_member(t, v, 1),
                              *key = pickle_member(t, v, 2), *count = pickle_member(t, v, 4);
    char path[ROOT_MAX + 80];
    if (v->kind != PICKLE_STORAGE || tag->kind != PICKLE_STR || tag->n != 7 ||
        memcmp(tag->s, "storage", 7) != 0 || type->kind != PICKLE_TYPE || key->kind != PICKLE_STR ||
        key->n > 40 || count->kind != PICKLE_INT)
        return bad(r, "its storage is not described as torch.save does");
    snprintf(path, sizeof path, "%s/data/%.*s", r->root, (int)key->n, key->s);
    const struct zip_entry *f = zip_find(&r->zip, path);
    if (!f)
        return err_set(r->e, ERR_FORMAT, "'%s': tensor '%.200s': the archive has no '%s'", r->file, r->name,
                       path);
    *s = (struct storage){ f->p, (enum dtype)type->i, count->i };
    if (s->count < 0 || (uint64_t)s->count > f->n / dtype_bytes(s->type))
        return err_set(r->e, ERR_FORMAT,
                       "'%s': tensor '%.200s': '%s' has %" PRIu64 " bytes, too few for %lld of %s", r->file,
                       r->name, path, f->n, (long long)s->count, dtype_name(s->type));
    return 0;
}

/* A tuple of at most TENSOR_DIMS integers >= 0 into n[]; returns how many. */
static int dims_read(const struct reader *r, int64_t *n, const struct pickle_value *v)
{
    if (!v || (v->kind != PICKLE_TUPLE && v->kind != PICKLE_LIST))
        return bad(r, "its shape or strides are not a tuple");
    if (v->n > TENSOR_DIMS)
        return err_set(r->e, ERR_UNSUPPORTED,
                       "'%s': tensor '%.200s' has %u dimensions, at most %d are handled", r->file, r->name,
                       v->n, TENSOR_DIMS);
    for (uint32_t i = 0; i < v->n; i++) {
        const struct pickle_value *d = pickle_member(&r->pickle, v, i);
        if (d->kind != PICKLE_INT || d->i < 0) return bad(r, "its shape or strides are not sizes");
        n[i] = d->i;
    }
    return (int)v->n;
}

/* Copies a tensor with strides (in elements) into row-major order. */
static void copy_strided(char *dst, const unsigned char *src, size_t bytes, const int64_t n[4],
                         const int64_t step[4])
{
    for (int64_t a = 0; a < n[0]; a++)
        for (int64_t b = 0; b < n[1]; b++)
            for (int64_t c = 0; c < n[2]; c++)
                for (int64_t d = 0; d < n[3]; d++, dst += bytes)
                    memcpy(dst, src + (size_t)(a * step[0] + b * step[1] + c * step[2] + d * step[3]) * bytes,
                           bytes);
}

/* Places shape and strides into a storage: everything a tensor touches must lie inside. */
static int view_make(const struct reader *r, struct tensor *t, const struct storage *s, int64_t offset,
                     int nd, const int64_t *step)
{
    uint64_t count = 1,
             last = 0; /* elements, a size of 0 taken as 1; the highest one touched, from offset on */
    bool plain = true, huge = false, empty = false;
    for (int i = nd - 1; i >= 0; i--) {
        uint64_t n = t->n[i] ? (uint64_t)t->n[i] : 1, reach;
        empty = empty || t->n[i] == 0;
        plain = plain && (n == 1 || (uint64_t)step[i] == count);
        huge = __builtin_mul_overflow(count, n, &count) || count > INT64_MAX || huge;
        huge = __builtin_mul_overflow(n - 1, (uint64_t)step[i], &reach) || huge;
        huge = __builtin_add_overflow(last, reach, &last) || huge;
    }
    if (huge || offset < 0 || offset > s->count || (!empty && last >= (uint64_t)(s->count - offset)))
        return bad(r, "it reaches outside its storage");
    t->p = (void *)(s->p + (size_t)offset * dtype_bytes(s->type));
    if (plain || empty) return 0;
    if (count > (uint64_t)s->count)
        return err_set(r->e, ERR_UNSUPPORTED, "'%s': tensor '%.200s' is an expanded view of a smaller one",
                       r->file, r->name);
    char *copy = weight_list_alloc(r->list, (size_t)count * dtype_bytes(s->type));
    if (!copy) return err_set(r->e, ERR_NOMEM, "'%s': no memory for tensor '%.200s'", r->file, r->name);
    copy_strided(copy, t->p, dtype_bytes(s->type), t->n, step);
    t->p = copy;
    return 0;
}

static int tensor_read(struct reader *r, const struct pickle_value *v)
{
    const struct pickle_value *offset = pickle_member(&r->pickle, v, 1);
    struct storage s = { 0 };
    struct tensor t = { .n = { 1, 1, 1, 1 } };
    int64_t step[TENSOR_DIMS] = { 0 };
    int rc = storage_find(r, &s, pickle_member(&r->pickle, v, 0));
    if (rc < 0) return rc;
    int nd = dims_read(r, t.n, pickle_member(&r->pickle, v, 2));
    if (nd < 0) return nd;
    int n_step = dims_read(r, step, pickle_member(&r->pickle, v, 3));
    if (n_step < 0) return n_step;
    if (n_step != nd || offset->kind != PICKLE_INT) return bad(r, "its shape and strides do not fit");
    t.type = (int8_t)s.type;
    t.nd = nd ? (int8_t)nd : 1;
    if ((rc = view_make(r, &t, &s, offset->i, nd, step)) < 0) return rc;
    return weight_list_add(r->list, r->name, r->n_name, t, r->file, r->e);
}

/* Makes r->name longer by ".TEXT"; the caller cuts it back. */
static int name_add(struct reader *r, const char *s, size_t n)
{
    if (n > WEIGHT_NAME_MAX || r->n_name + n + 1 > WEIGHT_NAME_MAX || memchr(s, 0, n))
        return bad(r, "a name in it is too long or holds a NUL");
    if (r->n_name) r->name[r->n_name++] = '.';
    memcpy(r->name + r->n_name, s, n);
    r->n_name += n;
    r->name[r->n_name] = 0;
    return 0;
}

static int visit(struct reader *r, const struct pickle_value *v, int depth)
{
    bool dict = v->kind == PICKLE_DICT;
    if (++r->visits > VISITS_MAX || depth > DEPTH_MAX)
        return err_set(r->e, ERR_LIMIT, "'%s': its dicts are nested too deep or too often", r->file);
    if (v->kind == PICKLE_TENSOR) return tensor_read(r, v);
    if (!dict && v->kind != PICKLE_LIST && v->kind != PICKLE_TUPLE) return 0;
    int rc = 0;
    uint32_t l = v->first;
    for (uint32_t i = 0; i < v->n && rc >= 0; i++) {
        const struct pickle_value *key = NULL;
        size_t n_name = r->n_name;
        char number[24];
        if (dict) {
            key = &r->pickle.value[r->pickle.link[l].value];
            l = r->pickle.link[l].next;
            i++;
        }
        snprintf(number, sizeof number, "%lld",
                 key && key->kind == PICKLE_INT ? (long long)key->i : (long long)i);
        if (!key || key->kind == PICKLE_INT) rc = name_add(r, number, strlen(number));
        else if (key->kind == PICKLE_STR) rc = name_add(r, key->s, key->n);
        else rc = bad(r, "a dict in it has a key that is not a string");
        if (rc >= 0) rc = visit(r, &r->pickle.value[r->pickle.link[l].value], depth + 1);
        l = r->pickle.link[l].next;
        r->n_name = n_name;
        r->name[n_name] = 0;
    }
    return rc;
}

/* Finds NAME/data.pkl and refuses big-endian files. */
static int root_find(struct reader *r, const struct zip_entry **pkl)
{
    static const char tail[] = "/data.pkl";
    enum { TAIL = sizeof tail - 1 };
    char path[ROOT_MAX + 20];
    *pkl = NULL;
    for (size_t i = 0; i < r->zip.n && !*pkl; i++) {
        const struct zip_entry *t = &r->zip.at[i];
        size_t n = t->n_name > TAIL ? t->n_name - TAIL : 0;
        if (!n || n > ROOT_MAX || memcmp(t->name + n, tail, TAIL) != 0 || memchr(t->name, '/', n)) continue;
        memcpy(r->root, t->name, n);
        *pkl = t;
    }
    if (!*pkl)
        return err_set(r->e, ERR_FORMAT, "'%s' is a zip archive, but not of torch.save: no data.pkl",
                       r->file);
    snprintf(path, sizeof path, "%s/byteorder", r->root);
    const struct zip_entry *order = zip_find(&r->zip, path);
    if (order && (order->n < 6 || memcmp(order->p, "little", 6) != 0))
        return err_set(r->e, ERR_UNSUPPORTED, "'%s' was saved on a big-endian machine", r->file);
    return 0;
}

int torchbin_parse(struct weight_list *list, const void *p, size_t n, const char *file, struct err *e)
{
    const unsigned char *b = p;
    if (n > 2 && b[0] == 0x80 && b[1] >= 2 && b[1] <= 5)
        return err_set(
            e, ERR_UNSUPPORTED,
            "'%s' has PyTorch's format from before 1.6; convert it once with: python3 -c "
            "\"import sys, torch; torch.save(torch.load(sys.argv[1], 'cpu'), sys.argv[2])\" OLD NEW",
            file);
    if (n < 4 || memcmp(b, "PK\3\4", 4) != 0)
        return err_set(e, ERR_FORMAT, "'%s' is not a file of torch.save", file);
    struct reader *r = calloc(1, sizeof *r);
    if (!r) return err_set(e, ERR_NOMEM, "no memory to read '%s'", file);
    int rc;
    const struct zip_entry *pkl;
    r->list = list;
    r->file = file;
    r->e = e;
    TRY(zip_open(&r->zip, p, n, file, e));
    TRY(root_find(r, &pkl));
    TRY(pickle_open(&r->pickle, pkl->p, pkl->n, file, e));
    const struct pickle_value *root = &r->pickle.value[r->pickle.root];
    if (root->kind == PICKLE_TENSOR) memcpy(r->name, "tensor", r->n_name = 6);
    TRY(visit(r, root, 0));
out:
    pickle_close(&r->pickle);
    zip_close(&r->zip);
    free(r);
    return rc;
}

/* dtype -> class name, the inverse of dtype_find_torch. */
static const char *storage_class(enum dtype t)
{
    static const char *const names[N_DTYPE] = {
#define XX(name, bytes, st, torch, real) torch,
        DTYPE_MAP(XX)
#undef XX
    };
    return names[t];
}

static void put_u32(struct buf *b, uint64_t v)
{
    for (int i = 0; i < 4; i++) buf_chr(b, (char)(v >> (8 * i)));
}

static void put_str(struct buf *b, const char *s)
{
    buf_chr(b, 'X');
    put_u32(b, strlen(s));
    buf_str(b, s);
}

static void put_int(struct buf *b, int64_t v)
{
    bool small = v <= INT32_MAX;
    buf_add(b, small ? "J" : "\x8a\x08", small ? 1 : 2);
    put_u32(b, (uint64_t)v);
    if (!small) put_u32(b, (uint64_t)v >> 32);
}

/* NAME: _rebuild_tensor_v2(storage i, 0, shape, strides, False, OrderedDict()) */
static void put_tensor(struct buf *b, const struct weight *w, size_t i)
{
    char key[24];
    snprintf(key, sizeof key, "%zu", i);
    put_str(b, w->name);
    buf_str(b, "ctorch._utils\n_rebuild_tensor_v2\n((");
    put_str(b, "storage");
    buf_fmt(b, "ctorch\n%s\n", storage_class((enum dtype)w->t.type));
    put_str(b, key);
    put_str(b, "cpu");
    put_int(b, tensor_count(w->t));
    buf_str(b, "tQ");
    put_int(b, 0);
    buf_chr(b, '(');
    for (int d = 0; d < w->t.nd; d++) put_int(b, w->t.n[d]);
    buf_str(b, "t(");
    for (int d = 0; d < w->t.nd; d++) {
        int64_t step = 1;
        for (int k = d + 1; k < w->t.nd; k++) step *= w->t.n[k];
        put_int(b, step);
    }
    buf_str(b, "t\x89"
               "ccollections\nOrderedDict\n)RtR");
}

int torchbin_write(const char *path, const struct weight *w, size_t n, weight_fetch_fn *fetch, void *ctx,
                   struct err *e)
{
    static const char version[] = "3\n";
    int rc;
    struct out o = { .fd = -1 };
    struct zip_out z = { .o = &o };
    struct buf b = buf_make(PICKLE_MAX);
    buf_str(&b, "\x80\x02"
                "ccollections\nOrderedDict\n)R(");
    for (size_t i = 0; i < n; i++) put_tensor(&b, &w[i], i);
    buf_str(&b, "u.");
    TRY(buf_check(&b, path, e));
    TRY(out_open(&o, path, e));
    TRY(zip_out_add(&z, "archive/data.pkl", b.p, b.n, e));
    for (size_t i = 0; i < n; i++) {
        char name[40];
        const void *p = w[i].t.p;
        snprintf(name, sizeof name, "archive/data/%zu", i);
        if (fetch) TRY(fetch(&p, ctx, &w[i], e));
        TRY(zip_out_add(&z, name, p, tensor_bytes(w[i].t), e));
    }
    TRY(zip_out_add(&z, "archive/version", version, sizeof version - 1, e));
    TRY(zip_out_end(&z, e));
    TRY(out_commit(&o, e));
out:
    out_drop(&o);
    zip_out_fini(&z);
    buf_free(&b);
    return rc;
}
