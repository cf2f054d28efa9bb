/* See config.h. Every key is optional here: what a writer leaves out has the default of the class that wrote it. */
#define _GNU_SOURCE
#include "model/config.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "file/json.h"
#include "tensor/quant.h"

/* One JSON object being read: the first wrong type is remembered, reading goes on. */
struct reader {
    const json_t *o;
    const char *path;
    struct err *e;
    int rc;
};

static const json_t *get(const struct reader *r, const char *key)
{
    const json_t *v = json_object_get(r->o, key);
    return json_is_null(v) ? NULL : v;
}

static int wrong(struct reader *r, const char *key, const char *want)
{
    return r->rc = err_set(r->e, ERR_FORMAT, "'%s': \"%s\" is not %s", r->path, key, want);
}

static double number(struct reader *r, const char *key, double otherwise)
{
    const json_t *v = get(r, key);
    if (!v) return otherwise;
    if (json_is_number(v)) return json_number_value(v);
    wrong(r, key, "a number");
    return otherwise;
}

static int integer(struct reader *r, const char *key, int otherwise)
{
    double d = number(r, key, otherwise);
    if (d == floor(d) && fabs(d) < 1e9) return (int)d;
    wrong(r, key, "a whole number");
    return otherwise;
}

static bool boolean(struct reader *r, const char *key, bool otherwise)
{
    const json_t *v = get(r, key);
    if (!v) return otherwise;
    if (json_is_boolean(v)) return json_is_true(v);
    wrong(r, key, "true or false");
    return otherwise;
}

static const char *string(struct reader *r, const char *key, const char *otherwise)
{
    const json_t *v = get(r, key);
    if (!v) return otherwise;
    if (json_is_string(v)) return json_string_value(v);
    wrong(r, key, "a string");
    return otherwise;
}

static struct reader inside(struct reader *r, const char *key)
{
    const json_t *v = get(r, key);
    if (v && !json_is_object(v)) wrong(r, key, "an object");
    return (struct reader){ v && json_is_object(v) ? v : NULL, r->path, r->e, r->rc };
}

/* A size must be within limits that keep every product of sizes far from overflow. */
static void limit(struct reader *r, const char *key, int v, int low, int high)
{
    if (r->rc < 0 || (v >= low && v <= high)) return;
    r->rc = err_set(r->e, ERR_LIMIT, "'%s': \"%s\" is %d, not within %d..%d", r->path, key, v, low, high);
}

static void read_rope(struct reader *r, struct llama_config *c)
{
    c->rope_theta = number(r, "rope_theta", 10000);
    struct reader s = inside(r, "rope_parameters");
    if (!s.o) s = inside(r, "rope_scaling");
    if (!s.o) {
        if (s.rc < 0) r->rc = s.rc;
        return;
    }
    c->rope_theta = number(&s, "rope_theta", c->rope_theta);
    const char *type = string(&s, "rope_type", string(&s, "type", "default"));
    c->rope_factor = number(&s, "factor", 1);
    c->rope_low = number(&s, "low_freq_factor", 1);
    c->rope_high = number(&s, "high_freq_factor", 4);
    c->rope_original = integer(&s, "original_max_position_embeddings", 8192);
    if (!strcmp(type, "linear")) c->rope_scaling = ROPE_LINEAR;
    else if (!strcmp(type, "llama3")) c->rope_scaling = ROPE_LLAMA3;
    else if (strcmp(type, "default") != 0)
        s.rc = err_set(r->e, ERR_UNSUPPORTED, "'%s': rope type '%s' is not supported", r->path, type);
    if (s.rc >= 0 && !(c->rope_factor > 0 && c->rope_theta > 0)) s.rc = wrong(r, "rope factor or theta", "positive");
    if (s.rc < 0) r->rc = s.rc;
}

