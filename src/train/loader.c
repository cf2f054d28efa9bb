/* See loader.h. Samples are numbered in the order in which they are needed. Threads take the next number, make its
 * sample in a slot of a ring, and mark it ready; loader_next takes them off in order. What a slot stands for is decided
 * under the lock, all the work is done outside. */
#include "train/loader.h"

#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/rng.h"

struct slot {
    struct sample sample;
    struct record record;
    int64_t index;   /* record of the dataset */
    int positions;   /* that it was counted with; 0: it was not */
    int epoch;
    int64_t micro;   /* of the epoch, from 0 */
    bool last;       /* of its micro-batch */
    bool ready, fatal;
    int rc;          /* of making the sample; err says more */
    struct err err;
};

/* A sample that waits for a batch; or the place of one that is left out, so that what is packed together stays within
 * what was planned. */
struct waiting {
    struct sample sample;
    bool out;
    int positions;
    int epoch;
    int64_t micro; /* done when this sample is */
    float weight;
};

struct loader {
    struct loader_options o;
    struct slot *slot;
    int n_slots, n_threads;
    pthread_t *thread;
    pthread_mutex_t lock;
    pthread_cond_t work, done;  /* a slot is free, or it is time to stop; a slot is ready */
    bool stop;
    int64_t next, taken;        /* numbers: of the next sample to make; of the next to give out */
    int epoch, at;              /* where `next` stands: epoch, record of the micro-batch */
    int64_t micro;

    /* of loader_next alone */
    struct waiting *wait;
    int n_wait, wait_cap;
    struct sample **list;       /* [wait_cap] */
    float *weight;              /* [wait_cap] */
    int64_t T_wait;             /* positions that wait */
    bool update;                /* the optimiser steps after what waits */
    int read_epoch;             /* the place after what waits */
    int64_t read_micro;
    int n_skipped;
    int64_t skipped;
    struct batch batch[2];
    int turn;                   /* of batch: which was given out last */
};

/* ---- making samples */

/* Claims the next number and says what it stands for; NULL after the last. Under the lock, a slot is free. */
static struct slot *claim(struct loader *l)
{
    struct order *r = l->o.order;
    const int64_t *index;
    if (l->epoch >= l->o.epochs) return NULL;
    if (r->epoch != l->epoch) order_epoch(r, l->epoch);
    int n = order_micro(r, l->micro, &index);
    struct slot *s = &l->slot[l->next++ % l->n_slots];
    int64_t i = index[l->at];
    s->index = l->o.row ? l->o.row[i].record : i;
    s->positions = l->o.row ? l->o.row[i].positions : 0;
    s->epoch = l->epoch;
    s->micro = l->micro;
    s->last = ++l->at == n;
    s->ready = false;
    if (s->last) l->at = 0, l->micro++;
    if (l->micro == r->n_micro) l->micro = 0, l->epoch++;
    return s;
}

/* A key of a record's pictures in an epoch, such as for how they look: never 0. */
static uint64_t key_of(uint64_t seed, const struct slot *s)
{
    return rng_key(seed, (uint64_t)s->epoch, (uint64_t)s->index) | 1;
}

static void make(const struct loader *l, struct slot *s)
{
    s->sample.look = l->o.augment ? key_of(l->o.augment, s) : 0;
    s->sample.pick = key_of(~l->o.recipe->seed, s);
    s->err.msg[0] = 0;
    s->rc = record_load(&s->record, l->o.data, s->index, &s->err);
    s->fatal = s->rc == ERR_IO || s->rc == ERR_NOMEM;
    if (s->rc < 0) return;
    s->rc = sample_make(&s->sample, l->o.recipe, &s->record, true, &s->err);
    s->fatal = s->rc == ERR_SHAPE || s->rc == ERR_NOMEM;
}

static bool has_room(const struct loader *l) { return l->next - l->taken < l->n_slots; }

static void *worker(void *arg)
{
    struct loader *l = arg;
    pthread_mutex_lock(&l->lock);
    for (;;) {
        while (!l->stop && !has_room(l)) pthread_cond_wait(&l->work, &l->lock);
        struct slot *s = l->stop ? NULL : claim(l);
        if (!s) break;
        pthread_mutex_unlock(&l->lock);
        make(l, s);
        pthread_mutex_lock(&l->lock);
        s->ready = true;
        pthread_cond_signal(&l->done);
    }
    pthread_mutex_unlock(&l->lock);
    return NULL;
}

