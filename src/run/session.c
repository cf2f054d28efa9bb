/* See session.h. Prompts to positions, prefill with reuse, and generation. */
#include "run/session.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/plat.h"

/* ---- pictures */

static uint64_t mix(uint64_t h, uint64_t v)
{
    h = (h ^ v) * 0xff51afd7ed558ccdu;
    return h ^ (h >> 32);
}

static uint64_t key_of(const struct pixels *p)
{
    uint64_t h = mix(mix(mix(1, (uint64_t)p->n), (uint64_t)p->w0), (uint64_t)p->h0), v;
    size_t n = (size_t)p->n * 3 * (size_t)p->w * (size_t)p->h / 2; /* pairs of floats */
    for (size_t i = 0; i < n; i++) {
        memcpy(&v, p->data + 2 * i, sizeof v);
        h = mix(h, v);
    }
    return h;
}

int image_new(struct image **ret, struct engine *g, const struct picture *pic, struct err *e)
{
    const struct llava_config *c = &g->model.cfg;
    if (!c->has_vision) return err_set(e, ERR_UNSUPPORTED, "the model '%s' has no vision tower", g->name);
    struct image *im = calloc(1, sizeof *im);
    if (!im) return err_set(e, ERR_NOMEM, "no memory for a picture");
    int rc = pixels_new(&im->pixels, pic, &g->proc, c->aspect, &c->pinpoints, e);
    if (rc < 0) {
        free(im);
        return rc;
    }
    int side = c->clip.image;
    if (im->pixels.w != side || im->pixels.h != side) {
        rc = err_set(e, ERR_SHAPE,
                     "the picture processor of '%s' makes pictures of %dx%d, its vision tower reads %dx%d",
                     g->name, im->pixels.w, im->pixels.h, side, side);
        image_free(im);
        return rc;
    }
    im->key = key_of(&im->pixels);
    *ret = im;
    return 0;
}

void image_free(struct image *im)
{
    if (!im) return;
    pixels_free(&im->pixels);
    free(im->features);
    free(im);
}

/* Puts tile features into the order in which the language model reads them; -1 is image_newline. */
static int merge_features(struct image *im, struct engine *g, float *tiles, struct err *e)
{
    const struct llava_config *c = &g->model.cfg;
    int width = c->llama.C, rows = llava_tile_rows(&g->model);
    if (im->pixels.n == 1 && (c->aspect != ASPECT_ANYRES || c->merge == MERGE_FLAT)) {
        im->features = tiles;
        im->n_rows = rows;
        return 0;
    }
    struct grid grid = { 0, 0 };
    if (im->pixels.n > 1) grid = anyres_grid(&c->pinpoints, im->pixels.w0, im->pixels.h0, im->pixels.w);
    int side = c->clip.image / c->clip.patch;
    int64_t n = merge_rows(NULL, c->merge, grid, side, im->pixels.w0, im->pixels.h0);
    int32_t *at = malloc((size_t)n * sizeof *at);
    float *out = malloc((size_t)n * (size_t)width * sizeof *out), *newline = malloc((size_t)width * sizeof *newline);
    if (!at || !out || !newline) {
        free(at), free(out), free(newline), free(tiles);
        return err_set(e, ERR_NOMEM, "no memory for a picture's features");
    }
    struct tensor nl = g->model.newline.w;
    if (nl.p) dtype_convert(newline, DT_F32, nl.p, (enum dtype)nl.type, width);
    merge_rows(at, c->merge, grid, side, im->pixels.w0, im->pixels.h0);
    for (int64_t i = 0; i < n; i++)
        memcpy(out + i * width, at[i] < 0 ? newline : tiles + (int64_t)at[i] * width, (size_t)width * sizeof *out);
    free(at), free(newline), free(tiles);
    im->features = out;
    im->n_rows = (int)n;
    return 0;
}

int image_encode(struct image *im, struct engine *g, double *spent_s, struct err *e)
{
    if (im->features) return 0;
    double t = plat_now_s();
    size_t rows = (size_t)im->pixels.n * (size_t)llava_tile_rows(&g->model);
    float *tiles = malloc(rows * (size_t)g->model.cfg.llama.C * sizeof *tiles);
    if (!tiles) return err_set(e, ERR_NOMEM, "no memory for a picture's features");
    engine_encode(g, im->pixels.data, im->pixels.n, tiles);
    int rc = merge_features(im, g, tiles, e);
    if (spent_s) *spent_s += plat_now_s() - t;
    return rc;
}

