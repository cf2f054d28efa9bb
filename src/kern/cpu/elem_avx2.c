/* Element by element for avx2: see elem_impl.h. */
#include "kern/cpu/elem_impl.h"
