/* Token ids to text, one id at a time: the working part of tokenizer_decode, and of streams.
 *
 * Text that later ids cannot change any more is added to a buffer as ids come; at most three bytes of an
 * unfinished character are held back. (With skip_special false the text since the last special token can
 * still get a space in front, so the buffer must not be emptied in between.)
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "text/tokenizer.h"

struct detok {
    const struct tokenizer *t;
    bool skip_special;
    bool any;          /* some text stands before the current segment */
    bool in_segment;   /* segment: tokens up to an added token that stands between spaces */
    bool after_special;
    /* SentencePiece's state: a leading space would still be dropped; the last piece was one. */
    bool at_start, space_seen;
    size_t n_tokens;   /* of the segment */
    size_t n_text;     /* bytes of the segment's text */
    size_t n_run;      /* bytes since the last special token */
    char held[4];      /* the start of a character */
    size_t n_held;
};

void detok_init(struct detok *d, const struct tokenizer *t, bool skip_special);
/* What comes follows other text: its first piece keeps its space. Before the first push. */
void detok_follow(struct detok *d);
void detok_push(struct detok *d, int32_t id, struct buf *out);
/* The held bytes, as one U+FFFD each. */
void detok_end(struct detok *d, struct buf *out);
