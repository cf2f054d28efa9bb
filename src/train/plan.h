/* The memory of a run by name, before any of it is taken; and the choice of what is kept where, which layers run again,
 * so that a step is the fastest that stays within the limits: `--dry_run` shows it.
 *
 * Choices change no bit of the result. What does (moments of 8 bits, masters) is the arguments' to say; where nothing
 * fits the refusal names those that would.
 */
#pragma once
#include "train/feed.h"
#include "train/setup.h"
#include "train/step.h"

enum { PLAN_ROWS = 20, PLAN_CHOICES = 4 };
enum plan_place { PLAN_DEVICE, PLAN_HOST, PLAN_PLACES }; /* without a device all is the former */

struct plan_choice {
    struct states_how how;
    int recompute;              /* layers that run again on the way back */
    size_t sum[PLAN_PLACES];
    double again_s, link_s, s;  /* of an optimiser step: recomputing, waiting for copies, all of it */
    bool fits;
};

struct plan {
    struct { const char *name; size_t bytes; enum plan_place place; } row[PLAN_ROWS];
    int n;
    bool card;                  /* there is a device, or would be */
    size_t sum[PLAN_PLACES], limit[PLAN_PLACES];
    bool limited[PLAN_PLACES];  /* by the arguments, not by what is there */
    struct plan_choice choice[PLAN_CHOICES];
    int n_choices, chosen;      /* -1: none fits */
    int layers;
};

/* Plans for the largest batch and sets t->states and s->recompute accordingly. flops_s: what a matrix product reaches.
 * ERR_USAGE for limits that are none. Bytes of "48G", "512M", ...; without a limit: what is free. */
int plan_make(struct plan *p, struct trainee *t, struct step *s, const struct train_args *a, double flops_s,
              struct err *e);
/* ERR_NOMEM with the sum where nothing fits, and what would. */
int plan_check(const struct plan *p, struct trainee *t, struct step *s, const struct train_args *a, struct err *e);
void plan_print(const struct plan *p, FILE *f);
void plan_bytes(char out[16], double bytes); /* "1.23 GB" */
