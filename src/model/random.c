/* A model of random weights, for measuring: real shapes, made in memory at the memory's speed. See llava.h. */
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "model/fill.h"
#include "model/load.h"
#include "tensor/quant.h"

enum { NOISE = 1048573 /* a prime: rows of a matrix never start at the same place of the block */, ROWS = 64 << 20 };

struct randomiser {
    struct llava_model *m;
    enum dtype dtype;
    const float *noise;
    void *block; /* the noise in dtype, on the device */
    int bits;    /* as llava_source.bits, linears_only */
    bool linears_only;
    void *group[2]; /* of Q8, Q4: the noise as one quantised row; made when needed, on the host */
    const struct llava_source *s;
    void *rows;     /* ROWS bytes on the device: what is quantised there */
    bool count;
    size_t bytes;
};

/* Rows of groups from one long row of quantised noise, each row from another place: quantising real numbers takes
 * longer than a benchmark. */
static void fill_groups(const struct randomiser *z, struct tensor t)
{
    const enum dtype type = (enum dtype)t.type;
    const int64_t n = quant_groups(t.n[1]), all = NOISE / QUANT_GROUP;
    const int64_t each = type == DT_Q8 ? QUANT_GROUP : QUANT_GROUP / 2;
    const char *from = z->group[type == DT_Q4];
    const uint16_t *scales = (const uint16_t *)(const void *)(from + quant_scales_at(type, all * QUANT_GROUP));
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < t.n[0]; r++) {
        char *row = tensor_row(t, r);
        uint16_t *s = (uint16_t *)(void *)(row + quant_scales_at(type, t.n[1]));
        const int64_t at = r * 37 % (all - n);
        memset(row, 0, dtype_row_bytes(type, t.n[1]));
        memcpy(row, from + at * each, (size_t)(n * each));
        memcpy(s, scales + at, (size_t)n * sizeof *s);
    }
}

static void fill_noise(const struct randomiser *z, struct tensor t);

/* On the device: rows of noise, some at a time, quantised there. */
static void fill_quantised(const struct randomiser *z, struct tensor t)
{
    const int64_t row = (int64_t)dtype_row_bytes(z->dtype, t.n[1]);
    ASSERT(z->s->kern && row <= ROWS);
    for (int64_t at = 0, n; at < t.n[0]; at += n) {
        n = t.n[0] - at < ROWS / row ? t.n[0] - at : ROWS / row;
        const struct tensor some = tensor_2d(z->rows, z->dtype, n, t.n[1]);
        fill_noise(z, some);
        z->s->kern->cast(z->s->kc, tensor_slice(t, at, n), some);
    }
}

/* Tiles of one block of noise, made at the memory's speed. */
static void fill_noise(const struct randomiser *z, struct tensor t)
{
    if (dtype_is_quant((enum dtype)t.type)) {
        (z->m->dev ? fill_quantised : fill_groups)(z, t);
        return;
    }
    const size_t size = dtype_bytes((enum dtype)t.type);
    const int64_t n = tensor_count(t);
#pragma omp parallel for schedule(static) if (!z->m->dev)
    for (int64_t at = 0; at < n; at += NOISE) {
        void *to = (char *)t.p + (size_t)at * size;
        const int64_t k = n - at < NOISE ? n - at : NOISE;
        if (z->m->dev) dev_copy(z->m->dev, to, z->block, (size_t)k * size);
        else dtype_convert(to, (enum dtype)t.type, z->noise, DT_F32, k);
    }
}

