/* The text room: conversations, labels, streams and stop strings, and files that are not what they should be.
 * Token ids in bulk are compared by text_equal.py. Tests marked (llama) need LLAVA_TEST_DATA with
 * tokenizer/llama.model. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/rng.h"
#include "text/conv.h"
#include "text/stream.h"
#include "text/supervise.h"
#include "text/tokenizer.h"

#define S1                                                                                                \
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives "       \
    "helpful, detailed, and polite answers to the human's questions."
#define S2                                                                                                \
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "        \
    "helpful, detailed, and polite answers to the user's questions."
#define S4                                                                                                \
    "A chat between a curious user and an artificial intelligence assistant. The assistant is "           \
    "able to understand the visual content that the user provides, and assist the user with a "           \
    "variety of tasks using natural language.The visual content will be provided with the "               \
    "following format: <Image>visual content</Image>."

static const char *small_model(void)
{
    return access("tests/data/tok512.model", R_OK) == 0 ? "tests/data/tok512.model" : NULL;
}

static struct tokenizer *open_llama(enum tokenizer_mode mode)
{
    const char *data = getenv("LLAVA_TEST_DATA");
    char path[4096];
    struct tokenizer *t = NULL;
    struct err e = { 0 };
    if (!data) return NULL;
    snprintf(path, sizeof path, "%s/tokenizer/llama.model", data);
    if (tokenizer_open_model(&t, path, mode, &e) < 0) fail_msg("%s", e.msg);
    return t;
}

static struct tokenizer *open_small(void)
{
    struct tokenizer *t = NULL;
    struct err e = { 0 };
    const char *path = small_model();
    if (!path) skip();
    if (tokenizer_open_model(&t, path, TOKENIZER_NEW, &e) < 0) fail_msg("%s", e.msg);
    return t;
}

/* ---- conversations */

static void check_prompt(const char *name, bool image, const char *q1, const char *want)
{
    struct conv c;
    struct err e = { 0 };
    struct buf b = buf_make(1 << 20);
    assert_int_equal(conv_init(&c, conv_find(name), &e), 0);
    assert_int_equal(conv_add(&c, CONV_USER, q1, strlen(q1), image, &e), 0);
    if (!image) {
        assert_int_equal(conv_add(&c, CONV_ASSISTANT, "A1", 2, false, &e), 0);
        assert_int_equal(conv_add(&c, CONV_USER, "Q2", 2, false, &e), 0);
    }
    assert_int_equal(conv_add(&c, CONV_ASSISTANT, NULL, 0, false, &e), 0);
    assert_int_equal(conv_prompt(&c, &b, NULL, &e), 0);
    if (want[0] == '*') {
        assert_true(b.n > strlen(want));
        assert_string_equal(b.p + b.n - strlen(want + 1), want + 1);
    } else {
        assert_string_equal(b.p, want);
    }
    buf_free(&b);
    conv_fini(&c);
}

