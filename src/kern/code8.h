/* Numbers of [-1, 1] or [0, 1] in 8 bits, spaced over seven decades: what an optimiser keeps its moments in, times a
 * scale for each block of KERN_BLOCK8 of them.
 *
 * Each decade (10^(e-7), 10^(e-6)], e = 0..6, is cut into equal bins, twice as many as the one below it, and a code
 * stands for the middle of its bin; besides there are 0 and 1. Signed: 2^e bins, the high bit is the sign, and 0x80,
 * which would be a second zero, is 1. Unsigned: 2^(e+1) bins, 255 is 1. The values are those of "dynamic tree
 * quantisation" as bitsandbytes has it.  arXiv:2110.02861 section 2.2, 1.3
 */
#pragma once
#include "kern/kern.h"

enum { KERN_BLOCK8 = 256 };

/* 10^(e-6) */
KERN_FN float code8_decade(int e)
{
    return e == 0 ? 1e-6f : e == 1 ? 1e-5f : e == 2 ? 1e-4f : e == 3 ? 1e-3f : e == 4 ? 1e-2f : e == 5 ? 1e-1f : 1.0f;
}

/* The middle of bin j of the n of a decade. */
KERN_FN float code8_middle(int e, int j, int n)
{
    return code8_decade(e) * (0.1f + 0.9f * ((float)j + 0.5f) / (float)n);
}

KERN_FN float code8_value(uint8_t code, bool is_signed)
{
    const int top = is_signed ? 0x80 : 0xff, i = is_signed ? code & 0x7f : code;
    if (code == top) return 1;
    if (!i) return 0;
    int e = 0, n = is_signed ? 1 : 2;
    const int at = is_signed ? i : i + 1; /* bins of a decade begin at n */
    for (; 2 * n <= at; n *= 2) e++;
    const float x = code8_middle(e, at - n, n);
    return is_signed && (code & 0x80) ? -x : x;
}

/* The code of the bin that x lies in; |x| <= 1 (anything larger is taken for that). */
KERN_FN uint8_t code8_of(float x, bool is_signed)
{
    const float a = x < 0 ? -x : x;
    const int last = is_signed ? 64 : 128;
    if (x > 0.5f * (1 + code8_middle(6, last - 1, last))) return is_signed ? 0x80 : 0xff;
    int e = 0, n = is_signed ? 1 : 2;
    for (; e < 6 && a > code8_decade(e); n *= 2) e++;
    if (!(a > 0.5f * code8_middle(0, 0, is_signed ? 1 : 2))) return 0;
    int j = (int)((a / code8_decade(e) - 0.1f) / 0.9f * (float)n);
    j = j < 0 ? 0 : j > n - 1 ? n - 1 : j;
    const int i = is_signed ? n + j : n + j - 1;
    return (uint8_t)(is_signed && x < 0 ? i | 0x80 : i);
}

/* x as bf16 above or below it, at random with the probabilities that keep the mean; random: 16 bits. */
KERN_FN uint16_t kern_bf16_random(float x, uint32_t random)
{
    union { float f; uint32_t u; } v = { x };
    return (uint16_t)((v.u & 0x7f800000u) == 0x7f800000u ? v.u >> 16 : (v.u + (random & 0xffff)) >> 16);
}
