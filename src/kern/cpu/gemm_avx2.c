/* Large matrix products for avx2: see gemm_impl.h. */
#include "kern/cpu/gemm_impl.h"