static void prompts(void **state)
{
    static const struct { const char *name, *want;
    } rows[] = {
        { "v1", S2 " USER: <image>\nQ1 ASSISTANT: A1</s>USER: Q2 ASSISTANT:" },
        { "vicuna_v1", S2 " USER: <image>\nQ1 ASSISTANT: A1</s>USER: Q2 ASSISTANT:" },
        { "llava_v1", S1 " USER: <image>\nQ1 ASSISTANT: A1</s>USER: Q2 ASSISTANT:" },
        { "v1_mmtag", S4 " USER: <image>\nQ1 ASSISTANT: A1</s>USER: Q2 ASSISTANT:" },
        { "llava_v0", S1 "###Human: <image>\nQ1###Assistant: A1###Human: Q2###Assistant:" },
        { "v0_mmtag", S4 "###Human: <image>\nQ1###Assistant: A1###Human: Q2###Assistant:" },
        { "v0", "*lead to economic and social instability.\n###Human: <image>\nQ1###Assistant: A1###Human: "
                "Q2###Assistant:" },
        { "llama_2", "*please don't share false information.\n<</SYS>>\n\n<image>\nQ1 [/INST] A1 "
                     "</s><s>[INST] Q2 [/INST]" },
        { "llava_llama_2", "[INST] <<SYS>>\nYou are a helpful language and vision assistant. You are able to "
                           "understand the visual content "
                           "that the user provides, and assist the user with a variety of tasks using "
                           "natural language.\n<</SYS>>\n\n"
                           "<image>\nQ1 [/INST] A1 </s><s>[INST] Q2 [/INST]" },
        { "mistral_instruct", "[INST] <image>\nQ1 [/INST] A1 </s>[INST] Q2 [/INST]" },
        { "chatml_direct",
          "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n<image>\nQ1<|im_end|>"
          "<|im_start|>assistant\nA1<|im_end|><|im_start|>user\nQ2<|im_end|><|im_start|>assistant\n" },
        { "mpt", "<|im_start|>system\nA conversation between a user and an LLM-based AI assistant. The "
                 "assistant gives "
                 "helpful and honest "
                 "answers.<|im_end|><|im_start|>user\n<image>\nQ1<|im_end|><|im_start|>assistant\n"
                 "A1<|im_end|><|im_start|>user\nQ2<|im_end|><|im_start|>assistant\n" },
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        check_prompt(rows[i].name, false, "<image>\nQ1", rows[i].want);
    check_prompt("llava_v1", true, "Q1\n<image>", S1 " USER: <image>\nQ1 ASSISTANT:");
    check_prompt("llava_v1", true, "\xe3\x80\x80 Q1\t<image>\n", S1 " USER: <image>\nQ1 ASSISTANT:");
    check_prompt("v1_mmtag", true, "Q1\n<image>",
                 S4 " USER: <Image><image></Image> ASSISTANT: Received.</s>USER: Q1 ASSISTANT:");
    check_prompt("v0_mmtag", true, "Q1\n<image>",
                 S4 "###Human: <Image><image></Image>###Assistant: Received.###Human: Q1###Assistant:");
}

/* The built-in example is long: its length and a checksum (FNV-1a, 64 bits) of the reference's text. */
static void example_round(void **state)
{
    (void)state;
    const char *text = conv_find("default")->example[1];
    uint64_t h = 0xcbf29ce484222325u;
    for (const char *p = text; *p; p++) h = (h ^ (unsigned char)*p) * 0x100000001b3u;
    assert_int_equal(strlen(text), 1383);
    assert_true(h == 0xa87dfa0acd95acdau);
}

static void prompt_refusals(void **state)
{
    (void)state;
    struct conv c;
    struct err e = { 0 };
    struct buf b = buf_make(1 << 20);
    conv_init(&c, conv_find("llama_2"), &e);
    conv_add(&c, CONV_USER, NULL, 0, false, &e);
    assert_int_equal(conv_prompt(&c, &b, NULL, &e), ERR_USAGE);
    conv_fini(&c);
    conv_init(&c, conv_find("plain"), &e);
    conv_add(&c, CONV_USER, "a", 1, false, &e);
    conv_add(&c, CONV_ASSISTANT, "b", 1, false, &e);
    assert_int_equal(conv_prompt(&c, &b, NULL, &e), ERR_USAGE);
    conv_fini(&c);
    assert_null(conv_find("v2"));
    assert_null(conv_find(""));
    buf_free(&b);
}

static void conversation_life(void **state)
{
    (void)state;
    struct conv c, d;
    struct err e = { 0 };
    struct buf b = buf_make(1 << 20);
    assert_int_equal(conv_init(&c, conv_find("v0"), &e), 0);
    assert_int_equal(c.offset, 2);
    conv_add(&c, CONV_USER, "q\0r", 3, false, &e);
    conv_add(&c, CONV_ASSISTANT, NULL, 0, false, &e);
    assert_int_equal(conv_copy(&d, &c, &e), 0);
    assert_int_equal(conv_set_last(&c, "an answer", 9, &e), 0);
    assert_int_equal(d.n, 4);
    assert_null(d.message[3].text);
    assert_memory_equal(d.message[2].text, "q\0r", 3);
    assert_int_equal(conv_prompt(&d, &b, NULL, &e), 0);
    assert_non_null(memmem(b.p, b.n, "###Human: q\0r###Assistant:", 26));
    conv_fini(&c);
    conv_fini(&d);
    buf_free(&b);
}

static void names_of_models(void **state)
{
    static const struct { const char *model, *cli, *web; } rows[] = {
        { "llava-v1.5-7b", "llava_v1", "llava_v1" },
        { "LLaVA-V1.5-13B-LoRA", "llava_v1", "llava_v1" },
        { "llava-llama-2-13b-chat", "llava_llama_2", "llava_llama_2" },
        { "llava-v1.6-mistral-7b", "mistral_instruct", "mistral_instruct" },
        { "llava-mixtral-hermes", "llava_v0", "chatml_direct" },
        { "llava-mistral-orca", "mistral_instruct", "mistral_instruct" },
        { "llava-v1.6-34b", "chatml_direct", "chatml_direct" },
        { "llava-v1-mmtag", "llava_v1", "v1_mmtag" },
        { "llava-v1-plain", "llava_v1", "v1_mmtag" },
        { "llava-v1-plain-finetune", "llava_v1", "llava_v1" },
        { "llava-mpt-7b", "mpt", "mpt" },
        { "llava-7b-plain", "llava_v0", "v0_mmtag" },
        { "llava-7b", "llava_v0", "llava_v0" },
        { "mpt-7b", "mpt", "mpt" },
        { "MPT-7b", "mpt", "vicuna_v1" },
        { "llama-2-7b", "llava_llama_2", "llama_2" },
        { "vicuna-13b", "llava_v0", "vicuna_v1" },
        { "", "llava_v0", "vicuna_v1" },
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        assert_string_equal(conv_pick(rows[i].model, CONV_CLI)->name, rows[i].cli);
        assert_string_equal(conv_pick(rows[i].model, CONV_WEB)->name, rows[i].web);
    }
    assert_string_equal(conv_stop(conv_find("mpt")), "<|im_end|>");
    assert_string_equal(conv_stop(conv_find("v0")), "###");
    assert_string_equal(conv_stop(conv_find("v1")), "</s>");
    assert_null(conv_stop(conv_find("plain")));
}

/* ---- labels */

static struct turn turn_of(const char *from, const char *value)
{
    return (struct turn){ span_of(from), span_of(value) };
}

static void check_ids(const struct ids *got, const int32_t *want, size_t n, const char *what)
{
    if (got->n != n) fail_msg("%s: %zu ids, not %zu", what, got->n, n);
    for (size_t i = 0; i < n; i++)
        if (got->p[i] != want[i]) fail_msg("%s: id %zu is %d, not %d", what, i, got->p[i], want[i]);
}

/* Ends in `tail`; supervised ids in order are `learned`. */
static void check_sample(const char *tpl, enum tokenizer_mode mode, const char *first, size_t n_ids,
                         const int32_t *tail, size_t n_tail, const int32_t *learned, size_t n_learned)
{
    struct tokenizer *t = open_llama(mode);
    struct turn turns[] = { turn_of("human", first), turn_of("gpt", "Hello there."),
                            turn_of("human", "Again?"), turn_of("gpt", "Yes.") };
    struct ids ids = ids_make(4096), labels = ids_make(4096), kept = ids_make(4096);
    struct err e = { 0 };
    struct supervise s = { .tokenizer = t, .tpl = conv_find(tpl), .max_length = 2048 };
    if (!t) skip();
    bool image = strstr(first, "<image>") != NULL;
    if (supervise(&s, turns, 4, image, &ids, &labels, &e) < 0) fail_msg("%s", e.msg);
    if (n_ids) assert_int_equal(ids.n, n_ids);
    assert_int_equal(ids.n, labels.n);
    check_ids(&(struct ids){ .p = ids.p + ids.n - n_tail, .n = n_tail }, tail, n_tail, tpl);
    for (size_t i = 0; i < ids.n; i++) {
        assert_true(labels.p[i] == IDS_IGNORE || labels.p[i] == ids.p[i]);
        if (labels.p[i] != IDS_IGNORE) ids_add(&kept, labels.p[i]);
    }
    check_ids(&kept, learned, n_learned, tpl);
    ids_free(&ids);
    ids_free(&labels);
    ids_free(&kept);
    tokenizer_close(t);
}
#define IDS(...) (const int32_t[]){ __VA_ARGS__ }, sizeof((const int32_t[]){ __VA_ARGS__ }) / sizeof(int32_t)

static void labels_llama(void **state)
{
#define ANSWERS IDS(15043, 727, 29889, 2, 3869, 29889, 2)
    (void)state;
    check_sample("v1", TOKENIZER_NEW, "<image>\nHi", 60,
                 IDS(29871, -200, 29871, 13, 18567, 319, 1799, 9047, 13566, 29901, 15043, 727, 29889, 2,
                     11889, 29901, 11454, 29973, 319, 1799, 9047, 13566, 29901, 3869, 29889, 2),
                 ANSWERS);
    check_sample(
        "v1", TOKENIZER_431, "<image>\nHi", 61,
        IDS(29889, 2, 3308, 1001, 29901, 11454, 29973, 319, 1799, 9047, 13566, 29901, 3869, 29889, 2),
        ANSWERS);
    check_sample(
        "v1", TOKENIZER_LEGACY, "<image>\nHi", 61,
        IDS(29889, 2, 3148, 1001, 29901, 11454, 29973, 319, 1799, 9047, 13566, 29901, 3869, 29889, 2),
        ANSWERS);
    check_sample("v1", TOKENIZER_NEW, "Hi", 56, IDS(3869, 29889, 2), ANSWERS);
    check_sample("v1", TOKENIZER_431, "Hi", 57, IDS(3869, 29889, 2), ANSWERS);
    check_sample("v1", TOKENIZER_LEGACY, "Hi", 57, IDS(3869, 29889, 2), ANSWERS);
    check_sample("llava_llama_2", TOKENIZER_NEW, "<image>\nHi", 0,
                 IDS(518, 29914, 25580, 29962, 15043, 727, 29889, 29871, 2, 1, 29961, 25580, 29962, 11454,
                     29973, 518, 29914, 25580, 29962, 3869, 29889, 29871, 2),
                 IDS(15043, 727, 29889, 29871, 2, 3869, 29889, 29871, 2));
}

static void plain_llama(void **state)
{
    (void)state;
    struct tokenizer *t = open_llama(TOKENIZER_LEGACY);
    struct turn turns[] = { turn_of("human", "Describe.\n<image>"), turn_of("gpt", "a cat on a mat") };
    struct ids ids = ids_make(64), labels = ids_make(64);
    struct err e = { 0 };
    if (!t) skip();
    struct supervise s = { .tokenizer = t, .tpl = conv_find("plain") };
    assert_int_equal(supervise(&s, turns, 2, true, &ids, &labels, &e), 0);
    check_ids(&ids, IDS(1, -200, 263, 6635, 373, 263, 1775, 13), "ids");
    check_ids(&labels, IDS(-100, -100, 263, 6635, 373, 263, 1775, 13), "labels");
    ids_free(&ids);
    ids_free(&labels);
    tokenizer_close(t);
}

static void prompts_llama(void **state)
{
    (void)state;
    static const char question[] = S2 " USER: <image>\nDescribe the image. ASSISTANT:";
    static const char vqa[] =
        S2 " USER: <image>\nWhat is the man doing?\nAnswer the question using a single word or "
           "phrase. ASSISTANT:";
    for (int mode = 0; mode < 3; mode++) {
        struct tokenizer *t = open_llama((enum tokenizer_mode)mode);
        struct ids ids = ids_make(4096);
        struct err e = { 0 };
        if (!t) skip();
        assert_int_equal(tokenizer_encode_prompt(t, question, strlen(question), &ids, &e), 0);
        check_ids(&ids,
                  IDS(1, 319, 13563, 1546, 263, 12758, 1404, 322, 385, 23116, 21082, 20255, 29889, 450, 20255,
                      4076, 8444, 29892, 13173, 29892, 322, 1248, 568, 6089, 304, 278, 1404, 29915, 29879,
                      5155, 29889, 3148, 1001, 29901, 29871, -200, 29871, 13, 4002, 29581, 278, 1967, 29889,
                      319, 1799, 9047, 13566, 29901),
                  "question");
        ids_reset(&ids);
        assert_int_equal(tokenizer_encode_prompt(t, vqa, strlen(vqa), &ids, &e), 0);
        check_ids(&(struct ids){ .p = ids.p + 31, .n = ids.n - 31 },
                  IDS(3148, 1001, 29901, 29871, -200, 29871, 13, 5618, 338, 278, 767, 2599, 29973, 13, 22550,
                      278, 1139, 773, 263, 2323, 1734, 470, 16549, 29889, 319, 1799, 9047, 13566, 29901),
                  "vqa");
        ids_free(&ids);
        tokenizer_close(t);
    }
}

/* chatml with a tokenizer that knows <|im_end|>: each answer and its <|im_end|> are learned. */
static void labels_chatml(void **state)
{
    (void)state;
    for (int mode = 0; mode < 3; mode++) {
        struct tokenizer *t = open_small();
        struct turn turns[] = { turn_of("gpt", "left out"), turn_of("human", "<image>\nHi"),
                                turn_of("gpt", "Hello there."), turn_of("human", "Again?"),
                                turn_of("gpt", "Yes.") };
        struct ids ids = ids_make(4096), labels = ids_make(4096), kept = ids_make(4096),
                   want = ids_make(4096);
        struct err e = { 0 };
        struct supervise s = { .tokenizer = t, .tpl = conv_find("chatml_direct") };
        tokenizer_set_mode(t, (enum tokenizer_mode)mode);
        int32_t end = tokenizer_add(t, "<|im_end|>", true, &e);
        assert_int_equal(supervise(&s, turns, 5, true, &ids, &labels, &e), 0);
        for (size_t i = 0; i < labels.n; i++)
            if (labels.p[i] != IDS_IGNORE) ids_add(&kept, labels.p[i]);
        /* "assistant\n" in front keeps the answer from getting a space of its own. */
        for (int k = 0; k < 2; k++) {
            struct ids all = ids_make(4096), head = ids_make(4096);
            const char *text = k ? "assistant\nYes." : "assistant\nHello there.";
            assert_int_equal(tokenizer_encode_text(t, text, strlen(text), &all, &e), 0);
            assert_int_equal(tokenizer_encode_text(t, "assistant\n", 10, &head, &e), 0);
            ids_add_n(&want, all.p + head.n, all.n - head.n);
            ids_add(&want, end);
            ids_free(&all);
            ids_free(&head);
        }
        check_ids(&kept, want.p, want.n, "chatml");
        ids_free(&ids);
        ids_free(&labels);
        ids_free(&kept);
        ids_free(&want);
        tokenizer_close(t);
    }
}

static void sample_refusals(void **state)
{
    (void)state;
    struct tokenizer *t = open_small();
    struct ids ids = ids_make(4096), labels = ids_make(4096);
    struct err e = { 0 };
    struct supervise s = { .tokenizer = t, .tpl = conv_find("v1") };
    struct turn two[] = { turn_of("human", "a"), turn_of("human", "b") };
    struct turn odd[] = { turn_of("system", "a"), turn_of("gpt", "b") };
    assert_int_equal(supervise(&s, two, 2, false, &ids, &labels, &e), ERR_FORMAT);
    assert_string_equal(e.msg, "turn 1 is from 'human', not from 'gpt'");
    assert_int_equal(supervise(&s, odd, 2, false, &ids, &labels, &e), ERR_FORMAT);
    assert_int_equal(supervise(&s, two, 0, false, &ids, &labels, &e), ERR_FORMAT);
    s.tpl = conv_find("plain");
    assert_int_equal(supervise(&s, two, 2, true, &ids, &labels, &e), ERR_FORMAT);
    ids_free(&ids);
    ids_free(&labels);
    tokenizer_close(t);
}

static void picture_in_turn(void **state)
{
    static const struct { const char *tpl; bool im; const char *value, *want; } rows[] = {
        { "v1", false, "Look.\n<image>", "<image>\nLook." },
        { "v1", false, " <image> a <image> ", "<image>\na" },
        { "v1", false, "<image>", "<image>" },
        { "v1", false, " no picture ", " no picture " },
        { "v1_mmtag", false, "a<image>", "<Image><image></Image>\na" },
        { "v1", true, "a <image>", "<im_start><image><im_end>\na" },
        { "v1", false, "<im<image>age>", "<image>\n<image>" },
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct supervise s = { .tpl = conv_find(rows[i].tpl), .im_start_end = rows[i].im };
        struct buf b = buf_make(1000);
        supervise_picture(&s, span_of(rows[i].value), 1, &b);
        assert_string_equal(b.p, rows[i].want);
        buf_free(&b);
    }
}

/* ---- streams and stop strings */

static void naive_push(const struct tokenizer *t, struct ids *cache, size_t *printed, bool by_lines, struct buf *out)
{
    struct buf text = buf_make(1 << 20);
    tokenizer_decode(t, cache->p, cache->n, true, &text);
    size_t n = text.n, back = 1;
    uint32_t cp = 0;
    size_t len;
    while (n && back < n && back < 4 && ((unsigned char)text.p[n - back] & 0xc0) == 0x80) back++;
    if (n) utf8_next(text.p + n - back, back, &cp, &len);
    bool line = n && text.p[n - 1] == '\n';
    if (!line && !utf8_is_cjk(cp))
        while (n && text.p[n - 1] != ' ') n--;
    if (n > *printed) {
        buf_add(out, text.p + *printed, n - *printed);
        *printed = n;
    }
    if (line && by_lines) {
        *printed = 0;
        ids_reset(cache);
    }
    buf_free(&text);
}

static void stream_is_naive(const struct tokenizer *t, uint64_t seed)
{
    struct rng r;
    const int32_t size = tokenizer_info(t)->size;
    rng_seed(&r, seed);
    for (int round = 0; round < 400; round++) {
        struct stream s;
        struct ids cache = ids_make(1 << 16);
        struct buf got = buf_make(1 << 20), want = buf_make(1 << 20);
        size_t printed = 0;
        const bool by_lines = round % 2;
        stream_init(&s, t);
        if (by_lines) stream_by_lines(&s);
        for (int i = 0; i < 60; i++) {
            /* Half of the ids are special tokens and bytes. */
            int32_t id = (int32_t)(rng_u64(&r) % (rng_u64(&r) % 2 ? (uint64_t)size : 260));
            if (rng_u64(&r) % 50 == 0) id = IDS_IMAGE;
            stream_push(&s, id, &got);
            ids_add(&cache, id);
            naive_push(t, &cache, &printed, by_lines, &want);
            if (got.n != want.n || (got.n && memcmp(got.p, want.p, got.n) != 0))
                fail_msg("seed %d, round %d, id %d: '%s' is not '%s'", (int)seed, round, i, got.p, want.p);
        }
        struct buf rest = buf_make(1 << 20);
        tokenizer_decode(t, cache.p, cache.n, true, &rest);
        stream_flush(&s, &got);
        if (rest.n > printed) buf_add(&want, rest.p + printed, rest.n - printed);
        assert_int_equal(got.n, want.n);
        if (got.n) assert_memory_equal(got.p, want.p, got.n);
        buf_free(&rest);
        buf_free(&got);
        buf_free(&want);
        ids_free(&cache);
        stream_fini(&s);
    }
}

static void streams(void **state)
{
    (void)state;
    struct tokenizer *t = open_small();
    struct err e = { 0 };
    assert_true(tokenizer_add(t, "<im_patch>", true, &e) >= 0);
    assert_true(tokenizer_add(t, "<apart>", false, &e) >= 0);
    stream_is_naive(t, 1);
    tokenizer_set_mode(t, TOKENIZER_LEGACY);
    stream_is_naive(t, 2);
    tokenizer_close(t);
    if ((t = open_llama(TOKENIZER_NEW)) == NULL) return;
    stream_is_naive(t, 3);
    tokenizer_close(t);
}

static void stop_strings(void **state)
{
    (void)state;
    static const char *const stops[] = { "###", "</s>", "STOP NOW" };
    static const char text[] = "a ## b #x </ s> <</s STOP NO \xe4\xbd\xa0 ## STOP NOW never ###";
    const size_t end = (size_t)(strstr(text, "STOP NOW") - text);
    for (size_t step = 1; step < sizeof text; step++) {
        struct stopper s;
        struct buf out = buf_make(1000);
        struct err e = { 0 };
        bool hit = false;
        stopper_init(&s);
        for (int i = 0; i < 3; i++) assert_int_equal(stopper_add(&s, stops[i], strlen(stops[i]), &e), 0);
        assert_int_equal(stopper_add(&s, "", 0, &e), 0);
        for (size_t i = 0; i < sizeof text - 1; i += step) {
            size_t n = sizeof text - 1 - i < step ? sizeof text - 1 - i : step;
            hit = stopper_feed(&s, text + i, n, &out);
            assert_true(out.n <= end);
        }
        assert_true(hit);
        stopper_flush(&s, &out);
        assert_int_equal(out.n, end);
        assert_memory_equal(out.p, text, end);
        buf_reset(&out);
        assert_false(stopper_feed(&s, "x ##", 4, &out));
        assert_string_equal(out.p, "x ");
        stopper_flush(&s, &out);
        assert_string_equal(out.p, "x ##");
        stopper_fini(&s);
        buf_free(&out);
    }
}

/* ---- text */

static void utf8(void **state)
{
    static const struct { const char *text; int bad;
    } rows[] = {
        { "plain", -1 },
        { "\xc3\xa9\xe4\xbd\xa0\xf0\x9f\x98\x80", -1 },
        { "a\xff", 1 },
        { "ab\xc3", 2 },
        { "\xc0\x80", 0 },
        { "\xe0\x80\x80", 0 },
        { "\xed\xa0\x80", 0 },
        { "\xed\x9f\xbf", -1 },
        { "\xf4\x90\x80\x80", 0 },
        { "\xf4\x8f\xbf\xbf", -1 },
        { "\xf0\x8f\xbf\xbf", 0 },
        { "x\xe4\xbdy", 1 },
        { "\x80", 0 },
        { "\xf5\x80\x80\x80", 0 },
    };
    (void)state;
    struct tokenizer *t = open_small();
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct err e = { 0 };
        struct ids ids = ids_make(100);
        size_t n = strlen(rows[i].text);
        char want[64];
        snprintf(want, sizeof want, "at offset %d", rows[i].bad);
        assert_int_equal(text_check_utf8(rows[i].text, n, "the prompt", &e),
                         rows[i].bad < 0 ? 0 : ERR_FORMAT);
        if (rows[i].bad >= 0) assert_non_null(strstr(e.msg, want));
        assert_int_equal(tokenizer_encode_prompt(t, rows[i].text, n, &ids, &e),
                         rows[i].bad < 0 ? 0 : ERR_FORMAT);
        ids_free(&ids);
    }
    tokenizer_close(t);
}

