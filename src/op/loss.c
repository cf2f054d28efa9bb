/* Cross entropy of a language model. */
#include "op/op.h"

static void xent_bwd(struct op_ctx *o, const struct rec *r)
{
    OP_RUN(o, xent_bwd, tape_grad(o, r->x[0]), tape_grad(o, r->y), r->x[0], r->saved[0], r->saved[1]);
}

struct tensor op_xent(struct op_ctx *o, struct tensor logits, struct tensor target)
{
    OP_CHECK(tensor_count(target) == tensor_rows(logits), logits, target);
    struct tensor loss = op_new(o, logits.id != 0, tensor_rows(logits), 1);
    struct tensor lse = op_new_1d(o, o->type, tensor_rows(logits));
    loss.nd = 1;
    OP_RUN(o, xent_fwd, loss, lse, logits, target);
    struct rec *r = op_record(o, xent_bwd, loss);
    if (r) {
        r->x[0] = logits;
        r->saved[0] = lse;
        r->saved[1] = target;
    }
    return loss;
}
