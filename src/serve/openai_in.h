/* What openai.c, answer.c and response.c share: a request under way, and how the answers of an address are written. */
#pragma once
#include <string.h>
#include <time.h>

#include "serve/chat.h"
#include "serve/event.h"
#include "serve/fetch.h"
#include "serve/gen.h"
#include "serve/shelf.h"

struct choice {
    struct buf text;      /* of a whole answer */
    struct trim trim;
    bool begun, said;     /* begun: its stream has its first event; said: a token has had some text */
    json_t *tokens;       /* logprobs since the last event */
    size_t offset;        /* characters of text before them */
    enum llava_finish finish;
    char call[TOOLS_NAME]; /* the function that it calls, with text as its arguments; or "" */
};

/* The answers to one prompt of a request. */
struct ask;
struct part {
    struct ask *a;
    int first; /* its first choice */
};

struct ask {
    struct gen_task task; /* first */
    const struct shape *shape;
    json_t *body;         /* what chat borrows from; NULL once the batch has the request */
    struct chat chat;
    struct fetches *fetches; /* pictures behind addresses until they are read, or NULL */
    char id[SHELF_ID], model[200];
    const char *adapter;  /* NULL: none */
    time_t created;
    struct choice *choice; /* [n] */
    int n;
    struct part part[CHAT_ANSWERS_MAX];
    int n_prompt, n_cached, n_new;
    int n_events;         /* of a response's stream */
    json_t *sent;         /* logprobs that they had; NULL before the first */
    struct shelf *shelf;  /* where responses are kept */
    bool shelved;         /* this one's conversation is there, and no response yet */
    struct bad bad;       /* what was wrong first, with the request or with an answer */
};

/* How an address reads its requests and writes its answers. What is written of a stream comes from the batch's thread,
 * one call at a time. */
struct shape {
    const char *id;     /* what ids begin with */
    bool trims;         /* white space around an answer is not part of it */
    void (*read)(struct chat *c, const json_t *body, struct bad *b);
    json_t *(*whole)(struct ask *a); /* all answers, complete */
    void (*piece)(struct ask *a, int i, const char *text, size_t n); /* of a stream: choice i goes on */
    void (*over)(struct ask *a, int i); /* choice i has ended */
    void (*end)(struct ask *a);         /* all have */
    void (*broken)(struct ask *a);      /* a->bad, where events have begun: the last one */
};
extern const struct shape shape_chat, shape_completion, shape_response;

/* Makes an array of a response's input, with what it names of earlier ones; a->bad says what is not there. */
void response_recall(struct ask *a);

/* One token more of choice i, or of its prompt, as llava_request.on_token and on_prompt have it; ctx is a part. */
void answer_token(void *ctx, int i, const struct llava_token *t);
void answer_prompt(void *ctx, int i, const struct llava_token *t);
/* The logprobs of a choice since last time as an array, which may be empty: a new reference. */
json_t *answer_logprobs(struct choice *c);
