/* Products of many rows with quantised weights on sm_90a's matrix units: prompts and pictures. A block has 128 rows of
 * w and some tokens at a time. One thread has both copied into a ring (tma.h), w in its few bits. Two groups of four
 * warps have 64 rows of w each: these become numbers of 16 bits in the registers from which the unit reads them, while
 * products of the columns before run, and are stored nowhere. They are those that quant_cast makes; sums run along the
 * columns, sixteen at a time, so a token's do not depend on how many there are. */
#include "kern/gpu/quant.h"
#include "kern/gpu/tma.h"

#if GPU_HAS_WGMMA

enum {
    WEIGHTS = 3,
    ROWS = WG_GROUPS * 64,
    BAND = 8,                      /* tiles of tokens that have a tile of w in turn */
    SHARED = (227 << 10) - (1 << 9) /* bytes of a block, less the ring's barriers */
};

struct many_args {
    tma_map x_map, w_map[WEIGHTS];
    quant_view w; /* of all; p: not used */
    const char *at[WEIGHTS];
    view y[WEIGHTS], b[WEIGHTS], res; /* res: of y[0] */
    int T, O, row_tiles, token_tiles, tiles; /* row_tiles: of one of the weights; tiles: of all */
};

/* What a block has in shared memory: x and w of each stage, and where results turn. */
template <int TYPE, int N> struct many_shape {
    static constexpr int TOKENS = N, PIECES = QUANT_GROUP / 16 / (TYPE == DT_Q8 ? 1 : 2), /* of a row of w */
                         PITCH = PIECES * 16, X = TOKENS * 128, W = ROWS * PITCH,
                         TURN = 32 * 32, /* of a warp: 32 tokens with its 16 rows of w */
                         TURNS = WG_READERS / 32 * TURN,
                         FIT = (SHARED - WG_ALIGN - TURNS) / (X + W), STAGES = FIT < 8 ? FIT : 8,
                         BYTES = STAGES * (X + W) + TURNS;
    static __device__ uint32_t x(uint32_t mem, int n) { return mem + (uint32_t)(n % STAGES) * X; }
    static __device__ uint32_t w(uint32_t mem, int n) { return mem + STAGES * X + (uint32_t)(n % STAGES) * W; }
    static __device__ uint32_t turn(uint32_t mem, int warp)
    {
        return mem + STAGES * (X + W) + (uint32_t)warp * TURN;
    }
};

#    if defined(__CUDA_ARCH_FEAT_SM90_ALL)

struct many_tile {
    int w, row, token;
};

/* Neighbours have the same rows of w: all blocks together read them once. */
template <int TOKENS> __device__ inline many_tile tile_of(const many_args &a, int i)
{
    const int all = a.tiles / a.token_tiles, first = i / (BAND * all) * BAND, n = min(BAND, a.token_tiles - first);
    const int j = i - first * all, o = j / n;
    return { o / a.row_tiles, o % a.row_tiles * ROWS, (first + j % n) * TOKENS };
}

/* ---- who fills: one thread */

/* Items [n, n + groups) are a tile's. Parts of the first ones may be asked for alone. */
template <class S, bool with_w, bool with_x>
__device__ inline void fill_one(const many_args &a, wg_ring<S::STAGES> *ring, uint32_t mem, int n, const many_tile &t,
                                int k)
{
    uint64_t *full = ring->full + n % S::STAGES;
    if (with_w) {
        if (n >= S::STAGES) barrier_wait(ring->free + n % S::STAGES, n / S::STAGES - 1);
        barrier_expect(full, S::X + S::W);
        tma_copy(S::w(mem, n), a.w_map + t.w, k * S::PITCH, t.row, full);
    }
    if (with_x) tma_copy(S::x(mem, n), &a.x_map, k * 2 * QUANT_GROUP, t.token, full);
}

