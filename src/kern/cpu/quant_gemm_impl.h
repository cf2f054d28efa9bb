/* Large products with quantised weights: gemm_impl.h's blocks with lanes of integers.
 *
 * A lane is 32 bits: four bytes (AVX-512: an instruction multiplies and adds four) or two 16-bit integers (AVX2). A
 * panel holds, for each group of 64 steps of the sum, LANES lanes for each of its MR (or NR) rows, and then their
 * scales; the panel of x also what takes off the offset that makes w unsigned. A group is summed in integers, then
 * scaled into f32 sums.
 */
#include "kern/cpu/quant.h"

#ifdef __AVX512F__
enum { MR = 6, NV = 2, PER_LANE = 4 };
#else
enum { MR = 6, NV = 2, PER_LANE = 2 };
#endif
enum {
    NR = NV * VW,
    LANES = QUANT_GROUP / PER_LANE, /* of a group */
    A_GROUP = (LANES + 2) * MR,     /* 32-bit words in a panel of x: lanes, scales, starts of the sums */
    B_GROUP = (LANES + 1) * NR,
    GC = 1024 / LANES,              /* groups of K in a block */
    MC = 176 * MR,                  /* tokens in a block: a step of the engine */
    GROUP = 4,                      /* panels of w that a thread holds */
};

/* ---- packing */

#ifdef __AVX512F__

enum { PIECES = 1 }; /* of VW lanes in a group */

/* A group of a row, unsigned: the level or q plus its offset. */
INLINE void lanes_load(vi v[PIECES], const char *p, enum dtype t)
{
    if (t == DT_Q8) {
        v[0] = _mm512_xor_si512(vi_load(p), _mm512_set1_epi8((char)0x80));
        return;
    }
    const __m256i b = _mm256_loadu_si256((const __m256i *)(const void *)p), low = _mm256_set1_epi8(15);
    const __m256i hi = _mm256_and_si256(_mm256_srli_epi16(b, 4), low);
    const vi at = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_and_si256(b, low)), hi, 1);
    v[0] = vi_lookup(vi_table(quant_unsigned), at);
}

static int32_t x_lane(const int8_t *q)
{
    int32_t v;
    memcpy(&v, q, sizeof v);
    return v;
}

INLINE vi lane_fma(vi w, vi x, vi sum) { return _mm512_dpbusd_epi32(sum, w, x); }
static int32_t start_of(int32_t sum, enum dtype t) { return -(t == DT_Q8 ? 128 : QUANT4_ZERO) * sum; }

#else

enum { PIECES = 4 };

INLINE void lanes_load(vi v[PIECES], const char *p, enum dtype t)
{
    vi half[2];
    if (t == DT_Q8) {
        half[0] = vi_load(p);
        half[1] = vi_load(p + 32);
    } else {
        const vi b = vi_load(p), table = vi_table((const uint8_t *)quant_level);
        half[0] = vi_lookup(table, vi_low4(b));
        half[1] = vi_lookup(table, vi_high4(b));
    }
    for (int i = 0; i < 2; i++) {
        v[2 * i] = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(half[i]));
        v[2 * i + 1] = _mm256_cvtepi8_epi16(_mm256_extracti128_si256(half[i], 1));
    }
}

static int32_t x_lane(const int8_t *q)
{
    const int16_t two[2] = { q[0], q[1] };
    int32_t v;
    memcpy(&v, two, sizeof v);
    return v;
}

/* Twelve sums, two factors, a broadcast and one product are all 16 registers: left to itself gcc 12 makes all products
 * first and keeps the sums in memory, which takes 2.5 times as long. */
INLINE vi lane_fma(vi w, vi x, vi sum)
{
    vi product;
    __asm__("vpmaddwd %[w], %[x], %[t]\n\tvpaddd %[t], %[s], %[s]"
            : [s] "+x"(sum), [t] "=&x"(product)
            : [w] "x"(w), [x] "x"(x));
    return sum;
}

static int32_t start_of(int32_t sum, enum dtype t) { return (void)sum, (void)t, 0; }

#endif

