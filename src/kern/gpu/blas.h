/* Large matrix products by the vendor's library. The types and shapes of kern.h; false: there is no library, or not for
 * these types, and nothing was done. */
#pragma once
#include "kern/gpu/num.h"

static inline bool blas_matmul(struct kctx *, struct tensor, struct tensor, struct tensor, struct tensor, struct tensor)
{
    return false;
}
static inline bool blas_matmul_dx(struct kctx *, struct tensor, struct tensor, struct tensor) { return false; }
static inline bool blas_matmul_dw(struct kctx *, struct tensor, struct tensor, struct tensor) { return false; }