/* The first of w before the kernel that may write x ends. */
template <class S> __device__ inline void many_fill(const many_args &a, wg_ring<S::STAGES> *ring, uint32_t mem)
{
    const many_tile first = tile_of<S::TOKENS>(a, (int)blockIdx.x);
    const int early = min(S::STAGES, a.w.groups);
    int n = 0;
    for (; n < early; n++) fill_one<S, true, false>(a, ring, mem, n, first, n);
    gpu_wait_for_previous();
    for (n = 0; n < early; n++) fill_one<S, false, true>(a, ring, mem, n, first, n);
    for (int tile = (int)blockIdx.x; tile < a.tiles; tile += (int)gridDim.x) {
        const many_tile t = tile_of<S::TOKENS>(a, tile);
        for (int k = tile == (int)blockIdx.x ? early : 0; k < a.w.groups; k++, n++)
            fill_one<S, true, true>(a, ring, mem, n, t, k);
    }
}

/* ---- those who read */

__device__ inline uint32_t shared_16(uint32_t at)
{
    uint16_t r;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(r) : "r"(at));
    return r;
}

/* Byte k of a word as a float: Q4's, below 128, plus 128; Q8's over 256, plus 128. */
template <int TYPE, int k> __device__ inline float byte_of(uint32_t word)
{
    uint32_t r;
    asm("prmt.b32 %0, %1, 0x43000000, %2;"
        : "=r"(r)
        : "r"(word), "n"(TYPE == DT_Q8 ? 0x7404 | k << 4 : 0x7044 | k << 8));
    return bits_float(r);
}

/* A row's numbers from bytes as above: scale and zero, a product and a sum that round once in all. */
struct many_scale {
    float s, zero;
};
template <int TYPE> __device__ inline many_scale scale_of(uint32_t half)
{
    const float s = gpu_float(gpu_f16{ (uint16_t)half });
    if (TYPE == DT_Q8) return { s * 256.0f, s * (-128.0f * 256.0f - 128.0f) };
    return { s, s * (-128.0f - QUANT4_ZERO) };
}
template <class E, int TYPE, int k, int l> __device__ inline uint32_t two_of(uint32_t word, many_scale m)
{
    return mma_pair<E>(fmaf(byte_of<TYPE, k>(word), m.s, m.zero), fmaf(byte_of<TYPE, l>(word), m.s, m.zero));
}

/* The scales of this lane's rows g and g + 8, one group after the other; each is asked for two groups ahead. */
struct many_scales {
    const char *at[2];
    uint32_t next[2][2]; /* by group % 2 */
    int groups;
};
__device__ inline uint32_t global_16(const void *p)
{
    uint16_t r;
    asm volatile("ld.global.nc.u16 %0, [%1];" : "=h"(r) : "l"(p));
    return r;
}
__device__ inline void scales_ask(many_scales &s, int k, uint32_t (&to)[2])
{
#pragma unroll
    for (int i = 0; i < 2; i++) to[i] = global_16(s.at[i] + (k < s.groups ? k : 0) * 2);
}
__device__ inline many_scales scales_start(const many_args &a, const many_tile &t, int row)
{
    many_scales s;
    s.groups = a.w.groups;
#pragma unroll
    for (int i = 0; i < 2; i++) s.at[i] = a.at[t.w] + min(t.row + row + i * 8, a.O - 1) * a.w.pitch + a.w.scales_at;
    scales_ask(s, 0, s.next[0]);
    scales_ask(s, 1, s.next[1]);
    return s;
}

/* Of group k of a tile: what a lane needs to make numbers of its rows. */
struct many_raw {
    uint32_t at; /* where its row g has the first two columns of 16 */
    many_scale m[2];
};

