/* LoRA adapters in PEFT's folders: reading and merging. W' = W + scale * B A.  arXiv:2106.09685 eq. 3 */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dev/dev.h"
#include "file/json.h"
#include "model/load.h"

struct adapter_config {
    double alpha;
    int64_t rank;
    bool rslora;
    json_t *json; /* owns what the patterns borrow */
    json_t *rank_pattern, *alpha_pattern;
};

static int config_load(struct adapter_config *c, const char *dir, struct err *e)
{
    *c = (struct adapter_config){ .alpha = 8, .rank = 8 };
    char path[4096];
    bool dora = false, fan = false;
    const char *type = "LORA";
    int rc;
    snprintf(path, sizeof path, "%s/adapter_config.json", dir);
    TRY(json_file_load(&c->json, path, e));
    TRY(json_get_str(c->json, "peft_type", &type, e));
    TRY(json_get_int(c->json, "r", &c->rank, e));
    TRY(json_get_real(c->json, "lora_alpha", &c->alpha, e));
    TRY(json_get_bool(c->json, "use_rslora", &c->rslora, e));
    TRY(json_get_bool(c->json, "use_dora", &dora, e));
    TRY(json_get_bool(c->json, "fan_in_fan_out", &fan, e));
    TRY(json_get_object(c->json, "rank_pattern", &c->rank_pattern, e));
    TRY(json_get_object(c->json, "alpha_pattern", &c->alpha_pattern, e));
    if (strcmp(type, "LORA") != 0 || dora || fan)
        rc = err_set(e, ERR_UNSUPPORTED, "adapter of kind %s%s%s is not supported", type, dora ? " with DoRA" : "",
                     fan ? " with fan_in_fan_out" : "");
    else if (c->rank < 1) rc = err_set(e, ERR_FORMAT, "rank %lld is not positive", (long long)c->rank);
out:
    return rc < 0 ? err_prefix(e, "'%s'", path), rc : 0;
}

/* PEFT's patterns are module suffixes (used as regular expressions there; plain names in practice). */
static double pattern(const json_t *o, const char *module, double otherwise)
{
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)o, key, v)
    {
        size_t n = strlen(module), k = strlen(key);
        if (k <= n && !strcmp(module + n - k, key) && (k == n || module[n - k - 1] == '.') && json_is_number(v))
            return json_number_value(v);
    }
    return otherwise;
}

/* "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight" -> canonical weight name, 'A' or
 * 'B'; 0: no */
static char adapter_key(char *out, size_t size, const char *name)
{
    if (!strncmp(name, "base_model.model.", 17)) name += 17;
    const char *at = strstr(name, ".lora_");
    if (!at || (at[6] != 'A' && at[6] != 'B')) return 0;
    const char *tail = at + 7;
    if (strcmp(tail, ".weight") != 0 && strcmp(tail, ".default.weight") != 0) return 0;
    char plain[NAME_MAX_BYTES];
    snprintf(plain, sizeof plain, "%.*s.weight", (int)(at - name), name);
    return name_canonical(out, size, plain) < 0 ? 0 : at[6];
}

static int pair_order(const void *a, const void *b)
{
    return strcmp(((const struct lora_pair *)a)->name, ((const struct lora_pair *)b)->name);
}

static int pair_add(struct lora_set *set, const struct weight *w, const struct adapter_config *c, struct err *e)
{
    char name[NAME_MAX_BYTES];
    char which = adapter_key(name, sizeof name, w->name);
    if (!which)
        return err_set(e, ERR_UNSUPPORTED, "adapter tensor '%s' of '%s' is not a LoRA matrix", w->name,
                       w->file);
    /* Tensors come in order of their names, so the other half of a pair stands right before. */
    size_t i = set->n && !strcmp(set->pair[set->n - 1].name, name) ? set->n - 1 : set->n;
    if (i == set->n) {
        struct lora_pair *p = realloc(set->pair, (set->n + 1) * sizeof *p);
        if (!p) return err_set(e, ERR_NOMEM, "no memory for an adapter");
        set->pair = p;
        set->pair[set->n++] = (struct lora_pair){ 0 };
        snprintf(set->pair[i].name, sizeof set->pair[i].name, "%s", name);
        char module[NAME_MAX_BYTES];
        snprintf(module, sizeof module, "%.*s", (int)(strlen(name) - 7), name);
        double r = pattern(c->rank_pattern, module, (double)c->rank),
               alpha = pattern(c->alpha_pattern, module, c->alpha);
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
    *set = (struct lora_set){ 0 };
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

int lora_check_used(const struct lora_set *set, const char *dir, struct err *e)
{
    for (size_t i = 0; i < set->n; i++)
        if (!set->pair[i].used)
            return err_set(e, ERR_MISSING, "'%s' adapts '%s', which the base model does not have", dir,
                           set->pair[i].name);
    return 0;
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

int lora_serve(struct lora_set *set, struct llava_model *m, int number, struct arena *mem, const char *dir,
               struct err *e)
{
    struct serving s = { set, m, mem, number };
    size_t bytes = 0;
    int rc = 0;
    for (size_t i = 0; i < set->n; i++)
        bytes += tensor_bytes(set->pair[i].a->t) + tensor_bytes(set->pair[i].b->t) + 2 * ARENA_ALIGN;
    if (m->dev) TRY(dev_arena(mem, m->dev, bytes, e));
    TRY(llava_each(m, serve_row, &s, e));
    TRY(lora_check_used(set, dir, e));
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
