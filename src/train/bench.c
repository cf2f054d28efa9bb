/* See bench.h. */
#include "train/bench.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>

#include "base/median.h"
#include "base/plat.h"
#include "base/rng.h"
#include "kern/prof.h"
#include "train/flops.h"
#include "train/optim.h"
#include "train/plan.h"

enum {
    BATCHES = 8,      /* when there are so many different ones, at a step's end, they come again */
    TEXT_BEFORE = 35, /* tokens before the picture, as LLaVA's prompt of v1 has */
};
/* Tokens of text: mean 360 before they are cut, of which an answer is half. */
static const double mix_median = 240, mix_deviation = 0.9, mix_pictures = 0.85;

struct length { int text; bool picture; }; /* of a record */

struct bench {
    const struct train_bench *b;
    struct dev *dev;         /* NULL: the host */
    struct trainee t;
    struct step step;
    struct optim optim;
    struct plan plan;
    struct rng rng;
    struct batch *batch;     /* whole steps: `update` ends one */
    int n_batches, now;      /* now: that comes next */
    json_t *made;            /* of all records in them [text, pictures] */
    struct length next;      /* drawn, but for the next batch; of no text: none is */
    struct sample *sample;   /* of the batch that is made */
    int n, n_max;
    double *time;            /* [steps] */
    double records, positions, real, learned, useful, again; /* sums over the measured steps */
};

/* ---- records */

static int sample_room(struct bench *b, struct err *e)
{
    if (b->n < b->n_max) return 0;
    const int max = b->n_max ? 2 * b->n_max : 64;
    struct sample *s = realloc(b->sample, (size_t)max * sizeof *s);
    if (!s) return err_set(e, ERR_NOMEM, "no memory for records");
    b->sample = s;
    for (int i = b->n_max; i < max; i++)
        s[i] = (struct sample){ .ids = ids_make(IDS_MAX), .labels = ids_make(IDS_MAX) };
    b->n_max = max;
    return 0;
}

static void put(struct sample *s, int32_t id, bool learned)
{
    ids_add(&s->ids, id);
    ids_add(&s->labels, learned ? id : IDS_IGNORE);
    s->n_targets += learned;
}

/* A record of `text` tokens, the latter half of them learned, and a picture. */
static int make_sample(struct bench *b, struct sample *s, int text, bool picture, struct err *e)
{
    const struct recipe *c = &b->t.recipe;
    const int V = b->t.model.cfg.llama.V, before = text / 2 < TEXT_BEFORE ? text / 2 : TEXT_BEFORE;
    const size_t side = (size_t)c->side, n = 3 * side * side;
    ids_reset(&s->ids);
    ids_reset(&s->labels);
    s->n_targets = 0;
    s->n_images = picture;
    s->positions = text + (picture ? c->rows : 0);
    for (int i = 0; i < text; i++) {
        if (i == before && picture) put(s, IDS_IMAGE, false);
        put(s, 3 + (int32_t)(rng_u64(&b->rng) % (uint64_t)(V - 3)), i >= text - text / 2);
    }
    if (picture && !s->pixels) {
        s->pixels = malloc(n * sizeof *s->pixels);
        if (!s->pixels) return err_set(e, ERR_NOMEM, "no memory for pictures");
        for (size_t i = 0; i < n; i++) s->pixels[i] = (float)rng_normal(&b->rng);
    }
    return 0;
}

/* Positions of a picture in its record, seen or not. */
static int picture_rows(const struct bench *b) { return b->t.recipe.of ? b->t.recipe.of : b->t.recipe.rows; }

static struct length draw(struct bench *b)
{
    const int most = (int)b->b->a->model_max_length, rows = picture_rows(b);
    const bool picture = b->b->lengths == LENGTHS_FIXED || rng_unit(&b->rng) < mix_pictures;
    const int room = most - (picture ? rows : 0);
    if (b->b->lengths == LENGTHS_FIXED) return (struct length){ room, picture };
    const double n = mix_median * exp(mix_deviation * rng_normal(&b->rng));
    return (struct length){ n < 4 ? 4 : n > room ? room : (int)n, picture };
}

static void pad(struct bench *b)
{
    int longest = 0;
    for (int i = 0; i < b->n; i++)
        if (b->sample[i].positions > longest) longest = b->sample[i].positions;
    for (int i = 0; i < b->n; i++)
        for (struct sample *s = &b->sample[i]; s->positions < longest; s->positions++) put(s, 0, false);
}

