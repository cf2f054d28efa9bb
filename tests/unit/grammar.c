/* Grammars and schemas: which texts they let through, which tokens may come next, and what is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "text/grammar.h"
#include "text/number.h"
#include "text/regex.h"
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
        { "{\"type\":\"integer\",\"minimum\":-9007199254740991,\"maximum\":9007199254740991}",
          { "+0", "+-7", "+9007199254740991", "59007199254740992", "+-9007199254740991", "+1234567890123456" } },
        { "{\"type\":\"number\",\"exclusiveMinimum\":0,\"maximum\":2}",
          { "~0", "+1", "+0.5", "~0.0", "+1.25", "+2", "12.5", "0-" } },
        { "{\"minimum\":3,\"exclusiveMinimum\":true}", { "~3", "+4", "+3.5", "0\"" } },
        { "{\"type\":\"string\",\"pattern\":\"^[a-c]{2}$\"}", { "+\"ab\"", "3\"abc", "2\"ad" } },
        { "{\"pattern\":\"b|^c\"}", { "+\"abc\"", "+\"cxx\"", "~\"ac", "05" } },
        { "{\"type\":\"string\",\"pattern\":\"^[^x]$\"}",
          { "+\"\\n\"", "+\"\\\"\"", "1\"x", "1\"\n", "+\"\xc3\xa9\"" } },
        { "{\"type\":\"string\",\"pattern\":\"^\\\\\\\\\\\"$\"}", { "+\"\\\\\\\"\"" } },
        { "{\"type\":\"string\",\"format\":\"date\"}", { "+\"2026-11-26\"", "7\"2026-13" } },
        { "{\"type\":\"string\",\"format\":\"email\",\"pattern\":\"^(?!\\\\.)a@b$\"}", { "+\"a.b@c.org\"", "1\".a" } },
        { "{\"type\":\"string\",\"format\":\"ipv4\"}", { "+\"192.168.0.1\"", "+\"255.255.255.255\"", "3\"256" } },
        { "{\"type\":\"string\",\"format\":\"uri\"}", { "+\"anything\"" } },
        { "{\"type\":\"object\",\"propertyNames\":{\"type\":\"string\"},\"additionalProperties\":{\"type\":\"null\"}}",
          { "+{\"a\":null}", "5{\"a\":1" } },
        { "{\"items\":[{\"type\":\"integer\"}],\"additionalItems\":false}", { "+[1]", "2[1,", "1[]" } },
        { "{\"anyOf\":[{\"anyOf\":[{\"not\":{}},{\"type\":\"boolean\"}]},false,{\"type\":\"null\"}]}",
          { "+true", "+null", "0x" } },
        { "{\"minLength\":2}", { "+\"ab\"", "2\"a\"", "05" } },
        { "{\"type\":\"string\"}", /* no NUL, and no half of a pair, which alone is no character */
          { "+\"\\u00e9\\u0020\\u0001\"", "6\"\\u0000", "+\"\\ud7ff\\uE000\\u0100\\u1000\"", "4\"\\ud83c",
            "4\"\\uDf4e" } },
        { "{\"type\":\"number\"}", { "+1e99", "+-0.5E-07", "41e999" } }, /* which many read as infinity */
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
        { "{\"type\":\"integer\",\"minimum\":2,\"maximum\":1}", "'minimum'" },
        { "{\"type\":\"integer\",\"exclusiveMinimum\":1,\"exclusiveMaximum\":2}", "leave no number" },
        { "{\"type\":\"number\",\"minimum\":0.5}", "not whole" },
        { "{\"type\":\"number\",\"minimum\":\"1\"}", "'minimum' is no number" },
        { "{\"type\":\"integer\",\"minimum\":1000000000000000000}", "16 digits" },
        { "{\"type\":\"number\",\"maximum\":-1e300}", "16 digits" },
        { "{\"type\":\"string\",\"pattern\":\"a{3,2}\"}", "a repetition that falls" },
        { "{\"type\":\"string\",\"pattern\":\"a{0,5000}\"}", "more than 4096" },
        { "{\"type\":\"string\",\"pattern\":\"a{99999999999999999999}\"}", "more than 4096" },
        { "{\"type\":\"integer\",\"multipleOf\":2}", "'multipleOf'" },
        { "{\"type\":\"string\",\"pattern\":\"(\"}", "pattern: a group without ')'" },
        { "{\"type\":\"string\",\"pattern\":5}", "'pattern' is no string" },
        { "{\"type\":\"string\",\"pattern\":\"(?=a)b\"}", "looking around" },
        { "{\"type\":\"string\",\"pattern\":\"a\",\"maxLength\":2}", "'pattern' beside a length" },
        { "{\"type\":\"string\",\"pattern\":\"[\\\\x01]\"}", "control characters only" },
        { "{\"anyOf\":[{\"not\":{}},false]}", "allow nothing" },
        { "{\"not\":{\"type\":\"null\"}}", "'not'" },
        { "{\"enum\":[\"x\"],\"pattern\":\"x\"}", "'pattern' beside 'enum'" },
        { "{\"type\":\"object\",\"propertyNames\":{\"pattern\":\"a\"}}", "'propertyNames'" },
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
        { "{\"type\":\"array\",\"items\":[{}],\"prefixItems\":[{}]}", "'prefixItems'" },
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

