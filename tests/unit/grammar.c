/* Grammars and schemas: which texts they let through, which tokens may come next, and what is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "text/grammar.h"
#include "text/schema.h"

#define MODEL "tests/golden/models/llava-liuhaotian"

static struct vocabulary *vocabulary;
static struct tokenizer *tok;
static int32_t size;

static int begin(void **state)
{
    struct err e;
    (void)state;
    if (tokenizer_open(&tok, MODEL, &e) < 0) fail_msg("%s", e.msg);
    size = tokenizer_info(tok)->size;
    assert_int_equal(vocabulary_new(&vocabulary, tok, size, &e), 0);
    return 0;
}

static int end(void **state)
{
    (void)state;
    vocabulary_free(vocabulary);
    tokenizer_close(tok);
    return 0;
}

/* '+': the whole text is an answer; '~': it may become one; a digit: only that many bytes are taken. */
static char verdict(struct grammar *g, const char *text)
{
    struct match *m;
    struct err e;
    assert_int_equal(match_new(&m, g, vocabulary, &e), 0);
    const size_t n = strlen(text), taken = match_bytes(m, text, n);
    const char v = taken < n ? (char)('0' + taken % 10) : match_may_end(m) ? '+' : '~';
    match_free(m);
    return v;
}

struct grammar_case {
    const char *grammar, *texts[8]; /* a text begins with its verdict */
};

static void test_grammars(void **state)
{
    static const struct grammar_case cases[] = {
        { "root ::= \"yes\" | \"no\"", { "+yes", "+no", "~ye", "0maybe", "3yess" } },
        { "root ::= [a-c]+ \"!\"?", { "~", "+abc", "+a!", "2ab-", "2a!!" } },
        { "root ::= [^a-z\\n]{2,3}", { "~A", "+AB", "+A1\xc3\xa9", "3ABCD", "1Aa" } },
        { "root ::= \"a\"* (\"b\" | \"c\"){2}", { "~aaa", "+bc", "+aacc", "2bcb" } },
        { "# comment\nroot ::= pair (\",\" pair)*\npair ::= [0-9] \"=\"\n  [0-9]",
          { "+1=2", "+1=2,3=4", "~1=2,", "11,2" } },
        { "root ::= \"(\" root? \")\"", { "+()", "+((()))", "~((", "2())" } },
        { "root ::= [\xce\xb1-\xcf\x89]+", { "+\xce\xb1\xce\xb2", "~\xce", "0a", "1\xce\xac" } },
        { "root ::= . .", { "+ab", "+\xe4\xb8\xad\xf0\x9f\x98\x80", "0\xff", "2abc" } },
        { "root ::= \"\\x41\\u00e9\\\"\\\\\"", { "+A\xc3\xa9\"\\" } },
        { "root ::= a \"x\"\na ::= \"\" | \"y\" a", { "+x", "+yyx", "~yy" } },
        { "root ::= (\"a\"*)* \"b\"", { "+b", "+aab" } },
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct grammar *g;
        struct err e;
        const char *text = cases[i].grammar;
        if (grammar_parse(&g, text, strlen(text), &e) < 0) {
            if (strstr(text, "(\"a\"*)*")) continue; /* may be refused, but must not hang */
            fail_msg("%s: %s", text, e.msg);
        }
        for (const char *const *t = cases[i].texts; *t; t++)
            if (verdict(g, *t + 1) != **t) fail_msg("%s: '%s' is %c", text, *t, verdict(g, *t + 1));
        grammar_free(g);
    }
}

static void test_grammars_refused(void **state)
{
    static const char *const cases[][2] = {
        { "", "root" },
        { "root", "no rule begins" },
        { "root ::= \"a", "does not end" },
        { "root ::= [a", "does not end" },
        { "root ::= [b-a]", "falls" },
        { "root ::= []", "without characters" },
        { "root ::= (\"a\"", "without ')'" },
        { "root ::= \"a\")", "')' without" },
        { "root ::= other", "no rule 'other'" },
        { "root ::= \"a\"\nroot ::= \"b\"", "line 2" },
        { "root ::= root \"a\" | \"b\"", "begins with itself" },
        { "root ::= a\na ::= \"x\"? b\nb ::= a \"y\" | \"z\"", "begins with itself" },
        { "root ::= \"a\"{3,2}", "falls" },
        { "root ::= \"a\"{99999}", "too long" },
        { "root ::= \"0123456789012345678901234567890123456789012345678901234567890123456789\"{4000}", "too large" },
        { "root ::= \"\\q\"", "escape" },
        { "root ::= \"\\xg0\"", "digits" },
        { "root ::= \"\xff\"", "UTF-8" },
        { "root ::= *", "no literal" },
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct grammar *g;
        struct err e = { 0 };
        if (grammar_parse(&g, cases[i][0], strlen(cases[i][0]), &e) >= 0) fail_msg("%s is taken", cases[i][0]);
        assert_null(g);
        if (!strstr(e.msg, cases[i][1])) fail_msg("%s: '%s'", cases[i][0], e.msg);
    }
}

