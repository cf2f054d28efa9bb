/* linear: y = x W^T + b (+ res) (+ scale * (x A^T) B^T), forward and backward. */
#include "op/op.h"

static bool drops(const struct op_ctx *o, const struct lora *l) { return o->drop_key && l->drop > 0; }

static void dropout_bwd(struct op_ctx *o, const struct rec *r)
{
    OP_RUN(o, dropout_bwd, tape_grad(o, r->x[0]), tape_grad(o, r->y), r->f, r->key);
}

/* x with elements dropped. Adapters of one id that read the same x have it from the first of them. */
static struct tensor dropped(struct op_ctx *o, const struct lora *l, struct tensor x)
{
    struct op_dropped *d = &o->dropped;
    if (d->on && d->x == x.p && d->id == l->id) return d->y;
    struct tensor y = op_new(o, x.id != 0, tensor_rows(x), tensor_cols(x));
    OP_RUN(o, dropout, y, x, l->drop, o->drop_key ^ l->id);
    struct rec *r = op_record(o, dropout_bwd, y);
    if (r) {
        r->x[0] = x;
        r->f = l->drop;
        r->key = o->drop_key ^ l->id;
    }
    if (d->on) *d = (struct op_dropped){ true, x.p, y, l->id };
    return y;
}

/* y = the adapter's scale times x: all that is scaled is as narrow as the adapter. */
static void scale_to(struct op_ctx *o, const struct lora *l, struct tensor y, struct tensor x)
{
    OP_RUN(o, zero, y);
    OP_RUN(o, axpy, y, x, l->scale);
}

/* scale * A in: what B reads, and the way back needs. */
static struct tensor lora_down(struct op_ctx *o, struct tensor in, const struct lora *l)
{
    const struct tensor none = { 0 };
    struct tensor su = op_new_dear(o, false, o->type, tensor_rows(in), l->a.w.n[0]);
    if (op_has(o)) return su;
    const size_t mark = arena_mark(o->act);
    struct tensor u = op_new(o, false, tensor_rows(in), tensor_cols(su));
    OP_RUN(o, matmul, u, in, l->a.w, none, none);
    scale_to(o, l, su, u);
    arena_rewind(o->act, mark);
    return su;
}

/* dB, dA and the gradient of `in`; su is lora_down's. */
static void lora_bwd(struct op_ctx *o, const struct lora *l, struct tensor in, struct tensor su, struct tensor dy)
{
    struct tensor none = { 0 }, din = tape_grad(o, in);
    const size_t mark = arena_mark(o->act);
    struct tensor t = op_new(o, false, tensor_rows(su), tensor_cols(su));
    struct tensor du = op_new(o, false, tensor_rows(su), tensor_cols(su));
    OP_RUN(o, zero, t);
    OP_RUN(o, matmul_dx, t, dy, l->b.w);
    scale_to(o, l, du, t);
    if (param_trains(&l->b)) OP_RUN(o, matmul_dw, l->b.g, none, dy, su);
    if (param_trains(&l->a)) OP_RUN(o, matmul_dw, l->a.g, none, du, in);
    if (din.p) OP_RUN(o, matmul_dx, din, du, l->a.w);
    arena_rewind(o->act, mark);
}

static void linear_bwd(struct op_ctx *o, const struct rec *r)
{
    const struct linear *l = r->arg;
    struct tensor x = r->x[0], dy = tape_grad(o, r->y), dx = tape_grad(o, x), dres = tape_grad(o, r->x[1]);
    struct tensor dw = param_grad(&l->w), db = param_grad(&l->b);
    if (dres.p) OP_RUN(o, axpy, dres, dy, 1);
    if (dx.p) OP_RUN(o, matmul_dx, dx, dy, l->w.w);
    if (dw.p || db.p) OP_RUN(o, matmul_dw, dw, db, dy, x);
    if (l->lora) lora_bwd(o, l->lora, r->x[2], r->saved[0], dy);
}

static bool linear_trains(const struct linear *l)
{
    return param_trains(&l->w) || param_trains(&l->b) ||
           (l->lora && (param_trains(&l->lora->a) || param_trains(&l->lora->b)));
}

/* y = x w^T + b + res; nothing where it is there, and put off where op_checkpoint asks for it. */
static void product(struct op_ctx *o, struct tensor y, struct tensor x, struct tensor w, struct tensor b,
                    struct tensor res)
{
    if (op_has(o)) return;
    if (!o->puts_off) OP_RUN(o, matmul, y, x, w, b, res);
    else op_put_off(o, (struct op_late){ y, x, w, b, res });
}

/* Rows of requests that asked for an adapter. */
static void served_add(struct op_ctx *o, struct tensor y, struct tensor x, const struct linear *l)
{
    for (int i = 0; i < o->n_spans; i++) {
        const struct op_span *s = &o->span[i];
        const struct lora *a = &l->served[s->number];
        if (!a->a.w.p) continue;
        const size_t mark = arena_mark(o->act);
        const struct tensor none = { 0 }, rows = tensor_slice(y, s->from, s->to - s->from);
        product(o, rows, lora_down(o, tensor_slice(x, s->from, s->to - s->from), a), a->b.w, none, rows);
        arena_rewind(o->act, mark);
    }
}

struct tensor op_linear_add(struct op_ctx *o, struct tensor x, const struct linear *l, struct tensor res)
{
    struct tensor w = l->w.w, su = { 0 }, in = x, none = { 0 };
    int64_t rows = tensor_rows(x);
    OP_CHECK(w.nd == 2 && tensor_cols(x) == w.n[1], x, w);
    OP_CHECK(!res.p || (tensor_rows(res) == rows && tensor_cols(res) == w.n[0]), res, w);
    if (o->n_late) op_run_late(o); /* x may be of it */
    if (l->lora && drops(o, l->lora)) in = dropped(o, l->lora, x);
    struct tensor y = res;
    if (!o->overwrite || !res.p) y = op_new_dear(o, x.id || res.id || linear_trains(l), o->type, rows, w.n[0]);
    if (l->lora) su = lora_down(o, in, l->lora);
    product(o, y, x, w, l->b.w, res);
    if (l->lora) product(o, y, su, l->lora->b.w, none, y);
    if (l->served && o->n_spans) served_add(o, y, x, l);
    struct rec *r = op_record(o, linear_bwd, y);
    if (r) {
        r->x[0] = x;
        r->x[1] = res;
        if (l->lora) r->x[2] = in;
        r->saved[0] = su;
        r->arg = l;
    }
    return y;
}

struct tensor op_linear(struct op_ctx *o, struct tensor x, const struct linear *l)
{
    return op_linear_add(o, x, l, (struct tensor){ 0 });
}

struct tensor op_linear_f32(struct op_ctx *o, struct tensor x, const struct linear *l)
{
    struct tensor none = { 0 }, y = tensor_2d(NULL, op_stat_type(o), tensor_rows(x), l->w.w.n[0]);
    OP_CHECK(!o->tape && !l->lora && tensor_cols(x) == l->w.w.n[1], x, l->w.w);
    y.p = arena_take(o->act, tensor_bytes(y));
    OP_RUN(o, matmul, y, x, l->w.w, l->b.w, none);
    return y;
}
