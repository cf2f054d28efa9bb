/* Norms and rotary positions for avx2: see norm_impl.h. */
#include "kern/cpu/norm_impl.h"
