/* Muon: the update of a matrix is its momentum made orthogonal, so that all directions move alike; for matrices inside
 * layers and the projector, where a run begins with random weights. Everything else (embeddings, lm_head, norms,
 * biases) takes AdamW's step.
 *
 *   v = b v + (1-b) g;  u = (1-b) g + b v;  w = w (1 - lr decay) - lr 0.2 sqrt(max(O,I)) orthogonal(u),  b = 0.95
 *
 * K. Jordan et al. 2024 (kellerjordan.github.io/posts/muon); the factor 0.2 sqrt(max(O,I)), which gives an update the
 * size of AdamW's and so the same learning rate, is of arXiv:2502.16982. v is the first moment, trained_state.m.
 */
#pragma once
#include "train/trainee.h"
#include "train/step.h"

/* Does it take Muon's step? */
bool muon_takes(const struct trained *p);
/* Bytes of muon_open's memory. */
size_t muon_bytes(const struct trained *p, int n);

struct muon {
    struct arena mem;
    struct tensor x, y;       /* F32: of the largest matrix */
    struct tensor gram, poly; /* F32: of its smaller side */
};
int muon_open(struct muon *u, struct dev *dev, const struct trained *p, int n, struct err *e);
void muon_close(struct muon *u); /* accepts a zeroed one */
/* p's momentum; p's gradient, multiplied by scale, becomes u. */
void muon_gather(struct step *s, const struct trained *p, float scale);
/* p's weights by the u in its gradient, whose length is norm. */
void muon_step(struct muon *u, struct step *s, const struct trained *p, double norm, double lr, double decay);
