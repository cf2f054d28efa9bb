/* A sequence: one prompt and the answer to it, from the first position to the last token. What is computed for it, and
 * when, is sched.c's work, how its tokens are chosen chooser.h's; here are its positions and the text that comes of it.
 *
 * Reading: its prompt's rows are computed, a chunk a step. Ready: they are, and nobody has asked for an answer yet.
 * Writing: each step computes the row of the last token and chooses the next. Done: `finish` or `err` says how.
 */
#pragma once
#include "llava_batch.h"
#include "run/chooser.h"
#include "run/store.h"
#include "text/stream.h"

enum seq_state { SEQ_READING, SEQ_READY, SEQ_WRITING, SEQ_DONE };

/* Pages of the store that it holds, and where they hang in its tree. */
struct seq_pages {
    int *at;                      /* [store_pages(n_max)] */
    int n, node;                  /* held; the last of them that the tree knows, STORE_ROOT: none */
    bool off_tree, copied;        /* what follows is known from another; the beginning of a page was copied */
};

/* What its tokens say, on the way to who asked. */
struct seq_text {
    struct stream stream;
    struct stopper stopper;
    struct buf piece, shown;
};

struct seq {
    struct seq *next;             /* in a sched */
    struct engine *g;
    enum seq_state state;

    struct position *at;          /* [n_max] prompt, then chosen tokens */
    int n_prompt, n_at, n_max;    /* positions of the prompt; known; ever */
    int n;                        /* rows computed, or begun: those of at[0..n), and maybe of a token not known yet */
    int n_known;                  /* of them, those of at[0..n_known) whose pages the store was told of */
    struct seq_pages pages;
    struct image *const *images;  /* borrowed */
    int n_seen;                   /* of them, those that were asked of the gallery */
    int adapter, sight;           /* number, -1: none; whose projector its pictures go through */
    uint64_t realm;               /* whose pictures it may find computed; 0: everybody's */
    float *all;                   /* NULL, or [n_prompt,V] that gets all logits (then nothing is reused); borrowed */
    float *logits;                /* [V] room for those of the prompt's last position, or NULL; owned */

    struct chooser chooser;
    float *held;                  /* [V] logits of a token that takes several steps to choose; NULL: none; owned */
    int slot;                     /* where the engine puts the chosen token; a sched's */
    int most;                     /* tokens to choose; 0: nobody has asked */
    int top;                      /* candidates that on_token wants */
    struct seq_text text;
    bool (*on_text)(void *ctx, const char *text, size_t n); /* false: enough */
    void (*on_token)(void *ctx, const struct llava_token *t);
    void (*on_prompt)(void *ctx, const struct llava_token *t); /* of the prompt; then nothing of it is reused */
    void *ctx;

    struct llava_result r;
    struct err err;               /* code 0: none */
    /* The clock when it was submitted (0: just now), its prompt begun, it was ready and asked, its last token came. */
    double submitted_s, begun_s, start_s, token_s;
};

/* Reads p, and may come to hold `most` more positions (cut to the context), with an adapter or -1.
 * The pictures must live until its prompt is read. */
int seq_new(struct seq **ret, struct engine *g, const struct prompt *p, struct image *const *images, int most,
            int adapter, struct err *e);
/* Its pages must have been given back: sched_remove. */
void seq_free(struct seq *q);

/* How to answer; before the sequence is ready or then. What the answer shall follow: chooser_follow, after it. */
int seq_ask(struct seq *q, const struct llava_sampling *o, struct err *e);
/* May its next token be computed, whatever those are that are being chosen? */
bool seq_goes_on(const struct seq *q);
/* Does it need each token, or its logits, before the next can be computed? */
bool seq_waits(const struct seq *q);
/* Is its prompt computed anew, whatever others have of it? For the logits of all of its rows. */
static inline bool seq_is_bare(const struct seq *q) { return q->all || q->on_prompt; }
/* Are the logits of the next rows wanted? on_prompt wants those of all but the last, which choose the first token. */
static inline bool seq_is_whole(const struct seq *q) { return q->all || (q->on_prompt && q->n + 1 < q->n_prompt); }
/* Tells on_prompt of position i: logits[V] are of the row before, NULL before the first. */
void seq_tell_prompt(struct seq *q, int i, const float *logits);
/* Takes the chosen token (-1: the logits were no numbers, CHOOSER_STUCK: none may follow): text, callbacks, the end.
 * logits: for on_token. */
void seq_push(struct seq *q, int32_t token, const float *logits);
/* Ends it. Text that is held back is given unless it was cancelled. */
void seq_finish(struct seq *q, enum llava_finish finish);
