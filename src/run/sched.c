/* See sched.h. */
#include "run/sched.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/plat.h"

/* Rows of a chunk between tokens: with fewer than CHUNK_WELL a product mostly waits for its weights; CHUNK_LEAST,
 * however slow. */
enum { CHUNK_LEAST = 32, CHUNK_WELL = 64 };

/* The arrays of a step, growing as sequences put their rows in. */
struct build {
    struct sched *s;
    struct step step;
    int32_t *token, *feature, *pos, *range, *row, *out, *pages;
    struct seq *of[ENGINE_SEQS]; /* whose the outputs are */
    struct choice choose[ENGINE_SEQS];
    bool logits;                 /* they are wanted on the host */
    struct op_span span[ENGINE_SEQS];
    int n_features;
    bool whole;                  /* the logits of all rows are wanted */
};

/* ---- memory */

static int page_width(const struct engine *g) { return store_pages(g->context); }

int sched_init(struct sched *s, struct engine *g, int sequences, int64_t positions, struct err *e)
{
    *s = (struct sched){ .g = g, .n_most = sequences };
    s->now = s->under_way;
    if (s->n_most > ENGINE_SEQS) s->n_most = ENGINE_SEQS;
    if (s->n_most > g->chunk) s->n_most = g->chunk;
    int rc = store_init(&s->store, g, positions, e);
    if (rc < 0) return rc;
    gallery_init(&s->gallery, g);
    size_t n = (size_t)g->chunk * 8 + (size_t)s->n_most * (size_t)page_width(g);
    s->rows = malloc(n * sizeof *s->rows);
    s->features = malloc((size_t)g->chunk * sizeof *s->features);
    return s->rows && s->features ? 0 : err_set(e, ERR_NOMEM, "no memory for steps");
}

void sched_fini(struct sched *s)
{
    ASSERT(!s->first);
    store_fini(&s->store);
    gallery_fini(&s->gallery);
    free(s->rows);
    free(s->features);
    *s = (struct sched){ 0 };
}

/* ---- coming and going */

bool sched_room(const struct sched *s, int positions)
{
    return s->n < s->n_most && store_available(&s->store) >= s->promised + store_pages(positions);
}

static int pages_to_come(const struct seq *q) { return store_pages(q->n_max) - q->pages.n; }

void sched_add(struct sched *s, struct seq *q)
{
    struct seq **at = &s->first;
    while (*at) at = &(*at)->next;
    *at = q;
    q->next = NULL;
    q->slot = 0;
    while (s->taken[q->slot]) q->slot++;
    s->taken[q->slot] = true;
    s->n++;
    s->promised += pages_to_come(q);
}

static void add_page(struct sched *s, struct seq *q, int page)
{
    q->pages.at[q->pages.n++] = page;
    s->promised--;
}

/* The page that row n-1 completes, or that is the sequence's last, becomes known to others. */
static void publish(struct sched *s, struct seq *q, int n)
{
    struct seq_pages *p = &q->pages;
    const int last = store_pages(n) - 1, page = p->at[last];
    if (p->off_tree || seq_is_bare(q) || s->store.page[page].known) return;
    if (!store_know(&s->store, p->node, page, q->at + last * KV_PAGE, n - last * KV_PAGE)) p->off_tree = true;
    else if (n % KV_PAGE == 0) p->node = page;
}

/* The store is told of rows whose tokens are known. */
static void settle(struct sched *s, struct seq *q)
{
    while (q->n_known < q->n && q->n_known < q->n_at)
        if (++q->n_known % KV_PAGE == 0) publish(s, q, q->n_known);
}

void sched_remove(struct sched *s, struct seq *q)
{
    for (struct under_way *w = s->under_way; w < s->under_way + 2; w++)
        for (int i = 0; i < w->n; i++)
            if (w->of[i] == q) w->of[i] = NULL;
    s->taken[q->slot] = false;
    settle(s, q);
    struct seq **at = &s->first;
    while (*at != q) at = &(*at)->next;
    *at = q->next;
    s->n--;
    s->promised -= pages_to_come(q);
    if (q->n_known % KV_PAGE) publish(s, q, q->n_known);
    while (q->pages.n) store_drop(&s->store, q->pages.at[--q->pages.n]);
}

/* ---- what is there already */

/* Does an earlier sequence compute the very page that q would begin with? Then it is worth waiting for. (It may have
 * begun that page already, with rows that it copied.) */