static void test_regexes(void **state)
{
    static const struct grammar_case cases[] = {
        { "a|bc*", { "+a", "+b", "+bccc", "1ab", "~" } },
        { "^(?:a|b)+$", { "+abba", "0c", "~" } },
        { "((25[0-5]|(2[0-4]|1\\d|[1-9]|)\\d)\\.){3}(25[0-5]|(2[0-4]|1\\d|[1-9]|)\\d)",
          { "+192.168.0.1", "+0.0.0.0", "2256", "~1.2.3." } },
        { "\\w+@\\w+\\.com\\n", { "+alan@enigma.com\n", "~alan@enigma.com", "0@" } },
        { "[^a-y]\\D\\S", { "+zzz", "1z1", "0a", "2zz ", "4zz\xe3\x80\x80", "4zz\xef\xbb\xbf" } },
        { ".\\.[.]", { "+a..", "+\xc3\xa9..", "0\n", "1aa" } },
        { "a{2}b{1,}c{,3}", { "+aabc{,3}", "1ab" } },
        { "a*?b+?", { "+aab", "+b", "~a" } },
        { "\\x41\\u00e9\\u{1F600}\\/\\\\", { "+A\xc3\xa9\xf0\x9f\x98\x80/\\" } },
        { "(?<year>\\d{4})-(?P<m>\\d\\d)", { "+2026-11", "42026x" } },
        { "[\\w.-]{1,2}[a\\-z][\\]\\[]", { "+-.z]", "+a-[", "2-.b" } },
        { "", { "+", "0a" } }, { "|a", { "+", "+a" } }, { "\"\\\\", { "+\"\\" } },
    };
    static const char *const refused[][2] = {
        { "[.*", "does not end" }, { "(a", "without ')'" }, { "a)", "without '('" }, { "*a", "of nothing" },
        { "a**", "of a repetition" }, { "\\", "lone backslash" }, { "[b-a]", "falls" }, { "(?i)a", "flags" },
        { "(?<!a)b", "looking around" }, { "\\bfoo", "\\b" }, { "(a)\\1", "\\1" }, { "\\p{L}", "\\p" },
        { "a^b", "inside" }, { "(a$)", "inside" }, { "\\xg0", "digits" }, { "\xff", "UTF-8" },
        { "\\u{110000}", "no such" },
        { "[^\\d\\D]", "without" },
    };
    struct buf b = buf_make(1 << 20);
    struct grammar *g;
    struct err e = { 0 };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *text = cases[i].grammar;
        buf_reset(&b);
        buf_str(&b, "root ::= ");
        if (regex_write(&b, text, strlen(text), false, &e) < 0) fail_msg("%s: %s", text, e.msg);
        if (grammar_parse(&g, b.p, b.n, &e) < 0) fail_msg("%s: %s: %s", text, b.p, e.msg);
        for (const char *const *t = cases[i].texts; *t; t++)
            if (verdict(g, *t + 1) != **t) fail_msg("%s: '%s' is %c", text, *t, verdict(g, *t + 1));
        grammar_free(g);
    }
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        const char *text = refused[i][0];
        if (regex_write(&b, text, strlen(text), false, &e) >= 0) fail_msg("%s is taken", text);
        if (!strstr(e.msg, refused[i][1])) fail_msg("%s: '%s'", text, e.msg);
    }
    buf_free(&b);
}

