/* config.json in the forms that LLaVA and transformers write, and the two small ones of a vision tower. See
 * save.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "image/preprocess.h"
#include "model/save.h"

static const char *torch_name(enum dtype t)
{
    return t == DT_F16 ? "float16" : t == DT_BF16 ? "bfloat16" : t == DT_F64 ? "float64" : "float32";
}

/* A float as the decimal that it was read from. */
static json_t *real(double v)
{
    char s[40];
    snprintf(s, sizeof s, "%.7g", v);
    return json_real(strtod(s, NULL));
}

/* An integer where it is one, as people write lora_alpha. */
static json_t *whole(double v)
{
    return v == (double)(json_int_t)v ? json_integer((json_int_t)v) : real(v);
}

static void put_int(json_t *o, const char *key, int64_t v)
{
    json_object_set_new(o, key, json_integer(v));
}
static void put_str(json_t *o, const char *key, const char *v)
{
    json_object_set_new(o, key, json_string(v));
}
static void put_bool(json_t *o, const char *key, bool v)
{
    json_object_set_new(o, key, json_boolean(v));
}

/* transformers 4: rope_theta and rope_scaling; transformers 5: both in rope_parameters. */
static void put_rope(json_t *o, const struct llama_config *l, bool five)
{
    static const char *const names[] = {
        [ROPE_PLAIN] = "default", [ROPE_LINEAR] = "linear", [ROPE_LLAMA3] = "llama3"
    };
    json_t *s = json_object();
    /* 4.31 knows "type" and wants nothing beside it and the factor */
    put_str(s, five || l->rope_scaling == ROPE_LLAMA3 ? "rope_type" : "type", names[l->rope_scaling]);
    if (l->rope_scaling != ROPE_PLAIN) json_object_set_new(s, "factor", real(l->rope_factor));
    if (l->rope_scaling == ROPE_LLAMA3) {
        json_object_set_new(s, "low_freq_factor", real(l->rope_low));
        json_object_set_new(s, "high_freq_factor", real(l->rope_high));
        put_int(s, "original_max_position_embeddings", l->rope_original);
    }
    json_object_set_new(five ? s : o, "rope_theta", real(l->rope_theta));
    if (five) {
        json_object_set_new(o, "rope_parameters", s);
    } else if (l->rope_scaling == ROPE_PLAIN) {
        json_object_set_new(o, "rope_scaling", json_null());
        json_decref(s);
    } else {
        json_object_set_new(o, "rope_scaling", s);
    }
}

static void put_llama(json_t *o, const struct llava_config *c, int vocab, bool five)
{
    static const struct {
        const char *key;
        size_t offset;
    } sizes[] = {
        { "hidden_size", offsetof(struct llama_config, C) },
        { "intermediate_size", offsetof(struct llama_config, F) },
        { "num_hidden_layers", offsetof(struct llama_config, L) },
        { "num_attention_heads", offsetof(struct llama_config, H) },
        { "num_key_value_heads", offsetof(struct llama_config, K) },
        { "max_position_embeddings", offsetof(struct llama_config, max_pos) },
    };
    const struct llama_config *l = &c->llama;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        put_int(o, sizes[i].key, *(const int *)((const char *)l + sizes[i].offset));
    if (l->D * l->H != l->C || five) put_int(o, "head_dim", l->D);
    put_int(o, "vocab_size", vocab);
    put_str(o, "hidden_act", "silu");
    json_object_set_new(o, "rms_norm_eps", real(l->eps));
    put_rope(o, l, five);
    put_bool(o, "tie_word_embeddings", l->tied);
    if (!c->mistral) put_bool(o, "attention_bias", l->bias);
    if (c->mistral)
        json_object_set_new(o, "sliding_window", l->window ? json_integer(l->window) : json_null());
    put_bool(o, "use_cache", true);
    put_int(o, "bos_token_id", c->bos);
    json_t *eos = json_array();
    for (int i = 0; i < c->n_eos; i++) json_array_append_new(eos, json_integer(c->eos[i]));
    if (c->n_eos == 1)
        put_int(o, "eos_token_id", c->eos[0]);
    else
        json_object_set(o, "eos_token_id", eos);
    json_decref(eos);
}

static void put_clip(json_t *o, const struct clip_config *c)
{
    put_str(o, "model_type", "clip_vision_model");
    put_int(o, "hidden_size", c->C);
    put_int(o, "intermediate_size", c->F);
    put_int(o, "num_hidden_layers", c->L);
    put_int(o, "num_attention_heads", c->H);
    put_int(o, "num_channels", 3);
    put_int(o, "image_size", c->image);
    put_int(o, "patch_size", c->patch);
    put_str(o, "hidden_act", c->quick_gelu ? "quick_gelu" : "gelu");
    json_object_set_new(o, "layer_norm_eps", real(c->eps));
    put_int(o, "projection_dim",
            768); /* of CLIP's joint space: nothing here has it, transformers wants the key */
}

