/* A prompt as the language model reads it: one entry a position, a token or a row of a picture. */
#pragma once
#include "run/image.h"

struct position {
    uint64_t key;        /* equal keys in the same place, after equal keys, mean equal cache rows */
    int32_t token;       /* -1: a feature row */
    int32_t image, row;
};
struct prompt {
    struct ids ids;      /* with IDS_IMAGE */
    struct position *at;
    int n;
    int n_whole;         /* before the model's own cut (llava_config.text_max) */
};
/* Text with one "<image>" for each of the n pictures. Computes nothing, and may be called from any thread. */
int prompt_make(struct prompt *p, const struct engine *g, const char *text, struct image *const *images, int n,
                struct err *e);
/* The same of tokens, without pictures. */
int prompt_of_ids(struct prompt *p, const struct engine *g, const int32_t *ids, int n, struct err *e);
/* ERR_LIMIT when n positions are more than the context. */
int prompt_fits(int n, const struct engine *g, struct err *e);
/* ERR_LIMIT when a text's bytes alone say that it will not fit: before memory is taken to encode megabytes. */
int prompt_may_fit(const struct engine *g, const char *text, int n_images, struct err *e);
void prompt_fini(struct prompt *p);
