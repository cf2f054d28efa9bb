/* LoRA adapters in PEFT's folders: reading and merging. W' = W + scale * B A.  arXiv:2106.09685 eq. 3 */
#include <jansson.h>
#include <math.h>
#include <regex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dev/dev.h"
#include "file/json.h"
#include "model/lora.h"

struct adapter_config {
    double alpha;
    int64_t rank;
    bool rslora;
    json_t *json; /* owns what the patterns borrow */
    json_t *rank_pattern, *alpha_pattern;
};

/* The key of what makes of A and B another sum than W + s B A; NULL: nothing does. */
static const char *another_sum(const json_t *config)
{
    static const char *const keys[] = { "use_dora", "use_qalora", "use_bdlora", "fan_in_fan_out", "kasa_config",
                                        "alora_invocation_tokens", "arrow_config", "monteclora_config" };
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const json_t *v = json_object_get(config, keys[i]);
        if (v && !json_is_null(v) && !json_is_false(v)) return keys[i];
    }
    return NULL;
}

/* Was the base's weight reduced by what A and B began with? PEFT does that again whenever it opens such an adapter. */
static bool changes_base(const json_t *config)
{
    static const char *const kinds[] = { "pissa", "olora", "corda", "lora_ga" };
    const char *init = json_string_value(json_object_get(config, "init_lora_weights"));
    for (size_t i = 0; init && i < sizeof kinds / sizeof *kinds; i++)
        if (!strncmp(init, kinds[i], strlen(kinds[i]))) return true;
    return false;
}

static int config_load(struct adapter_config *c, const char *dir, struct err *e)
{
    *c = (struct adapter_config){ .alpha = 8, .rank = 8 };
    char path[4096];
    const char *type = "LORA", *with;
    int rc;
    snprintf(path, sizeof path, "%s/adapter_config.json", dir);
    TRY(json_file_load(&c->json, path, e));
    TRY(json_get_str(c->json, "peft_type", &type, e));
    TRY(json_get_int(c->json, "r", &c->rank, e));
    TRY(json_get_real(c->json, "lora_alpha", &c->alpha, e));
    TRY(json_get_bool(c->json, "use_rslora", &c->rslora, e));
    with = another_sum(c->json);
    TRY(json_get_object(c->json, "rank_pattern", &c->rank_pattern, e));
    TRY(json_get_object(c->json, "alpha_pattern", &c->alpha_pattern, e));
    if (strcmp(type, "LORA") != 0 || with)
        rc = err_set(e, ERR_UNSUPPORTED, "adapter of kind %s%s%s is not supported", type, with ? " with " : "",
                     with ? with : "");
    else if (changes_base(c->json))
        rc = err_set(e, ERR_UNSUPPORTED, "an adapter with init_lora_weights '%s' changed its base's weights too: PEFT "
                     "saves it as a plain one with path_initial_model_for_weight_conversion",
                     json_string_value(json_object_get(c->json, "init_lora_weights")));
    else if (c->rank < 1) rc = err_set(e, ERR_FORMAT, "rank %lld is not positive", (long long)c->rank);
out:
    return rc < 0 ? err_prefix(e, "'%s'", path), rc : 0;
}

/* ---- patterns: Python's regular expressions for a module's name, or for its end behind a dot */

enum { PATTERN_MAX = 200, COPIES_MAX = 2 /* regcomp copies what is repeated, once and again where repetitions nest */ };

/* What stands for Python's backslash and c, in or outside of brackets; NULL: nothing does. */
static const char *escaped(char c, bool inside)
{
    switch (c) {
    case 'd': return inside ? "0-9" : "[0-9]";
    case 'w': return inside ? "[:alnum:]_" : "[[:alnum:]_]";
    case '.': return inside ? "." : "[.]";
    case '-': return inside ? NULL : "-";
    case '_': return "_";
    }
    return NULL;
}

/* The length of the repetition at p; 0: not one for us. Braces have one digit each, {m} or {m,n}; they and the + of a
 * group count as copies. */