static void put_architecture(json_t *o, const char *name)
{
    json_object_set_new(o, "architectures", json_pack("[s]", name));
}

void save_projector_type(char *out, size_t size, int n)
{
    if (n == 0)
        snprintf(out, size, "identity");
    else if (n == 1)
        snprintf(out, size, "linear");
    else
        snprintf(out, size, "mlp%dx_gelu", n);
}

/* LLaVA has (width, height), transformers (height, width). */
static void put_pinpoints(json_t *o, const struct pinpoints *p, bool height_first)
{
    json_t *list = json_array();
    for (int i = 0; i < p->n; i++)
        json_array_append_new(list, json_pack("[i,i]", height_first ? p->at[i].h : p->at[i].w,
                                              height_first ? p->at[i].w : p->at[i].h));
    json_object_set_new(o, "image_grid_pinpoints", list);
}

static const char *const aspects[] = {
    [ASPECT_SQUARE] = "square", [ASPECT_PAD] = "pad", [ASPECT_ANYRES] = "anyres"
};

static void put_vision(json_t *o, const struct llava_config *c, const char *tower)
{
    static const char *const merges[] = {
        [MERGE_FLAT] = "flat", [MERGE_SPATIAL] = "spatial", [MERGE_UNPAD] = "spatial_unpad"
    };
    char type[32];
    save_projector_type(type, sizeof type, c->n_projector);
    put_str(o, "mm_vision_tower", tower);
    put_bool(o, "use_mm_proj", true);
    put_str(o, "mm_projector_type", type);
    put_int(o, "mm_hidden_size", c->mm_hidden);
    put_int(o, "mm_vision_select_layer", c->select_layer);
    put_str(o, "mm_vision_select_feature", c->select_cls ? "cls_patch" : "patch");
    put_str(o, "mm_patch_merge_type", merges[c->merge]);
    put_bool(o, "mm_use_im_start_end", c->im_start_end);
    put_bool(o, "mm_use_im_patch_token", c->im_patch);
    put_str(o, "image_aspect_ratio", aspects[c->aspect]);
    if (c->pinpoints.n) put_pinpoints(o, &c->pinpoints, false);
    if (c->text_max) put_int(o, "tokenizer_model_max_length", c->text_max);
    put_str(o, "tokenizer_padding_side", "right");
    put_bool(o, "tune_mm_mlp_adapter", false);
    put_bool(o, "freeze_mm_mlp_adapter", false);
}

/* What a new file must say whatever the old one did. */
static const char *const forced[] = { "vocab_size", "torch_dtype", "mm_vision_tower", "num_key_value_heads" };

static json_t *config_llava(const struct llava_config *c, const struct save_options *o, const char *tower,
                            const json_t *old)
{
    json_t *now = json_object();
    const char *classes[2][2] = { { "LlamaForCausalLM", "MistralForCausalLM" },
                                  { "LlavaLlamaForCausalLM", "LlavaMistralForCausalLM" } };
    const char *types[2][2] = { { "llama", "mistral" }, { "llava_llama", "llava_mistral" } };
    put_architecture(now, classes[c->has_vision][c->mistral]);
    put_str(now, "model_type", types[c->has_vision][c->mistral]);
    put_llama(now, c, o->vocab ? o->vocab : c->llama.V, false);
    put_int(now, "pad_token_id", c->pad);
    put_str(now, "torch_dtype", torch_name(o->keep_dtype ? c->dtype : o->dtype));
    if (c->has_vision) put_vision(now, c, tower);
    json_t *both = old ? json_deep_copy(old) : json_object();
    json_object_update_missing(both, now);
    for (size_t i = 0; i < sizeof forced / sizeof *forced; i++)
        if (json_object_get(now, forced[i]))
            json_object_set(both, forced[i], json_object_get(now, forced[i]));
    if (c->has_vision && old && !json_object_get(old, "mm_vision_tower")) { /* a plain model got eyes */
        json_object_set(both, "model_type", json_object_get(now, "model_type"));
        json_object_set(both, "architectures", json_object_get(now, "architectures"));
    }
    if (old && json_object_get(both, "dtype"))
        json_object_del(both, "dtype"); /* transformers 5's name of torch_dtype */
    if (o->config) json_object_update(both, (json_t *)o->config);
    json_decref(now);
    return both;
}

