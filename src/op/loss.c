/* Cross entropy of a language model. */
#include "op/op.h"

static void xent_bwd(struct op_ctx *o, const struct rec *r)
{
    OP_RUN(o, xent_bwd, tape_grad(o, r->x[0]), tape_grad(o, r->y), r->x[0], r->saved[0], r->saved[1], r->f);
}

struct tensor op_xent(struct op_ctx *o, struct tensor logits, struct tensor target, float smooth)
{
    OP_CHECK(tensor_count(target) == tensor_rows(logits), logits, target);
    struct tensor loss = op_new(o, logits.id != 0, tensor_rows(logits), 1);
    struct tensor lse = op_new_1d(o, op_stat_type(o), tensor_rows(logits));
    loss.nd = 1;
    OP_RUN(o, xent_fwd, loss, lse, logits, target, smooth);
    struct rec *r = op_record(o, xent_bwd, loss);
    if (r) {
        r->x[0] = logits;
        r->saved[0] = lse;
        r->saved[1] = target;
        r->f = smooth;
    }
    return loss;
}

struct tensor op_linear_xent(struct op_ctx *o, struct tensor x, const struct linear *l, struct tensor target,
                             float smooth, struct tensor dloss, int chunk)
{
    const int64_t rows = tensor_rows(x), V = l->w.w.n[0];
    const struct tensor none = { 0 };
    OP_CHECK(tensor_count(target) == rows && tensor_cols(x) == l->w.w.n[1] && !l->lora, x, target);
    struct tensor loss = op_new_1d(o, op_stat_type(o), rows), dx = tape_grad(o, x);
    struct tensor dw = o->tape ? param_grad(&l->w) : none, db = o->tape ? param_grad(&l->b) : none;
    const bool back = dx.p || dw.p || db.p;
    for (int64_t from = 0; from < rows; from += chunk) {
        const int64_t n = rows - from < chunk ? rows - from : chunk;
        const size_t mark = arena_mark(o->act);
        struct tensor logits = op_new(o, false, n, V), lse = op_new_1d(o, op_stat_type(o), n);
        struct tensor xs = tensor_slice(x, from, n), want = tensor_slice(target, from, n);
        OP_RUN(o, matmul, logits, xs, l->w.w, l->b.w, none);
        OP_RUN(o, xent_fwd, tensor_slice(loss, from, n), lse, logits, want, smooth);
        if (back) {
            struct tensor dlogits = op_new(o, false, n, V);
            const struct tensor fresh = op_fresh(o, dlogits);
            OP_RUN(o, xent_bwd, fresh, tensor_slice(dloss, from, n), logits, lse, want, smooth);
            if (dx.p) OP_RUN(o, matmul_dx, tensor_slice(dx, from, n), dlogits, l->w.w);
            if (dw.p || db.p) OP_RUN(o, matmul_dw, dw, db, dlogits, xs);
        }
        arena_rewind(o->act, mark);
    }
    return loss;
}
