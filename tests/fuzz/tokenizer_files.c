/* The JSON files beside a model. The first byte says which file the rest is; a small model stands next to it,
 * but for tokenizer.json. What opens must encode and decode. */
#include <stdint.h>
#include <stdlib.h>

#include "base/buf.h"
#include "help/fuzz.h"
#include "text/tokenizer.h"

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
    fuzz_begin();
    if (n == 0) return 0;
    const char *name = names[p[0] % 4];
    fuzz_put(name, p + 1, n - 1);
    if (p[0] % 4 != 3) {
        if (file_read(&model, &model_n, "tests/data/tok512.model", 1 << 20, &e) < 0) abort();
        fuzz_put("tokenizer.model", model, model_n);
        free(model);
    }
    if (tokenizer_open(&t, fuzz_folder, &e) == 0) try_tokenizer(t);
    tokenizer_close(t);
    fuzz_drop(name);
    fuzz_drop("tokenizer.model");
    return 0;
}
