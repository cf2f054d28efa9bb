/* Conversation templates and prompts: see conv.h. The long strings are data that models were trained with. */
#include "text/conv.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "text/utf8.h"

enum { PROMPT_MAX = 64 << 20 };

#define HUMAN_SYSTEM                                                                                      \
    "A chat between a curious human and an artificial intelligence assistant. "                          \
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
#define USER_SYSTEM                                                                                       \
    "A chat between a curious user and an artificial intelligence assistant. "                           \
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
#define MMTAG_SYSTEM                                                                                      \
    "A chat between a curious user and an artificial intelligence assistant. The assistant is able to "   \
    "understand the visual content that the user provides, and assist the user with a variety of tasks "  \
    "using natural language.The visual content will be provided with the following format: "              \
    "<Image>visual content</Image>."
#define SAFETY_SYSTEM                                                                                     \
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while "  \
    "being safe.  Your answers should not include any harmful, unethical, racist, sexist, toxic, "        \
    "dangerous, or illegal content. Please ensure that your responses are socially unbiased and "         \
    "positive in nature.\n\nIf a question does not make any sense, or is not factually coherent, explain " \
    "why instead of answering something not correct. If you don't know the answer to a question, please " \
    "don't share false information."
#define VISION_SYSTEM                                                                                     \
    "You are a helpful language and vision assistant. You are able to understand the visual content "     \
    "that the user provides, and assist the user with a variety of tasks using natural language."
#define MPT_SYSTEM                                                                                        \
    "<|im_start|>system\nA conversation between a user and an LLM-based AI assistant. The assistant "     \
    "gives helpful and honest answers."
#define EXAMPLE_QUESTION "What are the key differences between renewable and non-renewable energy sources?"
#define EXAMPLE_ANSWER                                                                                    \
    "Renewable energy sources are those that can be replenished naturally in a relatively short amount "  \
    "of time, such as solar, wind, hydro, geothermal, and biomass. Non-renewable energy sources, on the " \
    "other hand, are finite and will eventually be depleted, such as coal, oil, and natural gas. Here "   \
    "are some key differences between renewable and non-renewable energy sources:\n"                      \
    "1. Availability: Renewable energy sources are virtually inexhaustible, while non-renewable energy "  \
    "sources are finite and will eventually run out.\n"                                                   \
    "2. Environmental impact: Renewable energy sources have a much lower environmental impact than "      \
    "non-renewable sources, which can lead to air and water pollution, greenhouse gas emissions, and "    \
    "other negative effects.\n"                                                                           \
    "3. Cost: Renewable energy sources can be more expensive to initially set up, but they typically "    \
    "have lower operational costs than non-renewable sources.\n"                                          \
    "4. Reliability: Renewable energy sources are often more reliable and can be used in more remote "    \
    "locations than non-renewable sources.\n"                                                             \
    "5. Flexibility: Renewable energy sources are often more flexible and can be adapted to different "   \
    "situations and needs, while non-renewable sources are more rigid and inflexible.\n"                  \
    "6. Sustainability: Renewable energy sources are more sustainable over the long term, while "         \
    "non-renewable sources are not, and their depletion can lead to economic and social instability.\n"

/* ---- the table */

#define NO_EXAMPLE { NULL, NULL }
#define HUMAN { "Human", "Assistant" }
#define USER { "USER", "ASSISTANT" }
#define CHATML { "<|im_start|>user\n", "<|im_start|>assistant\n" }
#define CHATML_SYSTEM "<|im_start|>system\nAnswer the questions."

static const struct conv_template templates[] = {
    { "v0", CONV_SINGLE, HUMAN_SYSTEM, HUMAN, "###", NULL, "Unknown", { EXAMPLE_QUESTION, EXAMPLE_ANSWER } },
    { "vicuna_v1", CONV_TWO, USER_SYSTEM, USER, " ", "</s>", "v1", NO_EXAMPLE },
    { "llama_2", CONV_LLAMA_2, SAFETY_SYSTEM, USER, "<s>", "</s>", "llama_v2", NO_EXAMPLE },
    { "mistral_instruct", CONV_LLAMA_2, "", USER, "", "</s>", "llama_v2", NO_EXAMPLE },
    { "chatml_direct", CONV_MPT, CHATML_SYSTEM, CHATML, "<|im_end|>", NULL, "mpt", NO_EXAMPLE },
    { "plain", CONV_PLAIN, "", { "", "" }, "\n", NULL, "Unknown", NO_EXAMPLE },
    { "llava_v0", CONV_SINGLE, HUMAN_SYSTEM, HUMAN, "###", NULL, "Unknown", NO_EXAMPLE },
    { "v0_mmtag", CONV_SINGLE, MMTAG_SYSTEM, HUMAN, "###", NULL, "v0_mmtag", NO_EXAMPLE },
    { "llava_v1", CONV_TWO, HUMAN_SYSTEM, USER, " ", "</s>", "v1", NO_EXAMPLE },
    { "v1_mmtag", CONV_TWO, MMTAG_SYSTEM, USER, " ", "</s>", "v1_mmtag", NO_EXAMPLE },
    { "llava_llama_2", CONV_LLAMA_2, VISION_SYSTEM, USER, "<s>", "</s>", "llama_v2", NO_EXAMPLE },
    { "mpt", CONV_MPT, MPT_SYSTEM, CHATML, "<|im_end|>", NULL, "mpt", NO_EXAMPLE },
};