static size_t repetition(const char *p, bool group, int *copies)
{
    const char *end = *p == '{' ? strchr(p, '}') : p;
    const bool wide = *p == '{' && p[1] && p[2] >= '0' && p[2] <= '9';
    if (!end || end - p > 4 || wide) return 0;
    if ((*p == '{' || (*p == '+' && group)) && ++*copies > COPIES_MAX) return 0;
    return (size_t)(end - p) + 1;
}

/* Python's expression as POSIX's, whole; false: it has something that POSIX's cannot say. */
static bool translate(char out[8 * PATTERN_MAX], const char *key)
{
    int n = snprintf(out, 16, "^(.*[.])?("), copies = 0;
    bool inside = false, there = false; /* something that can be repeated */
    if (strlen(key) > PATTERN_MAX) return false;
    for (const char *p = key; *p; p++) {
        const char *put = NULL;
        if (!inside && strchr("*+?{", *p)) {
            const size_t k = there ? repetition(p, p[-1] == ')', &copies) : 0;
            if (!k) return false;
            n += snprintf(out + n, 8, "%.*s", (int)k, p);
            p += k - 1 + (p[k] == '?'); /* lazy or not, a name has to fit as a whole */
            there = false;
            continue;
        }
        if (*p == '\\' && !(put = escaped(*++p, inside))) return false;
        if (!put && !inside && p[0] == '(' && p[1] == '?') {
            if (p[2] != ':') return false;
            put = "(", p += 2;
        } else if (!put && *p == '[') inside = true;
        else if (!put && *p == ']') inside = false;
        there = put ? *put != '(' : !strchr("(|^$", *p);
        n += put ? snprintf(out + n, 16, "%s", put) : snprintf(out + n, 2, "%c", *p);
    }
    snprintf(out + n, 3, ")$");
    return true;
}

/* 1: the pattern is for the module, 0: it is not. */
static int fits(const char *key, const char *module, struct err *e)
{
    static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.";
    const size_t n = strlen(module), k = strlen(key);
    if (strspn(key, plain) == k)
        return k && k <= n && !strcmp(module + n - k, key) && (k == n || module[n - k - 1] == '.');
    char text[8 * PATTERN_MAX];
    regex_t re;
    if (!translate(text, key) || regcomp(&re, text, REG_EXTENDED | REG_NOSUB) != 0)
        return err_set(e, ERR_UNSUPPORTED, "the pattern '%.100s' for names of modules is not understood", key);
    const bool good = regexec(&re, module, 0, NULL, 0) == 0;
    regfree(&re);
    return good;
}

/* The number of the first pattern that is for the module; else *ret stays. peft: get_pattern_key */
static int pattern(double *ret, const json_t *o, const char *module, struct err *e)
{
    const char *key;
    json_t *v;
    int rc = 0;
    json_object_foreach((json_t *)o, key, v)
    {
        rc = fits(key, module, e);
        if (rc < 0) return rc;
        if (rc && !json_is_number(v)) return err_set(e, ERR_FORMAT, "the pattern '%.100s' has no number", key);
        if (rc) return *ret = json_number_value(v), 0;
    }
    return 0;
}

/* ---- matrices */

/* "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight" -> the module, as the pattern sees it, the
 * canonical name of its weight, 'A' or 'B'; 0: no */
static char adapter_key(char module[NAME_MAX_BYTES], char out[NAME_MAX_BYTES], const char *name)
{
    if (!strncmp(name, "base_model.model.", 17)) name += 17;
    const char *at = strstr(name, ".lora_");
    if (!at || (at[6] != 'A' && at[6] != 'B')) return 0;
    const char *tail = at + 7;
    if (strcmp(tail, ".weight") != 0 && strcmp(tail, ".default.weight") != 0) return 0;
    char plain[NAME_MAX_BYTES];
    snprintf(module, NAME_MAX_BYTES, "%.*s", (int)(at - name), name);
    snprintf(plain, sizeof plain, "%.*s.weight", (int)(at - name), name);
    return name_canonical(out, NAME_MAX_BYTES, plain) < 0 ? 0 : at[6];
}

