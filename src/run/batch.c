/* See include/llava_batch.h: the queue, the thread that computes, and what callbacks get. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/plat.h"
#include "run/adapter.h"
#include "run/api.h"
#include "run/sched.h"
#include "text/schema.h"

enum { SEQUENCES = 16, QUEUE = 256, SHARE = 7, STOPS_MAX = 64, BIAS_MAX = 4096, IMAGES_MAX = 1024,
       POSITIONS_MAX = 1 << 24 };

struct request;
struct answer {
    struct request *q;
    int i;
    struct seq *seq; /* NULL: not begun, or over */
};

/* A request from submit to its last on_end. What is not said to be under the lock belongs to the thread. */
struct request {
    struct request *next;    /* under the lock */
    bool cancelled;          /* under the lock */
    int64_t id;
    struct llava_request r;  /* sampling.stop: an own copy; prompt and images are not here any more */
    struct image **images;
    struct prompt prompt;
    struct grammar *grammar; /* or NULL */
    int adapter;             /* number, -1: none */
    double submitted_s;
    int n_begun;             /* changed by the thread, under the lock */
    int n_ended;
    struct answer answer[];  /* [r.n] */
};

struct llava_batch {
    struct engine *g;
    struct sched sched;      /* the thread's */
    struct answer *active[ENGINE_SEQS]; /* the thread's: those with a sequence */
    int n_active;
    pthread_t thread;
    pthread_mutex_t lock;    /* of everything below */
    pthread_cond_t more;
    struct request *all;     /* waiting and running, in order of arrival */
    int64_t last_id;
    bool closing;
    struct vocabulary *vocabulary;  /* made for the first grammar */
    struct llava_stats stats; /* as of the last step */
};

/* ---- statistics */

void llava_batch_stats(struct llava_batch *b, struct llava_stats *ret)
{
    pthread_mutex_lock(&b->lock);
    *ret = b->stats;
    pthread_mutex_unlock(&b->lock);
}

/* ---- requests */

static void request_free(struct request *q)
{
    if (!q) return;
    for (int i = 0; i < q->r.sampling.n_stop; i++) free((char *)q->r.sampling.stop[i]);
    free((void *)q->r.sampling.stop);
    free((void *)q->r.sampling.bias);
    free((void *)q->r.sampling.stop_ids);
    grammar_free(q->grammar);
    prompt_fini(&q->prompt);
    free(q->images);
    free(q);
}

static int copy_stops(struct request *q, const struct llava_sampling *from, struct err *e)
{
    q->r.sampling.n_stop = 0;
    char **to = api_object(((size_t)from->n_stop + 1) * sizeof *to, e);
    q->r.sampling.stop = (const char *const *)to;
    if (!to) return ERR_NOMEM;
    for (int i = 0; i < from->n_stop; i++) {
        if (!(to[i] = strdup(from->stop[i]))) return err_set(e, ERR_NOMEM, "no memory for a stop string");
        q->r.sampling.n_stop++;
    }
    return 0;
}

static int copy_bias(struct request *q, const struct llava_sampling *from, struct err *e)
{
    struct llava_bias *to = api_object(((size_t)from->n_bias + 1) * sizeof *to, e);
    int32_t *ids = to ? api_object(((size_t)from->n_stop_ids + 1) * sizeof *ids, e) : NULL;
    q->r.sampling.bias = to;
    q->r.sampling.stop_ids = ids;
    if (ids && from->n_bias) memcpy(to, from->bias, (size_t)from->n_bias * sizeof *to);
    if (ids && from->n_stop_ids) memcpy(ids, from->stop_ids, (size_t)from->n_stop_ids * sizeof *ids);
    return ids ? 0 : ERR_NOMEM;
}