/* Normal(0, 0.02) matrices, norms 1, biases 0. */
static int random_one(void *ctx, const struct bind_row *r, struct err *e)
{
    struct randomiser *z = ctx;
    bool matrix = (r->flags & BIND_DECAY) || strstr(r->name, "class_embedding");
    const bool short_bias = z->m->dev && bind_is_bias(r);
    const int bits = !z->linears_only || (r->flags & BIND_LINEAR) ? z->bits : 0;
    const enum dtype type = bind_quant(r, bits, matrix || short_bias ? z->dtype : DT_F32);
    struct tensor t = bind_view(r, z->m, type); /* while counting an address that is not read */
    z->bytes += tensor_bytes(t) + ARENA_ALIGN;
    r->param->w = t;
    if (z->count) return 0;
    r->param->w.p = t.p = arena_take(&z->m->own, tensor_bytes(t));
    if (matrix) {
        fill_noise(z, t);
        return 0;
    }
    bool ones = strstr(r->name, "norm") && strstr(r->name, ".weight");
    int64_t n = tensor_count(t);
    float *v = malloc(2 * (size_t)n * sizeof *v);
    if (!v) return err_set(e, ERR_NOMEM, "no memory for '%s'", r->name);
    for (int64_t i = 0; i < n; i++) v[i] = ones;
    dtype_convert(v + n, type, v, DT_F32, n);
    dev_put(z->m->dev, t.p, v + n, tensor_bytes(t));
    free(v);
    return 0;
}

/* The noise quantised. */
static int groups_make(struct randomiser *z, struct err *e)
{
    if (z->m->dev) return z->bits ? dev_alloc(&z->rows, z->m->dev, ROWS, e) : 0;
    for (int i = 0; i < 2 && z->bits; i++) {
        const enum dtype type = i ? DT_Q4 : DT_Q8;
        const int64_t n = NOISE / QUANT_GROUP * QUANT_GROUP;
        z->group[i] = malloc(quant_row_bytes(type, n));
        if (!z->group[i]) return err_set(e, ERR_NOMEM, "no memory for noise");
        quant_row(z->group[i], type, z->noise, DT_F32, n);
    }
    return 0;
}

/* The block of noise in the parameters' type on the device. */
static int noise_put(struct randomiser *z, struct err *e)
{
    const size_t bytes = NOISE * dtype_bytes(z->dtype);
    void *host = malloc(bytes);
    int rc = host ? dev_alloc(&z->block, z->m->dev, bytes, e) : err_set(e, ERR_NOMEM, "no memory for noise");
    if (rc >= 0) {
        dtype_convert(host, z->dtype, z->noise, DT_F32, NOISE);
        dev_put(z->m->dev, z->block, host, bytes);
    }
    free(host);
    return rc;
}

int llava_model_random(struct llava_model *m, const struct llava_config *cfg, const struct llava_source *s,
                       uint64_t seed, struct err *e)
{
    *m = (struct llava_model){ .cfg = *cfg, .dtype = s->dtype, .bits = s->bits, .dev = s->dev };
    float *noise = malloc(NOISE * sizeof *noise);
    if (!noise) return err_set(e, ERR_NOMEM, "no memory for noise");
    struct rng rng;
    rng_seed(&rng, seed);
    for (int i = 0; i < NOISE; i++) noise[i] = (float)(0.02 * rng_normal(&rng));
    struct randomiser z = { .m = m, .dtype = s->dtype, .noise = noise, .bits = s->bits,
                            .linears_only = s->linears_only, .s = s, .count = true };
    int rc;
    if (cfg->has_clip) TRY(model_check_vision(m, "config.json", e));
    TRY(model_make_layers(m, e));
    TRY(llava_each(m, random_one, &z, e));
    if (cfg->llama.tied) m->llama.head.w = m->llama.embed;
    if (s->admit) TRY(s->admit(s->ctx, z.bytes, e));
    TRY(dev_arena(&m->own, m->dev, z.bytes, e));
    if (m->dev) TRY(noise_put(&z, e));
    TRY(groups_make(&z, e));
    z.count = false;
    TRY(llava_each(m, random_one, &z, e));
    if (cfg->llama.tied) m->llama.head.w = m->llama.embed;
    dev_sync(m->dev);
out:
    if (m->dev) dev_free(m->dev, z.block, NOISE * dtype_bytes(s->dtype));
    if (m->dev) dev_free(m->dev, z.rows, ROWS);
    free(z.group[0]);
    free(z.group[1]);
    free(noise);
    if (rc < 0) llava_model_close(m);
    return rc;
}
