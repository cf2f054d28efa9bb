/* See step.h. */
#include "run/step.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/plat.h"
#include "run/adapter.h"

enum { RECORDED = 24, ROWS = ENGINE_SEQS, BEGUN = 4, CHOICE = sizeof(struct choice) / sizeof(int32_t) };

/* A step or the tower as the device repeats it. */
struct recorded {
    struct dev_graph *graph;
    const void *cache; /* whose rows it reads and fills */
    int rows;
    bool paged, chooses;
    struct tensor y;   /* logits [rows,V], features */
    unsigned used;     /* when, to drop the one not used for longest */
};

/* A step that has begun. */
struct begun {
    int32_t *token;       /* [ENGINE_SEQS] as they were chosen when it was over; on the host */
    struct dev_event *from, *to;
    double s;             /* the host's */
};

struct steps {
    struct arena mem;     /* of the fixed inputs, on the device */
    struct tensor chosen; /* I32 [ENGINE_SEQS] by slot, the token chosen last */
    struct begun begun[BEGUN];
    unsigned n_begun;
    const float *logits;  /* of the step that began last, on the host */
    int32_t *in, *host;   /* indices of a step: on the device, and where they are put together */
    int n_pages;          /* of the context */
    struct clip_seq seq;
    struct tensor pixels; /* [1,3,S,S] F32 */
    struct recorded at[RECORDED], tower[SIGHTS], *last; /* tower: by sight, the model's first */
    unsigned turn;
    bool refused;         /* the driver records nothing */
};

/* What a step reads, on the device. */
struct inputs {
    struct tensor token, pos, row, range, pages, out, how, feature, features; /* see struct step; p NULL: absent */
};

static struct op_ctx context_of(struct engine *g)
{
    return (struct op_ctx){ .k = &g->kern, .kc = &g->kc, .act = &g->act, .type = engine_act(g) };
}

/* cols 0: a vector. */
static struct tensor index_of(struct op_ctx *o, const int32_t *host, int rows, int cols)
{
    void *p = (void *)(uintptr_t)host; /* op_input only reads */
    return op_input(o, cols ? tensor_2d(p, DT_I32, rows, cols) : tensor_1d(p, DT_I32, rows));
}

/* What is known of the slots' tokens, where kernels read it; nothing while a plan is made. */
static struct tensor chosen(const struct engine *g) { return g->steps ? g->steps->chosen : (struct tensor){ 0 }; }

/* Token embeddings with feature rows put where the token is -1. */
static struct tensor step_embed(struct op_ctx *o, const struct engine *g, const struct inputs *in)
{
    struct tensor token = in->how.p ? op_tokens(o, chosen(g), in->token) : in->token;
    struct tensor x = op_embed(o, &g->model.llama.embed, token);
    if (!in->features.p) return x;
    return op_add(o, x, op_gather(o, in->features, in->feature)); /* one of the two is zero in every row */
}

/* all: logits of every row; else of those in `out`, or none. */
static struct tensor step_body(struct op_ctx *o, struct engine *g, struct cache *c, const struct inputs *in, bool all)
{
    const bool few = !all && !g->kc.decode && !g->model.n_adapters; /* so that company changes no bit */
    const struct llama_seq seq = { .pos = in->pos, .row = in->row, .range = in->range, .pages = in->pages,
                                   .few = few, .out = in->out };
    struct tensor h = llama_forward(o, &g->model.llama, step_embed(o, g, in), &seq, c->layer), none = { 0 };
    o->n_spans = 0; /* the head's rows are others */
    if (all) return llama_logits(o, &g->model.llama, h);
    if (!in->out.p) return none;
    g->kc.decode = true; /* few rows, in prefill too; never as many as all */
    struct tensor logits = llama_logits(o, &g->model.llama, few ? h : op_gather(o, h, in->out));
    if (in->how.p) op_choose(o, chosen(g), logits, in->how);
    return logits;
}

