/* See mt19937.h. */
#include "base/mt19937.h"

enum { MIDDLE = 397 };

void mt19937_seed(struct mt19937 *g, uint64_t seed)
{
    g->s[0] = (uint32_t)seed;
    for (uint32_t i = 1; i < MT_N; i++) g->s[i] = 1812433253u * (g->s[i - 1] ^ g->s[i - 1] >> 30) + i;
    g->at = MT_N;
}

static void renew(struct mt19937 *g)
{
    for (int i = 0; i < MT_N; i++) {
        uint32_t y = (g->s[i] & 0x80000000u) | (g->s[(i + 1) % MT_N] & 0x7fffffffu);
        g->s[i] = g->s[(i + MIDDLE) % MT_N] ^ y >> 1 ^ (y & 1 ? 0x9908b0dfu : 0);
    }
    g->at = 0;
}

uint32_t mt19937_u32(struct mt19937 *g)
{
    if (g->at == MT_N) renew(g);
    uint32_t y = g->s[g->at++];
    y ^= y >> 11;
    y ^= y << 7 & 0x9d2c5680u;
    y ^= y << 15 & 0xefc60000u;
    return y ^ y >> 18;
}

int64_t mt19937_i63(struct mt19937 *g)
{
    uint64_t high = mt19937_u32(g);
    return (int64_t)((high << 32 | mt19937_u32(g)) & INT64_MAX);
}

void mt19937_perm(struct mt19937 *g, int64_t *perm, int64_t n)
{
    for (int64_t i = 0; i < n; i++) perm[i] = i;
    for (int64_t i = 0; i + 1 < n; i++) {
        int64_t j = i + mt19937_u32(g) % (n - i), was = perm[i];
        perm[i] = perm[j];
        perm[j] = was;
    }
}
