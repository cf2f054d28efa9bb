/* See trainer.h. */
#include "train/trainer.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "base/plat.h"
#include "base/rng.h"
#include "train/deepspeed.h"
#include "train/features.h"
#include "train/feed.h"
#include "train/flops.h"
#include "train/optim.h"
#include "train/plan.h"
#include "train/report.h"
#include "train/show.h"
#include "train/snapshot.h"
#include "train/stop.h"

/* The step that is under way: what its micro-batches so far have come to. */
struct gathered {
    double loss;
    int64_t batches;         /* passes: part of dropout's key */
    int64_t *record;         /* [n_record] to be named if it cannot be used */
    int n_record, record_max;
};

struct trainer {
    const struct train_args *a;
    struct dev *dev;         /* NULL: the host */
    struct trainee t;
    struct feed train, eval; /* eval: valid if a->eval_data_path */
    struct recipe whole;     /* of evaluation, which sees all patches */
    struct features features; /* with --cache_features */
    bool features_full;      /* no more are kept */
    struct step step;
    struct optim optim;
    struct plan plan;

    int64_t total;           /* steps of the run */
    struct { int64_t log, save, eval; } every; /* so many steps; 0: never */
    struct standing at, at_step; /* at_step: as it was after the last step, where a checkpoint stands */
    struct gathered now;
    int64_t pass_used;       /* records of this pass over the data that could be used */
    int64_t saved;           /* step of the newest checkpoint */
    double start_s;          /* plat_now_s when this start of the run began */
    double seconds_before;   /* of former starts */

    struct snapshot snapshot;
    struct report *report;
    struct show show;
    int lock;                /* of the output folder */
};

/* ---- how long, how often */

/* Steps of an epoch and of the run, and passes over the data: Trainer._inner_training_loop. */
static void count_steps(struct trainer *r, int *epochs)
{
    const struct train_args *a = r->a;
    const int64_t steps = r->train.order.n_micro / a->gradient_accumulation_steps, each = steps > 0 ? steps : 1;
    const int64_t most = INT32_MAX / 2;
    if (a->max_steps > 0) {
        r->total = a->max_steps;
        const int64_t passes = (a->max_steps + each - 1) / each;
        *epochs = (int)(passes < most ? passes : most);
    } else {
        r->total = (int64_t)ceil(a->num_train_epochs * (double)each);
        *epochs = (int)fmin(ceil(a->num_train_epochs), (double)most);
    }
}

/* Below 1 it is a share of all steps. */
static int64_t every(double steps, int64_t total)
{
    return (int64_t)fmax(1, ceil(steps < 1 ? steps * (double)total : steps));
}

static void count_events(struct trainer *r)
{
    const struct train_args *a = r->a;
    const char *eval = a->evaluation_strategy;
    r->every.log = strcmp(a->logging_strategy, "steps") ? 0 : every(a->logging_steps, r->total);
    r->every.save = strcmp(a->save_strategy, "steps") ? 0 : every(a->save_steps, r->total);
    if (a->eval_data_path && !train_args_given(a, "evaluation_strategy")) eval = "steps";
    if (!a->eval_data_path && strcmp(eval, "no") != 0)
        log_warn("--evaluation_strategy %s without --eval_data_path: nothing is evaluated", eval);
    r->every.eval = !a->eval_data_path || strcmp(eval, "steps") != 0 ? 0
                  : every(isnan(a->eval_steps) ? a->logging_steps : a->eval_steps, r->total);
}

/* The best can only be taken if it was saved. TrainingArguments.__post_init__ */
static int check_best(const struct trainer *r, struct err *e)
{
    const struct train_args *a = r->a;
    const bool by_epoch = a->eval_data_path && !strcmp(a->save_strategy, "epoch") &&
                          !strcmp(a->evaluation_strategy, "epoch");
    const bool by_step = r->every.save && r->every.eval && r->every.save % r->every.eval == 0;
    if (!a->load_best_model_at_end || by_epoch || by_step) return 0;
    return err_set(e, ERR_USAGE, "--load_best_model_at_end wants --eval_data_path and an evaluation wherever a "
                   "checkpoint is written: the same strategy for both, --save_steps a multiple of --eval_steps");
}

/* ---- opening */

