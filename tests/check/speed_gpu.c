/* How fast the kernels that decide are on a GPU, beside what the card can do, measured in the same run: bytes a second
 * of decode's products and attention, operations a second of attention over prompts. Weights and caches are random
 * and so many that none is found in a cache again; launches are recorded and replayed, as the engine does it.
 *
 *     speed_gpu [--device cuda:0] [word ...]
 *
 * Words choose rows: those whose names contain one of them. Without --device nothing is measured.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/plat.h"
#include "base/rng.h"
#include "dev/dev.h"
#include "kern/kern.h"

static const struct tensor none = { 0 };

enum { NOISE = 1 << 22 /* bytes that repeat */, ROUNDS = 5 };

struct bench {
    struct dev *dev;
    struct kern k;
    struct kctx kc;
    struct arena scratch, data;
    struct tensor noise; /* on the device */
    double ceiling; /* bytes a second; 0: not known yet */
    int n_words;
    char **words;
};

static bool is_wanted(const struct bench *b, const char *name)
{
    for (int i = 0; i < b->n_words; i++)
        if (strstr(name, b->words[i])) return true;
    return b->n_words == 0;
}

static struct tensor take(struct bench *b, enum dtype type, int64_t rows, int64_t cols)
{
    struct tensor x = tensor_2d(NULL, type, rows, cols);
    x.p = arena_take(&b->data, tensor_bytes(x));
    return x;
}

/* bf16, normal numbers times 1/8. */
static struct tensor noise(struct bench *b, int64_t rows, int64_t cols)
{
    struct tensor x = take(b, DT_BF16, rows, cols);
    const size_t bytes = tensor_bytes(x);
    for (size_t at = 0; at < bytes; at += NOISE)
        dev_copy(b->dev, (char *)x.p + at, b->noise.p, bytes - at < NOISE ? bytes - at : NOISE);
    return x;
}

static struct tensor put(struct bench *b, const int32_t *v, int64_t rows, int64_t cols)
{
    struct tensor x = take(b, DT_I32, rows, cols);
    dev_put(b->dev, x.p, v, tensor_bytes(x));
    return x;
}

/* Seconds of what `launch` does: median of replays; outside of capture where the device cannot. */
static double time_of(struct bench *b, void (*launch)(struct bench *, void *), void *what)
{
    struct dev_graph *g = NULL;
    struct dev_event *from = dev_event_new(b->dev), *to = dev_event_new(b->dev);
    struct err e;
    double s[ROUNDS];
    launch(b, what); /* libraries choose and load */
    const bool captured = dev_captures(b->dev) && dev_capture_begin(b->dev, &e) == 0;
    if (captured) {
        launch(b, what);
        if (dev_capture_end(&g, b->dev, &e) < 0) g = NULL;
    }
    for (int i = -1; i < ROUNDS; i++) {
        dev_event_record(b->dev, from);
        if (g) dev_graph_run(b->dev, g);
        else launch(b, what);
        dev_event_record(b->dev, to);
        dev_event_wait(to);
        const double t = dev_event_s(from, to);
        int at = i < 0 ? 0 : i;
        for (; at > 0 && s[at - 1] > t; at--) s[at] = s[at - 1];
        s[at] = t;
    }
    dev_graph_free(g);
    dev_event_free(from);
    dev_event_free(to);
    return s[ROUNDS / 2];
}

static void report(const struct bench *b, const char *name, double s, double bytes, double flops)
{
    printf("%-44s %9.1f us", name, s * 1e6);
    if (bytes > 0) printf(" %8.0f GB/s", bytes / s * 1e-9);
    if (bytes > 0 && b->ceiling > 0) printf(" %5.1f%%", 100 * bytes / s / b->ceiling);
    if (flops > 0) printf(" %8.1f TFLOP/s", flops / s * 1e-12);
    printf("\n");
    fflush(stdout);
}

/* ---- ceilings */

struct big { struct tensor x, y, w; };

static void launch_add(struct bench *b, void *what)
{
    const struct big *s = what;
    b->k.axpy(&b->kc, s->y, s->x, 1e-3f);
}

static void launch_product(struct bench *b, void *what)
{
    const struct big *s = what;
    b->k.matmul(&b->kc, s->y, s->x, s->w, none, none);
}