static struct tensor choices_of(const struct choice *p, int n)
{
    return tensor_2d((void *)(uintptr_t)p, DT_U8, n, sizeof *p);
}

/* Lists of pages as wide as the context's on a device: how a kernel cuts its work may follow from their width. */
static struct tensor pages_of(struct op_ctx *o, const struct engine *g, const struct step *s)
{
    const struct steps *t = g->steps;
    if (!g->dev || o->dry) return index_of(o, s->pages, s->n_seqs, s->n_pages);
    memset(t->host, 0, (size_t)s->n_seqs * (size_t)t->n_pages * sizeof *t->host);
    for (int i = 0; i < s->n_seqs; i++)
        memcpy(t->host + (size_t)i * (size_t)t->n_pages, s->pages + (size_t)i * (size_t)s->n_pages,
               (size_t)s->n_pages * sizeof *t->host);
    return index_of(o, t->host, s->n_seqs, t->n_pages);
}

/* All rows of features, side by side. */
static struct tensor features_of(struct op_ctx *o, const struct step *s)
{
    struct tensor all = s->features[0];
    for (int i = 1; i < s->n_features; i++) all.n[0] += s->features[i].n[0];
    if (s->n_features == 1 && !o->dry) return all;
    char *p = all.p = arena_take(o->act, tensor_bytes(all));
    for (int i = 0; i < s->n_features && !o->dry; i++) {
        dev_copy(o->kc->dev, p, s->features[i].p, tensor_bytes(s->features[i]));
        p += tensor_bytes(s->features[i]);
    }
    return all;
}

static struct tensor step_run(struct op_ctx *o, struct engine *g, struct cache *c, const struct step *s)
{
    struct kv_extent extent[ENGINE_SEQS];
    struct inputs in = { .token = index_of(o, s->token, s->n, 0), .pos = index_of(o, s->pos, s->n, 0),
                         .row = index_of(o, s->row, s->n, 0),
                         .range = index_of(o, s->range, s->n, s->n_seqs ? 3 : 2) };
    if (s->n_seqs) in.pages = pages_of(o, g, s);
    if (s->out && s->n_out) in.out = index_of(o, s->out, s->n_out, 0);
    if (in.out.p && s->choose) in.how = op_input(o, choices_of(s->choose, s->n_out));
    if (s->n_features) {
        in.features = features_of(o, s);
        in.feature = index_of(o, s->feature, s->n, 0);
    }
    o->span = s->spans;
    o->n_spans = s->n_spans;
    g->kc.extent = extent;
    if (!o->dry) g->kc.n_extents = kv_extents(extent, ENGINE_SEQS, s->range, s->n, s->n_seqs ? 3 : 2);
    const struct tensor logits = step_body(o, g, c, &in, !s->out);
    g->kc.n_extents = 0;
    return logits;
}

/* ---- recording */

/* Rows that a recorded step has: some more than are needed, so that few are recorded. */
static int rows_for(const struct engine *g, int n)
{
    int rows = 1;
    while (rows < n) rows = rows < 4 ? rows + 1 : rows % 3 ? rows / 2 * 3 : rows / 3 * 4; /* 1 2 3 4 6 8 12 16 24 ... */
    return rows <= ROWS && rows <= g->chunk ? rows : n;
}

static size_t block_count(int rows, int n_pages) { return (size_t)rows * (size_t)(CHOICE + 7 + n_pages); }

/* The inputs' places in a block of indices for so many rows. */
static struct inputs places(int32_t *p, int rows, int n_pages, bool paged)
{
    const struct tensor how = choices_of((struct choice *)(void *)p, rows);
    p += rows * CHOICE;
    struct inputs in = { .token = tensor_1d(p, DT_I32, rows), .pos = tensor_1d(p + rows, DT_I32, rows),
                         .row = tensor_1d(p + 2 * rows, DT_I32, rows), .out = tensor_1d(p + 3 * rows, DT_I32, rows),
                         .range = tensor_2d(p + 4 * rows, DT_I32, rows, paged ? 3 : 2), .how = how };
    if (paged) in.pages = tensor_2d(p + 7 * rows, DT_I32, rows, n_pages);
    return in;
}