/* The machine of the grammar, made once to see that it can be. */
static int try_grammar(struct llava_batch *b, const struct grammar *g, struct err *e)
{
    struct match *m = NULL;
    int rc = 0;
    pthread_mutex_lock(&b->lock);
    if (!b->vocabulary) rc = vocabulary_new(&b->vocabulary, b->g->tok, b->g->model.cfg.llama.V, e);
    pthread_mutex_unlock(&b->lock);
    if (rc >= 0) rc = match_new(&m, g, b->vocabulary, e);
    match_free(m);
    return rc;
}

static int make_grammar(struct llava_batch *b, struct request *q, const struct llava_request *r, struct err *e)
{
    int rc = 0;
    if (r->schema && r->grammar) return err_set(e, ERR_USAGE, "a request with both a schema and a grammar");
    if (r->schema) rc = schema_parse(&q->grammar, r->schema, strlen(r->schema), e);
    else if (r->grammar) rc = grammar_parse(&q->grammar, r->grammar, strlen(r->grammar), e);
    if (rc >= 0 && q->grammar) rc = try_grammar(b, q->grammar, e);
    if (rc == ERR_LIMIT) rc = e->code = ERR_UNSUPPORTED; /* LIMIT is said of the context */
    return rc;
}

static int check_request(const struct llava_request *r, struct err *e)
{
    if (!r->prompt == !r->ids) return err_set(e, ERR_USAGE, "a request without a prompt, or with two");
    if (r->ids && r->n_images) return err_set(e, ERR_USAGE, "a prompt of tokens has no pictures");
    if (r->n < 1 || r->n > LLAVA_CHOICES_MAX)
        return err_set(e, ERR_USAGE, "%d answers are not between 1 and %d", r->n, LLAVA_CHOICES_MAX);
    if (r->on_prompt && r->n_images) return err_set(e, ERR_USAGE, "a prompt with pictures is not told by its tokens");
    if (r->top_logprobs < 0 || r->top_logprobs > LLAVA_TOP_MAX)
        return err_set(e, ERR_USAGE, "%d top logprobs are not between 0 and %d", r->top_logprobs, LLAVA_TOP_MAX);
    if (r->n_images < 0 || r->n_images > IMAGES_MAX)
        return err_set(e, ERR_LIMIT, "%d pictures are more than %d", r->n_images, IMAGES_MAX);
    if (r->sampling.n_stop < 0 || r->sampling.n_stop > STOPS_MAX)
        return err_set(e, ERR_LIMIT, "%d stop strings are more than %d", r->sampling.n_stop, STOPS_MAX);
    if (r->sampling.n_stop_ids < 0 || r->sampling.n_stop_ids > STOPS_MAX)
        return err_set(e, ERR_LIMIT, "%d tokens that end are more than %d", r->sampling.n_stop_ids, STOPS_MAX);
    if (r->sampling.n_bias < 0 || r->sampling.n_bias > BIAS_MAX)
        return err_set(e, ERR_LIMIT, "%d biases are more than %d", r->sampling.n_bias, BIAS_MAX);
    return 0;
}