static bool another_reads(const struct sched *s, const struct seq *q)
{
    const int want = q->n + KV_PAGE;
    if (q->n % KV_PAGE) return false; /* q is in the middle of a page of its own */
    for (const struct seq *p = s->first; p != q; p = p->next) {
        const int most = p->n_prompt < q->n_prompt ? p->n_prompt : q->n_prompt;
        if (p->state != SEQ_READING || p->n >= want || want > most || p->pages.off_tree) continue;
        int same = 0;
        while (same < want && p->at[same].key == q->at[same].key) same++;
        if (same == want) return true;
    }
    return false;
}

/* Follows the prompt through what is known; its last position is always computed, for its logits. */
static void reuse(struct sched *s, struct seq *q)
{
    while (q->n % KV_PAGE == 0 && q->n + KV_PAGE < q->n_prompt && !q->pages.off_tree) {
        int page = store_follow(&s->store, q->pages.node, q->at + q->n);
        if (page < 0) break;
        add_page(s, q, page);
        q->pages.node = page;
        q->n_known = q->n += KV_PAGE;
        q->r.n_cached += KV_PAGE;
    }
}

/* The beginning of a page that differs, or goes on differently, further on: its rows are copied, once. */
static void copy_beginning(struct sched *s, struct seq *q)
{
    int32_t from[KV_PAGE], to[KV_PAGE];
    int left = q->n_prompt - 1 - q->n, n;
    if (q->pages.copied || q->pages.off_tree || q->n % KV_PAGE) return;
    q->pages.copied = true;
    int page = store_closest(&s->store, q->pages.node, q->at + q->n, left < KV_PAGE ? left : KV_PAGE, &n);
    if (page < 0) return;
    store_hold(&s->store, page);
    if (store_available(&s->store) > 0) {
        if (n == KV_PAGE) n--; /* all of it would have been followed, were it not for the last position */
        add_page(s, q, store_take(&s->store));
        for (int i = 0; i < n; i++) {
            from[i] = page * KV_PAGE + i;
            to[i] = q->pages.at[q->pages.n - 1] * KV_PAGE + i;
        }
        engine_copy(s->g, &s->store.cache, from, to, n);
        q->n_known = q->n += n;
        q->r.n_cached += n;
    }
    store_drop(&s->store, page);
}

/* ---- pictures */

/* The first picture that q's next `rows` rows need and that has not been through the tower; or NULL. */
static const struct image *picture_missing(struct sched *s, struct seq *q, int rows)
{
    const struct image *missing = NULL;
    int last = -1;
    for (int i = q->n; i < q->n_prompt && i < q->n + rows; i++) {
        if (q->at[i].token >= 0 || q->at[i].image == last) continue;
        const struct image *im = q->images[last = q->at[i].image];
        /* all are asked for, so they stay */
        const bool there = gallery_find(&s->gallery, im, q->sight, q->realm).p != NULL;
        if (!there && !missing) missing = im;
        if (last < q->n_seen || (!there && missing != im)) continue;
        q->n_seen = last + 1;
        s->stats.pictures++;
        s->stats.cached_pictures += there;
    }
    return missing;
}

static void see(struct sched *s, struct seq *q, const struct image *im)
{
    const double start = plat_now_s();
    if (gallery_add_tile(&s->gallery, im, q->sight, q->realm, &q->err) < 0) seq_finish(q, LLAVA_FINISH_END);
    q->r.image_s += plat_now_s() - start;
}

/* ---- building steps */

static void build_begin(struct build *b, struct sched *s)
{
    const size_t chunk = (size_t)s->g->chunk;
    *b = (struct build){ .s = s };
    b->token = s->rows;
    b->feature = b->token + chunk;
    b->pos = b->feature + chunk;
    b->row = b->pos + chunk;
    b->out = b->row + chunk;
    b->range = b->out + chunk;
    b->pages = b->range + 3 * chunk;
}

/* Row i goes through an adapter, maybe as the rows before it. */
static void build_span(struct build *b, int i, int adapter)
{
    struct op_span *last = b->step.n_spans ? &b->span[b->step.n_spans - 1] : NULL;
    if (adapter < 0) return;
    if (last && last->to == i && last->number == adapter) last->to++;
    else b->span[b->step.n_spans++] = (struct op_span){ i, i + 1, adapter };
}

/* Row i of the step is position p of q, which is the step's sequence number `number`. */
static void build_row(struct build *b, struct seq *q, int p, int number)
{
    struct sched *s = b->s;
    const int i = b->step.n++, window = s->g->model.cfg.llama.window;
    if (p / KV_PAGE == q->pages.n) add_page(s, q, store_take(&s->store));
    b->token[i] = p < q->n_at ? q->at[p].token : -2 - q->slot;
    b->feature[i] = b->token[i] == -1 ? b->n_features++ : -1;
    b->pos[i] = p;
    b->row[i] = q->pages.at[p / KV_PAGE] * KV_PAGE + p % KV_PAGE;
    b->range[3 * i] = window > 0 && p >= window ? p - window + 1 : 0;
    b->range[3 * i + 1] = p + 1;
    b->range[3 * i + 2] = number;
    build_span(b, i, q->adapter);
}

