/* RMSNorm and LayerNorm. */
#include "op/op.h"

static void rmsnorm_bwd(struct op_ctx *o, const struct rec *r)
{
    const struct param *w = r->arg;
    OP_RUN(o, rmsnorm_bwd, tape_grad(o, r->x[0]), param_grad(w), tape_grad(o, r->y), r->x[0], w->w, r->saved[0]);
}

struct op_read op_rmsnorm_for(struct op_ctx *o, struct tensor x, const struct param *w, float eps,
                              const struct linear *const *l, int n)
{
    OP_CHECK(tensor_count(w->w) == tensor_cols(x), x, w->w);
    const struct lora *d = o->k->rmsnorm_drop ? op_drop_alike(o, l, n, tensor_cols(x)) : NULL;
    const struct op_read h = op_read_new(o, x.id || param_trains(w), tensor_rows(x), tensor_cols(x), d, l, n);
    const struct tensor rstd = op_new_1d(o, op_stat_type(o), tensor_rows(x));
    const struct tensor y = h.x, plain = h.unread ? (struct tensor){ 0 } : y;
    if (d) OP_RUN(o, rmsnorm_drop, plain, h.dropped, rstd, x, w->w, eps, d->drop, o->drop_key ^ d->id);
    else OP_RUN(o, rmsnorm_fwd, y, rstd, x, w->w, eps);
    struct rec *r = op_record(o, rmsnorm_bwd, y);
    if (r) {
        r->x[0] = x;
        r->saved[0] = rstd;
        r->arg = w;
    }
    return h;
}

struct tensor op_rmsnorm(struct op_ctx *o, struct tensor x, const struct param *w, float eps)
{
    return op_rmsnorm_for(o, x, w, eps, NULL, 0).x;
}

static void layernorm_bwd(struct op_ctx *o, const struct rec *r)
{
    const struct layernorm *n = r->arg;
    OP_RUN(o, layernorm_bwd, tape_grad(o, r->x[0]), param_grad(&n->w), param_grad(&n->b), tape_grad(o, r->y), r->x[0],
           n->w.w, r->saved[0], r->saved[1]);
}

struct tensor op_layernorm(struct op_ctx *o, struct tensor x, const struct layernorm *n, float eps)
{
    OP_CHECK(tensor_count(n->w.w) == tensor_cols(x) && tensor_count(n->b.w) == tensor_cols(x), x, n->w.w);
    struct tensor y = op_new(o, x.id || param_trains(&n->w) || param_trains(&n->b), tensor_rows(x), tensor_cols(x));
    struct tensor mean = op_new_1d(o, op_stat_type(o), tensor_rows(x));
    struct tensor rstd = op_new_1d(o, op_stat_type(o), tensor_rows(x));
    OP_RUN(o, layernorm_fwd, y, mean, rstd, x, n->w.w, n->b.w, eps);
    struct rec *r = op_record(o, layernorm_bwd, y);
    if (r) {
        r->x[0] = x;
        r->saved[0] = mean;
        r->saved[1] = rstd;
        r->arg = n;
    }
    return y;
}
