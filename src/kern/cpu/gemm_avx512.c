/* Large matrix products for avx512: see gemm_impl.h. */
#include "kern/cpu/gemm_impl.h"
