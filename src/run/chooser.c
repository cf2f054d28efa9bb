/* See chooser.h. */
#include "run/chooser.h"

#include <math.h>
#include <stdlib.h>

#include "kern/kern.h"

/* ---- asking */

int chooser_check(const struct llava_sampling *o, int V, struct err *e)
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

/* ---- sets of tokens */

static uint64_t *set_new(int V) { return calloc((size_t)V / 64 + 1, sizeof(uint64_t)); }
static bool set_has(const uint64_t *s, int32_t token) { return s[token / 64] >> (token % 64) & 1; }

/* Accepts NULL, and what is no token. */
static void set_add(uint64_t *s, int32_t token)
{
    if (s && token >= 0) s[token / 64] |= (uint64_t)1 << (token % 64);
}

/* ---- life */

static int no_memory(struct err *e) { return err_set(e, ERR_NOMEM, "no memory for a sequence"); }

static int make_masked(struct chooser *c, struct err *e)
{
    if (!c->masked) c->masked = malloc((size_t)c->V * sizeof *c->masked);
    return c->masked ? 0 : no_memory(e);
}

static int make_tilt(struct chooser *c, const struct llava_sampling *o, struct err *e)
{
    if (o->n_bias <= 0 && c->presence == 0 && c->frequency == 0) return 0;
    c->tilt = calloc((size_t)c->V, sizeof *c->tilt);
    c->said = set_new(c->V);
    if (!c->tilt || !c->said) return no_memory(e);
    for (int i = 0; i < o->n_bias; i++) c->tilt[o->bias[i].token] += o->bias[i].bias;
    return 0;
}

static int make_ends(struct chooser *c, const struct llava_config *model, const struct llava_sampling *o,
                     struct err *e)
{
    c->n_eos = model->n_eos;
    c->n_ends = c->n_eos + o->n_stop_ids;
    c->ends = malloc(((size_t)c->n_ends + 1) * sizeof *c->ends);
    if (!c->ends) return no_memory(e);
    for (int i = 0; i < c->n_ends; i++) c->ends[i] = i < c->n_eos ? model->eos[i] : o->stop_ids[i - c->n_eos];
    return 0;
}

int chooser_init(struct chooser *c, const struct llava_config *model, const struct llava_sampling *o,
                 const struct position *at, int n, struct err *e)
{
    const bool repeats = o->repetition_penalty > 0 && fabsf(o->repetition_penalty - 1) > 0;
    int rc = chooser_check(o, model->llama.V, e);
    if (rc < 0) return rc;
    chooser_fini(c);
    *c = (struct chooser){ .V = model->llama.V, .temperature = o->temperature, .top_k = o->top_k, .top_p = o->top_p,
                           .min_p = o->temperature > 0 ? o->min_p : 0, .least = o->min_new_tokens,
                           .endless = o->no_end, .presence = o->presence_penalty, .frequency = o->frequency_penalty,
                           .repetition = repeats ? o->repetition_penalty : 0 };
    rng_seed(&c->rng, o->seed);
    TRY(make_ends(c, model, o, e));
    TRY(make_tilt(c, o, e));
    if (repeats && !(c->seen = set_new(c->V))) TRY(no_memory(e));
    for (int i = 0; i < n; i++) set_add(c->seen, at[i].token);
    if (chooser_here(c)) TRY(make_masked(c, e));
out:
    return rc;
}

void chooser_fini(struct chooser *c)
{
    match_free(c->match);
    free(c->masked);
    free(c->tilt);
    free(c->said);
    free(c->seen);
    free(c->ends);
    *c = (struct chooser){ 0 };
}

int chooser_follow(struct chooser *c, const struct grammar *g, const struct vocabulary *v, enum llava_text text,
                   struct err *e)
{
    const int rc = match_new(&c->match, g, v, e);
    if (rc >= 0 && text == LLAVA_TEXT_CONTINUED) match_follow(c->match);
    return rc < 0 ? rc : make_masked(c, e);
}

/* ---- choosing */