static const struct { const char *key, *name; } keys[] = {
    { "default", "v0" },
    { "v0", "v0" },
    { "v1", "vicuna_v1" },
    { "vicuna_v1", "vicuna_v1" },
    { "llama_2", "llama_2" },
    { "mistral_instruct", "mistral_instruct" },
    { "chatml_direct", "chatml_direct" },
    { "mistral_direct", "chatml_direct" },
    { "plain", "plain" },
    { "v0_plain", "plain" },
    { "llava_v0", "llava_v0" },
    { "v0_mmtag", "v0_mmtag" },
    { "llava_v1", "llava_v1" },
    { "v1_mmtag", "v1_mmtag" },
    { "llava_llama_2", "llava_llama_2" },
    { "mpt", "mpt" },
};
enum { N_TEMPLATES = sizeof templates / sizeof *templates, N_KEYS = sizeof keys / sizeof *keys };

const char *conv_key(size_t i)
{
    return i < N_KEYS ? keys[i].key : NULL;
}

const struct conv_template *conv_find(const char *name)
{
    size_t k = 0, i = 0;
    while (k < N_KEYS && strcmp(keys[k].key, name) != 0) k++;
    if (k == N_KEYS) return NULL;
    while (i < N_TEMPLATES && strcmp(templates[i].name, keys[k].name) != 0) i++;
    ASSERT(i < N_TEMPLATES);
    return &templates[i];
}

const char *conv_stop(const struct conv_template *tpl)
{
    return tpl->style == CONV_SINGLE || tpl->style == CONV_MPT ? tpl->sep : tpl->sep2;
}

bool conv_is_mmtag(const struct conv_template *tpl)
{
    return strstr(tpl->version, "mmtag") != NULL;
}

/* ---- names of models */

/* A row fits a name that has all of `has` and not `lacks`. The first that fits wins. */
struct pick {
    const char *has[3], *lacks, *name;
};

static const struct pick cli_picks[] = {
    { { "llama-2" }, NULL, "llava_llama_2" }, { { "mistral" }, NULL, "mistral_instruct" },
    { { "v1.6-34b" }, NULL, "chatml_direct" }, { { "v1" }, NULL, "llava_v1" },
    { { "mpt" }, NULL, "mpt" },               { { NULL }, NULL, "llava_v0" },
};

static const struct pick web_picks[] = {
    { { "llava", "llama-2" }, NULL, "llava_llama_2" },
    { { "llava", "mistral", "orca" }, NULL, "mistral_instruct" },
    { { "llava", "mixtral", "orca" }, NULL, "mistral_instruct" },
    { { "llava", "mistral", "hermes" }, NULL, "chatml_direct" },
    { { "llava", "mixtral", "hermes" }, NULL, "chatml_direct" },
    { { "llava", "mistral" }, NULL, "mistral_instruct" },
    { { "llava", "mixtral" }, NULL, "mistral_instruct" },
    { { "llava-v1.6-34b" }, NULL, "chatml_direct" },
    { { "llava", "v1", "mmtag" }, NULL, "v1_mmtag" },
    { { "llava", "v1", "plain" }, "finetune", "v1_mmtag" },
    { { "llava", "v1" }, NULL, "llava_v1" },
    { { "llava", "mpt" }, NULL, "mpt" },
    { { "llava", "mmtag" }, NULL, "v0_mmtag" },
    { { "llava", "plain" }, "finetune", "v0_mmtag" },
    { { "llava" }, NULL, "llava_v0" },
    { { NULL }, NULL, NULL },
};

/* The reference doesn't lower the case of names without "llava". */
static const struct pick other_picks[] = {
    { { "mpt" }, NULL, "mpt" }, { { "llama-2" }, NULL, "llama_2" }, { { NULL }, NULL, "vicuna_v1" },
};

/* strstr in which `name` counts as lower case. */
static bool has_word(const char *name, const char *word, bool fold)
{
    size_t n = strlen(word);
    for (; *name; name++) {
        size_t i = 0;
        while (i < n && (fold ? tolower((unsigned char)name[i]) : name[i]) == word[i]) i++;
        if (i == n) return true;
    }
    return false;
}

