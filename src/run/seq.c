/* See seq.h. */
#include "run/seq.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/plat.h"
#include "run/adapter.h"
#include "text/detok.h"

enum { TEXT_MAX = 1 << 24 };

/* ---- life */

/* Rows of an adapter are not those of the model, or of another. */
static uint64_t key_of(const struct seq *q, uint64_t key)
{
    return q->adapter < 0 ? key : key_mix(0x9e3779b97f4a7c15u * (uint64_t)(q->adapter + 1), key);
}

int seq_new(struct seq **ret, struct engine *g, const struct prompt *p, struct image *const *images, int most,
            int adapter, struct err *e)
{
    int rc = prompt_fits(p->n, g, e);
    if (rc < 0) return rc;
    struct seq *q = calloc(1, sizeof *q);
    if (!q) return err_set(e, ERR_NOMEM, "no memory for a sequence");
    q->g = g;
    q->images = images;
    q->node = STORE_ROOT;
    q->n_prompt = q->n_at = p->n;
    q->n_max = most < g->context - p->n ? p->n + most : g->context;
    q->piece = buf_make(TEXT_MAX);
    q->shown = buf_make(TEXT_MAX);
    stopper_init(&q->stopper);
    q->at = malloc((size_t)q->n_max * sizeof *q->at);
    q->page = malloc((size_t)store_pages(q->n_max) * sizeof *q->page);
    if (!q->at || !q->page) {
        seq_free(q);
        return err_set(e, ERR_NOMEM, "no memory for a sequence");
    }
    memcpy(q->at, p->at, (size_t)p->n * sizeof *q->at);
    q->adapter = adapter;
    q->sight = adapter_sight(g, adapter);
    for (int i = 0; i < p->n; i++) q->at[i].key = key_of(q, q->at[i].key);
    q->r.n_prompt = p->n;
    *ret = q;
    return 0;
}

void seq_free(struct seq *q)
{
    if (!q) return;
    ASSERT(q->n_pages == 0);
    stream_fini(&q->stream);
    stopper_fini(&q->stopper);
    buf_free(&q->piece);
    buf_free(&q->shown);
    match_free(q->match);
    free(q->masked);
    free(q->tilt);
    free(q->seen);
    free(q->ends);
    free(q->logits);
    free(q->page);
    free(q->at);
    free(q);
}

/* ---- asking */

int sampling_check(const struct llava_sampling *o, int V, struct err *e)
{
    for (int i = 0; i < o->n_bias; i++)
        if (o->bias[i].token < 0 || o->bias[i].token >= V || !isfinite(o->bias[i].bias))
            return err_set(e, ERR_USAGE, "a bias of token %d, which is none of %d, or by no number",
                           o->bias[i].token, V);
    if (!isfinite(o->presence_penalty) || !isfinite(o->frequency_penalty))
        return err_set(e, ERR_USAGE, "a penalty is no number");
    if (!(o->min_p >= 0 && o->min_p <= 1) || !(o->repetition_penalty >= 0) || !isfinite(o->repetition_penalty))
        return err_set(e, ERR_USAGE, "sampling wants 0 <= min_p <= 1 and a repetition_penalty above 0");
    for (int i = 0; i < o->n_stop_ids; i++)
        if (o->stop_ids[i] < 0 || o->stop_ids[i] >= V)
            return err_set(e, ERR_USAGE, "token %d that is to end an answer is none of %d", o->stop_ids[i], V);
    if (o->temperature >= 0 && o->top_p > 0 && o->top_p <= 1 && o->top_k >= 0 && o->max_new_tokens >= 1) return 0;
    return err_set(e, ERR_USAGE,
                   "sampling wants temperature >= 0, 0 < top_p <= 1, top_k >= 0 and at least one new token");
}

static int make_masked(struct seq *q, struct err *e)
{
    if (!q->masked) q->masked = malloc((size_t)q->g->model.cfg.llama.V * sizeof *q->masked);
    return q->masked ? 0 : err_set(e, ERR_NOMEM, "no memory for a sequence");
}