static int open_feeds(struct trainer *r, struct err *e)
{
    const struct train_args *a = r->a;
    const int64_t rows = a->per_device_train_batch_size * a->model_max_length; /* what padding would take */
    r->whole = r->t.recipe;
    if (r->whole.of) r->whole.rows = r->whole.of, r->whole.of = 0;
    struct feed_options o = {
        .path = a->data_path, .kind = a->group_by_modality_length ? ORDER_GROUPED : a->group_by_length ? ORDER_LENGTH
                                                                                                : ORDER_RANDOM,
        .seed = (uint64_t)a->data_seed, .batch = (int)a->per_device_train_batch_size,
        .accum = (int)a->gradient_accumulation_steps, .window = r->t.model.cfg.llama.window,
        .threads = (int)a->dataloader_num_workers, .packing = a->packing ? (int)(rows < INT_MAX ? rows : INT_MAX) : 0,
        .augment = a->image_augment ? (uint64_t)a->seed | 1 : 0, .drop_last = a->dataloader_drop_last,
        .skip_bad = !strcmp(a->on_bad_record, "skip"),
    };
    int rc = feed_open(&r->train, &r->t.recipe, &o, e);
    if (rc < 0) return rc;
    if (!r->train.check.targets)
        return err_set(e, ERR_USAGE, "nothing would be learned of '%s': all answers are empty or beyond "
                       "--model_max_length %lld", a->data_path, (long long)a->model_max_length);
    count_steps(r, &r->train.options.epochs);
    count_events(r);
    if ((rc = check_best(r, e)) < 0) return rc;
    if ((rc = loader_limits(&r->train.most, &r->train.options, e)) < 0) return rc;
    if (!a->eval_data_path) return 0;
    o.path = a->eval_data_path;
    o.kind = ORDER_SEQUENTIAL;
    o.batch = (int)a->per_device_eval_batch_size;
    o.accum = 1;
    o.packing = 0;
    o.augment = 0;
    o.drop_last = false;
    rc = feed_open(&r->eval, &r->whole, &o, e);
    r->eval.options.epochs = 1;
    return rc < 0 ? rc : loader_limits(&r->eval.most, &r->eval.options, e);
}

/* The step and what it may keep where. */
static int open_step(struct trainer *r, struct err *e)
{
    omp_set_num_threads(train_args_threads(r->a));
    const int rc = step_open(&r->step, &r->t, r->a, &r->train.most, &r->eval.most, e);
    if (rc < 0) return rc;
    const struct plan_speed speed = plan_measure(&r->step, r->t.dtype);
    return plan_make(&r->plan, &r->t, &r->step, r->a, &speed, e);
}

/* ---- checkpoints */

static int describe_run(struct trainer *r, struct err *e)
{
    const int rc = snapshot_open(&r->snapshot, &r->t, r->a, r->train.data.hash, e);
    if (rc < 0) return rc;
    struct checkpoint *c = &r->snapshot.ck;
    c->max_steps = r->total;
    c->epochs = r->train.options.epochs;
    c->logging_steps = r->every.log;
    c->save_steps = r->every.save;
    c->eval_steps = r->every.eval;
    return 0;
}

/* The result's files have the base's names: a base that is trained into its own folder would be neither any more. */
static int keep_apart(const struct trainer *r, struct err *e)
{
    struct stat out, base;
    if (stat(r->a->output_dir, &out) < 0 || stat(r->t.dir, &base) < 0) return 0;
    if (out.st_dev != base.st_dev || out.st_ino != base.st_ino) return 0;
    return err_set(e, ERR_USAGE, "--output_dir '%s' is the folder of the model itself, whose files would be replaced",
                   r->a->output_dir);
}

/* The weights of the checkpoint that was best, in place of the last ones. */
static int take_best(struct trainer *r, struct err *e)
{
    struct standing then;
    char dir[4096];
    int rc;
    if (!r->a->load_best_model_at_end || !r->at.best_step || r->at.best_step == r->at.step) return 0;
    snprintf(dir, sizeof dir, "%s/checkpoint-%lld", r->a->output_dir, (long long)r->at.best_step);
    TRY(standing_init(&then, e));
    rc = checkpoint_load(&r->snapshot.ck, dir, &then, e);
    standing_fini(&then);
    if (rc < 0) goto out;
    states_round(&r->t.states, &r->step.kern, &r->step.kc);
    log_info("the result is that of '%s', whose evaluation loss %.4f is the smallest", dir, r->at.best_metric);
out:
    return rc;
}

