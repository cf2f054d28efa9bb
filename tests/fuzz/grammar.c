/* Grammars, schemas and regular expressions from strangers: the first byte says which; what is taken then walks over
 * the rest as text. */
#include <string.h>

#include "text/grammar.h"
#include "text/regex.h"
#include "text/schema.h"

int LLVMFuzzerTestOneInput(const unsigned char *p, size_t n);

static struct vocabulary *vocabulary;

int LLVMFuzzerTestOneInput(const unsigned char *p, size_t n)
{
    struct grammar *g = NULL;
    struct match *m = NULL;
    struct tokenizer *tok = NULL;
    struct err e;
    if (!vocabulary) {
        if (tokenizer_open(&tok, "tests/golden/models/llava-liuhaotian", &e) < 0) return 0;
        vocabulary_new(&vocabulary, tok, tokenizer_info(tok)->size, &e);
        tokenizer_close(tok);
    }
    if (n < 2) return 0;
    const unsigned char *cut = memchr(p + 1, 0, n - 1); /* text to walk comes after a NUL */
    const size_t length = (cut ? (size_t)(cut - p) : n) - 1;
    int rc = 0;
    struct buf text = buf_make(1 << 20);
    if (p[0] == '/') {
        buf_str(&text, "root ::= ");
        rc = regex_write(&text, (const char *)p + 1, length, false, &e);
        if (rc >= 0) rc = grammar_parse(&g, text.p, text.n, &e);
    } else if (p[0] == '{') rc = schema_parse(&g, (const char *)p, length + 1, &e);
    else rc = grammar_parse(&g, (const char *)p + 1, length, &e);
    if (rc >= 0) rc = match_new(&m, g, vocabulary, &e);
    if (rc >= 0) {
        if (cut) match_bytes(m, (const char *)cut + 1, n - length - 2);
        match_tokens(m);
    }
    match_free(m);
    grammar_free(g);
    buf_free(&text);
    return 0;
}