static int request_new(struct request **ret, struct llava_batch *b, const struct llava_request *r, struct err *e)
{
    struct engine *g = b->g;
    int rc = check_request(r, e);
    if (rc < 0) return rc;
    struct request *q = api_object(sizeof *q + (size_t)r->n * sizeof q->answer[0], e);
    if (!q) return ERR_NOMEM;
    q->r = *r;
    for (int i = 0; i < r->n; i++) q->answer[i] = (struct answer){ q, i, NULL };
    q->r.sampling.bias = NULL;
    q->r.sampling.stop_ids = NULL;
    TRY(copy_stops(q, &r->sampling, e));
    TRY(chooser_check(&r->sampling, g->model.cfg.llama.V, e));
    TRY(copy_bias(q, &r->sampling, e));
    TRY(adapter_find(&q->adapter, g, r->adapter, e));
    TRY(adapter_sees(g, q->adapter, r->n_images, e));
    TRY(api_images(&q->images, g, r->images, r->n_images, e));
    if (r->ids) {
        TRY(prompt_fits(r->n_ids, g, e));
        TRY(prompt_of_ids(&q->prompt, g, r->ids, r->n_ids, e));
    } else {
        TRY(prompt_may_fit(g, r->prompt, r->n_images, e));
        TRY(prompt_make(&q->prompt, g, r->prompt, q->images, r->n_images, e));
    }
    TRY(prompt_fits(q->prompt.n_whole, g, e));
    struct position *first = q->prompt.at; /* another realm has another key there, and shares nothing after it */
    if (r->realm) first->key = key_mix(r->realm, first->key);
    TRY(make_grammar(b, q, r, e));
    q->r.adapter = NULL;
    q->r.prompt = q->r.schema = q->r.grammar = NULL;
    q->r.ids = NULL;
    q->r.images = NULL;
    q->submitted_s = plat_now_s();
    *ret = q;
    return 0;
out:
    request_free(q);
    return rc;
}

struct llava_request llava_request_default(void)
{
    return (struct llava_request){ .sampling = llava_sampling_default(), .n = 1 };
}

/* May one more of this client wait? Nobody fills the queue alone: a client has at most SHARE places for each that is
 * free, so that somebody new finds one whoever came before. Called with the lock held. */
static int find_place(const struct llava_batch *b, uint64_t client, struct err *e)
{
    const int left = b->stats.queue - b->stats.waiting;
    int own = 0;
    for (const struct request *q = b->all; q && client; q = q->next) own += !q->n_begun && q->r.client == client;
    if (left <= 0 || b->closing) return err_set(e, ERR_BUSY, "%d requests are waiting already", b->stats.queue);
    if (own < SHARE * left) return 0;
    return err_set(e, ERR_BUSY, "%d requests of this client are waiting already", own);
}

int64_t llava_batch_submit(struct llava_batch *b, const struct llava_request *r, struct llava_error *e)
{
    struct err err = { 0 };
    struct request *q = NULL;
    int rc = request_new(&q, b, r, &err);
    if (rc < 0) return api_done(rc, &err, e);
    pthread_mutex_lock(&b->lock);
    const int64_t id = q->id = ++b->last_id;
    rc = find_place(b, r->client, &err);
    if (rc < 0) {
        b->stats.refused++;
    } else {
        struct request **at = &b->all;
        while (*at) at = &(*at)->next;
        *at = q;
        b->stats.waiting++;
        b->stats.submitted++;
        pthread_cond_signal(&b->more);
    }
    pthread_mutex_unlock(&b->lock);
    if (rc >= 0) return id;
    request_free(q);
    return api_done(rc, &err, e);
}

void llava_batch_cancel(struct llava_batch *b, int64_t id)
{
    pthread_mutex_lock(&b->lock);
    for (struct request *q = b->all; q; q = q->next)
        if (q->id == id) q->cancelled = true;
    pthread_mutex_unlock(&b->lock);
}

int llava_count(struct llava_engine *x, const char *prompt, struct llava_image *const *images, int n,
                struct llava_error *e)
{
    struct err err = { 0 };
    struct image **inner = NULL;
    struct prompt p = { 0 };
    int rc;
    TRY(api_images(&inner, x->g, images, n, &err));
    TRY(prompt_make(&p, x->g, prompt, inner, n, &err));
    rc = p.n;
out:
    prompt_fini(&p);
    free(inner);
    return api_done(rc, &err, e);
}

/* ---- tokens */

