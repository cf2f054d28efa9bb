/* Functions that an answer may call. LLaVA's models were not trained to: they are told of them in words, and a
 * schema holds what they write to a call, or to a call or an answer. One answer makes one call. */
#pragma once
#include "base/buf.h"
#include "serve/fields.h"

/* AUTO: a call or an answer; SOME: a call; ONE: the arguments of `name`. */
enum tools_mode { TOOLS_NONE, TOOLS_AUTO, TOOLS_SOME, TOOLS_ONE };
enum { TOOLS_MAX = 128, TOOLS_NAME = 65 };
struct tools {
    enum tools_mode mode;
    char name[TOOLS_NAME]; /* ONE: the function */
    struct buf words;      /* what the model is told */
};

/* Reads "tools" and "tool_choice" of a request into *t. flat: {"type", "name", "parameters"}, as responses have it;
 * else these are in "function". The JSON schema of what the model is to write, the caller's to free; NULL: no
 * tools, or *f->bad says what is wrong. */
char *tools_read(struct tools *t, const struct fields *f, bool flat);
void tools_fini(struct tools *t); /* accepts a zeroed one */

/* In a conversation: a call that was made, of {"name", "arguments"}, and what came of one. */
void tools_put_call(struct buf *out, const struct fields *function);
void tools_put_result(struct buf *out, const char *text);

/* What a text that follows the schema says, which may be cut at its end: a call, or an answer. */
struct call {
    char name[TOOLS_NAME]; /* "": no call */
    struct buf text;       /* of its arguments, which are JSON, or of the answer */
};
void call_read(struct call *c, const struct tools *t, const char *text);
