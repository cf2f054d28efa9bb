/* Rotary positions and attention. */
#include <math.h>

#include "op/op.h"

static void rope_bwd(struct op_ctx *o, const struct rec *r)
{
    OP_RUN(o, rope, tape_grad(o, r->y), r->saved[0], r->saved[1], -1);
}

/* In place, so input and output share the gradient slot: the way back turns that gradient back by the same angle. */
struct tensor op_rope(struct op_ctx *o, struct tensor x, struct tensor pos, struct tensor table)
{
    OP_CHECK(tensor_count(pos) == tensor_rows(x), x, pos);
    OP_CHECK(tensor_cols(x) % tensor_cols(table) == 0, x, table);
    if (!op_has(o)) OP_RUN(o, rope, x, pos, table, 1); /* what a product left is dear: it has been rotated */
    struct rec *r = op_record(o, rope_bwd, x);
    if (r) {
        r->saved[0] = pos;
        r->saved[1] = table;
    }
    return x;
}

static void attention_bwd(struct op_ctx *o, const struct rec *r)
{
    struct tensor q = r->x[0], k = r->x[1], v = r->x[2];
    const struct tensor dq = tape_grad_fresh(o, q), dk = tape_grad_fresh(o, k), dv = tape_grad_fresh(o, v);
    OP_RUN(o, attn_bwd, dq, dk, dv, tape_grad(o, r->y), r->y, r->saved[0], q, k, v, r->saved[1], r->i, r->f);
}

struct tensor op_attention(struct op_ctx *o, struct tensor q, struct tensor k, struct tensor v, struct tensor range,
                           struct tensor pages, int heads)
{
    OP_CHECK(tensor_cols(q) % heads == 0 && tensor_same_shape(k, v), q, k);
    OP_CHECK(tensor_rows(range) == tensor_rows(q) && tensor_cols(range) == (pages.p ? 3 : 2), q, range);
    OP_CHECK(!pages.p || (pages.nd == 2 && tensor_rows(k) % KV_PAGE == 0), k, pages);
    int64_t head_size = tensor_cols(q) / heads;
    OP_CHECK(tensor_cols(k) % head_size == 0 && heads % (tensor_cols(k) / head_size) == 0, q, k);
    float scale = (float)(1 / sqrt((double)head_size));
    bool want = q.id || k.id || v.id;
    OP_CHECK(!want || !pages.p, q, pages); /* the backward knows no pages: a store is not trained through */
    struct tensor y = op_new_dear(o, want, o->type, tensor_rows(q), tensor_cols(q)), lse = { 0 };
    if (y.id || o->dear) lse = op_new_dear(o, false, op_stat_type(o), tensor_rows(q), heads);
    if (!op_has(o)) OP_RUN(o, attn_fwd, y, lse, q, k, v, range, pages, heads, scale);
    struct rec *r = op_record(o, attention_bwd, y);
    if (r) {
        r->x[0] = q;
        r->x[1] = k;
        r->x[2] = v;
        r->saved[0] = lse;
        r->saved[1] = range;
        r->i = heads;
        r->f = scale;
    }
    return y;
}

struct tensor op_attention_parts(struct op_ctx *o, struct tensor q, struct tensor k, struct tensor v,
                                 struct tensor range, int heads, int rows)
{
    const struct tensor none = { 0 };
    const int64_t n = tensor_rows(q), D = tensor_cols(q) / heads;
    if (!rows || rows >= n) return op_attention(o, q, k, v, range, none, heads);
    OP_CHECK(!o->tape && n % rows == 0 && tensor_same_shape(q, k) && tensor_same_shape(k, v), q, k);
    const struct tensor y = op_new(o, false, n, tensor_cols(q)), first = tensor_slice(range, 0, rows);
    for (int64_t i = 0; i < n; i += rows)
        OP_RUN(o, attn_fwd, tensor_slice(y, i, rows), none, tensor_slice(q, i, rows), tensor_slice(k, i, rows),
               tensor_slice(v, i, rows), first, none, heads, (float)(1 / sqrt((double)D)));
    return y;
}
