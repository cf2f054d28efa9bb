/* See gen.h. */
#include "serve/gen.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/plat.h"

/* One client may hold at most SHARE pictures for each that somebody else still could. */
enum { HELD = 256, SHARE = 7 };

struct gen {
    struct llava_engine *engine;
    struct llava_batch *batch;
    struct llava_info info;
    void (*changed)(void *);
    void *changed_ctx;
    _Atomic int n_pictures; /* that tasks hold */
    _Atomic int held[HELD]; /* of them those of clients whose numbers end like this */
    int pictures;           /* at most */
};

static int take_error(int rc, const struct llava_error *from, struct err *e)
{
    return rc < 0 ? err_set(e, (enum err_code)from->code, "%s", from->message) : rc;
}

int gen_open(struct gen **ret, const struct llava_options *o, const struct llava_batch_options *b, int pictures,
             struct err *e)
{
    enum { PICTURES = 512 };
    struct llava_error le = { 0 };
    struct gen *g = calloc(1, sizeof *g);
    *ret = NULL;
    if (!g) return err_set(e, ERR_NOMEM, "no memory for a model");
    g->pictures = pictures ? pictures : PICTURES;
    int rc = take_error(llava_open(&g->engine, o, &le), &le, e);
    if (rc >= 0) rc = take_error(llava_batch_open(&g->batch, g->engine, b, &le), &le, e);
    if (rc < 0) {
        gen_close(g);
        return rc;
    }
    llava_engine_info(g->engine, &g->info);
    *ret = g;
    return 0;
}

void gen_close(struct gen *g)
{
    if (!g) return;
    llava_batch_close(g->batch);
    llava_close(g->engine);
    free(g);
}

const struct llava_info *gen_info(const struct gen *g) { return &g->info; }

const char *gen_name(const struct gen *g, int i) { return i ? llava_adapter_name(g->engine, i - 1) : g->info.name; }

json_t *gen_names(const struct gen *g)
{
    json_t *v = json_array();
    const char *name;
    for (int i = 0; (name = gen_name(g, i)) != NULL; i++) json_array_append_new(v, json_string(name));
    return v;
}

bool gen_find(const struct gen *g, const char *name, const char **adapter)
{
    const char *one;
    for (int i = 0; (one = gen_name(g, i)) != NULL; i++) {
        if (strcmp(one, name) != 0) continue;
        *adapter = i ? one : NULL;
        return true;
    }
    return false;
}

void gen_on_change(struct gen *g, void (*fn)(void *ctx), void *ctx)
{
    g->changed = fn;
    g->changed_ctx = ctx;
}

int gen_queue_length(struct gen *g)
{
    struct llava_stats s;
    llava_batch_stats(g->batch, &s);
    return s.running + s.waiting;
}

/* ---- tasks */

void gen_task_init(struct gen_task *t, struct gen *g, struct exchange *x, void (*finish)(struct gen_task *))
{
    *t = (struct gen_task){ .g = g, .x = x, .finish = finish };
    pthread_mutex_init(&t->lock, NULL);
}

/* n pictures more, or less, are held for t. False: too many are. */
static bool hold(struct gen_task *t, int n)
{
    struct gen *g = t->g;
    const int all = atomic_fetch_add(&g->n_pictures, n) + n;
    const int own = atomic_fetch_add(&g->held[exchange_client(t->x) % HELD], n) + n;
    return own <= SHARE * (g->pictures - all + 1) && all <= g->pictures;
}

void gen_task_fini(struct gen_task *t)
{
    for (int i = 0; i < t->n_images; i++) llava_image_close(t->image[i]);
    if (t->n_images) hold(t, -t->n_images);
    pthread_mutex_destroy(&t->lock);
}

int gen_picture(struct gen_task *t, const void *bytes, size_t n, const char *name, struct llava_error *e)
{
    struct gen *g = t->g;
    if (t->n_images == GEN_PICTURES_MAX) {
        snprintf(e->message, sizeof e->message, "more than %d pictures", GEN_PICTURES_MAX);
        return e->code = LLAVA_LIMIT;
    }
    if (!hold(t, 1)) {
        hold(t, -1);
        snprintf(e->message, sizeof e->message, "requests hold %d pictures already, try again later",
                 atomic_load(&g->n_pictures));
        return e->code = LLAVA_BUSY;
    }
    int rc = llava_image_decode(&t->image[t->n_images], g->engine, bytes, n, name, e);
    if (rc >= 0) t->n_images++;
    else hold(t, -1);
    return rc;
}

