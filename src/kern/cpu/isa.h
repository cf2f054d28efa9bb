/* Vectors of f32 in the width of the including file's instruction set, so that a kernel's body is written
 * once.
 *
 * A file NAME_avx2.c or NAME_avx512.c includes NAME_impl.h, which includes this. vf is VW floats. _n
 * functions touch only the first n < VW elements in memory; the lanes that were not loaded are zero. Loads
 * and stores need no alignment. ISA(name) is name_avx2 or name_avx512. Everything rounds as IEEE says;
 * nothing here assumes finite numbers.
 */
#pragma once
#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "kern/cpu/cpu.h"

#define INLINE static inline __attribute__((always_inline))

#ifdef __AVX512F__

#define ISA(name) name##_avx512
enum { VW = 16 };
typedef __m512 vf;
typedef __m512i vi;
typedef __mmask16 vm;

INLINE vm vm_first(int64_t n) { return (vm)((1u << n) - 1); }
INLINE vf vf_zero(void) { return _mm512_setzero_ps(); }
INLINE vf vf_set(float a) { return _mm512_set1_ps(a); }
INLINE vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE vf vf_load_n(const float *p, int64_t n) { return _mm512_maskz_loadu_ps(vm_first(n), p); }
INLINE void vf_store(float *p, vf a) { _mm512_storeu_ps(p, a); }
INLINE void vf_store_n(float *p, vf a, int64_t n) { _mm512_mask_storeu_ps(p, vm_first(n), a); }
INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
INLINE vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
INLINE vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }   /* a b + c */
INLINE vf vf_fnma(vf a, vf b, vf c) { return _mm512_fnmadd_ps(a, b, c); } /* c - a b */
INLINE vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }              /* b where either is NaN */
INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
INLINE vf vf_sqrt(vf a) { return _mm512_sqrt_ps(a); }
INLINE vf vf_abs(vf a) { return _mm512_abs_ps(a); }
INLINE vf vf_round(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE vm vf_lt(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
INLINE vf vf_select(vm m, vf yes, vf no) { return _mm512_mask_blend_ps(m, no, yes); }
INLINE vf vf_copysign(vf mag, vf sign)
{
    __m512i s = _mm512_set1_epi32((int)0x80000000u);
    return _mm512_castsi512_ps(_mm512_or_si512(_mm512_andnot_si512(s, _mm512_castps_si512(mag)),
                                               _mm512_and_si512(s, _mm512_castps_si512(sign))));
}
INLINE vf vf_scale2(vf a, vf n) { return _mm512_scalef_ps(a, n); } /* a 2^n, n whole */
INLINE float vf_sum(vf a) { return _mm512_reduce_add_ps(a); }
INLINE float vf_hmax(vf a) { return _mm512_reduce_max_ps(a); }

INLINE vf vf_load_bf16(const uint16_t *p)
{
    __m512i h = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(h, 16));
}
INLINE vf vf_load_bf16_n(const uint16_t *p, int64_t n)
{
    __m512i h = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(vm_first(n), p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(h, 16));
}
INLINE vf vf_load_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
INLINE vf vf_load_f16_n(const uint16_t *p, int64_t n)
{
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(vm_first(n), p));
}
INLINE vf vf_load_i8(const char *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)));
}
INLINE void vf_store_f16(uint16_t *p, vf a)
{
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
/* Rounds as f32_to_bf16 does; the instruction for it would flush subnormal numbers. */
INLINE __m256i vf_to_bf16(vf a)
{
    __m512i u = _mm512_castps_si512(a);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    __m512i r = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    r = _mm512_mask_or_epi32(r, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), u, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16));
}
INLINE void vf_store_bf16(uint16_t *p, vf a) { _mm256_storeu_si256((__m256i *)p, vf_to_bf16(a)); }

