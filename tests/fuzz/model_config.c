/* Any bytes as a model's config.json, as a tower's, and as generation_config.json. What is accepted must be within
 * limits that the rest of the program relies on. */
#include <stdint.h>

#include "help/fuzz.h"
#include "model/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);

static void check_llava(const struct llava_config *c)
{
    const struct llama_config *l = &c->llama;
    ASSERT(l->C > 0 && l->F > 0 && l->L > 0 && l->V > 0 && l->D > 1 && l->D % 2 == 0);
    ASSERT(l->K > 0 && l->H % l->K == 0 && l->max_pos > 0 && l->rope_theta > 0);
    ASSERT(c->n_projector >= 0 && c->n_projector <= PROJECTOR_MAX && c->n_eos <= 8);
    ASSERT(c->aspect != ASPECT_ANYRES || c->pinpoints.n > 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
    struct llava_config c;
    struct clip_config v;
    struct err e;
    fuzz_begin();
    fuzz_put("config.json", p, n);
    if (llava_config_load(&c, fuzz_folder, &e) >= 0) check_llava(&c);
    int bits = 0;
    if (llava_config_bits(&bits, fuzz_folder, &e) >= 0) ASSERT(bits == 0 || bits == 4 || bits == 8);
    if (clip_config_load(&v, fuzz_folder, &e) >= 0)
        ASSERT(v.C > 0 && v.C % v.H == 0 && v.patch > 0 && v.patch <= v.image);
    fuzz_put("generation_config.json", p, n);
    fuzz_put("config.json", "{}", 2);
    if (llava_config_load(&c, fuzz_folder, &e) >= 0) check_llava(&c);
    fuzz_drop("generation_config.json");
    return 0;
}
