/* See check.h. Threads take the records in portions and leave a row and a mark for each; what was wrong with the
 * few that are reported is found by making them once more, in order, so that any number of threads says the same. */
#include "train/check.h"

#include <pthread.h>
#include <stdlib.h>

#include "base/log.h"

enum { PORTION = 64, MARK_BAD = 1 << N_CHECK_NOTES };

struct checker {
    const struct dataset *d;
    const struct recipe *recipe;
    struct check_row *row; /* [d->n] */
    unsigned char *mark;   /* [d->n] bits 1 << enum check_note, or MARK_BAD */
    pthread_mutex_t lock;
    int64_t next;
    bool failed;           /* with err: what no record is to blame for */
    struct err err;
};

/* What one thread makes samples in. */
struct bench {
    struct record record;
    struct sample sample;
};

/* 0, or < 0 with what is wrong with record i. */
static int try_record(const struct checker *c, struct bench *b, int64_t i, struct err *e)
{
    char name[RECORD_NAME_MAX];
    int rc = record_load(&b->record, c->d, i, e);
    if (rc < 0) return rc;
    if (b->record.n_turns && c->d->entry[i].words == 0) {
        record_name(name, &b->record);
        return err_set(e, ERR_FORMAT, "%s: all turns are empty", name);
    }
    return sample_make(&b->sample, c->recipe, &b->record, false, e);
}

static int check_record(struct checker *c, struct bench *b, int64_t i)
{
    const struct sample *s = &b->sample;
    struct err e = { 0 };
    int rc = try_record(c, b, i, &e);
    bool ours = rc == ERR_NOMEM || (rc == ERR_IO && b->record.n_turns == 0); /* no memory; the data could not be read */
    if (ours) {
        pthread_mutex_lock(&c->lock);
        if (!c->failed) c->err = e;
        c->failed = true;
        pthread_mutex_unlock(&c->lock);
        return rc;
    }
    c->mark[i] = rc < 0 ? MARK_BAD : 0;
    if (rc < 0) return 0;
    c->row[i] = (struct check_row){ i, s->positions, s->n_targets, s->n_images };
    if (s->cut) c->mark[i] |= 1 << CHECK_CUT;
    if (s->n_targets == 0) c->mark[i] |= 1 << CHECK_MUTE;
    if (s->spare_images) c->mark[i] |= 1 << CHECK_SPARE;
    if (s->literal) c->mark[i] |= 1 << CHECK_LITERAL;
    return 0;
}

/* Until nothing is left. The bar is the calling thread's, else NULL. */
static void check_some(struct checker *c, struct progress *bar)
{
    struct bench b = { 0 };
    for (;;) {
        pthread_mutex_lock(&c->lock);
        int64_t from = c->failed ? c->d->n : c->next, to = from + PORTION < c->d->n ? from + PORTION : c->d->n;
        c->next = to;
        pthread_mutex_unlock(&c->lock);
        if (bar) progress_step(bar, from);
        if (from == to) break;
        for (int64_t i = from; i < to; i++)
            if (check_record(c, &b, i) < 0) break;
    }
    record_fini(&b.record);
    sample_fini(&b.sample);
}

static void *check_thread(void *arg)
{
    check_some(arg, NULL);
    return NULL;
}

static int check_all(struct checker *c, int threads, struct err *e)
{
    struct progress bar;
    pthread_t *more = calloc((size_t)threads, sizeof *more);
    int n = 0;
    if (!more) return err_set(e, ERR_NOMEM, "no memory for %d threads", threads);
    progress_begin(&bar, "checking the data", "records", c->d->n);
    while (n + 1 < threads && pthread_create(&more[n], NULL, check_thread, c) == 0) n++;
    check_some(c, &bar);
    for (int i = 0; i < n; i++) pthread_join(more[i], NULL);
    progress_end(&bar);
    free(more);
    return c->failed ? err_set(e, c->err.code, "%s", c->err.msg) : 0;
}

/* ---- what came out */

static void add_up(struct check_result *r, const struct checker *c)
{
    for (int64_t i = 0; i < c->d->n; i++) {
        struct check_row row = c->row[i];
        if (c->mark[i] & MARK_BAD) {
            r->n_bad++;
            continue;
        }
        r->length[r->n_row] = dataset_length(c->d, i);
        r->row[r->n_row++] = row;
        r->n_text += !c->d->entry[i].image;
        r->images += row.images;
        r->positions += row.positions;
        r->targets += row.targets;
        if (row.images > r->most.images) r->most.images = row.images;
        if (row.positions > r->most.positions) r->most.positions = row.positions;
        if (row.targets > r->most.targets) r->most.targets = row.targets;
        for (int k = 0; k < N_CHECK_NOTES; k++) r->note[k] += c->mark[i] >> k & 1;
    }
}