/* Rows beyond the step's are token 0 that sees one row and is stored nowhere. */
static void fill(const struct inputs *in, const struct step *s, int rows, int n_pages)
{
    int32_t *token = in->token.p, *pos = in->pos.p, *row = in->row.p, *out = in->out.p, *range = in->range.p,
            *pages = in->pages.p;
    struct choice *how = in->how.p;
    const int width = s->n_seqs ? 3 : 2;
    for (int i = 0; i < rows; i++) {
        const bool own = i < s->n;
        how[i] = s->choose && i < s->n_out ? s->choose[i] : (struct choice){ .slot = -1 };
        token[i] = own ? s->token[i] : 0;
        pos[i] = own ? s->pos[i] : 0;
        row[i] = own ? s->row[i] : -1;
        out[i] = !s->out ? (own ? i : 0) : i < s->n_out ? s->out[i] : 0;
        for (int k = 0; k < width; k++) range[i * width + k] = own ? s->range[i * width + k] : k == 1;
    }
    if (!pages) return;
    memset(pages, 0, (size_t)rows * (size_t)n_pages * sizeof *pages);
    for (int i = 0; i < s->n_seqs; i++)
        memcpy(pages + (size_t)i * (size_t)n_pages, s->pages + (size_t)i * (size_t)s->n_pages,
               (size_t)s->n_pages * sizeof *pages);
}

/* The recorded step for this cache and so many rows, or the place for it. */
static struct recorded *find(struct engine *g, const struct cache *c, int rows, bool paged, bool chooses)
{
    struct steps *t = g->steps;
    struct recorded *oldest = &t->at[0];
    t->turn++;
    for (struct recorded *r = t->at; r < t->at + RECORDED; r++) {
        if (r->graph && r->cache == c->layer[0].k.p && r->rows == rows && r->paged == paged && r->chooses == chooses)
            return r;
        if (r->used < oldest->used) oldest = r;
    }
    if (oldest->graph) dev_sync(g->dev); /* it may be running */
    dev_graph_free(oldest->graph);
    *oldest = (struct recorded){ .cache = c->layer[0].k.p, .rows = rows, .paged = paged, .chooses = chooses };
    return oldest;
}

/* Ends what dev_capture_begin began. False: the driver cannot, and steps will be launched kernel by kernel. */
static bool recorded_end(struct engine *g, struct recorded *r)
{
    struct err e = { 0 };
    if (dev_capture_end(&r->graph, g->dev, &e) >= 0) return true;
    log_info("%s: kernels are launched one by one", e.msg);
    g->steps->refused = true;
    return false;
}

static bool recorded_begin(struct engine *g)
{
    struct err e = { 0 };
    if (dev_capture_begin(g->dev, &e) >= 0) return true;
    log_info("%s: kernels are launched one by one", e.msg);
    g->steps->refused = true;
    return false;
}

/* A step of decoding by replay. y.p NULL: not possible. */
static struct tensor step_replay(struct engine *g, struct cache *c, const struct step *s)
{
    struct steps *t = g->steps;
    const int rows = rows_for(g, s->n), n_pages = t->n_pages;
    const bool paged = s->n_seqs > 0;
    struct inputs in = places(t->in, rows, n_pages, paged);
    const struct inputs host = places(t->host, rows, n_pages, paged);
    struct recorded *r = find(g, c, rows, paged, s->choose != NULL);
    if (!s->choose) in.how.p = NULL;
    r->used = t->turn;
    if (!r->graph) {
        struct op_ctx o = context_of(g);
        if (!recorded_begin(g)) return (struct tensor){ 0 };
        r->y = step_body(&o, g, c, &in, false);
        if (!recorded_end(g, r)) return (struct tensor){ 0 };
    }
    fill(&host, s, rows, n_pages);
    dev_put(g->dev, t->in, t->host, block_count(rows, paged ? n_pages : 0) * sizeof *t->host);
    dev_graph_run(g->dev, r->graph);
    t->last = r;
    return r->y;
}

