/* Matrix products with few tokens for avx512: see gemv_impl.h. */
#include "kern/cpu/gemv_impl.h"
