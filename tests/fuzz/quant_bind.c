/* Rows of bytes that a file gives for a matrix: what is taken for quantised rows has all of its groups and scales, and
 * anything in them can be read. The first eight bytes are the matrix's and the tensor's sizes. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "model/fill.h"
#include "tensor/quant.h"

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);

static int64_t size(const uint8_t *p, int64_t most) { return 1 + (p[0] | p[1] << 8) % most; }

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
    if (n < 8) return 0;
    const struct bind_row row = { .name = "model.layers.0.mlp.up_proj.weight", .flags = BIND_DECAY | BIND_LINEAR,
                                  .nd = 2, .shape = { size(p, 8), size(p + 2, 300) } };
    const int64_t rows = size(p + 4, 8), bytes = size(p + 6, 400);
    char *data = aligned_alloc(QUANT_ALIGN, (size_t)(rows * bytes + QUANT_ALIGN - 1) / QUANT_ALIGN * QUANT_ALIGN);
    float *values = malloc((size_t)row.shape[1] * sizeof *values);
    if (!data || !values) BUG("no memory");
    for (int64_t i = 0; i < rows * bytes; i++) data[i] = n > 8 ? (char)p[8 + (size_t)i % (n - 8)] : 0;
    const struct weight w = { row.name, tensor_2d(data, DT_U8, rows, bytes), "model.safetensors" };
    struct tensor t;
    struct err e;
    if (bind_read(&t, &row, &w, &e) >= 0) {
        ASSERT(rows == row.shape[0] && t.n[0] == rows && t.n[1] == row.shape[1] && dtype_is_quant((enum dtype)t.type));
        ASSERT((int64_t)tensor_bytes(t) == rows * bytes);
        for (int64_t r = 0; r < rows; r++) {
            dequant_row(values, (enum dtype)t.type, tensor_row(t, r), t.n[1]);
            const double last = quant_at(tensor_row(t, r), (enum dtype)t.type, t.n[1], t.n[1] - 1);
            const float f = values[t.n[1] - 1];
            ASSERT((float)last == f || (last != last && f != f));
        }
    }
    free(data), free(values);
    return 0;
}
