/* See llama2c.h. */
#include "cmd/llama2c.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/load.h"

enum { HEADER = 7 * 4, MAGIC = 0x616b3432 /* "ak42": the formats after the legacy one */ };

/* Sections in file order; those of layers hold all layers one after the other. */
static const char *const sections[] = {
    "model.embed_tokens.weight",
    "model.layers.%d.input_layernorm.weight",
    "model.layers.%d.self_attn.q_proj.weight",
    "model.layers.%d.self_attn.k_proj.weight",
    "model.layers.%d.self_attn.v_proj.weight",
    "model.layers.%d.self_attn.o_proj.weight",
    "model.layers.%d.post_attention_layernorm.weight",
    "model.layers.%d.mlp.gate_proj.weight",
    "model.layers.%d.mlp.down_proj.weight",
    "model.layers.%d.mlp.up_proj.weight",
    "model.norm.weight",
    "", /* cos and sin of RoPE, which are computed anew */
    "lm_head.weight",
};
enum { N_SECTIONS = sizeof sections / sizeof *sections, SECTION_ROPE = 11 };

struct binder {
    struct llama2c *l;
    int64_t at[N_SECTIONS + 1]; /* floats before each section */
    size_t own_bytes;           /* for q_proj and k_proj */
};

static int read_header(struct llama_config *c, const struct map *m, const char *path, struct err *e)
{
    int32_t h[7];
    if (m->n < HEADER) return err_set(e, ERR_FORMAT, "'%s' is too short for a llama2.c checkpoint", path);
    memcpy(h, m->p, sizeof h);
    if (h[0] == MAGIC)
        return err_set(e, ERR_UNSUPPORTED,
                       "'%s' is a llama2.c checkpoint of version %d: only the legacy form is read", path,
                       h[1]);
    int64_t vocab = h[5] < 0 ? -(int64_t)h[5] : h[5];
    bool good = h[0] > 0 && h[0] <= 1 << 16 && h[1] > 0 && h[1] <= 1 << 18 && h[2] > 0 && h[2] <= 1000 &&
                h[3] > 0 && h[3] <= 1024 && h[4] > 0 && h[3] % h[4] == 0 && h[0] % h[3] == 0 &&
                h[0] / h[3] % 2 == 0 && vocab > 0 && vocab <= 1 << 22 && h[6] > 0 && h[6] <= 1 << 20;
    if (!good)
        return err_set(e, ERR_FORMAT, "'%s' is no llama2.c checkpoint: sizes %d, %d, %d, %d, %d, %d, %d",
                       path, h[0], h[1], h[2], h[3], h[4], h[5], h[6]);
    *c = (struct llama_config){ .C = h[0],
                                .F = h[1],
                                .L = h[2],
                                .H = h[3],
                                .K = h[4],
                                .D = h[0] / h[3],
                                .V = (int)vocab,
                                .max_pos = h[6],
                                .eps = 1e-5f,
                                .rope_theta = 10000,
                                .tied = h[5] > 0 };
    return 0;
}

/* The section of a row, and its layer; every row that a Llama has is in the table. */
static int section_of(const char *name, int *layer)
{
    *layer = 0;
    sscanf(name, "model.layers.%d.", layer);
    for (int i = 0; i < N_SECTIONS; i++) {
        char full[NAME_MAX_BYTES];
        snprintf(full, sizeof full, sections[i], *layer);
        if (!strcmp(name, full)) return i;
    }
    BUG("no section for '%s'", name);
}

static int64_t count_of(const struct bind_row *r)
{
    int64_t n = 1;
    for (int i = 0; i < r->nd; i++) n *= r->shape[i];
    return n;
}

static bool rotated(int section)
{
    return section == 2 || section == 3;
}

/* First walk: sizes of sections. */
static int measure(void *ctx, const struct bind_row *r, struct err *e)
{
    struct binder *b = ctx;
    int layer, s = section_of(r->name, &layer);
    (void)e;
    b->at[s + 1] += count_of(r);
    if (rotated(s)) b->own_bytes += (size_t)count_of(r) * sizeof(float) + ARENA_ALIGN;
    return 0;
}

/* Of each head: rows 0, 2, 4, ... then 1, 3, 5, ... */
static void unrotate(float *to, const float *from, int64_t rows, int64_t cols, int D)
{
    for (int64_t r = 0; r < rows; r++) {
        int64_t head = r / D * D, i = r % D, half = D / 2;
        int64_t source = head + (i < half ? 2 * i : 2 * (i - half) + 1);
        memcpy(to + r * cols, from + source * cols, (size_t)cols * sizeof *to);
    }
}

static int place(void *ctx, const struct bind_row *r, struct err *e)
{
    struct binder *b = ctx;
    int layer, s = section_of(r->name, &layer);
    (void)e;
    float *p = (float *)(b->l->map.p + HEADER) + b->at[s] + layer * count_of(r);
    if (rotated(s)) {
        float *own = arena_take(&b->l->model.own, (size_t)count_of(r) * sizeof *own);
        unrotate(own, p, r->shape[0], r->shape[1], b->l->model.cfg.llama.D);
        p = own;
    }
    r->param->w =
        r->nd == 1 ? tensor_1d(p, DT_F32, r->shape[0]) : tensor_2d(p, DT_F32, r->shape[0], r->shape[1]);
    return 0;
}

int llama2c_open(struct llama2c *l, const char *path, struct err *e)
{
    struct binder b = { .l = l };
    *l = (struct llama2c){ 0 };
    struct llava_config *c = &l->model.cfg;
    int rc;
    TRY(map_open(&l->map, path, e));
    TRY(read_header(&c->llama, &l->map, path, e));
    snprintf(c->model_type, sizeof c->model_type, "llama");
    c->bos = c->n_eos = 1;
    c->eos[0] = 2;
    TRY(model_make_layers(&l->model, e));
    b.at[SECTION_ROPE + 1] = (int64_t)c->llama.max_pos * c->llama.D;
    TRY(llava_each(&l->model, measure, &b, e));
    for (int i = 1; i <= N_SECTIONS; i++) b.at[i] += b.at[i - 1];
    uint64_t want = HEADER + (uint64_t)b.at[N_SECTIONS] * sizeof(float);
    if (l->map.n != want)
        TRY(err_set(e, ERR_FORMAT, "'%s' has %zu bytes, its sizes want %llu", path, l->map.n,
                    (unsigned long long)want));
    TRY(arena_init(&l->model.own, b.own_bytes, e));
    TRY(llava_each(&l->model, place, &b, e));
    if (c->llama.tied) l->model.llama.head.w = l->model.llama.embed;
out:
    if (rc < 0) llama2c_close(l);
    return rc;
}

void llama2c_close(struct llama2c *l)
{
    llava_model_close(&l->model);
    map_close(&l->map);
    *l = (struct llama2c){ 0 };
}
