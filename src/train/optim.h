/* The optimiser: AdamW over what is trained, or Muon (muon.h) for its matrices, in LLaVA's groups, with clipping by the
 * norm of all gradients. The order is that of transformers' Trainer: clip, step, schedule; the first step has the
 * schedule's factor 0. */
#pragma once
#include "train/muon.h"
#include "train/schedule.h"
#include "train/trainee.h"
#include "train/step.h"

struct optim {
    struct dev *dev;        /* borrowed; NULL: the host */
    struct trained *p;      /* borrowed */
    int n;
    double rate[3];         /* by enum rate */
    double beta1, beta2, eps, decay, clip; /* clip 0: none */
    struct schedule schedule;
    struct states *states;  /* borrowed */
    uint64_t seed;          /* of random rounding */
    bool orthogonal;        /* --optim muon */
    struct muon muon;       /* valid if orthogonal */
    float *host;            /* [n] */
};

int optim_open(struct optim *o, struct trainee *t, const struct train_args *a, int64_t total_steps,
               struct err *e);
void optim_close(struct optim *o); /* accepts a zeroed one */
/* Length of all gradients together, before clipping. Waits for the device. */
double optim_norm(struct optim *o, struct step *s);
/* Step k = 1, 2, ...: moments and weights; clears the gradients. norm: optim_norm's. */
void optim_step(struct optim *o, struct step *s, int64_t k, double norm);
/* Index in p of the first whose weights are no longer finite, or too large to be squared; -1: none. Moments need
 * no look: of gradients whose squares have a finite sum they are finite. Waits for the device. */
int optim_broken(struct optim *o, struct step *s);
/* The learning rate that is logged after step k, as there: what step k+1 will use. */
double optim_rate(const struct optim *o, int64_t k);
