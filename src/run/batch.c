/* See include/llava_batch.h: the queue, the thread that computes, and what callbacks get. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/plat.h"
#include "run/api.h"
#include "run/session.h"

enum { SEQUENCES = 16, QUEUE = 256, STOPS_MAX = 64, IMAGES_MAX = 1024 };

/* A request from submit to its last on_end. */
struct request {
    struct request *next;
    int64_t id;
    struct llava_request r;  /* sampling.stop and images: own copies */
    struct image **images;
    struct prompt prompt;
    double submitted_s;
    bool cancelled;          /* under the lock */
};

struct llava_batch {
    struct engine *g;
    struct session *session;
    pthread_t thread;
    pthread_mutex_t lock;    /* of everything below */
    pthread_cond_t more;
    struct request *waiting, *running; /* waiting: in order of arrival */
    int64_t last_id;
    bool closing;
    struct llava_batch_stats stats;
};

/* ---- statistics */

double llava_bucket_s(int i)
{
    static const double first[] = { 0.001, 0.002, 0.005 };
    double s = first[i % 3];
    for (; i >= 3; i -= 3) s *= 10;
    return s;
}

static void histogram_add(struct llava_histogram *h, double s)
{
    int i = 0;
    while (i < LLAVA_BUCKETS && s > llava_bucket_s(i)) i++;
    h->n[i]++;
    h->count++;
    h->sum += s;
}

void llava_batch_stats(struct llava_batch *b, struct llava_batch_stats *ret)
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
    prompt_fini(&q->prompt);
    free(q->images);
    free(q);
}

static int copy_stops(struct request *q, const struct llava_sampling *from, struct err *e)
{
    q->r.sampling.n_stop = 0;
    char **to = api_object(((size_t)from->n_stop + 1) * sizeof *to, e);
    if (!to) return ERR_NOMEM;
    q->r.sampling.stop = (const char *const *)to;
    for (int i = 0; i < from->n_stop; i++) {
        if (!(to[i] = strdup(from->stop[i]))) return err_set(e, ERR_NOMEM, "no memory for a stop string");
        q->r.sampling.n_stop++;
    }
    return 0;
}

static int check_request(const struct llava_request *r, struct err *e)
{
    if (!r->prompt) return err_set(e, ERR_USAGE, "a request without a prompt");
    if (r->n < 1 || r->n > LLAVA_CHOICES_MAX)
        return err_set(e, ERR_USAGE, "%d answers are not between 1 and %d", r->n, LLAVA_CHOICES_MAX);
    if (r->top_logprobs < 0 || r->top_logprobs > LLAVA_TOP_MAX)
        return err_set(e, ERR_USAGE, "%d top logprobs are not between 0 and %d", r->top_logprobs, LLAVA_TOP_MAX);
    if (r->n_images < 0 || r->n_images > IMAGES_MAX)
        return err_set(e, ERR_LIMIT, "%d pictures are more than %d", r->n_images, IMAGES_MAX);
    if (r->sampling.n_stop < 0 || r->sampling.n_stop > STOPS_MAX)
        return err_set(e, ERR_LIMIT, "%d stop strings are more than %d", r->sampling.n_stop, STOPS_MAX);
    if (r->adapter) return err_set(e, ERR_USAGE, "no adapter '%s' is open", r->adapter);
    return 0;
}