/* The next sample's slot, made; NULL after the last one. It is given back with slot_free. */
static struct slot *slot_next(struct loader *l)
{
    struct slot *s = NULL;
    if (l->n_threads == 0) {
        if ((s = claim(l))) make(l, s);
        return s;
    }
    pthread_mutex_lock(&l->lock);
    bool ended = l->taken == l->next && l->epoch >= l->o.epochs;
    if (!ended) {
        s = &l->slot[l->taken % l->n_slots];
        while (l->taken == l->next || !s->ready) pthread_cond_wait(&l->done, &l->lock);
    }
    pthread_mutex_unlock(&l->lock);
    return s;
}

static void slot_free(struct loader *l)
{
    pthread_mutex_lock(&l->lock);
    l->taken++;
    pthread_cond_signal(&l->work);
    pthread_mutex_unlock(&l->lock);
}

/* ---- opening */

static int start_threads(struct loader *l, struct err *e)
{
    l->thread = calloc((size_t)l->o.threads + 1, sizeof *l->thread);
    if (!l->thread) return err_set(e, ERR_NOMEM, "no memory for %d threads", l->o.threads);
    for (; l->n_threads < l->o.threads; l->n_threads++) {
        if (pthread_create(&l->thread[l->n_threads], NULL, worker, l) == 0) continue;
        if (l->n_threads == 0) log_warn("cannot start a thread: pictures are decoded between the steps");
        else log_warn("only %d of %d threads for the data could be started", l->n_threads, l->o.threads);
        break;
    }
    return 0;
}

int loader_open(struct loader **ret, const struct loader_options *o, struct err *e)
{
    struct loader *l = calloc(1, sizeof *l);
    int rc = 0;
    if (!l) return err_set(e, ERR_NOMEM, "no memory to read the data");
    l->o = *o;
    l->epoch = l->read_epoch = o->epoch;
    l->micro = l->read_micro = o->micro;
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->work, NULL);
    pthread_cond_init(&l->done, NULL);
    if (o->micro == o->order->n_micro) l->micro = 0, l->epoch++;
    l->n_slots = (int)(o->order->o.n < o->order->o.batch ? o->order->o.n : o->order->o.batch) + o->threads;
    l->slot = calloc((size_t)l->n_slots, sizeof *l->slot);
    if (o->threads < 0 || o->micro < 0 || o->micro > o->order->n_micro)
        TRY(err_set(e, ERR_USAGE, "no such place in the data: epoch %d, micro-batch %lld of %lld", o->epoch,
                    (long long)o->micro, (long long)o->order->n_micro));
    if (!l->slot) TRY(err_set(e, ERR_NOMEM, "no memory to read the data"));
    TRY(start_threads(l, e));
    *ret = l;
    return 0;
out:
    loader_close(l);
    return rc;
}

void loader_close(struct loader *l)
{
    if (!l) return;
    pthread_mutex_lock(&l->lock);
    l->stop = true;
    pthread_cond_broadcast(&l->work);
    pthread_mutex_unlock(&l->lock);
    for (int i = 0; i < l->n_threads; i++) pthread_join(l->thread[i], NULL);
    for (int i = 0; l->slot && i < l->n_slots; i++) {
        sample_fini(&l->slot[i].sample);
        record_fini(&l->slot[i].record);
    }
    for (int i = 0; i < l->wait_cap; i++) sample_fini(&l->wait[i].sample);
    pthread_mutex_destroy(&l->lock);
    pthread_cond_destroy(&l->work);
    pthread_cond_destroy(&l->done);
    for (int i = 0; i < 2; i++) batch_fini(&l->batch[i]);
    free(l->thread);
    free(l->slot);
    free(l->wait);
    free(l->list);
    free(l->weight);
    free(l);
}

/* ---- batches */

