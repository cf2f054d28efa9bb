/* How the tokens of one answer are chosen: by llava_sampling, and, where a grammar, a bias, a penalty or a rule about
 * the end has a say, on the host from logits that these have changed. */
#pragma once
#include "llava_batch.h"
#include "base/rng.h"
#include "kern/choose.h"
#include "model/config.h"
#include "run/prompt.h"
#include "text/grammar.h"

struct chooser {
    int V;
    float temperature, top_p, min_p; /* min_p 0: off */
    int top_k;
    struct rng rng;
    struct choice next;       /* how the next token is chosen */
    int n_drawn, n_taken;     /* tokens chosen, or being chosen; those that are known of them */

    int32_t *ends;            /* [n_ends] tokens that end the answer, the model's n_eos own first */
    int n_ends, n_eos;
    int least;                /* tokens before the end */
    bool endless;
    struct match *match;      /* what the answer must follow, or NULL */
    float presence, frequency, repetition; /* penalties; 0: off */
    float *tilt;              /* [V] what is added to logits: bias, less penalties of what was said; or NULL */
    uint64_t *said, *seen;    /* [V] bits: tokens of the answer, for tilt; of prompt and answer, for repetition */
    float *masked;            /* [V] logits with all that, and -infinity for those that may not follow; or NULL */
};

/* Are the numbers in range, and tokens below V? */
int chooser_check(const struct llava_sampling *o, int V, struct err *e);
/* For an answer to the prompt at[n]. c is zeroed, or of an earlier try. Owns what it points to. ERR_USAGE, _NOMEM. */
int chooser_init(struct chooser *c, const struct llava_config *model, const struct llava_sampling *o,
                 const struct position *at, int n, struct err *e);
void chooser_fini(struct chooser *c); /* accepts a zeroed one */
/* The answer follows a grammar from its first token on. Borrows both until chooser_fini. */
int chooser_follow(struct chooser *c, const struct grammar *g, const struct vocabulary *v, enum llava_text text,
                   struct err *e);

/* Must its tokens be chosen here, by chooser_choose? Where anything but temperature, top_k and top_p decides. */
bool chooser_here(const struct chooser *c);
/* How the next token is chosen, which counts as drawn from here on. slot: where it goes. */
struct choice chooser_draw(struct chooser *c, int slot);
/* Chooses as the last draw says, by logits[V] on the host; changes nothing that others see. CHOOSER_STUCK: none may
 * follow. CHOOSER_LATER: what may follow takes long to find; some of it was done, ask again with the same logits. */
enum { CHOOSER_STUCK = -2, CHOOSER_LATER = -3 };
int32_t chooser_choose(struct chooser *c, const float *logits);
/* The error of an answer that is stuck. */
void chooser_blame(const struct chooser *c, struct err *e);
bool chooser_ends(const struct chooser *c, int32_t token); /* is it an end? */
/* The answer has a token more, which is no end. */
void chooser_take(struct chooser *c, int32_t token);