int llava_tokenize(struct llava_engine *x, const char *text, bool begins, int32_t *ids, int max, struct llava_error *e)
{
    const struct tokenizer *t = x->g->tok;
    struct err err = { 0 };
    struct ids all = ids_make(IDS_MAX);
    int rc;
    if (!t) TRY(err_set(&err, ERR_UNSUPPORTED, "the model '%s' has no tokenizer", x->g->name));
    TRY((begins ? tokenizer_encode : tokenizer_encode_text)(t, text, strlen(text), &all, &err));
    TRY(ids_check(&all, "the text", &err));
    for (int i = 0; i < max && i < (int)all.n; i++) ids[i] = all.p[i];
    rc = (int)all.n;
out:
    ids_free(&all);
    return api_done(rc, &err, e);
}

int llava_detokenize(struct llava_engine *x, const int32_t *ids, int n, char *text, int size, struct llava_error *e)
{
    const struct tokenizer *t = x->g->tok;
    struct err err = { 0 };
    struct buf out = buf_make(INT32_MAX);
    int rc;
    if (!t) TRY(err_set(&err, ERR_UNSUPPORTED, "the model '%s' has no tokenizer", x->g->name));
    tokenizer_decode(t, ids, (size_t)n, false, &out);
    TRY(buf_check(&out, "the text", &err));
    const size_t k = size <= 0 ? 0 : out.n < (size_t)size ? out.n : (size_t)size - 1;
    if (k) memcpy(text, out.p, k);
    if (size > 0) text[k] = 0;
    rc = (int)out.n;
out:
    buf_free(&out);
    return api_done(rc, &err, e);
}

/* ---- the thread: answers */

static void tell_stats(struct llava_batch *b)
{
    pthread_mutex_lock(&b->lock);
    struct llava_stats old = b->stats, *s = &b->stats;
    *s = b->sched.stats;
    s->sequences = old.sequences;
    s->queue = old.queue;
    s->submitted = old.submitted;
    s->refused = old.refused;
    s->waiting = old.waiting;
    s->running = b->n_active;
    const struct store *store = &b->sched.store;
    s->cache_positions = (int64_t)store->n_pages * KV_PAGE;
    s->cache_running = (int64_t)store->n_held * KV_PAGE;
    s->cache_kept = (int64_t)(store->n_pages - store->n_held - store->n_free) * KV_PAGE;
    pthread_mutex_unlock(&b->lock);
}

static bool on_text(void *ctx, const char *text, size_t n)
{
    const struct answer *a = ctx;
    return a->q->r.on_text(a->q->r.ctx, a->i, text, n);
}

static void on_prompt(void *ctx, const struct llava_token *t)
{
    const struct answer *a = ctx;
    a->q->r.on_prompt(a->q->r.ctx, a->i, t);
}

static void on_token(void *ctx, const struct llava_token *t)
{
    const struct answer *a = ctx;
    a->q->r.on_token(a->q->r.ctx, a->i, t);
}

static void answer_end(struct llava_batch *b, struct answer *a, const struct llava_result *r, const struct err *err)
{
    struct llava_error e;
    struct request *q = a->q;
    const bool failed = err->code != 0;
    b->sched.stats.failed += failed;
    b->sched.stats.cancelled += !failed && r->finish == LLAVA_FINISH_CANCELLED;
    b->sched.stats.answered += !failed && r->finish != LLAVA_FINISH_CANCELLED;
    tell_stats(b);
    api_done(failed ? (int)err->code : 0, err, &e);
    if (q->r.on_end) q->r.on_end(q->r.ctx, a->i, r, failed ? &e : NULL);
    if (++q->n_ended < q->r.n) return;
    pthread_mutex_lock(&b->lock);
    struct request **at = &b->all;
    while (*at != q) at = &(*at)->next;
    *at = q->next;
    pthread_mutex_unlock(&b->lock);
    request_free(q);
}

/* The next answer of a request, which does not wait any more. */
static struct answer *next_answer(struct llava_batch *b, struct request *q)
{
    pthread_mutex_lock(&b->lock);
    b->stats.waiting -= q->n_begun == 0;
    const int i = q->n_begun++;
    pthread_mutex_unlock(&b->lock);
    return &q->answer[i];
}

