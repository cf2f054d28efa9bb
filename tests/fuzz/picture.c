/* Fuzz target: picture_decode with any bytes. What is decoded is also brought to tiles, which reads every
 * pixel. */
#include <stddef.h>
#include <stdint.h>

#include "image/preprocess.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct picture p;
    struct clip_processor clip;
    struct pixels px;
    struct err e;
    if (picture_decode(&p, data, n, "fuzz", &e) < 0) return 0;
    clip_processor_default(&clip, 14);
    enum aspect a = (int64_t)p.w * p.h < 1 << 16 ? ASPECT_PAD : ASPECT_SQUARE;
    if (pixels_new(&px, &p, &clip, a, NULL, &e) >= 0) pixels_free(&px);
    picture_free(&p);
    return 0;
}
