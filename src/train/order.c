/* See order.h. */
#include "train/order.h"

#include <stdlib.h>
#include <string.h>

enum { RECORDS_MAX = 200 << 20 }; /* mt19937_perm */
static const uint64_t TORCH_SEED = 67280421310721u; /* of a torch.Generator() that nobody seeded */

/* ---- LengthGroupedSampler */

/* Positive length of record i: texts are negative where they stand beside pictures. */
static int64_t weight_of(const struct order *r, int64_t i, int sign) { return (int64_t)sign * r->o.length[i]; }

/* Longest first; equal ones stay as they are: a merge sort. */
static void sort_by_length(const struct order *r, int64_t *a, int64_t n, int sign, int64_t *room)
{
    if (n < 2) return;
    int64_t half = n / 2, i = 0, k = half;
    sort_by_length(r, a, half, sign, room);
    sort_by_length(r, a + half, n - half, sign, room);
    memcpy(room, a, (size_t)half * sizeof *a);
    for (int64_t to = 0; i < half; to++)
        a[to] = k < n && weight_of(r, a[k], sign) > weight_of(r, room[i], sign) ? a[k++] : room[i++];
}

/* Deals a megabatch out to `chunks` micro-batches: each record, longest first, to the one that is shortest so far and
 * not full. Where it cannot be dealt evenly every chunks-th goes to the same. */
static void deal(const struct order *r, int64_t *a, int64_t n, int chunks, int sign, int64_t *room)
{
    int64_t *sum = room + n, *count = sum + chunks, each = n / chunks, to = 0;
    memcpy(room, a, (size_t)n * sizeof *a);
    if (n % chunks) {
        for (int c = 0; c < chunks; c++)
            for (int64_t i = c; i < n; i += chunks) a[to++] = room[i];
        return;
    }
    memset(sum, 0, (size_t)chunks * 2 * sizeof *sum);
    for (int64_t i = 0; i < n; i++) {
        int best = -1;
        for (int c = 0; c < chunks; c++)
            if (count[c] < each && (best < 0 || sum[c] < sum[best])) best = c;
        a[best * each + count[best]++] = room[i];
        sum[best] += weight_of(r, room[i], sign);
    }
}

/* Orders a[0..n), records of one kind: shuffled, cut into megabatches of like lengths. perm: [n]. */
static void group(struct order *r, struct mt19937 *g, int64_t *a, int64_t n, int sign)
{
    int chunks = r->o.world * r->o.accum;
    int64_t mega = (int64_t)chunks * r->o.batch;
    mt19937_perm(g, r->perm, n);
    for (int64_t i = 0; i < n; i++) r->perm[i] = a[r->perm[i]];
    memcpy(a, r->perm, (size_t)n * sizeof *a);
    for (int64_t i = 0; i < n; i += mega) {
        int64_t k = n - i < mega ? n - i : mega;
        sort_by_length(r, a + i, k, sign, r->room);
        deal(r, a + i, k, chunks, sign, r->room);
    }
}