static void limits(void **state)
{
    (void)state;
    struct tokenizer *t = open_small();
    struct ids ids = ids_make(4);
    struct err e = { 0 };
    assert_int_equal(tokenizer_encode(t, "one two three four five", 23, &ids, &e), ERR_LIMIT);
    assert_true(ids.n <= 4);
    ids_free(&ids);
    ids = ids_make(100);
    assert_int_equal(tokenizer_encode_prompt(t, "", 0, &ids, &e), 0);
    check_ids(&ids, IDS(1), "empty");
    ids_free(&ids);
    tokenizer_close(t);
}

/* ---- folders */

static char folder[] = "build/text-XXXXXX";

static void put_file(const char *name, const char *text)
{
    char path[200];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    unlink(path);
    if (!text) return;
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static struct tokenizer *open_folder(const char *config, const char *map, const char *added, const char *want)
{
    struct tokenizer *t = NULL;
    struct err e = { 0 };
    put_file("tokenizer_config.json", config);
    put_file("special_tokens_map.json", map);
    put_file("added_tokens.json", added);
    int rc = tokenizer_open(&t, folder, &e);
    if (want && !strstr(e.msg, want)) fail_msg("'%s' has no '%s'", e.msg, want);
    if (!want && rc < 0) fail_msg("%s", e.msg);
    assert_true(want ? rc < 0 && !t : t != NULL);
    return t;
}

static int make_folder(void **state)
{
    (void)state;
    char path[200], real[4096];
    mkdir("build", 0777);
    if (!mkdtemp(folder)) return -1;
    snprintf(path, sizeof path, "%s/tokenizer.model", folder);
    return small_model() && realpath(small_model(), real) && symlink(real, path) == 0 ? 0 : -1;
}

static int drop_folder(void **state)
{
    static const char *const names[] = { "tokenizer.model", "tokenizer_config.json",
                                         "special_tokens_map.json", "added_tokens.json", "tokenizer.json" };
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) put_file(names[i], NULL);
    return rmdir(folder);
}

