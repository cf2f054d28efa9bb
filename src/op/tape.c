/* The tape: gradient slots, records, the way back, and recomputation. See op.h. */
#include <stdlib.h>
#include <string.h>

#include "op/op.h"

struct tape *tape_new(void)
{
    struct tape *t = calloc(1, sizeof *t);
    if (!t) BUG("no memory for a tape");
    return t;
}

void tape_free(struct tape *t)
{
    if (!t) return;
    tape_free(t->inner);
    free(t->rec);
    free(t->g);
    free(t);
}

void tape_reset(struct tape *t)
{
    t->n = 0;
    t->n_id = 0;
}

/* Tapes grow while the first step is recorded and stay that size. */
static void *grown(void *p, int *max, size_t size)
{
    *max = *max ? *max * 2 : 256;
    p = realloc(p, (size_t)*max * size);
    if (!p) BUG("no memory for a tape of %d", *max);
    return p;
}

static int slot_new(struct tape *t, struct tensor g)
{
    if (t->n_id + 1 >= t->id_max) t->g = grown(t->g, &t->id_max, sizeof *t->g);
    t->g[++t->n_id] = g;
    return t->n_id;
}

void op_check_failed(const char *op, const char *what, struct tensor a, struct tensor b)
{
    char sa[TENSOR_SHAPE_MAX], sb[TENSOR_SHAPE_MAX];
    BUG("%s: not (%s) with %s and %s", op, what, tensor_shape(a, sa), tensor_shape(b, sb));
}

struct tensor op_new(struct op_ctx *o, bool want, int64_t rows, int64_t cols)
{
    struct tensor t = tensor_2d(NULL, o->type, rows, cols);
    t.p = arena_take(o->act, tensor_bytes(t));
    if (o->tape && want) t.id = slot_new(o->tape, (struct tensor){ 0 });
    return t;
}

struct tensor op_new_dear(struct op_ctx *o, bool want, enum dtype type, int64_t rows, int64_t cols)
{
    struct op_dear *d = o->dear;
    struct tensor t = tensor_2d(NULL, type, rows, cols);
    const size_t bytes = arena_aligned(tensor_bytes(t));
    if (!d) {
        t.p = arena_take(o->act, bytes);
    } else if (d->used == d->result_at && !d->passed) {
        t.p = d->result;
        d->passed = true;
    } else {
        t.p = d->base + d->used;
        d->used += bytes;
    }
    if (o->tape && want) t.id = slot_new(o->tape, (struct tensor){ 0 });
    return t;
}

struct tensor op_new_1d(struct op_ctx *o, enum dtype type, int64_t n)
{
    struct tensor t = tensor_1d(NULL, type, n);
    t.p = arena_take(o->act, tensor_bytes(t));
    return t;
}

struct rec *op_record(struct op_ctx *o, void (*bwd)(struct op_ctx *, const struct rec *), struct tensor y)
{
    struct tape *t = o->tape;
    if (!t || !y.id) return NULL;
    if (t->n == t->n_max) t->rec = grown(t->rec, &t->n_max, sizeof *t->rec);
    struct rec *r = &t->rec[t->n++];
    *r = (struct rec){ .bwd = bwd, .y = y };
    return r;
}

struct tensor tape_want(struct op_ctx *o, struct tensor x)
{
    if (o->tape && !x.id) x.id = slot_new(o->tape, (struct tensor){ 0 });
    return x;
}

/* The slot of x, which has one, with memory. */
static struct tensor *slot_of(struct op_ctx *o, struct tensor x)
{
    struct tensor *g = &o->tape->g[x.id];
    if (!g->p) {
        *g = x;
        g->type = (int8_t)o->type;
        g->id = TENSOR_FRESH;
        g->p = arena_take(o->act, tensor_bytes(*g));
    }
    return g;
}

struct tensor tape_grad(struct op_ctx *o, struct tensor x)
{
    if (!o->tape || !x.id) return (struct tensor){ 0 };
    struct tensor *g = slot_of(o, x);
    if (g->id == TENSOR_FRESH) {
        g->id = 0;
        OP_RUN(o, zero, *g);
    }
    return *g;
}