/* Takes the next answer of a request into the scheduler. */
static void answer_begin(struct llava_batch *b, struct request *q)
{
    struct answer *a = next_answer(b, q);
    struct llava_sampling sampling = q->r.sampling;
    struct err err = { 0 };
    sampling.seed += (uint64_t)a->i;
    int rc = seq_new(&a->seq, b->g, &q->prompt, q->images, sampling.max_new_tokens, q->adapter, &err);
    if (rc >= 0) rc = seq_ask(a->seq, &sampling, &err);
    if (rc >= 0 && q->grammar) rc = chooser_follow(&a->seq->chooser, q->grammar, b->vocabulary, sampling.text, &err);
    if (rc < 0) {
        seq_free(a->seq);
        a->seq = NULL;
        answer_end(b, a, &(struct llava_result){ .n_prompt = q->prompt.n }, &err);
        return;
    }
    a->seq->submitted_s = q->submitted_s;
    a->seq->realm = q->r.realm;
    a->seq->top = q->r.top_logprobs;
    a->seq->ctx = a;
    if (q->r.on_text) a->seq->on_text = on_text;
    if (q->r.on_token) a->seq->on_token = on_token;
    if (q->r.on_prompt) a->seq->on_prompt = on_prompt;
    b->active[b->n_active++] = a;
    sched_add(&b->sched, a->seq);
}

/* Answers that are over leave the scheduler. */
static void reap(struct llava_batch *b)
{
    for (int i = 0; i < b->n_active;) {
        struct answer *a = b->active[i];
        struct seq *seq = a->seq;
        if (seq->state != SEQ_DONE) {
            i++;
            continue;
        }
        b->active[i] = b->active[--b->n_active];
        sched_remove(&b->sched, seq);
        a->seq = NULL;
        answer_end(b, a, &seq->r, &seq->err);
        seq_free(seq);
    }
}

/* ---- the thread: choosing */

static int running_of(const struct llava_batch *b, uint64_t client)
{
    int n = 0;
    for (int i = 0; i < b->n_active; i++) n += b->active[i]->q->r.client == client;
    return n;
}

/* The first in the queue among those whose client has the least running. NULL: nobody waits, or there is no room. */
static struct request *next_request(struct llava_batch *b)
{
    struct request *best = NULL;
    int least = 0;
    pthread_mutex_lock(&b->lock);
    for (struct request *q = b->all; q; q = q->next) {
        if (q->n_begun == q->r.n || q->cancelled) continue;
        int n = running_of(b, q->r.client);
        if (best && n >= least) continue;
        best = q;
        least = n;
    }
    pthread_mutex_unlock(&b->lock);
    if (!best) return NULL;
    const int64_t most = (int64_t)best->prompt.n + best->r.sampling.max_new_tokens;
    return sched_room(&b->sched, most < b->g->context ? (int)most : b->g->context) ? best : NULL;
}

/* A request that was cancelled and has answers that have not begun, or NULL. */
static struct request *cancelled_request(struct llava_batch *b)
{
    pthread_mutex_lock(&b->lock);
    struct request *q = b->all;
    while (q && !(q->cancelled && q->n_begun < q->r.n)) q = q->next;
    pthread_mutex_unlock(&b->lock);
    return q;
}

static void cancel(struct llava_batch *b)
{
    bool stop[ENGINE_SEQS];
    pthread_mutex_lock(&b->lock);
    for (struct request *q = b->all; q && b->closing; q = q->next) q->cancelled = true;
    for (int i = 0; i < b->n_active; i++) stop[i] = b->active[i]->q->cancelled;
    pthread_mutex_unlock(&b->lock);
    for (int i = 0; i < b->n_active; i++)
        if (stop[i]) seq_finish(b->active[i]->seq, LLAVA_FINISH_CANCELLED);
    for (struct request *q; (q = cancelled_request(b));) {
        struct llava_result r = { .finish = LLAVA_FINISH_CANCELLED, .n_prompt = q->prompt.n };
        r.queue_s = plat_now_s() - q->submitted_s;
        for (int left = q->r.n - q->n_begun; left > 0; left--) /* the last end frees q */
            answer_end(b, next_answer(b, q), &r, &(struct err){ 0 });
    }
}