static void test_schemas(void **state)
{
    static const struct grammar_case cases[] = {
        { "{}", { "+1", "+\"a\\u00e9\\n\"", "+[1, {\"a\": null}]", "0 true", "~-", "~{\"a\":", "101", "0 x" } },
        { "{\"type\":\"object\"}", { "+{}", "+{\"a\":[{}],\"b\":-1.5e3}", "0[", "4{\"a\"}" } },
        { "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\"},\"b\":{\"type\":\"string\"}},"
          "\"required\":[\"a\"]}",
          { "+{\"a\":1}", "+{\"a\": 1, \"b\": \"x\"}", "2{\"b\":\"x\"}", "1{}", "7{\"a\":1,}" } },
        { "{\"type\":\"object\",\"properties\":{\"a\":{},\"b\":{},\"c\":{\"type\":\"null\"}}}",
          { "+{}", "+{\"c\":null}", "+{\"a\":1,\"c\":null}", "+{\"b\":1}", "8{\"b\":1,\"a\"" } },
        { "{\"enum\":[\"red\",2,null]}", { "+\"red\"", "+2", "+null", "1\"green\"" } },
        { "{\"type\":[\"integer\",\"null\"],\"enum\":[\"red\",2,null]}", { "0\"red\"", "+2", "+null" } },
        { "{\"type\":\"null\",\"title\":\"t\",\"allOf\":[{\"$ref\":\"#/$defs/t\"}],"
          "\"$defs\":{\"t\":{\"type\":\"null\"}}}", { "+null" } },
        { "{\"const\":{\"a\":[1]}}", { "+{\"a\":[1]}", "6{\"a\":[2" } },
        { "{\"type\":\"array\",\"items\":{\"type\":\"boolean\"},\"minItems\":1,\"maxItems\":2}",
          { "1[]", "+[true]", "+[true,false]", "0[true,true,", "~[true," } },
        { "{\"type\":\"array\",\"items\":{\"type\":\"null\"},\"maxItems\":1}", { "+[]", "+[null]", "5[null,null]" } },
        { "{\"type\":\"array\",\"prefixItems\":[{\"type\":\"integer\"},{\"type\":\"string\"}],\"items\":false}",
          { "+[1,\"a\"]", "2[1]", "6[1,\"a\",2]" } },
        { "{\"type\":\"string\",\"minLength\":1,\"maxLength\":2}",
          { "1\"\"", "+\"a\"", "+\"\xc3\xa9z\"", "3\"abc\"" } },
        { "{\"type\":[\"string\",\"null\"]}", { "+null", "+\"\"", "01" } },
        { "{\"anyOf\":[{\"type\":\"integer\"},{\"type\":\"array\",\"items\":{\"type\":\"integer\"}}]}",
          { "+7", "+[1,2]", "0\"" } },
        { "{\"$ref\":\"#/$defs/t\",\"$defs\":{\"t\":{\"type\":\"object\",\"properties\":{\"next\":"
          "{\"anyOf\":[{\"$ref\":\"#/$defs/t\"},{\"type\":\"null\"}]}},\"required\":[\"next\"]}}}",
          { "+{\"next\":{\"next\":null}}", "8{\"next\":1}" } },
        { "{\"enum\":[0.1,1.0,-2.5e-7,1e22,123456789.125,{\"a\\\"1.50\":[0.30,1e5]},100000.0,\"0.10\"]}",
          { "+0.1", "+-2.5e-07", "+1e+22", "+123456789.125", "+{\"a\\\"1.50\":[0.3,100000.0]}", "+100000.0",
            "+\"0.10\"", "+1.0" } },
        { "{\"type\":\"array\",\"prefixItems\":[{\"type\":\"null\"},{\"$ref\":\"#/prefixItems/0\"},"
          "{\"$ref\":\"#/$defs/a%20b~1c%7E0\"}],\"items\":false,\"$defs\":{\"a b/c~\":{\"type\":\"boolean\"}}}",
          { "+[null,null,true]", "6[null,1" } },
        { "{\"type\":\"object\",\"properties\":{\"a\":{\"$ref\":\"#\"}}}", { "+{\"a\":{\"a\":{}}}", "5{\"a\":1" } },
        { "{\"type\":\"null\",\"$ref\":\"#/$defs/n\",\"$defs\":{\"n\":{\"type\":\"null\"}}}", { "+null" } },
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct grammar *g;
        struct err e;
        if (schema_parse(&g, cases[i].grammar, strlen(cases[i].grammar), &e) < 0)
            fail_msg("%s: %s", cases[i].grammar, e.msg);
        for (int k = 0; k < 8 && cases[i].texts[k]; k++) {
            const char *t = cases[i].texts[k];
            if (verdict(g, t + 1) != *t) fail_msg("%s: '%s' is %c", cases[i].grammar, t, verdict(g, t + 1));
        }
        grammar_free(g);
    }
}

