/* Any bytes as a torch archive. Every row that comes out is read to its end. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "file/torchbin.h"

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);

static volatile unsigned char sink; /* every byte is read */

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
    struct weight_list l = { 0 };
    struct err e;
    if (torchbin_parse(&l, p, n, "fuzz", &e) >= 0)
        for (size_t i = 0; i < l.n; i++)
            for (size_t k = 0; k < tensor_bytes(l.at[i].t); k++) sink = ((unsigned char *)l.at[i].t.p)[k];
    weight_list_fini(&l);
    return 0;
}
