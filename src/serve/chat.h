/* Requests to /v1/chat/completions and /v1/completions as structs, and the prompt that a chat becomes. Reading a
 * request touches neither model nor network. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "llava_batch.h"
#include "base/buf.h"
#include "serve/fields.h"
#include "text/conv.h"

enum { CHAT_TURNS_MAX = 1024, CHAT_PICTURES_MAX = 32, CHAT_STOPS_MAX = 16, CHAT_ANSWERS_MAX = 16,
       CHAT_BIAS_MAX = 1024 };

/* Text of a turn has "<image>" where its pictures go; they come first unless text stands between them. */
struct chat_turn {
    enum conv_role role;
    struct buf text;
    int n_pictures;
};
struct chat_picture {
    const char *url;  /* data URI or address; borrowed from the JSON */
    char param[96];   /* where it stands, for messages */
};
enum chat_format { CHAT_TEXT, CHAT_JSON, CHAT_SCHEMA };

struct chat {
    const char *model;            /* NULL: not said */
    struct buf system;            /* .n 0: the template's own */
    struct chat_turn *turn;
    int n_turns;
    const char *prompt[CHAT_ANSWERS_MAX]; /* of a completion: several are several answers */
    int n_prompts;
    struct chat_picture picture[CHAT_PICTURES_MAX];
    int n_pictures;
    struct llava_sampling sampling; /* .stop points to stop */
    const char *stop[CHAT_STOPS_MAX + 1]; /* room for the template's own */
    struct llava_bias *bias;      /* [sampling.n_bias], owned */
    int n;                        /* answers */
    bool seeded, stream, usage, logprobs, echo;
    int top_logprobs;
    enum chat_format format;
    char *schema;                 /* JSON text; NULL unless CHAT_SCHEMA */
};

/* Both fill *c from a request's body, which must outlive it; complaints go to *b. chat_free releases either. */
void chat_read(struct chat *c, const json_t *body, struct bad *b);
void completion_read(struct chat *c, const json_t *body, struct bad *b);
void chat_free(struct chat *c);

/* The prompt of a chat in template `name`. marks: pictures are written <im_start><image><im_end>. *stop: what ends an
 * answer, or NULL. Complaints name messages. */
void chat_prompt(struct buf *out, const char **stop, const struct chat *c, const char *name, bool marks, struct bad *b);