/* Defaults are those of transformers' LlamaConfig (MistralConfig where they differ). */
static void read_llama(struct reader *r, struct llama_config *c, bool mistral)
{
    c->C = integer(r, "hidden_size", 4096);
    c->F = integer(r, "intermediate_size", mistral ? 14336 : 11008);
    c->L = integer(r, "num_hidden_layers", 32);
    c->H = integer(r, "num_attention_heads", 32);
    c->K = integer(r, "num_key_value_heads", mistral ? 8 : c->H);
    c->V = integer(r, "vocab_size", 32000);
    limit(r, "hidden_size", c->C, 1, 1 << 14);
    limit(r, "intermediate_size", c->F, 1, 1 << 18);
    limit(r, "num_hidden_layers", c->L, 1, 1000);
    limit(r, "num_attention_heads", c->H, 1, 1024);
    limit(r, "num_key_value_heads", c->K, 1, c->H < 1 ? 1 : c->H);
    limit(r, "vocab_size", c->V, 1, 1 << 22);
    if (r->rc < 0) return;
    c->D = integer(r, "head_dim", c->C / c->H);
    limit(r, "head_dim", c->D, 2, 1024);
    if (r->rc >= 0 && (c->D % 2 || c->H % c->K))
        r->rc = err_set(r->e, ERR_SHAPE, "'%s': %d heads, %d key/value heads and head size %d do not fit",
                        r->path, c->H, c->K, c->D);
    c->max_pos = integer(r, "max_position_embeddings", mistral ? 131072 : 2048);
    limit(r, "max_position_embeddings", c->max_pos, 1, 1 << 20);
    /* null says none, absence leaves the class's default */
    c->window = !mistral ? 0 : json_object_get(r->o, "sliding_window") ? integer(r, "sliding_window", 0) : 4096;
    limit(r, "sliding_window", c->window, 0, 1 << 20);
    c->eps = (float)number(r, "rms_norm_eps", 1e-6);
    if (!(c->eps >= 0 && c->eps < 1)) wrong(r, "rms_norm_eps", "from 0 to 1");
    c->tied = boolean(r, "tie_word_embeddings", false);
    c->bias = boolean(r, "attention_bias", false);
    const char *act = string(r, "hidden_act", "silu");
    if (strcmp(act, "silu") != 0)
        r->rc = err_set(r->e, ERR_UNSUPPORTED, "'%s': hidden_act '%s' is not supported", r->path, act);
    read_rope(r, c);
}

/* Defaults are those of transformers' CLIPVisionConfig. */
static void read_clip(struct reader *r, struct clip_config *c)
{
    c->C = integer(r, "hidden_size", 768);
    c->F = integer(r, "intermediate_size", 3072);
    c->L = integer(r, "num_hidden_layers", 12);
    c->H = integer(r, "num_attention_heads", 12);
    c->image = integer(r, "image_size", 224);
    c->patch = integer(r, "patch_size", 32);
    c->eps = (float)number(r, "layer_norm_eps", 1e-5);
    limit(r, "hidden_size", c->C, 1, 1 << 14);
    limit(r, "intermediate_size", c->F, 1, 1 << 16);
    limit(r, "num_hidden_layers", c->L, 1, 200);
    limit(r, "num_attention_heads", c->H, 1, 256);
    limit(r, "image_size", c->image, 1, 4096);
    limit(r, "patch_size", c->patch, 1, c->image < 1 ? 1 : c->image);
    if (r->rc >= 0 && c->C % c->H)
        r->rc = err_set(r->e, ERR_SHAPE, "'%s': %d channels do not divide into %d heads", r->path, c->C, c->H);
    const char *act = string(r, "hidden_act", "quick_gelu");
    c->quick_gelu = !strcmp(act, "quick_gelu");
    if (!c->quick_gelu && strcmp(act, "gelu") != 0)
        r->rc = err_set(r->e, ERR_UNSUPPORTED, "'%s': hidden_act '%s' is not supported", r->path, act);
    const char *type = string(r, "model_type", "clip_vision_model");
    if (strcmp(type, "clip_vision_model") != 0 && strcmp(type, "clip") != 0)
        r->rc = err_set(r->e, ERR_UNSUPPORTED, "'%s': a vision tower of type '%s' is not supported", r->path, type);
}

/* "linear", "mlp2x_gelu", "identity": how many linears; spec: multimodal_projector/builder.py */
static void read_projector_type(struct reader *r, struct llava_config *c)
{
    const char *type = string(r, "mm_projector_type", "linear");
    int n = 0, used = 0;
    if (!strcmp(type, "linear")) c->n_projector = 1;
    else if (!strcmp(type, "identity")) c->n_projector = 0;
    else if (sscanf(type, "mlp%dx_gelu%n", &n, &used) == 1 && used == (int)strlen(type) && n >= 1 && n <= PROJECTOR_MAX)
        c->n_projector = n;
    else r->rc = err_set(r->e, ERR_UNSUPPORTED, "'%s': unknown projector type '%s'", r->path, type);
}