static void configs(void **state)
{
    (void)state;
    struct tokenizer *t = open_folder(NULL, NULL, NULL, NULL);
    const struct tokenizer_info *i = tokenizer_info(t);
    assert_int_equal(i->mode, TOKENIZER_LEGACY);
    assert_true(i->bos == 1 && i->eos == 2 && i->unk == 0 && i->pad == -1 && i->image == -1
                && i->size == 512);
    assert_true(i->add_bos && !i->add_eos && i->model_max_length == 0);
    tokenizer_close(t);

    t = open_folder(
        "{\"legacy\": false, \"add_eos_token\": true, \"model_max_length\": 1000000000000000019884624838656,"
        "\"pad_token\": \"<pad>\", \"unk_token\": {\"content\": \"<unk>\"}, \"added_tokens_decoder\": {"
        "\"512\": {\"content\": \"<image>\", \"lstrip\": true, \"rstrip\": true, \"special\": true},"
        "\"513\": {\"content\": \"<pad>\", \"special\": true}}}",
        NULL, "{\"<no>\": 600}", NULL);
    i = tokenizer_info(t);
    assert_int_equal(i->mode, TOKENIZER_NEW);
    assert_true(i->pad == 513 && i->image == 512 && i->size == 514 && i->add_eos && i->model_max_length == 0);
    struct ids a = ids_make(100), b = ids_make(100);
    struct err e = { 0 };
    tokenizer_encode_prompt(t, "the \xe3\x80\x80 <image> \n cat", 21, &a, &e);
    tokenizer_encode_prompt(t, "the<image>cat", 13, &b, &e);
    assert_int_equal(a.n, b.n);
    assert_memory_equal(a.p, b.p, a.n * sizeof *a.p);
    size_t images = 0;
    for (size_t k = 0; k < a.n; k++) images += a.p[k] == IDS_IMAGE;
    assert_int_equal(images, 1);
    assert_int_equal(a.p[a.n - 1], 2);
    ids_free(&a);
    ids_free(&b);
    tokenizer_close(t);

    t = open_folder("{\"legacy\": null, \"model_max_length\": 2048}",
                    "{\"pad_token\": {\"content\": \"<x>\"}}", "{\"<im_start>\": 512, \"<x>\": 513}", NULL);
    i = tokenizer_info(t);
    assert_true(i->mode == TOKENIZER_LEGACY && i->pad == 513 && i->size == 514
                && i->model_max_length == 2048);
    assert_true(tokenizer_is_special(t, 513) && !tokenizer_is_special(t, 512));
    assert_int_equal(tokenizer_add(t, "<im_end>", true, &e), 514);
    assert_int_equal(tokenizer_add(t, "<im_end>", true, &e), 514);
    tokenizer_close(t);
}