void gen_prompt(const struct gen *g, struct buf *out, const char *prompt)
{
    static const char image[] = "<image>";
    for (const char *at; g->info.image_marks && (at = strstr(prompt, image)) != NULL; prompt = at + sizeof image - 1) {
        buf_add(out, prompt, (size_t)(at - prompt));
        buf_str(out, "<im_start><image><im_end>");
    }
    buf_str(out, prompt);
}

json_t *gen_tokens(const struct gen *g, const char *text, bool begins, struct llava_error *e)
{
    enum { MORE = 16 }; /* tokens than bytes */
    const size_t most = strlen(text) + MORE;
    int32_t *ids = most < INT32_MAX ? calloc(most, sizeof *ids) : NULL;
    *e = (struct llava_error){ LLAVA_NOMEM, "no memory for tokens" };
    const int n = ids ? llava_tokenize(g->engine, text, begins, ids, (int)most, e) : LLAVA_NOMEM;
    json_t *v = n < 0 ? NULL : json_array();
    for (int i = 0; i < n && i < (int)most && v; i++) json_array_append_new(v, json_integer(ids[i]));
    free(ids);
    return v;
}

int gen_text(const struct gen *g, struct buf *out, const int32_t *ids, int n, struct llava_error *e)
{
    const int size = llava_detokenize(g->engine, ids, n, NULL, 0, e);
    char *text = size < 0 ? NULL : malloc((size_t)size + 1);
    if (size >= 0 && !text) *e = (struct llava_error){ LLAVA_NOMEM, "no memory for text" };
    if (!text) return size < 0 ? size : LLAVA_NOMEM;
    llava_detokenize(g->engine, ids, n, text, size + 1, e);
    buf_add(out, text, (size_t)size);
    free(text);
    return 0;
}

static void cancel(void *ctx)
{
    struct gen_task *t = ctx;
    for (int i = 0; i < t->n_ids; i++) llava_batch_cancel(t->g->batch, t->id[i]);
}

static void finish(struct gen_task *t)
{
    exchange_on_gone(t->x, NULL, NULL); /* t is freed before x is finished */
    t->finish(t);
}

int gen_submit(struct gen_task *t, struct llava_request *r, int n, struct llava_error *e)
{
    struct gen *g = t->g;
    int unasked = 0;
    ASSERT(n <= GEN_REQUESTS_MAX);
    for (int i = 0; i < n; i++) {
        r[i].images = t->image;
        r[i].n_images = t->n_images;
        r[i].client = exchange_client(t->x);
        r[i].realm = exchange_realm(t->x) ? exchange_realm(t->x) : r[i].client;
        t->left += r[i].n;
    }
    for (int i = 0; i < n; i++) {
        int64_t id = unasked ? -1 : llava_batch_submit(g->batch, &r[i], e);
        if (id > 0) t->id[t->n_ids++] = id;
        else if (!i) return (int)id;
        else unasked += r[i].n;
    }
    if (g->changed) g->changed(g->changed_ctx); /* before x can finish, with which all may be closed */
    exchange_on_gone(t->x, cancel, t);          /* x is not finished before `submitted` */
    if (unasked) {
        t->refused = *e;
        cancel(t);
    }
    pthread_mutex_lock(&t->lock);
    t->left -= unasked;
    t->submitted = true;
    bool over = t->left == 0;
    pthread_mutex_unlock(&t->lock);
    if (over) finish(t);
    return 0;
}

void gen_cancel(struct gen_task *t)
{
    pthread_mutex_lock(&t->lock);
    const bool all = t->submitted; /* else not all ids are known yet */
    pthread_mutex_unlock(&t->lock);
    if (all) cancel(t);
}

void gen_ended(struct gen_task *t)
{
    struct gen *g = t->g;
    if (g->changed) g->changed(g->changed_ctx);
    pthread_mutex_lock(&t->lock);
    bool over = --t->left == 0 && t->submitted;
    pthread_mutex_unlock(&t->lock);
    if (over) finish(t);
}