/* A pair is two bf16 in one 32-bit lane. */
enum { HAS_PAIRS = 1 };
INLINE vf vf_pair_fma(vf a, vf b, vf c) /* c + a0 b0 + a1 b1 */
{
    return _mm512_dpbf16_ps(c, (__m512bh)_mm512_castps_si512(a), (__m512bh)_mm512_castps_si512(b));
}
INLINE vf vf_pair_load(const uint16_t *p) { return vf_load((const float *)(const void *)p); }
INLINE vf vf_pair_load_n(const uint16_t *p, int64_t n) /* n < 2 VW bf16 */
{
    return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16((__mmask32)((1ull << n) - 1), p));
}
INLINE vf vf_pair_even(vf a) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a), 16)); }
INLINE vf vf_pair_odd(vf a)
{
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32((int)0xffff0000u)));
}
INLINE vf vf_pair_join(vf even, vf odd) /* lane i: (even_i, odd_i) */
{
    __m512i lo = _mm512_cvtepu16_epi32(vf_to_bf16(even));
    __m512i hi = _mm512_slli_epi32(_mm512_cvtepu16_epi32(vf_to_bf16(odd)), 16);
    return _mm512_castsi512_ps(_mm512_or_si512(lo, hi));
}
INLINE vf vf_pair_from(vf first, vf second) /* elements in order: first's VW, then second's */
{
    return _mm512_castsi512_ps(
        _mm512_inserti64x4(_mm512_castsi256_si512(vf_to_bf16(first)), vf_to_bf16(second), 1));
}

/* Every second lane of a and b, from the first; from the second. */
INLINE vf vf_evens(vf a, vf b)
{
    return _mm512_permutex2var_ps(
        a, _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30), b);
}
INLINE vf vf_odds(vf a, vf b)
{
    return _mm512_permutex2var_ps(
        a, _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31), b);
}

/* Vectors of 4 VW bytes. */
INLINE vi vi_load(const void *p) { return _mm512_loadu_si512(p); }
INLINE vi vi_set(int32_t a) { return _mm512_set1_epi32(a); }
INLINE vi vi_low4(vi a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); } /* low halves of bytes; the high ones */
INLINE vi vi_high4(vi a) { return vi_low4(_mm512_srli_epi16(a, 4)); }
INLINE vi vi_table(const uint8_t t[16]) { return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)t)); }
INLINE vi vi_lookup(vi table, vi at) { return _mm512_shuffle_epi8(table, at); } /* table[at], at < 16 */
INLINE vf vf_from_int(vi a) { return _mm512_cvtepi32_ps(a); }
INLINE vf vf_of(vi a) { return _mm512_castsi512_ps(a); } /* the same bits */