/* An error names the file, also where added_tokens_decoder makes what stands in it unimportant. */
static void bad_old_files(void)
{
    static const char *const configs_of[] = { NULL, "{\"added_tokens_decoder\": {}}" };
    for (int i = 0; i < 2; i++) {
        open_folder(configs_of[i], "{", NULL, "special_tokens_map.json', line 1");
        open_folder(configs_of[i], "[]", NULL, "special_tokens_map.json' is no JSON object");
        open_folder(configs_of[i], NULL, "{\"<a>\": 600,}", "added_tokens.json', line 1");
        open_folder(configs_of[i], NULL, "7", "added_tokens.json'");
    }
    open_folder(NULL, "{\"pad_token\": {\"content\": 7}}", NULL,
                "special_tokens_map.json': a token has no text");
    open_folder(NULL, "{\"additional_special_tokens\": \"<a>\"}", NULL,
                "special_tokens_map.json': 'additional_special_tokens' is no list");
    open_folder(NULL, "{\"additional_special_tokens\": [[]]}", NULL,
                "special_tokens_map.json': a token has no text");
    put_file("tokenizer.json", "{\"added_tokens\": [{\"id\": 600}]}");
    open_folder(NULL, NULL, NULL, "tokenizer.json': a token has no text");
    put_file("tokenizer.json", NULL);
}