/* A tensor that takes the place of the base's: of a module in modules_to_save, or embeddings of added tokens. */
static int rest_add(struct lora_set *set, const struct weight *w, struct err *e)
{
    char name[NAME_MAX_BYTES];
    const bool matrix = strstr(w->name, ".lora_") || strstr(w->name, "trainable_tokens");
    if (matrix || strncmp(w->name, "base_model.model.", 17) != 0 || name_canonical(name, sizeof name, w->name + 17) < 0)
        return err_set(e, ERR_UNSUPPORTED, "adapter tensor '%s' of '%s' is not a LoRA matrix", w->name, w->file);
    struct lora_rest *rest = realloc(set->rest, (set->n_rest + 1) * sizeof *rest);
    if (!rest) return err_set(e, ERR_NOMEM, "no memory for an adapter");
    set->rest = rest;
    set->rest[set->n_rest++] = (struct lora_rest){ .w = w };
    return 0;
}

static int pair_order(const void *a, const void *b)
{
    return strcmp(((const struct lora_pair *)a)->name, ((const struct lora_pair *)b)->name);
}

static int pair_add(struct lora_set *set, const struct weight *w, const struct adapter_config *c, struct err *e)
{
    char name[NAME_MAX_BYTES], module[NAME_MAX_BYTES];
    char which = adapter_key(module, name, w->name);
    if (!which) return rest_add(set, w, e);
    /* Tensors come in order of their names, so the other half of a pair stands right before. */
    size_t i = set->n && !strcmp(set->pair[set->n - 1].name, name) ? set->n - 1 : set->n;
    if (i == set->n) {
        struct lora_pair *p = realloc(set->pair, (set->n + 1) * sizeof *p);
        if (!p) return err_set(e, ERR_NOMEM, "no memory for an adapter");
        set->pair = p;
        set->pair[set->n++] = (struct lora_pair){ 0 };
        snprintf(set->pair[i].name, sizeof set->pair[i].name, "%s", name);
        double r = (double)c->rank, alpha = c->alpha;
        int rc = pattern(&r, c->rank_pattern, module, e);
        if (rc >= 0) rc = pattern(&alpha, c->alpha_pattern, module, e);
        if (rc < 0) return err_prefix(e, "adapter_config.json of '%s'", w->file);
        set->pair[i].scale = alpha / (c->rslora ? sqrt(r) : r);
        set->pair[i].rank = r;
    }
    const struct weight **half = which == 'A' ? &set->pair[i].a : &set->pair[i].b;
    if (*half)
        return err_set(e, ERR_FORMAT, "'%s' and '%s' of '%s' are the same matrix", (*half)->name, w->name,
                       w->file);
    *half = w;
    return 0;
}

int lora_open(struct lora_set *set, const char *dir, struct err *e)
{
    static const char *const files[] = { "adapter_model.safetensors", "adapter_model.bin" };
    struct adapter_config c = { 0 };
    char path[4096];
    int rc;
    TRY(config_load(&c, dir, e));
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, files[i]);
        if (access(path, F_OK) == 0) break;
        if (i == 1) TRY(err_set(e, ERR_MISSING, "no adapter_model.safetensors or adapter_model.bin in '%s'", dir));
    }
    TRY(weights_open(&set->weights, path, e));
    for (size_t i = 0; i < weights_count(set->weights); i++) TRY(pair_add(set, weights_at(set->weights, i), &c, e));
    for (size_t i = 0; i < set->n; i++) {
        const struct lora_pair *p = &set->pair[i];
        if (!p->a || !p->b || p->a->t.nd != 2 || p->b->t.nd != 2 || p->a->t.n[0] != p->b->t.n[1] ||
            !dtype_is_float((enum dtype)p->a->t.type) || !dtype_is_float((enum dtype)p->b->t.type))
            TRY(err_set(e, ERR_SHAPE, "'%s': the two matrices of '%s' do not fit", path, p->name));
        if (p->rank != (double)p->a->t.n[0] || !isfinite(p->scale) || fabs(p->scale) > 1e6)
            TRY(err_set(e, ERR_FORMAT,
                        "'%s': '%s' has rank %lld, adapter_config.json says rank %g and scale %g", path,
                        p->name, (long long)p->a->t.n[0], p->rank, p->scale));
    }
    qsort(set->pair, set->n, sizeof *set->pair, pair_order);