static void *run(void *ctx)
{
    struct llava_batch *b = ctx;
    for (bool over = false; !over;) {
        cancel(b);
        reap(b);
        for (struct request *q; (q = next_request(b));) answer_begin(b, q);
        sched_step(&b->sched);
        reap(b);
        tell_stats(b);
        pthread_mutex_lock(&b->lock);
        while (!b->all && !b->closing) pthread_cond_wait(&b->more, &b->lock);
        over = !b->all && b->closing;
        pthread_mutex_unlock(&b->lock);
    }
    return NULL;
}

/* ---- opening */

struct llava_batch_options llava_batch_options_default(void) { return (struct llava_batch_options){ 0 }; }

/* What `want` asks for, or as much as a quarter of the memory holds, of a device three quarters of what is free; never
 * less than one context, nor more than pages can number. */
static int64_t cache_size(const struct engine *g, int64_t want, int sequences)
{
    const size_t most = g->dev ? dev_memory_now(g->dev).free / 4 * 3 : plat_memory_total() / 4;
    int64_t fits = (int64_t)most / engine_cache_bytes(g);
    if (!want) want = (int64_t)sequences * g->context < fits ? (int64_t)sequences * g->context : fits;
    if (want < g->context) want = g->context;
    return want < POSITIONS_MAX ? want : POSITIONS_MAX;
}

static int batch_start(struct llava_batch *b, const struct llava_batch_options *o, struct err *e)
{
    int n = o->sequences ? o->sequences : SEQUENCES;
    const int64_t positions = cache_size(b->g, o->cache_positions, n);
    int rc = sched_init(&b->sched, b->g, n, positions, e);
    if (rc < 0) return err_prefix(e, "a cache of %lld positions", (long long)positions);
    b->stats.sequences = b->sched.n_most;
    b->stats.queue = o->queue ? o->queue : QUEUE;
    tell_stats(b);
    return pthread_create(&b->thread, NULL, run, b) ? err_set(e, ERR_NOMEM, "no thread for a batch") : 0;
}

static void batch_free(struct llava_batch *b)
{
    if (!b) return;
    sched_fini(&b->sched);
    vocabulary_free(b->vocabulary);
    pthread_cond_destroy(&b->more);
    pthread_mutex_destroy(&b->lock);
    free(b);
}

int llava_batch_open(struct llava_batch **ret, struct llava_engine *engine, const struct llava_batch_options *o,
                     struct llava_error *e)
{
    struct err err = { 0 };
    *ret = NULL;
    if (o->sequences < 0 || o->sequences > ENGINE_SEQS || o->queue < 0 || o->cache_positions < 0)
        return api_done(err_set(&err, ERR_USAGE, "a batch wants 0 to %d sequences, and no negative sizes", ENGINE_SEQS),
                        &err, e);
    struct llava_batch *b = api_object(sizeof *b, &err);
    if (!b) return api_done(ERR_NOMEM, &err, e);
    b->g = engine->g;
    pthread_mutex_init(&b->lock, NULL);
    pthread_cond_init(&b->more, NULL);
    int rc = batch_start(b, o, &err);
    if (rc < 0) batch_free(b);
    else *ret = b;
    return api_done(rc, &err, e);
}

void llava_batch_close(struct llava_batch *b)
{
    if (!b) return;
    pthread_mutex_lock(&b->lock);
    b->closing = true;
    pthread_cond_signal(&b->more);
    pthread_mutex_unlock(&b->lock);
    pthread_join(b->thread, NULL);
    batch_free(b);
}
