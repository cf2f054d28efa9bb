/* See optim.h. */
#include "train/optim.h"

#include <math.h>

#include "base/rng.h"

int optim_open(struct optim *o, struct trainee *t, const struct train_args *a, int64_t total_steps,
               struct err *e)
{
    *o = (struct optim){ .dev = t->dev, .p = t->p, .n = t->n, .states = &t->states, .seed = (uint64_t)a->seed,
                         .beta1 = a->adam_beta1, .beta2 = a->adam_beta2, .eps = a->adam_epsilon,
                         .decay = a->weight_decay, .clip = a->max_grad_norm };
    o->rate[RATE_COMMON] = a->learning_rate;
    o->rate[RATE_PROJECTOR] = a->mm_projector_lr;
    o->rate[RATE_TOWER] = a->mm_vision_tower_lr;
    int rc = schedule_make(&o->schedule, a->lr_scheduler_type, a->lr_scheduler_kwargs, a->learning_rate, e);
    if (rc < 0) return rc;
    o->schedule.warmup = schedule_warmup(a->warmup_steps, a->warmup_ratio, total_steps);
    o->schedule.total = total_steps;
    o->orthogonal = t->muon;
    rc = dev_pinned((void **)&o->host, o->dev, (size_t)t->n * sizeof *o->host, e);
    return rc >= 0 && t->muon ? muon_open(&o->muon, t->model.dev, t->p, t->n, e) : rc;
}

void optim_close(struct optim *o)
{
    muon_close(&o->muon);
    dev_pinned_free(o->dev, o->host);
    *o = (struct optim){ 0 };
}

double optim_norm(struct optim *o, struct step *s)
{
    const struct tensor squares = o->states->squares;
    double sum = 0;
    for (int i = 0; i < o->n && !o->states->how.grads_away; i++) /* else it was done on the way back */
        s->kern.sumsq(&s->kc, tensor_slice(squares, i, 1), o->p[i].param->g);
    dev_get(s->kc.dev, o->host, squares.p, tensor_bytes(squares));
    for (int i = 0; i < o->n; i++) sum += (double)o->host[i];
    return sqrt(sum);
}

/* Muon's step of the matrices that take it. */
static void step_matrices(struct optim *o, struct step *s, double factor, float scale)
{
    const struct tensor squares = o->states->squares;
    for (int i = 0; i < o->n; i++) {
        if (!muon_takes(&o->p[i])) continue;
        muon_gather(s, &o->p[i], scale);
        s->kern.sumsq(&s->kc, tensor_slice(squares, i, 1), o->p[i].param->g);
    }
    dev_get(s->kc.dev, o->host, squares.p, tensor_bytes(squares));
    for (int i = 0; i < o->n; i++)
        if (muon_takes(&o->p[i]))
            muon_step(&o->muon, s, &o->p[i], sqrt((double)o->host[i]), o->rate[o->p[i].rate] * factor, o->decay);
}

static void step_one(struct step *s, const struct trained *p, const struct adamw *a)
{
    const struct trained_state *t = &p->state;
    const struct tensor none = { 0 }, w = p->param->w, x = t->master.p ? t->master : w;
    if (!t->eight) {
        s->kern.adamw(&s->kc, t->master, t->m, t->v, t->has_master ? w : none, p->param->g, a);
        return;
    }
    s->kern.adamw8(&s->kc, x, t->m, t->ms, t->v, t->vs, p->param->g, a);
    if (t->has_master) s->kern.cast(&s->kc, w, t->master);
}

static void clear_gradients(struct optim *o, struct step *s)
{
    o->states->fresh = true;
    for (int i = 0; i < o->n && !o->states->how.grads_away; i++) s->kern.zero(&s->kc, o->p[i].param->g);
}

void optim_step(struct optim *o, struct step *s, int64_t k, double norm)
{
    const double factor = schedule_factor(&o->schedule, k - 1);
    struct adamw a = { .beta1 = (float)o->beta1, .beta2 = (float)o->beta2, .eps = (float)o->eps, .scale = 1,
                       .fix1 = (float)(1 - pow(o->beta1, (double)k)), .fix2 = (float)(1 - pow(o->beta2, (double)k)) };
    /* torch.nn.utils.clip_grad_norm_ */
    if (o->clip > 0) a.scale = (float)fmin(1, o->clip / (norm + 1e-6));
    states_update_begin(o->states);
    for (int b = 0; b < o->states->blocks; b++) {
        states_update_next(o->states, b);
        for (int i = 0; i < o->n; i++) {
            const struct trained *p = &o->p[i];
            if (p->state.block != b || (o->orthogonal && muon_takes(p))) continue;
            a.lr = (float)(o->rate[p->rate] * factor);
            a.decay = p->decays ? (float)o->decay : 0;
            a.key = rng_key(o->seed, (uint64_t)k, (uint64_t)i);
            step_one(s, p, &a);
        }
        states_update_done(o->states);
    }
    if (o->orthogonal) step_matrices(o, s, factor, a.scale);
    clear_gradients(o, s);
}

int optim_broken(struct optim *o, struct step *s)
{
    const struct tensor squares = o->states->squares;
    for (int i = 0; i < o->n; i++) s->kern.sumsq(&s->kc, tensor_slice(squares, i, 1), o->p[i].param->w);
    dev_get(s->kc.dev, o->host, squares.p, tensor_bytes(squares));
    for (int i = 0; i < o->n; i++)
        if (!isfinite(o->host[i])) return i;
    return -1;
}

double optim_rate(const struct optim *o, int64_t k)
{
    return o->rate[RATE_COMMON] * schedule_factor(&o->schedule, k);
}
