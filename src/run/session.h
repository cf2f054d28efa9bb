/* A session: what one conversation has put into its cache, and how it goes on. */
#pragma once
#include "llava.h"
#include "run/engine.h"
#include "run/sample.h"
#include "text/stream.h"

/* A picture, preprocessed; its features once the tower has run. */
struct image {
    struct pixels pixels;
    uint64_t key;      /* of the pixels: the same picture has the same key */
    float *features;   /* [n_rows,C] as they enter the language model; NULL until needed */
    int n_rows;
};
int image_new(struct image **ret, struct engine *g, const struct picture *pic, struct err *e);
void image_free(struct image *im);
/* Runs the tower if it has not run; adds the seconds that took to *spent_s (may be NULL). */
int image_encode(struct image *im, struct engine *g, double *spent_s, struct err *e);

/* One position of a prompt: a token, or a row of a picture's features. */
struct position {
    uint64_t key;      /* equal keys in the same place mean equal cache rows */
    int32_t token;     /* -1: a feature row */
    int32_t image, row;
};
struct prompt {
    struct ids ids;    /* with IDS_IMAGE */
    struct position *at;
    int n;
};
/* Text with "<image>" and pictures to positions: encodes the text, checks the counts, runs the tower. */
int prompt_make(struct prompt *p, struct engine *g, const char *text, struct image *const *images, int n,
                double *image_s, struct err *e);
void prompt_fini(struct prompt *p);

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
int session_generate(struct session *s, const struct llava_sampling *o, llava_text_fn on_text, void *ctx,
                     struct llava_result *r, struct err *e);
