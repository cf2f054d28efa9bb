/* See muon.h. */
#include "train/muon.h"

#include <math.h>
#include <string.h>

enum { ITERATIONS = 5 };
static const float momentum = 0.95f;
/* a s + b s^3 + c s^5 drives a singular value s of (0, 1] towards 1, fast and roughly: to 0.7 ... 1.2. */
static const float poly_a = 3.4445f, poly_b = -4.7750f, poly_c = 2.0315f;

bool muon_takes(const struct trained *p)
{
    const char *inside = strstr(p->name, "layers.") ? strstr(p->name, "layers.") : strstr(p->name, "mm_projector.");
    return p->param->w.nd == 2 && inside && !strstr(inside, ".lora_");
}

static struct tensor part(struct tensor t, int64_t rows, int64_t cols) { return tensor_2d(t.p, DT_F32, rows, cols); }

/* Numbers of the largest matrix and of the largest smaller side. */
static void largest(const struct trained *p, int n, int64_t *whole, int64_t *side)
{
    *whole = *side = 0;
    for (int i = 0; i < n; i++) {
        const struct tensor w = p[i].param->w;
        if (!muon_takes(&p[i])) continue;
        const int64_t least = w.n[0] < w.n[1] ? w.n[0] : w.n[1];
        if (tensor_count(w) > *whole) *whole = tensor_count(w);
        if (least > *side) *side = least;
    }
}

size_t muon_bytes(const struct trained *p, int n)
{
    int64_t whole, side;
    largest(p, n, &whole, &side);
    return (size_t)(2 * whole + 2 * side * side) * sizeof(float) + 4 * ARENA_ALIGN;
}

int muon_open(struct muon *u, struct dev *dev, const struct trained *p, int n, struct err *e)
{
    int64_t whole, side;
    *u = (struct muon){ 0 };
    const int rc = dev_arena(&u->mem, dev, muon_bytes(p, n), e);
    if (rc < 0) return err_prefix(e, "memory for the optimiser");
    largest(p, n, &whole, &side);
    u->x = tensor_1d(NULL, DT_F32, whole);
    u->gram = tensor_1d(NULL, DT_F32, side * side);
    u->y = u->x;
    u->poly = u->gram;
    struct tensor *all[] = { &u->x, &u->y, &u->gram, &u->poly };
    for (int i = 0; i < 4; i++) all[i]->p = arena_take(&u->mem, tensor_bytes(*all[i]));
    return 0;
}

void muon_close(struct muon *u)
{
    arena_fini(&u->mem);
    *u = (struct muon){ 0 };
}

void muon_gather(struct step *s, const struct trained *p, float scale)
{
    const struct kern *k = &s->kern;
    const struct tensor g = p->param->g;
    const float share = (1 - momentum) * scale;
    k->axpy(&s->kc, p->state.m, p->state.m, momentum - 1);
    k->axpy(&s->kc, p->state.m, g, share);
    k->axpy(&s->kc, g, g, share - 1);
    k->axpy(&s->kc, g, p->state.m, momentum);
}

/* y = x, each singular value s of it turned into a s + b s^3 + c s^5. */
static void bend(struct muon *u, struct step *s, struct tensor y, struct tensor x)
{
    const struct kern *k = &s->kern;
    const bool tall = x.n[0] > x.n[1];
    const int64_t side = tall ? x.n[1] : x.n[0];
    const struct tensor gram = part(u->gram, side, side), poly = part(u->poly, side, side), none = { 0 };
    if (tall) {
        k->zero(&s->kc, gram);
        k->matmul_dw(&s->kc, gram, none, x, x);
    } else {
        k->matmul(&s->kc, gram, x, x, none, none);
    }
    k->matmul(&s->kc, poly, gram, gram, none, none); /* symmetric: its own transpose */
    k->axpy(&s->kc, poly, poly, poly_c - 1);
    k->axpy(&s->kc, poly, gram, poly_b);
    if (tall) {
        k->matmul(&s->kc, y, x, poly, none, none);
    } else {
        k->zero(&s->kc, y);
        k->matmul_dx(&s->kc, y, poly, x);
    }
    k->axpy(&s->kc, y, x, poly_a);
}

void muon_step(struct muon *u, struct step *s, const struct trained *p, double norm, double lr, double decay)
{
    const struct kern *k = &s->kern;
    const struct tensor g = p->param->g, w = p->state.master;
    struct tensor x = part(u->x, w.n[0], w.n[1]), y = part(u->y, w.n[0], w.n[1]);
    const int64_t longer = w.n[0] > w.n[1] ? w.n[0] : w.n[1];
    k->zero(&s->kc, x);
    k->axpy(&s->kc, x, g, (float)(1 / (norm + 1e-12)));
    for (int i = 0; i < ITERATIONS; i++) {
        bend(u, s, y, x);
        const struct tensor t = x;
        x = y;
        y = t;
    }
    k->axpy(&s->kc, w, w, (float)(-lr * decay));
    k->axpy(&s->kc, w, x, (float)(-lr * 0.2 * sqrt((double)longer)));
    if (w.p != p->param->w.p) k->cast(&s->kc, p->param->w, w);
}
