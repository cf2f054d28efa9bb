/* The generator behind torch's CPU random numbers, for what must come out as it does there: the order of the
 * training records. Everything else uses rng.h.
 *
 * MT19937 (Matsumoto, Nishimura 1998); torch: aten/src/ATen/core/MT19937RNGEngine.h, CPUGeneratorImpl.cpp,
 * native/TensorFactories.cpp randperm_cpu.
 */
#pragma once
#include <stdint.h>

enum { MT_N = 624 };
struct mt19937 {
    uint32_t s[MT_N];
    int at; /* next word of s; MT_N: s has to be made anew */
};

/* As Generator.manual_seed(seed), of whose bits torch uses the lower 32. */
void mt19937_seed(struct mt19937 *g, uint64_t seed);
uint32_t mt19937_u32(struct mt19937 *g);
/* torch.empty((), dtype=torch.int64).random_(): 0 to 2^63-1, from two words, the higher first. */
int64_t mt19937_i63(struct mt19937 *g);
/* torch.randperm(n, generator=g): perm[n] becomes a permutation of 0..n-1; takes max(n-1, 0) words. n < 2^32/20,
 * above which torch does otherwise. */
void mt19937_perm(struct mt19937 *g, int64_t *perm, int64_t n);
