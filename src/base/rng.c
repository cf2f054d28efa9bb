/* See rng.h. */
#include "base/rng.h"

#include <math.h>

static uint64_t rotl(uint64_t x, int k) { return (x << k) | (x >> (64 - k)); }

void rng_seed(struct rng *r, uint64_t seed)
{
    for (int i = 0; i < 4; i++) {
        uint64_t z = seed += 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        r->s[i] = z ^ (z >> 31);
    }
}

uint64_t rng_u64(struct rng *r)
{
    uint64_t *s = r->s, out = rotl(s[1] * 5, 7) * 9, t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotl(s[3], 45);
    return out;
}

uint64_t rng_key(uint64_t seed, uint64_t a, uint64_t b)
{
    struct rng r;
    rng_seed(&r, seed);
    rng_seed(&r, rng_u64(&r) ^ a);
    rng_seed(&r, rng_u64(&r) ^ b);
    return rng_u64(&r);
}

double rng_unit(struct rng *r) { return (double)(rng_u64(r) >> 11) * 0x1p-53; }

double rng_normal(struct rng *r)
{
    double u = 1 - rng_unit(r), v = rng_unit(r); /* u in (0,1] */
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}