/* Goes on from a checkpoint, where there is one and it is wanted. */
static int resume(struct trainer *r, struct err *e)
{
    char *dir = NULL;
    const char *from = r->a->resume_from_checkpoint;
    int rc;
    if (!from && r->a->overwrite_output_dir) from = "False";
    TRY(checkpoint_find(&dir, r->a->output_dir, from, e));
    if (!dir) goto out;
    if ((rc = checkpoint_load(&r->snapshot.ck, dir, &r->at, e)) < 0) {
        const size_t n = strlen(e->msg);
        snprintf(e->msg + n, sizeof e->msg - n, " (--resume_from_checkpoint takes another one, or False)");
        goto out;
    }
    states_round(&r->t.states, &r->step.kern, &r->step.kc);
    const int broken = optim_broken(&r->optim, &r->step);
    if (broken >= 0)
        TRY(err_set(e, ERR_FORMAT, "cannot resume from '%s': '%s' is infinite or not a number", dir,
                    r->t.p[broken].name));
    log_info("going on from '%s': step %lld of %lld", dir, (long long)r->at.step, (long long)r->total);
    r->train.options.epoch = (int)r->at.pass;
    r->train.options.micro = r->at.batch;
    r->seconds_before = r->at.seconds;
    r->saved = r->at.step;
    r->pass_used = r->at.batch; /* who knows how many, but of these micro-batches some */
out:
    free(dir);
    return rc;
}

static int save(struct trainer *r, struct err *e)
{
    show_clear(&r->show);
    r->at_step.history = r->at.history;
    r->at_step.best_metric = r->at.best_metric;
    r->at_step.best_step = r->at.best_step;
    r->at_step.seconds = r->seconds_before + plat_now_s() - r->start_s;
    const int rc = checkpoint_save(&r->snapshot.ck, &r->at_step, e);
    if (rc >= 0) r->saved = r->at_step.step;
    return rc;
}

/* ---- logging */

static int log_scalars(struct trainer *r, const struct scalar *v, int n, struct err *e)
{
    const int rc = standing_log(&r->at, v, n, e);
    if (rc >= 0) report_line(r->report, &r->at);
    return rc;
}

/* The mean loss of the steps since the last line. */
static int log_step(struct trainer *r, const struct shown *now, struct err *e)
{
    struct shown v = *now;
    v.loss = r->at.loss_sum / (double)r->at.loss_steps;
    const struct scalar all[] = { { "loss", v.loss }, { "grad_norm", v.norm }, { "learning_rate", v.rate } };
    r->at.loss_sum = 0;
    r->at.loss_steps = 0;
    show_line(&r->show, &v);
    return log_scalars(r, all, 3, e);
}

/* What the tower has made of a batch's pictures. Without room for it the run goes on without. */
static void keep_features(struct trainer *r, const struct batch *b)
{
    struct err e = { 0 };
    for (int i = 0; i < r->step.host.n_made && !r->features_full; i++) {
        if (features_put(&r->features, b->picture[i].name, step_made(&r->step, i), &e) >= 0) continue;
        log_warn("%s: no more features are kept", e.msg);
        r->features_full = true;
    }
}

/* The loss over the evaluation's records: of each batch its mean, weighted by its records. */
static int evaluate(struct trainer *r, struct err *e)
{
    struct loader *l = NULL;
    const struct batch *b;
    const double start = plat_now_s();
    double sum = 0, n = 0, batches = 0;
    int rc;
    show_clear(&r->show);
    TRY(loader_open(&l, &r->eval.options, e));
    while (!stop_asked() && (rc = loader_next(l, &b, e)) > 0) {
        sum += step_run(&r->step, b, false, 0) * b->n;
        keep_features(r, b);
        n += b->n;
        batches++;
    }
    if (rc < 0 || stop_asked()) goto out;
    const double loss = sum / fmax(n, 1), s = fmax(plat_now_s() - start, 1e-9);
    const struct scalar all[] = { { "eval_loss", loss }, { "eval_runtime", s }, { "eval_samples_per_second", n / s },
                                  { "eval_steps_per_second", batches / s } };
    const bool taken = !r->a->load_best_model_at_end || !r->every.save || r->at.step % r->every.save == 0;
    if (taken && (!r->at.best_step || loss < r->at.best_metric)) {
        r->at.best_metric = loss;
        r->at.best_step = r->at.step;
    }
    log_info("step %lld/%lld  evaluation: loss %.4f", (long long)r->at.step, (long long)r->total, loss);
    rc = log_scalars(r, all, 4, e);
out:
    loader_close(l);
    return rc;
}