int gen_status(int code, const char **word)
{
    static const struct { int code, status; const char *word; } table[] = {
        { LLAVA_BUSY, 429, "queue_full" },       { LLAVA_LIMIT, 400, "context_length_exceeded" },
        { LLAVA_FORMAT, 400, "invalid_value" },  { LLAVA_USAGE, 400, "invalid_value" },
        { LLAVA_UNSUPPORTED, 400, "unsupported" },
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        if (table[i].code != code) continue;
        *word = table[i].word;
        return table[i].status;
    }
    *word = "engine_error";
    return 500;
}

/* ---- metrics */

static void histogram(struct buf *out, const char *name, const char *help, const struct llava_histogram *h)
{
    uint64_t sum = 0;
    buf_fmt(out, "# HELP %s %s\n# TYPE %s histogram\n", name, help, name);
    for (int i = 0; i < LLAVA_BUCKETS; i++) {
        sum += h->n[i];
        buf_fmt(out, "%s_bucket{le=\"%g\"} %llu\n", name, llava_bucket_s(i), (unsigned long long)sum);
    }
    buf_fmt(out, "%s_bucket{le=\"+Inf\"} %llu\n%s_sum %.6f\n%s_count %llu\n", name, (unsigned long long)h->count, name,
            h->sum, name, (unsigned long long)h->count);
}

static void number(struct buf *out, const char *name, const char *type, double v, const char *help)
{
    buf_fmt(out, "# HELP %s %s\n# TYPE %s %s\n%s %.17g\n", name, help, name, type, name, v);
}

void gen_metrics(struct gen *g, struct buf *out)
{
    struct llava_stats s;
    llava_batch_stats(g->batch, &s);
    const struct { const char *name, *type, *help; double v; } rows[] = {
        { "llava_answers_running", "gauge", "answers being computed", s.running },
        { "llava_answers_limit", "gauge", "most answers computed side by side", s.sequences },
        { "llava_requests_waiting", "gauge", "requests in the queue", s.waiting },
        { "llava_requests_waiting_limit", "gauge", "most requests in the queue", s.queue },
        { "llava_pictures_held", "gauge", "decoded pictures of requests under way and waiting", g->n_pictures },
        { "llava_pictures_limit", "gauge", "most of them", g->pictures },
        { "llava_cache_positions", "gauge", "positions that the cache holds", (double)s.cache_positions },
        { "llava_cache_positions_running", "gauge", "positions of running answers", (double)s.cache_running },
        { "llava_cache_positions_kept", "gauge", "positions kept for reuse", (double)s.cache_kept },
        { "llava_cache_bytes", "gauge", "size of the cache",
          (double)s.cache_positions * (double)g->info.cache_bytes_per_position },
        { "llava_weight_bytes", "gauge", "size of the weights", (double)g->info.weight_bytes },
        { "llava_requests_submitted_total", "counter", "requests taken", (double)s.submitted },
        { "llava_requests_refused_total", "counter", "requests refused because the queue was full", (double)s.refused },
        { "llava_answers_total", "counter", "answers that ended by themselves", (double)s.answered },
        { "llava_answers_cancelled_total", "counter", "answers that nobody waited for any more", (double)s.cancelled },
        { "llava_answers_failed_total", "counter", "answers that failed", (double)s.failed },
        { "llava_prompt_tokens_total", "counter", "positions of prompts", (double)s.prompt_positions },
        { "llava_prompt_tokens_cached_total", "counter", "of them not computed again", (double)s.cached_positions },
        { "llava_tokens_total", "counter", "tokens generated", (double)s.new_tokens },
        { "llava_pictures_total", "counter", "pictures used", (double)s.pictures },
        { "llava_pictures_cached_total", "counter", "of them not computed again", (double)s.cached_pictures },
        { "llava_decode_steps_total", "counter", "steps that made tokens", (double)s.decode_steps },
        { "llava_prompt_steps_total", "counter", "steps that read prompts", (double)s.prompt_steps },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        number(out, rows[i].name, rows[i].type, rows[i].v, rows[i].help);
    histogram(out, "llava_queue_seconds", "from a request to its beginning", &s.queue_s);
    histogram(out, "llava_first_token_seconds", "from a request to its first token", &s.first_s);
    histogram(out, "llava_token_seconds", "from one token to the next", &s.token_s);
}
