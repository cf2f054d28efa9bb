/* Quantised rows: 8 and 4 bits an element in groups of 64, each with a scale in f16.
 *
 * A row of n elements is ceil(n/64) groups, the last one filled up with zeros. First all groups' elements, then all
 * their scales, then zeros up to a multiple of 32 bytes; so a row is one aligned run, rows can be sliced, and a reader
 * finds the scales without reading ahead.
 *
 *   Q8  an element is q*s with int8 q from -127 to 127, in order: 64 bytes a group, 8.25 bits an element
 *   Q4  an element is quant_level[c]*s with a 4-bit code c. Byte i of a group's 32 holds element i in its low half and
 *       element i+32 in its high half: 4.25 bits an element
 *
 * Q4's levels are those that, with scale and sign of the scale fitted to each group, err least on normal and
 * heavy-tailed weights: 0.76% of the power, where NF4 (arXiv:2305.14314) errs by 0.92%. They span 63 steps, so that
 * four products with int8 fit 16 bits: level + 30 is unsigned, 4 * 63 * 127 < 2^15.
 */
#pragma once
#include "tensor/dtype.h"

enum {
    QUANT_GROUP = 64,
    QUANT_ALIGN = 32, /* bytes a row is a multiple of */
    QUANT4_ZERO = 30, /* level + QUANT4_ZERO is from 0 to 63 */
    QUANT_FAULT = 0x7e00 /* a group's scale, NaN, where one of its elements is infinite or not a number */
};
#define QUANT_METHOD "llava.c" /* quant_method of quantization_config in config.json */
extern const int8_t quant_level[16];     /* ascending */
extern const uint8_t quant_unsigned[16]; /* level + QUANT4_ZERO */

static inline int64_t quant_groups(int64_t n) { return (n + QUANT_GROUP - 1) / QUANT_GROUP; }
/* Bytes in front of the scales. */
static inline int64_t quant_scales_at(enum dtype t, int64_t n)
{
    return quant_groups(n) * (t == DT_Q8 ? QUANT_GROUP : QUANT_GROUP / 2);
}
static inline size_t quant_row_bytes(enum dtype t, int64_t n)
{
    const size_t bytes = (size_t)(quant_scales_at(t, n) + quant_groups(n) * (int64_t)sizeof(uint16_t));
    return (bytes + QUANT_ALIGN - 1) / QUANT_ALIGN * QUANT_ALIGN;
}
/* The type whose rows of n elements take `bytes`; -1: none. */
int quant_find(enum dtype *ret, int64_t n, int64_t bytes);

/* A row of n elements of a float type. Q8: s = max|x| / 127 rounded to f16, q the nearest. Q4: the scale of
 * least squared error among fits from several starts. Elements past what f16 scales reach (8.3e6 in Q8, 2e6 in
 * Q4) are cut off; a group with one that is not finite comes back as NaN. */
void quant_row(void *dst, enum dtype t, const void *src, enum dtype from, int64_t n);
/* The row's n elements, exact: a product of 11 and 8 bits. */
void dequant_row(float *dst, enum dtype t, const void *src, int64_t n);
/* Element i of a row of n. */
double quant_at(const void *row, enum dtype t, int64_t n, int64_t i);
