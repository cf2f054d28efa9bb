/* linear: y = x W^T + b (+ res) (+ scale * (x A^T) B^T), forward and backward. */
#include "op/op.h"

static bool drops(const struct op_ctx *o, const struct lora *l) { return o->drop_key && l->drop > 0; }

/* What A reads: x, or a copy of it with elements dropped. The same on every call within a step. */
static struct tensor lora_input(struct op_ctx *o, const struct lora *l, struct tensor x)
{
    if (!drops(o, l)) return x;
    struct tensor y = op_new(o, false, tensor_rows(x), tensor_cols(x));
    OP_RUN(o, dropout, y, x, l->drop, o->drop_key ^ l->id);
    return y;
}

/* dB, dA and the part of dx that goes through the adapter; u = x A^T was kept. */
static void lora_bwd(struct op_ctx *o, const struct lora *l, struct tensor x, struct tensor u, struct tensor dy)
{
    struct tensor none = { 0 }, dx = tape_grad(o, x);
    size_t mark = arena_mark(o->act);
    struct tensor sdy = op_new(o, false, tensor_rows(dy), tensor_cols(dy));
    struct tensor du = op_new(o, false, tensor_rows(u), tensor_cols(u));
    OP_RUN(o, zero, sdy);
    OP_RUN(o, axpy, sdy, dy, l->scale);
    OP_RUN(o, zero, du);
    OP_RUN(o, matmul_dx, du, sdy, l->b.w);
    if (param_trains(&l->b)) OP_RUN(o, matmul_dw, l->b.g, none, sdy, u);
    struct tensor in = param_trains(&l->a) ? lora_input(o, l, x) : none;
    if (in.p) OP_RUN(o, matmul_dw, l->a.g, none, du, in);
    if (dx.p && drops(o, l)) {
        struct tensor t = op_new(o, false, tensor_rows(dx), tensor_cols(dx));
        OP_RUN(o, zero, t);
        OP_RUN(o, matmul_dx, t, du, l->a.w);
        OP_RUN(o, dropout, t, t, l->drop, o->drop_key ^ l->id);
        OP_RUN(o, axpy, dx, t, 1);
    } else if (dx.p) {
        OP_RUN(o, matmul_dx, dx, du, l->a.w);
    }
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
    if (l->lora) lora_bwd(o, l->lora, x, r->saved[0], dy);
}

static bool linear_trains(const struct linear *l)
{
    return param_trains(&l->w) || param_trains(&l->b) ||
           (l->lora && (param_trains(&l->lora->a) || param_trains(&l->lora->b)));
}

/* y += B (scale * A x): the scale goes onto the small tensor; u = A x is returned, for the way back. */
static struct tensor lora_add(struct op_ctx *o, struct tensor y, struct tensor x, const struct lora *l)
{
    struct tensor none = { 0 }, u = op_new(o, false, tensor_rows(x), l->a.w.n[0]);
    size_t mark = arena_mark(o->act);
    struct tensor su = op_new(o, false, tensor_rows(x), tensor_cols(u)), in = lora_input(o, l, x);
    OP_RUN(o, matmul, u, in, l->a.w, none, none);
    OP_RUN(o, zero, su);
    OP_RUN(o, axpy, su, u, l->scale);
    OP_RUN(o, matmul, y, su, l->b.w, none, y);
    arena_rewind(o->act, mark);
    return u;
}

/* Rows of requests that asked for an adapter. */
static void served_add(struct op_ctx *o, struct tensor y, struct tensor x, const struct linear *l)
{
    for (int i = 0; i < o->n_spans; i++) {
        const struct op_span *s = &o->span[i];
        const struct lora *a = &l->served[s->number];
        if (!a->a.w.p) continue;
        size_t mark = arena_mark(o->act);
        lora_add(o, tensor_slice(y, s->from, s->to - s->from), tensor_slice(x, s->from, s->to - s->from), a);
        arena_rewind(o->act, mark);
    }
}

struct tensor op_linear_add(struct op_ctx *o, struct tensor x, const struct linear *l, struct tensor res)
{
    struct tensor w = l->w.w, u = { 0 };
    int64_t rows = tensor_rows(x);
    OP_CHECK(w.nd == 2 && tensor_cols(x) == w.n[1], x, w);
    OP_CHECK(!res.p || (tensor_rows(res) == rows && tensor_cols(res) == w.n[0]), res, w);
    struct tensor y = res;
    if (!o->overwrite || !res.p) y = op_new(o, x.id || res.id || linear_trains(l), rows, w.n[0]);
    OP_RUN(o, matmul, y, x, w, l->b.w, res);
    if (l->lora) u = lora_add(o, y, x, l->lora);
    if (l->served && o->n_spans) served_add(o, y, x, l);
    struct rec *r = op_record(o, linear_bwd, y);
    if (r) {
        r->x[0] = x;
        r->x[1] = res;
        r->saved[0] = u;
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