bool chooser_ends(const struct chooser *c, int32_t token)
{
    for (int i = 0; i < c->n_ends; i++)
        if (c->ends[i] == token) return true;
    return false;
}

static float tilted(const struct chooser *c, const float *logits, int i)
{
    float v = logits[i];
    if (c->seen && set_has(c->seen, i)) v = v > 0 ? v / c->repetition : v * c->repetition;
    return v + (c->tilt ? c->tilt[i] : 0);
}

/* The end may not be chosen yet: it is taken out of masked, unless nothing else is left. */
static void put_off_end(struct chooser *c)
{
    bool other = false;
    for (int i = 0; i < c->V && !other; i++) other = c->masked[i] > -INFINITY && !chooser_ends(c, i);
    for (int i = 0; i < c->n_ends && other; i++)
        if (c->ends[i] >= 0 && c->ends[i] < c->V) c->masked[c->ends[i]] = -INFINITY;
}

/* Takes out what is too unlikely beside the likeliest. */
static void cut_unlikely(struct chooser *c)
{
    float most = -INFINITY;
    for (int i = 0; i < c->V; i++) most = fmaxf(most, c->masked[i]);
    const float least = most + c->temperature * logf(c->min_p);
    for (int i = 0; i < c->V; i++)
        if (c->masked[i] < least) c->masked[i] = -INFINITY;
}

/* masked: logits, tilted, of the tokens that the grammar and the other rules let follow. False: there are none. */
static bool mask(struct chooser *c, const float *logits)
{
    const uint64_t *may = c->match ? match_tokens(c->match) : NULL;
    bool any = false;
    for (int i = 0; i < c->V && (may || !c->match); i++) {
        const bool yes = !may || set_has(may, i);
        c->masked[i] = yes ? tilted(c, logits, i) : -INFINITY;
        any |= yes;
    }
    for (int i = 0; i < c->n_eos && may; i++) {
        const int32_t end = c->ends[i];
        if (end < 0 || end >= c->V || !match_may_end(c->match)) continue;
        c->masked[end] = tilted(c, logits, end);
        any = true;
    }
    if (any && (c->endless || c->n_taken < c->least)) put_off_end(c);
    if (any && c->min_p > 0) cut_unlikely(c);
    return any;
}

bool chooser_here(const struct chooser *c)
{
    return c->match || c->tilt || c->min_p > 0 || c->repetition > 0 || c->least > 0 || c->endless;
}

struct choice chooser_draw(struct chooser *c, int slot)
{
    c->n_drawn++;
    return c->next = choice_make(c->temperature, c->top_k, c->top_p, rng_u64(&c->rng), slot);
}

int32_t chooser_choose(struct chooser *c, const float *logits)
{
    const bool masked = chooser_here(c);
    struct kctx kc = { .n_threads = 1 };
    struct choice how = c->next;
    int32_t token;
    how.slot = 0;
    if (c->match && !match_ready(c->match)) return CHOOSER_LATER;
    if (masked && !mask(c, logits)) return CHOOSER_STUCK;
    void *p = (void *)(uintptr_t)(masked ? c->masked : logits); /* only read */
    kern_ref.choose(&kc, tensor_1d(&token, DT_I32, 1), tensor_2d(p, DT_F32, 1, c->V),
                    tensor_2d(&how, DT_U8, 1, sizeof how));
    return token;
}

void chooser_blame(const struct chooser *c, struct err *e)
{
    if (match_failed(c->match)) err_set(e, ERR_UNSUPPORTED, "the schema or grammar has too many ways to go on");
    else err_set(e, ERR_UNSUPPORTED, "no token can go on as the schema or grammar wants");
}

void chooser_take(struct chooser *c, int32_t token)
{
    c->n_taken++;
    if (c->match) match_push(c->match, token);
    if (c->tilt) c->tilt[token] -= c->frequency + (set_has(c->said, token) ? 0 : c->presence);
    set_add(c->said, token);
    set_add(c->seen, token);
}
