/* Norms and rotary positions for avx512: see norm_impl.h. */
#include "kern/cpu/norm_impl.h"