static void test_schemas_refused(void **state)
{
    static const char *const cases[][2] = {
        { "{", "line 1" },
        { "[]", "no object" },
        { "{\"type\":\"integer\",\"minimum\":1}", "'minimum'" },
        { "{\"type\":\"string\",\"pattern\":\"a\"}", "'pattern'" },
        { "{\"type\":\"text\"}", "'text'" },
        { "{\"type\":7}", "'type'" },
        { "{\"enum\":[]}", "'enum'" },
        { "{\"$ref\":\"#/none\"}", "'#/none'" },
        { "{\"$ref\":\"http://example.org/\"}", "leads nowhere" },
        { "{\"type\":\"object\",\"properties\":{\"a\":{}},\"required\":[\"b\"]}", "'b'" },
        { "{\"type\":\"array\",\"minItems\":2,\"maxItems\":1}", "'minItems'" },
        { "{\"type\":\"array\",\"minItems\":-1}", "'minItems'" },
        { "{\"$ref\":\"#\"}", "'$ref' leads back" },
        { "{\"anyOf\":[{\"type\":\"null\"},{\"$ref\":\"#\"}]}", "'$ref' leads back" },
        { "{\"$ref\":\"#/$defs/a\",\"minLength\":3,\"$defs\":{\"a\":{}}}", "'minLength' beside '$ref'" },
        { "{\"$ref\":\"#/anyOf/2\",\"anyOf\":[{},{}]}", "beside" },
        { "{\"items\":{\"$ref\":\"#/prefixItems/1\"},\"prefixItems\":[{}]}", "leads nowhere" },
        { "{\"$ref\":\"#/$defs/%4\",\"$defs\":{\"%4\":{}}}", "leads nowhere" },
        { "{\"type\":\"object\",\"properties\":{\"a\":{}},\"required\":\"a\"}", "'required' is no list" },
        { "{\"type\":\"object\",\"additionalProperties\":\"no\"}", "'additionalProperties' is no schema" },
        { "{\"type\":\"array\",\"prefixItems\":{}}", "'prefixItems' is no list" },
        { "{\"type\":\"array\",\"items\":[{}]}", "'prefixItems'" },
        { "{\"type\":\"array\",\"maxItems\":5000}", "'maxItems' is more than 4096" },
        { "{\"type\":\"object\",\"properties\":{},\"oneOf\":[{\"required\":[\"a\"]}]}", "beside 'oneOf'" },
        { "{\"anyOf\":[{\"type\":\"object\"}],\"required\":[\"a\"]}", "'required' beside 'anyOf'" },
        { "{\"enum\":[\"x\"],\"const\":\"x\"}", "'enum' beside 'const'" },
        { "{\"type\":\"integer\",\"enum\":[\"x\"]}", "'type'" },
        { "{\"type\":\"null\",\"const\":1}", "'type'" },
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct grammar *g = NULL;
        struct err e = { 0 };
        if (schema_parse(&g, cases[i][0], strlen(cases[i][0]), &e) >= 0) fail_msg("%s is taken", cases[i][0]);
        if (!strstr(e.msg, cases[i][1])) fail_msg("%s: '%s'", cases[i][0], e.msg);
    }
}

