/* A conversation as the page sends it, as the prompt that LLaVA's web server makes of it, and as the line that goes
 * into its log (llava/serve/gradio_web_server.py, llava/conversation.py). Reading one touches neither model nor
 * network. */
#pragma once
#include <stdbool.h>
#include <time.h>

#include "base/buf.h"
#include "serve/fields.h"
#include "text/conv.h"

enum {
    TALK_MESSAGES_MAX = 1000,
    TALK_PICTURES_MAX = 32,
    TALK_TEXT = 1536,            /* characters of a question; what is more is cut off */
    TALK_TEXT_WITH_IMAGE = 1200,
    TALK_NEW_MAX = 1536,
};
struct talk {
    const char *model;           /* borrowed from the JSON */
    struct conv conv;            /* without the answer that is to come */
    const char *picture[TALK_PICTURES_MAX]; /* data URIs, borrowed from the JSON */
    char where[TALK_PICTURES_MAX][40];      /* "messages[2].images[0]" */
    int n_pictures;
    double temperature, top_p;
    int max_new_tokens;
    const char *mode;            /* for picture_for_web; borrowed */
    const char *vote;            /* "upvote", "downvote", "flag" */
};

/* From the body of POST /api/chat and of POST /api/vote (which has an answer last); complaints go to *b. like: the name
 * that chooses the template, NULL: the body's model. */
void talk_read(struct talk *t, const json_t *body, bool vote, const char *like, struct bad *b);
void talk_free(struct talk *t);

/* The prompt, with one "<image>" a picture. *stop as conv_stop. */
int talk_prompt(struct buf *out, const char **stop, const struct talk *t, struct err *e);

/* {"system","roles","messages","offset","sep","sep2"}, with `answer` as the last message; NULL: as they are. */
json_t *talk_state(const struct talk *t, const char *answer);
/* A number of seconds as Python's round(t, 4) is written. */
json_t *talk_time(double s);
/* One line as Python's json.dumps writes it, without the line end; the caller frees it. Takes the reference. */
char *talk_line(json_t *v);
