/* AdamW in 8 bits for avx512: see adamw8_impl.h. */
#include "kern/cpu/adamw8_impl.h"
