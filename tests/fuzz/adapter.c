/* Any bytes as the adapter_config.json of a LoRA folder whose matrices are in order. */
#include <math.h>
#include <stdint.h>

#include "file/safetensors.h"
#include "help/fuzz.h"
#include "model/lora.h"

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);

static void prepare(void)
{
    static float x[8] = { 1, 2, 3, 4, 5, 6, 7, 8 };
    const struct weight w[] = {
        { "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", tensor_2d(x, DT_F32, 2, 4), NULL },
        { "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight", tensor_2d(x, DT_F32, 4, 2), NULL },
    };
    struct err e;
    if (safetensors_write(fuzz_path("adapter_model.safetensors"), w, 2, NULL, NULL, NULL, &e) < 0) BUG("%s", e.msg);
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
    static const char name[] = "model.layers.0.self_attn.q_proj.weight";
    struct lora_set set = { 0 };
    struct err e;
    char base[512] = "";
    if (fuzz_begin()) prepare();
    fuzz_put("adapter_config.json", p, n);
    lora_base_name(fuzz_folder, base, sizeof base);
    if (lora_open(&set, fuzz_folder, &e) >= 0) {
        struct lora_pair *pair = lora_find(&set, name);
        float w[16] = { 0 }, out[16];
        ASSERT(pair && isfinite(pair->scale));
        if (lora_merge(pair, tensor_2d(out, DT_F32, 4, 4), tensor_2d(w, DT_F32, 4, 4), &e) < 0) BUG("%s", e.msg);
    }
    lora_close(&set);
    return 0;
}
