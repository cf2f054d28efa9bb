/* Conversations, and how each model family writes them down as one prompt (LLaVA's llava/conversation.py).
 *
 * A template is a row of a constant table; a conversation is a template and messages. Byte for byte the
 * reference's get_prompt, whose styles are:
 *   SINGLE   system sep, then "role: text" sep           TWO      the same, with sep and sep2 by turns
 *   MPT      system sep, then "role" "text" sep          PLAIN    system, then text and sep, sep2 by turns
 *   LLAMA_2  sep "[INST] " text " [/INST]", then " " text " " sep2, by turns; the system inside the first
 *            text; bytes of sep at the very start are dropped
 * A message that is empty or not there yet writes only its role: that ends a prompt.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>

#include "base/buf.h"
#include "base/err.h"

enum conv_style { CONV_SINGLE, CONV_TWO, CONV_MPT, CONV_LLAMA_2, CONV_PLAIN };
enum conv_role { CONV_USER, CONV_ASSISTANT };

struct conv_template {
    const char *name;    /* LLaVA's first key for it */
    enum conv_style style;
    const char *system, *role[2];
    const char *sep, *sep2; /* sep2 may be NULL */
    const char *version;    /* "v1", "v1_mmtag", "llama_v2", "mpt", "Unknown", ... */
    const char *example[2]; /* a round that every conversation starts with, not shown; or NULLs */
};

/* All keys of LLaVA's conv_templates: default v0 v1 vicuna_v1 llama_2 mistral_instruct chatml_direct
 * mistral_direct plain v0_plain llava_v0 v0_mmtag llava_v1 v1_mmtag llava_llama_2 mpt. NULL: no such
 * template. */
const struct conv_template *conv_find(const char *name);
/* The i-th key, for help and error messages; NULL after the last. */
const char *conv_key(size_t i);

/* The template that a model's name stands for; never NULL. CONV_CLI: chat and run_llava (serve/cli.py);
 * CONV_WEB: the web server (serve/gradio_web_server.py), where names that the reference maps to templates
 * that don't exist get mistral_instruct ("orca") and mpt ("mpt" without "llava"). */
enum conv_caller { CONV_CLI, CONV_WEB };
const struct conv_template *conv_pick(const char *model_name, enum conv_caller caller);

/* The string that ends an answer: sep for SINGLE and MPT, else sep2; NULL for plain. */
const char *conv_stop(const struct conv_template *tpl);
/* The template's version has "mmtag": a picture is written as "<Image><image></Image>". */
bool conv_is_mmtag(const struct conv_template *tpl);

struct conv_message {
    enum conv_role role;
    char *text; /* owned; NULL: not there yet */
    size_t n;
    bool image; /* came with a picture (a tuple in the reference) */
};

struct conv {
    const struct conv_template *tpl;
    struct conv_message *message;
    size_t n, cap;
    size_t offset; /* messages of the built-in example */
};

enum { CONV_MESSAGES_MAX = 1 << 16 };

/* Starts with the template's example round, if it has one. */
int conv_init(struct conv *c, const struct conv_template *tpl, struct err *e);
void conv_fini(struct conv *c); /* accepts a zeroed conv */
int conv_copy(struct conv *to, const struct conv *from, struct err *e); /* `to` is uninitialised */

/* Copies text[0..n). text NULL: the answer that is to come. */
int conv_add(struct conv *c, enum conv_role role, const char *text, size_t n, bool image, struct err *e);
/* Takes back the last n messages, but never the built-in example. */
void conv_drop(struct conv *c, size_t n);
/* Replaces the last message's text; NULL: takes it back, to have it answered anew. */
int conv_set_last(struct conv *c, const char *text, size_t n, struct err *e);

/* Where a message stands in the prompt, in bytes: its text with the space in front of it and what ends it. */
struct conv_span { size_t begin, end; };

/* Adds the prompt to `out`, which must be empty. Where the first message has a picture, "<image>" is taken
 * out of its text, white space at both ends too, and put in front with a line break (mmtag: as a round of its
 * own, answered by "Received."). span: [c->n] or NULL. ERR_USAGE: LLAMA_2 without a first user message; plain
 * with an answer. */
int conv_prompt(const struct conv *c, struct buf *out, struct conv_span *span, struct err *e);