/* The mask is what trying each token alone says, wherever the text is. */
static void test_tokens(void **state)
{
    static const char schema[] = "{\"type\":\"object\","
                                 "\"properties\":{\"a\":{\"type\":\"string\"},\"b\":{\"enum\":[1,12]}}}";
    struct buf bytes = buf_make(1 << 20);
    struct grammar *g;
    struct match *m, *other;
    struct err e;
    (void)state;
    assert_int_equal(schema_parse(&g, schema, strlen(schema), &e), 0);
    const char *const befores[] = { "", "{", "{\"a\": \"some w", "{\"a\":\"\",\"b\": 1", "{}" };
    for (int i = 0; i < 5; i++) {
        assert_int_equal(match_new(&m, g, vocabulary, &e), 0);
        match_bytes(m, befores[i], strlen(befores[i]));
        const uint64_t *may = match_tokens(m);
        int n = 0;
        for (int32_t id = 0; id < size; id++) {
            const bool yes = may[id / 64] >> (id % 64) & 1;
            n += yes;
            if (id % 7 && !yes) continue; /* all that may, some that may not */
            assert_int_equal(match_new(&other, g, vocabulary, &e), 0);
            match_bytes(other, befores[i], strlen(befores[i]));
            buf_reset(&bytes);
            tokenizer_bytes(tok, id, &bytes);
            const size_t skip = i == 0 && bytes.n && bytes.p[0] == ' ';
            const bool fits = !tokenizer_is_special(tok, id) && bytes.n > skip &&
                              match_bytes(other, bytes.p + skip, bytes.n - skip) == bytes.n - skip;
            if (fits != yes) fail_msg("after '%s' token %d is %d", befores[i], id, yes);
            match_free(other);
        }
        assert_int_equal(n == 0, i == 4); /* after the end nothing follows */
        assert_true(match_may_end(m) == (i == 4));
        match_free(m);
    }
    grammar_free(g);
    buf_free(&bytes);
}

/* ---- large schemas */

/* A text of the schema goes through token by token, each of which the mask lets through. */
static void follow(const char *schema, const char *text)
{
    struct ids ids = ids_make(1 << 16);
    struct grammar *g;
    struct match *m;
    struct err e = { 0 };
    if (schema_parse(&g, schema, strlen(schema), &e) < 0) fail_msg("%.60s: %s", schema, e.msg);
    if (match_new(&m, g, vocabulary, &e) < 0) fail_msg("%.60s: %s", schema, e.msg);
    assert_int_equal(tokenizer_encode_text(tok, text, strlen(text), &ids, &e), 0);
    const int32_t space = tokenizer_find(tok, "\u2581");
    for (size_t i = ids.p[0] == space; i < ids.n; i++) {
        const uint64_t *may = match_tokens(m);
        if (!may || !(may[ids.p[i] / 64] >> (ids.p[i] % 64) & 1)) fail_msg("%.60s: token %zu of '%s'", schema, i, text);
        assert_true(match_push(m, ids.p[i]));
    }
    assert_true(match_may_end(m));
    match_free(m);
    grammar_free(g);
    ids_free(&ids);
}

/* n items, in which # stands for their number, between before and after. */
static const char *list(struct buf *b, const char *before, const char *fmt, int n, const char *after)
{
    buf_reset(b);
    buf_str(b, before);
    for (int i = 0; i < n; i++) {
        const char *number = strchr(fmt, '#');
        buf_fmt(b, "%.*s%d%s", (int)(number - fmt), fmt, i, number + 1);
        if (i + 1 < n) buf_chr(b, ',');
    }
    buf_str(b, after);
    return b->p;
}

static void test_large(void **state)
{
    static const char object[] = "{\"type\":\"object\",\"properties\":{",
                      key[] = "\"key of many #\":{\"type\":\"integer\"}", value[] = "\"a value of some length, #\"",
                      way[] = "{\"type\":\"object\",\"properties\":{\"kind\":{\"const\":\"k#\"},\"name\":{}},"
                              "\"required\":[\"kind\"]}";
    static const struct { int n; const char *what; } cases[] = {
        { 9000, "more than 32768 parts" }, { 20000, "more than 262144 bytes" }
    };
    struct buf b = buf_make(1 << 24);
    (void)state;
    for (int n = 150; n <= 5000; n *= 5)
        follow(list(&b, object, key, n, "}}"), "{\"key of many 3\": 3, \"key of many 77\": 1,\"key of many 149\": 0}");
    for (int n = 300; n <= 5000; n *= 4)
        follow(list(&b, "{\"enum\":[", value, n, "]}"), "\"a value of some length, 299\"");
    for (int n = 100; n <= 1600; n *= 4)
        follow(list(&b, "{\"anyOf\":[", way, n, "]}"), "{\"kind\":\"k99\",\"name\":\"x\"}");
    for (int i = 0; i < 2; i++) {
        struct grammar *g;
        struct err e = { 0 };
        list(&b, i ? "{\"enum\":[" : object, i ? value : key, cases[i].n, i ? "]}" : "}}");
        assert_int_equal(schema_parse(&g, b.p, b.n, &e), ERR_LIMIT);
        if (!strstr(e.msg, cases[i].what)) fail_msg("%s", e.msg);
    }
    buf_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_grammars), cmocka_unit_test(test_grammars_refused),
        cmocka_unit_test(test_schemas),  cmocka_unit_test(test_schemas_refused),
        cmocka_unit_test(test_tokens),   cmocka_unit_test(test_large),
    };
    return cmocka_run_group_tests_name("grammar", tests, begin, end);
}
