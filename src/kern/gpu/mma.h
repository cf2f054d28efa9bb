/* The matrix units of NVIDIA's sm_80 and later, a warp at a time: D[16,8] += A[16,16] B[16,8] in bf16 or f16
 * with f32 sums (PTX ISA, "mma.m16n8k16"), and loads of fragments from shared memory.
 *
 * Fragments, by lane: g = lane / 4, q = lane % 4.
 *   A  a[0] rows g, a[1] rows g + 8, both columns 2q, 2q + 1; a[2], a[3] the same, columns + 8
 *   B  b[0] rows 2q, 2q + 1, b[1] rows + 8, both column g
 *   D  d[0], d[1] row g, columns 2q, 2q + 1; d[2], d[3] row g + 8
 * So D of one product, converted to 16 bits, is A of the next. */
#pragma once
#include "kern/gpu/attn.h"

#if GPU_HAS_MMA

template <class E> struct mma_type;
template <> struct mma_type<gpu_bf16> {
    enum { BF16 = 1 };
};
template <> struct mma_type<gpu_f16> {
    enum { BF16 = 0 };
};

template <class E> __device__ inline void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    if (mma_type<E>::BF16)
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, "
                     "%7}, {%8, %9}, "
                     "{%0, %1, %2, %3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    else
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* D[16,8] += A[16,32] B[32,8] in integers: A of 8 bits, unsigned or not, B signed. As above with four neighbours for
 * two: a[0] has columns 4q to 4q + 3, a[2] those + 16. (PTX ISA, "mma.m16n8k32") */
template <bool UNSIGNED>
__device__ inline void mma_8(int (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1)
{
    if (UNSIGNED)
        asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                     "{%0, %1, %2, %3};"
                     : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    else
        asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                     "{%0, %1, %2, %3};"
                     : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/* Two floats as two neighbours of 16 bits, lo in the lower half. */
template <class E> __device__ inline uint32_t mma_pair(float lo, float hi)
{
    uint32_t r;
    if (mma_type<E>::BF16)
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    else
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}

/* Four 8x8 matrices of 16-bit numbers; lane l gives the address of row l % 8 of matrix l / 8. */
__device__ inline void ldmatrix(uint32_t (&r)[4], uint32_t at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at));
}
__device__ inline void ldmatrix_t(uint32_t (&r)[4], uint32_t at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at));
}

/* ---- tiles [rows][D] in shared memory, aligned to 128 bytes. The 16-byte pieces of a row are permuted by
 * the row's number, so that eight rows of one column of pieces lie in different banks: piece c of row r is at
 * c ^ (r & 7). */

template <int D> __device__ inline uint32_t tile_at(uint32_t tile, int row, int piece)
{
    return tile + (uint32_t)(row * D + ((piece ^ (row & 7)) << 3)) * 2;
}

/* As copy_16: 4 or 8 bytes. */
template <int n> __device__ inline void copy_small(uint32_t to, const void *from, bool there)
{
    const int bytes = there ? n : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(n), "r"(bytes) : "memory");
}

/* Rows [at, at+ROWS) of one head, by `table` if there is one, zeros outside [from, to), each PITCH bytes behind the one
 * before; by all threads of a block. This thread has piece c of row r, whose place is `first`, and of every STEP-th row
 * after it. */
template <class E, int ROWS, int STEP, int PITCH>
__device__ inline void copy_rows(uint32_t first, int r, int c, const E *x, int64_t stride, int at, int from, int to,
                                 const int32_t *table)
{
    x += c * 8;
    if (table) {
#pragma unroll
        for (int i = 0; i < ROWS; i += STEP) {
            const int row = at + r + i;
            copy_16(first + i * PITCH, x + attn_row(table, min(max(row, from), to - 1)) * stride,
                    row >= from && row < to);
        }
        return;
    }
    x += (int64_t)(at + r) * stride; /* not looked at where there is no such row */
#pragma unroll
    for (int i = 0; i < ROWS; i += STEP, x += STEP * stride)
        copy_16(first + i * PITCH, x, at + r + i >= from && at + r + i < to);
}

