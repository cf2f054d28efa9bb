/* Choosing a token from logits, in integers: the processor and every device choose the same token, bit for bit, and no
 * order of sums matters.
 *
 * A logit's distance from the largest is counted in octaves of probability, with CHOOSE_FRACTION bits behind the
 * point; its weight is 2^-distance in units of 2^-36. What has no weight (2^-36 of the likeliest) is never chosen.
 * Equal distances are ties. From here on only whole numbers are added and compared. */
#pragma once
#include <math.h>
#include <stdbool.h>
#include <stdint.h>

#ifndef KERN_FN
#define KERN_FN static inline /* and on the device, where there is one */
#endif

enum { CHOOSE_FRACTION = 30, CHOOSE_DIGIT = 9, CHOOSE_DIGITS = 4 }; /* a distance: 4 digits of 9 bits */
#define CHOOSE_OUT ((uint64_t)36 << CHOOSE_FRACTION)                /* this far and farther: no weight */
#define CHOOSE_V_MAX (1 << 22)                                      /* most logits of a row */

/* How to choose from one row. */
struct choice {
    uint64_t draw;  /* random bits, all that this choice needs */
    double scale;   /* octaves of probability in units of 2^-30 for a difference of 1; 0: greedy */
    double rest;    /* 1 - top_p */
    int32_t top_k;  /* 0: off */
    int32_t slot;   /* where the token goes; -1: nothing is chosen */
};

KERN_FN struct choice choice_make(float temperature, int top_k, float top_p, uint64_t draw, int slot)
{
    struct choice c = { draw, 0, 1 - (double)top_p, top_k, slot };
    if (temperature > 0) c.scale = 1.4426950408889634 * (double)(1 << CHOOSE_FRACTION) / (double)temperature;
    return c;
}

KERN_FN uint64_t choose_distance(float x, float most, double scale)
{
    const double d = ((double)most - (double)x) * scale;
    return d < (double)CHOOSE_OUT ? (uint64_t)d : CHOOSE_OUT;
}

/* 2^(36 - distance): the series of e^(-f ln 2) for the fraction f, by Horner's rule in units of 2^-32, right to
 * 2e-9. */
KERN_FN uint64_t choose_weight(uint64_t distance)
{
    const uint32_t f = (uint32_t)(distance << (32 - CHOOSE_FRACTION));
    uint32_t r = 30; /* (ln 2)^k / k!, k from 10 down to 1 */
    if (distance >= CHOOSE_OUT) return 0;
    r = 437 - (uint32_t)((uint64_t)f * r >> 32);
    r = 5676 - (uint32_t)((uint64_t)f * r >> 32);
    r = 65510 - (uint32_t)((uint64_t)f * r >> 32);
    r = 661577 - (uint32_t)((uint64_t)f * r >> 32);
    r = 5726720 - (uint32_t)((uint64_t)f * r >> 32);
    r = 41309550 - (uint32_t)((uint64_t)f * r >> 32);
    r = 238388332 - (uint32_t)((uint64_t)f * r >> 32);
    r = 1031764991 - (uint32_t)((uint64_t)f * r >> 32);
    r = 2977044472u - (uint32_t)((uint64_t)f * r >> 32);
    return (((uint64_t)1 << 32) - ((uint64_t)f * r >> 32)) << 4 >> (distance >> CHOOSE_FRACTION);
}

/* How much of `sum`, counted from the likeliest, is kept: all but the rest, but at least one unit. */
KERN_FN uint64_t choose_target(uint64_t sum, double rest)
{
    const uint64_t off = rest > 0 ? (uint64_t)(rest * (double)sum) : 0;
    return off < sum ? sum - off : 1;
}

/* draw / 2^64 of n, rounded down. */
KERN_FN uint64_t choose_below(uint64_t n, uint64_t draw)
{
    const uint64_t a = n >> 32, b = n & 0xffffffffu, c = draw >> 32, d = draw & 0xffffffffu;
    const uint64_t mid = a * d + (b * d >> 32), low = b * c + (mid & 0xffffffffu);
    return a * c + (mid >> 32) + (low >> 32);
}