static json_t *config_hf(const struct llava_config *c, const struct save_options *o)
{
    bool five = o->naming == NAMING_HF5, next = c->aspect == ASPECT_ANYRES;
    const char *dtype_key = five ? "dtype" : "torch_dtype",
               *dtype = torch_name(o->keep_dtype ? c->dtype : o->dtype);
    json_t *top = json_object(), *text = json_object(), *vision = json_object();
    int vocab = o->vocab ? o->vocab : c->llama.V;
    put_architecture(text, c->mistral ? "MistralForCausalLM" : "LlamaForCausalLM");
    put_str(text, "model_type", c->mistral ? "mistral" : "llama");
    put_llama(text, c, vocab, five);
    put_str(text, dtype_key, dtype);
    put_clip(vision, &c->clip);
    put_architecture(top, next ? "LlavaNextForConditionalGeneration" : "LlavaForConditionalGeneration");
    put_str(top, "model_type", next ? "llava_next" : "llava");
    put_int(top, "ignore_index", -100);
    put_int(top, "image_token_index", o->image);
    put_int(top, "image_seq_length", clip_patches(&c->clip) + c->select_cls);
    put_int(top, "pad_token_id", o->pad);
    put_str(top, "projector_hidden_act", "gelu");
    put_bool(top, "multimodal_projector_bias", true);
    put_int(top, "vision_feature_layer", c->select_layer);
    put_str(top, "vision_feature_select_strategy", c->select_cls ? "full" : "default");
    put_bool(top, "tie_word_embeddings", c->llama.tied);
    put_str(top, dtype_key, dtype);
    if (next) {
        put_bool(top, "use_image_newline_parameter", true);
        put_pinpoints(top, &c->pinpoints, true);
    } else {
        put_str(top, "image_aspect_ratio", aspects[c->aspect]);
        put_int(top, "vocab_size", vocab);
    }
    json_object_set_new(top, "text_config", text);
    json_object_set_new(top, "vision_config", vision);
    return top;
}

json_t *save_config(const struct llava_config *c, const struct save_options *o, const char *tower,
                    const json_t *old)
{
    return o->naming == NAMING_LLAVA ? config_llava(c, o, tower, old) : config_hf(c, o);
}

json_t *save_clip_config(const struct clip_config *c, enum dtype dtype)
{
    json_t *o = json_object();
    put_architecture(o, "CLIPVisionModel");
    put_clip(o, c);
    put_str(o, "torch_dtype", torch_name(dtype));
    return o;
}

json_t *save_processor_config(const struct clip_config *c)
{
    struct clip_processor p;
    clip_processor_default(&p, c->image);
    return json_pack("{s:s,s:b,s:b,s:b,s:b,s:b,s:{s:i},s:{s:i,s:i},s:i,s:[f,f,f],s:[f,f,f],s:f}",
                     "image_processor_type", "CLIPImageProcessor", "do_resize", 1, "do_center_crop", 1,
                     "do_rescale", 1, "do_normalize", 1, "do_convert_rgb", 1, "size", "shortest_edge",
                     p.shortest, "crop_size", "height", p.crop_h, "width", p.crop_w, "resample", 3,
                     "image_mean", p.mean[0], p.mean[1], p.mean[2], "image_std", p.std[0], p.std[1], p.std[2],
                     "rescale_factor", p.scale);
}

/* Names of the linears that have adapters, each once: "q_proj", ... */
struct targets {
    json_t *list;
    struct err none;
};

static int add_target(void *ctx, const struct bind_row *r, struct err *e)
{
    struct targets *t = ctx;
    char name[NAME_MAX_BYTES];
    size_t i;
    json_t *v;
    (void)e;
    if (!r->linear || !r->linear->lora) return 0;
    snprintf(name, sizeof name, "%.*s", (int)(strlen(r->name) - strlen(".weight")), r->name);
    const char *dot = strrchr(name, '.'), *last = dot ? dot + 1 : name;
    json_array_foreach(t->list, i, v) if (!strcmp(json_string_value(v), last)) return 0;
    json_array_append_new(t->list, json_string(last));
    return 0;
}

json_t *save_adapter_config(const struct llava_model *m, const struct save_lora *l)
{
    struct targets t = { .list = json_array() };
    llava_each((struct llava_model *)m, add_target, &t, &t.none);
    return json_pack("{s:{},s:n,s:s,s:s,s:b,s:b,s:b,s:n,s:n,s:{},s:o,s:o,s:n,s:s,s:n,s:s,s:i,s:{},s:n,s:o,s:s,s:b,s:b}",
                     "alpha_pattern", "auto_mapping", "base_model_name_or_path", l->base, "bias", l->bias,
                     "fan_in_fan_out", 0, "inference_mode", 1, "init_lora_weights", 1, "layers_pattern",
                     "layers_to_transform", "loftq_config", "lora_alpha", whole(l->alpha), "lora_dropout",
                     real(l->dropout), "megatron_config", "megatron_core", "megatron.core", "modules_to_save",
                     "peft_type", "LORA", "r", l->rank, "rank_pattern", "revision", "target_modules", t.list,
                     "task_type", "CAUSAL_LM", "use_dora", 0, "use_rslora", 0);
}

json_t *save_added_token(const char *text)
{
    return json_pack("{s:s,s:b,s:b,s:b,s:b,s:b}", "content", text, "lstrip", 0, "normalized", 0, "rstrip", 0,
                     "single_word", 0, "special", 1);
}
