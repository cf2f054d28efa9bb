/* Opening a model: which folder is what, and what of it goes where. Values are fill.c's, adapters lora.c's. See
 * llava.h, load.h. */
#define _GNU_SOURCE
#include "model/load.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "model/fill.h"

enum { SMALL_MODEL = 256 << 20 }; /* bytes under which exact f32 products cost nothing that anyone notices */

static void choose_dtype(struct llava_model *m, const struct llava_source *s, const struct index *ix)
{
    const struct weight *embed = index_find(ix, "model.embed_tokens.weight");
    size_t bytes = 0;
    for (int i = 0; i < m->n_weights; i++) bytes += weights_bytes(m->weights[i]);
    m->dtype = s->dtype;
    m->bits = s->bits ? s->bits : m->cfg.bits;
    if (!s->auto_dtype) return;
    enum dtype stored = embed && dtype_is_float((enum dtype)embed->t.type) ? (enum dtype)embed->t.type : m->cfg.dtype;
    m->dtype = (m->dev || bytes >= SMALL_MODEL) && (stored == DT_BF16 || stored == DT_F16) ? stored : DT_F32;
}

/* ---- folders */

bool model_has_file(const char *dir, const char *name)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return access(path, F_OK) == 0;
}

static bool weights_present(const char *dir)
{
    static const char *const names[] = { "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
                                         "pytorch_model.bin.index.json" };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (model_has_file(dir, names[i])) return true;
    return false;
}

static int add_file(struct llava_model *m, struct index *ix, const char *dir, const char *name, struct err *e)
{
    char path[4096];
    snprintf(path, sizeof path, name ? "%s/%s" : "%s", dir, name);
    ASSERT(m->n_weights < WEIGHTS_SETS);
    int rc = weights_open(&m->weights[m->n_weights], path, e);
    return rc < 0 ? rc : index_add(ix, m->weights[m->n_weights++], e);
}

/* A tower in or beside dir, by its whole or its last name, or as save.h's tower_config leaves it. */
static bool tower_near(char *path, size_t size, const char *dir, const char *name)
{
    const char *slash = strrchr(name, '/'), *last = slash && slash[1] ? slash + 1 : name;
    const char *parts[][2] = { { "", name }, { "../", name }, { "", last }, { "../", last }, { "", "vision_tower" } };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        snprintf(path, size, "%s/%s%s", dir, parts[i][0], parts[i][1]);
        if (*parts[i][1] && model_has_file(path, "config.json")) return true;
    }
    return false;
}

/* The tower's folder: as given, near the model's folder or its base's, or through the hub. */
static int find_tower(struct llava_model *m, const struct llava_source *s, struct err *e)
{
    const char *name = s->clip_path ? s->clip_path : m->cfg.tower;
    char path[4096];
    snprintf(path, sizeof path, "%s", name);
    if ((*name && model_has_file(name, "config.json")) || tower_near(path, sizeof path, s->path, name) ||
        (s->base && tower_near(path, sizeof path, s->base, name)))
        return (m->clip_dir = strdup(path)) ? 0 : err_set(e, ERR_NOMEM, "no memory for a path");
    if (s->locate && *name && *name != '.' && *name != '/') {
        int rc = s->locate(&m->clip_dir, name, e);
        return rc < 0 ? err_prefix(e, "the vision tower '%s'", name), rc : 0;
    }
    if (s->clip_path || (s->vision && s->vision->tower)) return err_set(e, ERR_MISSING, "no vision tower '%s'", name);
    return err_set(e, ERR_MISSING, "no vision tower '%s' (config.json of '%s' names it; --vision-tower sets another)",
                   name, s->path);
}

/* A tower saved with the model, whose own config.json is out of reach: its shapes tell all but the head size, which is
 * 64 in the CLIP towers up to ViT-L; of others nothing is guessed. */
