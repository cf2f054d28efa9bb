/* A sequence: one prompt and the answer to it, from the first position to the last token. What is computed for it, and
 * when, is sched.c's work; here are its positions, how the next token is chosen, and the text that comes of it.
 *
 * Reading: its prompt's rows are computed, a chunk a step. Ready: they are, and nobody has asked for an answer yet.
 * Writing: each step computes the row of the last token and chooses the next. Done: `finish` or `err` says how.
 */
#pragma once
#include "llava_batch.h"
#include "base/rng.h"
#include "run/store.h"
#include "text/grammar.h"
#include "text/stream.h"

enum seq_state { SEQ_READING, SEQ_READY, SEQ_WRITING, SEQ_DONE };

struct seq {
    struct seq *next;             /* in a sched */
    struct engine *g;
    enum seq_state state;
    struct position *at;          /* [n_max] prompt, then chosen tokens */
    int n_prompt, n_at, n_max;    /* positions of the prompt; known; ever */
    int n;                        /* rows computed, or begun: those of at[0..n), and maybe of a token not known yet */
    int n_known;                  /* of them, those of at[0..n_known) whose pages the store was told of */
    struct image *const *images;  /* borrowed */
    int n_seen;                   /* of them, those that were asked of the gallery */
    float *all;                   /* NULL, or [n_prompt,V] that gets all logits (then nothing is reused); borrowed */

    int *page;                    /* [store_pages(n_max)] */
    int n_pages, node;            /* pages held; the last of them that the tree knows, STORE_ROOT: none */
    bool off_tree, copied;        /* what follows is known from another; the beginning of a page was copied */

    float *logits;                /* [V] room for those of the prompt's last position, or NULL; owned */
    float temperature, top_p;     /* how tokens are chosen: llava_sampling */
    int top_k;
    struct rng rng;
    struct choice choice;         /* how the next one is */
    int slot;                     /* where the engine puts it; a sched's */
    int n_drawn;                  /* tokens chosen, or being chosen; the last of them may not be known yet */
    struct match *match;          /* what the answer must follow, or NULL; owned */
    float *tilt;                  /* [V] what is added to logits: bias, less penalties of what was said; owned */
    float presence, frequency;
    float min_p, repetition;      /* 0: off */
    uint64_t *seen;               /* [V] bits: tokens that are there already, for repetition; owned */
    int least;                    /* tokens before the end */
    bool endless;
    int32_t *ends;                /* [n_ends] the model's own and those asked for; owned */
    int n_ends;
    float *masked;                /* [V] logits with tilt, and those at -infinity that may not follow; owned */
    struct stream stream;
    struct stopper stopper;
    struct buf piece, shown;
    int most;                     /* tokens to choose */
    int top;                      /* candidates that on_token wants */

    bool (*on_text)(void *ctx, const char *text, size_t n); /* false: enough */
    void (*on_token)(void *ctx, const struct llava_token *t);
    void *ctx;

    struct llava_result r;
    struct err err;               /* code 0: none */
    int adapter, sight;           /* number, -1: none; whose projector its pictures go through */
    /* The clock when it was submitted (0: just now), its prompt begun, it was ready and asked, its last token came. */
    double submitted_s, begun_s, start_s, token_s;
};

/* Reads p, and may come to hold `most` more positions (cut to the context), with an adapter or -1.
 * The pictures must live until its prompt is read. */
int seq_new(struct seq **ret, struct engine *g, const struct prompt *p, struct image *const *images, int most,
            int adapter, struct err *e);
/* Its pages must have been given back: sched_remove. */
void seq_free(struct seq *q);

/* Are the numbers in range, and tokens below V? */
int sampling_check(const struct llava_sampling *o, int V, struct err *e);
/* How to answer; before the sequence is ready or then. */
int seq_ask(struct seq *q, const struct llava_sampling *o, struct err *e);
/* The answer, which is asked for, follows a grammar. Borrows both until seq_free. */
int seq_follow(struct seq *q, const struct grammar *g, const struct vocabulary *v, enum llava_text text, struct err *e);
/* May its next token be computed, whatever those are that are being chosen? */
bool seq_goes_on(const struct seq *q);
/* Does it need each token, or its logits, before the next can be computed? */
bool seq_waits(const struct seq *q);
/* Are its tokens chosen on the host, by seq_choose? Where anything but temperature, top_k and top_p decides. */
bool seq_chooses(const struct seq *q);
/* How the next token is chosen, which counts as drawn from here on. */
struct choice seq_draw(struct seq *q);
/* Chooses as the last draw says, by logits[V] on the host, tilted, one that the grammar lets follow; changes nothing
 * that others see: many sequences may do so side by side. */
int32_t seq_choose(struct seq *q, const float *logits);
/* Takes the chosen token (-1: the logits were no numbers, SEQ_STUCK: none may follow): text, callbacks, the end.
 * logits: for on_token. */
enum { SEQ_STUCK = -2 };
void seq_push(struct seq *q, int32_t token, const float *logits);
/* Ends it. Text that is held back is given unless it was cancelled. */
void seq_finish(struct seq *q, enum llava_finish finish);