static void ceilings(struct bench *b)
{
    arena_rewind(&b->data, 0);
    struct big s = { .x = noise(b, 1 << 20, 1 << 10), .y = noise(b, 1 << 20, 1 << 10) };
    double t = time_of(b, launch_add, &s), bytes = 3 * (double)tensor_bytes(s.x);
    report(b, "ceiling: 4 GB read, 2 GB written", t, bytes, 0);
    b->ceiling = bytes / t;
    arena_rewind(&b->data, 0);
    s = (struct big){ noise(b, 8192, 8192), take(b, DT_BF16, 8192, 8192), noise(b, 8192, 8192) };
    b->kc.decode = false;
    t = time_of(b, launch_product, &s);
    report(b, "ceiling: product of 8192 x 8192 x 8192", t, 0, 2.0 * 8192 * 8192 * 8192);
}

/* ---- decode: a model's layers, one kind of kernel at a time, then whole layers */

enum { LAYERS = 8, PAGES = 4096 / KV_PAGE, ROWS = 64 };
enum part { QKV, O, GLU, DOWN, HEAD, ATTN, WHOLE, PARTS };
static const char *const parts[] = { "qkv", "o", "gate up", "down", "head", "attention", "layer" };

struct layer { struct tensor norm, q, k, v, o, gate, up, down, head, k_store, v_store; };
struct shape { const char *name; int64_t C, F, V, H; };
struct decode {
    const struct shape *of;
    enum dtype type; /* of weights; with quantised ones the cache has 8 bits */
    enum part part;
    int64_t T, deep; /* rows; how many keys each sees */
    struct layer layers[LAYERS];
    struct tensor x, q, k, v, y, h, logits, range, pos, table, idx, pages;
};
static const struct shape shapes[] = { { "13b", 5120, 13824, 32000, 40 }, { "7b", 4096, 11008, 32000, 32 } };

static void launch_part(struct bench *b, const struct decode *d, enum part part, const struct layer *l)
{
    const struct tensor qkv[3] = { d->q, d->k, d->v }, w[3] = { l->q, l->k, l->v }, no_bias[3] = { { 0 } };
    struct kctx *kc = &b->kc;
    switch (part) {
    case QKV: b->k.norm_matmul(kc, qkv, d->x, l->norm, 1e-5f, w, no_bias, 3); break;
    case O: b->k.matmul(kc, d->x, d->y, l->o, none, d->x); break;
    case GLU: b->k.norm_glu(kc, d->h, d->x, l->norm, 1e-5f, l->gate, l->up); break;
    case DOWN: b->k.matmul(kc, d->x, d->h, l->down, none, d->x); break;
    case HEAD: b->k.matmul(kc, d->logits, d->x, l->head, none, none); break;
    case ATTN:
        b->k.rope_attn(kc, d->y, d->q, d->k, d->v, d->pos, d->table, l->k_store, l->v_store, d->idx, d->range, d->pages,
                       0.1f);
        break;
    default:
        launch_part(b, d, QKV, l);
        for (int p = ATTN; p != HEAD; p = p == ATTN ? O : p + 1) launch_part(b, d, (enum part)p, l);
    }
}

static void launch_decode(struct bench *b, void *what)
{
    const struct decode *d = what;
    for (int i = 0; i < LAYERS; i++) launch_part(b, d, d->part, &d->layers[i]);
}

/* What a layer's part must read and write of what is large. */
static double part_bytes(const struct decode *d)
{
    const struct layer *l = d->layers;
    const double o = (double)tensor_bytes(l->o), gate = (double)tensor_bytes(l->gate),
                 down = (double)tensor_bytes(l->down),
                 cache = 2 * (double)(d->T * d->deep) * (double)tensor_bytes(l->k_store) / (double)l->k_store.n[0];
    const double bytes[PARTS] = { 3 * o, o, 2 * gate, down, (double)tensor_bytes(l->head), cache,
                                  4 * o + 2 * gate + down + cache };
    return bytes[d->part];
}

/* noise, as rows of type. */
static struct tensor noise_as(struct bench *b, enum dtype type, int64_t rows, int64_t cols)
{
    if (type == DT_BF16) return noise(b, rows, cols);
    struct tensor x = take(b, type, rows, cols);
    const size_t mark = arena_mark(&b->data);
    b->k.cast(&b->kc, x, noise(b, rows, cols));
    arena_rewind(&b->data, mark);
    return x;
}

static void layers_new(struct bench *b, struct decode *d)
{
    const int64_t C = d->of->C, F = d->of->F, S = (int64_t)ROWS / 2 * 1024;
    const enum dtype w = d->type, store = dtype_is_quant(w) ? DT_Q8 : w;
    for (struct layer *l = d->layers; l < d->layers + LAYERS; l++)
        *l = (struct layer){ noise(b, 1, C), noise_as(b, w, C, C), noise_as(b, w, C, C), noise_as(b, w, C, C),
                             noise_as(b, w, C, C), noise_as(b, w, F, C), noise_as(b, w, F, C), noise_as(b, w, C, F),
                             noise_as(b, store, d->of->V, C), noise_as(b, store, S, C), noise_as(b, store, S, C) };
}