static const char *pick(const struct pick *p, const char *model_name, bool fold)
{
    for (;; p++) {
        bool fits = !p->lacks || !has_word(model_name, p->lacks, fold);
        for (int i = 0; i < 3 && p->has[i]; i++) fits = fits && has_word(model_name, p->has[i], fold);
        if (fits) return p->name;
    }
}

const struct conv_template *conv_pick(const char *model_name, enum conv_caller caller)
{
    const char *name = pick(caller == CONV_CLI ? cli_picks : web_picks, model_name, true);
    return conv_find(name ? name : pick(other_picks, model_name, false));
}

/* ---- messages */

static int copy_text(char **ret, const char *text, size_t n, struct err *e)
{
    *ret = NULL;
    if (!text) return 0;
    if (n > PROMPT_MAX)
        return err_set(e, ERR_LIMIT, "a message has %zu bytes, at most %d are accepted", n, PROMPT_MAX);
    *ret = malloc(n + 1);
    if (!*ret) return err_set(e, ERR_NOMEM, "no memory for a message");
    memcpy(*ret, text, n);
    (*ret)[n] = 0;
    return 0;
}

int conv_add(struct conv *c, enum conv_role role, const char *text, size_t n, bool image, struct err *e)
{
    struct conv_message m = { .role = role, .n = text ? n : 0, .image = image };
    if (c->n == CONV_MESSAGES_MAX)
        return err_set(e, ERR_LIMIT, "a conversation has more than %d messages", CONV_MESSAGES_MAX);
    if (c->n == c->cap) {
        size_t cap = c->cap ? 2 * c->cap : 8;
        struct conv_message *p = realloc(c->message, cap * sizeof *p);
        if (!p) return err_set(e, ERR_NOMEM, "no memory for a message");
        c->message = p;
        c->cap = cap;
    }
    int rc = copy_text(&m.text, text, n, e);
    if (rc < 0) return rc;
    c->message[c->n++] = m;
    return 0;
}

int conv_set_last(struct conv *c, const char *text, size_t n, struct err *e)
{
    char *copy;
    ASSERT(c->n > 0);
    int rc = copy_text(&copy, text, n, e);
    if (rc < 0) return rc;
    struct conv_message *m = &c->message[c->n - 1];
    free(m->text);
    m->text = copy;
    m->n = copy ? n : 0;
    return 0;
}

void conv_drop(struct conv *c, size_t n)
{
    for (; n > 0 && c->n > c->offset; n--) free(c->message[--c->n].text);
}

int conv_init(struct conv *c, const struct conv_template *tpl, struct err *e)
{
    *c = (struct conv){ .tpl = tpl };
    for (int i = 0; i < 2 && tpl->example[0]; i++) {
        int rc = conv_add(c, (enum conv_role)i, tpl->example[i], strlen(tpl->example[i]), false, e);
        if (rc < 0) {
            conv_fini(c);
            return rc;
        }
        c->offset++;
    }
    return 0;
}

void conv_fini(struct conv *c)
{
    for (size_t i = 0; i < c->n; i++) free(c->message[i].text);
    free(c->message);
    *c = (struct conv){ .tpl = c->tpl };
}

int conv_copy(struct conv *to, const struct conv *from, struct err *e)
{
    *to = (struct conv){ .tpl = from->tpl, .offset = from->offset };
    for (size_t i = 0; i < from->n; i++) {
        const struct conv_message *m = &from->message[i];
        int rc = conv_add(to, m->role, m->text, m->n, m->image, e);
        if (rc < 0) {
            conv_fini(to);
            return rc;
        }
    }
    return 0;
}

/* ---- prompts */

struct writer {
    const struct conv_template *tpl;
    struct buf *out;
    size_t turn; /* messages written, those that stand for a picture included */
};

/* The [INST] frame of LLaMA-2 chats. */
static struct conv_span write_llama(struct writer *w, struct span text)
{
    const struct conv_template *tpl = w->tpl;
    struct buf *out = w->out;
    struct conv_span at = { out->n, out->n };
    if (text.n == 0) return at;
    if (w->turn % 2 == 0) {
        buf_fmt(out, "%s[INST]", tpl->sep);
        at.begin = out->n;
        if (w->turn == 0 && *tpl->system) buf_fmt(out, " <<SYS>>\n%s\n<</SYS>>\n\n", tpl->system);
        else buf_chr(out, ' ');
        buf_add(out, text.p, text.n);
        buf_str(out, " [/INST]");
    } else {
        buf_chr(out, ' ');
        buf_add(out, text.p, text.n);
        buf_fmt(out, " %s", tpl->sep2);
    }
    at.end = out->n;
    return at;
}