static bool replays(const struct engine *g, const struct step *s)
{
    return g->dev && !g->eager && !g->steps->refused && s->decode && !s->n_features && !s->n_spans &&
           s->n <= ROWS && s->n_seqs <= s->n && (!s->out || s->n_out);
}

/* Logits on the device. */
static struct tensor begin(struct engine *g, struct cache *c, const struct step *s)
{
    ASSERT(s->n > 0 && s->n <= g->chunk && (s->out ? s->n_out : s->n) <= ENGINE_SEQS);
    dev_use(g->dev);
    arena_rewind(&g->act, 0);
    struct op_ctx o = context_of(g);
    struct tensor logits = { 0 };
    g->kc.decode = s->decode;
    if (replays(g, s)) logits = step_replay(g, c, s);
    if (!logits.p) logits = step_run(&o, g, c, s);
    g->kc.decode = false;
    return logits;
}

/* Waits for them, where the device is not the host. */
static const float *logits_read(struct engine *g, const struct step *s, struct tensor logits)
{
    if (!g->dev || !logits.p) return logits.p;
    const size_t rows = (size_t)(s->out ? s->n_out : s->n); /* a recorded step may have more */
    dev_get(g->dev, g->logits, logits.p, rows * (size_t)logits.n[1] * sizeof *g->logits);
    return g->logits;
}

const float *engine_step(struct engine *g, struct cache *c, const struct step *s)
{
    return logits_read(g, s, begin(g, c, s));
}

unsigned engine_begin(struct engine *g, struct cache *c, const struct step *s)
{
    struct steps *t = g->steps;
    struct begun *b = &t->begun[++t->n_begun % BEGUN];
    const double start = plat_now_s();
    dev_event_record(g->dev, b->from);
    struct tensor logits = begin(g, c, s);
    if (s->choose) dev_fetch(g->dev, b->token, t->chosen.p, tensor_bytes(t->chosen));
    dev_event_record(g->dev, b->to);
    t->logits = s->logits ? logits_read(g, s, logits) : NULL;
    b->s = plat_now_s() - start;
    return t->n_begun;
}

static struct begun *begun_find(struct engine *g, unsigned number)
{
    struct steps *t = g->steps;
    ASSERT(t->n_begun - number < BEGUN - 1);
    dev_event_wait(t->begun[number % BEGUN].to);
    return &t->begun[number % BEGUN];
}

const int32_t *engine_tokens(struct engine *g, unsigned number) { return begun_find(g, number)->token; }
const float *engine_logits(const struct engine *g) { return g->steps->logits; }

double engine_spent_s(struct engine *g, unsigned number)
{
    const struct begun *b = begun_find(g, number);
    return g->dev ? dev_event_s(b->from, b->to) : b->s;
}

/* Bytes, whatever they are: a quantised row that is read and stored again is another one. */
static void copy_rows(struct dev *d, struct tensor t, const int32_t *from, const int32_t *to, int n)
{
    const size_t bytes = dtype_row_bytes((enum dtype)t.type, tensor_cols(t));
    for (int i = 0, k; i < n; i += k) {
        for (k = 1; i + k < n && from[i + k] == from[i] + k && to[i + k] == to[i] + k;) k++;
        dev_copy(d, tensor_row(t, to[i]), tensor_row(t, from[i]), (size_t)k * bytes);
    }
}

void engine_copy(struct engine *g, struct cache *c, const int32_t *from, const int32_t *to, int n)
{
    ASSERT(n > 0 && n < KV_PAGE);
    dev_use(g->dev);
    for (int i = 0; i < g->model.cfg.llama.L; i++) {
        copy_rows(g->dev, c->layer[i].k, from, to, n);
        copy_rows(g->dev, c->layer[i].v, from, to, n);
    }
}

/* ---- the tower */