static int request_new(struct request **ret, struct engine *g, const struct llava_request *r, struct err *e)
{
    int rc = check_request(r, e);
    if (rc < 0) return rc;
    struct request *q = api_object(sizeof *q, e);
    if (!q) return ERR_NOMEM;
    q->r = *r;
    TRY(copy_stops(q, &r->sampling, e));
    TRY(sampling_check(&r->sampling, e));
    TRY(api_images(&q->images, g, r->images, r->n_images, e));
    TRY(prompt_make(&q->prompt, g, r->prompt, q->images, r->n_images, e));
    TRY(prompt_fits(&q->prompt, g, e));
    q->r.prompt = NULL;
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

int64_t llava_batch_submit(struct llava_batch *b, const struct llava_request *r, struct llava_error *e)
{
    struct err err = { 0 };
    struct request *q = NULL;
    int rc = request_new(&q, b->g, r, &err);
    if (rc < 0) return api_done(rc, &err, e);
    pthread_mutex_lock(&b->lock);
    int64_t id = q->id = ++b->last_id;
    bool full = b->stats.waiting >= b->stats.queue || b->closing;
    if (full) {
        b->stats.refused++;
    } else {
        struct request **at = &b->waiting;
        while (*at) at = &(*at)->next;
        *at = q;
        b->stats.waiting++;
        b->stats.submitted++;
        pthread_cond_signal(&b->more);
    }
    pthread_mutex_unlock(&b->lock);
    if (!full) return id;
    request_free(q);
    return api_done(err_set(&err, ERR_BUSY, "%d requests are waiting already", b->stats.queue), &err, e);
}

void llava_batch_cancel(struct llava_batch *b, int64_t id)
{
    pthread_mutex_lock(&b->lock);
    for (struct request *q = b->waiting; q; q = q->next)
        if (q->id == id) q->cancelled = true;
    if (b->running && b->running->id == id) b->running->cancelled = true;
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

/* ---- the thread */

struct choice {
    struct llava_batch *b;
    struct request *q;
    int i;
};

static bool on_text(void *ctx, const char *text, size_t n)
{
    struct choice *c = ctx;
    pthread_mutex_lock(&c->b->lock);
    bool cancelled = c->q->cancelled || c->b->closing;
    pthread_mutex_unlock(&c->b->lock);
    return !cancelled && (!c->q->r.on_text || c->q->r.on_text(c->q->r.ctx, c->i, text, n));
}

static void answer(struct llava_batch *b, struct request *q, int i)
{
    struct choice c = { b, q, i };
    struct llava_result r = { .n_prompt = q->prompt.n, .finish = LLAVA_FINISH_CANCELLED };
    struct llava_error e;
    struct err err = { 0 };
    double start = plat_now_s();
    int rc = 0;
    struct llava_sampling s = q->r.sampling;
    s.seed += (uint64_t)i;
    b->session->image_s = 0;
    if (on_text(&c, "", 0)) {
        for (int k = 0; k < q->r.n_images; k++) TRY(image_encode(q->images[k], b->g, &b->session->image_s, &err));
        TRY(session_read(b->session, &q->prompt, q->images, NULL, &err));
        TRY(session_generate(b->session, &s, on_text, &c, &r, &err));
    }
out:
    r.queue_s = start - q->submitted_s;
    pthread_mutex_lock(&b->lock);
    b->stats.answered += rc >= 0 && r.finish != LLAVA_FINISH_CANCELLED;
    b->stats.cancelled += rc >= 0 && r.finish == LLAVA_FINISH_CANCELLED;
    b->stats.failed += rc < 0;
    b->stats.new_tokens += (uint64_t)r.n_new;
    b->stats.prompt_positions += (uint64_t)r.n_prompt;
    b->stats.cached_positions += (uint64_t)r.n_cached;
    histogram_add(&b->stats.queue_s, r.queue_s);
    histogram_add(&b->stats.first_s, r.queue_s + r.first_s);
    pthread_mutex_unlock(&b->lock);
    api_done(rc, &err, &e);
    if (q->r.on_end) q->r.on_end(q->r.ctx, i, &r, rc < 0 ? &e : NULL);
}

static void *run(void *ctx)
{
    struct llava_batch *b = ctx;
    pthread_mutex_lock(&b->lock);
    for (;;) {
        while (!b->waiting && !b->closing) pthread_cond_wait(&b->more, &b->lock);
        if (!b->waiting) break;
        struct request *q = b->running = b->waiting;
        b->waiting = q->next;
        b->stats.waiting--;
        b->stats.running = q->r.n;
        pthread_mutex_unlock(&b->lock);
        for (int i = 0; i < q->r.n; i++) answer(b, q, i);
        pthread_mutex_lock(&b->lock);
        b->running = NULL;
        b->stats.running = 0;
        request_free(q);
    }
    pthread_mutex_unlock(&b->lock);
    return NULL;
}

/* ---- opening */

struct llava_batch_options llava_batch_options_default(void) { return (struct llava_batch_options){ 0 }; }

int llava_batch_open(struct llava_batch **ret, struct llava_engine *engine, const struct llava_batch_options *o,
                     struct llava_error *e)
{
    struct err err = { 0 };
    *ret = NULL;
    if (o->sequences < 0 || o->queue < 0 || o->cache_positions < 0)
        return api_done(err_set(&err, ERR_USAGE, "sequences, queue and cache positions must not be negative"), &err, e);
    struct llava_batch *b = api_object(sizeof *b, &err);
    int rc = b ? session_open(&b->session, engine->g, &err) : ERR_NOMEM;
    if (rc < 0) {
        free(b);
        return api_done(rc, &err, e);
    }
    b->g = engine->g;
    b->stats.sequences = o->sequences ? o->sequences : SEQUENCES;
    b->stats.queue = o->queue ? o->queue : QUEUE;
    b->stats.cache_positions = b->g->context;
    pthread_mutex_init(&b->lock, NULL);
    pthread_cond_init(&b->more, NULL);
    if (pthread_create(&b->thread, NULL, run, b) != 0) {
        pthread_cond_destroy(&b->more);
        pthread_mutex_destroy(&b->lock);
        session_close(b->session);
        free(b);
        return api_done(err_set(&err, ERR_NOMEM, "no thread for a batch"), &err, e);
    }
    *ret = b;
    return 0;
}

void llava_batch_close(struct llava_batch *b)
{
    if (!b) return;
    pthread_mutex_lock(&b->lock);
    b->closing = true;
    pthread_cond_signal(&b->more);
    pthread_mutex_unlock(&b->lock);
    pthread_join(b->thread, NULL);
    pthread_cond_destroy(&b->more);
    pthread_mutex_destroy(&b->lock);
    session_close(b->session);
    free(b);
}
