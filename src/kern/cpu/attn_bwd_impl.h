/* Attention backward. Included behind attn_impl.h, whose layout and products it uses.
 *
 * A thread takes one key/value head with all its rows (queries of its group), so that every gradient has one
 * writer. With p = exp(score - lse) and dp = v . dy, the gradient of a score is ds = p (dp - dy . y); then dv
 * += p dy, dk += ds q and dq += ds k, block by block, as products of small matrices. q is scaled beforehand,
 * dq at the end.
 */
struct back {
    const struct attn *a;
    struct tensor dq, dk, dv, dy;
    int64_t kv, rows, blocks; /* blocks of LANES rows */
    float *q, *dyr;           /* [rows][dim_pad], q times scale */
    float *qt, *dyt;          /* [blocks][dim][LANES], the same transposed */
    float *dqr;               /* [rows][dim_pad] sums */
    float *lse, *delta;       /* [blocks*LANES] */
    float *from, *to;         /* [blocks*LANES] */
    float *k, *v, *dkb, *dvb; /* [KEYS][dim_pad] */
    float *p, *ds;            /* [KEYS + QT][LANES] */
};

/* Hands out the pieces of one thread's room, or, with base NULL, only counts its floats. */
static size_t back_room(struct back *b, float *base)
{
    const size_t pad = (size_t)b->a->dim_pad, rows = (size_t)b->rows * pad, lanes = (size_t)b->blocks * LANES;
    const struct {
        float **p;
        size_t n;
    } piece[] = { { &b->q, rows },
                  { &b->dyr, rows },
                  { &b->dqr, rows },
                  { &b->qt, lanes * pad },
                  { &b->dyt, lanes * pad },
                  { &b->lse, lanes },
                  { &b->delta, lanes },
                  { &b->from, lanes },
                  { &b->to, lanes },
                  { &b->k, KEYS * pad },
                  { &b->v, KEYS * pad },
                  { &b->dkb, KEYS * pad },
                  { &b->dvb, KEYS * pad },
                  { &b->p, (KEYS + QT) * LANES },
                  { &b->ds, (KEYS + QT) * LANES } };
    size_t used = 0;
    for (size_t i = 0; i < sizeof piece / sizeof *piece; i++) {
        if (base) *piece[i].p = base + used;
        used += (piece[i].n + 15) / 16 * 16;
    }
    return used;
}

/* Row r of lane i: as it is, transposed, and its numbers. Lanes behind the last row have an empty range. */
static void back_row(struct back *b, int64_t i)
{
    const struct attn *a = b->a;
    const bool real = i < b->rows;
    const int64_t at = row_start(a, b->kv, real ? i : 0);
    const float *q = (const float *)a->q.p + at, *y = (const float *)a->y.p + at,
                *dy = (const float *)b->dy.p + at;
    float *qt = b->qt + i / LANES * a->dim * LANES + i % LANES, *dyt = b->dyt + (qt - b->qt);
    double delta = 0;
    for (int64_t d = 0; d < a->dim; d++) {
        qt[d * LANES] = real ? q[d] * a->scale : 0;
        dyt[d * LANES] = real ? dy[d] : 0;
        delta += (double)dy[d] * (double)y[d];
    }
    b->delta[i] = (float)delta;
    b->lse[i] = ((const float *)a->lse.p)[at / a->dim];
    b->from[i] = real ? (float)row_from(a, i) : 0;
    b->to[i] = real ? (float)row_to(a, i) : 0;
    for (int64_t d = 0; real && d < a->dim_pad; d++) {
        b->q[i * a->dim_pad + d] = d < a->dim ? q[d] * a->scale : 0;
        b->dyr[i * a->dim_pad + d] = d < a->dim ? dy[d] : 0;
        b->dqr[i * a->dim_pad + d] = 0;
    }
}

/* Scores in p and v . dy in ds become p and ds. */
static void back_soften(const struct back *b, int64_t block, int64_t s0, int64_t keys)
{
    for (int j = 0; j < QV; j++) {
        const int64_t i = block * LANES + j * VW;
        const vf from = vf_load(b->from + i), to = vf_load(b->to + i), lse = vf_load(b->lse + i);
        const vf delta = vf_load(b->delta + i);
        for (int64_t s = 0; s < keys; s++) {
            float *p = b->p + s * LANES + j * VW, *ds = b->ds + s * LANES + j * VW;
            const vf at = vf_set((float)(s0 + s));
            vf e = vf_exp(vf_sub(vf_load(p), lse));
            vf x = vf_mul(e, vf_sub(vf_load(ds), delta));
            const vm early = vf_lt(at, from), inside = vf_lt(at, to);
            vf_store(p, vf_select(inside, vf_select(early, vf_zero(), e), vf_zero()));
            vf_store(ds, vf_select(inside, vf_select(early, vf_zero(), x), vf_zero()));
        }
    }
}