/* "role: text sep" and its relatives. */
static struct conv_span write_line(struct writer *w, enum conv_role role, struct span text)
{
    const struct conv_template *tpl = w->tpl;
    struct buf *out = w->out;
    bool colon = tpl->style == CONV_SINGLE || tpl->style == CONV_TWO;
    bool by_turns = tpl->style == CONV_TWO || tpl->style == CONV_PLAIN;
    if (tpl->style != CONV_PLAIN) buf_str(out, tpl->role[role]);
    if (colon) buf_chr(out, ':');
    struct conv_span at = { out->n, out->n };
    if (text.n) {
        if (colon) buf_chr(out, ' ');
        buf_add(out, text.p, text.n);
        buf_str(out, by_turns && w->turn % 2 ? tpl->sep2 : tpl->sep);
    }
    at.end = out->n;
    return at;
}

static struct conv_span write_message(struct writer *w, enum conv_role role, struct span text)
{
    struct conv_span at = w->tpl->style == CONV_LLAMA_2 ? write_llama(w, text) : write_line(w, role, text);
    w->turn++;
    return at;
}

/* The first message, sent with a picture. */
static int write_picture(struct writer *w, const struct conv_message *m, struct conv_span *at, struct err *e)
{
    const struct span image = span_of("<image>"), text = { m->text, m->text ? m->n : 0 };
    struct buf rest = buf_make(PROMPT_MAX), line = buf_make(PROMPT_MAX);
    int rc = 0;
    for (size_t i = 0, next; i < text.n; i = next + image.n) {
        next = span_find(text, i, image);
        buf_add(&rest, text.p + i, next - i);
        if (next == text.n) break;
    }
    struct span s = span_strip((struct span){ rest.p ? rest.p : "", rest.n });
    if (conv_is_mmtag(w->tpl)) {
        write_message(w, CONV_USER, span_of("<Image><image></Image>"));
        write_message(w, CONV_ASSISTANT, span_of("Received."));
    } else {
        buf_str(&line, "<image>\n");
        buf_add(&line, s.p, s.n);
        s = (struct span){ line.p, line.n };
    }
    TRY(buf_check(&rest, "a message", e));
    TRY(buf_check(&line, "a message", e));
    *at = write_message(w, m->role, s);
out:
    buf_free(&rest);
    buf_free(&line);
    return rc;
}

static int check_messages(const struct conv *c, struct err *e)
{
    const struct conv_template *tpl = c->tpl;
    const struct conv_message *first = c->n ? &c->message[0] : NULL;
    if (tpl->style == CONV_LLAMA_2 && first && ((first->n == 0 && !first->image) || first->role != CONV_USER))
        return err_set(e, ERR_USAGE, "a conversation of template '%s' must start with a question", tpl->name);
    for (size_t i = 1; i < c->n && tpl->style == CONV_PLAIN; i += 2)
        if (c->message[i].n)
            return err_set(e, ERR_USAGE, "template '%s' is for pretraining and cannot write answers",
                           tpl->name);
    return 0;
}

/* Drops bytes that sep consists of from the very start; spans move along. */
static void strip_sep(const struct conv *c, struct buf *out, struct conv_span *span)
{
    size_t cut = out->n ? strspn(out->p, c->tpl->sep) : 0;
    if (!cut) return;
    out->n -= cut;
    memmove(out->p, out->p + cut, out->n + 1);
    for (size_t i = 0; span && i < c->n; i++) {
        span[i].begin -= cut < span[i].begin ? cut : span[i].begin;
        span[i].end -= cut < span[i].end ? cut : span[i].end;
    }
}

int conv_prompt(const struct conv *c, struct buf *out, struct conv_span *span, struct err *e)
{
    const struct conv_template *tpl = c->tpl;
    struct writer w = { .tpl = tpl, .out = out };
    int rc;
    ASSERT(out->n == 0);
    TRY(check_messages(c, e));
    if (tpl->style != CONV_LLAMA_2) buf_str(out, tpl->system);
    if (tpl->style == CONV_SINGLE || tpl->style == CONV_TWO || tpl->style == CONV_MPT) buf_str(out, tpl->sep);
    for (size_t i = 0; i < c->n; i++) {
        const struct conv_message *m = &c->message[i];
        struct conv_span at;
        if (i == 0 && m->image) TRY(write_picture(&w, m, &at, e));
        else at = write_message(&w, m->role, (struct span){ m->text, m->n });
        if (span) span[i] = at;
    }
    TRY(buf_check(out, "the prompt", e));
    if (tpl->style == CONV_LLAMA_2) strip_sep(c, out, span);
out:
    return rc;
}
