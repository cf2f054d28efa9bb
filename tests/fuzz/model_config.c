/* Any bytes as a model's config.json, as a tower's, and as generation_config.json. What is accepted must be within
 * limits that the rest of the program relies on. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);

static char dir[] = "/tmp/llava-fuzz-XXXXXX";
static char config[100], generation[100];

static void clean(void)
{
    remove(config);
    remove(generation);
    remove(dir);
}

static void put(const char *path, const void *p, size_t n)
{
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(p, 1, n, f) != n || fclose(f)) BUG("cannot write '%s'", path);
}

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
    if (!*config) {
        if (!mkdtemp(dir)) BUG("no temporary folder");
        snprintf(config, sizeof config, "%s/config.json", dir);
        snprintf(generation, sizeof generation, "%s/generation_config.json", dir);
        atexit(clean);
    }
    put(config, p, n);
    if (llava_config_load(&c, dir, &e) >= 0) check_llava(&c);
    if (clip_config_load(&v, dir, &e) >= 0) ASSERT(v.C > 0 && v.C % v.H == 0 && v.patch > 0 && v.patch <= v.image);
    put(generation, p, n);
    put(config, "{}", 2);
    if (llava_config_load(&c, dir, &e) >= 0) check_llava(&c);
    remove(generation);
    return 0;
}
