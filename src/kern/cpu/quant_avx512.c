/* Products with quantised weights for avx512: see quant_impl.h. */
#include "kern/cpu/quant_impl.h"
