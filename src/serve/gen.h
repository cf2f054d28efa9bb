/* The model behind the servers: an engine, its batch, and the life of one question between an exchange and the batch.
 */
#pragma once
#include <pthread.h>

#include "llava.h"
#include "llava_batch.h"
#include "base/buf.h"
#include "serve/exchange.h"

struct gen;
/* pictures: that all tasks may hold at a time, decoded; 0: 512. */
int gen_open(struct gen **ret, const struct llava_options *o, const struct llava_batch_options *b, int pictures,
             struct err *e);
void gen_close(struct gen *g); /* after the server whose handlers use it; accepts NULL */
const struct llava_info *gen_info(const struct gen *g);
/* What it answers as: the model itself is the 0th, then its adapters; NULL past the last. */
const char *gen_name(const struct gen *g, int i);
json_t *gen_names(const struct gen *g); /* all of them, an array */
/* *adapter (for llava_request) of what answers under that name: NULL is the model itself. False: nothing does. */
bool gen_find(const struct gen *g, const char *name, const char **adapter);
int gen_queue_length(struct gen *g); /* answers under way and requests waiting */
void gen_metrics(struct gen *g, struct buf *out);
/* fn(ctx) whenever the queue may have grown or shrunk. Set before the first request. */
void gen_on_change(struct gen *g, void (*fn)(void *ctx), void *ctx);

enum { GEN_PICTURES_MAX = 32, GEN_PICTURE_BYTES = 32 << 20, GEN_REQUESTS_MAX = 64 };

/* A question under way: the first member of a struct that knows how its answer is written. */
struct gen_task {
    struct gen *g;
    struct exchange *x;
    struct llava_image *image[GEN_PICTURES_MAX];
    int n_images;
    /* All answers have ended: sends what is left to say, calls gen_task_fini, frees the task and, last, finishes x. */
    void (*finish)(struct gen_task *t);
    pthread_mutex_t lock;
    int64_t id[GEN_REQUESTS_MAX];
    int n_ids, left;
    bool submitted;
    struct llava_error refused; /* code < 0: why not all requests were taken; those that were are cancelled */
};
void gen_task_init(struct gen_task *t, struct gen *g, struct exchange *x, void (*finish)(struct gen_task *));
void gen_task_fini(struct gen_task *t);
/* Decodes one picture more; name is for messages. In LANE_PICTURES. LLAVA_BUSY: tasks hold too many already. */
int gen_picture(struct gen_task *t, const void *bytes, size_t n, const char *name, struct llava_error *e);
/* Adds `prompt` with the marks around its "<image>"s that the model was trained with. */
void gen_prompt(const struct gen *g, struct buf *out, const char *prompt);
/* The tokens of a text as an array of numbers; NULL: *e says why. begins: with those that begin a prompt. */
json_t *gen_tokens(const struct gen *g, const char *text, bool begins, struct llava_error *e);
/* Adds the text of tokens, special ones by their names. */
int gen_text(const struct gen *g, struct buf *out, const int32_t *ids, int n, struct llava_error *e);
/* Submits r[0..n), whose pictures, client and realm are set here. 0: finish will be called, from another thread or from
 * within; x has its on_gone, which cancels. < 0: the first was refused already, and nothing will be called. */
int gen_submit(struct gen_task *t, struct llava_request *r, int n, struct llava_error *e);
/* One of the task's answers has failed: the others end soon, each with its on_end. From callbacks. */
void gen_cancel(struct gen_task *t);
/* To be called at the end of on_end; t may be gone afterwards. */
void gen_ended(struct gen_task *t);

/* The HTTP status that suits an error of the library, and a word for programs. */
int gen_status(int code, const char **word);