/* ---- prompts */

static int prompt_expand(struct prompt *p, struct image *const *images, struct err *e)
{
    int64_t n = 0;
    int at_image = 0;
    for (size_t i = 0; i < p->ids.n; i++) n += p->ids.p[i] == IDS_IMAGE ? images[at_image++]->n_rows : 1;
    p->at = malloc((size_t)(n + 1) * sizeof *p->at);
    if (!p->at) return err_set(e, ERR_NOMEM, "no memory for a prompt of %lld positions", (long long)n);
    at_image = 0;
    for (size_t i = 0; i < p->ids.n; i++) {
        int32_t id = p->ids.p[i];
        if (id != IDS_IMAGE) {
            p->at[p->n++] = (struct position){ (uint64_t)id, id, 0, 0 };
            continue;
        }
        const struct image *im = images[at_image];
        for (int r = 0; r < im->n_rows; r++)
            p->at[p->n++] = (struct position){ mix(im->key, (uint64_t)r + 1) | (uint64_t)1 << 63, -1, at_image, r };
        at_image++;
    }
    return 0;
}

int prompt_make(struct prompt *p, struct engine *g, const char *text, struct image *const *images, int n,
                double *image_s, struct err *e)
{
    const struct llava_config *c = &g->model.cfg;
    *p = (struct prompt){ .ids = ids_make(IDS_MAX) };
    int rc, marks = 0;
    if (!g->tok) TRY(err_set(e, ERR_UNSUPPORTED, "the model '%s' has no tokenizer", g->name));
    TRY(tokenizer_encode_prompt(g->tok, text, strlen(text), &p->ids, e));
    TRY(ids_check(&p->ids, "the prompt", e));
    for (size_t i = 0; i < p->ids.n; i++) {
        marks += p->ids.p[i] == IDS_IMAGE;
        if (p->ids.p[i] >= c->llama.V)
            TRY(err_set(e, ERR_SHAPE, "token %d is past the %d rows of the embedding of '%s'", p->ids.p[i], c->llama.V,
                        g->name));
    }
    if (marks != n)
        TRY(err_set(e, ERR_USAGE, "the prompt has %d \"<image>\" and there %s %d picture%s", marks,
                    n == 1 ? "is" : "are", n, n == 1 ? "" : "s"));
    for (int i = 0; i < n; i++) TRY(image_encode(images[i], g, image_s, e));
    TRY(prompt_expand(p, images, e));
    if (c->text_max > 0 && p->n > c->text_max) { /* the reference cuts after splicing, silently */
        log_warn("the prompt of %d positions is cut to the model's %d", p->n, c->text_max);
        p->n = c->text_max;
    }
    if (p->n == 0) TRY(err_set(e, ERR_USAGE, "the prompt is empty"));
out:
    if (rc < 0) prompt_fini(p);
    return rc;
}

void prompt_fini(struct prompt *p)
{
    ids_free(&p->ids);
    free(p->at);
    *p = (struct prompt){ 0 };
}

/* ---- session */

int session_open(struct session **ret, struct engine *g, struct err *e)
{
    struct session *s = calloc(1, sizeof *s);
    if (!s) return err_set(e, ERR_NOMEM, "no memory for a session");
    s->g = g;
    int rc;
    TRY(cache_init(&s->cache, g, g->context, e));
    TRY(sampler_init(&s->sampler, g->model.cfg.llama.V, e));
    s->key = malloc((size_t)g->context * sizeof *s->key);
    s->logits = malloc((size_t)g->model.cfg.llama.V * sizeof *s->logits);
    if (!s->key || !s->logits) TRY(err_set(e, ERR_NOMEM, "no memory for a session"));
    if (g->tok) stream_init(&s->stream, g->tok);
    stopper_init(&s->stopper);
    *ret = s;
    return 0;
out:
    session_close(s);
    return rc;
}

void session_close(struct session *s)
{
    if (!s) return;
    cache_fini(&s->cache);
    sampler_fini(&s->sampler);
    stream_fini(&s->stream);
    stopper_fini(&s->stopper);
    free(s->key);
    free(s->logits);
    free(s);
}

/* The arrays of one step, as many as a chunk needs. */
struct chunk {
    int32_t *token, *feature, *pos, *range, *row, *memory;
};

