/* llava.h - look at pictures and answer questions.
 *
 *   struct llava_options o = llava_options_default();
 *   o.model_path = "models/demo";
 *   struct llava_engine *engine;
 *   struct llava_session *session;
 *   struct llava_image *image;
 *   struct llava_error e;
 *   if (llava_open(&engine, &o, &e) < 0) ...e.message...
 *   llava_image_open(&image, engine, "cat.png", &e);
 *   llava_session_open(&session, engine, &e);
 *   llava_session_prompt(session, "USER: <image>\nWhat is this? ASSISTANT:", &image, 1, &e);
 *   llava_session_generate(session, &sampling, on_text, NULL, &result, &e);
 *
 * examples/ask.c is a whole program; examples/ask.py calls the library from Python, through ctypes alone.
 *
 * Every function that can fail returns 0 or more when done and a negative code (enum llava_code) otherwise,
 * with one line in *e (which may be NULL). Objects are made by *_open, which leaves NULL behind when it fails, and
 * released by *_close, which accepts NULL; pictures and sessions before their engine. Strings are UTF-8.
 *
 * Threads: an engine is used by one call at a time (sessions of one engine too; many at once: llava_batch.h); only
 * opening and closing pictures and everything about conversations may go on beside. Opening one sets how many OpenMP
 * threads the calling thread starts, and how much the process logs. Where threads compete for cores, set
 * GOMP_SPINCOUNT=5000 in the environment, as the program llava does for itself.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define LLAVA_API __attribute__((visibility("default")))

enum llava_code {
    LLAVA_OK = 0,
    LLAVA_IO = -1,          /* reading or writing failed */
    LLAVA_FORMAT = -2,      /* the bytes are not what the format says */
    LLAVA_LIMIT = -3,       /* larger than accepted: a picture, a prompt over the context */
    LLAVA_MISSING = -4,     /* a file or a tensor is not there */
    LLAVA_SHAPE = -5,       /* shapes or types do not fit */
    LLAVA_UNSUPPORTED = -6, /* well formed, but not handled */
    LLAVA_NOMEM = -7,
    LLAVA_USAGE = -8,       /* a value given by the caller is wrong */
    LLAVA_BUSY = -9         /* too much is waiting already (llava_batch.h) */
};
struct llava_error {
    int code;
    char message[1000]; /* one line, no full stop */
};

LLAVA_API const char *llava_version(void); /* "0.1.0" */

/* ---- engine: a model that is open */

struct llava_options {
    const char *model_path;   /* folder, or org/name on the hub; a whole model, a projector or a LoRA adapter */
    const char *model_base;   /* base model for the latter two, or NULL */
    const char *model_name;   /* how it is called and which conversation suits it; NULL: from the folder */
    const char *vision_tower; /* overrides the one that config.json names, or NULL */
    const char *device;       /* "auto": the build's GPU if one works, else "cpu"; "cuda", "cuda:1", "hip:0" */
    const char *dtype;        /* "auto", "f32", "bf16", "f16". auto: f32 for models under 256 MB, else as stored */
    const char *kv_dtype;     /* of the cache: "auto" or NULL, "f32", "bf16", "f16", "q8". auto: q8 with quantised
                                 weights, else as dtype */
    bool load_8bit, load_4bit; /* quantise the matrices while loading, unless they are stored so; one of the two */
    const char *lora[16];     /* [n_lora] "NAME=FOLDER": LoRA adapters that are served beside the model, unmerged. One
                                 that was trained with a projector (non_lora_trainables.bin beside it) reads pictures
                                 through that; a language model may see through such adapters alone */
    int n_lora;
    int context;              /* positions that a session holds; 0: all that the model has */
    int threads;              /* 0: as many as the machine gives */
    bool quiet;               /* no progress, no notices */
};
LLAVA_API struct llava_options llava_options_default(void);

struct llava_engine;
/* Opens a model; what is not there is downloaded into the Hugging Face cache. Files are mapped, and must stay as they
 * are until llava_close. The options are copied. */
LLAVA_API int llava_open(struct llava_engine **ret, const struct llava_options *o, struct llava_error *e);
LLAVA_API void llava_close(struct llava_engine *engine);

struct llava_info {
    const char *name, *model_type, *dtype, *device, *kernels; /* valid while the engine is open */
    int threads;
    const char *conversation;                                 /* template that suits the model: "llava_v1" */
    bool multimodal;
    int context, vocab, width, layers;
    int64_t weight_bytes, cache_bytes_per_position;
    int image_positions; /* of a picture that is one tile */
    bool image_marks;    /* a picture is written "<im_start><image><im_end>" and not "<image>" */
};
LLAVA_API void llava_engine_info(const struct llava_engine *engine, struct llava_info *info);

/* Name of the i-th adapter of llava_options.lora; NULL past the last. */
LLAVA_API const char *llava_adapter_name(const struct llava_engine *engine, int i);

/* ---- pictures: JPEG, PNG, WebP, GIF, BMP */

struct llava_image;
/* Decoded and preprocessed at once; run through the vision tower when first used, and kept. Usable in many sessions of
 * its engine. As in LLaVA the orientation that a JPEG's EXIF names is not applied. */
LLAVA_API int llava_image_open(struct llava_image **ret, struct llava_engine *engine, const char *path,
                               struct llava_error *e);
/* The same from memory; name is for messages. */
LLAVA_API int llava_image_decode(struct llava_image **ret, struct llava_engine *engine, const void *bytes, size_t n,
                                 const char *name, struct llava_error *e);
LLAVA_API void llava_image_close(struct llava_image *image);

/* ---- conversations: turns of text to the prompt that a template makes of them */

