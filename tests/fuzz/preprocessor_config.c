/* Fuzz target: any bytes as a preprocessor_config.json, then used on a small picture. */
#include <stddef.h>
#include <stdint.h>

#include "image/preprocess.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct clip_processor clip;
    struct picture p;
    struct pixels px;
    struct err e;
    if (clip_processor_parse(&clip, (const char *)data, n, "fuzz", &e) < 0) return 0;
    bool small = clip.size_w <= 64 && clip.size_h <= 64 && clip.crop_w <= 64 && clip.crop_h <= 64;
    if (!small || picture_new(&p, 9, 5, "fuzz", &e) < 0) return 0;
    if (pixels_new(&px, &p, &clip, ASPECT_PAD, NULL, &e) >= 0) pixels_free(&px);
    picture_free(&p);
    return 0;
}