/* So many records at most, and as many as fit into so many positions. */
static int take_samples(struct bench *b, int64_t records, int64_t positions, struct err *e)
{
    int64_t T = 0;
    int rc = 0;
    for (b->n = 0; b->n < records; b->n++) {
        if (!b->next.text) b->next = draw(b);
        const struct length x = b->next;
        if (T + x.text + (x.picture ? b->t.recipe.rows : 0) > positions) break;
        TRY(sample_room(b, e));
        TRY(make_sample(b, &b->sample[b->n], x.text, x.picture, e));
        json_array_append_new(b->made, json_pack("[i,i]", x.text, x.picture));
        b->next.text = 0;
        T += b->sample[b->n].positions;
    }
out:
    return rc;
}

static int make_batch(struct bench *b, struct batch *out, struct err *e)
{
    const double accum = (double)b->b->a->gradient_accumulation_steps;
    int64_t T = 0, targets = 0;
    for (int i = 0; i < b->n; i++) T += b->sample[i].positions, targets += b->sample[i].n_targets;
    if (b->b->padded) pad(b);
    struct sample **list = malloc((size_t)b->n * sizeof *list);
    float *weight = malloc((size_t)b->n * sizeof *weight);
    int rc = list && weight ? 0 : err_set(e, ERR_NOMEM, "no memory for a batch");
    for (int i = 0; i < b->n && rc >= 0; i++) {
        list[i] = &b->sample[i];
        weight[i] = (float)(1 / ((double)targets * accum));
    }
    if (rc >= 0) rc = batch_make(out, &b->t.recipe, list, weight, b->n, 0, e);
    out->micro = T; /* of no use to the step: positions that are not padding */
    free(list);
    free(weight);
    return rc;
}

/* The batches of one step: as many as its micro-batches, or, packed as the loader packs them, as their records fill. */
static int make_step(struct bench *b, struct batch_limits *most, struct err *e)
{
    const struct train_args *a = b->b->a;
    const int64_t micro = a->per_device_train_batch_size, rows = micro * a->model_max_length;
    const bool packed = b->b->lengths == LENGTHS_MIX && !b->b->padded;
    int64_t left = micro * a->gradient_accumulation_steps;
    int rc = 0;
    while (left) {
        struct batch *list = realloc(b->batch, (size_t)(b->n_batches + 1) * sizeof *list);
        if (!list) TRY(err_set(e, ERR_NOMEM, "no memory for batches"));
        b->batch = list;
        struct batch *x = &list[b->n_batches++];
        *x = (struct batch){ 0 };
        TRY(take_samples(b, packed ? left : micro, rows, e));
        TRY(make_batch(b, x, e));
        left -= b->n;
        x->update = !left;
        const struct batch_limits sizes = batch_sizes(x);
        batch_widen(most, &sizes);
    }
out:
    return rc;
}

static int make_batches(struct bench *b, struct batch_limits *most, struct err *e)
{
    const int rows = picture_rows(b);
    int rc = 0;
    *most = (struct batch_limits){ 0 };
    if (b->b->a->model_max_length < rows + 8)
        TRY(err_set(e, ERR_USAGE, "--seq %lld has no room for a picture of %d positions and text",
                    (long long)b->b->a->model_max_length, rows));
    for (int k = 0; k < b->b->steps && b->n_batches < BATCHES; k++) TRY(make_step(b, most, e));
out:
    return rc;
}

/* ---- steps */

static void count(struct bench *b, const struct batch *x)
{
    const struct batch_limits sizes = batch_sizes(x);
    b->records += x->n;
    b->positions += x->T;
    b->real += (double)x->micro;
    b->learned += x->n_targets;
    b->useful += flops_pass(&b->t.model, b->t.tower_trains, &sizes);
    b->again += flops_again(&b->t.model, b->step.layers.kept.none, &sizes);
}

/* The kth, of which the first is not counted. */
static void run_step(struct bench *b, int64_t k)
{
    const double start = plat_now_s();
    const struct batch *x;
    do {
        x = &b->batch[b->now];
        b->now = (b->now + 1) % b->n_batches;
        step_run(&b->step, x, true, trainee_drops(&b->t, b->b->a) ? rng_u64(&b->rng) | 1 : 0);
        if (k) count(b, x);
    } while (!x->update);
    optim_step(&b->optim, &b->step, k + 1, optim_norm(&b->optim, &b->step));
    dev_sync(b->step.kc.dev);
    if (k) b->time[k - 1] = plat_now_s() - start;
}

/* One pass there and back, kernel by kernel. */
static int profile(struct bench *b, struct err *e)
{
    struct prof *p = prof_new(b->dev);
    if (!p) return err_set(e, ERR_NOMEM, "no memory for a profile");
    b->step.kc.prof = p;
    step_run(&b->step, &b->batch[0], true, trainee_drops(&b->t, b->b->a));
    b->step.kc.prof = NULL;
    prof_print(p, stderr, "a pass there and back");
    prof_free(p);
    return 0;
}

