/* Dropout of eight elements that a thread has: for kernels that make them. */
#pragma once
#include "kern/gpu/num.h"

struct dropping {
    uint32_t below;
    float kept;
    uint64_t key;
};
static inline dropping dropping_of(float p, uint64_t key) { return { kern_drop_below(p), 1 / (1 - p), key }; }

/* v[j], which is element i + j of the tensor, i even: zero, or times `kept`. */
__device__ inline void drop8(float (&v)[LANES], int64_t i, dropping d)
{
#pragma unroll
    for (int j = 0; j < LANES; j += 2) {
        const uint32_t h = kern_drop_hash(d.key, (uint32_t)((i + j) / 2));
        v[j] = (h & 0xffff) < d.below ? 0.0f : v[j] * d.kept;
        v[j + 1] = h >> 16 < d.below ? 0.0f : v[j + 1] * d.kept;
    }
}

/* v as it is once it has been stored as A's. */
template <class A> __device__ inline void round8(float (&v)[LANES])
{
#pragma unroll
    for (int j = 0; j < LANES; j++) v[j] = gpu_float(gpu_from<A>(v[j]));
}
