/* Functions of f32 vectors, right to a few units in the last place for every input, infinities and NaN
 * included. */
#pragma once
#include "kern/cpu/isa.h"

/* e^x, within 1.1 ulp. x = n ln 2 + r with |r| <= ln(2)/2; e^r is its Taylor series to r^7, whose rest is
 * below 6e-9. */
INLINE vf vf_exp(vf x)
{
    x = vf_max(vf_set(-106), vf_min(vf_set(90), x)); /* beyond: 0 and infinity all the same; NaN passes */
    vf n = vf_round(vf_mul(x, vf_set(0x1.715476p+0f)));
    vf r = vf_fnma(n, vf_set(0x1.62e43p-1f), x); /* ln 2 in two parts */
    r = vf_fnma(n, vf_set(-0x1.05c61p-29f), r);
    vf p = vf_set(1.0f / 5040);
    p = vf_fma(p, r, vf_set(1.0f / 720));
    p = vf_fma(p, r, vf_set(1.0f / 120));
    p = vf_fma(p, r, vf_set(1.0f / 24));
    p = vf_fma(p, r, vf_set(1.0f / 6));
    p = vf_fma(p, r, vf_set(0.5f));
    p = vf_add(vf_fma(p, vf_mul(r, r), r), vf_set(1));
    return vf_scale2(p, n);
}

/* s(x) = 1 / (1 + e^-x), and 1 - s(x) in *rest: both without overflow and with full relative precision. */
INLINE vf vf_sigmoid_and(vf x, vf *rest)
{
    vf e = vf_exp(vf_sub(vf_zero(), vf_abs(x))), r = vf_div(vf_set(1), vf_add(e, vf_set(1)));
    vm negative = vf_lt(x, vf_zero());
    e = vf_mul(e, r);
    *rest = vf_select(negative, r, e);
    return vf_select(negative, e, r);
}
INLINE vf vf_sigmoid(vf x)
{
    vf rest;
    return vf_sigmoid_and(x, &rest);
}

/* The normal distribution: Phi(x), and its density in *pdf.
 *
 * Phi(-a) = erfcx(a/sqrt 2) e^(-a^2/2) / 2 for a = |x|. erfcx(z) is t P(t) with t = 1/(1 + 0.35 z); P is the
 * polynomial of degree 9 with the least relative error on 0 <= z <= 10.3, which is 8e-9. Beyond, e^(-a^2/2)
 * is 0 in f32. */
INLINE vf vf_normal(vf x, vf *pdf)
{
    static const float c[] = { 0x1.94713cp-3f,  0x1.93d22ep-3f, 0x1.802ebap-3f,  0x1.387928p-3f,
                               0x1.233ecep-3f,  0x1.807308p-4f, -0x1.23c63ap-5f, 0x1.7f5c3ap-3f,
                               -0x1.4a509cp-3f, 0x1.3e0948p-5f };
    vf a = vf_select(vf_lt(vf_set(14), vf_abs(x)), vf_set(14.5f), vf_abs(x));
    vf t = vf_div(vf_set(1), vf_fma(a, vf_set(0.35f * 0.70710678118654752f), vf_set(1)));
    vf p = vf_set(c[9]);
    for (int i = 8; i >= 0; i--) p = vf_fma(p, t, vf_set(c[i]));
    vf sq = vf_mul(a, a), rest = vf_fma(a, a, vf_sub(vf_zero(), sq));
    vf e = vf_exp(vf_mul(sq, vf_set(-0.5f)));
    e = vf_fnma(e, vf_mul(rest, vf_set(0.5f)), e); /* what rounding a^2 lost */
    *pdf = vf_mul(e, vf_set(0.39894228040143267794f));
    vf lower = vf_mul(vf_mul(vf_mul(p, t), vf_set(0.5f)), e);
    return vf_select(vf_lt(x, vf_zero()), lower, vf_sub(vf_set(1), lower));
}
