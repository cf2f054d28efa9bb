/* Random numbers that are the same on every machine: xoshiro256** seeded by splitmix64 (Blackman, Vigna 2018). */
#pragma once
#include <stdint.h>

struct rng { uint64_t s[4]; };

void rng_seed(struct rng *r, uint64_t seed);
uint64_t rng_u64(struct rng *r);
/* A number that two others of a seed lead to, its bits well mixed: a key. */
uint64_t rng_key(uint64_t seed, uint64_t a, uint64_t b);
double rng_unit(struct rng *r);   /* uniform in [0,1), 53 bits */
double rng_normal(struct rng *r); /* mean 0, deviation 1 */