static int wait_room(struct loader *l, struct err *e)
{
    if (l->n_wait < l->wait_cap) return 0;
    int cap = l->wait_cap ? l->wait_cap * 2 : 16;
    struct waiting *wait = realloc(l->wait, (size_t)cap * sizeof *wait);
    if (wait) l->wait = wait;
    struct sample **list = realloc(l->list, (size_t)cap * sizeof *list);
    if (list) l->list = list;
    float *weight = realloc(l->weight, (size_t)cap * sizeof *weight);
    if (weight) l->weight = weight;
    if (!wait || !list || !weight) return err_set(e, ERR_NOMEM, "no memory for a batch");
    memset(l->wait + l->wait_cap, 0, (size_t)(cap - l->wait_cap) * sizeof *wait);
    l->wait_cap = cap;
    return 0;
}

static void count_out(struct loader *l, const struct slot *s)
{
    if (l->skipped < CHECK_SHOWN) log_warn("%s: left out", s->err.msg);
    if (l->skipped == CHECK_SHOWN) log_warn("further records that are left out are only counted");
    l->n_skipped++;
    l->skipped++;
}

/* Moves a good sample to those that wait; a bad one is an error, or leaves its place. */
static int take(struct loader *l, struct slot *s, struct err *e)
{
    const bool out = s->rc < 0;
    if (out && (s->fatal || !l->o.skip_bad)) return err_set(e, s->err.code, "%s", s->err.msg);
    int rc = wait_room(l, e);
    if (rc < 0) return rc;
    struct waiting *w = &l->wait[l->n_wait++];
    struct sample old = w->sample; /* whose memory the slot goes on with */
    *w = (struct waiting){ .sample = s->sample, .out = out, .positions = out ? s->positions : s->sample.positions,
                           .epoch = s->epoch, .micro = s->micro + s->last };
    s->sample = old;
    l->T_wait += w->positions;
    if (out) count_out(l, s);
    return 0;
}

/* Does the optimiser step after so many micro-batches of an epoch? */
static bool steps_after(const struct order *r, int epoch, int64_t micro)
{
    return (epoch * r->n_micro + micro) % r->o.accum == 0 || (r->n_micro <= r->o.accum && micro == r->n_micro);
}

/* Adds the samples of the next micro-batch to those that wait. 0: there is none any more. */
static int read_micro(struct loader *l, struct err *e)
{
    const struct order *r = l->o.order;
    int first = l->n_wait, rc;
    int64_t targets = 0;
    for (bool last = false; !last;) {
        struct slot *s = slot_next(l);
        if (!s) return 0;
        last = s->last;
        l->read_epoch = s->epoch;
        l->read_micro = s->micro + 1;
        rc = take(l, s, e);
        slot_free(l);
        if (rc < 0) return rc;
    }
    for (int i = first; i < l->n_wait; i++) targets += l->wait[i].out ? 0 : l->wait[i].sample.n_targets;
    for (int i = first; i < l->n_wait; i++)
        l->wait[i].weight = targets ? (float)(1 / ((double)targets * r->o.accum)) : 0;
    l->update = steps_after(r, l->read_epoch, l->read_micro);
    return 1;
}

/* With packing: may more micro-batches of the step join those that wait? */
static bool has_space(const struct loader *l) { return l->o.packing && !l->update && l->T_wait <= l->o.packing; }

/* How many of those that wait go into one batch. */
static int fitting(const struct loader *l)
{
    int64_t T = 0;
    int n = 0;
    if (!l->o.packing) return l->n_wait;
    for (; n < l->n_wait; n++)
        if ((T += l->wait[n].positions) > l->o.packing && n) break;
    return n;
}

/* Takes the first n out of those that wait; their memory goes to the end. */
static void wait_drop(struct loader *l, int n)
{
    for (int i = 0; i < n; i++) l->T_wait -= l->wait[i].positions;
    l->n_wait -= n;
    for (int i = 0; i < l->n_wait; i++) {
        struct waiting w = l->wait[i];
        l->wait[i] = l->wait[i + n];
        l->wait[i + n] = w;
    }
}

/* Lays out the first of those that wait, and says where they end. */
static int put_out(struct loader *l, struct batch *b, struct err *e)
{
    const int n = fitting(l);
    const bool all = n == l->n_wait;
    int good = 0;
    for (int i = 0; i < n; i++) {
        if (l->wait[i].out) continue;
        l->list[good] = &l->wait[i].sample;
        l->weight[good++] = l->wait[i].weight;
    }
    const int rc = batch_make(b, l->o.recipe, l->list, l->weight, good, l->o.window, e);
    if (rc < 0) return rc;
    b->epoch = all ? l->read_epoch : l->wait[n - 1].epoch;
    b->micro = all ? l->read_micro : l->wait[n - 1].micro;
    b->update = all && l->update;
    b->n_skipped = l->n_skipped;
    wait_drop(l, n);
    return 1;
}