struct llava_conversation;
/* name: a template ("vicuna_v1", "llava_v1", "mistral_instruct", ...), or NULL for the one that suits the model. */
LLAVA_API int llava_conversation_open(struct llava_conversation **ret, const struct llava_engine *engine,
                                      const char *name, struct llava_error *e);
LLAVA_API void llava_conversation_close(struct llava_conversation *c);
/* Adds a question. n_images > 0 puts that many "<image>\n" before it, unless it already says where they go. */
LLAVA_API int llava_conversation_ask(struct llava_conversation *c, const char *text, int n_images,
                                     struct llava_error *e);
LLAVA_API int llava_conversation_answer(struct llava_conversation *c, const char *text, struct llava_error *e);
/* Takes back the last question and its answer: after a failure the conversation goes on from before. */
LLAVA_API void llava_conversation_undo(struct llava_conversation *c);
/* The prompt up to where the model answers; *prompt is valid until the next call with c. LLAVA_USAGE: a template that
 * cannot write such a conversation ("plain" with an answer). */
LLAVA_API int llava_conversation_prompt(const char **prompt, struct llava_conversation *c, struct llava_error *e);
/* What ends an answer, for llava_sampling.stop. */
LLAVA_API const char *llava_conversation_stop(const struct llava_conversation *c);
/* The i-th template's name, NULL past the last. */
LLAVA_API const char *llava_conversation_name(int i);

/* ---- sessions: one conversation's memory */

struct llava_session;
LLAVA_API int llava_session_open(struct llava_session **ret, struct llava_engine *engine, struct llava_error *e);
LLAVA_API void llava_session_close(struct llava_session *s);
/* The adapter that prompts from here on go through; NULL: none. */
LLAVA_API int llava_session_adapter(struct llava_session *s, const char *name, struct llava_error *e);

/* Reads a whole prompt, with one "<image>" for each of the n pictures. What it has in common with what the session
 * holds (text and pictures of earlier turns) is kept and costs nothing. LLAVA_USAGE: another number of pictures;
 * LLAVA_LIMIT: longer than the context. */
LLAVA_API int llava_session_prompt(struct llava_session *s, const char *prompt,
                                   struct llava_image *const *images, int n, struct llava_error *e);

/* Added to the logit of a token before temperature. */
struct llava_bias {
    int32_t token;
    float bias;
};
/* How tokens become text: all of them decoded at once; the same, but the first word keeps its space, for it goes on
 * where the prompt stops; or each line by itself, as LLaVA's cli and workers stream it (indents lose a space). */
enum llava_text { LLAVA_TEXT_WHOLE, LLAVA_TEXT_CONTINUED, LLAVA_TEXT_LINES };
struct llava_sampling {
    float temperature;       /* 0: always the likeliest token */
    int top_k;               /* 50, as transformers has by default; 0: off */
    float top_p;             /* 1: off */
    uint64_t seed;           /* the same seed, prompt and model give the same answer */
    int max_new_tokens;      /* at least 1; cut to what the context has room for */
    const char *const *stop; /* strings that end the answer and are not part of it */
    int n_stop;
    const struct llava_bias *bias; /* [n_bias] */
    int n_bias;
    /* Taken from the logit of a token that the answer has: once, and for each time. */
    float presence_penalty, frequency_penalty;
    /* As other engines have them; 0 is off. */
    float min_p;              /* tokens with less than this part of the likeliest's probability are not drawn */
    float repetition_penalty; /* divides the logits of tokens that prompt or answer have, multiplies negative ones */
    int min_new_tokens;       /* the end is not chosen before, where anything else may be */
    bool no_end;              /* nor ever */
    const int32_t *stop_ids;  /* [n_stop_ids] tokens that end the answer as the model's own end does */
    int n_stop_ids;
    enum llava_text text;
};
LLAVA_API struct llava_sampling llava_sampling_default(void); /* temperature 0.2, top_k 50, top_p 1, 512 tokens */

enum llava_finish { LLAVA_FINISH_END, LLAVA_FINISH_STOP, LLAVA_FINISH_LENGTH, LLAVA_FINISH_CANCELLED };
struct llava_result {
    enum llava_finish finish;
    int n_prompt, n_cached, n_new; /* positions of the prompt, of them not computed again, tokens generated */
    double image_s, prompt_s, first_s, generate_s; /* tower; prompt without it; prompt begin to first token; the rest */
    double queue_s;                /* waited before the prompt was begun (llava_batch.h) */
    double bytes_per_s;            /* weights and cache read while generating */
};
/* A piece of the answer, n bytes of whole characters, as soon as it is certain. Return false to stop. */
typedef bool (*llava_text_fn)(void *ctx, const char *text, size_t n);
/* Answers the prompt that was read last; each prompt once. on_text and r may be NULL. LLAVA_USAGE: no prompt, or a
 * value of *p out of range. */
LLAVA_API int llava_session_generate(struct llava_session *s, const struct llava_sampling *p,
                                     llava_text_fn on_text, void *ctx, struct llava_result *r,
                                     struct llava_error *e);

/* ---- the numbers themselves, for those who compare */

struct llava_forward {
    int32_t *ids;          /* [n_ids], -200 for a picture */
    int n_ids;
    float *pixels;         /* [n_tiles,3,side,side] of all pictures */
    int n_tiles, side;
    float *features;       /* [n_features,width] of all pictures, as they enter the language model */
    int n_features, width;
    float *logits;         /* [n_positions,vocab] */
    int n_positions, vocab;
};
/* Runs a prompt and gives everything; release with llava_forward_free. */
LLAVA_API int llava_engine_forward(struct llava_forward *ret, struct llava_engine *engine, const char *prompt,
                                   struct llava_image *const *images, int n, struct llava_error *e);
LLAVA_API void llava_forward_free(struct llava_forward *f); /* accepts a zeroed one */

#ifdef __cplusplus
}
#endif
