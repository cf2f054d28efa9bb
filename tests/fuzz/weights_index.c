/* Any bytes as the model.safetensors.index.json of a folder with one shard, s.safetensors, of tensors a and
 * b. */
#include <stdint.h>

#include "file/safetensors.h"
#include "file/weights.h"
#include "help/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);

static void prepare(void)
{
    static float x[2] = { 1, 2 };
    const struct weight w[] = { { "a", tensor_1d(x, DT_F32, 2), NULL },
                                { "b", tensor_1d(x, DT_F32, 1), NULL } };
    struct err e;
    if (safetensors_write(fuzz_path("s.safetensors"), w, 2, NULL, NULL, NULL, &e) < 0) BUG("%s", e.msg);
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
    struct weights *w;
    struct err e;
    if (fuzz_begin()) prepare();
    fuzz_put("model.safetensors.index.json", p, n);
    if (weights_open(&w, fuzz_folder, &e) >= 0) {
        if (weights_count(w) != 2 || !weights_find(w, "a")) BUG("opened without its tensors");
        weights_close(w);
    }
    return 0;
}