struct tensor tape_grad_fresh(struct op_ctx *o, struct tensor x)
{
    if (!o->tape || !x.id || !o->k->fresh) return tape_grad(o, x);
    struct tensor *g = slot_of(o, x), is = *g;
    g->id = 0;
    return is;
}

void tape_pass(struct op_ctx *o, struct tensor x, struct tensor dy)
{
    if (!x.id) return;
    struct tensor *g = &o->tape->g[x.id];
    const bool fresh = g->id == TENSOR_FRESH;
    if (!g->p) {
        *g = dy;
        return;
    }
    g->id = 0;
    if (fresh) OP_RUN(o, cast, *g, dy);
    else OP_RUN(o, axpy, *g, dy, 1);
}

struct tensor op_fresh(struct op_ctx *o, struct tensor t)
{
    if (!o->k->fresh) OP_RUN(o, zero, t);
    else t.id = TENSOR_FRESH;
    return t;
}

void tape_back(struct op_ctx *o)
{
    struct tape *t = o->tape;
    while (t->n > 0) {
        struct rec r = t->rec[--t->n]; /* a copy: recomputation may grow the tape */
        if (!t->g[r.y.id].p) continue; /* untouched: nothing after it wanted it */
        for (int i = 0; i < 3 && !r.fn; i++) /* a dry run evaluates no kernel's arguments */
            if (r.x[i].id) slot_of(o, r.x[i]);
        r.bwd(o, &r);
    }
}

/* The result of a block is not needed again once everything after it was walked back: the gradient of the block's input
 * takes its place, so that a chain of blocks keeps one tensor each and not two. */
static struct tensor grad_in_place(struct op_ctx *o, struct tensor x, struct tensor y)
{
    struct tensor *g = &o->tape->g[x.id];
    if (x.id && !g->p && tensor_same_shape(x, y)) {
        *g = y;
        g->id = TENSOR_FRESH;
    }
    return x.id ? *slot_of(o, x) : (struct tensor){ 0 };
}

void op_run_late(struct op_ctx *o)
{
    const int n = o->n_late;
    o->n_late = 0;
    for (int i = 0; i < n; i++) {
        const struct op_late *p = &o->late[i];
        OP_RUN(o, matmul, p->y, p->x, p->w, p->b, p->res);
    }
}

void op_put_off(struct op_ctx *o, struct op_late p)
{
    if (!o->dry) o->late[o->n_late++] = p;
}

/* ---- blocks */

static struct tensor run_block(struct op_ctx *o, op_block_fn fn, const void *arg, struct tensor x, struct tape *tape,
                               struct op_dear *dear)
{
    struct tape *outer = o->tape;
    o->tape = tape;
    o->dear = dear;
    const struct tensor y = fn(o, arg, x);
    o->tape = outer;
    o->dear = NULL;
    return y;
}

/* How much of the block is dear, beside its result, and where that is among it: runs it dry. */
static struct op_dear measure(struct op_ctx *o, op_block_fn fn, const void *arg, struct tensor x)
{
    struct op_dear d = { .base = (char *)ARENA_ALIGN, .result_at = SIZE_MAX };
    const size_t mark = arena_mark(o->act);
    const bool dry = o->dry;
    o->dry = true;
    const struct tensor y = run_block(o, fn, arg, x, NULL, &d);
    o->dry = dry;
    arena_rewind(o->act, mark);
    const size_t at = (size_t)((char *)y.p - d.base);
    if (at < d.used) {
        d.result_at = at;
        d.used -= arena_aligned(tensor_bytes(y));
    }
    return d;
}

static char *dear_open(struct op_ctx *o, enum op_kept kept, size_t bytes)
{
    if (kept != OP_KEPT_AWAY) return arena_take(o->act, bytes);
    if (!o->dry) return o->away->open(o->away->ctx, bytes, false);
    if (bytes > o->away_most) o->away_most = bytes;
    return (char *)ARENA_ALIGN;
}