/* ---- a step */

/* Dropout's key for this pass of this step: never 0. */
static uint64_t drop_key(const struct trainer *r)
{
    return rng_key((uint64_t)r->a->seed, (uint64_t)r->at.step, (uint64_t)r->now.batches) | 1;
}

static void remember(struct trainer *r, const struct batch *b)
{
    for (int i = 0; i < b->n; i++) {
        if (r->now.n_record == r->now.record_max) {
            r->now.record_max = r->now.record_max ? 2 * r->now.record_max : 64;
            r->now.record = realloc(r->now.record, (size_t)r->now.record_max * sizeof *r->now.record);
            if (!r->now.record) BUG("no memory for a list of records");
        }
        r->now.record[r->now.n_record++] = b->record[i];
    }
}

/* Step s->step + 1 cannot be used: says why and of which records it was. Whatever it changed is not saved. */
static int blame(struct trainer *r, const char *what, struct err *e)
{
    enum { SHOWN = 8 };
    char names[700] = "";
    struct record one = { 0 };
    for (int i = 0; i < r->now.n_record && i < SHOWN; i++) {
        char name[RECORD_NAME_MAX] = "?";
        const size_t n = strlen(names);
        if (record_load(&one, &r->train.data, r->now.record[i], NULL) >= 0) record_name(name, &one);
        snprintf(names + n, sizeof names - n, "%s%.80s", i ? ", " : "", name);
    }
    record_fini(&one);
    show_clear(&r->show);
    err_set(e, ERR_FORMAT, "step %lld: %s infinite or not a number, at %s%s", (long long)r->at.step + 1, what, names,
            r->now.n_record > SHOWN ? " and others" : "");
    const size_t n = strlen(e->msg);
    if (r->saved) snprintf(e->msg + n, sizeof e->msg - n, "; '%s/checkpoint-%lld' is kept", r->a->output_dir,
                           (long long)r->saved);
    else snprintf(e->msg + n, sizeof e->msg - n, "; nothing is saved");
    return e->code;
}

/* The run's end is that of its last pass, too, however far that came: Trainer._inner_training_loop. */
static bool pass_ends(const struct trainer *r, const struct batch *b)
{
    return b->micro == r->train.order.n_micro || (b->update && r->at.step == r->total);
}

static bool due(int64_t step, int64_t every_steps) { return every_steps && step % every_steps == 0; }

/* The optimiser's step and what is due after it. */
static int update(struct trainer *r, const struct batch *b, struct err *e)
{
    const double norm = optim_norm(&r->optim, &r->step);
    struct standing *s = &r->at;
    int rc = 0;
    if (!isfinite(norm)) return blame(r, "a gradient is", e);
    optim_step(&r->optim, &r->step, s->step + 1, norm);
    const int broken = optim_broken(&r->optim, &r->step);
    if (broken >= 0) {
        char what[200];
        snprintf(what, sizeof what, "'%.150s' became", r->t.p[broken].name);
        return blame(r, what, e);
    }
    s->step++;
    s->pass = b->epoch;
    s->batch = b->micro;
    s->epoch = b->epoch + (double)b->micro / (double)r->train.order.n_micro;
    s->loss_sum += r->now.loss;
    s->loss_total += r->now.loss;
    s->loss_steps++;
    const struct shown v = { s->step, r->now.loss, optim_rate(&r->optim, s->step), norm, s->epoch };
    r->now.loss = 0;
    r->now.batches = 0;
    r->now.n_record = 0;
    show_step(&r->show, &v);
    if (due(s->step, r->every.log) || (s->step == 1 && r->a->logging_first_step)) TRY(log_step(r, &v, e));
    else if (!strcmp(r->a->logging_strategy, "epoch") && pass_ends(r, b)) TRY(log_step(r, &v, e));
    if (due(s->step, r->every.eval) && !stop_asked()) TRY(evaluate(r, e));
    r->at_step = *s;
    if (due(s->step, r->every.save)) TRY(save(r, e));
out:
    return rc;
}

/* What is due when a pass over the data is done; the checkpoint is of the last step, though micro-batches may have been
 * gathered for the next. */