static void report_bad(const struct checker *c, int64_t n_bad)
{
    struct bench b = { 0 };
    struct err e;
    int shown = 0;
    for (int64_t i = 0; i < c->d->n && shown < CHECK_SHOWN; i++) {
        if (!(c->mark[i] & MARK_BAD)) continue;
        if (try_record(c, &b, i, &e) < 0) log_warn("%s", e.msg);
        shown++;
    }
    if (n_bad > shown) log_warn("and %lld more bad records", (long long)n_bad - shown);
    record_fini(&b.record);
    sample_fini(&b.sample);
}

static void report_note(const struct checker *c, enum check_note note, int64_t n)
{
    static const char *const what[N_CHECK_NOTES] = {
        [CHECK_CUT] = "with answers cut by model_max_length",
        [CHECK_MUTE] = "of which nothing is learned, as their answers are empty or cut off",
        [CHECK_SPARE] = "with more pictures than \"<image>\"",
        [CHECK_LITERAL] = "of text with \"<image>\" in it, which is taken for text",
    };
    struct record r = { 0 };
    struct err e;
    char name[RECORD_NAME_MAX] = "";
    int64_t i = 0;
    while (i < c->d->n && !(c->mark[i] >> note & 1)) i++;
    if (i < c->d->n && record_load(&r, c->d, i, &e) == 0) record_name(name, &r);
    log_warn("%lld record%s %s; the first is %s", (long long)n, n == 1 ? "" : "s", what[note], name);
    record_fini(&r);
}

static int judge(const struct checker *c, const struct check_result *r, enum check_bad bad, struct err *e)
{
    if (r->n_bad) report_bad(c, r->n_bad);
    for (int k = 0; k < N_CHECK_NOTES; k++)
        if (r->note[k]) report_note(c, (enum check_note)k, r->note[k]);
    if (r->n_bad && bad == CHECK_FAIL)
        return err_set(e, ERR_FORMAT, "%lld of %lld records of '%s' are bad (--on_bad_record skip leaves them out)",
                       (long long)r->n_bad, (long long)r->n, c->d->path);
    if (r->n_row == 0) return err_set(e, ERR_FORMAT, "all records of '%s' are bad", c->d->path);
    if (r->n_bad) log_warn("%lld of %lld records are left out", (long long)r->n_bad, (long long)r->n);
    return 0;
}

/* A picture that fills the row leaves nothing to learn from. */
static int check_length(const struct dataset *d, const struct recipe *recipe, struct err *e)
{
    size_t most = recipe->text.max_length;
    if (!recipe->vision || most == 0 || most > (size_t)(recipe->of ? recipe->of : recipe->rows)) return 0;
    for (int64_t i = 0; i < d->n; i++)
        if (d->entry[i].image)
            return err_set(e, ERR_USAGE, "model_max_length %zu is no more than the %d positions of one picture", most,
                           recipe->rows);
    return 0;
}

int check_run(struct check_result *r, const struct dataset *d, const struct recipe *recipe, int threads,
              enum check_bad bad, struct err *e)
{
    struct checker c = { .d = d, .recipe = recipe };
    int rc;
    *r = (struct check_result){ .n = d->n };
    pthread_mutex_init(&c.lock, NULL);
    TRY(check_length(d, recipe, e));
    c.row = calloc((size_t)d->n, sizeof *c.row);
    c.mark = calloc((size_t)d->n, sizeof *c.mark);
    r->row = calloc((size_t)d->n, sizeof *r->row);
    r->length = calloc((size_t)d->n, sizeof *r->length);
    if (!c.row || !c.mark || !r->row || !r->length) TRY(err_set(e, ERR_NOMEM, "no memory to check the data"));
    TRY(check_all(&c, threads, e));
    add_up(r, &c);
    TRY(judge(&c, r, bad, e));
    rc = 0;
out:
    pthread_mutex_destroy(&c.lock);
    free(c.row);
    free(c.mark);
    if (rc < 0) check_fini(r);
    return rc;
}

void check_fini(struct check_result *r)
{
    free(r->row);
    free(r->length);
    *r = (struct check_result){ 0 };
}
