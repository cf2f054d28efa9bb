/* linear: y = x W^T + b (+ res) (+ scale * (x A^T) B^T), forward and backward. */
#include "op/op.h"

static bool drops(const struct op_ctx *o, const struct lora *l) { return l && o->drop_key && l->drop > 0; }

/* The first to add to x's gradient leaves it where that of the dropped x is. */
static void dropout_bwd(struct op_ctx *o, const struct rec *r)
{
    const struct tensor x = r->saved[0], dy = tape_grad(o, r->y);
    struct tensor *g = &o->tape->g[x.id];
    if (!g->p) {
        *g = dy;
        OP_RUN(o, dropout, dy, dy, r->f, r->key);
        return;
    }
    const struct tensor dx = tape_grad_fresh(o, x);
    OP_RUN(o, dropout_bwd, dx, dy, r->f, r->key);
}

/* x with elements dropped. */
static struct tensor dropped(struct op_ctx *o, struct tensor x, float p, uint64_t id)
{
    struct tensor y = op_new(o, x.id != 0, tensor_rows(x), tensor_cols(x));
    OP_RUN(o, dropout, y, x, p, o->drop_key ^ id);
    return y;
}

static void record_dropped(struct op_ctx *o, struct tensor y, struct tensor x, float p, uint64_t id)
{
    struct rec *r = op_record(o, dropout_bwd, y);
    if (!r) return;
    r->saved[0] = x;
    r->f = p;
    r->key = o->drop_key ^ id;
}

