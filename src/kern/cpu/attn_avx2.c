/* Attention for avx2: see attn_impl.h. */
#include "kern/cpu/attn_impl.h"