/* Keys [s0, s0+n) with the rows of one block, unless their ranges do not meet. */
static void back_block(const struct back *b, int64_t block, int64_t s0, int64_t n)
{
    const struct attn *a = b->a;
    const int64_t r0 = block * LANES, rows = least(b->rows - r0, LANES), keys = (n + KT - 1) / KT * KT;
    bool meets = false;
    for (int64_t i = r0; i < r0 + rows; i++) meets |= b->from[i] < (float)(s0 + n) && b->to[i] > (float)s0;
    if (!meets) return;
    scores(a, b->p, b->k, b->qt + r0 * a->dim, keys, QV);
    scores(a, b->ds, b->v, b->dyt + r0 * a->dim, keys, QV);
    back_soften(b, block, s0, keys);
    weigh(a, b->dvb, NULL, n, b->p, LANES, 1, b->dyr + r0 * a->dim_pad, rows);
    weigh(a, b->dkb, NULL, n, b->ds, LANES, 1, b->q + r0 * a->dim_pad, rows);
    weigh(a, b->dqr + r0 * a->dim_pad, NULL, rows, b->ds, 1, LANES, b->k, n);
}

/* to[i] += c * from[i] */
static void add_row(float *to, const float *from, float c, int64_t n)
{
    for (int64_t i = 0; i < n; i++) to[i] += c * from[i];
}

static void back_head(struct back *b)
{
    const struct attn *a = b->a;
    const int64_t all = tensor_rows(a->k), bytes = KEYS * a->dim_pad * (int64_t)sizeof(float);
    for (int64_t i = 0; i < b->blocks * LANES; i++) back_row(b, i);
    memset(b->k, 0, (size_t)bytes);
    memset(b->v, 0, (size_t)bytes);
    for (int64_t s = 0; s < all; s += KEYS) {
        const int64_t n = least(all - s, KEYS), keys = (n + KT - 1) / KT * KT;
        block_load(a, b->k, a->k, b->kv, s, keys, 0, all);
        block_load(a, b->v, a->v, b->kv, s, keys, 0, all);
        memset(b->dkb, 0, (size_t)bytes);
        memset(b->dvb, 0, (size_t)bytes);
        for (int64_t block = 0; block < b->blocks; block++) back_block(b, block, s, n);
        for (int64_t i = 0; i < n; i++) {
            const int64_t at = ((s + i) * a->kv_heads + b->kv) * a->dim;
            if (b->dk.p) add_row((float *)b->dk.p + at, b->dkb + i * a->dim_pad, 1, a->dim);
            if (b->dv.p) add_row((float *)b->dv.p + at, b->dvb + i * a->dim_pad, 1, a->dim);
        }
    }
    for (int64_t r = 0; b->dq.p && r < b->rows; r++)
        add_row((float *)b->dq.p + row_start(a, b->kv, r), b->dqr + r * a->dim_pad, a->scale, a->dim);
}

static bool absent_or_f32(struct tensor t) { return !t.p || t.type == DT_F32; }

static void attn_bwd(struct kctx *kc, struct tensor dq, struct tensor dk, struct tensor dv, struct tensor dy,
                     struct tensor y, struct tensor lse, struct tensor q, struct tensor k, struct tensor v,
                     struct tensor range, int heads, float scale)
{
    const bool ours = absent_or_f32(dq) && absent_or_f32(dk) && absent_or_f32(dv) && dy.type == DT_F32 &&
                      y.type == DT_F32 && lse.type == DT_F32 && q.type == DT_F32 && k.type == DT_F32 &&
                      v.type == DT_F32;
    if (!ours || tensor_rows(k) > 1 << 24) {
        kern_ref.attn_bwd(kc, dq, dk, dv, dy, y, lse, q, k, v, range, heads, scale);
        return;
    }
    const struct attn a = attn_of(y, lse, q, k, v, range, heads, scale);
    const int64_t rows = a.tokens * a.group;
    struct back all = {
        .a = &a, .dq = dq, .dk = dk, .dv = dv, .dy = dy, .rows = rows, .blocks = (rows + LANES - 1) / LANES
    };
    const int n_threads = cpu_threads(kc, rows * a.kv_heads * a.dim / 8 * (tensor_rows(k) / 8 + 1));
    const size_t mark = arena_mark(kc->scratch), room = back_room(&all, NULL);
    float *rooms = arena_take(kc->scratch, room * (size_t)n_threads * sizeof *rooms);
#pragma omp parallel for num_threads(n_threads) schedule(dynamic)
    for (int64_t kv = 0; kv < a.kv_heads; kv++) {
        struct back b = all;
        b.kv = kv;
        back_room(&b, rooms + room * (size_t)omp_get_thread_num());
        back_head(&b);
    }
    arena_rewind(kc->scratch, mark);
}

void ISA(cpu_fill_attn)(struct kern *k)
{
    k->attn_fwd = attn_fwd;
    k->attn_bwd = attn_bwd;
}