static int end_pass(struct trainer *r, struct err *e)
{
    int rc = 0;
    if (!r->pass_used)
        return err_set(e, ERR_FORMAT, "no record of '%s' can be used: all pictures of a whole pass failed",
                       r->a->data_path);
    r->pass_used = 0;
    if (r->a->eval_data_path && !strcmp(r->a->evaluation_strategy, "epoch") && !stop_asked()) TRY(evaluate(r, e));
    if (!strcmp(r->a->save_strategy, "epoch") && r->at_step.step) TRY(save(r, e));
out:
    return rc;
}

/* Waits for the batch's losses; then the optimiser's step where one is due. */
static int finish(struct trainer *r, const struct batch *b, struct err *e)
{
    const struct batch_limits sizes = batch_sizes(b);
    const double loss = step_loss(&r->step);
    const double flops = b->n_targets ? flops_pass(&r->t.model, r->t.tower_trains, &sizes) : 0;
    keep_features(r, b);
    remember(r, b);
    if (!isfinite(loss)) return blame(r, "the loss is", e);
    r->now.loss += loss;
    r->now.batches++;
    r->at.samples += b->n;
    r->at.tokens += b->T;
    r->at.skipped += b->n_skipped;
    r->at.flops += flops;
    r->show.flops += flops;
    r->show.tokens += b->T;
    r->pass_used += b->n;
    int rc = b->update ? update(r, b, e) : 0;
    if (rc >= 0 && pass_ends(r, b)) rc = end_pass(r, e);
    return rc;
}

/* ---- the run */

static void print_data(const char *what, const struct check_result *c)
{
    printf("%s: %lld records (%lld without picture, %lld left out), %lld pictures, %lld positions, %lld learned\n",
           what, (long long)c->n_row, (long long)c->n_text, (long long)c->n_bad, (long long)c->images,
           (long long)c->positions, (long long)c->targets);
}

/* --dry_run */
static void print_plan(struct trainer *r)
{
    const struct trainee_bytes n = trainee_count(&r->t);
    const struct check_result *c = &r->train.check;
    const int64_t records = r->a->gradient_accumulation_steps * r->a->per_device_train_batch_size;
    const double passes = (double)r->total * (double)records / (double)c->n_row;
    const struct batch_limits all = { 1000, (int)(1000 * c->positions / c->n_row), (int)(1000 * c->images / c->n_row),
                                      (int)(1000 * c->targets / c->n_row), 0, r->step.rule.most.kept };
    const double peak = r->plan.speed.flops;
    char time[24];
    printf("trained: %lld of %lld numbers in %d tensors (%s, %s)\n", (long long)n.n_trained, (long long)n.n_all, r->t.n,
           r->t.kind == TRAIN_PROJECTOR ? "projector" : r->t.kind == TRAIN_LORA ? "adapters" : "full",
           dtype_name(r->t.dtype));
    print_data("data", c);
    if (r->a->eval_data_path) print_data("evaluation", &r->eval.check);
    printf("longest record: %d positions, %d pictures; largest batch: %d records, %d positions\n", c->most.positions,
           c->most.images, r->step.rule.most.n, r->step.rule.most.T);
    printf("steps: %lld of %lld records, %.2f passes; warm-up %lld; %.0f positions in all\n", (long long)r->total,
           (long long)records, passes,
           (long long)schedule_warmup(r->a->warmup_steps, r->a->warmup_ratio, r->total), passes * (double)c->positions);
    if (r->a->cache_features) {
        char size[16];
        plan_bytes(size, (double)c->images * (double)step_feature_bytes(&r->step));
        printf("features of pictures in '%s': at most %s\n", r->a->cache_features, size);
    }
    printf("memory:\n");
    plan_print(&r->plan, stdout);
    if (peak <= 0) return; /* a device that is not here */
    const double flops = flops_pass(&r->t.model, r->t.tower_trains, &all), share = plan_share(&r->plan);
    show_time(time, passes * (double)c->n_row / 1000 * flops / (peak * share));
    printf("time: about %s, at %.0f%% of the %.0f GFLOP/s that matrix products reach here\n", time, 100 * share,
           peak * 1e-9);
}

/* The data failed on the way: what has been learned is saved, so that nothing is lost when the data is mended or the
 * run is started again with --on_bad_record skip. */
