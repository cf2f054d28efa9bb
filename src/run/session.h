/* A session: what one conversation has put into its cache, and how it goes on. */
#pragma once
#include "llava.h"
#include "run/prompt.h"
#include "run/sample.h"
#include "text/stream.h"

struct session {
    struct engine *g;
    struct cache cache;
    uint64_t *key;        /* [context] of the rows that the cache holds */
    int n;                /* rows held */
    float *logits;        /* [V] of the last position */
    bool ready;           /* logits are there to go on from */
    struct sampler sampler;
    struct stream stream;
    struct stopper stopper;
    int n_prompt, n_cached;
    double image_s, prompt_s;
};
int session_open(struct session **ret, struct engine *g, struct err *e);
void session_close(struct session *s);
/* all: NULL, or [p->n,V] that gets the logits of every position (then nothing is reused). */
int session_read(struct session *s, const struct prompt *p, struct image *const *images, float *all, struct err *e);
/* Are the numbers in range? */
int sampling_check(const struct llava_sampling *o, struct err *e);
int session_generate(struct session *s, const struct llava_sampling *o, llava_text_fn on_text, void *ctx,
                     struct llava_result *r, struct err *e);