/* One block of K and of tokens. */
struct block {
    const struct cpu_quant *p;
    int64_t g0, g1, m0, m1;   /* groups, tokens */
    int32_t *a;               /* panels of x */
    int64_t a_panel, b_panel; /* words */
};

/* MR tokens from m; those that do not exist are zeros. */
static void pack_x(const struct block *bl, int32_t *to, int64_t m)
{
    const struct xq *x = &bl->p->x;
    for (int64_t g = bl->g0; g < bl->g1; g++, to += A_GROUP)
        for (int64_t i = 0; i < MR; i++) {
            const bool real = m + i < bl->m1;
            const int64_t at = real ? (m + i) * x->groups + g : 0;
            const float scale = real ? x->scale[at] : 0;
            for (int64_t l = 0; l < LANES; l++)
                to[l * MR + i] = real ? x_lane(x->q + at * QUANT_GROUP + l * PER_LANE) : 0;
            memcpy(to + LANES * MR + i, &scale, sizeof scale);
            to[(LANES + 1) * MR + i] = real ? start_of(x->sum[at], (enum dtype)bl->p->w.type) : 0;
        }
}

/* VW outputs from c as a part of a panel; those that do not exist repeat the last one, and nobody reads them. */
INLINE void pack_w(const struct block *bl, int32_t *to, int64_t c, enum dtype t)
{
    const struct cpu_quant *p = bl->p;
    const int64_t each = t == DT_Q8 ? QUANT_GROUP : QUANT_GROUP / 2, scales_at = quant_scales_at(t, p->in);
    const char *row[VW];
    for (int64_t i = 0; i < VW; i++) row[i] = tensor_row(p->w, c + i < p->out ? c + i : p->out - 1);
    for (int64_t g = bl->g0; g < bl->g1; g++, to += B_GROUP) {
        vi v[VW][PIECES];
        uint16_t h[VW];
        for (int i = 0; i < VW; i++) {
            lanes_load(v[i], row[i] + g * each, t);
            h[i] = ((const uint16_t *)(const void *)(row[i] + scales_at))[g];
        }
        for (int k = 0; k < PIECES; k++) {
            vf r[VW];
            for (int i = 0; i < VW; i++) r[i] = vf_of(v[i][k]);
            vf_transpose(r);
            for (int i = 0; i < VW; i++) vf_store((float *)to + (k * VW + i) * NR, r[i]);
        }
        vf_store((float *)to + LANES * NR, vf_load_f16(h));
    }
}

/* ---- multiplying */

/* sum[MR][NV] = the f32 sums of a tile's first `high` (a constant) tokens. */
INLINE void multiply(vf sum[MR][NV], const int32_t *a, const int32_t *b, int64_t groups, int high)
{
    for (int i = 0; i < high; i++)
        for (int j = 0; j < NV; j++) sum[i][j] = vf_zero();
    for (int64_t g = 0; g < groups; g++, a += A_GROUP, b += B_GROUP) {
        vi acc[MR][NV];
        for (int i = 0; i < high; i++)
            for (int j = 0; j < NV; j++) acc[i][j] = vi_set(PER_LANE == 4 ? a[(LANES + 1) * MR + i] : 0);
        const int32_t *x = a, *w = b;
        for (int l = 0; l < LANES; l++, x += MR, w += NR) {
            vi v[NV];
            for (int j = 0; j < NV; j++) v[j] = vi_load(w + j * VW);
            for (int i = 0; i < high; i++) {
                const vi one = vi_set(x[i]);
                for (int j = 0; j < NV; j++) acc[i][j] = lane_fma(v[j], one, acc[i][j]);
            }
        }
        const float *sx = (const float *)(const void *)(a + LANES * MR), *sw = (const float *)(const void *)w;
        for (int i = 0; i < high; i++)
            for (int j = 0; j < NV; j++)
                sum[i][j] = vf_fma(vf_mul(vf_from_int(acc[i][j]), vf_set(sx[i])), vf_load(sw + j * VW), sum[i][j]);
    }
}