static int keep(struct trainer *r, struct err *e)
{
    struct err also = { 0 };
    show_clear(&r->show);
    if (r->at_step.step > r->saved && save(r, &also) < 0) log_warn("%s", also.msg);
    const size_t n = strlen(e->msg);
    if (r->saved) snprintf(e->msg + n, sizeof e->msg - n, "; step %lld is saved in '%s/checkpoint-%lld'",
                           (long long)r->saved, r->a->output_dir, (long long)r->saved);
    return e->code;
}

/* A signal asked for it: what is done is saved, whatever --save_strategy says. */
static int stop(struct trainer *r, struct err *e)
{
    const bool anew = train_args_given(r->a, "resume_from_checkpoint") || r->a->overwrite_output_dir;
    int rc = 0;
    if (r->saved != r->at.step) TRY(save(r, e));
    log_info("stopped: step %lld of %lld is saved in '%s/checkpoint-%lld'; the same command%s goes on from there",
             (long long)r->at.step, (long long)r->total, r->a->output_dir, (long long)r->at.step,
             anew ? " with --resume_from_checkpoint True at its end" : "");
    rc = TRAIN_STOPPED;
out:
    return rc;
}

/* 0, TRAIN_STOPPED, < 0 */
static int loop(struct trainer *r, struct err *e)
{
    struct loader *l = NULL;
    const struct batch *next;
    struct err why = { 0 };
    int rc, more;
    TRY(loader_open(&l, &r->train.options, e));
    more = loader_next(l, &next, &why);
    while (more > 0 && r->at.step < r->total) {
        const struct batch *b = next;
        step_begin(&r->step, b, true, trainee_drops(&r->t, r->a) ? drop_key(r) : 0);
        more = loader_next(l, &next, &why); /* while a device computes */
        TRY(finish(r, b, e));
        if (b->update && r->at.step < r->total && stop_asked()) {
            rc = stop(r, e);
            goto out;
        }
    }
    if (more < 0 && r->at.step < r->total) {
        err_set(e, why.code, "%s", why.msg);
        rc = keep(r, e);
        goto out;
    }
    show_clear(&r->show);
    const double s = plat_now_s() - r->start_s;
    const struct standing *st = &r->at;
    const struct scalar all[] = {
        { "train_runtime", r->seconds_before + s },
        { "train_samples_per_second", (double)st->samples / (r->seconds_before + s) },
        { "train_steps_per_second", (double)st->step / (r->seconds_before + s) }, { "total_flos", st->flops },
        { "train_loss", st->step ? st->loss_total / (double)st->step : 0 },
    };
    TRY(log_scalars(r, all, 5, e));
    r->at.seconds = r->seconds_before + s;
out:
    loader_close(l);
    return rc;
}

static int open_features(struct trainer *r, struct err *e)
{
    struct recipe *c = &r->t.recipe;
    if (!r->a->cache_features) return 0;
    const int rc = features_open(&r->features, r->a->cache_features, &r->t.model, c, r->step.rule.act,
                                 r->step.kern.name, e);
    c->features = r->whole.features = &r->features;
    return rc;
}

static int train(struct trainer *r, struct err *e)
{
    const struct train_args *a = r->a;
    unsigned kinds;
    int rc;
    TRY(report_kinds(&kinds, a->report_to, e));
    TRY(keep_apart(r, e));
    TRY(checkpoint_claim(&r->lock, a->output_dir, e));
    TRY(open_features(r, e));
    TRY(trainee_fill(&r->t, a, &r->step.kern, &r->step.kc, e));
    TRY(step_fill(&r->step, e));
    TRY(optim_open(&r->optim, &r->t, a, r->total, e));
    TRY(standing_init(&r->at, e));
    TRY(describe_run(r, e));
    TRY(resume(r, e));
    if (r->at.step < r->total) /* to be said now, and not hours later */
        TRY(checkpoint_room(&r->snapshot.ck, !strcmp(a->save_strategy, "no"), e));
    r->at_step = r->at;
    const struct report_options ro = { .kinds = kinds, .output_dir = a->output_dir, .logging_dir = a->logging_dir,
                                       .state = &r->at, .args = r->snapshot.args, .config = r->snapshot.config };
    TRY(report_open(&r->report, &ro, e));
    r->start_s = plat_now_s();
    show_begin(&r->show, r->at.step, r->total, r->plan.speed.flops, !a->disable_tqdm, a->quiet);
    stop_begin();
    TRY(loop(r, e));
    stop_end();
    if (rc == TRAIN_STOPPED) goto out;
    TRY(take_best(r, e));
    TRY(checkpoint_finish(&r->snapshot.ck, &r->at, e));
    if (r->at.skipped) log_warn("%lld times a record was left out", (long long)r->at.skipped);
    log_info("done: %lld step%s, loss %.4f; '%s'", (long long)r->at.step, r->at.step == 1 ? "" : "s",
             r->at.step ? r->at.loss_total / (double)r->at.step : 0, a->output_dir);
out:
    stop_end();
    show_clear(&r->show);
    return rc;
}