/* T rows, each the next of a sequence of its own; pages in disorder, in lists for 2,048 positions at least. */
static void rows_new(struct bench *b, struct decode *d)
{
    int32_t range[ROWS * 3], pos[ROWS], idx[ROWS], pages[ROWS / 2 * PAGES] = { 0 };
    const int32_t per = (int32_t)((d->deep + KV_PAGE - 1) / KV_PAGE), n = (int32_t)d->T * per;
    const int64_t C = d->of->C, T = d->T;
    const int32_t width = per > PAGES / 2 ? per : PAGES / 2;
    for (int32_t i = 0; i < n; i++) pages[i / per * width + i % per] = (int32_t)((int64_t)i * 7919 % n); /* a prime */
    for (int32_t t = 0; t < T; t++) {
        range[3 * t] = 0, range[3 * t + 1] = (int32_t)d->deep, range[3 * t + 2] = t;
        pos[t] = (int32_t)d->deep - 1;
        idx[t] = pages[t * width + per - 1] * KV_PAGE + pos[t] % KV_PAGE;
    }
    d->range = put(b, range, T, 3), d->pos = put(b, pos, 1, T), d->idx = put(b, idx, 1, T);
    d->pos.nd = d->idx.nd = 1, d->pos.n[0] = d->idx.n[0] = T;
    d->pages = put(b, pages, T, width);
    d->table = take(b, DT_F32, 4096, C / d->of->H);
    dev_fill(b->dev, d->table.p, 0, tensor_bytes(d->table));
    d->x = noise(b, T, C), d->q = noise(b, T, C), d->k = noise(b, T, C), d->v = noise(b, T, C);
    d->y = noise(b, T, C), d->h = noise(b, T, d->of->F), d->logits = take(b, DT_F32, T, d->of->V);
}

/* 640 keys are equal parts of whole rounds however they are divided; 688, which an answer of 48 tokens ends with, are
 * not. */
static void decode(struct bench *b, const struct shape *of, enum dtype type)
{
    static const struct { int64_t T, deep; } sizes[] = { { 1, 640 }, { 1, 688 }, { 1, 4096 }, { 8, 640 }, { 8, 688 },
                                                         { 16, 640 }, { 32, 640 }, { 32, 688 }, { 64, 320 } };
    struct decode d = { .of = of, .type = type };
    size_t mark = 0;
    arena_rewind(&b->data, 0);
    b->kc.decode = true;
    b->kc.product = dtype_is_quant(type) ? DT_Q8 : type;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes * PARTS; i++) {
        const int64_t T = sizes[i / PARTS].T, deep = sizes[i / PARTS].deep;
        const enum part p = (enum part)(i % PARTS);
        char name[80];
        snprintf(name, sizeof name, "%s %s %s, %d rows, %d deep", of->name, dtype_name(type), parts[p], (int)T,
                 (int)deep);
        if (!is_wanted(b, name) || (deep > 640 && p < ATTN)) continue;
        if (!mark) layers_new(b, &d), mark = arena_mark(&b->data);
        if (d.T != T || d.deep != deep) {
            arena_rewind(&b->data, mark);
            d.T = T, d.deep = deep;
            rows_new(b, &d);
        }
        d.part = p;
        report(b, name, time_of(b, launch_decode, &d) / LAYERS, part_bytes(&d), 0);
    }
}

/* ---- attention over prompts */

struct prompt {
    struct tensor y, lse, q, k, v, dy, dq, dk, dv, range;
    int heads;
};

static void launch_fwd(struct bench *b, void *what)
{
    const struct prompt *p = what;
    b->k.attn_fwd(&b->kc, p->y, p->lse, p->q, p->k, p->v, p->range, none, p->heads, 0.1f);
}

static void launch_bwd(struct bench *b, void *what)
{
    const struct prompt *p = what;
    b->k.attn_bwd(&b->kc, p->dq, p->dk, p->dv, p->dy, p->y, p->lse, p->q, p->k, p->v, p->range, p->heads, 0.1f);
}

enum seen { CAUSAL, ALL, PACKED }; /* PACKED: segments of a quarter each, causal */

