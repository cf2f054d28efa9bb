/* The memory of a run by name, before any of it is taken; and the choice of what is kept where, and what layers keep
 * for their way back, so that a step is the fastest that stays within the limits: `--dry_run` shows it.
 *
 * Choices change no bit of the result. What does (moments of 8 bits, masters) is the arguments' to say; where nothing
 * fits the refusal names those that would.
 */
#pragma once
#include "train/feed.h"
#include "train/trainee.h"
#include "train/step.h"

enum plan_place { PLAN_DEVICE, PLAN_HOST, PLAN_PLACES }; /* without a device all is the former */
enum { PLAN_ROWS = 15, PLAN_CHOICES = 4 };

/* Bytes by name (plan.c has the names), and together. */
struct plan_sizes { size_t row[PLAN_ROWS], sum[PLAN_PLACES]; };

/* What the machine does in a second (kern/ceiling.h); 0: not known. */
struct plan_speed {
    double flops; /* of a large matrix product */
    double link;  /* bytes between device and host, each way */
};

struct plan_choice {
    struct states_how how;
    struct step_kept kept;      /* what layers keep for the way back */
    struct plan_sizes bytes;
    double again_s, link_s, s;  /* of an optimiser step: recomputing, waiting for copies, all of it */
    bool fits;
};

struct plan {
    bool card;                  /* there is a device, or would be */
    size_t limit[PLAN_PLACES];
    bool limited[PLAN_PLACES];  /* by the arguments, not by what is there */
    struct plan_sizes fixed;    /* what no choice changes */
    struct plan_choice choice[PLAN_CHOICES];
    int n_choices, chosen;      /* -1: none fits */
    int layers;
    struct plan_speed speed;
};

/* The share of a product's speed that a whole step has. */
double plan_share(const struct plan *p);
/* Runs a few products and copies with s's kernels, on its device if it has one. */
struct plan_speed plan_measure(struct step *s, enum dtype weights);
/* Plans for the largest batch, and has t->states and s keep what is chosen. ERR_USAGE for limits that are none.
 * Bytes of "48G", "512M", ...; without a limit: what is free. */
int plan_make(struct plan *p, struct trainee *t, struct step *s, const struct train_args *a,
              const struct plan_speed *speed, struct err *e);
/* The choice that is made; where none fits, the last that was tried. */
const struct plan_choice *plan_taken(const struct plan *p);
/* ERR_NOMEM with the sum where nothing fits, and what would. */
int plan_check(const struct plan *p, const struct trainee *t, const struct step *s, const struct train_args *a,
               struct err *e);
void plan_print(const struct plan *p, FILE *f);
void plan_bytes(char out[16], double bytes); /* "1.23 GB" */