static int chunk_init(struct chunk *c, int n, struct err *e)
{
    c->memory = malloc((size_t)n * 6 * sizeof *c->memory);
    if (!c->memory) return err_set(e, ERR_NOMEM, "no memory for a step");
    c->token = c->memory;
    c->feature = c->token + n;
    c->pos = c->feature + n;
    c->row = c->pos + n;
    c->range = c->row + n;
    return 0;
}

/* A causal token at position p: it sees rows from..p, fills row p. */
static void chunk_put(struct chunk *c, int i, int p, int32_t token, int window)
{
    c->token[i] = token;
    c->pos[i] = c->row[i] = p;
    c->range[2 * i] = window > 0 && p >= window ? p - window + 1 : 0;
    c->range[2 * i + 1] = p + 1;
}

/* Positions from..to of a prompt through the model. Feature rows are copied side by side for the step's gather. */
static int read_chunk(struct session *s, const struct prompt *p, struct image *const *images, int from,
                      int to, float *all, struct err *e)
{
    struct engine *g = s->g;
    int n = to - from, width = g->model.cfg.llama.C, vocab = g->model.cfg.llama.V, n_features = 0;
    struct chunk c = { 0 };
    int rc = chunk_init(&c, n, e);
    if (rc < 0) return rc;
    for (int i = from; i < to; i++) n_features += p->at[i].token < 0;
    float *features = malloc(((size_t)n_features * (size_t)width + 1) * sizeof *features);
    if (!features) {
        free(c.memory);
        return err_set(e, ERR_NOMEM, "no memory for a step");
    }
    int k = 0;
    for (int i = 0; i < n; i++) {
        const struct position *at = &p->at[from + i];
        chunk_put(&c, i, from + i, at->token, g->model.cfg.llama.window);
        c.feature[i] = k;
        if (at->token >= 0) continue;
        memcpy(features + (size_t)k++ * (size_t)width, images[at->image]->features + (size_t)at->row * (size_t)width,
               (size_t)width * sizeof *features);
    }
    struct step step = { .n = n, .token = c.token, .feature = c.feature, .pos = c.pos, .range = c.range, .row = c.row,
                         .all_logits = all != NULL };
    if (n_features) step.features = tensor_2d(features, DT_F32, n_features, width);
    struct tensor logits = engine_step(g, &s->cache, &step);
    if (all) memcpy(all + (size_t)from * (size_t)vocab, logits.p, tensor_bytes(logits));
    memcpy(s->logits, (float *)logits.p + (logits.n[0] - 1) * vocab, (size_t)vocab * sizeof *s->logits);
    for (int i = from; i < to; i++) s->key[i] = p->at[i].key;
    s->n = to;
    free(features);
    free(c.memory);
    return 0;
}

int session_read(struct session *s, const struct prompt *p, struct image *const *images, float *all, struct err *e)
{
    if (p->n > s->g->context)
        return err_set(e, ERR_LIMIT, "the prompt has %d positions, the context of '%s' is %d", p->n, s->g->name,
                       s->g->context);
    double t = plat_now_s();
    int same = 0;
    while (!all && same < s->n && same < p->n - 1 && s->key[same] == p->at[same].key) same++;
    s->ready = false;
    s->n = same;
    s->n_cached = same;
    s->n_prompt = p->n;
    for (int from = same; from < p->n;) {
        int to = from + s->g->chunk < p->n ? from + s->g->chunk : p->n;
        int rc = read_chunk(s, p, images, from, to, all, e);
        if (rc < 0) return rc;
        from = to;
    }
    s->prompt_s = plat_now_s() - t;
    s->ready = true;
    return 0;
}

static void decode_one(struct session *s, int32_t token)
{
    int32_t one[6] = { 0 };
    struct chunk c = { .token = one, .feature = one + 1, .pos = one + 2, .row = one + 3, .range = one + 4 };
    chunk_put(&c, 0, s->n, token, s->g->model.cfg.llama.window);
    struct step step = { .n = 1, .token = c.token, .feature = c.feature, .pos = c.pos, .range = c.range, .row = c.row };
    struct tensor logits = engine_step(s->g, &s->cache, &step);
    memcpy(s->logits, logits.p, tensor_bytes(logits));
    s->key[s->n++] = (uint64_t)token;
}