static int make_tilt(struct seq *q, const struct llava_sampling *o, struct err *e)
{
    q->presence = o->presence_penalty;
    q->frequency = o->frequency_penalty;
    if (o->n_bias <= 0 && q->presence == 0 && q->frequency == 0) return 0;
    q->tilt = calloc((size_t)q->g->model.cfg.llama.V, sizeof *q->tilt);
    if (!q->tilt) return err_set(e, ERR_NOMEM, "no memory for a sequence");
    for (int i = 0; i < o->n_bias; i++) q->tilt[o->bias[i].token] += o->bias[i].bias;
    return make_masked(q, e);
}

static void see(struct seq *q, int32_t token)
{
    if (q->seen && token >= 0) q->seen[token / 64] |= (uint64_t)1 << (token % 64);
}

/* What else decides: ends, and what is held against tokens that are there already. */
static int make_rules(struct seq *q, const struct llava_sampling *o, struct err *e)
{
    const struct llava_config *c = &q->g->model.cfg;
    q->min_p = o->temperature > 0 ? o->min_p : 0;
    q->repetition = o->repetition_penalty > 0 && fabsf(o->repetition_penalty - 1) > 0 ? o->repetition_penalty : 0;
    q->least = o->min_new_tokens;
    q->endless = o->no_end;
    q->n_ends = c->n_eos + o->n_stop_ids;
    q->ends = malloc(((size_t)q->n_ends + 1) * sizeof *q->ends);
    if (q->repetition > 0) q->seen = calloc((size_t)c->llama.V / 64 + 1, sizeof *q->seen);
    if (!q->ends || (q->repetition > 0 && !q->seen)) return err_set(e, ERR_NOMEM, "no memory for a sequence");
    for (int i = 0; i < q->n_ends; i++) q->ends[i] = i < c->n_eos ? c->eos[i] : o->stop_ids[i - c->n_eos];
    for (int i = 0; i < q->n_prompt; i++) see(q, q->at[i].token);
    return seq_chooses(q) ? make_masked(q, e) : 0;
}

int seq_ask(struct seq *q, const struct llava_sampling *o, struct err *e)
{
    int rc = sampling_check(o, q->g->model.cfg.llama.V, e);
    if (rc < 0) return rc;
    free(q->tilt); /* what an asking that failed has left */
    free(q->seen);
    free(q->ends);
    q->tilt = NULL;
    q->seen = NULL;
    q->ends = NULL;
    stopper_fini(&q->stopper);
    rc = make_tilt(q, o, e);
    if (rc >= 0) rc = make_rules(q, o, e);
    if (rc < 0) return rc;
    q->temperature = o->temperature;
    q->top_k = o->top_k;
    q->top_p = o->top_p;
    rng_seed(&q->rng, o->seed);
    q->most = o->max_new_tokens;
    stream_init(&q->stream, q->g->tok);
    if (o->text == LLAVA_TEXT_CONTINUED) stream_follow(&q->stream);
    if (o->text == LLAVA_TEXT_LINES) stream_by_lines(&q->stream);
    for (int i = 0; i < o->n_stop; i++)
        if ((rc = stopper_add(&q->stopper, o->stop[i], strlen(o->stop[i]), e)) < 0) return rc;
    q->start_s = q->state == SEQ_READY ? plat_now_s() : 0;
    return 0;
}

/* ---- tokens */

static bool is_end(const struct seq *q, int32_t token)
{
    for (int i = 0; i < q->n_ends; i++)
        if (q->ends[i] == token) return true;
    return false;
}

int seq_follow(struct seq *q, const struct grammar *g, const struct vocabulary *v, enum llava_text text, struct err *e)
{
    int rc = match_new(&q->match, g, v, e);
    if (rc >= 0 && text == LLAVA_TEXT_CONTINUED) match_follow(q->match);
    return rc < 0 ? rc : make_masked(q, e);
}

static float tilted(const struct seq *q, const float *logits, int i)
{
    float v = logits[i];
    if (q->seen && q->seen[i / 64] >> (i % 64) & 1) v = v > 0 ? v / q->repetition : v * q->repetition;
    return v + (q->tilt ? q->tilt[i] : 0);
}

