/* See optim.h. */
#include "train/optim.h"

#include <math.h>

int optim_open(struct optim *o, const struct trainee *t, const struct train_args *a, int64_t total_steps,
               struct err *e)
{
    *o = (struct optim){ .dev = t->dev, .p = t->p, .n = t->n, .beta1 = a->adam_beta1, .beta2 = a->adam_beta2,
                         .eps = a->adam_epsilon, .decay = a->weight_decay, .clip = a->max_grad_norm };
    o->rate[RATE_COMMON] = a->learning_rate;
    o->rate[RATE_PROJECTOR] = a->mm_projector_lr;
    o->rate[RATE_TOWER] = a->mm_vision_tower_lr;
    const int kind = schedule_find(a->lr_scheduler_type);
    ASSERT(kind >= 0);
    o->schedule = (struct schedule){ (enum schedule_kind)kind,
                                     schedule_warmup(a->warmup_steps, a->warmup_ratio, total_steps), total_steps,
                                     a->learning_rate };
    o->squares = tensor_1d(NULL, DT_F32, t->n);
    int rc = dev_pinned((void **)&o->host, o->dev, tensor_bytes(o->squares), e);
    if (rc >= 0) rc = dev_arena(&o->mem, o->dev, tensor_bytes(o->squares) + ARENA_ALIGN, e);
    if (rc < 0) return rc;
    o->squares.p = arena_take(&o->mem, tensor_bytes(o->squares));
    o->orthogonal = t->muon;
    return t->muon ? muon_open(&o->muon, t->model.dev, t->p, t->n, e) : 0;
}

void optim_close(struct optim *o)
{
    arena_fini(&o->mem);
    muon_close(&o->muon);
    dev_pinned_free(o->dev, o->host);
    *o = (struct optim){ 0 };
}

double optim_norm(struct optim *o, struct step *s)
{
    double sum = 0;
    for (int i = 0; i < o->n; i++) s->kern.sumsq(&s->kc, tensor_slice(o->squares, i, 1), o->p[i].param->g);
    dev_get(s->kc.dev, o->host, o->squares.p, tensor_bytes(o->squares));
    for (int i = 0; i < o->n; i++) sum += (double)o->host[i];
    return sqrt(sum);
}

/* Muon's step of the matrices that take it. */
static void step_matrices(struct optim *o, struct step *s, double factor, float scale)
{
    for (int i = 0; i < o->n; i++) {
        if (!muon_takes(&o->p[i])) continue;
        muon_gather(s, &o->p[i], scale);
        s->kern.sumsq(&s->kc, tensor_slice(o->squares, i, 1), o->p[i].param->g);
    }
    dev_get(s->kc.dev, o->host, o->squares.p, tensor_bytes(o->squares));
    for (int i = 0; i < o->n; i++)
        if (muon_takes(&o->p[i]))
            muon_step(&o->muon, s, &o->p[i], sqrt((double)o->host[i]), o->rate[o->p[i].rate] * factor, o->decay);
}

void optim_step(struct optim *o, struct step *s, int64_t k, double norm)
{
    const double factor = schedule_factor(&o->schedule, k - 1);
    struct adamw a = { .beta1 = (float)o->beta1, .beta2 = (float)o->beta2, .eps = (float)o->eps, .scale = 1,
                       .fix1 = (float)(1 - pow(o->beta1, (double)k)), .fix2 = (float)(1 - pow(o->beta2, (double)k)) };
    /* torch.nn.utils.clip_grad_norm_ */
    if (o->clip > 0) a.scale = (float)fmin(1, o->clip / (norm + 1e-6));
    for (int i = 0; i < o->n; i++) {
        const struct trained *p = &o->p[i];
        if (o->orthogonal && muon_takes(p)) continue;
        const bool apart = p->master.p != p->param->w.p;
        a.lr = (float)(o->rate[p->rate] * factor);
        a.decay = p->decays ? (float)o->decay : 0;
        s->kern.adamw(&s->kc, p->master, p->m, p->v, apart ? p->param->w : (struct tensor){ 0 }, p->param->g, &a);
    }
    if (o->orthogonal) step_matrices(o, s, factor, a.scale);
    optim_clear(o, s);
}

int optim_broken(struct optim *o, struct step *s)
{
    for (int i = 0; i < o->n; i++) s->kern.sumsq(&s->kc, tensor_slice(o->squares, i, 1), o->p[i].param->w);
    dev_get(s->kc.dev, o->host, o->squares.p, tensor_bytes(o->squares));
    for (int i = 0; i < o->n; i++)
        if (!isfinite(o->host[i])) return i;
    return -1;
}

void optim_clear(struct optim *o, struct step *s)
{
    for (int i = 0; i < o->n; i++) s->kern.zero(&s->kc, o->p[i].param->g);
}

double optim_rate(const struct optim *o, int64_t k)
{
    return o->rate[RATE_COMMON] * schedule_factor(&o->schedule, k);
}
