/* Composites: the default bodies. See op.h. */
#include "op/op.h"

struct op_qkv op_norm_qkv(struct op_ctx *o, struct tensor x, const struct param *norm, float eps,
                          const struct linear *q, const struct linear *k, const struct linear *v)
{
    struct tensor h = op_rmsnorm(o, x, norm, eps);
    return (struct op_qkv){ op_linear(o, h, q), op_linear(o, h, k), op_linear(o, h, v) };
}

struct tensor op_norm_glu_add(struct op_ctx *o, struct tensor x, const struct param *norm, float eps,
                              const struct linear *gate, const struct linear *up, const struct linear *down)
{
    struct tensor h = op_rmsnorm(o, x, norm, eps);
    return op_linear_add(o, op_swiglu(o, op_linear(o, h, gate), op_linear(o, h, up)), down, x);
}