/* The end may not be chosen yet: it is taken out of masked, unless nothing else is left. */
static void put_off_end(struct seq *q)
{
    bool other = false;
    for (int i = 0; i < q->g->model.cfg.llama.V && !other; i++) other = q->masked[i] > -INFINITY && !is_end(q, i);
    for (int i = 0; i < q->n_ends && other; i++)
        if (q->ends[i] >= 0 && q->ends[i] < q->g->model.cfg.llama.V) q->masked[q->ends[i]] = -INFINITY;
}

/* Takes out what is too unlikely beside the likeliest. */
static void cut_unlikely(struct seq *q)
{
    const int V = q->g->model.cfg.llama.V;
    float most = -INFINITY;
    for (int i = 0; i < V; i++) most = fmaxf(most, q->masked[i]);
    const float least = most + q->temperature * logf(q->min_p);
    for (int i = 0; i < V; i++)
        if (q->masked[i] < least) q->masked[i] = -INFINITY;
}

/* masked: logits, tilted, of the tokens that the grammar and the other rules let follow. False: there are none. */
static bool mask(struct seq *q, const float *logits)
{
    const uint64_t *may = q->match ? match_tokens(q->match) : NULL;
    const struct llava_config *c = &q->g->model.cfg;
    bool any = false;
    for (int i = 0; i < c->llama.V && (may || !q->match); i++) {
        const bool yes = !may || may[i / 64] >> (i % 64) & 1;
        q->masked[i] = yes ? tilted(q, logits, i) : -INFINITY;
        any |= yes;
    }
    for (int i = 0; i < c->n_eos && may; i++) {
        if (c->eos[i] < 0 || c->eos[i] >= c->llama.V || !match_may_end(q->match)) continue;
        q->masked[c->eos[i]] = tilted(q, logits, c->eos[i]);
        any = true;
    }
    if (any && (q->endless || q->r.n_new < q->least)) put_off_end(q);
    if (any && q->min_p > 0) cut_unlikely(q);
    return any;
}

/* The answer has a token more. */
static void penalise(struct seq *q, int32_t token)
{
    bool before = false;
    for (int i = q->n_prompt; i < q->n_at && !before; i++) before = q->at[i].token == token;
    q->tilt[token] -= q->frequency + (before ? 0 : q->presence);
}

bool seq_goes_on(const struct seq *q)
{
    return q->state == SEQ_WRITING && q->n_drawn < q->most && q->n < q->n_max;
}

bool seq_chooses(const struct seq *q)
{
    return q->match || q->tilt || q->min_p > 0 || q->repetition > 0 || q->least > 0 || q->endless;
}

bool seq_waits(const struct seq *q) { return seq_chooses(q) || q->on_token || q->all || (q->logits && !q->most); }

struct choice seq_draw(struct seq *q)
{
    q->n_drawn++;
    return q->choice = choice_make(q->temperature, q->top_k, q->top_p, rng_u64(&q->rng), q->slot);
}

int32_t seq_choose(struct seq *q, const float *logits)
{
    const int V = q->g->model.cfg.llama.V;
    struct kctx kc = { .n_threads = 1 };
    struct choice how = q->choice;
    int32_t token;
    how.slot = 0;
    const bool masked = seq_chooses(q);
    if (masked && !mask(q, logits)) return SEQ_STUCK;
    void *p = (void *)(uintptr_t)(masked ? q->masked : logits); /* only read */
    kern_ref.choose(&kc, tensor_1d(&token, DT_I32, 1), tensor_2d(p, DT_F32, 1, V),
                    tensor_2d(&how, DT_U8, 1, sizeof how));
    return token;
}

/* Puts candidate id into top[0..*n), which falls and has at most `most`. */
static void rank(int32_t *top, int *n, int most, const float *logits, int32_t id)
{
    int i = *n;
    if (i == most && logits[id] <= logits[top[i - 1]]) return;
    if (i < most) ++*n;
    else i--;
    for (; i > 0 && logits[top[i - 1]] < logits[id]; i--) top[i] = top[i - 1];
    top[i] = id;
}