static int clip_from_shapes(struct llava_config *c, const struct index *ix, struct err *e)
{
    const struct weight *patch = index_find(ix, "vision_model.embeddings.patch_embedding.weight");
    const struct weight *pos = index_find(ix, "vision_model.embeddings.position_embedding.weight");
    const struct weight *fc1 = index_find(ix, "vision_model.encoder.layers.0.mlp.fc1.weight");
    if (!patch || !pos || !fc1 || patch->t.nd != 4 || pos->t.nd != 2 || fc1->t.nd != 2 || pos->t.n[0] < 2)
        return err_set(e, ERR_MISSING, "the checkpoint's vision tower is not whole and '%s' is not there", c->tower);
    int64_t width = patch->t.n[0], p = patch->t.n[2], side = (int64_t)lround(sqrt((double)(pos->t.n[0] - 1)));
    if (width < 64 || width > 1024 || width % 64 || p < 1 || p > 64 || side < 1 || side > 256 || fc1->t.n[0] > 1 << 16)
        return err_set(
            e, ERR_MISSING,
            "the checkpoint holds a vision tower but '%s', which says how it is built, is not there "
            "(--vision-tower gives its folder)",
            c->tower);
    log_warn("'%s' is not there: the vision tower in the checkpoint is taken for a CLIP with heads of 64", c->tower);
    int layers = 0;
    for (char name[NAME_MAX_BYTES];; layers++) {
        snprintf(name, sizeof name, "vision_model.encoder.layers.%d.mlp.fc1.weight", layers);
        if (!index_find(ix, name)) break;
    }
    c->clip = (struct clip_config){ (int)width,      (int)fc1->t.n[0], layers, (int)width / 64,
                                    (int)(side * p), (int)p,           1e-5f,  true };
    return 0;
}

static bool tower_inside(const struct index *ix)
{
    return index_find(ix, "vision_model.embeddings.class_embedding") != NULL;
}

/* Must the tower be opened? Not when its name is enough from wherever the model will be: it is a fixed place or on the
 * hub, and nothing of it changes. */
static bool tower_wanted(struct llava_model *m, const struct llava_source *s, const struct index *ix,
                         const struct lora_set *lora)
{
    const struct llava_config *c = &m->cfg;
    const char *name = s->clip_path ? s->clip_path : c->tower;
    if (!s->tower_by_name || c->has_clip || !c->mm_hidden || tower_inside(ix)) return true;
    for (size_t i = 0; i < lora->n; i++)
        if (!strncmp(lora->pair[i].name, "vision_model.", 13)) return true;
    if (*name == '/' && model_has_file(name, "config.json")) return false;
    if (s->clip_path && (*name == '/' || *name == '.')) return true; /* or it is not there, which is said */
    struct llava_source here = { .path = s->path, .base = s->base, .clip_path = s->clip_path };
    bool found = find_tower(m, &here, NULL) >= 0;
    free(m->clip_dir);
    m->clip_dir = NULL;
    return found;
}

int model_open_tower(struct llava_model *m, const struct llava_source *s, struct index *ix, struct err *e)
{
    if (m->cfg.hf_layout && s->clip_path)
        return err_set(e, ERR_USAGE, "'%s' has its vision tower inside: another one ('%s') cannot be given", s->path,
                       s->clip_path);
    bool inside = tower_inside(ix);
    int rc = 0;
    m->tower_inside = inside;
    if (!m->cfg.has_clip) {
        struct err why = { 0 };
        rc = find_tower(m, s, &why);
        if (rc >= 0) rc = clip_config_load(&m->cfg.clip, m->clip_dir, e);
        else if (inside) rc = clip_from_shapes(&m->cfg, ix, e);
        else if (e) *e = why;
        if (rc >= 0 && !inside) rc = add_file(m, ix, m->clip_dir, NULL, e);
        m->cfg.has_clip = rc >= 0;
    }
    return rc;
}

int model_check_vision(struct llava_model *m, const char *path, struct err *e)
{
    struct llava_config *c = &m->cfg;
    if (clip_layers_used(&c->clip, c->select_layer) < 0)
        return err_set(e, ERR_SHAPE, "'%s': the vision tower has %d layers, no hidden state %d", path, c->clip.L,
                       c->select_layer);
    if (c->select_cls && c->aspect == ASPECT_ANYRES)
        return err_set(e, ERR_UNSUPPORTED, "'%s': the class token cannot be kept with any-resolution pictures", path);
    if (!c->mm_hidden) c->mm_hidden = c->clip.C;
    if (c->mm_hidden != c->clip.C)
        return err_set(e, ERR_SHAPE, "'%s': mm_hidden_size is %d, the vision tower's width %d", path, c->mm_hidden,
                       c->clip.C);
    if (!c->n_projector && c->clip.C != c->llama.C)
        return err_set(e, ERR_SHAPE, "'%s': an identity projector cannot turn width %d into %d", path, c->clip.C,
                       c->llama.C);
    return 0;
}