/* A tile's sums into y: a row at a time, through memory, because corners are partial. */
INLINE void tile(const struct block *bl, const int32_t *a, const int32_t *b, int64_t m, int64_t c, int high)
{
    const struct cpu_quant *p = bl->p;
    const int64_t rows = bl->m1 - m < high ? bl->m1 - m : high;
    vf sum[MR][NV];
    multiply(sum, a, b, bl->g1 - bl->g0, high);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < NV && c + j * VW < p->out; j++) {
            const int64_t left = p->out - c - j * VW, at = (m + i) * p->out + c + j * VW;
            const float *more = bl->g0 ? p->y : p->res;
            vf v = sum[i][j];
            if (left >= VW) {
                if (p->bias && !bl->g0) v = vf_add(v, vf_load(p->bias + c + j * VW));
                vf_store(p->y + at, more ? vf_add(v, vf_load(more + at)) : v);
            } else {
                if (p->bias && !bl->g0) v = vf_add(v, vf_load_n(p->bias + c + j * VW, left));
                vf_store_n(p->y + at, more ? vf_add(v, vf_load_n(more + at, left)) : v, left);
            }
        }
}

/* Outputs [c0, c1) of the block's tokens; b: the thread's room. */
static void columns(const struct block *bl, int32_t *b, int64_t c0, int64_t c1)
{
    for (int64_t c = c0; c < c1; c += NR)
        for (int v = 0; v < NV && c + v * VW < c1; v++) {
            int32_t *to = b + (c - c0) / NR * bl->b_panel + v * VW;
            if (bl->p->w.type == DT_Q8) pack_w(bl, to, c + v * VW, DT_Q8);
            else pack_w(bl, to, c + v * VW, DT_Q4);
        }
    for (int64_t m = bl->m0; m < bl->m1; m += MR)
        for (int64_t c = c0; c < c1; c += NR) {
            const int32_t *a = bl->a + (m - bl->m0) / MR * bl->a_panel, *w = b + (c - c0) / NR * bl->b_panel;
            if (bl->m1 - m > MR / 2) tile(bl, a, w, m, c, MR);
            else tile(bl, a, w, m, c, MR / 2);
        }
}

static void run_block(const struct block *bl, int64_t width, int32_t *room, int n_threads)
{
    const int64_t out = bl->p->out, panels = (bl->m1 - bl->m0 + MR - 1) / MR, room_each = width / NR * bl->b_panel;
#pragma omp parallel num_threads(n_threads)
    {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < panels; i++) pack_x(bl, bl->a + i * bl->a_panel, bl->m0 + i * MR);
#pragma omp for schedule(dynamic)
        for (int64_t c = 0; c < out; c += width)
            columns(bl, room + omp_get_thread_num() * room_each, c, c + width < out ? c + width : out);
    }
}

void ISA(cpu_quant_gemm)(struct kctx *kc, const struct cpu_quant *p)
{
    const int n_threads = cpu_threads(kc, p->tokens * p->out / 64 * (p->in / 8 + 1));
    const int64_t groups = quant_groups(p->in), blocks = (groups + GC - 1) / GC, most = (groups + blocks - 1) / blocks;
    const int64_t rows = p->tokens < MC ? p->tokens : MC;
    int64_t width = NR;
    while (width < GROUP * NR && p->out / (2 * width) >= 4 * n_threads) width *= 2;
    struct block bl = { .p = p, .a_panel = most * A_GROUP, .b_panel = most * B_GROUP };
    const size_t mark = arena_mark(kc->scratch);
    bl.a = arena_take(kc->scratch, (size_t)((rows + MR - 1) / MR * bl.a_panel) * sizeof *bl.a);
    int32_t *room = arena_take(kc->scratch, (size_t)(n_threads * (width / NR) * bl.b_panel) * sizeof *room);
    for (bl.g0 = 0; bl.g0 < groups; bl.g0 = bl.g1) {
        bl.g1 = bl.g0 + most < groups ? bl.g0 + most : groups;
        for (bl.m0 = 0; bl.m0 < p->tokens; bl.m0 = bl.m1) {
            bl.m1 = bl.m0 + MC < p->tokens ? bl.m0 + MC : p->tokens;
            run_block(&bl, width, room, n_threads);
        }
    }
    arena_rewind(kc->scratch, mark);
}