/* Keys and values of 8 bits, as a cache may have them. */
static struct tensor rounded(struct bench *b, struct tensor x)
{
    struct tensor y = take(b, DT_Q8, tensor_rows(x), tensor_cols(x));
    b->k.cast(&b->kc, y, x);
    return y;
}

static void prompt(struct bench *b, int64_t T, int64_t H, int64_t D, enum seen seen)
{
    static const char *const how[] = { "causal", "all", "packed in 4" };
    static int32_t range[2 * 8192];
    struct prompt p = { .heads = (int)H };
    double pairs = 0;
    char name[80];
    for (int32_t t = 0; t < T; t++) {
        range[2 * t] = seen == PACKED ? t / (int32_t)(T / 4) * (int32_t)(T / 4) : 0;
        range[2 * t + 1] = seen == ALL ? (int32_t)T : t + 1;
        pairs += range[2 * t + 1] - range[2 * t];
    }
    arena_rewind(&b->data, 0);
    p.range = put(b, range, T, 2);
    struct tensor *all[] = { &p.y, &p.q, &p.k, &p.v, &p.dy, &p.dq, &p.dk, &p.dv };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) *all[i] = noise(b, T, H * D);
    p.lse = take(b, DT_F32, T, H);
    b->kc.decode = false;
    snprintf(name, sizeof name, "attention forward, T %d H %d D %d, %s", (int)T, (int)H, (int)D, how[seen]);
    if (is_wanted(b, name)) report(b, name, time_of(b, launch_fwd, &p), 0, 4 * pairs * (double)(H * D));
    snprintf(name, sizeof name, "attention backward, T %d H %d D %d, %s", (int)T, (int)H, (int)D, how[seen]);
    if (is_wanted(b, name)) report(b, name, time_of(b, launch_bwd, &p), 0, 10 * pairs * (double)(H * D));
    snprintf(name, sizeof name, "attention forward, Q8 cache, T %d H %d D %d, %s", (int)T, (int)H, (int)D, how[seen]);
    if (!is_wanted(b, name)) return;
    p.k = rounded(b, p.k), p.v = rounded(b, p.v);
    report(b, name, time_of(b, launch_fwd, &p), 0, 4 * pairs * (double)(H * D));
}

static void prompts(struct bench *b)
{
    for (int seen = CAUSAL; seen <= PACKED; seen++) prompt(b, 2048, 40, 128, (enum seen)seen);
    prompt(b, 8192, 40, 128, CAUSAL);
    prompt(b, 2048, 64, 64, ALL);
    prompt(b, 577, 16, 64, ALL);
    prompt(b, 577 * 8, 16, 64, ALL);
}

/* ---- the program */

static void noise_new(struct bench *b)
{
    static uint16_t v[NOISE / 2];
    struct rng r;
    rng_seed(&r, 1);
    for (int i = 0; i < NOISE / 2; i++) v[i] = f32_to_bf16((float)rng_normal(&r) / 8);
    b->noise = take(b, DT_BF16, 1, NOISE / 2);
    dev_put(b->dev, b->noise.p, v, NOISE);
}

int main(int argc, char **argv)
{
    struct bench b = { .words = argv };
    struct arena noise_memory = { 0 };
    const char *device = NULL;
    struct err e;
    int rc;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--device") && i + 1 < argc) device = argv[++i];
        else argv[b.n_words++] = argv[i];
    }
    if (!device) return printf("1..0 # skip nothing is measured without --device\n"), 0;
    TRY(dev_open(&b.dev, device, &e));
    TRY(dev_arena(&b.data, b.dev, NOISE, &e));
    noise_new(&b);
    noise_memory = b.data;
    b.data = (struct arena){ 0 };
    TRY(dev_arena(&b.data, b.dev, (size_t)24 << 30, &e));
    TRY(dev_arena(&b.scratch, b.dev, (size_t)1 << 30, &e));
    TRY(kern_init(&b.k, b.dev, NULL, &e));
    b.kc = (struct kctx){ .scratch = &b.scratch, .n_threads = 1, .product = DT_BF16, .dev = b.dev };
    printf("%s\n", dev_model(b.dev));
    ceilings(&b);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes * 3; i++)
        decode(&b, &shapes[i / 3], i % 3 == 0 ? DT_BF16 : i % 3 == 1 ? DT_Q8 : DT_Q4);
    b.kc.product = DT_BF16;
    prompts(&b);
out:
    if (rc < 0) fprintf(stderr, "speed_gpu: %s\n", e.msg);
    arena_fini(&b.scratch);
    arena_fini(&b.data);
    arena_fini(&noise_memory);
    dev_close(b.dev);
    return rc < 0;
}
