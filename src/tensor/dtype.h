/* Element types, and conversion between them. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* XX(name, bytes, safetensors name, torch storage class, is a float) */
#define DTYPE_MAP(XX)                             \
    XX(F32, 4, "F32", "FloatStorage", true)       \
    XX(F16, 2, "F16", "HalfStorage", true)        \
    XX(BF16, 2, "BF16", "BFloat16Storage", true)  \
    XX(F64, 8, "F64", "DoubleStorage", true)      \
    XX(I32, 4, "I32", "IntStorage", false)        \
    XX(I64, 8, "I64", "LongStorage", false)       \
    XX(U8, 1, "U8", "ByteStorage", false)         \
    XX(I8, 1, "I8", "CharStorage", false)         \
    XX(I16, 2, "I16", "ShortStorage", false)      \
    XX(BOOL, 1, "BOOL", "BoolStorage", false)

/* The types of files, then the quantised ones of quant.h, which files hold as rows of U8. */
enum dtype {
#define XX(name, bytes, st, torch, real) DT_##name,
    DTYPE_MAP(XX)
#undef XX
    N_DTYPE,
    DT_Q8 = N_DTYPE,
    DT_Q4
};

size_t dtype_bytes(enum dtype t);                /* of an element; quantised types have rows only: a bug */
size_t dtype_row_bytes(enum dtype t, int64_t n); /* of a row of n elements */
bool dtype_is_float(enum dtype t);               /* false for quantised ones */
static inline bool dtype_is_quant(enum dtype t) { return t == DT_Q8 || t == DT_Q4; }
const char *dtype_name(enum dtype t);            /* "F32", as safetensors writes it; "Q8", "Q4" */
int dtype_find(const char *name,
               enum dtype *ret); /* "F32" or "f32" or "float32"/"bfloat16"/"float16"; -1: none */
int dtype_find_torch(const char *storage, enum dtype *ret); /* "HalfStorage"; -1: none */

/* Round to nearest, ties to even; NaN stays NaN. */
uint16_t f32_to_bf16(float f);
uint16_t f32_to_f16(float f);
float f16_to_f32(uint16_t h);
static inline float bf16_to_f32(uint16_t h)
{
    union { uint32_t u; float f; } v = { (uint32_t)h << 16 };
    return v.f;
}

/* n elements of a float type from src to dst; src and dst do not overlap (or are equal with equal types). Rows of
 * quantised types: tensor_convert. */
void dtype_convert(void *dst, enum dtype to, const void *src, enum dtype from, int64_t n);