/* A list of pairs, or LLaVA's string of one. */
static void read_pinpoints(struct reader *r, struct llava_config *c, bool height_first)
{
    const json_t *v = get(r, "image_grid_pinpoints");
    if (!v || r->rc < 0) return;
    char *text = json_is_string(v) ? strdup(json_string_value(v)) : json_dumps(v, JSON_ENCODE_ANY);
    int rc = text ? pinpoints_parse(&c->pinpoints, text, strlen(text), height_first, r->e)
                  : err_set(r->e, ERR_NOMEM, "no memory for pinpoints");
    free(text);
    if (rc < 0) {
        err_prefix(r->e, "'%s': \"image_grid_pinpoints\"", r->path);
        r->rc = rc;
    }
}

static void read_tokens(struct reader *r, struct llava_config *c)
{
    c->bos = integer(r, "bos_token_id", c->bos);
    c->pad = integer(r, "pad_token_id", c->pad);
    const json_t *eos = get(r, "eos_token_id");
    if (!eos) return;
    size_t n = json_is_array(eos) ? json_array_size(eos) : 1;
    c->n_eos = 0;
    if (n > sizeof c->eos / sizeof *c->eos) wrong(r, "eos_token_id", "a list of at most 8");
    for (size_t i = 0; i < n && i < sizeof c->eos / sizeof *c->eos; i++) {
        const json_t *v = json_is_array(eos) ? json_array_get(eos, i) : eos;
        if (!json_is_integer(v)) wrong(r, "eos_token_id", "a token id or a list of them");
        else c->eos[c->n_eos++] = (int)json_integer_value(v);
    }
}

/* LLaVA's own layout: Llama keys and mm_* keys side by side. Presence of mm_vision_tower makes it multimodal. */
static void read_llava(struct reader *r, struct llava_config *c)
{
    read_llama(r, &c->llama, c->mistral);
    const char *tower = string(r, "mm_vision_tower", string(r, "vision_tower", NULL));
    c->has_vision = tower != NULL;
    if (!tower) return;
    snprintf(c->tower, sizeof c->tower, "%s", tower);
    read_projector_type(r, c);
    c->mm_hidden = integer(r, "mm_hidden_size", 0);
    c->select_layer = integer(r, "mm_vision_select_layer", -2);
    c->im_start_end = boolean(r, "mm_use_im_start_end", false);
    c->im_patch = boolean(r, "mm_use_im_patch_token", true);
    c->text_max = integer(r, "tokenizer_model_max_length", 0);
    if (boolean(r, "s2", false)) r->rc = err_set(r->e, ERR_UNSUPPORTED, "'%s': S2 towers are not supported", r->path);
    const char *feature = string(r, "mm_vision_select_feature", "patch");
    c->select_cls = !strcmp(feature, "cls_patch");
    if (!c->select_cls && strcmp(feature, "patch") != 0)
        r->rc = err_set(r->e, ERR_UNSUPPORTED, "'%s': unexpected mm_vision_select_feature '%s'", r->path, feature);
    int rc = aspect_parse(&c->aspect, string(r, "image_aspect_ratio", NULL), r->e);
    if (rc >= 0) rc = merge_parse(&c->merge, string(r, "mm_patch_merge_type", NULL), r->e);
    if (rc < 0) {
        err_prefix(r->e, "'%s'", r->path);
        r->rc = rc;
    }
    read_pinpoints(r, c, false);
    if (r->rc >= 0 && c->aspect == ASPECT_ANYRES && !c->pinpoints.n)
        r->rc = err_set(r->e, ERR_MISSING, "'%s': anyres needs \"image_grid_pinpoints\"", r->path);
}