static void bad_configs(void **state)
{
    (void)state;
    open_folder("{", NULL, NULL, "cannot parse");
    open_folder("[]", NULL, NULL, "is no JSON object");
    open_folder("{\"legacy\": 1}", NULL, NULL, "'legacy' is neither true nor false");
    open_folder("{\"bos_token\": 3}", NULL, NULL, "tokenizer_config.json': a token has no text");
    open_folder("{\"added_tokens_decoder\": {\"x\": {\"content\": \"<a>\"}}}", NULL, NULL,
                "tokenizer_config.json': added_tokens_decoder: 'x' is not an id");
    open_folder("{\"added_tokens_decoder\": {\"-1\": {\"content\": \"<a>\"}}}", NULL, NULL,
                "'-1' is not an id");
    open_folder("{\"added_tokens_decoder\": {\"99999999999999999999\": {\"content\": \"<a>\"}}}", NULL, NULL,
                "is not an id");
    open_folder("{\"added_tokens_decoder\": {\"5\": {\"content\": \"\"}}}", NULL, NULL, "0 bytes");
    open_folder("{\"added_tokens_decoder\": {\"5\": {\"content\": \"<a>\", \"single_word\": true}}}", NULL,
                NULL, "single_word");
    open_folder(NULL, NULL, "{\"<a>\": 1e12}", "added_tokens.json': the id of added token '<a>' is not in 0..");
    open_folder(NULL, NULL, "{\"<a>\": \"7\"}", "'<a>' is not in 0..");
    bad_old_files();
    char path[200];
    snprintf(path, sizeof path, "%s/tokenizer.model", folder);
    assert_int_equal(rename(path, "build/text-model"), 0);
    open_folder(NULL, NULL, NULL, "neither tokenizer.model nor tokenizer.json");
    put_file("tokenizer.json", "{\"model\": {\"type\": \"WordPiece\"}}");
    open_folder(NULL, NULL, NULL, "kind WordPiece");
    put_file("tokenizer.json", "{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0}}}");
    open_folder(NULL, NULL, NULL, "without byte fallback");
    put_file("tokenizer.json", "{\"normalizer\": {\"type\": \"NFKC\"}, \"model\": {\"type\": \"BPE\", "
                               "\"byte_fallback\": true, \"vocab\": {\"a\": 0}}}");
    open_folder(NULL, NULL, NULL, "changes text");
    put_file("tokenizer.json",
             "{\"model\": {\"type\": \"BPE\", \"byte_fallback\": true, \"vocab\": {\"a\": 7}}}");
    open_folder(NULL, NULL, NULL, "the id of piece 'a'");
    put_file("tokenizer.json",
             "{\"model\": {\"type\": \"BPE\", \"byte_fallback\": true, \"vocab\": {\"a\": 0}, "
             "\"merges\": [\"a b\"]}}");
    open_folder(NULL, NULL, NULL, "makes 'ab', which is no piece");
    put_file("tokenizer.json",
             "{\"model\": {\"type\": \"BPE\", \"byte_fallback\": true, \"vocab\": {\"a\": 0}}}");
    open_folder(NULL, NULL, NULL, "no piece '<unk>'");
    put_file("tokenizer.json",
             "{\"model\": {\"type\": \"BPE\", \"byte_fallback\": true, \"vocab\": {\"<unk>\": 0}}}");
    open_folder(NULL, NULL, NULL, "cannot read");
    put_file("tokenizer.json", NULL);
    put_file("tokenizer.model", "this is no model");
    open_folder(NULL, NULL, NULL, "as a SentencePiece model");
    assert_int_equal(rename("build/text-model", path), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prompts),
        cmocka_unit_test(example_round),
        cmocka_unit_test(prompt_refusals),
        cmocka_unit_test(conversation_life),
        cmocka_unit_test(names_of_models),
        cmocka_unit_test(picture_in_turn),
        cmocka_unit_test(sample_refusals),
        cmocka_unit_test(labels_chatml),
        cmocka_unit_test(labels_llama),
        cmocka_unit_test(plain_llama),
        cmocka_unit_test(prompts_llama),
        cmocka_unit_test(streams),
        cmocka_unit_test(stop_strings),
        cmocka_unit_test(utf8),
        cmocka_unit_test(limits),
        cmocka_unit_test_setup_teardown(configs, make_folder, NULL),
        cmocka_unit_test_setup_teardown(bad_configs, NULL, drop_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
