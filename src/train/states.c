/* See states.h. */
#include "train/states.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kern/code8.h"

enum { SMALL = 4096 }; /* numbers: tensors with fewer keep moments of 32 bits, as bitsandbytes has it */

/* ---- shapes */

static int block_of(const char *name, int L)
{
    int layer;
    if (sscanf(name, "model.layers.%d.", &layer) == 1) return L - layer;
    return !strcmp(name, "lm_head.weight") || !strcmp(name, "model.norm.weight") ? 0 : L + 1;
}

static bool has_eight(const struct states_how *how, const struct trained *p)
{
    return how->eight && p->param->w.nd == 2 && tensor_count(p->param->w) >= SMALL && !strstr(p->name, "embed");
}

/* Tensors that have a shape and whose memory is not taken. */
static struct trained_state state_of(const struct trained *p, int L, enum dtype dtype, const struct states_how *how)
{
    struct tensor f32 = p->param->w;
    const bool eight = has_eight(how, p);
    const int64_t n = tensor_count(f32), scales = (n + KERN_BLOCK8 - 1) / KERN_BLOCK8;
    f32.type = DT_F32;
    f32.p = NULL;
    const struct tensor moment = eight ? tensor_1d(NULL, DT_U8, n) : f32;
    const struct tensor scale = eight ? tensor_1d(NULL, DT_F32, scales) : (struct tensor){ 0 };
    return (struct trained_state){ .master = f32, .m = moment, .v = moment, .ms = scale, .vs = scale, .eight = eight,
                                   .has_master = dtype != DT_F32 && (how->masters || !eight),
                                   .paged = how->moments_away && eight == how->eight, .block = block_of(p->name, L) };
}

static size_t master_bytes(const struct trained_state *s)
{
    return s->has_master ? arena_aligned(tensor_bytes(s->master)) : 0;
}

static size_t moment_bytes(const struct trained_state *s)
{
    return 2 * arena_aligned(tensor_bytes(s->m)) + (s->eight ? 2 * arena_aligned(tensor_bytes(s->ms)) : 0);
}

static size_t state_bytes(const struct trained_state *s) { return master_bytes(s) + moment_bytes(s); }

static size_t grad_bytes(const struct trained *p)
{
    return arena_aligned((size_t)tensor_count(p->param->w) * sizeof(float));
}

struct states_bytes states_bytes(const struct trained *p, int n, int L, enum dtype dtype, const struct states_how *how)
{
    const int blocks = L + 2;
    struct states_bytes b = { 0 };
    size_t *grads = calloc(2 * (size_t)blocks, sizeof *grads), *moments = grads + blocks;
    if (!grads) BUG("no memory for a list of blocks");
    for (int i = 0; i < n; i++) {
        const struct trained_state s = state_of(&p[i], L, dtype, how);
        *(s.paged ? &b.masters_away : &b.masters) += master_bytes(&s);
        *(s.paged ? &b.moments_away : &b.moments) += moment_bytes(&s);
        *(how->grads_away ? &b.gradients_away : &b.gradients) += grad_bytes(&p[i]);
        grads[s.block] += grad_bytes(&p[i]);
        moments[s.block] += s.paged ? state_bytes(&s) : 0;
    }
    if (how->grads_away) b.gradients = pager_device_bytes(grads, blocks, PAGER_PLACES);
    if (how->moments_away) b.moments += pager_device_bytes(moments, blocks, PAGER_PLACES);
    free(grads);
    return b;
}

int states_init(struct states *s, struct trained *p, int n, int L, enum dtype dtype, const struct states_how *how,
                struct err *e)
{
    states_fini(s);
    *s = (struct states){ .how = *how, .p = p, .n = n, .blocks = L + 2, .fresh = true };
    s->grad_bytes = calloc(2 * (size_t)s->blocks, sizeof *s->grad_bytes);
    if (!s->grad_bytes) return err_set(e, ERR_NOMEM, "no memory for a list of blocks");
    s->moment_bytes = s->grad_bytes + s->blocks;
    for (int i = 0; i < n; i++) {
        struct trained_state *t = &p[i].state;
        *t = state_of(&p[i], L, dtype, how);
        if (how->grads_away) s->grad_bytes[t->block] += grad_bytes(&p[i]);
        if (t->paged) s->moment_bytes[t->block] += state_bytes(t);
    }
    return 0;
}

size_t states_here_bytes(const struct states *s)
{
    size_t bytes = arena_aligned((size_t)s->n * sizeof(float));
    for (int i = 0; i < s->n; i++) {
        if (!s->p[i].state.paged) bytes += state_bytes(&s->p[i].state);
        if (!s->how.grads_away) bytes += grad_bytes(&s->p[i]);
    }
    return bytes;
}

/* ---- memory */

/* Lays out what is kept of a tensor from base + at on; returns where it ends. */
static size_t lay_out(struct trained_state *s, char *base, size_t at)
{
    struct tensor *const all[] = { s->has_master ? &s->master : NULL, &s->m, &s->v, s->eight ? &s->ms : NULL,
                                   s->eight ? &s->vs : NULL };
    for (int i = 0; i < 5; i++) {
        if (!all[i]) continue;
        all[i]->p = base + at;
        at += arena_aligned(tensor_bytes(*all[i]));
    }
    return at;
}

static void lay_out_block(struct states *s, int block, char *base)
{
    size_t at = 0;
    for (int i = 0; i < s->n; i++)
        if (s->p[i].state.paged && s->p[i].state.block == block) at = lay_out(&s->p[i].state, base, at);
}