/* Every number near the bounds is let through or not as it compares with them. */
static void test_numbers(void **state)
{
    static const int bounds[][2] = { { 0, 0 }, { -1, 1 }, { 7, 113 }, { -250, -17 }, { -99, 100 }, { 10, 99 },
                                     { -1000, 5 },
                                     { 199, 200 }, { 0, 1000 }, { -9, -9 }, { 101, 1099 }, { 988, 1011 } };
    static const char *const parts[] = { "", ".5", ".05", ".75" };
    struct buf b = buf_make(1 << 20);
    struct grammar *g;
    struct err e = { 0 };
    (void)state;
    for (size_t i = 0; i < sizeof bounds / sizeof *bounds; i++) {
        const int lo = bounds[i][0], hi = bounds[i][1];
        buf_reset(&b);
        buf_str(&b, "root ::= ");
        assert_true(number_write(&b, lo, hi, true, lo, hi));
        if (grammar_parse(&g, b.p, b.n, &e) < 0) fail_msg("%s: %s", b.p, e.msg);
        for (int k = -1200; k <= 1200; k++)
            for (int part = 0; part < 4; part++) {
                char text[32];
                snprintf(text, sizeof text, "%d%s", k, parts[part]);
                const double v = strtod(text, NULL);
                if ((verdict(g, text) == '+') != (v >= lo && v <= hi)) fail_msg("%d to %d: %s", lo, hi, text);
            }
        grammar_free(g);
    }
    buf_reset(&b);
    assert_false(number_write(&b, 5, 4, false, 0, 0));
    assert_false(number_write(&b, 1, 0, true, 0, 0));
    buf_free(&b);
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
                      bounded[] = "\"key of many #\":{\"type\":\"integer\",\"minimum\":-9007199254740991,"
                                  "\"maximum\":9007199254740991}",
                      way[] = "{\"type\":\"object\",\"properties\":{\"kind\":{\"const\":\"k#\"},\"name\":{}},"
                              "\"required\":[\"kind\"]}";
    static const struct { int n; const char *what; } cases[] = {
        { 9000, "more than 32768 parts" }, { 20000, "more than 262144 bytes" }
    };
    struct buf b = buf_make(1 << 24);
    (void)state;
    for (int n = 150; n <= 5000; n *= 5)
        follow(list(&b, object, key, n, "}}"), "{\"key of many 3\": 3, \"key of many 77\": 1,\"key of many 149\": 0}");
    for (int n = 500; n <= 2000; n *= 4) /* every number of zod's has these bounds */
        follow(list(&b, object, bounded, n, "}}"), "{\"key of many 3\": 9007199254740991, \"key of many 77\": -1}");
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

/* What may follow is found in parts where it takes long, and is the same then. */
static void test_parts(void **state)
{
    static const char text[] = "root ::= ([^x]? [a-z]? [a-f ]?){700}";
    struct grammar *g;
    struct match *m, *whole;
    struct err e = { 0 };
    int parts = 0;
    (void)state;
    if (grammar_parse(&g, text, strlen(text), &e) < 0) fail_msg("%s", e.msg);
    assert_int_equal(match_new(&m, g, vocabulary, &e), 0);
    assert_int_equal(match_new(&whole, g, vocabulary, &e), 0);
    while (!match_ready(m)) assert_true(++parts < 10000);
    if (parts < 2) fail_msg("%d parts", parts);
    const uint64_t *a = match_tokens(m), *b = match_tokens(whole);
    assert_non_null(a);
    assert_memory_equal(a, b, (size_t)size / 8);
    assert_true(match_ready(m));
    match_free(m);
    match_free(whole);
    grammar_free(g);
}

/* Rules of which each may be nothing as the one before may: found in one go over them, not in one for each. */
static void test_chain(void **state)
{
    enum { RULES = 120000 };
    struct buf b = buf_make(1 << 24);
    struct grammar *g;
    struct err e = { 0 };
    (void)state;
    buf_str(&b, "a0 ::= \"\"\n");
    for (int i = 1; i < RULES; i++) buf_fmt(&b, "a%d ::= a%d\n", i, i - 1);
    buf_fmt(&b, "root ::= a%d \"x\"\n", RULES - 1);
    const clock_t start = clock();
    if (grammar_parse(&g, b.p, b.n, &e) < 0) fail_msg("%s", e.msg);
    const double s = (double)(clock() - start) / CLOCKS_PER_SEC;
    if (s > 8) fail_msg("%d rules took %.1f s", RULES, s);
    assert_int_equal(verdict(g, "x"), '+');
    grammar_free(g);
    buf_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_grammars), cmocka_unit_test(test_grammars_refused),
        cmocka_unit_test(test_schemas),  cmocka_unit_test(test_schemas_refused),
        cmocka_unit_test(test_regexes),  cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_tokens),   cmocka_unit_test(test_large),
        cmocka_unit_test(test_parts),    cmocka_unit_test(test_chain),
    };
    return cmocka_run_group_tests_name("grammar", tests, begin, end);
}