/* A quarter of a group's 64 columns, as the unit wants them. The pieces of a row are permuted by `turn`. */
template <class E, int TYPE, class S, int part>
__device__ inline void many_numbers(uint32_t (&n)[4][4], const quant_view &w, const many_raw &r, uint32_t turn)
{
    enum { Q4 = TYPE != DT_Q8, PIECE = Q4 ? part / 2 : part, FIRST = Q4 ? part % 2 * 2 : 0, SOME = Q4 ? 2 : 4 };
#pragma unroll
    for (int i = FIRST; i < FIRST + SOME; i++) { /* of mma.h's A */
        const uint32_t at = r.at + ((uint32_t)(PIECE * 16) ^ turn);
        const uint32_t b = shared_16(at + (uint32_t)(i % 2 * 8 * S::PITCH + i / 2 * 8));
        if (Q4) {
            const uint32_t u = gpu_lookup4(w.level, b);
            n[PIECE][i] = two_of<E, TYPE, 0, 2>(u, r.m[i % 2]);
            n[(PIECE + 2) % 4][i] = two_of<E, TYPE, 1, 3>(u, r.m[i % 2]);
        } else {
            n[PIECE][i] = two_of<E, TYPE, 0, 1>(b ^ 0x8080u, r.m[i % 2]);
        }
    }
}

/* Waits for group k of a tile whose first is `item`; the scales of two groups on are asked for. */
template <int TYPE, class S>
__device__ inline many_raw many_await(wg_ring<S::STAGES> *ring, uint32_t mem, int item, int k, uint32_t w_at,
                                      many_scales &s, uint32_t (&next)[2])
{
    const many_raw r = { S::w(mem, item + k) + w_at, { scale_of<TYPE>(next[0]), scale_of<TYPE>(next[1]) } };
    scales_ask(s, k + 2, next);
    ring_await(ring, item + k);
    return r;
}

/* Products of group k, whose numbers are in n, while those of the next one come into `to`. The unit takes one product
 * after the other, and a warp waits for it to take one: so there is some work between two of them. */
template <class E, int TYPE, class S, bool more>
__device__ inline void many_step(const many_args &a, wg_ring<S::STAGES> *ring, uint32_t mem, int item, int k,
                                 uint32_t w_at, uint32_t turn, many_scales &s, int odd, const uint32_t (&n)[4][4],
                                 uint32_t (&to)[4][4], float (&d)[S::TOKENS / 8][4])
{
    const uint32_t x = wg_tile(S::x(mem, item + k), 16);
    many_raw r;
    wg_begin();
    wg_rbt16<E>(d, n[0], wg_part(x, 0));
    wg_wait<0>(); /* of the group before */
    if (k) ring_free(ring, item + k - 1);
    if (more) r = many_await<TYPE, S>(ring, mem, item, k + 1, w_at, s, s.next[!odd]);
    if (more) many_numbers<E, TYPE, S, 0>(to, a.w, r, turn);
    wg_begin();
    wg_rbt16<E>(d, n[1], wg_part(x, 32));
    if (more) many_numbers<E, TYPE, S, 1>(to, a.w, r, turn);
    wg_begin();
    wg_rbt16<E>(d, n[2], wg_part(x, 64));
    if (more) many_numbers<E, TYPE, S, 2>(to, a.w, r, turn);
    wg_begin();
    wg_rbt16<E>(d, n[3], wg_part(x, 96));
    wg_commit();
    if (more) many_numbers<E, TYPE, S, 3>(to, a.w, r, turn);
}

