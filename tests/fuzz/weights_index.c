/* Any bytes as the model.safetensors.index.json of a folder with one shard, s.safetensors, of tensors a and
 * b. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "file/safetensors.h"
#include "file/weights.h"

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);

static char dir[] = "/tmp/llava-fuzz-XXXXXX";
static char shard[100], index_path[100];

static void clean(void)
{
    remove(shard);
    remove(index_path);
    remove(dir);
}

static void prepare(void)
{
    static float x[2] = { 1, 2 };
    const struct weight w[] = { { "a", tensor_1d(x, DT_F32, 2), NULL },
                                { "b", tensor_1d(x, DT_F32, 1), NULL } };
    struct err e;
    if (!mkdtemp(dir)) BUG("no temporary folder");
    snprintf(shard, sizeof shard, "%s/s.safetensors", dir);
    snprintf(index_path, sizeof index_path, "%s/model.safetensors.index.json", dir);
    if (safetensors_write(shard, w, 2, NULL, NULL, NULL, &e) < 0) BUG("%s", e.msg);
    atexit(clean);
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
    struct weights *w;
    struct err e;
    if (!*shard) prepare();
    FILE *f = fopen(index_path, "wb");
    if (!f || fwrite(p, 1, n, f) != n || fclose(f)) BUG("cannot write '%s'", index_path);
    if (weights_open(&w, dir, &e) >= 0) {
        if (weights_count(w) != 2 || !weights_find(w, "a")) BUG("opened without its tensors");
        weights_close(w);
    }
    return 0;
}
