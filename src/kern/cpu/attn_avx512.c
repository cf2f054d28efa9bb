/* Attention for avx512: see attn_impl.h and attn_bwd_impl.h. */
#include "kern/cpu/attn_impl.h"

#include "kern/cpu/attn_bwd_impl.h"