/* All groups of a tile. */
template <class E, int TYPE, class S>
__device__ inline void many_sums(const many_args &a, wg_ring<S::STAGES> *ring, uint32_t mem, int item, uint32_t w_at,
                                 uint32_t turn, many_scales &s, float (&d)[S::TOKENS / 8][4])
{
    uint32_t even[4][4], odd[4][4];
    const many_raw r = many_await<TYPE, S>(ring, mem, item, 0, w_at, s, s.next[0]);
    int k = 0;
    many_numbers<E, TYPE, S, 0>(even, a.w, r, turn);
    many_numbers<E, TYPE, S, 1>(even, a.w, r, turn);
    many_numbers<E, TYPE, S, 2>(even, a.w, r, turn);
    many_numbers<E, TYPE, S, 3>(even, a.w, r, turn);
    for (; k + 2 < s.groups; k += 2) {
        many_step<E, TYPE, S, true>(a, ring, mem, item, k, w_at, turn, s, 0, even, odd, d);
        many_step<E, TYPE, S, true>(a, ring, mem, item, k + 1, w_at, turn, s, 1, odd, even, d);
    }
    if (k + 1 < s.groups) {
        many_step<E, TYPE, S, true>(a, ring, mem, item, k, w_at, turn, s, 0, even, odd, d);
        many_step<E, TYPE, S, false>(a, ring, mem, item, k + 1, w_at, turn, s, 1, odd, even, d);
    } else {
        many_step<E, TYPE, S, false>(a, ring, mem, item, k, w_at, turn, s, 0, even, odd, d);
    }
    wg_wait<0>();
    wg_pin(d);
    ring_free(ring, item + s.groups - 1);
}

/* Four 8x8 matrices, turned around: as ldmatrix_t. */
__device__ inline void stmatrix_t(uint32_t at, const uint32_t (&r)[4])
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(r[0]),
                 "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
}

/* Where the 8 rows of w of a token's lower or upper half are while results turn: rows of w become neighbours. */
__device__ inline uint32_t turn_at(uint32_t mem, int token, int upper)
{
    return mem + (uint32_t)(token * 32 + (upper ^ (token / 4 % 2)) * 16);
}

/* What is to be done for each of 32 tokens and either half of the rows, shared out to a warp. */
template <class F> __device__ inline void halves_do(F f)
{
    const int lane = (int)threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 32; i += 16) f(i + lane / 2, lane % 2);
}

/* Sums and what is added to them become results of E: row and token are the warp's first. */
template <class E, int TOKENS>
__device__ inline void many_store(const many_args &a, const many_tile &t, int row, const float (&bias)[2], uint32_t mem,
                                  float (&d)[TOKENS / 8][4])
{
    const int lane = (int)threadIdx.x % 32;
    E *y = (E *)a.y[t.w].p + (int64_t)t.token * a.O + row;
    const E *res = (const E *)a.res.p + (int64_t)t.token * a.O + row;
#pragma unroll
    for (int s = 0; s < TOKENS; s += 32) {
        const auto there = [&](int token, int upper) {
            return s + token < TOKENS && t.token + s + token < a.T && row + upper * 8 < a.O;
        };
        if (a.res.p) {
            halves_do([&](int token, int upper) {
                gpu_16bytes v = {};
                if (there(token, upper)) v = *(const gpu_16bytes *)(res + (int64_t)(s + token) * a.O + upper * 8);
                asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(turn_at(mem, token, upper)), "r"(v.u[0]),
                             "r"(v.u[1]), "r"(v.u[2]), "r"(v.u[3])
                             : "memory");
            });
            gpu_sync_warp();
        }
#pragma unroll
        for (int j = 0; j < 4; j += 2) {
            const uint32_t at = turn_at(mem, (j + lane / 16) * 8 + lane % 8, lane / 8 % 2);
            uint32_t v[4] = {}, old[4] = {};
            if (a.res.p) ldmatrix_t(old, at);
#pragma unroll
            for (int m = 0; m < 4; m++) {
                const int n = s / 8 + j + m / 2, upper = m % 2;
                if (n >= TOKENS / 8) continue;
                float lo = d[n][2 * upper] + bias[upper], hi = d[n][2 * upper + 1] + bias[upper];
                if (a.res.p) {
                    lo += gpu_float(E{ (uint16_t)old[m] });
                    hi += gpu_float(E{ (uint16_t)(old[m] >> 16) });
                }
                v[m] = mma_pair<E>(lo, hi);
            }
            stmatrix_t(at, v);
        }
        gpu_sync_warp();
        halves_do([&](int token, int upper) {
            gpu_16bytes v;
            asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                         : "=r"(v.u[0]), "=r"(v.u[1]), "=r"(v.u[2]), "=r"(v.u[3])
                         : "r"(turn_at(mem, token, upper))
                         : "memory");
            if (there(token, upper)) *(gpu_16bytes *)(y + (int64_t)(s + token) * a.O + upper * 8) = v;
        });
        gpu_sync_warp();
    }
}

