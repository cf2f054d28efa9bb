/* What a machine can do at most, measured with its own kernels: what was reached is shown beside it, and plans are made
 * by it.
 *
 * Each is the best of a few runs after one that warms up, on random numbers, for zeros are multiplied faster; all wait.
 * 0: not known, for want of memory. Up to 1 GB is taken for it and given back, and does not count in a device's peak.
 */
#pragma once
#include "kern/kern.h"

/* Operations a second of a product of large square matrices: activations of type x, weights of type w. Small machines
 * get smaller ones. */
double ceiling_product(const struct kern *k, struct kctx *kc, enum dtype x, enum dtype w);
/* Bytes a second that a device's kernels move: one that only reads, or reads and writes, whichever moves more. Of the
 * host: kern/cpu/cpu.h. */
double ceiling_memory(const struct kern *k, struct kctx *kc);
/* Bytes a second between a device and page-locked memory, in the slower direction; 0 for the host. */
double ceiling_link(struct dev *d);
