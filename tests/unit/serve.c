/* Small parts of the servers: base64, addresses that may be fetched from, fields of a request, the text of an answer,
 * prompts of the page and of the API. */
#include <arpa/inet.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "serve/base64.h"
#include "serve/chat.h"
#include "serve/event.h"
#include "serve/fetch.h"
#include "serve/talk.h"

static void base64(void **state)
{
    (void)state;
    unsigned char bytes[256];
    for (int i = 0; i < 256; i++) bytes[i] = (unsigned char)(i * 7);
    for (size_t n = 0; n < sizeof bytes; n++) {
        struct buf text = buf_make(1000), back = buf_make(1000);
        base64_encode(&text, bytes, n);
        assert_int_equal(text.n, (n + 2) / 3 * 4);
        assert_true(base64_decode(&back, text.p ? text.p : "", text.n));
        assert_int_equal(back.n, n);
        if (n) assert_memory_equal(back.p, bytes, n);
        buf_free(&text);
        buf_free(&back);
    }
    static const struct { const char *text, *bytes; } rows[] = {
        { "TWFu", "Man" }, { "TWE=", "Ma" }, { "TWE", "Ma" }, { "TQ==", "M" }, { " T W\nFu ", "Man" }, { "", "" },
        { "data:image/png;base64,TWFu", "Man" }, { "DATA:;BASE64,TWFu", "Man" },
        { "T", NULL }, { "TW=u", NULL }, { "TW*u", NULL }, { "data:image/png,TWFu", NULL }, { "data:", NULL },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct buf b = buf_make(100);
        assert_int_equal(base64_picture(&b, rows[i].text), rows[i].bytes != NULL);
        if (rows[i].bytes) assert_string_equal(b.p ? b.p : "", rows[i].bytes);
        buf_free(&b);
    }
    struct buf small = buf_make(2);
    assert_false(base64_decode(&small, "TWFu", 4));
    buf_free(&small);
}

static void addresses(void **state)
{
    (void)state;
    static const struct { const char *text; bool open;
    } rows[] = {
        { "8.8.8.8", true },
        { "1.1.1.1", true },
        { "172.15.255.255", true },
        { "172.32.0.0", true },
        { "9.255.255.255", true },
        { "100.63.255.255", true },
        { "100.128.0.0", true },
        { "127.0.0.1", false },
        { "127.255.255.255", false },
        { "10.1.2.3", false },
        { "172.16.0.1", false },
        { "172.31.255.255", false },
        { "192.168.0.1", false },
        { "169.254.169.254", false },
        { "0.0.0.0", false },
        { "100.64.0.1", false },
        { "198.18.0.1", false },
        { "224.0.0.1", false },
        { "255.255.255.255", false },
        { "240.0.0.1", false },
        { "192.0.0.1", false },
        { "::1", false },
        { "::", false },
        { "::127.0.0.1", false },
        { "::ffff:10.0.0.1", false },
        { "::ffff:8.8.8.8", true },
        { "fe80::1", false },
        { "fc00::1", false },
        { "fd12::1", false },
        { "ff02::1", false },
        { "2606:4700::1111", true },
        { "2002:7f00:1::", false },
        { "2002:808:808::", true },
        { "64:ff9b::10.0.0.1", false },
        { "64:ff9b::8.8.8.8", true },
        { "2001::1", false },
        { "2001:db8::1", false },
        { "2001:4860:4860::8888", true },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct sockaddr_in6 a6 = { .sin6_family = AF_INET6 };
        struct sockaddr_in a4 = { .sin_family = AF_INET };
        bool six = strchr(rows[i].text, ':');
        assert_int_equal(
            inet_pton(six ? AF_INET6 : AF_INET, rows[i].text, six ? (void *)&a6.sin6_addr : &a4.sin_addr), 1);
        if (fetch_is_public(six ? (struct sockaddr *)&a6 : (struct sockaddr *)&a4) != rows[i].open)
            fail_msg("%s", rows[i].text);
    }
}

static void trims(void **state)
{
    (void)state;
    static const char *const pieces[] = { "", " \n", " red", "", " ", "apple", "\n", " " };
    struct trim t;
    struct buf out = buf_make(100);
    trim_init(&t);
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) trim_feed(&t, &out, pieces[i], strlen(pieces[i]));
    assert_string_equal(out.p, "red apple");
    trim_fini(&t);
    buf_free(&out);
}