/* The same in f32. */
template <int TOKENS>
__device__ inline void many_store_f32(const many_args &a, const many_tile &t, int row, const float (&bias)[2],
                                      float (&d)[TOKENS / 8][4])
{
    const int lane = (int)threadIdx.x % 32, token = t.token + lane % 4 * 2;
    float *y = (float *)a.y[t.w].p + row + lane / 4;
#pragma unroll
    for (int n = 0; n < TOKENS / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (token + n * 8 + i % 2 < a.T && row + i / 2 * 8 < a.O)
                y[(int64_t)(token + n * 8 + i % 2) * a.O + i / 2 * 8] = d[n][i] + bias[i / 2];
}

template <class E, int TYPE, class S>
__device__ inline void many_read(const many_args &a, wg_ring<S::STAGES> *ring, uint32_t mem)
{
    const int warp = wg_group() * 4 + (int)threadIdx.x / 32 % 4, lane = (int)threadIdx.x % 32;
    const int mine = warp * 16 + lane / 4;
    const uint32_t w_at = (uint32_t)(mine * S::PITCH + lane % 4 * 2),
                   turn = (uint32_t)(mine * S::PIECES / 8 % S::PIECES * 16);
    float d[S::TOKENS / 8][4];
    int item = 0;
    for (int tile = (int)blockIdx.x; tile < a.tiles; tile += (int)gridDim.x) {
        const many_tile t = tile_of<S::TOKENS>(a, tile);
        const int row = t.row + warp * 16;
#pragma unroll
        for (int n = 0; n < S::TOKENS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) d[n][i] = 0;
        many_scales s = scales_start(a, t, mine);
        many_sums<E, TYPE, S>(a, ring, mem, item, w_at, turn, s, d);
        item += s.groups;
        float bias[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int o = row + lane / 4 + i * 8;
            bias[i] = a.b[t.w].p && o < a.O ? view_get(a.b[t.w], o) : 0.0f;
        }
        if (a.y[t.w].type == DT_F32)
            many_store_f32<S::TOKENS>(a, t, row, bias, d);
        else
            many_store<E, S::TOKENS>(a, t, row, bias, S::turn(mem, warp), d);
    }
}

#    endif

template <class E, int TYPE, int TOKENS>
__global__ __launch_bounds__(WG_THREADS, 1) void wgmma_many(const __grid_constant__ many_args a)
{
#    if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    typedef many_shape<TYPE, TOKENS> S;
    GPU_SHARED(E, bytes);
    __shared__ wg_ring<S::STAGES> ring;
    const uint32_t mem = wg_align(bytes);
    if (threadIdx.x == 0) ring_start(&ring, 1);
    __syncthreads();
    gpu_let_next();
    if (threadIdx.x >= WG_READERS) {
        wg_fewer_registers<72>();
        if (threadIdx.x == WG_READERS) many_fill<S>(a, &ring, mem);
    } else {
        wg_more_registers<216>();
        gpu_wait_for_previous();
        many_read<E, TYPE, S>(a, &ring, mem);
    }
#    else
    (void)a;
    __trap(); /* quant_many_takes has seen a card that this is not compiled for */
#    endif
}

/* ---- the host's side */

bool quant_many_takes(const struct kctx *kc, struct tensor y, struct tensor x, struct tensor w, struct tensor res)
{
    const int64_t I = w.n[1], O = w.n[0];
    const bool types = x.type != DT_F32 && (y.type == x.type || (y.type == DT_F32 && !res.p)) && kc->product != DT_F32;
    return dtype_is_quant((enum dtype)w.type) && types && I % QUANT_GROUP == 0 && is_wide(O, x, y, res) &&
           bulk_present();
}

template <class E, int TYPE, int TOKENS> static void many_launch(struct kctx *kc, const many_args *a)
{
    gpu_launch_early(wgmma_many<E, TYPE, TOKENS>, dim3((unsigned)least(a->tiles, dev_units(kc->dev))), WG_THREADS,
                     WG_ALIGN + many_shape<TYPE, TOKENS>::BYTES, stream_of(kc), *a);
}

/* How many tokens a tile may have, and the kernel. Below LEAST its products take less time than w's numbers. */
enum { SIZES = 5, LEAST = 96 };
typedef void many_fn(struct kctx *, const many_args *);
static const int sizes[SIZES] = { 64, 128, 176, 216, 256 };
template <class E, int TYPE> static many_fn *many_of(int size)
{
    static many_fn *const all[SIZES] = { many_launch<E, TYPE, 64>, many_launch<E, TYPE, 128>, many_launch<E, TYPE, 176>,
                                         many_launch<E, TYPE, 216>, many_launch<E, TYPE, 256> };
    return all[size];
}

/* The size with which all tiles are done first: a tile takes 4 cycles for each group of columns and token, and some to
 * begin and end. */
static int best_size(struct kctx *kc, many_args *a, int n)
{
    enum { ENDS = 4000 };
    int64_t best = 0;
    int at = 0;
    for (int i = SIZES - 1; i >= 0; i--) {
        const int64_t tiles = (int64_t)n * a->row_tiles * ceil_div(a->T, sizes[i]);
        const int64_t each = 4 * a->w.groups * (sizes[i] > LEAST ? sizes[i] : LEAST) + ENDS;
        const int64_t all = ceil_div(tiles, dev_units(kc->dev)) * each;
        if (best && all >= best) continue;
        best = all, at = i;
        a->tiles = (int)tiles;
        a->token_tiles = (int)ceil_div(a->T, sizes[i]);
    }
    return at;
}

void quant_many_run(struct kctx *kc, const struct tensor *y, struct tensor x, const struct tensor *w,
                    const struct tensor *b, struct tensor res, int n)
{
    many_args a = {};
    a.w = quant_view_of(w[0]);
    a.res = view_of(res);
    a.T = (int)tensor_rows(x), a.O = (int)w[0].n[0];
    a.row_tiles = (int)ceil_div(a.O, ROWS);
    const int size = best_size(kc, &a, n);
    for (int i = 0; i < n; i++) {
        a.at[i] = (const char *)w[i].p, a.y[i] = view_of(y[i]), a.b[i] = view_of(b[i]);
        a.w_map[i] = tma_map_of(w[i].p, a.w.scales_at, a.O, a.w.pitch, a.w.scales_at / a.w.groups, ROWS);
    }
    a.x_map = tma_map_of(x.p, 2 * a.w.cols, a.T, 2 * a.w.cols, 2 * QUANT_GROUP, sizes[size]);
    if (x.type == DT_BF16)
        (w[0].type == DT_Q8 ? many_of<gpu_bf16, DT_Q8> : many_of<gpu_bf16, DT_Q4>)(size)(kc, &a);
    else
        (w[0].type == DT_Q8 ? many_of<gpu_f16, DT_Q8> : many_of<gpu_f16, DT_Q4>)(size)(kc, &a);
}

#else

bool quant_many_takes(const struct kctx *, struct tensor, struct tensor, struct tensor, struct tensor) { return false; }
void quant_many_run(struct kctx *, const struct tensor *, struct tensor, const struct tensor *, const struct tensor *,
                    struct tensor, int)
{
}

#endif