/* The row just built has q's next token, or its logits. A token that follows a grammar is chosen on the host. */
static void build_output(struct build *b, struct seq *q)
{
    struct choice how = { .slot = -1 };
    if (q->most) how = chooser_draw(&q->chooser, q->slot);
    if (chooser_here(&q->chooser)) how.slot = -1;
    b->logits |= seq_waits(q);
    b->choose[b->step.n_out] = how;
    b->out[b->step.n_out] = b->step.n - 1;
    b->of[b->step.n_out++] = q;
}

/* The sequences' lists of pages, as wide as the longest. */
static void build_pages(struct build *b, struct seq *const *q, int n)
{
    struct step *p = &b->step;
    p->n_seqs = n;
    for (int i = 0; i < n; i++)
        if (q[i]->pages.n > p->n_pages) p->n_pages = q[i]->pages.n;
    for (int i = 0; i < n; i++) {
        memset(b->pages + i * p->n_pages, 0, (size_t)p->n_pages * sizeof *b->pages);
        memcpy(b->pages + i * p->n_pages, q[i]->pages.at, (size_t)q[i]->pages.n * sizeof *b->pages);
    }
}

/* The feature rows of positions [from, to), in runs of neighbours. */
static void build_features(struct build *b, const struct seq *q, int from, int to)
{
    struct sched *s = b->s;
    const struct image *last = NULL;
    int next = -1;
    for (int i = from; i < to; i++) {
        if (q->at[i].token >= 0) continue;
        const struct image *im = q->images[q->at[i].image];
        if (im != last || q->at[i].row != next)
            s->features[b->step.n_features++] =
                tensor_slice(gallery_find(&s->gallery, im, q->sight, q->realm), q->at[i].row, 0);
        s->features[b->step.n_features - 1].n[0]++;
        last = im;
        next = q->at[i].row + 1;
    }
}

static void build_step(struct build *b)
{
    struct step *p = &b->step;
    p->token = b->token;
    p->feature = b->feature;
    p->pos = b->pos;
    p->range = b->range;
    p->row = b->row;
    p->pages = b->pages;
    p->spans = b->span;
    p->out = b->whole ? NULL : b->out;
    p->choose = p->n_out ? b->choose : NULL;
    p->logits = b->logits;
    p->features = b->s->features;
}

static void begin(struct build *b)
{
    struct sched *s = b->s;
    const struct step *p = &b->step;
    struct under_way *w = s->now;
    *w = (struct under_way){ .there = true, .logits = b->logits, .n = p->n_out, .n_rows = p->decode ? 0 : p->n };
    memcpy(w->of, b->of, (size_t)p->n_out * sizeof *w->of);
    w->number = engine_begin(s->g, &s->store.cache, p);
}

/* ---- tokens */

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

static void take_token(struct sched *s, struct seq *q, int32_t token, const float *logits)
{
    const double before = q->token_s;
    s->stats.new_tokens += token >= 0;
    seq_push(q, token, logits);
    if (q->r.n_new == 1) histogram_add(&s->stats.first_s, q->r.queue_s + q->r.first_s);
    else histogram_add(&s->stats.token_s, q->token_s - before);
}

/* The prompt of q is read: its answer begins, or waits to be asked for. */
static void prompt_read(struct seq *q)
{
    q->start_s = plat_now_s();
    q->r.prompt_s = q->start_s - q->begun_s - q->r.image_s;
}

/* Tokens that are chosen on the host are chosen side by side. */
static void choose(const struct under_way *w, int32_t *token, size_t V, int threads)
{
    const float *logits = w->n ? engine_logits(w->of[0]->g) : NULL;
#pragma omp parallel for num_threads(threads) if (w->n > 1) schedule(dynamic)
    for (int i = 0; i < w->n; i++)
        if (chooser_here(&w->of[i]->chooser) && w->of[i]->state == SEQ_WRITING)
            token[i] = chooser_choose(&w->of[i]->chooser, logits + (size_t)i * V);
}

/* The token of q is not chosen yet: it sits out steps until it is, for others are not to wait. */
static void hold(struct seq *q, const float *logits)
{
    const size_t bytes = (size_t)q->g->model.cfg.llama.V * sizeof *logits;
    if (!(q->held = malloc(bytes))) {
        err_set(&q->err, ERR_NOMEM, "no memory for a sequence");
        seq_finish(q, LLAVA_FINISH_END);
        return;
    }
    memcpy(q->held, logits, bytes);
}

