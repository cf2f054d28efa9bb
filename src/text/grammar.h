/* Grammars that an answer must follow, and which tokens may come next.
 *
 * The notation is GBNF's: rules `name ::= alternatives`, of which `root` is the answer; "literals" and [classes] with
 * escapes \n \r \t \" \\ \] \- \^ \xHH \uHHHH; `.` any character; names; ( ), |, and the suffixes * + ? {m} {m,} {m,n};
 * # begins a comment. Text is UTF-8, and a class is of characters. Rules may call themselves anywhere but at their own
 * beginning.
 *
 * A grammar becomes a machine with a stack over bytes. The sets of stacks that it can be in after some bytes are
 * numbered as they appear, with a table of what each byte leads to, so that a token is as many table look-ups as it has
 * bytes; and each set's answer to "which tokens?" is kept. A set that was met before costs nothing; the number kept is
 * bounded, and so is the work that new ones make.
 */
#pragma once
#include "text/tokenizer.h"

struct grammar;
enum {
    GRAMMAR_MAX = 1 << 18,     /* bytes of literals, classes and names of rules, once repetitions are written out */
    GRAMMAR_REPEAT_MAX = 4096, /* the largest number in braces */
};
/* ERR_FORMAT with the line; ERR_LIMIT for one that grows past GRAMMAR_MAX. */
int grammar_parse(struct grammar **ret, const char *text, size_t n, struct err *e);
void grammar_free(struct grammar *g); /* accepts NULL */

/* The bytes of all tokens in an order in which common beginnings are neighbours. Read-only once made. */
struct vocabulary;
int vocabulary_new(struct vocabulary **ret, const struct tokenizer *t, int32_t size, struct err *e);
void vocabulary_free(struct vocabulary *v);

/* One text on its way through a grammar. Borrows both. */
struct match;
int match_new(struct match **ret, const struct grammar *g, const struct vocabulary *v, struct err *e);
void match_free(struct match *m);
/* What is matched follows other text, so that a space in front of its first token is text. Before the first push. */
void match_follow(struct match *m);
/* Bit i of the result: token i may come next. Valid until the next call with m. NULL: no memory, or match_failed. */
const uint64_t *match_tokens(struct match *m);
/* Does a part of the work of match_tokens, some 5 ms of it. False: there is more, ask again. True: match_tokens knows
 * what it says. */
bool match_ready(struct match *m);
/* The text goes on with this token. False: it may not (or no memory); nothing has changed then. */
bool match_push(struct match *m, int32_t token);
/* There are more ways to go on than is kept of them (some 20 MB), or than may be looked at: about a second's worth, and
 * some milliseconds more for each token. */
bool match_failed(const struct match *m);
/* The text may end here. */
bool match_may_end(const struct match *m);
/* The same for bytes, for tests: how many of text[0..n) were taken. */
size_t match_bytes(struct match *m, const char *text, size_t n);
