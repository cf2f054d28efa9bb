/* Text of a growing list of ids, as it may be shown, and the strings that end it.
 *
 * struct stream: which text is ready after each id, by the rule of transformers' TextStreamer
 * (generation/streamers.py, special tokens skipped): after a line break or a CJK character everything, else up to and
 * including the last space. All together it is what tokenizer_decode makes of the ids, as LLaVA's run_llava and its
 * evaluations have it. By lines, decoding begins anew after a line break, as the streamer does it, which takes a space
 * from a line that is indented: the text that LLaVA's cli and workers give.
 * A step costs what its piece is long. Half a character is never given; bytes that turn out to be no character come as
 * U+FFFD.
 *
 * struct stopper: several strings that end the text wherever they appear in it, also spread over pieces. Text
 * that may be the beginning of a stop string is held back, and no byte of a stop string is given.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>

#include "base/buf.h"
#include "text/detok.h"
#include "text/ids.h"
#include "text/tokenizer.h"

enum { STOP_MAX = 1 << 16 }; /* bytes of a stop string */

struct stream {
    const struct tokenizer *t; /* borrowed */
    struct detok detok;
    struct buf text; /* final, not given yet */
    bool by_lines;
};

void stream_init(struct stream *s, const struct tokenizer *t);
void stream_fini(struct stream *s);
/* The text follows other text: the first word keeps its space. Before the first push. */
void stream_follow(struct stream *s);
void stream_by_lines(struct stream *s);
/* Adds to `out` what id makes ready; may be nothing. */
void stream_push(struct stream *s, int32_t id, struct buf *out);
/* Adds the rest, bytes of an unfinished character as U+FFFD each, and starts anew. */
void stream_flush(struct stream *s, struct buf *out);

struct stopper {
    struct buf *stop; /* [n] */
    size_t n;
    struct buf held;
    bool stopped;
};

void stopper_init(struct stopper *s);
void stopper_fini(struct stopper *s);
/* Copies it; an empty one is ignored. */
int stopper_add(struct stopper *s, const char *stop, size_t n, struct err *e);
/* Takes text[0..n), adds to `out` what may be shown. True: a stop string was found, now or before; where
 * several were, the text ends before the one that starts first. */
bool stopper_feed(struct stopper *s, const char *text, size_t n, struct buf *out);
/* The text is over: adds what was held back, unless stopped. Starts anew. */
void stopper_flush(struct stopper *s, struct buf *out);