/* Goes on choosing the tokens that were held. False: there are none. */
static bool choose_held(struct sched *s)
{
    struct seq *of[ENGINE_SEQS];
    int32_t token[ENGINE_SEQS];
    int n = 0;
    for (struct seq *q = s->first; q; q = q->next)
        if (q->held && q->state == SEQ_WRITING) of[n++] = q;
#pragma omp parallel for num_threads(s->g->kc.n_threads) if (n > 1) schedule(dynamic)
    for (int i = 0; i < n; i++) token[i] = chooser_choose(&of[i]->chooser, of[i]->held);
    for (int i = 0; i < n; i++) {
        float *logits = of[i]->held;
        if (token[i] == CHOOSER_LATER || of[i]->state == SEQ_DONE) continue;
        of[i]->held = NULL;
        take_token(s, of[i], token[i], logits);
        settle(s, of[i]);
        free(logits);
    }
    return n > 0;
}

/* Waits for a step that has begun; its tokens are taken in turn, for callbacks come one by one. */
static void finish(struct sched *s, struct under_way *w)
{
    const size_t V = (size_t)s->g->model.cfg.llama.V;
    int32_t token[ENGINE_SEQS];
    if (!w->there) return;
    w->there = false;
    const int32_t *by_slot = engine_tokens(s->g, w->number);
    const double row_s = w->n_rows ? engine_spent_s(s->g, w->number) / w->n_rows : 0;
    if (w->n_rows >= CHUNK_LEAST) s->row_s = s->row_s > 0 ? (s->row_s + row_s) / 2 : row_s;
    for (int i = 0; i < w->n; i++)
        if (w->of[i]) token[i] = by_slot[w->of[i]->slot];
    if (w->logits) choose(w, token, V, s->g->kc.n_threads);
    for (int i = 0; i < w->n; i++) {
        struct seq *q = w->of[i];
        const float *logits = w->logits ? engine_logits(s->g) + (size_t)i * V : NULL;
        if (!q || q->state == SEQ_DONE) continue;
        if (q->r.n_new == 0) prompt_read(q);
        if (q->state == SEQ_WRITING && token[i] == CHOOSER_LATER) hold(q, logits);
        else if (q->state == SEQ_WRITING) take_token(s, q, token[i], logits);
        else if (q->logits) memcpy(q->logits, logits, V * sizeof *logits);
        settle(s, q);
    }
}

static bool write_tokens(struct sched *s)
{
    struct build b;
    build_begin(&b, s);
    for (int adapter = -1; adapter < s->g->model.n_adapters; adapter++) /* each adapter's rows side by side */
        for (struct seq *q = s->first; q; q = q->next)
            if (seq_goes_on(q) && q->adapter == adapter) {
                build_row(&b, q, q->n, b.step.n);
                build_output(&b, q);
            }
    if (!b.step.n) return false;
    build_pages(&b, b.of, b.step.n);
    b.step.decode = true;
    build_step(&b);
    begin(&b);
    for (int i = 0; i < b.step.n; i++) {
        b.of[i]->n++;
        settle(s, b.of[i]);
    }
    s->stats.decode_steps++;
    return true;
}

/* ---- prompts */

/* Rows that a chunk may have: all, or what those that write can be kept waiting for. */
static int chunk_rows(const struct sched *s, int readers, int writers)
{
    const int all = s->g->chunk;
    const double worth_s = readers > writers ? SCHED_STALL_MOST_S : CHUNK_WELL * s->row_s; /* a token for few is dear */
    if (!writers) return all;
    double n = CHUNK_LEAST; /* and not more before it is known how long a row takes */
    if (s->row_s > 0) n = fmax(n, fmax(SCHED_STALL_S, fmin(worth_s, SCHED_STALL_MOST_S)) / s->row_s);
    return n < all ? (int)n : all;
}

/* Positions [q->n, to) of q go into the step. */
struct reading {
    struct seq *q;
    int to;
};

static void add_part(struct build *b, struct reading *p, struct seq *q, int rows, int number)
{
    const bool whole = seq_is_whole(q);
    const int most = whole && rows > ENGINE_SEQS ? ENGINE_SEQS : rows; /* logits of all rows */
    const int from = q->n, left = most - b->step.n, end = q->n_prompt - (whole && !q->all);
    *p = (struct reading){ q, end - from < left ? end : from + left };
    for (int i = from; i < p->to; i++) build_row(b, q, i, number);
    b->whole = whole; /* then it is alone in the step */
    if (p->to == q->n_prompt && !whole) build_output(b, q);
    build_features(b, q, from, p->to);
}

