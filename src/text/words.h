/* What words encode to, remembered: text is made of the same words over and over, and looking one up is many times as
 * fast as encoding it.
 *
 * It is right only where a text's ids are those of its words one after the other. tokenizer.c makes sure of that: BPE
 * with byte fallback (no piece is unknown, and merges in one word know nothing of the next), no normalisation of the
 * text, and pieces in which a space stands only in front. Then a text falls apart before a space that follows something
 * else, and on both sides of characters that no longer piece has (digits and line ends in LLaMA's).
 *
 * Words are added by any number of threads without a lock, stay until words_free, and are no more than fit: what comes
 * when there is no room is encoded each time.
 */
#pragma once
#include <stdbool.h>

#include "text/ids.h"
#include "text/spm.h"
#include "text/utf8.h"

struct words;

/* first: encodes the word that a text begins with, rest: all others; both are borrowed. alone[c]: no piece of several
 * characters has the ASCII character c. NULL: no memory. */
struct words *words_new(const struct spm *first, const struct spm *rest, const bool alone[128]);
void words_free(struct words *w); /* accepts NULL */
/* Adds the ids of s, UTF-8, as spm_encode does; begins: to where it first falls apart it is encoded by `first`. 0, or
 * -1 without memory. */
int words_encode(struct words *w, struct span s, bool begins, struct ids *out);