INLINE void vf_transpose(vf r[16])
{
    vf t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            __m512d a = _mm512_castps_pd(t[i + j]), b = _mm512_castps_pd(t[i + j + 2]);
            r[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            r[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    for (int i = 0; i < 4; i++) { /* r[4g+i]: column i of each 128-bit lane, rows 4g..4g+3 */
        vf a = _mm512_shuffle_f32x4(r[i], r[4 + i], 0x88),
           b = _mm512_shuffle_f32x4(r[8 + i], r[12 + i], 0x88);
        vf c = _mm512_shuffle_f32x4(r[i], r[4 + i], 0xdd),
           d = _mm512_shuffle_f32x4(r[8 + i], r[12 + i], 0xdd);
        t[i] = _mm512_shuffle_f32x4(a, b, 0x88);
        t[8 + i] = _mm512_shuffle_f32x4(a, b, 0xdd);
        t[4 + i] = _mm512_shuffle_f32x4(c, d, 0x88);
        t[12 + i] = _mm512_shuffle_f32x4(c, d, 0xdd);
    }
    for (int i = 0; i < 16; i++) r[i] = t[i];
}

#else

#define ISA(name) name##_avx2
enum { VW = 8 };
typedef __m256 vf;
typedef __m256i vi;
typedef __m256 vm;

INLINE __m256i vm_first(int64_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
INLINE vf vf_zero(void) { return _mm256_setzero_ps(); }
INLINE vf vf_set(float a) { return _mm256_set1_ps(a); }
INLINE vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
INLINE vf vf_load_n(const float *p, int64_t n) { return _mm256_maskload_ps(p, vm_first(n)); }
INLINE void vf_store(float *p, vf a) { _mm256_storeu_ps(p, a); }
INLINE void vf_store_n(float *p, vf a, int64_t n) { _mm256_maskstore_ps(p, vm_first(n), a); }
INLINE vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
INLINE vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
INLINE vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
INLINE vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vf vf_fnma(vf a, vf b, vf c) { return _mm256_fnmadd_ps(a, b, c); }
INLINE vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
INLINE vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
INLINE vf vf_sqrt(vf a) { return _mm256_sqrt_ps(a); }
INLINE vf vf_abs(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
INLINE vf vf_round(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE vm vf_lt(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
INLINE vf vf_select(vm m, vf yes, vf no) { return _mm256_blendv_ps(no, yes, m); }
INLINE vf vf_copysign(vf mag, vf sign)
{
    vf s = _mm256_set1_ps(-0.0f);
    return _mm256_or_ps(_mm256_andnot_ps(s, mag), _mm256_and_ps(s, sign));
}
INLINE vf vf_scale2(vf a, vf n) /* in two steps, so that |n| < 252 stays in the exponent's range */
{
    __m256i i = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(i, 1), bias = _mm256_set1_epi32(127);
    __m256i lo = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    __m256i hi = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(i, half), bias), 23);
    return _mm256_mul_ps(_mm256_mul_ps(a, _mm256_castsi256_ps(lo)), _mm256_castsi256_ps(hi));
}
INLINE float vf_sum(vf a)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
INLINE float vf_hmax(vf a)
{
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

INLINE vf vf_load_bf16(const uint16_t *p)
{
    __m256i h = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(h, 16));
}
INLINE vf vf_load_f16(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
INLINE vf vf_load_bf16_n(const uint16_t *p, int64_t n)
{
    uint16_t t[8] = { 0 };
    memcpy(t, p, (size_t)n * sizeof *t);
    return vf_load_bf16(t);
}
INLINE vf vf_load_f16_n(const uint16_t *p, int64_t n)
{
    uint16_t t[8] = { 0 };
    memcpy(t, p, (size_t)n * sizeof *t);
    return vf_load_f16(t);
}
INLINE vf vf_load_i8(const char *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
}
INLINE void vf_store_f16(uint16_t *p, vf a)
{
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
INLINE void vf_store_bf16(uint16_t *p, vf a)
{
    __m256i u = _mm256_castps_si256(a);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i r = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    r = _mm256_srli_epi32(_mm256_blendv_epi8(r, _mm256_or_si256(u, _mm256_set1_epi32(0x400000)), nan), 16);
    _mm_storeu_si128((__m128i *)p,
                     _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1)));
}

INLINE vf vf_pair_load(const uint16_t *p) { return vf_load((const float *)(const void *)p); }
INLINE vf vf_pair_load_n(const uint16_t *p, int64_t n)
{
    uint16_t t[16] = { 0 };
    memcpy(t, p, (size_t)n * sizeof *t);
    return vf_pair_load(t);
}
INLINE vf vf_pair_even(vf a) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a), 16)); }
INLINE vf vf_pair_odd(vf a)
{
    return _mm256_and_ps(a, _mm256_castsi256_ps(_mm256_set1_epi32((int)0xffff0000u)));
}

/* No instruction multiplies pairs here: HAS_PAIRS guards every call, and these only let the shared bodies
 * compile. */
enum { HAS_PAIRS = 0 };
INLINE vf vf_pair_fma(vf a, vf b, vf c) { return vf_fma(a, b, c); }
INLINE vf vf_pair_join(vf even, vf odd) { return vf_add(even, odd); }
INLINE vf vf_pair_from(vf first, vf second) { return vf_add(first, second); }

