/* Requests to /v1/chat/completions, /v1/completions and /v1/responses as structs, and the prompt that a chat becomes.
 * Reading a request touches neither model nor network. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "llava_batch.h"
#include "base/buf.h"
#include "serve/fields.h"
#include "serve/tools.h"
#include "text/conv.h"

enum { CHAT_TURNS_MAX = 1024, CHAT_PICTURES_MAX = 32, CHAT_STOPS_MAX = 16, CHAT_ANSWERS_MAX = 64,
       CHAT_BIAS_MAX = 1024, CHAT_ENDS_MAX = 64 };

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
/* What a completion goes on from: text, or its tokens. */
struct chat_prompt {
    const char *text; /* borrowed from the JSON; NULL where there are tokens */
    int32_t *ids;     /* [n_ids], owned */
    int n_ids;
};

struct chat {
    const char *model;            /* NULL: not said */
    const char *where;            /* the field that holds what is asked */
    struct buf system;            /* .n 0: the template's own */
    struct chat_turn *turn;       /* of the assistant at the end: what its answer begins with */
    int n_turns;
    struct chat_prompt prompt[CHAT_ANSWERS_MAX]; /* of a completion: several are several answers */
    int n_prompts;
    struct chat_picture picture[CHAT_PICTURES_MAX];
    int n_pictures;
    struct llava_sampling sampling; /* .stop points to stop; .stop_ids is openai.c's to set, to ends */
    int32_t ends[CHAT_ENDS_MAX];
    const char *stop[CHAT_STOPS_MAX + 1]; /* room for the template's own */
    struct llava_bias *bias;      /* [sampling.n_bias], owned */
    int n;                        /* answers */
    bool seeded, stream, usage, logprobs, echo;
    bool kept;                    /* a response, for requests that name it */
    int top_logprobs;
    char *schema, *grammar;       /* what answers must be, as llava_request has it: one of them or none; owned */
    const char *form;             /* the field that says so */
    struct tools tools;
    char *repeated;               /* what a response repeats of its request: a JSON object; owned */
};

/* Each fills *c from a request's body, which must outlive it; complaints go to *b. chat_free releases all. */
void chat_read(struct chat *c, const json_t *body, struct bad *b);
void completion_read(struct chat *c, const json_t *body, struct bad *b);
void response_read(struct chat *c, const json_t *body, struct bad *b); /* whose input is an array: response_recall */
void tokens_read(struct chat *c, const json_t *body, struct bad *b); /* {"tokens": [...]}, as a prompt; none: none */
void chat_free(struct chat *c);
/* Takes out of *c what is read before the answer begins, which may be much: the turns, the words, the schema. What is
 * left is what writing the answer needs. Both are to be freed. */
struct chat chat_part(struct chat *c);

/* The last turn is the beginning of the answer. */
bool chat_begins(const struct chat *c);
/* The prompt of a chat in template `name`. marks: pictures are written <im_start><image><im_end>. *stop: what ends an
 * answer, or NULL. */
void chat_prompt(struct buf *out, const char **stop, const struct chat *c, const char *name, bool marks, struct bad *b);