static void lay_out_grads(struct states *s, int block, char *base)
{
    for (int i = 0; i < s->n; i++) {
        struct trained *p = &s->p[i];
        if (p->state.block != block) continue;
        p->param->g.p = base;
        base += grad_bytes(p);
    }
}

/* What stays on the device. */
static void take_here(struct states *s, struct arena *here, struct dev *dev)
{
    s->squares = tensor_1d(arena_take(here, (size_t)s->n * sizeof(float)), DT_F32, s->n);
    for (int i = 0; i < s->n; i++) {
        struct trained *p = &s->p[i];
        p->param->g = p->param->w;
        p->param->g.type = DT_F32;
        p->param->g.p = NULL;
        if (p->param->w.type == DT_F32) p->state.master = p->param->w;
        if (!s->how.grads_away) {
            p->param->g.p = arena_take(here, grad_bytes(p));
            dev_fill(dev, p->param->g.p, 0, grad_bytes(p));
        }
        if (p->state.paged) continue;
        const size_t bytes = state_bytes(&p->state);
        char *base = arena_take(here, bytes);
        dev_fill(dev, base, 0, bytes);
        lay_out(&p->state, base, 0);
    }
}

/* Masters from weights, or weights from masters. */
static void copy_masters(struct states *s, bool from_weights, const struct kern *k, struct kctx *kc)
{
    for (int b = 0; b < s->blocks; b++) {
        if (s->moments.n) lay_out_block(s, b, pager_next(&s->moments));
        for (int i = 0; i < s->n; i++) {
            const struct trained *p = &s->p[i];
            if (!p->state.has_master || p->state.block != b) continue;
            if (from_weights) k->cast(kc, p->state.master, p->param->w);
            else k->cast(kc, p->param->w, p->state.master);
        }
        if (s->moments.n) pager_done(&s->moments, from_weights);
    }
}

int states_fill(struct states *s, struct arena *here, struct dev *dev, const struct kern *k, struct kctx *kc,
                struct err *e)
{
    int rc = 0;
    take_here(s, here, dev);
    const bool pageable = s->how.pageable;
    if (s->how.grads_away)
        TRY(pager_open(&s->grads, dev, s->grad_bytes, s->blocks, PAGER_PLACES, pageable, e));
    if (s->how.moments_away)
        TRY(pager_open(&s->moments, dev, s->moment_bytes, s->blocks, PAGER_PLACES, pageable, e));
    if (s->moments.n) pager_begin(&s->moments, PAGER_CLEAR);
    copy_masters(s, true, k, kc);
out:
    return rc;
}

void states_fini(struct states *s)
{
    pager_close(&s->grads);
    pager_close(&s->moments);
    free(s->grad_bytes);
    *s = (struct states){ 0 };
}

/* ---- the way back */

void states_back_begin(struct states *s)
{
    if (!s->how.grads_away) return;
    pager_begin(&s->grads, s->fresh ? PAGER_CLEAR : PAGER_READ);
    s->fresh = false;
    lay_out_grads(s, 0, pager_next(&s->grads));
}

void states_back_done(struct states *s, const struct kern *k, struct kctx *kc, int block)
{
    while (s->how.grads_away && s->grads.now <= block) {
        const int now = s->grads.now;
        for (int i = 0; i < s->n; i++)
            if (s->p[i].state.block == now) k->sumsq(kc, tensor_slice(s->squares, i, 1), s->p[i].param->g);
        pager_done(&s->grads, true);
        if (now + 1 == s->blocks) break;
        lay_out_grads(s, now + 1, pager_next(&s->grads));
    }
}

/* ---- the optimiser */

void states_update_begin(struct states *s)
{
    if (s->how.grads_away) pager_begin(&s->grads, PAGER_READ);
    if (s->how.moments_away) pager_begin(&s->moments, PAGER_READ);
}

void states_update_next(struct states *s, int block)
{
    if (s->how.grads_away) lay_out_grads(s, block, pager_next(&s->grads));
    if (s->how.moments_away) lay_out_block(s, block, pager_next(&s->moments));
}

void states_update_done(struct states *s)
{
    if (s->how.grads_away) pager_done(&s->grads, false);
    if (s->how.moments_away) pager_done(&s->moments, true);
    s->fresh = true;
}

/* ---- checkpoints */

void states_round(struct states *s, const struct kern *k, struct kctx *kc)
{
    if (s->moments.n) pager_begin(&s->moments, PAGER_READ);
    copy_masters(s, false, k, kc);
}

struct tensor states_rest(struct states *s, int i, struct tensor t)
{
    const struct trained_state *is = &s->p[i].state;
    if (!is->paged) return t;
    struct trained_state rest = *is;
    size_t at = 0;
    char *base = pager_host(&s->moments, is->block);
    for (int k = 0; k < i; k++)
        if (s->p[k].state.paged && s->p[k].state.block == is->block) at += state_bytes(&s->p[k].state);
    lay_out(&rest, base, at);
    const struct tensor *const visits[] = { &is->master, &is->m, &is->v, &is->ms, &is->vs };
    const struct tensor *const rests[] = { &rest.master, &rest.m, &rest.v, &rest.ms, &rest.vs };
    for (int k = 0; k < 5; k++)
        if (visits[k]->p == t.p) return *rests[k];
    return t;
}

void states_wait(struct states *s)
{
    if (s->moments.n) pager_host(&s->moments, 0);
}

bool states_on_host(const struct states *s, const void *p)
{
    const char *at = p;
    return s->moments.n && at >= s->moments.host && at < s->moments.host + s->moments.at[s->moments.n];
}