out:
    json_decref(c.json);
    return rc;
}

void lora_close(struct lora_set *set)
{
    weights_close(set->weights);
    free(set->pair);
    free(set->rest);
    *set = (struct lora_set){ 0 };
}

void lora_mark(struct lora_set *set, const struct weight *w)
{
    for (size_t i = 0; i < set->n_rest; i++)
        if (set->rest[i].w == w) set->rest[i].used = true;
}

struct lora_pair *lora_find(struct lora_set *set, const char *name)
{
    struct lora_pair key;
    snprintf(key.name, sizeof key.name, "%s", name);
    return set->n ? bsearch(&key, set->pair, set->n, sizeof key, pair_order) : NULL;
}

int lora_fits(const struct lora_pair *p, struct tensor w, struct err *e)
{
    if (w.nd == 2 && p->a->t.n[1] == w.n[1] && p->b->t.n[0] == w.n[0]) return 0;
    return err_set(e, ERR_SHAPE, "adapter of '%s' is for [%lld, %lld], the base has [%lld, %lld]", p->name,
                   (long long)p->b->t.n[0], (long long)p->a->t.n[1], (long long)w.n[0], (long long)w.n[1]);
}

enum { TILE_ROWS = 4, TILE_COLS = 1024 }; /* of B A: sums stay in the first cache, rows of A are used for four */

/* sum = B[4,R] A[R,cols of I]. Each sum runs over r from 0 up, in f32. */
static void tile_product(float sum[TILE_ROWS][TILE_COLS], const float *a, const float *b, int64_t R, int64_t I,
                         int64_t cols)
{
    memset(sum, 0, sizeof(float) * TILE_ROWS * TILE_COLS);
    for (int64_t r = 0; r < R; r++) {
        const float *x = a + r * I;
        float b0 = b[r], b1 = b[R + r], b2 = b[2 * R + r], b3 = b[3 * R + r];
#pragma omp simd
        for (int64_t i = 0; i < cols; i++) {
            sum[0][i] += b0 * x[i];
            sum[1][i] += b1 * x[i];
            sum[2][i] += b2 * x[i];
            sum[3][i] += b3 * x[i];
        }
    }
}

/* n elements from `at` on: out = w + scale * sum, rounded once. */
static void tile_put(struct tensor out, struct tensor w, int64_t at, int64_t n, const float *sum, float scale)
{
    float row[TILE_COLS];
    enum dtype from = (enum dtype)w.type, to = (enum dtype)out.type;
    dtype_convert(row, DT_F32, (char *)w.p + (size_t)at * dtype_bytes(from), from, n);
    for (int64_t i = 0; i < n; i++) row[i] += scale * sum[i];
    dtype_convert((char *)out.p + (size_t)at * dtype_bytes(to), to, row, DT_F32, n);
}

