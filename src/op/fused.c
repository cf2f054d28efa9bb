/* Composites: one kernel where the table has it and nobody asks for gradients or adapters, else made of the ops. See
 * op.h. */
#include "op/op.h"

#include <math.h>

/* May a norm and these linears be one kernel? Weights that are read together have one type. A linear that serves
 * adapters never is, whether this step asks for one or not: its rows would not have the same bits in other company. */
static bool is_fused(const struct op_ctx *o, const struct linear *const *l, int n)
{
    if (o->tape || !o->kc->decode) return false;
    for (int i = 0; i < n; i++)
        if (l[i]->lora || l[i]->served || l[i]->w.w.type != l[0]->w.w.type || l[i]->w.w.nd != 2) return false;
    return true;
}

/* May these linears be one kernel? As above, and for prompts: of one shape and type, biases there or not. Not in
 * training, where layers that run again have a tape then and must have the same bits. */
static bool are_alike(const struct op_ctx *o, const struct linear *const *l, int n)
{
    if (o->tape || o->kc->training || o->kc->decode) return false;
    for (int i = 0; i < n; i++)
        if (l[i]->lora || l[i]->served || l[i]->w.w.type != l[0]->w.w.type || !l[i]->b.w.p != !l[0]->b.w.p ||
            l[i]->b.w.type != l[0]->b.w.type || !tensor_same_shape(l[i]->w.w, l[0]->w.w))
            return false;
    return true;
}

static void linears(struct op_ctx *o, struct tensor *y, struct op_read h, const struct linear *const *l, int n)
{
    struct tensor w[3], b[3], x = h.x;
    if (!o->k->matmul_each || !are_alike(o, l, n)) {
        op_linear_each(o, y, h, l, n, (struct tensor){ 0 });
        return;
    }
    const int64_t rows = tensor_rows(x);
    struct tensor all = op_new(o, false, n * rows, l[0]->w.w.n[0]); /* at equal distances */
    OP_CHECK(l[0]->w.w.nd == 2 && tensor_cols(x) == l[0]->w.w.n[1], x, l[0]->w.w);
    for (int i = 0; i < n; i++) {
        y[i] = tensor_slice(all, i * rows, rows);
        w[i] = l[i]->w.w;
        b[i] = l[i]->b.w;
    }
    OP_RUN(o, matmul_each, y, x, w, b, n);
}

void op_linears(struct op_ctx *o, struct tensor *y, struct tensor x, const struct linear *const *l, int n)
{
    linears(o, y, (struct op_read){ .x = x }, l, n);
}

struct op_qkv op_norm_qkv(struct op_ctx *o, struct tensor x, const struct param *norm, float eps,
                          const struct linear *q, const struct linear *k, const struct linear *v)
{
    const struct linear *const l[3] = { q, k, v };
    struct tensor y[3];
    if (!o->k->norm_matmul || !is_fused(o, l, 3)) {
        linears(o, y, op_rmsnorm_for(o, x, norm, eps, l, 3), l, 3);
        return (struct op_qkv){ y[0], y[1], y[2] };
    }
    struct tensor w[3], b[3];
    for (int i = 0; i < 3; i++) {
        OP_CHECK(tensor_cols(x) == l[i]->w.w.n[1], x, l[i]->w.w);
        y[i] = op_new(o, false, tensor_rows(x), l[i]->w.w.n[0]);
        w[i] = l[i]->w.w;
        b[i] = l[i]->b.w;
    }
    OP_RUN(o, norm_matmul, y, x, norm->w, eps, w, b, 3);
    return (struct op_qkv){ y[0], y[1], y[2] };
}

struct tensor op_norm_glu_add(struct op_ctx *o, struct tensor x, const struct param *norm, float eps,
                              const struct linear *gate, const struct linear *up, const struct linear *down,
                              int place)
{
    const struct linear *const l[2] = { gate, up };
    if (!o->k->norm_glu || !is_fused(o, l, 2) || gate->b.w.p || up->b.w.p) {
        struct tensor y[2], z;
        linears(o, y, op_rmsnorm_for(o, x, norm, eps, l, 2), l, 2);
        const struct op_read h = op_swiglu_for(o, y[0], y[1], &down, 1);
        const bool joins = op_joins(o);
        op_linear_each(o, &z, h, &down, 1, joins ? (struct tensor){ 0 } : x);
        return joins ? op_join(o, z, x, place) : z;
    }
    OP_CHECK(tensor_cols(x) == gate->w.w.n[1] && tensor_same_shape(gate->w.w, up->w.w), x, gate->w.w);
    struct tensor h = op_new(o, false, tensor_rows(x), gate->w.w.n[0]);
    OP_RUN(o, norm_glu, h, x, norm->w, eps, gate->w.w, up->w.w);
    return op_linear_add(o, h, down, x);
}

void op_rope_store(struct op_ctx *o, struct op_qkv *h, struct tensor pos, struct tensor table, struct tensor k_store,
                   struct tensor v_store, struct tensor idx)
{
    if (o->k->rope_store && !o->tape) {
        OP_CHECK(tensor_count(pos) == tensor_rows(h->q) && tensor_count(idx) == tensor_rows(h->k), h->q, pos);
        OP_CHECK(tensor_cols(h->k) == tensor_cols(k_store), h->k, k_store);
        OP_RUN(o, rope_store, h->q, h->k, h->v, pos, table, k_store, v_store, idx);
    } else {
        h->q = op_rope(o, h->q, pos, table);
        h->k = op_rope(o, h->k, pos, table);
        op_store(o, k_store, idx, h->k);
        op_store(o, v_store, idx, h->v);
    }
    h->k = k_store;
    h->v = v_store;
}

struct tensor op_rope_attention(struct op_ctx *o, struct op_qkv *h, struct tensor pos, struct tensor table,
                                struct tensor k_store, struct tensor v_store, struct tensor idx, struct tensor range,
                                struct tensor pages, int heads)
{
    const struct tensor q = h->q, k = h->k, v = h->v;
    if (!o->k->rope_attn || o->tape || !o->kc->decode) {
        op_rope_store(o, h, pos, table, k_store, v_store, idx);
        return op_attention(o, h->q, h->k, h->v, range, pages, heads);
    }
    OP_CHECK(tensor_count(pos) == tensor_rows(q) && tensor_count(idx) == tensor_rows(k), q, pos);
    OP_CHECK(tensor_cols(k) == tensor_cols(k_store) && tensor_same_shape(k, v), k, k_store);
    OP_CHECK(tensor_rows(range) == tensor_rows(q) && tensor_cols(range) == (pages.p ? 3 : 2), q, range);
    OP_CHECK(tensor_cols(q) == heads * tensor_cols(table) && tensor_cols(q) % tensor_cols(k) == 0, q, table);
    const struct tensor y = op_new(o, false, tensor_rows(q), tensor_cols(q));
    OP_RUN(o, rope_attn, y, q, k, v, pos, table, k_store, v_store, idx, range, pages,
           (float)(1 / sqrt((double)tensor_cols(table))));
    return y;
}