int loader_next(struct loader *l, const struct batch **ret, struct err *e)
{
    int rc = 1;
    l->n_skipped = 0;
    while (rc > 0 && (!l->n_wait || has_space(l))) rc = read_micro(l, e);
    if (rc < 0 || !l->n_wait) return rc;
    l->turn ^= 1;
    *ret = &l->batch[l->turn];
    return put_out(l, &l->batch[l->turn], e);
}

/* ---- planning */

/* One epoch in its order. b: what the batch that gathers has, which with packing may reach over an epoch's end. */
static void limit_epoch(struct batch_limits *m, const struct loader_options *o, int epoch, struct batch_limits *b)
{
    struct order *r = o->order;
    order_epoch(r, epoch);
    for (int64_t micro = 0; micro < r->n_micro; micro++) {
        const int64_t *index;
        const int n = order_micro(r, micro, &index);
        for (int i = 0; i < n; i++) {
            const struct check_row *row = &o->row[index[i]];
            if (o->packing && b->n && b->T + row->positions > o->packing) *b = (struct batch_limits){ 0 };
            b->n++;
            b->T += row->positions;
            b->n_images += row->images;
            b->n_targets += row->targets;
            b->kept = o->recipe->of ? o->recipe->rows : 0;
            batch_widen(m, b);
        }
        if (!o->packing || steps_after(r, epoch, micro + 1)) *b = (struct batch_limits){ 0 };
    }
}

static int descending(const void *a, const void *b)
{
    const int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x < y) - (x > y);
}

/* What k records have at most, of one measure; v: [n], to be sorted. */
static int sum_of_largest(int32_t *v, int64_t n, int64_t k)
{
    int64_t sum = 0;
    qsort(v, (size_t)n, sizeof *v, descending);
    for (int64_t i = 0; i < n && i < k; i++) sum += v[i];
    return sum < INT_MAX ? (int)sum : INT_MAX;
}

/* Whatever the order: of each measure the largest records, as many as a batch may have; of a packed one also no more
 * than what its positions have room for. */
static int limit_any(struct batch_limits *m, const struct loader_options *o, struct err *e)
{
    const int64_t n = o->order->o.n, most = (int64_t)o->order->o.batch * (o->packing ? o->order->o.accum : 1);
    int32_t *v = malloc((size_t)n * sizeof *v);
    int *const to[] = { &m->T, &m->n_images, &m->n_targets };
    if (!v) return err_set(e, ERR_NOMEM, "no memory to look for the largest batch");
    for (size_t what = 0; what < sizeof to / sizeof *to; what++) {
        double each = 0; /* of a position */
        for (int64_t i = 0; i < n; i++) {
            const struct check_row *row = &o->row[i];
            v[i] = what == 0 ? row->positions : what == 1 ? row->images : row->targets;
            each = fmax(each, (double)v[i] / fmax(1, row->positions));
        }
        *to[what] = sum_of_largest(v, n, most);
        const int room = what ? (int)ceil(each * m->T) : v[0] > o->packing ? v[0] : o->packing;
        if (o->packing && *to[what] > room) *to[what] = room;
    }
    m->n = (int)(most < n ? most : n);
    m->kept = o->recipe->of ? o->recipe->rows : 0;
    free(v);
    return 0;
}

int loader_limits(struct batch_limits *m, const struct loader_options *o, struct err *e)
{
    enum { WALK_MAX = 50000000 }; /* records, which take seconds */
    const bool alike = o->order->o.kind == ORDER_SEQUENTIAL; /* all epochs */
    const int epochs = alike && o->epochs > o->epoch ? o->epoch + 1 : o->epochs;
    struct batch_limits b = { 0 };
    *m = b;
    if (epochs - o->epoch > WALK_MAX / o->order->o.n && epochs > o->epoch + 1) return limit_any(m, o, e);
    for (int epoch = o->epoch; epoch < epochs; epoch++) limit_epoch(m, o, epoch, &b);
    return 0;
}