/* As copy_rows, into a tile. */
template <class E, int D, int ROWS, int THREADS>
__device__ inline void tile_copy(uint32_t tile, const E *x, int64_t stride, int at, int from, int to,
                                 const int32_t *table = NULL)
{
    enum { PIECES = D / 8, STEP = THREADS / PIECES };
    const int r = (int)threadIdx.x / PIECES, c = (int)threadIdx.x % PIECES;
    static_assert(STEP % 8 == 0, "a thread's pieces have one place in all its rows");
    const uint32_t first = tile_at<D>(tile, r, c);
    copy_rows<E, ROWS, STEP, D * 2>(first, r, c, x, stride, at, from, to, table);
}

/* Byte k + 128 of a word as the low bits of 2^23 + that: exact, and quicker than the unit that converts. */
template <int k> __device__ inline float byte_number(uint32_t turned)
{
    uint32_t r;
    asm("prmt.b32 %0, %1, 0x4b000000, %2;" : "=r"(r) : "r"(turned), "n"(0x7440 | k));
    return bits_float(r) - (float)((1 << 23) + 128);
}

/* Eight numbers of 8 bits, times s, and where they go. */
template <class E> __device__ inline void q8_store(uint32_t to, uint2 q, float s)
{
    uint32_t w[4];
#pragma unroll
    for (int j = 0; j < 2; j++) {
        const uint32_t b = (j ? q.y : q.x) ^ 0x80808080u;
        w[2 * j] = mma_pair<E>(s * byte_number<0>(b), s * byte_number<1>(b));
        w[2 * j + 1] = mma_pair<E>(s * byte_number<2>(b), s * byte_number<3>(b));
    }
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3])
                 : "memory");
}

/* As tile_copy from rows of 8 bits, whose columns from `col` on are the head. These pass through registers. */
template <class E, int D, int ROWS, int THREADS>
__device__ inline void tile_copy_q8(uint32_t tile, const quant_view &x, int col, int at, int from, int to,
                                    const int32_t *table)
{
    enum { PIECES = D / 8, STEP = THREADS / PIECES, N = ROWS / STEP };
    const int r = (int)threadIdx.x / PIECES, c = (int)threadIdx.x % PIECES;
    const uint32_t first = tile_at<D>(tile, r, c);
    uint2 q[N];
    float s[N];
    col += c * 8;
#pragma unroll
    for (int i = 0; i < N; i++) {
        const int row = at + r + i * STEP;
        const bool there = row >= from && row < to;
        const char *p = x.p + (there ? attn_row(table, row) : 0) * x.pitch;
        q[i] = there ? *(const uint2 *)(p + col) : make_uint2(0, 0);
        s[i] = there ? quant_scale(x, p, col / QUANT_GROUP) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < N; i++) q8_store<E>(first + (uint32_t)(i * STEP * D * 2), q[i], s[i]);
}

/* Where this lane's part of a fragment starts. For tile_a and tile_bt, and for tile_b. */
template <int D> __device__ inline uint32_t tile_lane(uint32_t tile, int row)
{
    const int lane = (int)threadIdx.x % 32;
    return tile_at<D>(tile, row + lane % 16, lane / 16);
}
template <int D> __device__ inline uint32_t tile_lane_b(uint32_t tile)
{
    const int lane = (int)threadIdx.x % 32;
    return tile_at<D>(tile, lane / 16 * 8 + lane % 8, lane / 8 % 2);
}
/* Two pieces further for each k, 16 rows for each m. */
template <int D> __device__ inline uint32_t tile_step(uint32_t at, int m, int k)
{
    return (at ^ (uint32_t)((2 * k & 6) << 4)) + (uint32_t)((2 * k & 8) * 16 + m * 32 * D);
}

/* A: rows [16m, 16m+16), columns [16k, 16k+16). */
template <int D> __device__ inline void tile_a(uint32_t (&a)[4], uint32_t at, int m, int k)
{
    ldmatrix(a, tile_step<D>(at, m, k));
}
/* B of x tile^T: its columns are the tile's rows [16m, 16m+8), then the next 8; its rows the columns [16k,
 * 16k+16). */
template <int D> __device__ inline void tile_b(uint32_t (&b)[4], uint32_t at, int m, int k)
{
    ldmatrix(b, tile_step<D>(at, m, k));
}
/* B of x tile: its rows are the tile's rows [16m, 16m+16); its columns [16n, 16n+8), then the next 8. */
template <int D> __device__ inline void tile_bt(uint32_t (&b)[4], uint32_t at, int m, int n)
{
    ldmatrix_t(b, tile_step<D>(at, m, n));
}

#endif