/* transformers' LlavaForConditionalGeneration and LlavaNextForConditionalGeneration. */
static void read_hf(struct reader *r, struct llava_config *c, bool next)
{
    struct reader text = inside(r, "text_config"), vision = inside(r, "vision_config");
    const char *type = string(&text, "model_type", "llama");
    c->mistral = !strcmp(type, "mistral");
    if (!c->mistral && strcmp(type, "llama") != 0)
        r->rc = err_set(r->e, ERR_UNSUPPORTED, "'%s': a text model of type '%s' is not supported", r->path, type);
    read_llama(&text, &c->llama, c->mistral);
    read_tokens(&text, c);
    if (vision.o) read_clip(&vision, &c->clip);
    else /* what LlavaConfig fills in for an absent vision_config */
        c->clip = (struct clip_config){ 1024, 4096, 24, 16, 336, 14, 1e-5f, true };
    if (r->rc >= 0) r->rc = text.rc < 0 ? text.rc : vision.rc;
    c->has_vision = c->has_clip = c->hf_layout = true;
    c->llama.tied = boolean(r, "tie_word_embeddings", boolean(&text, "tie_word_embeddings", false));
    c->select_layer = integer(r, "vision_feature_layer", -2);
    c->n_projector = 2;
    const char *strategy = string(r, "vision_feature_select_strategy", "default");
    c->select_cls = !strcmp(strategy, "full");
    if (!c->select_cls && strcmp(strategy, "default") != 0)
        r->rc = err_set(r->e, ERR_UNSUPPORTED, "'%s': unexpected vision_feature_select_strategy '%s'",
                        r->path, strategy);
    const char *act = string(r, "projector_hidden_act", "gelu");
    if (strcmp(act, "gelu") != 0)
        r->rc = err_set(r->e, ERR_UNSUPPORTED, "'%s': projector_hidden_act '%s' is not supported", r->path, act);
    if (next) {
        c->aspect = ASPECT_ANYRES;
        c->merge = MERGE_UNPAD;
        read_pinpoints(r, c, true);
        if (r->rc >= 0 && !c->pinpoints.n) { /* LlavaNextConfig's default */
            static const char list[] = "[[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]";
            r->rc = pinpoints_parse(&c->pinpoints, list, sizeof list - 1, true, r->e);
        }
    } else if (!strcmp(string(r, "image_aspect_ratio", "square"), "pad")) {
        c->aspect = ASPECT_PAD; /* not transformers' key: kept by `llava convert` so that pictures are treated
                                   as trained */
    }
}

static void read_model(struct reader *r, struct llava_config *c)
{
    const char *type = string(r, "model_type", "llama");
    snprintf(c->model_type, sizeof c->model_type, "%s", type);
    c->bos = 1;
    c->eos[0] = 2;
    c->n_eos = 1;
    c->pad = 0;
    c->mistral = strstr(type, "mistral") != NULL;
    bool next = !strcmp(type, "llava_next");
    static const char *const known[] = { "llava", "llava_llama", "llava_mistral", "llava_next", "llama", "mistral",
                                         "vicuna" };
    size_t i = 0, n = sizeof known / sizeof *known;
    while (i < n && strcmp(type, known[i])) i++;
    if (i == n) {
        r->rc = err_set(r->e, ERR_UNSUPPORTED, "'%s': model type '%s' is not supported", r->path, type);
        return;
    }
    if (get(r, "text_config") || get(r, "vision_config") || next) read_hf(r, c, next);
    else read_llava(r, c);
    read_tokens(r, c);
    const char *dtype = string(r, "torch_dtype", string(r, "dtype", "float32"));
    if (r->rc >= 0 && dtype_find(dtype, &c->dtype) < 0)
        r->rc = err_set(r->e, ERR_FORMAT, "'%s': unknown dtype '%s'", r->path, dtype);
}

static int read_file(const char *dir, const char *name, json_t **ret, char **path, struct err *e)
{
    if (asprintf(path, "%s/%s", dir, name) < 0) {
        *path = NULL;
        return err_set(e, ERR_NOMEM, "no memory for a path");
    }
    int rc = json_file_load(ret, *path, e);
    if (rc >= 0 && !json_is_object(*ret)) rc = err_set(e, ERR_FORMAT, "'%s' does not hold an object", *path);
    return rc;
}

int llava_config_load(struct llava_config *c, const char *dir, struct err *e)
{
    *c = (struct llava_config){ 0 };
    json_t *o = NULL;
    char *path = NULL;
    int rc = read_file(dir, "config.json", &o, &path, e);
    if (rc >= 0) {
        struct reader r = { o, path, e, 0 };
        read_model(&r, c);
        rc = r.rc;
    }
    json_decref(o);
    free(path);
    if (rc < 0) return rc;
    struct err why = { 0 };
    o = NULL;
    rc = read_file(dir, "generation_config.json", &o, &path, &why);
    if (rc >= 0) {
        struct reader r = { o, path, e, 0 };
        read_tokens(&r, c);
        rc = r.rc;
    } else if (rc == ERR_MISSING) {
        rc = 0; /* it need not be there */
    } else if (e) {
        *e = why;
    }
    json_decref(o);
    free(path);
    return rc;
}

