/* See session.h. Prefill with reuse, and generation. */
#include "run/session.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/plat.h"

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
        c.feature[i] = at->token < 0 ? k : -1;
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
    int fits = prompt_fits(p, s->g, e);
    if (fits < 0) return fits;
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
    struct step step = { .n = 1, .decode = true, .token = c.token, .feature = c.feature,
                         .pos = c.pos, .range = c.range, .row = c.row };
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

int sampling_check(const struct llava_sampling *o, struct err *e)
{
    if (o->temperature >= 0 && o->top_p > 0 && o->top_p <= 1 && o->top_k >= 0 && o->max_new_tokens >= 1) return 0;
    return err_set(e, ERR_USAGE,
                   "sampling wants temperature >= 0, 0 < top_p <= 1, top_k >= 0 and at least one new token");
}

static int generate_begin(struct session *s, const struct llava_sampling *o, struct err *e)
{
    if (!s->ready) return err_set(e, ERR_USAGE, "no prompt was read before generating");
    int rc = sampling_check(o, e);
    if (rc < 0) return rc;
    s->sampler.temperature = o->temperature;
    s->sampler.top_k = o->top_k;
    s->sampler.top_p = o->top_p;
    rng_seed(&s->sampler.rng, o->seed);
    stream_fini(&s->stream);
    stream_init(&s->stream, s->g->tok);
    stopper_fini(&s->stopper);
    stopper_init(&s->stopper);
    for (int i = 0; i < o->n_stop; i++) {
        rc = stopper_add(&s->stopper, o->stop[i], strlen(o->stop[i]), e);
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
