/* A session: one conversation's memory. A scheduler with a single sequence, whose store keeps what was read before. */
#pragma once
#include "run/sched.h"

struct session {
    struct engine *g;
    struct sched sched;
    int adapter;   /* of the prompts to come; -1: none */
    struct seq *q; /* of the last prompt, or NULL */
};
int session_open(struct session **ret, struct engine *g, struct err *e);
void session_close(struct session *s);
/* all: NULL, or [p->n,V] that gets the logits of every position (then nothing is reused). */
int session_read(struct session *s, const struct prompt *p, struct image *const *images, float *all, struct err *e);
int session_generate(struct session *s, const struct llava_sampling *o, llava_text_fn on_text, void *ctx,
                     struct llava_result *r, struct err *e);