/* Every second lane of a and b, from the first; from the second. */
INLINE vf vf_in_order(vf a) /* of quarters 0 2 1 3 */
{
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(a), 0xd8));
}
INLINE vf vf_evens(vf a, vf b) { return vf_in_order(_mm256_shuffle_ps(a, b, 0x88)); }
INLINE vf vf_odds(vf a, vf b) { return vf_in_order(_mm256_shuffle_ps(a, b, 0xdd)); }

/* Vectors of 4 VW bytes. */
INLINE vi vi_load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE vi vi_set(int32_t a) { return _mm256_set1_epi32(a); }
INLINE vi vi_low4(vi a) { return _mm256_and_si256(a, _mm256_set1_epi8(15)); } /* low halves of bytes; the high ones */
INLINE vi vi_high4(vi a) { return vi_low4(_mm256_srli_epi16(a, 4)); }
INLINE vi vi_table(const uint8_t t[16]) { return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)t)); }
INLINE vi vi_lookup(vi table, vi at) { return _mm256_shuffle_epi8(table, at); } /* table[at], at < 16 */
INLINE vf vf_from_int(vi a) { return _mm256_cvtepi32_ps(a); }
INLINE vf vf_of(vi a) { return _mm256_castsi256_ps(a); } /* the same bits */

INLINE void vf_transpose(vf r[8])
{
    vf t[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            r[i + 2 * j] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0x44);
            r[i + 2 * j + 1] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0xee);
        }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm256_permute2f128_ps(r[i], r[4 + i], 0x20);
        t[4 + i] = _mm256_permute2f128_ps(r[i], r[4 + i], 0x31);
    }
    for (int i = 0; i < 8; i++) r[i] = t[i];
}

#endif

/* Keeps a in a register, where GCC would load it again for each use or move sums to memory for what it loads early. */
INLINE void vf_keep(vf *a)
{
    __asm__("" : "+v"(*a));
}

/* VW elements, or the first n of them, of a float type as f32. `t` is a constant where this is inlined. */
INLINE vf vf_load_as(const void *p, enum dtype t)
{
    return t == DT_F32 ? vf_load(p) : t == DT_BF16 ? vf_load_bf16(p) : vf_load_f16(p);
}
INLINE vf vf_load_as_n(const void *p, enum dtype t, int64_t n)
{
    return t == DT_F32 ? vf_load_n(p, n) : t == DT_BF16 ? vf_load_bf16_n(p, n) : vf_load_f16_n(p, n);
}
INLINE void vf_store_as(void *p, enum dtype t, vf a)
{
    if (t == DT_F32) vf_store(p, a);
    else if (t == DT_BF16) vf_store_bf16(p, a);
    else vf_store_f16(p, a);
}
INLINE void vf_store_as_n(void *p, enum dtype t, vf a, int64_t n)
{
    float tmp[VW];
    vf_store_as(tmp, t, a);
    memcpy(p, tmp, (size_t)n * (t == DT_F32 ? 4 : 2));
}

/* n elements of a float type as f32. */
static inline void span_to_f32(float *dst, const void *src, enum dtype t, int64_t n)
{
    const char *s = src;
    const int64_t size = (int64_t)dtype_bytes(t);
    int64_t i = 0;
    for (; i + VW <= n; i += VW) vf_store(dst + i, vf_load_as(s + i * size, t));
    if (i < n) vf_store_n(dst + i, vf_load_as_n(s + i * size, t, n - i), n - i);
}

/* A norm's weight or a bias as f32: its own memory, or a copy in scratch; NULL where there is none. */
static inline const float *weight_f32(struct kctx *kc, struct tensor w)
{
    if (!w.p || w.type == DT_F32) return w.p;
    float *f = arena_take(kc->scratch, (size_t)tensor_count(w) * sizeof *f);
    if (w.type == DT_BF16 || w.type == DT_F16) span_to_f32(f, w.p, (enum dtype)w.type, tensor_count(w));
    else dtype_convert(f, DT_F32, w.p, (enum dtype)w.type, tensor_count(w));
    return f;
}
