/* Cross entropy for avx2: see loss_impl.h. */
#include "kern/cpu/loss_impl.h"