/* The prompt of a request to the page or, with a template, to the API. */
static char *prompt_of(const char *text, const char *template)
{
    struct bad b = { 0 };
    struct err e = { 0 };
    struct buf out = buf_make(1 << 20);
    struct talk t;
    struct chat c;
    const char *stop;
    json_t *body = fields_body(text, strlen(text), false, &b);
    assert_non_null(body);
    if (template) {
        chat_read(&c, body, &b);
        if (!b.status) chat_prompt(&out, &stop, &c, template, false, &b);
        chat_free(&c);
    } else {
        talk_read(&t, body, false, NULL, &b);
        if (!b.status) assert_true(talk_prompt(&out, &stop, &t, &e) >= 0);
        talk_free(&t);
    }
    if (b.status) fail_msg("%s", b.message);
    json_decref(body);
    return buf_take(&out, NULL);
}

#define S1 "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, " \
           "detailed, and polite answers to the human's questions."
#define HI_IT "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"},{\"role\":\"assistant\",\"content\":\"It is\"}]"
static void prompts(void **state)
{
    (void)state;
    static const struct { const char *body, *template, *ends;
    } rows[] = {
        { "{\"model\":\"llava-v1.5-7b\",\"messages\":[{\"role\":\"user\",\"text\":\"Hi\",\"images\":[\"x\"]}]}", NULL,
          S1 " USER: <image>\nHi ASSISTANT:" },
        { "{\"model\":\"llava-v1.5-7b\",\"messages\":[{\"role\":\"user\",\"text\":\"A\"},{\"role\":\"assistant\","
          "\"text\":"
          "\"B\"},{\"role\":\"user\",\"text\":\"C\",\"images\":[\"x\"]}]}",
          NULL, S1 " USER: A ASSISTANT: B</s>USER: <image>\nC ASSISTANT:" },
        { "{\"model\":\"llava-v1-mmtag\",\"messages\":[{\"role\":\"user\",\"text\":\"Hi\",\"images\":[\"x\"]}]}",
          NULL,
          "<Image>visual content</Image>. USER: <Image><image></Image> ASSISTANT: Received.</s>USER: Hi ASSISTANT:" },
        { "{\"model\":\"llava-v1.6-mistral-7b\",\"messages\":[{\"role\":\"user\",\"text\":\"Hi\"}]}", NULL,
          "[INST] Hi [/INST]" },
        { "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]}", "llava_v1", S1 " USER: Hi ASSISTANT:" },
        { "{\"messages\":[{\"role\":\"system\",\"content\":\"Be brief.\"},{\"role\":\"user\",\"content\":\"Hi\"}]}",
          "llava_v1", "Be brief. USER: Hi ASSISTANT:" },
        { "{\"messages\":[{\"role\":\"system\",\"content\":\"Be brief.\"},{\"role\":\"user\",\"content\":\"Hi\"}]}",
          "mistral_instruct", "[INST] Be brief.\n\nHi [/INST]" },
        { "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"Hi\"},{\"type\":\"image_"
          "url\","
          "\"image_url\":\"x\"}]}]}",
          "llava_v1", S1 " USER: <image>\nHi ASSISTANT:" },
        { "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"A\"},{\"type\":\"image_url\","
          "\"image_url\":\"x\"},{\"type\":\"text\",\"text\":\"B\"}]}]}",
          "llava_v1", S1 " USER: A\n<image>\nB ASSISTANT:" },
        { "{\"messages\":[{\"role\":\"user\",\"content\":\"A\"},{\"role\":\"user\",\"content\":\"B\"}]}", "llava_v1",
          S1 " USER: A\nB ASSISTANT:" },
        { HI_IT "}", "llava_v1", S1 " USER: Hi ASSISTANT: It is" },
        { HI_IT "}", "mistral_instruct", "[INST] Hi [/INST] It is" },
        { HI_IT "}", "mpt", "<|im_start|>user\nHi<|im_end|><|im_start|>assistant\nIt is" },
        { "{\"messages\":[{\"role\":\"assistant\",\"content\":\"Yes?\"},"
          "{\"role\":\"user\",\"content\":\"Hi\"}]}", "llava_v1",
          S1 " USER:ASSISTANT: Yes?</s>USER: Hi ASSISTANT:" },
        { "{\"messages\":[{\"role\":\"system\",\"content\":\"Speak.\"}]}", "llava_v1", "Speak. USER:ASSISTANT:" },
        { "{\"messages\":[{\"role\":\"system\",\"content\":\"Speak.\"}]}",
          "mistral_instruct", "[INST] Speak.\n\n [/INST]" },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char *p = prompt_of(rows[i].body, rows[i].template);
        size_t n = strlen(p), k = strlen(rows[i].ends);
        if (n < k || strcmp(p + n - k, rows[i].ends) != 0) fail_msg("row %zu: '%s'", i, p);
        free(p);
    }
}