static bool is_end(const struct llava_config *c, int32_t token)
{
    for (int i = 0; i < c->n_eos; i++)
        if (c->eos[i] == token) return true;
    return false;
}

static int generate_begin(struct session *s, const struct llava_sampling *o, struct err *e)
{
    if (!s->ready) return err_set(e, ERR_USAGE, "no prompt was read before generating");
    if (!(o->temperature >= 0) || !(o->top_p > 0 && o->top_p <= 1) || o->top_k < 0 || o->max_new_tokens < 1)
        return err_set(e, ERR_USAGE,
                       "sampling wants temperature >= 0, 0 < top_p <= 1, top_k >= 0 and at least one new token");
    s->sampler.temperature = o->temperature;
    s->sampler.top_k = o->top_k;
    s->sampler.top_p = o->top_p;
    rng_seed(&s->sampler.rng, o->seed);
    stream_fini(&s->stream);
    stream_init(&s->stream, s->g->tok);
    stopper_fini(&s->stopper);
    stopper_init(&s->stopper);
    for (int i = 0; i < o->n_stop; i++) {
        int rc = stopper_add(&s->stopper, o->stop[i], strlen(o->stop[i]), e);
        if (rc < 0) return rc;
    }
    return 0;
}

/* What the stream has ready goes through the stopper to the caller. False: the caller has had enough. */
static bool hand_out(struct buf *piece, struct buf *shown, llava_text_fn on_text, void *ctx)
{
    bool more = !shown->n || !on_text || on_text(ctx, shown->p, shown->n);
    buf_reset(piece);
    buf_reset(shown);
    return more;
}

/* An enum llava_finish, or -1 for logits that are not numbers. */
static int generate_loop(struct session *s, int most, llava_text_fn on_text, void *ctx, struct llava_result *r,
                                       struct buf *piece, struct buf *shown)
{
    double start = plat_now_s();
    for (r->n_new = 0; r->n_new < most;) {
        int32_t token = sampler_next(&s->sampler, s->logits);
        if (token < 0) return -1;
        r->n_new++;
        if (r->n_new == 1) r->first_s = plat_now_s() - start + s->image_s + s->prompt_s;
        if (is_end(&s->g->model.cfg, token)) return LLAVA_FINISH_END;
        stream_push(&s->stream, token, piece);
        bool stopped = stopper_feed(&s->stopper, piece->n ? piece->p : "", piece->n, shown);
        if (!hand_out(piece, shown, on_text, ctx)) return LLAVA_FINISH_CANCELLED;
        if (stopped) return LLAVA_FINISH_STOP;
        if (r->n_new == most || s->n == s->g->context) break;
        decode_one(s, token);
    }
    return LLAVA_FINISH_LENGTH;
}

int session_generate(struct session *s, const struct llava_sampling *o, llava_text_fn on_text, void *ctx,
                     struct llava_result *r, struct err *e)
{
    int rc = generate_begin(s, o, e), from = s->n;
    if (rc < 0) return rc;
    struct buf piece = buf_make(1 << 24), shown = buf_make(1 << 24);
    *r = (struct llava_result){ .n_prompt = s->n_prompt, .n_cached = s->n_cached, .image_s = s->image_s,
                                .prompt_s = s->prompt_s };
    double t = plat_now_s();
    int finish = generate_loop(s, o->max_new_tokens, on_text, ctx, r, &piece, &shown);
    r->generate_s = plat_now_s() - t;
    if (finish >= 0) r->finish = (enum llava_finish)finish;
    if (finish < 0) {
        rc = engine_blame(s->g, e);
    } else if (finish != LLAVA_FINISH_CANCELLED) {
        stream_flush(&s->stream, &piece);
        stopper_feed(&s->stopper, piece.n ? piece.p : "", piece.n, &shown);
        stopper_flush(&s->stopper, &shown);
        if (!hand_out(&piece, &shown, on_text, ctx)) r->finish = LLAVA_FINISH_CANCELLED;
    } else {
        stream_flush(&s->stream, &piece);
    }
    int steps = s->n - from;
    double bytes =
        steps * ((double)engine_weight_bytes(s->g) + (double)engine_cache_bytes(s->g) * (from + steps / 2.0));
    if (r->generate_s > 0) r->bytes_per_s = bytes / r->generate_s;
    s->ready = false;
    buf_free(&piece);
    buf_free(&shown);
    return rc;
}
