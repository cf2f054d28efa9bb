/* See projector.h. */
#include "model/projector.h"

#include <stdlib.h>
#include <string.h>

#include "model/fill.h"
#include "model/load.h"

/* Was the adapter trained with pictures as this model gets them? */
static int check_sight(const struct llava_config *have, const char *dir, struct err *e)
{
    struct llava_config c;
    int rc = model_has_file(dir, "config.json") ? llava_config_load(&c, dir, e) : 1;
    if (rc) return rc < 0 ? rc : 0;
    if (!c.has_vision || !have->has_vision) return 0;
    const struct { const char *key; bool same; } rows[] = {
        { "mm_projector_type", c.n_projector == have->n_projector },
        { "mm_vision_select_layer", c.select_layer == have->select_layer },
        { "mm_vision_select_feature", c.select_cls == have->select_cls },
        { "image_aspect_ratio", c.aspect == have->aspect },
        { "mm_patch_merge_type", c.merge == have->merge },
        { "image_grid_pinpoints", c.aspect != ASPECT_ANYRES || c.aspect != have->aspect ||
                                      !memcmp(&c.pinpoints, &have->pinpoints, sizeof c.pinpoints) },
        { "mm_use_im_start_end", c.im_start_end == have->im_start_end },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (!rows[i].same)
            return err_set(e, ERR_UNSUPPORTED, "'%s/config.json' has another '%s' than the model: merge the adapter",
                           dir, rows[i].key);
    return 0;
}

int projector_open(struct own_projector *p, const struct llava_model *m, const struct lora_set *set, const char *dir,
                   struct err *e)
{
    struct llava_source s = { .path = dir, .bits = m->bits, .dev = m->dev };
    struct llava_model view = *m; /* the same shapes, types and device, but another projector and its own memory */
    struct index ix = { 0 };
    int rc;
    view.projector = (struct projector){ 0 };
    view.no_projector = false;
    view.n_weights = 0;
    view.own = (struct arena){ 0 };
    TRY(check_sight(&m->cfg, dir, e));
    TRY(model_add_beside(&view, &ix, dir, e));
    TRY(index_rest(&ix, set, e));
    if (!ix.n) goto out;
    for (size_t i = 0; i < ix.n; i++)
        if (strncmp(ix.at[i].name, "model.mm_projector", 18) != 0 && strcmp(ix.at[i].name, "model.image_newline") != 0)
            TRY(err_set(e, ERR_UNSUPPORTED, "'%s' of '%s' was trained with the adapter and is no part of a projector: "
                        "merge it", ix.at[i].w->name, ix.at[i].w->file));
    if (!m->cfg.has_vision)
        TRY(err_set(e, ERR_UNSUPPORTED, "it has a projector, but the model reads no pictures and no config.json of an "
                                        "adapter says how it might"));
    TRY(bind_projector(&view, &s, &ix, e));
    p->projector = view.projector;
    p->there = true;
out:
    free(ix.at);
    memcpy(p->weights, view.weights, sizeof p->weights);
    p->n_weights = view.n_weights;
    p->mem = view.own;
    return rc;
}

void projector_close(struct own_projector *p)
{
    for (int i = 0; i < p->n_weights; i++) weights_close(p->weights[i]);
    arena_fini(&p->mem);
    *p = (struct own_projector){ 0 };
}
