/* Rows by index: embedding, gathering, splicing pictures into text, caches; and patches of pictures. */
#include "op/op.h"

static void embed_bwd(struct op_ctx *o, const struct rec *r)
{
    const struct param *w = r->arg;
    OP_RUN(o, rows_put_add, w->g, r->saved[0], tape_grad(o, r->y));
}

struct tensor op_embed(struct op_ctx *o, const struct param *w, struct tensor idx)
{
    struct tensor y = op_new(o, param_trains(w), tensor_count(idx), tensor_cols(w->w));
    OP_RUN(o, rows_get, y, w->w, idx);
    struct rec *r = op_record(o, embed_bwd, y);
    if (r) {
        r->saved[0] = idx;
        r->arg = w;
    }
    return y;
}

static void gather_bwd(struct op_ctx *o, const struct rec *r)
{
    OP_RUN(o, rows_put_add, tape_grad(o, r->x[0]), r->saved[0], tape_grad(o, r->y));
}

struct tensor op_gather(struct op_ctx *o, struct tensor x, struct tensor idx)
{
    struct tensor y = op_new(o, x.id, tensor_count(idx), tensor_cols(x));
    OP_RUN(o, rows_get, y, x, idx);
    struct rec *r = op_record(o, gather_bwd, y);
    if (r) {
        r->x[0] = x;
        r->saved[0] = idx;
    }
    return y;
}

/* dx gets the rows that were put in; dy passes through everywhere else. */
static void splice_bwd(struct op_ctx *o, const struct rec *r)
{
    struct tensor g = tape_grad(o, r->y), dx = tape_grad(o, r->x[1]), dy = tape_grad(o, r->x[0]), idx = r->saved[0];
    if (dx.p) OP_RUN(o, rows_get_add, dx, g, idx);
    if (!dy.p) return;
    size_t mark = arena_mark(o->act);
    struct tensor zero = op_new(o, false, tensor_count(idx), tensor_cols(g));
    OP_RUN(o, zero, zero);
    OP_RUN(o, rows_put, g, idx, zero); /* g is not needed again */
    OP_RUN(o, axpy, dy, g, 1);
    arena_rewind(o->act, mark);
}

struct tensor op_splice(struct op_ctx *o, struct tensor y, struct tensor x, struct tensor idx)
{
    OP_CHECK(tensor_cols(x) == tensor_cols(y) && tensor_count(idx) == tensor_rows(x), y, x);
    struct tensor z = op_new(o, y.id || x.id, tensor_rows(y), tensor_cols(y));
    OP_RUN(o, cast, z, y);
    OP_RUN(o, rows_put, z, idx, x);
    struct rec *r = op_record(o, splice_bwd, z);
    if (r) {
        r->x[0] = y;
        r->x[1] = x;
        r->saved[0] = idx;
    }
    return z;
}

void op_store(struct op_ctx *o, struct tensor cache, struct tensor idx, struct tensor x)
{
    OP_CHECK(!o->tape && tensor_cols(cache) == tensor_cols(x), cache, x);
    OP_RUN(o, rows_put, cache, idx, x);
}

static void patchify_bwd(struct op_ctx *o, const struct rec *r)
{
    OP_RUN(o, patchify_bwd, tape_grad(o, r->x[0]), tape_grad(o, r->y), r->i);
}

struct tensor op_patchify(struct op_ctx *o, struct tensor x, int patch)
{
    OP_CHECK(x.nd == 4 && x.n[1] == 3 && x.n[2] == x.n[3] && x.n[2] >= patch, x, x);
    int64_t g = x.n[2] / patch;
    struct tensor y = op_new(o, x.id, x.n[0] * g * g, 3 * patch * patch);
    OP_RUN(o, patchify_fwd, y, x, patch);
    struct rec *r = op_record(o, patchify_bwd, y);
    if (r) {
        r->x[0] = x;
        r->i = patch;
    }
    return y;
}

void op_choose(struct op_ctx *o, struct tensor chosen, struct tensor logits, struct tensor how)
{
    OP_CHECK(tensor_rows(logits) == tensor_rows(how) && logits.type == DT_F32, logits, how);
    OP_RUN(o, choose, chosen, logits, how);
}

struct tensor op_tokens(struct op_ctx *o, struct tensor chosen, struct tensor idx)
{
    struct tensor y = op_new_1d(o, DT_I32, tensor_count(idx));
    OP_RUN(o, tokens_get, y, chosen, idx);
    return y;
}