static json_t *figures(struct bench *b)
{
    const struct train_bench *o = b->b;
    const struct train_args *a = o->a;
    const struct dev_memory card = dev_memory_now(b->step.kc.dev);
    const double n = o->steps, ceiling = b->plan.speed.flops, s = median(b->time, o->steps);
    const double executed = (b->useful + b->again) / n / s, slowest = b->time[o->steps - 1];
    json_t *r = json_pack(
        "{ss, ss, ss, ss, ss, ss, si, sI, sI, sI, si}", "bench", "train", "model", a->model_name_or_path, "stage",
        o->stage, "dtype", dtype_name(b->t.dtype), "kernels", b->step.kern.name, "lengths",
        o->lengths == LENGTHS_FIXED ? "fixed" : o->padded ? "mix665k, padded" : "mix665k, packed", "threads",
        b->step.kc.n_threads, "batch", (json_int_t)a->per_device_train_batch_size, "seq",
        (json_int_t)a->model_max_length, "accum", (json_int_t)a->gradient_accumulation_steps, "steps", o->steps);
    const struct { const char *name; double value; } real[] = {
        { "step_s", s }, { "slowest_s", slowest }, { "samples_s", b->records / n / s },
        { "tok_s", b->real / n / s }, { "positions_s", b->positions / n / s }, { "learned_tok_s", b->learned / n / s },
        { "tflops", executed * 1e-12 }, { "useful_tflops", b->useful / n / s * 1e-12 },
        { "link_gb_s", b->plan.speed.link * 1e-9 }, { "ceiling_tflops", ceiling * 1e-12 },
        { "share_of_ceiling", ceiling > 0 ? executed / ceiling : 0 },
    };
    for (size_t i = 0; i < sizeof real / sizeof *real; i++)
        json_object_set_new(r, real[i].name, json_real(real[i].value));
    const struct plan_choice *c = plan_taken(&b->plan);
    json_object_set_new(r, "layers_again", json_integer(c->kept.none));
    json_object_set_new(r, "layers_in_part", json_integer(c->kept.dear));
    json_object_set_new(r, "layers_away", json_integer(c->kept.away));
    json_object_set_new(r, "gradients_away", json_boolean(c->how.grads_away));
    json_object_set_new(r, "moments_away", json_boolean(c->how.moments_away));
    json_object_set_new(r, "planned_bytes", json_integer((json_int_t)c->bytes.sum[PLAN_DEVICE]));
    json_object_set_new(r, "host_planned_bytes", json_integer((json_int_t)c->bytes.sum[PLAN_HOST]));
    json_object_set_new(r, "peak_bytes", json_integer((json_int_t)card.peak));
    json_object_set_new(r, "host_peak_bytes", json_integer((json_int_t)plat_memory_peak()));
    if (o->list) json_object_set(r, "records", b->made);
    return r;
}

static void bench_fini(struct bench *b)
{
    for (int i = 0; i < b->n_batches; i++) batch_fini(&b->batch[i]);
    free(b->batch);
    json_decref(b->made);
    for (int i = 0; i < b->n_max; i++) sample_fini(&b->sample[i]);
    free(b->sample);
    free(b->time);
    optim_close(&b->optim);
    step_close(&b->step);
    trainee_close(&b->t);
    dev_close(b->dev);
}

int train_bench(json_t **ret, const struct train_bench *o, struct err *e)
{
    struct bench b = { .b = o };
    const struct train_args *a = o->a;
    struct batch_limits most;
    int rc;
    *ret = NULL;
    omp_set_num_threads(train_args_threads(a));
    rng_seed(&b.rng, (uint64_t)a->seed);
    b.time = calloc((size_t)o->steps, sizeof *b.time);
    b.made = json_array();
    if (!b.time || !b.made) TRY(err_set(e, ERR_NOMEM, "no memory for the times"));
    TRY(dev_open(&b.dev, a->device, e));
    dev_use(b.dev);
    TRY(trainee_random(&b.t, a, b.dev, e));
    TRY(make_batches(&b, &most, e));
    TRY(step_open(&b.step, &b.t, a, &most, NULL, e));
    const struct plan_speed speed = plan_measure(&b.step, b.t.dtype);
    TRY(plan_make(&b.plan, &b.t, &b.step, a, &speed, e));
    TRY(plan_check(&b.plan, &b.t, &b.step, a, e));
    TRY(trainee_fill(&b.t, a, &b.step.kern, &b.step.kc, e));
    TRY(step_fill(&b.step, e));
    TRY(optim_open(&b.optim, &b.t, a, 1000, e));
    for (int k = 0; k <= o->steps; k++) run_step(&b, k);
    if (o->profile) TRY(profile(&b, e));
    *ret = figures(&b);
out:
    bench_fini(&b);
    return rc;
}
