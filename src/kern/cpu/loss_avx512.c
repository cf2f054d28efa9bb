/* Cross entropy for avx512: see loss_impl.h. */
#include "kern/cpu/loss_impl.h"