/* quantization_config: this program's own, or a refusal. */
static int quant_bits(int *bits, const json_t *q, const char *path, struct err *e)
{
    const char *method = json_string_value(json_object_get(q, "quant_method"));
    const json_int_t n = json_integer_value(json_object_get(q, "bits"));
    const json_int_t group = json_integer_value(json_object_get(q, "group_size"));
    if (!method || strcmp(method, QUANT_METHOD) != 0)
        return err_set(e, ERR_UNSUPPORTED,
                       "'%s': quantised by '%.40s': only folders that 'llava quantize' wrote can be read", path,
                       method ? method : "?");
    if ((n != 8 && n != 4) || group != QUANT_GROUP)
        return err_set(e, ERR_UNSUPPORTED, "'%s': %lld bits in groups of %lld, not 8 or 4 in groups of %d", path,
                       (long long)n, (long long)group, QUANT_GROUP);
    *bits = (int)n;
    return 0;
}

int llava_config_bits(int *bits, const char *dir, struct err *e)
{
    json_t *o = NULL;
    char *path = NULL;
    *bits = 0;
    int rc = read_file(dir, "config.json", &o, &path, e);
    if (rc == ERR_MISSING) rc = 0; /* of a language model beside its adapter's */
    const json_t *q = json_object_get(o, "quantization_config");
    if (rc >= 0 && q && !json_is_null(q)) rc = quant_bits(bits, q, path, e);
    json_decref(o);
    free(path);
    return rc;
}

int clip_config_load(struct clip_config *c, const char *dir, struct err *e)
{
    *c = (struct clip_config){ 0 };
    json_t *o = NULL;
    char *path = NULL;
    int rc = read_file(dir, "config.json", &o, &path, e);
    if (rc >= 0) {
        struct reader r = { o, path, e, 0 }, inner = inside(&r, "vision_config");
        struct reader *use = inner.o ? &inner : &r;
        if (use->rc >= 0) read_clip(use, c);
        rc = use->rc;
    }
    json_decref(o);
    free(path);
    return rc;
}

int llava_config_preset(struct llava_config *c, const char *name, struct err *e)
{
    static const struct {
        const char *name;
        int C, F, L, H, V;
        struct clip_config clip;
    } presets[] = {
        { "tiny", 256, 688, 4, 4, 32000, { 256, 1024, 4, 4, 112, 14, 1e-5f, true } },
        { "1b", 2048, 5632, 22, 16, 32000, { 1024, 4096, 24, 16, 336, 14, 1e-5f, true } },
        { "7b", 4096, 11008, 32, 32, 32000, { 1024, 4096, 24, 16, 336, 14, 1e-5f, true } },
        { "13b", 5120, 13824, 40, 40, 32000, { 1024, 4096, 24, 16, 336, 14, 1e-5f, true } },
    };
    for (size_t i = 0; i < sizeof presets / sizeof *presets; i++) {
        if (strcmp(name, presets[i].name) != 0) continue;
        *c = (struct llava_config){ .has_vision = true, .has_clip = true, .n_projector = 2, .select_layer = -2,
                                    .aspect = ASPECT_PAD, .bos = 1, .eos = { 2 }, .n_eos = 1, .dtype = DT_BF16,
                                    .clip = presets[i].clip, .mm_hidden = presets[i].clip.C };
        snprintf(c->model_type, sizeof c->model_type, "llava_llama");
        struct llama_config *l = &c->llama;
        *l = (struct llama_config){ .C = presets[i].C, .F = presets[i].F, .L = presets[i].L, .H = presets[i].H,
                                    .K = presets[i].H, .D = presets[i].C / presets[i].H, .V = presets[i].V,
                                    .max_pos = 4096, .eps = 1e-5f, .rope_theta = 10000 };
        return 0;
    }
    return err_set(e, ERR_USAGE, "no preset '%s' (there are tiny, 1b, 7b, 13b)", name);
}
