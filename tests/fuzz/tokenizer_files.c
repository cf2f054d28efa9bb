/* The JSON files beside a model. The first byte says which file the rest is; a small model stands next to it,
 * but for tokenizer.json. What opens must encode and decode. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"
#include "text/tokenizer.h"

static char folder[] = "build/fuzz-XXXXXX";

static void put(const char *name, const void *p, size_t n)
{
    char path[200];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    if (!f) abort();
    fwrite(p, 1, n, f);
    fclose(f);
}

static void drop(const char *name)
{
    char path[200];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    unlink(path);
}

static void try_tokenizer(struct tokenizer *t)
{
    static const char text[] = "USER: <image>\nHi </s>there<s> \xe4\xbd\xa0";
    struct ids ids = ids_make(1000);
    struct buf b = buf_make(1 << 20);
    struct err e;
    tokenizer_encode_prompt(t, text, sizeof text - 1, &ids, &e);
    tokenizer_decode(t, ids.p, ids.n, false, &b);
    buf_free(&b);
    ids_free(&ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
    static const char *const names[] = { "tokenizer_config.json", "special_tokens_map.json",
                                         "added_tokens.json", "tokenizer.json" };
    struct tokenizer *t = NULL;
    struct err e;
    char *model;
    size_t model_n;
    static int ready;
    if (!ready++ && (mkdir("build", 0777), !mkdtemp(folder))) abort();
    if (n == 0) return 0;
    const char *name = names[p[0] % 4];
    put(name, p + 1, n - 1);
    if (p[0] % 4 != 3) {
        if (file_read(&model, &model_n, "tests/data/tok512.model", 1 << 20, &e) < 0) abort();
        put("tokenizer.model", model, model_n);
        free(model);
    }
    if (tokenizer_open(&t, folder, &e) == 0) try_tokenizer(t);
    tokenizer_close(t);
    drop(name);
    drop("tokenizer.model");
    return 0;
}
