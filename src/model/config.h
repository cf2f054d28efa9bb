/* What config.json says, in every form that LLaVA, llava-hf and transformers 5 write it (MODEL.md lists them).
 *
 * The kind of model comes from this file alone, never from a folder's name.
 */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "image/anyres.h"
#include "image/preprocess.h"
#include "tensor/dtype.h"

enum rope_scaling { ROPE_PLAIN, ROPE_LINEAR, ROPE_LLAMA3 };

struct llama_config {
    int C, F, L, H, K, D, V; /* width, feed-forward, layers, heads, key/value heads, head size, vocabulary */
    int max_pos;             /* max_position_embeddings: the context */
    int window;              /* sliding window of Mistral, 0: none */
    float eps;
    double rope_theta;
    enum rope_scaling rope_scaling;
    double rope_factor, rope_low, rope_high; /* LLAMA3: factor, low_freq_factor, high_freq_factor */
    int rope_original;                       /* LLAMA3: original_max_position_embeddings */
    bool tied;                               /* lm_head is embed_tokens */
    bool bias;                               /* attention_bias: q, k, v, o carry one */
};

struct clip_config {
    int C, F, L, H;
    int image, patch; /* pixels: side of a picture, side of a patch */
    float eps;
    bool quick_gelu;  /* hidden_act "quick_gelu", otherwise exact gelu */
};

enum { PROJECTOR_MAX = 8 };

struct llava_config {
    struct llama_config llama;
    struct clip_config clip;     /* valid once has_clip; filled from the tower's own folder for LLaVA's layout */
    bool has_vision;             /* a tower and a projector belong to this model */
    bool has_clip;
    bool hf_layout;              /* written by transformers' LlavaForConditionalGeneration (vision_config inside) */
    char model_type[64];         /* as written */
    char tower[512];             /* mm_vision_tower: folder or org/name; "" when inside the checkpoint */
    int n_projector;             /* linears in the projector: "linear" 1, mlpNx_gelu N, identity 0 */
    int mm_hidden;               /* width of the tower's features, 0: the tower's own */
    int select_layer;            /* hidden_states index: -2 is the output of the last layer but one */
    bool select_cls;             /* "cls_patch"/"full": keep the class token */
    enum aspect aspect;
    enum merge merge;
    struct pinpoints pinpoints;
    bool im_start_end, im_patch; /* mm_use_im_start_end, mm_use_im_patch_token */
    int text_max;                /* tokenizer_model_max_length: rows are cut to it after splicing; 0: never */
    int bos, eos[8], n_eos, pad; /* generation */
    enum dtype dtype;            /* torch_dtype / dtype; F32 when absent */
    int bits;                    /* llava_config_bits of the folder that the language model is in */
    bool mistral;                /* the conversation template of Mistral suits it */
};

/* Reads DIR/config.json (and generation_config.json's eos list when there is one); bits is left 0. */
int llava_config_load(struct llava_config *c, const char *dir, struct err *e);
/* *bits: 8 or 4 of a folder that `llava quantize` wrote, by its config.json's quantization_config; 0: not quantised.
 * UNSUPPORTED: by another program, or in another way. To be asked of the weights' own folder: an adapter's or a
 * projector's config.json says how its base was while it was trained, which is nothing about the base that it gets. */
int llava_config_bits(int *bits, const char *dir, struct err *e);
/* Reads the tower's config.json: a CLIP folder, or a bare vision config. */
int clip_config_load(struct clip_config *c, const char *dir, struct err *e);
/* Shapes of public models for `bench --random`: "7b", "13b", "1b", "tiny". */
int llava_config_preset(struct llava_config *c, const char *name, struct err *e);
