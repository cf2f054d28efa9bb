/* Matrix products with few tokens for avx2: see gemv_impl.h. */
#include "kern/cpu/gemv_impl.h"