static int by_index(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Both kinds: pictures and texts grouped apart, their megabatches shuffled together; the last of each kind, full or
 * not, make one of their own at the end, in the order of the file. */
static void group_kinds(struct order *r, struct mt19937 *g, int64_t n_pictures)
{
    int64_t n = r->o.n, n_texts = n - n_pictures, mega = (int64_t)r->o.world * r->o.accum * r->o.batch;
    int64_t *pictures = r->part, *texts = r->part + n_pictures, p = 0, t = 0, to = 0;
    for (int64_t i = 0; i < n; i++) *(r->o.length[i] > 0 ? &pictures[p++] : &texts[t++]) = i;
    group(r, &r->global, pictures, n_pictures, 1);
    group(r, &r->global, texts, n_texts, -1);
    int64_t n_p = (n_pictures - 1) / mega, n_t = (n_texts - 1) / mega;
    mt19937_perm(g, r->perm, n_p + n_t);
    for (int64_t i = 0; i < n_p + n_t; i++, to += mega) {
        int64_t m = r->perm[i], *from = m < n_p ? pictures + m * mega : texts + (m - n_p) * mega;
        memcpy(r->list + to, from, (size_t)mega * sizeof *from);
    }
    int64_t *last = r->list + to;
    for (int64_t i = n_p * mega; i < n_pictures; i++) r->list[to++] = pictures[i];
    for (int64_t i = n_t * mega; i < n_texts; i++) r->list[to++] = texts[i];
    qsort(last, (size_t)(r->list + to - last), sizeof *last, by_index);
}

static void list_grouped(struct order *r)
{
    struct mt19937 *g = r->o.world > 1 ? &r->own : &r->global;
    int64_t n = r->o.n, n_pictures = 0;
    for (int64_t i = 0; i < n; i++) n_pictures += r->o.length[i] > 0;
    if (n_pictures && n_pictures < n) {
        group_kinds(r, g, n_pictures);
    } else { /* texts alone keep their negative lengths there, which puts the shortest first */
        for (int64_t i = 0; i < n; i++) r->list[i] = i;
        group(r, g, r->list, n, 1);
    }
}

/* ---- transformers' LengthGroupedSampler */

/* Shuffled, cut into pieces of up to 50 steps, each sorted by length; the longest record of all goes first, so that
 * what does not fit into memory fails at once. */
static void list_length(struct order *r)
{
    enum { STEPS_MAX = 50 };
    const int64_t n = r->o.n, step = (int64_t)r->o.batch * r->o.accum;
    const int64_t steps = n / (4 * step) < STEPS_MAX ? n / (4 * step) : STEPS_MAX, mega = steps ? steps * step : step;
    int64_t best = 0;
    mt19937_perm(r->o.world > 1 ? &r->own : &r->global, r->list, n);
    for (int64_t i = 0; i < n; i += mega) {
        sort_by_length(r, r->list + i, n - i < mega ? n - i : mega, 1, r->part);
        if (r->o.length[r->list[i]] > r->o.length[r->list[best]]) best = i;
    }
    const int64_t longest = r->list[best];
    r->list[best] = r->list[0];
    r->list[0] = longest;
}

/* ---- the rest */

static void list_random(struct order *r)
{
    if (r->o.world > 1) {
        mt19937_perm(&r->own, r->list, r->o.n);
        mt19937_perm(&r->own, r->perm, r->o.n);
    } else {
        struct mt19937 g;
        mt19937_seed(&g, (uint64_t)mt19937_i63(&r->global));
        mt19937_perm(&g, r->list, r->o.n);
    }
}

static void list_next(struct order *r)
{
    mt19937_i63(&r->global); /* the loader's, for its workers */
    if (r->o.kind == ORDER_RANDOM) list_random(r);
    else if (r->o.kind == ORDER_GROUPED) list_grouped(r);
    else if (r->o.kind == ORDER_LENGTH) list_length(r);
    else for (int64_t i = 0; i < r->o.n; i++) r->list[i] = i;
    r->epoch++;
}

/* The i-th index of all processes, beyond the end too. */
static int64_t list_at(const struct order *r, int64_t i)
{
    int64_t n = r->o.n, round = (int64_t)r->o.world * r->o.batch;
    return r->list[i < n ? i : (i - n) % (n < round ? n : round)];
}

void order_epoch(struct order *r, int epoch)
{
    if (epoch < r->epoch || r->epoch < 0) {
        mt19937_seed(&r->global, r->o.seed);
        mt19937_seed(&r->own, TORCH_SEED);
        r->epoch = -1;
    }
    if (r->epoch == epoch) return;
    while (r->epoch < epoch) list_next(r);
    int64_t batch = r->o.batch, to = 0;
    for (int64_t b = 0; b < r->n_micro; b++) {
        int64_t first = (b * r->o.world + r->o.rank) * batch;
        for (int64_t i = first; i < first + batch && to < r->n_index; i++) r->index[to++] = list_at(r, i);
    }
}

int order_micro(const struct order *r, int64_t b, const int64_t **index)
{
    int64_t from = b * r->o.batch, n = r->n_index - from;
    ASSERT(r->epoch >= 0 && b >= 0 && n > 0);
    *index = r->index + from;
    return n < r->o.batch ? (int)n : r->o.batch;
}

/* How many indices and micro-batches this process has. */
static void count(struct order *r)
{
    int64_t n = r->o.n, round = (int64_t)r->o.world * r->o.batch, whole = n / round;
    if (r->o.drop_last) r->n_micro = whole, r->n_index = whole * r->o.batch;
    else if (r->o.world == 1) r->n_micro = (n + round - 1) / round, r->n_index = n;
    else r->n_micro = (n + round - 1) / round, r->n_index = r->n_micro * r->o.batch;
}

int order_init(struct order *r, const struct order_options *o, struct err *e)
{
    *r = (struct order){ .o = *o, .epoch = -1 };
    if (o->n < 1 || o->batch < 1 || o->accum < 1 || o->world < 1 || o->rank < 0 || o->rank >= o->world)
        return err_set(e, ERR_USAGE, "%lld records, %d a batch, %d batches a step, %d processes: want at least 1",
                       (long long)o->n, o->batch, o->accum, o->world);
    if (o->n >= RECORDS_MAX || (int64_t)o->batch * o->accum >= RECORDS_MAX / o->world)
        return err_set(e, ERR_LIMIT, "more than %d records, in all or in a step", RECORDS_MAX);
    for (int64_t i = 0; o->kind == ORDER_GROUPED && i < o->n; i++)
        if (o->length[i] == 0)
            return err_set(e, ERR_FORMAT, "a record without a word (the %lldth) cannot be grouped by length",
                           (long long)i + 1);
    count(r);
    if (r->n_micro < 1)
        return err_set(e, ERR_USAGE, "%lld record%s cannot fill a batch of %d%s, and what is not full is dropped",
                       (long long)o->n, o->n == 1 ? "" : "s", o->batch, o->world > 1 ? " on every process" : "");
    size_t n = (size_t)o->n, chunks = (size_t)o->world * (size_t)o->accum, mega = chunks * (size_t)o->batch;
    r->index = calloc((size_t)r->n_index, sizeof *r->index);
    r->list = calloc(n, sizeof *r->list);
    r->part = calloc(n, sizeof *r->part);
    r->perm = calloc(n, sizeof *r->perm);
    r->room = calloc((mega < n ? mega : n) + 2 * chunks, sizeof *r->room);
    if (r->index && r->list && r->part && r->perm && r->room) return 0;
    order_fini(r);
    return err_set(e, ERR_NOMEM, "no memory for the order of %zu records", n);
}

void order_fini(struct order *r)
{
    free(r->index);
    free(r->list);
    free(r->part);
    free(r->perm);
    free(r->room);
    *r = (struct order){ 0 };
}
