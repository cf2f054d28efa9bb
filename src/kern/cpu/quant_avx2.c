/* Products with quantised weights for avx2: see quant_impl.h. */
#include "kern/cpu/quant_impl.h"
