/* Which kernels this processor gets, and how fast it reads memory. The kernels are in the *_impl.h files. */
#include "kern/cpu/cpu.h"

#include <cpuid.h>
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
        cpu_fill_norm_avx512(k);
        cpu_fill_loss_avx512(k);
    } else if (has_avx2()) {
        k->name = "avx2";
        cpu_fill_matmul_avx2(k);
        cpu_fill_attn_avx2(k);
        cpu_fill_elem_avx2(k);
        cpu_fill_norm_avx2(k);
        cpu_fill_loss_avx2(k);
    }
    return k->name;
}

/* Sums 64-bit words, eight at a time: any compiler turns this into loads and adds that wait for memory only. */
static uint64_t read_words(const uint64_t *p, size_t n)
{
    uint64_t s[8] = { 0 };
    for (size_t i = 0; i + 8 <= n; i += 8) {
        __builtin_prefetch(p + i + 512);
        for (int j = 0; j < 8; j++) s[j] += p[i + j];
    }
    return s[0] ^ s[1] ^ s[2] ^ s[3] ^ s[4] ^ s[5] ^ s[6] ^ s[7];
}

double cpu_read_ceiling(int n_threads)
{
    enum { BYTES = 256 << 20, CHUNK = 1 << 17, TIMES = 8 };
    struct arena a;
    if (arena_init(&a, BYTES, NULL) < 0) return 0;
    unsigned char *p = arena_take(&a, BYTES);
    memset(p, 1, BYTES); /* or every page would be the same page of zeros */
    double best = INFINITY;
    for (int i = 0; i < TIMES; i++) {
        double start = plat_now_s();
        uint64_t sum = 0;
#pragma omp parallel for num_threads(n_threads) schedule(dynamic) reduction(^ : sum)
        for (size_t at = 0; at < BYTES; at += CHUNK)
            sum ^= read_words((const uint64_t *)(const void *)(p + at), CHUNK / sizeof(uint64_t));
        double s = plat_now_s() - start;
        if (sum != 1 && s < best) best = s; /* the test keeps the reads alive */
    }
    arena_fini(&a);
    return BYTES / best * 1e-9;
}