static void trainer_fini(struct trainer *r)
{
    report_close(r->report);
    free(r->now.record);
    snapshot_close(&r->snapshot);
    standing_fini(&r->at);
    optim_close(&r->optim);
    step_close(&r->step);
    feed_close(&r->train);
    feed_close(&r->eval);
    trainee_close(&r->t);
    dev_close(r->dev);
    if (r->lock >= 0) close(r->lock);
}

static int open_device(struct trainer *r, struct err *e)
{
    const struct train_args *a = r->a;
    struct err why = { 0 };
    const int rc = dev_open(&r->dev, a->device, &why);
    if (rc < 0 && a->dry_run && a->memory_limit && (!strncmp(a->device, "cuda", 4) || !strncmp(a->device, "hip", 3))) {
        log_info("%s: the plan is for one with --memory_limit %s", why.msg, a->memory_limit);
        return 0;
    }
    if (rc < 0) return err_set(e, why.code, "--device: %s", why.msg);
    dev_use(r->dev);
    if (r->dev) log_info("training on %s (%s)", dev_name(r->dev), dev_model(r->dev));
    if (a->fp16 && r->dev) log_warn("--fp16 keeps activations in f32 on %s, which is slow", dev_name(r->dev));
    return 0;
}

/* Could dir be made, or written in? */
static int look_output(const char *dir, struct err *e)
{
    char path[4096];
    struct stat st;
    if (snprintf(path, sizeof path, "%s", dir) >= (int)sizeof path)
        return err_set(e, ERR_USAGE, "--output_dir is too long");
    while (stat(path, &st) < 0 && errno == ENOENT && *path && strcmp(path, ".") != 0) { /* up to what is there */
        char *slash = strrchr(path, '/');
        if (!slash) snprintf(path, sizeof path, ".");
        else slash[slash == path] = 0;
    }
    const int no = stat(path, &st) < 0 ? errno : !S_ISDIR(st.st_mode) ? ENOTDIR : access(path, W_OK | X_OK) ? errno : 0;
    return no ? err_set(e, ERR_IO, "--output_dir: cannot write in '%s': %s", path, strerror(no)) : 0;
}

/* Files that are cheap to look for are looked for before a base model is fetched, which may be many gigabytes. */
static int look(const struct train_args *a, struct err *e)
{
    const struct { const char *name, *path; } files[] = {
        { "data_path", a->data_path }, { "eval_data_path", a->eval_data_path }, { "image_folder", a->image_folder },
        { "pretrain_mm_mlp_adapter", a->pretrain_mm_mlp_adapter },
    };
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        if (files[i].path && access(files[i].path, R_OK) != 0)
            return err_set(e, ERR_IO, "--%s: cannot open '%s': %s", files[i].name, files[i].path, strerror(errno));
    struct stat st;
    if (a->image_folder && stat(a->image_folder, &st) == 0 && !S_ISDIR(st.st_mode))
        return err_set(e, ERR_IO, "--image_folder: '%s' is no folder", a->image_folder);
    return a->dry_run ? 0 : look_output(a->output_dir, e);
}

int train_run(struct train_args *a, struct err *e)
{
    struct trainer r = { .a = a, .lock = -1, .train.data.fd = -1, .eval.data.fd = -1 };
    int rc;
    if (a->quiet) log_set_level(LOG_QUIET);
    train_args_report(a);
    TRY(deepspeed_apply(a, e));
    TRY(look(a, e));
    TRY(open_device(&r, e));
    TRY(trainee_open(&r.t, a, r.dev, e));
    TRY(open_feeds(&r, e));
    TRY(open_step(&r, e));
    if (a->dry_run) print_plan(&r);
    TRY(plan_check(&r.plan, &r.t, &r.step, a, e));
    if (!a->dry_run) TRY(train(&r, e));
out:
    trainer_fini(&r);
    return rc;
}