static void tell_token(struct seq *q, int32_t token, const float *logits)
{
    int32_t top[LLAVA_TOP_MAX + 1];
    struct llava_candidate said[LLAVA_TOP_MAX + 1];
    struct buf text = buf_make(TEXT_MAX);
    size_t end[LLAVA_TOP_MAX + 1];
    int n = 0, V = q->g->model.cfg.llama.V;
    double most = -INFINITY, sum = 0;
    for (int32_t i = 0; i < V; i++) {
        most = fmax(most, logits[i]);
        if (q->top) rank(top, &n, q->top, logits, i);
    }
    for (int i = 0; i < V; i++) sum += exp(logits[i] - most);
    top[n] = token;
    for (int i = 0; i <= n; i++) {
        said[i] = (struct llava_candidate){ .id = top[i], .logprob = (float)(logits[top[i]] - most - log(sum)) };
        said[i].silent = is_end(q, top[i]) || tokenizer_is_special(q->g->tok, top[i]);
        tokenizer_bytes(q->g->tok, top[i], &text);
        end[i] = text.n;
    }
    for (int i = 0; i <= n; i++) {
        said[i].text = text.p ? text.p + (i ? end[i - 1] : 0) : "";
        said[i].n = end[i] - (i ? end[i - 1] : 0);
    }
    q->on_token(q->ctx, &(struct llava_token){ said[n], said, n });
    buf_free(&text);
}

/* What the stream has ready goes through the stopper to the caller. False: the caller has had enough. */
static bool hand_out(struct seq *q)
{
    bool more = !q->shown.n || !q->on_text || q->on_text(q->ctx, q->shown.p, q->shown.n);
    buf_reset(&q->piece);
    buf_reset(&q->shown);
    return more;
}

void seq_push(struct seq *q, int32_t token, const float *logits)
{
    if (token < 0) {
        if (token != SEQ_STUCK) engine_blame(q->g, &q->err);
        else if (match_failed(q->match))
            err_set(&q->err, ERR_UNSUPPORTED, "the schema or grammar has too many ways to go on");
        else err_set(&q->err, ERR_UNSUPPORTED, "no token can go on as the schema or grammar wants");
        seq_finish(q, LLAVA_FINISH_END);
        return;
    }
    q->r.n_new++;
    q->token_s = plat_now_s();
    if (q->r.n_new == 1) q->r.first_s = q->token_s - q->start_s + q->r.image_s + q->r.prompt_s;
    if (q->on_token) tell_token(q, token, logits);
    if (is_end(q, token)) {
        seq_finish(q, LLAVA_FINISH_END);
        return;
    }
    if (q->match) match_push(q->match, token);
    if (q->tilt) penalise(q, token);
    see(q, token);
    stream_push(&q->stream, token, &q->piece);
    bool stopped = stopper_feed(&q->stopper, q->piece.n ? q->piece.p : "", q->piece.n, &q->shown);
    if (!hand_out(q)) seq_finish(q, LLAVA_FINISH_CANCELLED);
    else if (stopped) seq_finish(q, LLAVA_FINISH_STOP);
    else if (q->r.n_new == q->most || q->n_at == q->n_max) seq_finish(q, LLAVA_FINISH_LENGTH);
    else q->at[q->n_at++] = (struct position){ key_of(q, (uint64_t)token), token, 0, 0 };
}

void seq_finish(struct seq *q, enum llava_finish finish)
{
    if (q->state == SEQ_DONE) return;
    q->state = SEQ_DONE;
    q->r.finish = finish;
    q->r.generate_s = q->start_s > 0 ? plat_now_s() - q->start_s : 0;
    if (q->start_s > 0 && finish != LLAVA_FINISH_CANCELLED && !q->err.code) {
        stream_flush(&q->stream, &q->piece);
        stopper_feed(&q->stopper, q->piece.n ? q->piece.p : "", q->piece.n, &q->shown);
        stopper_flush(&q->stopper, &q->shown);
        if (!hand_out(q)) q->r.finish = LLAVA_FINISH_CANCELLED;
    }
    int steps = q->n_known > q->n_prompt ? q->n_known - q->n_prompt : 0;
    double bytes = steps * ((double)engine_weight_bytes(q->g) +
                            (double)engine_cache_bytes(q->g) * (q->n_prompt + steps / 2.0));
    if (q->r.generate_s > 0) q->r.bytes_per_s = bytes / q->r.generate_s;
}