/* Runs the block again on a tape of its own whose slots for input and output are the outer gradients themselves. */
static void checkpoint_bwd(struct op_ctx *o, const struct rec *r)
{
    const enum op_kept kept = (enum op_kept)r->i;
    struct tape *outer = o->tape;
    struct tensor x = r->x[0], dx = grad_in_place(o, x, r->y), dy = tape_grad(o, r->y);
    struct op_dear d = { .base = r->saved[0].p, .result_at = r->at, .result = r->y.p, .there = true };
    const bool away = kept == OP_KEPT_AWAY && !o->dry;
    if (!outer->inner) outer->inner = tape_new();
    struct tape *inner = outer->inner;
    const size_t mark = dx.p && dx.p != r->y.p ? arena_mark(o->act) : r->end;
    tape_reset(inner);
    x.id = dx.p ? slot_new(inner, dx) : 0;
    if (away) d.base = o->away->open(o->away->ctx, (size_t)r->saved[0].n[0], true);
    o->puts_off = kept == OP_KEPT_NONE;
    struct tensor y = run_block(o, r->fn, r->local, x, inner, kept == OP_KEPT_NONE ? NULL : &d);
    o->puts_off = false;
    o->n_late = 0; /* the block's result */
    o->tape = inner;
    if (y.id) {
        inner->g[y.id] = dy;
        tape_back(o);
    }
    tape_grad(o, x); /* zeros, if nothing was added */
    o->tape = outer;
    outer->g[r->x[0].id].id = 0;
    if (away) o->away->close(o->away->ctx, true);
    arena_rewind(o->act, mark); /* what was taken after the block is of no use any more */
}

static void keep_bwd(struct op_ctx *o, const struct rec *r) { arena_rewind(o->act, r->at); }

/* The input's gradient, in which the block's way back ends, lies before what is given back. */
static struct tensor keep_all(struct op_ctx *o, op_block_fn fn, const void *arg, struct tensor x)
{
    if (x.id) slot_of(o, x);
    struct rec *r = op_record(o, keep_bwd, x);
    if (r) r->at = arena_mark(o->act);
    return fn(o, arg, x);
}

struct tensor op_checkpoint(struct op_ctx *o, op_block_fn fn, const void *arg, size_t bytes, enum op_kept kept,
                            struct tensor x)
{
    ASSERT(bytes <= sizeof((struct rec *)0)->local);
    if (!o->tape) return fn(o, arg, x);
    if (kept == OP_KEPT_ALL) return keep_all(o, fn, arg, x);
    struct tensor y = op_new(o, true, tensor_rows(x), tensor_cols(x));
    struct rec *r = op_record(o, checkpoint_bwd, y);
    struct op_dear d = { 0 };
    memcpy(r->local, arg, bytes);
    r->fn = fn;
    r->x[0] = x;
    r->i = (int)kept;
    r->end = arena_mark(o->act);
    if (kept != OP_KEPT_NONE) {
        d = measure(o, fn, arg, x);
        r->at = d.result_at;
        r->saved[0] = tensor_1d(dear_open(o, kept, d.used), DT_U8, (int64_t)d.used);
        d = (struct op_dear){ .base = r->saved[0].p, .result_at = r->at, .result = y.p };
    }
    const size_t mark = arena_mark(o->act);
    const struct tensor z = run_block(o, fn, arg, x, NULL, kept == OP_KEPT_NONE ? NULL : &d);
    if (kept == OP_KEPT_AWAY && !o->dry) o->away->close(o->away->ctx, false);
    OP_CHECK(tensor_same_shape(y, z), y, z);
    if (z.p != y.p) OP_RUN(o, cast, y, z);
    arena_rewind(o->act, mark);
    return y;
}

static void mark_bwd(struct op_ctx *o, const struct rec *r)
{
    if (!o->dry) o->passed(o->passed_ctx, r->i);
}

void op_mark(struct op_ctx *o, struct tensor x, int i)
{
    struct rec *r = o->passed ? op_record(o, mark_bwd, x) : NULL;
    if (r) r->i = i;
}
