/* llava_batch.h - many questions to one model at once.
 *
 *   struct llava_batch_options o = llava_batch_options_default();
 *   struct llava_batch *batch;
 *   llava_batch_open(&batch, engine, &o, &e);
 *   struct llava_request r = llava_request_default();
 *   r.prompt = "USER: What is new? ASSISTANT:";
 *   r.on_text = ..., r.on_end = ..., r.ctx = ...;
 *   int64_t id = llava_batch_submit(batch, &r, &e);    from any thread; < 0: refused, and no callback comes
 *   ...
 *   llava_batch_close(batch);
 *
 * A batch owns one thread, which computes: answers advance side by side, a token each in turn, while prompts of new
 * requests are read in chunks between these steps. What a prompt has in common with earlier ones of its realm, pictures
 * included, is not computed again. A greedy answer is the same alone and in company; a drawn one depends on its seed
 * only.
 *
 * While a batch is open its engine belongs to it: no session, no forward, no llava_image_* but opening, decoding and
 * closing, no llava_close. These, conversations and everything below may be used from any thread.
 */
#pragma once
#include "llava.h"

#ifdef __cplusplus
extern "C" {
#endif

struct llava_batch_options {
    int sequences;           /* answers computed side by side; 0: 16 */
    int64_t cache_positions; /* that all of them and what is kept for reuse may hold; 0: sequences times the context,
                                or as many as a quarter of the memory (of a device, three quarters of what is
                                free) holds where that is less */
    int queue;               /* requests that may wait; 0: 256. Of one client at most seven for each free place */
};
LLAVA_API struct llava_batch_options llava_batch_options_default(void);

struct llava_batch;
LLAVA_API int llava_batch_open(struct llava_batch **ret, struct llava_engine *engine,
                               const struct llava_batch_options *o, struct llava_error *e);
/* Cancels what is waiting or running, which ends with LLAVA_FINISH_CANCELLED, and waits for that. */
LLAVA_API void llava_batch_close(struct llava_batch *b);

/* ---- requests */

/* A token and its logarithmic probability before temperature. text: its bytes, which may be half a character; valid
 * during the callback. */
struct llava_candidate {
    int32_t id;
    float logprob;
    const char *text;
    size_t n;
    bool silent; /* a special token, such as the end: it adds nothing to the answer's text */
};
struct llava_token {
    struct llava_candidate chosen;
    const struct llava_candidate *top; /* [n_top] the likeliest, falling */
    int n_top;
};
enum { LLAVA_TOP_MAX = 20, LLAVA_CHOICES_MAX = 64 };

/* The callbacks come on the batch's own thread, which everybody waits for: they must not block. They may submit and
 * cancel. `choice` counts a request's answers from 0; those of one request may come interleaved. Each may be NULL. */
struct llava_request {
    const char *prompt;                 /* whole, with one "<image>" for each picture; copied */
    const int32_t *ids;                 /* [n_ids] instead of it its tokens, as they are read; no pictures; copied */
    int n_ids;
    struct llava_image *const *images;  /* [n_images]; the pictures must stay open until the last on_end */
    int n_images;
    struct llava_sampling sampling;     /* copied; a limit past the context is cut to it */
    int n;                              /* answers; the i-th is drawn with seed + i */
    int top_logprobs;                   /* candidates in llava_token.top */
    const char *schema;                 /* JSON schema that the answers satisfy (see below); NULL: none */
    const char *grammar;                /* instead of it, a grammar that they follow */
    const char *adapter;                /* name of one of llava_options.lora; NULL: none */
    uint64_t client;                    /* whoever asks: those who have the least running are served next; 0: not said,
                                           and no places are kept from them */
    uint64_t realm;                     /* what was computed of a prompt is found by requests of its realm alone */
    bool (*on_text)(void *ctx, int choice, const char *text, size_t n); /* as llava_text_fn */
    void (*on_token)(void *ctx, int choice, const struct llava_token *t); /* every token, before its text */
    /* Every token of the prompt, before all others, as what came before it makes it likely; the first's logprob is NaN,
     * and it has no top. A prompt without pictures, of which then nothing is reused. */
    void (*on_prompt)(void *ctx, int choice, const struct llava_token *t);
    /* Exactly once for each of the n answers; after the last of them the batch has forgotten the request.
     * e NULL: done, *r says how. Else it failed; what had come until then stands. r is never NULL. */
    void (*on_end)(void *ctx, int choice, const struct llava_result *r, const struct llava_error *e);
    void *ctx;
};
LLAVA_API struct llava_request llava_request_default(void); /* llava_sampling_default, one answer */

/* Schemas: type, properties (in their order), required, items, prefixItems, enum, const, anyOf, $ref, lengths and
 * counts (to 4096), bounds of numbers, pattern, some formats; {"type": "object"} is any object. Others that restrict,
 * such as multipleOf, are refused with LLAVA_UNSUPPORTED, as is a schema of more than 262144 bytes of names and
 * values, or of 32768 parts.
 * Grammars: rules `name ::= ...` of which `root` is the answer; "literals", [classes], (groups), |, * + ? {m,n}.
 * An answer that ends with LLAVA_FINISH_LENGTH may be cut in the middle. */

/* Puts a request into the queue: its number, > 0, or LLAVA_BUSY when the queue is full, LLAVA_LIMIT when prompt and one
 * token do not fit the context, LLAVA_USAGE, LLAVA_FORMAT, ... for what is wrong with it. */
LLAVA_API int64_t llava_batch_submit(struct llava_batch *b, const struct llava_request *r, struct llava_error *e);
/* Ends all answers of a request soon, with LLAVA_FINISH_CANCELLED. A request that has ended is no mistake. */
LLAVA_API void llava_batch_cancel(struct llava_batch *b, int64_t id);

/* Positions that a prompt takes, pictures included, without computing anything. */
LLAVA_API int llava_count(struct llava_engine *engine, const char *prompt, struct llava_image *const *images, int n,
                          struct llava_error *e);

/* The tokens of a text, with those that begin a prompt where `begins`: their number, of which the first `max` are put
 * into ids. */
LLAVA_API int llava_tokenize(struct llava_engine *engine, const char *text, bool begins, int32_t *ids, int max,
                             struct llava_error *e);
/* The text of tokens, special ones by their names: its bytes without the NUL, of which as many are put into `text` as
 * `size` has room for, and the NUL. */
LLAVA_API int llava_detokenize(struct llava_engine *engine, const int32_t *ids, int n, char *text, int size,
                               struct llava_error *e);

/* ---- statistics */

enum { LLAVA_BUCKETS = 18 };
struct llava_histogram {
    uint64_t n[LLAVA_BUCKETS + 1]; /* values <= llava_bucket_s(i), but not <= that of i - 1; the last: larger ones */
    uint64_t count;
    double sum;                    /* seconds */
};
LLAVA_API double llava_bucket_s(int i); /* 0.001, 0.002, 0.005, 0.01, ... 200, 500 */

struct llava_stats {
    int running, waiting;      /* answers; requests */
    int sequences, queue;      /* their limits */
    int64_t cache_positions, cache_running, cache_kept; /* all; held by running answers; free but still reusable */
    uint64_t submitted, refused;                        /* requests */
    uint64_t answered, cancelled, failed;               /* answers */
    uint64_t prompt_positions, cached_positions;        /* read, and of them not computed again */
    uint64_t new_tokens, pictures, cached_pictures;     /* pictures used, and of them not run through the tower again */
    uint64_t decode_steps, prompt_steps;
    struct llava_histogram queue_s, first_s, token_s;   /* submit to start; submit to first token; token to token */
};
LLAVA_API void llava_batch_stats(struct llava_batch *b, struct llava_stats *ret);

#ifdef __cplusplus
}
#endif