int lora_merge(struct lora_pair *p, struct tensor out, struct tensor w, struct err *e)
{
    int rc = lora_fits(p, w, e);
    if (rc < 0) return rc;
    int64_t O = w.n[0], I = w.n[1], R = p->a->t.n[0], rows = (O + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
    float *a = malloc((size_t)(R * I) * sizeof *a), *b = calloc((size_t)(rows * R), sizeof *b);
    if (a && b) {
        dtype_convert(a, DT_F32, p->a->t.p, (enum dtype)p->a->t.type, R * I);
        dtype_convert(b, DT_F32, p->b->t.p, (enum dtype)p->b->t.type, O * R);
#pragma omp parallel for schedule(static)
        for (int64_t o = 0; o < O; o += TILE_ROWS)
            for (int64_t i = 0; i < I; i += TILE_COLS) {
                float sum[TILE_ROWS][TILE_COLS];
                int64_t cols = I - i < TILE_COLS ? I - i : TILE_COLS;
                tile_product(sum, a + i, b + o * R, R, I, cols);
                for (int64_t k = 0; k < TILE_ROWS && o + k < O; k++)
                    tile_put(out, w, (o + k) * I + i, cols, sum[k], (float)p->scale);
            }
        p->used = true;
    } else {
        rc = err_set(e, ERR_NOMEM, "no memory to merge '%s'", p->name);
    }
    free(a);
    free(b);
    return rc;
}

static int check_pairs(const struct lora_set *set, const char *dir, struct err *e)
{
    for (size_t i = 0; i < set->n; i++)
        if (!set->pair[i].used)
            return err_set(e, ERR_MISSING, "'%s' adapts '%s', which the base model does not have", dir,
                           set->pair[i].name);
    return 0;
}

int lora_check_used(const struct lora_set *set, const char *dir, struct err *e)
{
    for (size_t i = 0; i < set->n_rest; i++)
        if (!set->rest[i].used)
            return err_set(e, ERR_MISSING, "'%s' brings '%s', which the base model does not have", dir,
                           set->rest[i].w->name);
    return check_pairs(set, dir, e);
}

/* ---- adapters that stay apart */

struct serving {
    struct lora_set *set;
    struct llava_model *m;
    struct arena *mem;
    int number;
};

static struct tensor placed(const struct serving *s, struct tensor t)
{
    if (!s->m->dev) return t;
    const void *host = t.p;
    t.p = arena_take(s->mem, tensor_bytes(t));
    dev_put(s->m->dev, t.p, host, tensor_bytes(t));
    return t;
}

static int serve_row(void *ctx, const struct bind_row *r, struct err *e)
{
    struct serving *s = ctx;
    struct lora_pair *p = lora_find(s->set, r->name);
    if (!p) return 0;
    if (!(r->flags & BIND_LINEAR) || !r->linear)
        return err_set(e, ERR_UNSUPPORTED, "it adapts '%s', no linear of the language model: merge it", r->name);
    int rc = lora_fits(p, r->param->w, e);
    if (rc < 0) return rc;
    if (!r->linear->served) r->linear->served = calloc(OP_ADAPTERS, sizeof *r->linear->served);
    if (!r->linear->served) return err_set(e, ERR_NOMEM, "no memory for an adapter");
    struct lora *l = (struct lora *)&r->linear->served[s->number];
    *l = (struct lora){ .scale = (float)p->scale };
    l->a.w = placed(s, p->a->t);
    l->b.w = placed(s, p->b->t);
    p->used = true;
    return 0;
}

size_t lora_bytes(const struct lora_set *set)
{
    size_t bytes = 0;
    for (size_t i = 0; i < set->n; i++)
        bytes += tensor_bytes(set->pair[i].a->t) + tensor_bytes(set->pair[i].b->t) + 2 * ARENA_ALIGN;
    return bytes;
}

int lora_serve(struct lora_set *set, struct llava_model *m, int number, struct arena *mem, const char *dir,
               struct err *e)
{
    struct serving s = { set, m, mem, number };
    int rc = 0;
    if (m->dev) TRY(dev_arena(mem, m->dev, lora_bytes(set), e));
    TRY(llava_each(m, serve_row, &s, e));
    TRY(check_pairs(set, dir, e));
out:
    return rc;
}

void lora_base_name(const char *dir, char *name, size_t size)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/adapter_config.json", dir);
    json_t *o = NULL;
    const char *base = NULL;
    struct err ignore;
    if (json_file_load(&o, path, &ignore) >= 0 && json_get_str(o, "base_model_name_or_path", &base, &ignore) > 0)
        snprintf(name, size, "it was trained on '%s'", base);
    json_decref(o);
}
