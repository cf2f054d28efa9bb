/* Any bytes as text, and as ids: encoding, decoding, streams and stop strings. Valid text must encode; what a
 * stream gives for ids without line breaks is what decoding gives. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "text/stream.h"
#include "text/utf8.h"

static struct tokenizer *t;

static void check_stream(const struct ids *ids)
{
    struct stream s;
    struct stopper stop;
    struct buf got = buf_make(1 << 24), want = buf_make(1 << 24), shown = buf_make(1 << 24);
    struct err e;
    stream_init(&s, t);
    stopper_init(&stop);
    if (stopper_add(&stop, "###", 3, &e) < 0) abort();
    for (size_t i = 0; i < ids->n; i++) {
        size_t at = got.n;
        stream_push(&s, ids->p[i], &got);
        if (got.n > at) stopper_feed(&stop, got.p + at, got.n - at, &shown);
    }
    stream_flush(&s, &got);
    stopper_flush(&stop, &shown);
    tokenizer_decode(t, ids->p, ids->n, true, &want);
    bool lines = want.n && memchr(want.p, '\n', want.n);
    if (!lines && (got.n != want.n || (got.n && memcmp(got.p, want.p, got.n)))) abort();
    if (text_check_utf8(got.p, got.n, "a stream", &e) < 0) abort();
    if (shown.n && strstr(shown.p, "###")) abort();
    stream_fini(&s);
    stopper_fini(&stop);
    buf_free(&got);
    buf_free(&want);
    buf_free(&shown);
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
    struct ids ids = ids_make(1 << 20);
    struct err e = { 0 };
    if (!t) {
        if (tokenizer_open_model(&t, "tests/data/tok512.model", TOKENIZER_LEGACY, &e) < 0) abort();
        if (tokenizer_add(t, "<apart>", false, &e) < 0 || tokenizer_add(t, "<im_patch>", true, &e) < 0)
            abort();
    }
    if (n == 0) return 0;
    tokenizer_set_mode(t, (enum tokenizer_mode)(p[0] % 3));
    const char *text = (const char *)p + 1;
    bool valid = text_check_utf8(text, n - 1, "the input", &e) == 0;
    int rc = tokenizer_encode_prompt(t, text, n - 1, &ids, &e);
    if (valid != (rc == 0)) abort();
    if (valid) check_stream(&ids);
    ids_reset(&ids);
    for (size_t i = 1; i + 1 < n; i += 2) ids_add(&ids, (int32_t)(p[i] | (p[i + 1] & 3) << 8) - 4);
    check_stream(&ids);
    ids_free(&ids);
    return 0;
}
