/* Element by element for avx512: see elem_impl.h. */
#include "kern/cpu/elem_impl.h"