int model_make_layers(struct llava_model *m, struct err *e)
{
    m->llama.cfg = m->cfg.llama;
    m->clip.cfg = m->cfg.clip;
    m->llama.layer = calloc((size_t)m->cfg.llama.L, sizeof *m->llama.layer);
    m->clip.layer = m->cfg.has_clip ? calloc((size_t)m->cfg.clip.L, sizeof *m->clip.layer) : NULL;
    if (!m->llama.layer || (m->cfg.has_clip && !m->clip.layer)) return err_set(e, ERR_NOMEM, "no memory for the model");
    return 0;
}

/* What was trained with an adapter and is none: LLaVA's training leaves it beside the adapter. */
int model_add_beside(struct llava_model *m, struct index *ix, const char *dir, struct err *e)
{
    static const char *const files[] = { "non_lora_trainables.bin", "non_lora_trainables.safetensors" };
    int rc = 0;
    for (int i = 0; i < 2 && rc >= 0; i++)
        if (model_has_file(dir, files[i])) rc = add_file(m, ix, dir, files[i], e);
    return rc;
}

/* Is the language model's folder quantised? What other programs leave when they merge adapters that were trained over
 * quantised weights says so in its config.json, but is not. */
static int read_bits(struct llava_model *m, const struct index *ix, const char *dir, struct err *e)
{
    struct err why = { 0 };
    const struct weight *w = index_find(ix, "model.layers.0.self_attn.q_proj.weight");
    const int rc = llava_config_bits(&m->cfg.bits, dir, &why);
    if (rc == ERR_UNSUPPORTED && w && dtype_is_float((enum dtype)w->t.type)) {
        log_warn("'%s/config.json' says that the weights are quantised; they are %s and are read so", dir,
                 dtype_name((enum dtype)w->t.type));
        return 0;
    }
    if (rc < 0 && e) *e = why;
    return rc;
}

/* What kind of folder: the files in it say. */
int model_open_files(struct llava_model *m, const struct llava_source *s, struct index *ix, struct lora_set *lora,
                      struct err *e)
{
    bool adapter = model_has_file(s->path, "adapter_config.json");
    bool projector = !adapter && (s->base || !weights_present(s->path)) && model_has_file(s->path, "mm_projector.bin");
    int rc = 0;
    if ((adapter || projector) && !s->base) {
        char name[512] = "its base model";
        if (adapter) lora_base_name(s->path, name, sizeof name);
        return err_set(e, ERR_USAGE, "'%s' holds only %s: give the base model with --model-base (%s)", s->path,
                       adapter ? "a LoRA adapter" : "a projector", name);
    }
    if (!adapter && !projector && s->base)
        return err_set(e, ERR_USAGE, "'%s' is neither an adapter nor a projector, so --model-base '%s' has no use",
                       s->path, s->base);
    TRY(llava_config_load(&m->cfg, model_has_file(s->path, "config.json") || !s->base ? s->path : s->base, e));
    TRY(add_file(m, ix, s->base ? s->base : s->path, NULL, e));
    TRY(read_bits(m, ix, s->base ? s->base : s->path, e));
    if (projector) TRY(add_file(m, ix, s->path, "mm_projector.bin", e));
    if (adapter) TRY(model_add_beside(m, ix, s->path, e));
    if (adapter) TRY(lora_open(lora, s->path, e));
    if (adapter) TRY(index_rest(ix, lora, e));
out:
    return rc;
}

/* Hands the adapters to the model, for whoever merges them one at a time. */
static int keep_lora(struct llava_model *m, struct lora_set *lora, struct err *e)
{
    m->lora = malloc(sizeof *m->lora);
    if (!m->lora) return err_set(e, ERR_NOMEM, "no memory for an adapter");
    *m->lora = *lora;
    *lora = (struct lora_set){ 0 };
    return 0;
}

