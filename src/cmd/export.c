/* See export.h. */
#include "cmd/export.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/size.h"
#include "file/hub.h"

enum { VOCAB_MULTIPLE = 64 }; /* transformers' convert_llava_weights_to_hf.py: pad_shape */

/* What is open while a model is written. */
struct job {
    const struct export *x;
    struct llava_model m;
    struct tokenizer *tok; /* NULL: the folders have none */
    char *dir, *base;
    const char *dirs[2]; /* the base's folder and the model's, or the model's alone */
    struct save_options save;
};

/* "keep", "f32", "f16", "bf16" and torch's names; -1: none of them. */
static int read_dtype(bool *keep, enum dtype *ret, const char *text)
{
    *keep = !strcmp(text, "keep");
    if (*keep) return 0;
    return dtype_find(text, ret) < 0 || (*ret != DT_F32 && *ret != DT_F16 && *ret != DT_BF16) ? -1 : 0;
}

error_t export_option(struct export *x, int key, char *arg, struct argp_state *state)
{
    switch (key) {
    case EXPORT_PATH: x->path = arg; break;
    case EXPORT_BASE: x->base = arg; break;
    case EXPORT_TOWER: x->tower = arg; break;
    case EXPORT_OUT: x->out = arg; break;
    case EXPORT_DTYPE:
        if (read_dtype(&x->keep_dtype, &x->dtype, arg) < 0)
            argp_error(state, "--dtype wants keep, f32, f16 or bf16, not '%s'", arg);
        break;
    case EXPORT_SHARD:
        if (!size_read(&x->shard_bytes, arg))
            argp_error(state, "--max-shard-size wants a size such as 5GB, not '%s'", arg);
        break;
    case EXPORT_QUIET: log_set_level(LOG_QUIET); break;
    case ARGP_KEY_ARG: argp_error(state, "unexpected argument '%s'", arg); break;
    default: return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

static int locate(char **dir, const char *name, struct err *e)
{
    return hub_find(dir, name, NULL, e);
}

static int open_model(struct job *j, struct err *e)
{
    const struct export *x = j->x;
    int rc;
    TRY(hub_find(&j->dir, x->path, NULL, e));
    if (x->base) TRY(hub_find(&j->base, x->base, NULL, e));
    struct llava_source s = { .path = j->dir,
                              .base = j->base,
                              .clip_path = x->tower,
                              .locate = locate,
                              .keep_dtype = true,
                              .unmerged = true };
    s.tower_by_name = x->projector_only || x->keep_naming || (x->naming == NAMING_LLAVA && !x->with_tower);
    TRY(llava_model_open(&j->m, &s, e));
    if (j->m.bits)
        TRY(err_set(e, ERR_UNSUPPORTED, "'%s' is quantised: give the weights that it was made from",
                    x->base ? x->base : x->path));
    j->dirs[0] = j->base ? j->base : j->dir;
    j->dirs[1] = j->base ? j->dir : NULL;
    struct err none;
    if (tokenizer_open(&j->tok, j->dir, &none) < 0 && j->base && tokenizer_open(&j->tok, j->base, &none) < 0)
        j->tok = NULL;
out:
    return rc;
}

/* LLaVA's layout: where the tower goes. One inside the checkpoint leaves its configuration beside it, for what
 * mm_vision_tower names may be in reach of the old folder alone. */
static void choose_tower(struct job *j)
{
    struct save_options *o = &j->save;
    const struct llava_model *m = &j->m;
    const struct llava_config *c = &m->cfg;
    const char *name = j->x->tower ? j->x->tower : c->tower;
    const bool as_it_was = m->tower_inside && !c->hf_layout;
    if (!c->has_clip) { /* its name is enough */
        if (*name == '.' || (*name == '/' && access(name, F_OK) != 0))
            log_warn("there is no vision tower '%s', which '%s' will want", name, j->x->out);
    } else if ((j->x->with_tower || as_it_was) && !j->x->projector_only) {
        o->tower_inside = o->tower_config = true;
    } else {
        o->tower_beside = true;
    }
}

/* Tokens <image> and <pad> at the end, and rows for them. */
static int add_tokens(struct job *j, struct err *e)
{
    const struct llava_config *c = &j->m.cfg;
    if (!j->tok)
        return err_set(e, ERR_MISSING,
                       "'%s' has no tokenizer: transformers' layout needs one for the token <image>",
                       j->dirs[0]);
    const struct tokenizer_info *info = tokenizer_info(j->tok);
    int next = info->size, image = info->image, pad = tokenizer_find(j->tok, "<pad>");
    if (image < 0) image = next++;
    if (pad < 0) pad = next++;
    int need = (image > pad ? image : pad) + 1;
    j->save.image = image;
    j->save.pad = pad;
    if (need > c->llama.V) j->save.vocab = (need + VOCAB_MULTIPLE - 1) / VOCAB_MULTIPLE * VOCAB_MULTIPLE;
    if (c->im_start_end)
        log_warn("the model expects <im_start> and <im_end> around pictures, which transformers does not put "
                 "there");
    return 0;
}

/* Rows that only stand for <image>, <pad> and padding: they are the last. */
static void drop_tokens(struct job *j)
{
    if (!j->m.cfg.hf_layout || !j->tok) return;
    const struct tokenizer_info *info = tokenizer_info(j->tok);
    int pad = tokenizer_find(j->tok, "<pad>"), n = 1 + (pad >= 0), first = info->image;
    if (first < 0) return;
    if (pad >= 0 && pad < first) first = pad;
    if (info->size - first == n && first < j->m.cfg.llama.V) j->save.vocab = first;
}

static int more_files(void *ctx, struct saver *s, struct err *e)
{
    struct job *j = ctx;
    if (j->save.naming == NAMING_LLAVA) return export_tokens_drop(s, j->dirs, e);
    return export_tokens_add(s, j->dirs, j->tok, j->save.image, j->save.pad, &j->m.cfg, e);
}

enum naming export_naming(const struct llava_model *m)
{
    if (!m->cfg.hf_layout) return NAMING_LLAVA;
    for (size_t i = 0; i < weights_count(m->weights[0]); i++)
        if (!strncmp(weights_at(m->weights[0], i)->name, "vision_tower.vision_model.", 26)) return NAMING_HF;
    return NAMING_HF5;
}

static int choose(struct job *j, struct err *e)
{
    const struct export *x = j->x;
    struct save_options *o = &j->save;
    *o = (struct save_options){ .dir = x->out,
                                .naming = x->keep_naming ? export_naming(&j->m) : x->naming,
                                .what = x->projector_only ? SAVE_PROJECTOR : SAVE_MODEL,
                                .keep_dtype = x->keep_dtype,
                                .dtype = x->dtype,
                                .shard_bytes = x->shard_bytes,
                                .bits = x->bits,
                                .side_dirs = { j->dirs[0], j->dirs[1] },
                                .ctx = j };
    if (o->naming != NAMING_LLAVA) {
        o->more = more_files;
        return add_tokens(j, e);
    }
    if (j->m.cfg.has_vision) choose_tower(j);
    if (!x->projector_only) drop_tokens(j);
    if (o->vocab) o->more = more_files;
    char path[4096];
    snprintf(path, sizeof path, "%s/config.json", j->dir);
    o->config_dir = j->m.cfg.hf_layout ? NULL : access(path, F_OK) == 0 ? j->dir : j->base;
    if (x->tower) snprintf(j->m.cfg.tower, sizeof j->m.cfg.tower, "%s", x->tower);
    return 0;
}

int export_model(const struct export *x, struct err *e)
{
    struct job j = { .x = x };
    int rc;
    TRY(save_dir_check(x->out, e)); /* before anything is downloaded */
    TRY(open_model(&j, e));
    TRY(choose(&j, e));
    if (x->bits && j.save.vocab)
        TRY(err_set(e, ERR_UNSUPPORTED, "'%s' has fewer rows than tokens: 'llava convert' first", x->path));
    TRY(llava_model_save(&j.m, &j.save, e));
out:
    tokenizer_close(j.tok);
    llava_model_close(&j.m);
    free(j.dir);
    free(j.base);
    return rc;
}

int export_command(const struct argp *argp, int argc, char **argv)
{
    struct export x = { .keep_naming = true, .keep_dtype = true };
    int rc = cmd_parse(argp, argc, argv, &x);
    if (rc) return rc;
    struct err e = { 0 };
    rc = export_model(&x, &e);
    return rc < 0 ? cmd_fail(e.msg) : 0;
}
