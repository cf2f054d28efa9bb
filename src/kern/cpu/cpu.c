/* Which kernels this processor gets, and how fast it reads memory. The kernels are in the *_impl.h files. */
#include "kern/cpu/cpu.h"

#include <cpuid.h>
#include <emmintrin.h>
#include <math.h>
#include <string.h>

#include "base/plat.h"

/* Both also ask whether the operating system keeps the wide registers. */
static bool has_avx2(void)
{
    unsigned a, b, c = 0, d;
    bool f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
    return f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static bool has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
}

const char *kern_init_cpu(struct kern *k, const char *isa)
{
    *k = kern_ref;
    if (isa && !strcmp(isa, "ref")) return k->name;
    if (has_avx512() && !(isa && !strcmp(isa, "avx2"))) {
        k->name = "avx512";
        cpu_fill_matmul_avx512(k);
        cpu_fill_attn_avx512(k);
        cpu_fill_elem_avx512(k);
        cpu_fill_adamw8_avx512(k);
        cpu_fill_norm_avx512(k);
        cpu_fill_loss_avx512(k);
    } else if (has_avx2()) {
        k->name = "avx2";
        cpu_fill_matmul_avx2(k);
        cpu_fill_attn_avx2(k);
        cpu_fill_elem_avx2(k);
        cpu_fill_adamw8_avx2(k);
        cpu_fill_norm_avx2(k);
        cpu_fill_loss_avx2(k);
    }
    return k->name;
}

/* Sums the words of two halves side by side, as matrix products with few tokens read their weights: loads and
 * adds that wait for memory only, with the vectors that every x86-64 has. */
static int64_t read_words(const char *p, size_t bytes)
{
    enum { LINE = 64, AHEAD = 4096 };
    const size_t half = bytes / 2;
    __m128i s[8] = { 0 };
    for (size_t i = 0; i < half; i += LINE) {
        __builtin_prefetch(p + i + AHEAD, 0, 2);
        __builtin_prefetch(p + half + i + AHEAD, 0, 2);
        for (size_t j = 0; j < 4; j++) {
            s[j] = _mm_add_epi64(s[j], ((const __m128i *)(const void *)(p + i))[j]);
            s[4 + j] = _mm_add_epi64(s[4 + j], ((const __m128i *)(const void *)(p + half + i))[j]);
        }
    }
    for (int j = 1; j < 8; j++) s[0] = _mm_add_epi64(s[0], s[j]);
    return _mm_cvtsi128_si64(s[0]);
}

enum { READ_BYTES = 256 << 20 }; /* several times the last cache */

int cpu_reader_init(struct cpu_reader *r, struct err *e)
{
    int rc = arena_init(&r->mem, READ_BYTES, e);
    if (rc < 0) return rc;
    r->p = arena_take(&r->mem, READ_BYTES);
    memset(r->p, 1, READ_BYTES); /* or every page would be the same page of zeros */
    return 0;
}

void cpu_reader_fini(struct cpu_reader *r) { arena_fini(&r->mem); }

double cpu_reader_pass(const struct cpu_reader *r, int n_threads)
{
    enum { CHUNK = 1 << 17 };
    double start = plat_now_s();
    int64_t sum = 0;
#pragma omp parallel for num_threads(n_threads) schedule(dynamic) reduction(^ : sum)
    for (size_t at = 0; at < READ_BYTES; at += CHUNK) sum ^= read_words(r->p + at, CHUNK);
    double s = plat_now_s() - start;
    return sum == 1 ? 0 : READ_BYTES / s * 1e-9; /* the test keeps the reads alive */
}

double cpu_read_ceiling(int n_threads)
{
    enum { TIMES = 8 };
    struct cpu_reader r;
    if (cpu_reader_init(&r, NULL) < 0) return 0;
    double best = 0;
    for (int i = 0; i < TIMES; i++) best = fmax(best, cpu_reader_pass(&r, n_threads));
    cpu_reader_fini(&r);
    return best;
}
