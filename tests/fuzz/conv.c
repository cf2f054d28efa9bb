/* Conversations and samples of any bytes, in every template: prompts are written or refused, places of
 * messages are inside the prompt, and ids and labels go together. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "text/supervise.h"

enum { TURNS = 8 };

static void check_prompt(const struct conv *c)
{
    struct conv_span span[TURNS + 2] = { 0 };
    struct buf b = buf_make(1 << 24);
    struct err e;
    if (conv_prompt(c, &b, span, &e) == 0)
        for (size_t i = 0; i < c->n; i++)
            if (span[i].begin > span[i].end || span[i].end > b.n) abort();
    buf_free(&b);
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
    static struct tokenizer *t;
    struct err e = { 0 };
    if (!t && tokenizer_open_model(&t, "tests/data/tok512.model", TOKENIZER_NEW, &e) < 0) abort();
    if (n < 2) return 0;
    const struct conv_template *tpl = conv_find(conv_key(p[0] % 16));
    struct turn turn[TURNS];
    struct conv c;
    size_t k = 0, i = 2;
    if (conv_init(&c, tpl, &e) < 0) abort();
    /* Turns end at 0xff, which no text has. */
    while (i < n && k < TURNS) {
        const uint8_t *end = memchr(p + i, 0xff, n - i);
        size_t len = end ? (size_t)(end - (p + i)) : n - i;
        turn[k] = (struct turn){ span_of(k % 2 ? "gpt" : "human"), { (const char *)p + i, len } };
        if (conv_add(&c, (enum conv_role)(k % 2), turn[k].value.p, len, p[1] & 1, &e) < 0) abort();
        k++;
        i += len + 1;
    }
    check_prompt(&c);
    conv_fini(&c);
    struct ids ids = ids_make(1 << 20), labels = ids_make(1 << 20);
    struct supervise s = {
        .tokenizer = t, .tpl = tpl, .im_start_end = p[1] & 4, .max_length = p[1] & 8 ? 20 : 0
    };
    tokenizer_set_mode(t, (enum tokenizer_mode)((p[1] >> 4) % 3));
    int cut = supervise(&s, turn, k, p[1] & 3, &ids, &labels, &e);
    if (cut >= 0) {
        if ((cut && ids.n != s.max_length) || (s.max_length && ids.n > s.max_length)) abort();
        if (ids.n != labels.n) abort();
        for (i = 0; i < ids.n; i++)
            if (labels.p[i] != IDS_IGNORE && labels.p[i] != ids.p[i]) abort();
    }
    ids_free(&ids);
    ids_free(&labels);
    return 0;
}
