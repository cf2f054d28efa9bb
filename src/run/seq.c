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
    q->pages.node = STORE_ROOT;
    q->n_prompt = q->n_at = p->n;
    q->n_max = most < g->context - p->n ? p->n + most : g->context;
    q->text.piece = buf_make(TEXT_MAX);
    q->text.shown = buf_make(TEXT_MAX);
    stopper_init(&q->text.stopper);
    q->at = malloc((size_t)q->n_max * sizeof *q->at);
    q->pages.at = malloc((size_t)store_pages(q->n_max) * sizeof *q->pages.at);
    if (!q->at || !q->pages.at) {
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
    ASSERT(q->pages.n == 0);
    stream_fini(&q->text.stream);
    stopper_fini(&q->text.stopper);
    buf_free(&q->text.piece);
    buf_free(&q->text.shown);
    chooser_fini(&q->chooser);
    free(q->logits);
    free(q->held);
    free(q->pages.at);
    free(q->at);
    free(q);
}

int seq_ask(struct seq *q, const struct llava_sampling *o, struct err *e)
{
    struct seq_text *t = &q->text;
    int rc = chooser_init(&q->chooser, &q->g->model.cfg, o, q->at, q->n_prompt, e);
    if (rc < 0) return rc;
    stopper_fini(&t->stopper); /* what an asking that failed has left */
    q->most = o->max_new_tokens;
    stream_init(&t->stream, q->g->tok);
    if (o->text == LLAVA_TEXT_CONTINUED) stream_follow(&t->stream);
    if (o->text == LLAVA_TEXT_LINES) stream_by_lines(&t->stream);
    for (int i = 0; i < o->n_stop; i++)
        if ((rc = stopper_add(&t->stopper, o->stop[i], strlen(o->stop[i]), e)) < 0) return rc;
    q->start_s = q->state == SEQ_READY ? plat_now_s() : 0;
    return 0;
}

/* ---- tokens */

bool seq_goes_on(const struct seq *q)
{
    return q->state == SEQ_WRITING && !q->held && q->chooser.n_drawn < q->most && q->n < q->n_max;
}

bool seq_waits(const struct seq *q)
{
    return chooser_here(&q->chooser) || q->on_token || seq_is_bare(q) || (q->logits && !q->most);
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

/* logits NULL: nothing came before. */
static void tell_token(struct seq *q, void (*tell)(void *ctx, const struct llava_token *t), int32_t token,
                       const float *logits)
{
    int32_t top[LLAVA_TOP_MAX + 1];
    struct llava_candidate said[LLAVA_TOP_MAX + 1];
    struct buf text = buf_make(TEXT_MAX);
    size_t end[LLAVA_TOP_MAX + 1];
    int n = 0, V = logits ? q->g->model.cfg.llama.V : 0;
    double most = -INFINITY, sum = 0;
    for (int32_t i = 0; i < V; i++) {
        most = fmax(most, logits[i]);
        if (q->top) rank(top, &n, q->top, logits, i);
    }
    for (int i = 0; i < V; i++) sum += exp(logits[i] - most);
    top[n] = token;
    for (int i = 0; i <= n; i++) {
        said[i] = (struct llava_candidate){ .id = top[i] };
        said[i].logprob = logits ? (float)(logits[top[i]] - most - log(sum)) : NAN;
        said[i].silent = chooser_ends(&q->chooser, top[i]) || tokenizer_is_special(q->g->tok, top[i]);
        tokenizer_bytes(q->g->tok, top[i], &text);
        end[i] = text.n;
    }
    for (int i = 0; i <= n; i++) {
        said[i].text = text.p ? text.p + (i ? end[i - 1] : 0) : "";
        said[i].n = end[i] - (i ? end[i - 1] : 0);
    }
    tell(q->ctx, &(struct llava_token){ said[n], said, n });
    buf_free(&text);
}

void seq_tell_prompt(struct seq *q, int i, const float *logits)
{
    tell_token(q, q->on_prompt, q->at[i].token, logits);
}

/* What the stream has ready goes through the stopper. True: at a stop string. */
static bool sift(struct seq_text *t)
{
    return stopper_feed(&t->stopper, t->piece.n ? t->piece.p : "", t->piece.n, &t->shown);
}

/* What may be shown goes to the caller. False: the caller has had enough. */
static bool hand_out(struct seq *q)
{
    struct seq_text *t = &q->text;
    bool more = !t->shown.n || !q->on_text || q->on_text(q->ctx, t->shown.p, t->shown.n);
    buf_reset(&t->piece);
    buf_reset(&t->shown);
    return more;
}

void seq_push(struct seq *q, int32_t token, const float *logits)
{
    if (token < 0) {
        if (token == CHOOSER_STUCK) chooser_blame(&q->chooser, &q->err);
        else engine_blame(q->g, &q->err);
        seq_finish(q, LLAVA_FINISH_END);
        return;
    }
    q->r.n_new++;
    q->token_s = plat_now_s();
    if (q->r.n_new == 1) q->r.first_s = q->token_s - q->start_s + q->r.image_s + q->r.prompt_s;
    if (q->on_token) tell_token(q, q->on_token, token, logits);
    if (chooser_ends(&q->chooser, token)) {
        seq_finish(q, LLAVA_FINISH_END);
        return;
    }
    chooser_take(&q->chooser, token);
    stream_push(&q->text.stream, token, &q->text.piece);
    const bool stopped = sift(&q->text);
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
        stream_flush(&q->text.stream, &q->text.piece);
        sift(&q->text);
        stopper_flush(&q->text.stopper, &q->text.shown);
        if (!hand_out(q)) q->r.finish = LLAVA_FINISH_CANCELLED;
    }
    int steps = q->n_known > q->n_prompt ? q->n_known - q->n_prompt : 0;
    double bytes = steps * ((double)engine_weight_bytes(q->g) +
                            (double)engine_cache_bytes(q->g) * (q->n_prompt + steps / 2.0));
    if (q->r.generate_s > 0) q->r.bytes_per_s = bytes / q->r.generate_s;
}