/* The prompt of q gets its turn, unless it had that before. */
static void turn_begin(struct sched *s, struct seq *q)
{
    if (q->begun_s > 0) return;
    q->begun_s = plat_now_s();
    if (q->submitted_s > 0) histogram_add(&s->stats.queue_s, q->r.queue_s = q->begun_s - q->submitted_s);
}

/* A picture that must go through the tower before the prompt of q goes on. */
struct unseen {
    struct seq *q;
    const struct image *im;
};

/* Which sequences' prompts go into the step: how many. None where the first of them lacks a picture, *first; of others
 * that do the turn comes later. */
static int gather_parts(struct build *b, struct reading *part, int rows, struct unseen *first)
{
    struct sched *s = b->s;
    int n = 0;
    gallery_begin(&s->gallery);
    for (struct seq *q = s->first; q && b->step.n < rows && !b->whole; q = q->next) {
        if (q->state != SEQ_READING || another_reads(s, q) || (seq_is_whole(q) && n)) continue;
        turn_begin(s, q);
        if (!seq_is_bare(q)) reuse(s, q);
        const struct image *im = picture_missing(s, q, rows - b->step.n);
        if (im && n) continue;
        if (im) return *first = (struct unseen){ q, im }, 0;
        if (!seq_is_bare(q)) copy_beginning(s, q);
        add_part(b, &part[n], q, rows, n);
        n++;
    }
    return n;
}

/* The prompt of q is being read to its end: its answer begins, or waits to be asked for. */
static void prompt_begun(struct sched *s, struct seq *q)
{
    prompt_read(q);
    q->state = q->most ? SEQ_WRITING : SEQ_READY;
    s->stats.prompt_positions += (uint64_t)q->n_prompt;
    s->stats.cached_positions += (uint64_t)q->r.n_cached;
}

static void parts_done(struct sched *s, const struct reading *part, int n, const float *whole)
{
    const size_t V = (size_t)s->g->model.cfg.llama.V;
    for (int i = 0; i < n; i++) {
        struct seq *q = part[i].q;
        if (q->all) memcpy(q->all + (size_t)q->n * V, whole, (size_t)(part[i].to - q->n) * V * sizeof *whole);
        if (q->on_prompt && !q->n) seq_tell_prompt(q, 0, NULL);
        for (int k = q->n; q->on_prompt && whole && k < part[i].to; k++)
            seq_tell_prompt(q, k + 1, whole + (size_t)(k - q->n) * V);
        q->n = part[i].to;
        settle(s, q);
        if (q->n == q->n_prompt) prompt_begun(s, q);
    }
}

static bool read_prompts(struct sched *s, int readers, int writers)
{
    struct build b;
    struct reading part[ENGINE_SEQS];
    struct seq *of[ENGINE_SEQS];
    struct unseen first = { NULL, NULL };
    const float *whole = NULL;
    build_begin(&b, s);
    int n = gather_parts(&b, part, chunk_rows(s, readers, writers), &first);
    if (first.im) see(s, first.q, first.im);
    if (!n) return first.im != NULL;
    for (int i = 0; i < n; i++) of[i] = part[i].q;
    build_pages(&b, of, n);
    build_step(&b);
    if (b.whole) whole = engine_step(s->g, &s->store.cache, &b.step);
    else begin(&b);
    s->stats.prompt_steps++;
    parts_done(s, part, n, whole);
    return true;
}

static bool sched_waits(const struct sched *s)
{
    bool waits = !s->g->dev;
    for (const struct seq *q = s->first; q; q = q->next) waits |= seq_waits(q);
    return waits;
}

static bool begin_step(struct sched *s)
{
    int readers = 0, writers = 0;
    for (const struct seq *q = s->first; q; q = q->next) {
        readers += q->state == SEQ_READING;
        writers += seq_goes_on(q);
    }
    if (writers && (s->read_last || !readers)) {
        s->read_last = false;
        return write_tokens(s);
    }
    s->read_last = true;
    return readers && read_prompts(s, readers, writers);
}

bool sched_step(struct sched *s)
{
    struct under_way *before = s->now;
    const bool waits = sched_waits(s);
    if (waits) finish(s, before);
    s->now = s->under_way + (s->now == s->under_way);
    const bool chose = choose_held(s), did = begin_step(s), was = before->there;
    finish(s, before);
    if (waits) finish(s, s->now);
    return chose || did || was;
}
