/* Large products with quantised weights for avx512: see quant_gemm_impl.h. */
#include "kern/cpu/quant_gemm_impl.h"