static struct tensor tile(const struct engine *g, const float *pixels)
{
    const int side = g->model.cfg.clip.image;
    return (struct tensor){ (void *)(uintptr_t)pixels, DT_F32, 4, 0, { 1, 3, side, side } };
}

static struct tensor encode_run(struct op_ctx *o, const struct engine *g, int sight, const float *pixels)
{
    const struct clip_seq seq = clip_seq_new(o, &g->model.clip, 1);
    return llava_encode(o, &g->model, sight_projector(g, sight), &seq, op_input(o, tile(g, pixels)));
}

/* A tile by replay, from pixels in their place. y.p NULL: not possible. */
static struct tensor encode_replay(struct op_ctx *o, struct engine *g, int sight, const float *pixels)
{
    struct steps *t = g->steps;
    struct recorded *r = &t->tower[sight - SIGHT_MODEL];
    if (!r->graph) {
        if (!r->used++ || !recorded_begin(g)) return (struct tensor){ 0 }; /* libraries choose their kernels at first */
        struct tensor x = t->pixels;
        x.type = (int8_t)o->type;
        x.p = arena_take(o->act, tensor_bytes(x));
        OP_RUN(o, cast, x, t->pixels);
        r->y = llava_encode(o, &g->model, sight_projector(g, sight), &t->seq, x);
        if (!recorded_end(g, r)) return (struct tensor){ 0 };
    }
    dev_put(g->dev, t->pixels.p, pixels, tensor_bytes(t->pixels));
    dev_graph_run(g->dev, r->graph);
    return r->y;
}

enum dtype engine_act(const struct engine *g) { return g->dev ? g->dtype : DT_F32; }

void engine_encode(struct engine *g, int sight, const float *pixels, struct tensor out)
{
    struct op_ctx o = context_of(g);
    struct tensor y = { 0 };
    dev_use(g->dev);
    arena_rewind(&g->act, 0);
    if (g->dev && !g->eager && !g->steps->refused) y = encode_replay(&o, g, sight, pixels);
    if (!y.p) y = encode_run(&o, g, sight, pixels);
    dev_copy(g->dev, out.p, y.p, tensor_bytes(out));
}

void engine_arrange(struct engine *g, int sight, struct tensor out, struct tensor rows, const int32_t *at)
{
    const struct tensor newline = sight_projector(g, sight)->newline.w, last = tensor_slice(rows, rows.n[0] - 1, 1);
    struct op_ctx o = context_of(g);
    dev_use(g->dev);
    arena_rewind(&g->act, 0);
    if (newline.p) OP_RUN(&o, cast, last, newline);
    OP_RUN(&o, rows_get, out, rows, index_of(&o, at, (int)out.n[0], 0));
}

/* ---- memory */

int steps_plan(struct engine *g, size_t *ret, struct err *e)
{
    struct arena count;
    arena_init_counting(&count);
    struct op_ctx o = context_of(g);
    o.act = &count;
    o.dry = true;
    const struct llama_config *l = &g->model.cfg.llama;
    const int32_t pages = (g->context + KV_PAGE - 1) / KV_PAGE;
    struct tensor kv = tensor_2d(&count, g->kv_type, (int64_t)pages * KV_PAGE, (int64_t)l->K * l->D);
    struct llama_cache *layers = malloc((size_t)l->L * sizeof *layers);
    if (!layers) return err_set(e, ERR_NOMEM, "no memory for a plan");
    for (int i = 0; i < l->L; i++) layers[i] = (struct llama_cache){ kv, kv };
    g->model.llama.rope = tensor_2d(&count, DT_F32, g->context, l->D);
    struct cache c = { .layer = layers };
    const struct choice how = { 0 };
    const struct tensor features = tensor_2d(NULL, engine_act(g), g->chunk, l->C);
    struct step s = { .n = g->chunk, .n_seqs = ENGINE_SEQS, .n_pages = pages, .out = &pages, .n_out = ENGINE_SEQS,
                      .choose = &how,
                      .features = &features, .n_features = 1 };
    struct op_span spans[OP_ADAPTERS]; /* every adapter over all rows: more than any step has */
    for (int i = 0; i < g->model.n_adapters; i++) spans[i] = (struct op_span){ 0, g->chunk, i };
    s.spans = spans;
    s.n_spans = g->model.n_adapters;
    step_run(&o, g, &c, &s);
    g->kc.decode = false;
    free(layers);
    for (int sight = SIGHT_MODEL; sight < g->n_adapters; sight++) {
        if (!sight_there(g, sight)) continue;
        arena_rewind(&count, 0);
        encode_run(&o, g, sight, NULL);
    }
    *ret = count.high;
    return 0;
}

