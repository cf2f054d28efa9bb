/* Names of tensors in the schemes that exist, and between them. See llava.h; the schemes are listed in MODEL.md. */
#include <stdio.h>
#include <string.h>

#include "model/llava.h"

struct rule { const char *from, *to; };

/* Prefixes, first match wins: longer ones stand before what they begin with. */
static const struct rule prefixes[] = {
    { "model.language_model.", "model." },               /* transformers >= 4.52 in memory */
    { "language_model.model.", "model." },               /* llava-hf */
    { "language_model.lm_head.", "lm_head." },
    { "model.vision_tower.vision_tower.", "" },          /* LLaVA, tower saved with the model */
    { "model.vision_tower.vision_model.", "vision_model." },
    { "model.vision_tower.", "vision_model." },
    { "vision_tower.vision_model.", "vision_model." },   /* llava-hf */
    { "vision_tower.", "vision_model." },                /* what transformers 5 writes */
    { "embeddings.", "vision_model.embeddings." },       /* a tower alone, as transformers 5 writes it */
    { "encoder.layers.", "vision_model.encoder.layers." },
    { "pre_layrnorm.", "vision_model.pre_layrnorm." },
    { "post_layernorm.", "vision_model.post_layernorm." },
    { "model.multi_modal_projector.linear_1.", "model.mm_projector.0." },
    { "model.multi_modal_projector.linear_2.", "model.mm_projector.2." },
    { "multi_modal_projector.linear_1.", "model.mm_projector.0." },
    { "multi_modal_projector.linear_2.", "model.mm_projector.2." },
    { "mm_projector.", "model.mm_projector." },
    { "image_newline", "model.image_newline" },
};

static const char *const ignored_parts[] = { "rotary_emb.inv_freq", "position_ids", "text_model.", "text_projection",
                                             "visual_projection", "logit_scale" };

int name_canonical(char *out, size_t size, const char *name)
{
    for (size_t i = 0; i < sizeof ignored_parts / sizeof *ignored_parts; i++)
        if (strstr(name, ignored_parts[i])) return -1;
    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++) {
        size_t n = strlen(prefixes[i].from);
        if (strncmp(name, prefixes[i].from, n) != 0) continue;
        snprintf(out, size, "%s%s", prefixes[i].to, name + n);
        return 0;
    }
    snprintf(out, size, "%s", name);
    return 0;
}

static const struct rule to_llava[] = { { "vision_model.", "model.vision_tower.vision_tower.vision_model." } };
static const struct rule to_hf[] = {
    { "model.mm_projector.0.", "multi_modal_projector.linear_1." },
    { "model.mm_projector.2.", "multi_modal_projector.linear_2." },
    { "model.image_newline", "image_newline" },
    { "vision_model.", "vision_tower.vision_model." },
    { "model.", "language_model.model." },
    { "lm_head.", "language_model.lm_head." },
};
static const struct rule to_hf5[] = {
    { "model.mm_projector.0.", "multi_modal_projector.linear_1." },
    { "model.mm_projector.2.", "multi_modal_projector.linear_2." },
    { "model.image_newline", "image_newline" },
    { "vision_model.", "vision_tower." },
    { "model.", "language_model.model." },
    { "lm_head.", "language_model.lm_head." },
};
static const struct { const struct rule *rules; size_t n; } schemes[] = {
    [NAMING_LLAVA] = { to_llava, sizeof to_llava / sizeof *to_llava },
    [NAMING_HF] = { to_hf, sizeof to_hf / sizeof *to_hf },
    [NAMING_HF5] = { to_hf5, sizeof to_hf5 / sizeof *to_hf5 },
};

void name_in(enum naming to, char *out, size_t size, const char *canonical)
{
    for (size_t i = 0; i < schemes[to].n; i++) {
        const struct rule *r = &schemes[to].rules[i];
        size_t n = strlen(r->from);
        if (strncmp(canonical, r->from, n) != 0) continue;
        snprintf(out, size, "%s%s", r->to, canonical + n);
        return;
    }
    snprintf(out, size, "%s", canonical);
}
