/* Activation functions and addition. */
#include "op/op.h"

static void swiglu_bwd(struct op_ctx *o, const struct rec *r)
{
    const struct tensor dg = tape_grad_fresh(o, r->x[0]), du = tape_grad_fresh(o, r->x[1]);
    OP_RUN(o, swiglu_bwd, dg, du, tape_grad(o, r->y), r->x[0], r->x[1]);
}

struct op_read op_swiglu_for(struct op_ctx *o, struct tensor g, struct tensor u, const struct linear *const *l, int n)
{
    OP_CHECK(tensor_same_shape(g, u), g, u);
    const struct lora *d = o->k->swiglu_drop ? op_drop_alike(o, l, n, tensor_cols(g)) : NULL;
    const struct op_read h = op_read_new(o, g.id || u.id, tensor_rows(g), tensor_cols(g), d, l, n);
    const struct tensor y = h.x, plain = h.unread ? (struct tensor){ 0 } : y;
    if (d) OP_RUN(o, swiglu_drop, plain, h.dropped, g, u, d->drop, o->drop_key ^ d->id);
    else if (!h.unread) OP_RUN(o, swiglu_fwd, y, g, u);
    struct rec *r = op_record(o, swiglu_bwd, y);
    if (r) {
        r->x[0] = g;
        r->x[1] = u;
    }
    return h;
}

struct tensor op_swiglu(struct op_ctx *o, struct tensor g, struct tensor u)
{
    return op_swiglu_for(o, g, u, NULL, 0).x;
}

static void gelu_bwd(struct op_ctx *o, const struct rec *r)
{
    OP_RUN(o, gelu_bwd, tape_grad(o, r->x[0]), tape_grad(o, r->y), r->x[0]);
}

struct tensor op_gelu(struct op_ctx *o, struct tensor x)
{
    struct tensor y = op_new(o, x.id, tensor_rows(x), tensor_cols(x));
    OP_RUN(o, gelu_fwd, y, x);
    struct rec *r = op_record(o, gelu_bwd, y);
    if (r) r->x[0] = x;
    return y;
}

static void quick_gelu_bwd(struct op_ctx *o, const struct rec *r)
{
    OP_RUN(o, quick_gelu_bwd, tape_grad(o, r->x[0]), tape_grad(o, r->y), r->x[0]);
}

struct tensor op_quick_gelu(struct op_ctx *o, struct tensor x)
{
    struct tensor y = op_new(o, x.id, tensor_rows(x), tensor_cols(x));
    OP_RUN(o, quick_gelu_fwd, y, x);
    struct rec *r = op_record(o, quick_gelu_bwd, y);
    if (r) r->x[0] = x;
    return y;
}

static void add_bwd(struct op_ctx *o, const struct rec *r)
{
    for (int i = 0; i < 2; i++) {
        struct tensor dx = tape_grad(o, r->x[i]);
        if (dx.p) OP_RUN(o, axpy, dx, tape_grad(o, r->y), 1);
    }
}

struct tensor op_add(struct op_ctx *o, struct tensor a, struct tensor b)
{
    OP_CHECK(tensor_same_shape(a, b), a, b);
    struct tensor y = op_new(o, a.id || b.id, tensor_rows(a), tensor_cols(a));
    OP_RUN(o, add, y, a, b);
    struct rec *r = op_record(o, add_bwd, y);
    if (r) {
        r->x[0] = a;
        r->x[1] = b;
    }
    return y;
}