static int begun_open(struct engine *g, struct err *e)
{
    struct steps *t = g->steps;
    for (struct begun *b = t->begun; b < t->begun + BEGUN; b++) {
        int rc = dev_pinned((void **)&b->token, g->dev, tensor_bytes(t->chosen), e);
        if (rc < 0) return rc;
        b->from = dev_event_new(g->dev);
        b->to = dev_event_new(g->dev);
    }
    return 0;
}

/* Fixed inputs of recorded steps. */
static int inputs_open(struct engine *g, struct err *e)
{
    struct steps *t = g->steps;
    t->n_pages = (g->context + KV_PAGE - 1) / KV_PAGE;
    const size_t indices = block_count(ROWS, t->n_pages) * sizeof *t->in;
    struct op_ctx o = context_of(g);
    struct tensor pixels = tile(g, NULL);
    size_t tower = 0;
    if (g->model.cfg.has_vision) /* pixels; five indices a row at most */
        tower = tensor_bytes(pixels) + (size_t)(clip_patches(&g->model.cfg.clip) + 1) * 5 * sizeof(int32_t) +
                8 * ARENA_ALIGN;
    int rc = dev_arena(&t->mem, g->dev, indices + tower + ARENA_ALIGN, e);
    if (rc < 0) return rc;
    t->in = arena_take(&t->mem, indices);
    if (!(t->host = malloc(indices))) return err_set(e, ERR_NOMEM, "no memory for steps");
    if (!g->model.cfg.has_vision) return 0;
    o.act = &t->mem;
    t->pixels = pixels;
    t->pixels.p = arena_take(&t->mem, tensor_bytes(pixels));
    t->seq = clip_seq_new(&o, &g->model.clip, 1);
    return 0;
}

int steps_open(struct engine *g, struct err *e)
{
    struct steps *t = g->steps = calloc(1, sizeof *t);
    if (!t) return err_set(e, ERR_NOMEM, "no memory for steps");
    t->chosen = tensor_1d(NULL, DT_I32, ENGINE_SEQS);
    int rc = dev_alloc(&t->chosen.p, g->dev, tensor_bytes(t->chosen), e);
    if (rc >= 0) dev_fill(g->dev, t->chosen.p, 0, tensor_bytes(t->chosen));
    if (rc >= 0) rc = begun_open(g, e);
    return rc < 0 || !g->dev ? rc : inputs_open(g, e);
}

void steps_close(struct engine *g)
{
    struct steps *t = g->steps;
    if (!t) return;
    for (int i = 0; i < RECORDED; i++) dev_graph_free(t->at[i].graph);
    for (int i = 0; i < SIGHTS; i++) dev_graph_free(t->tower[i].graph);
    for (int i = 0; i < BEGUN; i++) {
        dev_event_free(t->begun[i].from);
        dev_event_free(t->begun[i].to);
        dev_pinned_free(g->dev, t->begun[i].token);
    }
    dev_free(g->dev, t->chosen.p, tensor_bytes(t->chosen));
    arena_fini(&t->mem);
    free(t->host);
    free(t);
    g->steps = NULL;
}

int steps_launches(const struct engine *g)
{
    return g->steps && g->steps->last ? dev_graph_launches(g->steps->last->graph) : 0;
}