/* y = the adapter's scale times x: all that is scaled is as narrow as the adapter. */
static void scale_to(struct op_ctx *o, const struct lora *l, struct tensor y, struct tensor x)
{
    y = op_fresh(o, y);
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

/* dB, dA and the gradient of what A read. */
static void lora_bwd(struct op_ctx *o, const struct rec *r)
{
    const struct lora *l = ((const struct linear *)r->arg)->lora;
    const struct tensor none = { 0 }, in = r->x[0], su = r->saved[0], dy = tape_grad(o, r->y);
    const struct tensor din = tape_grad_fresh(o, in);
    const size_t mark = arena_mark(o->act);
    const struct tensor t = op_fresh(o, op_new(o, false, tensor_rows(su), tensor_cols(su)));
    struct tensor du = op_new(o, false, tensor_rows(su), tensor_cols(su));
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
    struct tensor x = r->x[0], dy = tape_grad(o, r->y), dx = tape_grad_fresh(o, x);
    struct tensor dw = param_grad(&l->w), db = param_grad(&l->b);
    if (dx.p) OP_RUN(o, matmul_dx, dx, dy, l->w.w);
    if (dw.p || db.p) OP_RUN(o, matmul_dw, dw, db, dy, x);
    tape_pass(o, r->saved[0], dy);
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

/* y; in: what A reads; *su: what B reads. */
static struct tensor forward(struct op_ctx *o, const struct linear *l, struct tensor x, struct tensor in,
                             struct tensor res, struct tensor *su)
{
    const struct tensor w = l->w.w, none = { 0 };
    const int64_t rows = tensor_rows(x);
    OP_CHECK(w.nd == 2 && tensor_cols(x) == w.n[1], x, w);
    OP_CHECK(!res.p || (tensor_rows(res) == rows && tensor_cols(res) == w.n[0]), res, w);
    struct tensor y = res;
    if (o->n_late) op_run_late(o); /* x may be of it */
    if (!o->overwrite || !res.p) y = op_new_dear(o, x.id || res.id || linear_trains(l), o->type, rows, w.n[0]);
    if (l->lora) *su = lora_down(o, in, l->lora);
    if (l->lora) product(o, y, *su, l->lora->b.w, none, res); /* what is small first: it is rounded less */
    product(o, y, x, w, l->b.w, l->lora ? y : res);
    if (l->served && o->n_spans) served_add(o, y, x, l);
    return y;
}

static void record(struct op_ctx *o, void (*bwd)(struct op_ctx *, const struct rec *), const struct linear *l,
                   struct tensor y, struct tensor x, struct tensor saved)
{
    struct rec *r = op_record(o, bwd, y);
    if (!r) return;
    r->x[0] = x;
    r->saved[0] = saved;
    r->arg = l;
}

const struct lora *op_drop_alike(const struct op_ctx *o, const struct linear *const *l, int n, int64_t cols)
{
    for (int i = 0; i < n; i++)
        if (!drops(o, l[i]->lora) || l[i]->lora->id != l[0]->lora->id) return NULL;
    return n && cols % 2 == 0 ? l[0]->lora : NULL;
}

/* Does any of them read x itself? */
static bool read_plain(const struct op_ctx *o, const struct lora *d, const struct linear *const *l, int n)
{
    bool all = !n || !op_has(o);
    for (int i = 0; i < n; i++) all |= param_trains(&l[i]->w) || param_trains(&l[i]->b) || (l[i]->lora && !d);
    return all;
}

struct op_read op_read_new(struct op_ctx *o, bool want, int64_t rows, int64_t cols, const struct lora *d,
                           const struct linear *const *l, int n)
{
    struct op_read h = { .unread = !read_plain(o, d, l, n) };
    if (!d || !h.unread) h.x = op_new(o, want, rows, cols);
    if (d) h.dropped = op_new(o, want, rows, cols);
    if (!d || !h.unread) return h;
    h.x = h.dropped;
    h.x.id = 0;
    if (want) h.x = tape_want(o, h.x);
    return h;
}

void op_linear_each(struct op_ctx *o, struct tensor *y, struct op_read h, const struct linear *const *l, int n,
                    struct tensor res)
{
    const struct tensor x = h.x;
    struct tensor in[3], su[3] = { { 0 } };
    int first[3];
    for (int i = 0; i < n; i++) {
        first[i] = i;
        for (int k = 0; k < i && drops(o, l[i]->lora); k++)
            if (drops(o, l[k]->lora) && l[k]->lora->id == l[i]->lora->id) first[i] = first[k];
        in[i] = !drops(o, l[i]->lora) ? x : first[i] < i ? in[first[i]] : h.dropped.p ? h.dropped
              : dropped(o, x, l[i]->lora->drop, l[i]->lora->id);
        y[i] = forward(o, l[i], x, in[i], res, &su[i]);
    }
    /* On the way back the adapters are first, then what they read is made x's gradient, to which the others add. */
    for (int i = 0; i < n; i++) record(o, linear_bwd, l[i], y[i], x, res);
    for (int i = 0; i < n; i++)
        if (drops(o, l[i]->lora) && first[i] == i) record_dropped(o, in[i], x, l[i]->lora->drop, l[i]->lora->id);
    for (int i = 0; i < n; i++)
        if (l[i]->lora) record(o, lora_bwd, l[i], y[i], in[i], su[i]);
}

struct tensor op_linear_add(struct op_ctx *o, struct tensor x, const struct linear *l, struct tensor res)
{
    struct tensor y;
    op_linear_each(o, &y, (struct op_read){ .x = x }, &l, 1, res);
    return y;
}

struct tensor op_linear(struct op_ctx *o, struct tensor x, const struct linear *l)
{
    return op_linear_add(o, x, l, (struct tensor){ 0 });
}

bool op_joins(const struct op_ctx *o) { return o->drop_key && o->drop > 0; }

struct tensor op_join(struct op_ctx *o, struct tensor y, struct tensor res, int place)
{
    if (!op_joins(o)) return op_add(o, y, res);
    const uint64_t id = (uint64_t)(place + 1) * 0x9e3779b97f4a7c15u; /* scatters the bits */
    struct tensor z = dropped(o, y, o->drop, id);
    record_dropped(o, z, y, o->drop, id);
    return op_add(o, z, res);
}

struct tensor op_linear_join(struct op_ctx *o, struct tensor x, const struct linear *l, struct tensor res, int place)
{
    return op_joins(o) ? op_join(o, op_linear(o, x, l), res, place) : op_linear_add(o, x, l, res);
}

struct tensor op_linear_f32(struct op_ctx *o, struct tensor x, const struct linear *l)
{
    struct tensor none = { 0 }, y = tensor_2d(NULL, op_stat_type(o), tensor_rows(x), l->w.w.n[0]);
    OP_CHECK(!o->tape && !l->lora && tensor_cols(x) == l->w.w.n[1], x, l->w.w);
    y.p = arena_take(o->act, tensor_bytes(y));
    OP_RUN(o, matmul, y, x, l->w.w, l->b.w, none);
    return y;
}