/* What an answer with tools says, also one that is cut. */
static void calls(void **state)
{
    static const struct { enum tools_mode mode; const char *text, *name, *says; } rows[] = {
        { TOOLS_AUTO, "{\"response\": \" It is \\\"red\\\".\\n\" }", "", "It is \"red\"." },
        { TOOLS_AUTO, "{ \"response\" :\"caf\\u00e9 \\ud83c\\udf4e, \\ud83c\\udf4",
          "", "caf\xc3\xa9 \xf0\x9f\x8d\x8e," },
        { TOOLS_AUTO, "{\"response\": \"a\\", "", "a" },
        { TOOLS_AUTO, "{\"response\": \"say \\\"tool_call\\\"\"}", "", "say \"tool_call\"" },
        { TOOLS_AUTO, "{\"respon", "", "" },
        { TOOLS_AUTO, "{\"tool_call\": {\"name\": \"f\", \"arguments\": {\"response\": {\"a\": 0.10}} } }", "f",
          "{\"response\": {\"a\": 0.10}}" },
        { TOOLS_AUTO, "{\"tool_call\": {\"name\": \"f\", \"arguments\": {\"a\": [1", "f", "{\"a\": [1" },
        { TOOLS_AUTO, "{\"tool_call\": {\"name\": \"f", "", "" },
        { TOOLS_SOME, "{\"name\":\"name\",\"arguments\":{\"name\":\"arguments\"}}",
          "name", "{\"name\":\"arguments\"}" },
        { TOOLS_SOME, "{\"name\": \"arguments\", \"arguments\": {}}", "arguments", "{}" },
        { TOOLS_AUTO, "{ \"response\": \"tool_call\" }", "", "tool_call" },
        { TOOLS_AUTO, "{\"tool_call\": {\"name\": \"response\", \"arguments\": {} } }", "response", "{}" },
        { TOOLS_ONE, "{\"a\": 1", "g", "{\"a\": 1" },
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const struct tools t = { .mode = rows[i].mode, .name = "g" };
        struct call c;
        call_read(&c, &t, rows[i].text);
        const char *said = c.text.p ? c.text.p : "";
        if (strcmp(c.name, rows[i].name) != 0 || strcmp(said, rows[i].says) != 0)
            fail_msg("'%s' is '%s' '%s'", rows[i].text, c.name, said);
        buf_free(&c.text);
    }
}

/* While an answer is written nothing is held that grows with its request. */
static void parts(void **state)
{
    static const char text[] = "{\"input\":[{\"role\":\"user\",\"content\":\"Hi\"}],\"instructions\":\"Be brief.\","
                               "\"tools\":[{\"type\":\"function\",\"name\":\"f\"}],\"logit_bias\":{\"7\":1}}";
    struct bad b = { 0 };
    struct chat c;
    json_t *body = fields_body(text, strlen(text), false, &b);
    (void)state;
    response_read(&c, body, &b);
    if (b.status) fail_msg("%s", b.message);
    struct chat asked = chat_part(&c);
    assert_true(asked.schema && asked.turn && asked.bias && asked.system.n && asked.tools.words.n && !asked.repeated);
    assert_true(!c.schema && !c.turn && !c.bias && !c.system.p && !c.tools.words.p && c.tools.mode == TOOLS_AUTO);
    assert_non_null(strstr(c.repeated, "Be brief."));
    chat_free(&asked);
    chat_free(&c);
    json_decref(body);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(base64), cmocka_unit_test(addresses), cmocka_unit_test(trims),
                                        cmocka_unit_test(prompts), cmocka_unit_test(calls), cmocka_unit_test(parts) };
    return cmocka_run_group_tests_name("serve", tests, NULL, NULL);
}