/* Gives a language model a tower and a projector, or a LLaVA other settings of them. */
static int add_vision(struct llava_model *m, const struct llava_vision *v, struct index *projector, struct err *e)
{
    struct llava_config *c = &m->cfg;
    c->select_layer = v->select_layer;
    c->select_cls = v->select_cls;
    if (!c->has_vision) {
        c->has_vision = true;
        c->n_projector = v->n_projector;
        c->merge = v->merge;
    } else if (c->n_projector != v->n_projector) {
        log_info("the model has a projector of %d linears and keeps it", c->n_projector);
    }
    if (c->hf_layout && v->tower) log_warn("the model has its vision tower inside: '%s' is not read", v->tower);
    if (!c->hf_layout && v->tower) snprintf(c->tower, sizeof c->tower, "%s", v->tower);
    return v->projector ? add_file(m, projector, v->projector, NULL, e) : 0;
}

/* Gives a language model the tower that adapters beside it were trained with, and how pictures are cut for it. */
static int add_sight(struct llava_model *m, const char *dir, struct err *e)
{
    struct llava_config *c = &m->cfg, with;
    int rc = llava_config_load(&with, dir, e);
    if (rc < 0) return rc;
    m->no_projector = c->has_vision = with.has_vision;
    memcpy(c->tower, with.tower, sizeof c->tower);
    c->n_projector = with.n_projector;
    c->mm_hidden = with.mm_hidden;
    c->select_layer = with.select_layer;
    c->select_cls = with.select_cls;
    c->aspect = with.aspect;
    c->merge = with.merge;
    c->pinpoints = with.pinpoints;
    c->text_max = with.text_max;
    return 0;
}

int llava_model_open(struct llava_model *m, const struct llava_source *s, struct err *e)
{
    *m = (struct llava_model){ .dev = s->dev };
    struct llava_source sight = *s; /* where the tower is looked for */
    struct index ix = { 0 }, projector = { 0 };
    struct lora_set lora = { 0 };
    int rc;
    TRY(model_open_files(m, s, &ix, &lora, e));
    if (s->text_only) m->cfg.has_vision = m->cfg.has_clip = false;
    if (s->vision) TRY(add_vision(m, s->vision, &projector, e));
    if (s->sees_as && !m->cfg.has_vision) TRY(add_sight(m, s->sees_as, e));
    if (m->no_projector) sight.path = s->sees_as;
    if (m->cfg.has_vision && tower_wanted(m, &sight, &ix, &lora)) {
        TRY(model_open_tower(m, &sight, &ix, e));
        TRY(model_check_vision(m, sight.path, e));
    }
    TRY(model_make_layers(m, e));
    choose_dtype(m, s, &ix);
    TRY(bind_all(m, s, &ix, &projector, &lora, e));
    TRY(lora_check_used(&lora, s->path, e));
    if (s->unmerged && lora.n) TRY(keep_lora(m, &lora, e));
    if (lora.n_rest) { /* parameters view its file */
        ASSERT(m->n_weights < WEIGHTS_SETS);
        m->weights[m->n_weights++] = lora.weights;
        lora.weights = NULL;
    }
out:
    lora_close(&lora);
    free(ix.at);
    free(projector.at);
    if (rc < 0) llava_model_close(m);
    return rc;
}

static int free_served(void *ctx, const struct bind_row *r, struct err *e)
{
    (void)ctx, (void)e;
    if (r->linear) free((void *)r->linear->served);
    return 0;
}

void llava_model_close(struct llava_model *m)
{
    if (m->n_adapters) llava_each(m, free_served, NULL, NULL);
    free(m->llama.layer);
    free(m->clip.layer);
    free(m->clip_dir);
    if (m->lora) lora_close(m->lora);
    free(m->lora);
    for (int i = 0; i < m->n_weights; i++) weights_close(m->weights[i]);
    arena_fini(&m->own);
    arena_fini(&m->own_more);
    *m = (struct llava_model){ 0 };
}

int llava_model_context(struct llava_model *m, int n, struct err *e)
{
    arena_fini(&m->own_more);
    struct tensor t = tensor_2d(NULL, DT_F32, n, m->cfg.llama.D);
    float *host = malloc(tensor_bytes(t));
    if (!host) return err_set(e, ERR_NOMEM, "no memory for %d positions", n);
    int rc = dev_arena(&m->own_more, m->dev, tensor_bytes(t) + ARENA_ALIGN, e);
    if (rc >= 0) {
        t.p = arena_take(&m->own_more, tensor_bytes(t));
        llama_rope_table(&m->cfg.llama, host, n);
        dev_put(m->dev, t.p, host, tensor_bytes(t));
        m->llama.rope = t;
    }
    free(host);
    return rc;
}
