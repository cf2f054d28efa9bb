/* See checkpoint.h. A model's files are model/save.c's; here is what stands beside them, and the folders. */
#define _GNU_SOURCE
#include "train/checkpoint.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "file/json.h"
#include "file/out.h"
#include "train/report.h"
#include "train/tokens.h"

enum { FORMAT = 1, PATH_BYTES = 4096 };
static const char resume_file[] = "resume.json", tensors_file[] = "resume.safetensors";
static const char state_file[] = "trainer_state.json";
static const char *const kinds[] = { [TRAIN_PROJECTOR] = "projector", [TRAIN_LORA] = "LoRA", [TRAIN_FULL] = "full" };

static int path_put(char *path, const char *dir, const char *file, struct err *e)
{
    if (snprintf(path, PATH_BYTES, "%s/%s", dir, file) < PATH_BYTES) return 0;
    return err_set(e, ERR_USAGE, "'%.100s...' is too long for a path", dir);
}

/* ---- folders of a run */

/* The number in "checkpoint-12TAIL", -1: another name. */
static int64_t number_of(const char *name, const char *tail)
{
    int64_t n = 0;
    if (strncmp(name, "checkpoint-", 11) != 0 || !isdigit((unsigned char)name[11])) return -1;
    for (name += 11; isdigit((unsigned char)*name); name++) {
        if (n > INT64_MAX / 10 - 1) return -1;
        n = 10 * n + (*name - '0');
    }
    return strcmp(name, tail) ? -1 : n;
}

static int order(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Numbers of the folders checkpoint-NTAIL in dir, rising; none if dir cannot be read. The caller frees. */
static size_t list(int64_t **ret, const char *dir, const char *tail)
{
    size_t n = 0;
    DIR *f = opendir(dir);
    *ret = NULL;
    for (struct dirent *d; f && (d = readdir(f));) {
        int64_t k = number_of(d->d_name, tail), *more;
        char path[PATH_BYTES];
        struct stat st;
        if (k < 0 || path_put(path, dir, d->d_name, NULL) < 0 || stat(path, &st) < 0 || !S_ISDIR(st.st_mode)) continue;
        more = realloc(*ret, (n + 1) * sizeof *more);
        if (!more) break;
        *ret = more;
        more[n++] = k;
    }
    if (f) closedir(f);
    if (n) qsort(*ret, n, sizeof **ret, order);
    return n;
}

static int folder(char *path, const char *dir, int64_t n, const char *tail, struct err *e)
{
    char name[64];
    snprintf(name, sizeof name, "checkpoint-%lld%s", (long long)n, tail);
    return path_put(path, dir, name, e);
}

/* First out of sight, then gone: a kill leaves no half of a checkpoint under its name. */
static void discard(const char *dir, int64_t n)
{
    char path[PATH_BYTES], gone[PATH_BYTES];
    if (folder(path, dir, n, "", NULL) < 0 || folder(gone, dir, n, ".removing", NULL) < 0) return;
    out_remove_tree(gone);
    if (rename(path, gone) < 0) log_warn("cannot remove '%s': %s", path, strerror(errno));
    else out_remove_tree(gone);
}

/* The newest stays, and the best, as the two that they may be even where one is the limit. */
static void rotate(const struct checkpoint *c, int64_t now, int64_t best)
{
    int64_t *at;
    size_t n = list(&at, c->output_dir, ""), most = c->total_limit > 0 ? (size_t)c->total_limit : n;
    if (most < 2 && best && best != now) most = 2;
    if (n > most) {
        size_t surplus = n - most;
        for (size_t i = 0; i < n && surplus; i++) {
            if (at[i] == now || at[i] == best) continue;
            discard(c->output_dir, at[i]);
            surplus--;
        }
    }
    free(at);
}

/* What killed runs left: see checkpoint_save for `.old`. */
static void sweep(const char *dir)
{
    static const char *const tails[] = { ".writing", ".writing.saving", ".removing" };
    char path[PATH_BYTES], was[PATH_BYTES];
    int64_t *at;
    for (size_t t = 0; t < sizeof tails / sizeof *tails; t++) {
        size_t n = list(&at, dir, tails[t]);
        for (size_t i = 0; i < n; i++)
            if (folder(path, dir, at[i], tails[t], NULL) >= 0) out_remove_tree(path);
        free(at);
    }
    size_t n = list(&at, dir, ".old");
    for (size_t i = 0; i < n; i++) {
        if (folder(was, dir, at[i], ".old", NULL) < 0 || folder(path, dir, at[i], "", NULL) < 0) continue;
        if (access(path, F_OK) == 0) out_remove_tree(was);
        else if (rename(was, path) == 0) log_warn("'%s' is back: its replacement was not finished", path);
    }
    free(at);
}

int checkpoint_claim(int *lock, const char *output_dir, struct err *e)
{
    const int rc = out_claim(lock, output_dir, e);
    if (rc > 0) return err_set(e, ERR_USAGE, "another run is at work in '%s'", output_dir);
    if (rc >= 0) sweep(output_dir);
    return rc;
}

int checkpoint_find(char **ret, const char *output_dir, const char *from, struct err *e)
{
    char path[PATH_BYTES];
    struct stat st;
    int64_t *at;
    *ret = NULL;
    if (from && !strcasecmp(from, "False")) return 0;
    if (from && *from && strcasecmp(from, "True") != 0) {
        if (stat(from, &st) < 0) return err_errno(e, "resume from", from);
        if (!S_ISDIR(st.st_mode)) return err_set(e, ERR_USAGE, "cannot resume from '%s': it is not a folder", from);
        snprintf(path, sizeof path, "%s", from);
    } else {
        size_t n = list(&at, output_dir, "");
        int64_t last = n ? at[n - 1] : -1;
        free(at);
        if (!n && from && *from)
            return err_set(e, ERR_MISSING, "cannot resume: there is no checkpoint in '%s'", output_dir);
        if (!n) return 0;
        int rc = folder(path, output_dir, last, "", e);
        if (rc < 0) return rc;
    }
    *ret = strdup(path);
    return *ret ? 0 : err_set(e, ERR_NOMEM, "no memory for a path");
}

/* ---- writing */

struct writing {
    const struct checkpoint *c;
    const struct standing *s;
    bool last; /* the end of the run: nothing is needed to go on */
};

static json_t *null_or(json_t *v, bool there)
{
    if (there) return v;
    json_decref(v);
    return json_null();
}

/* TrainerState of transformers 4.37, keys in order of the alphabet as there. */
static int put_trainer_state(struct saver *out, const struct writing *w, struct err *e)
{
    const struct checkpoint *c = w->c;
    const struct standing *s = w->s;
    char best[PATH_BYTES] = "";
    int rc = c->keep_best && s->best_step ? folder(best, c->output_dir, s->best_step, "", e) : 0;
    if (rc < 0) return rc;
    json_t *o = json_pack("{s:o,s:o,s:f,s:I,s:I,s:b,s:b,s:b,s:O,s:I,s:I,s:I,s:I,s:I,s:f,s:I,s:n,s:n}",
                          "best_metric", null_or(json_real(s->best_metric), s->best_step > 0),
                          "best_model_checkpoint", null_or(json_string(best), *best), "epoch", s->epoch,
                          "eval_steps", (json_int_t)c->eval_steps,
                          "global_step", (json_int_t)s->step, "is_hyper_param_search", 0, "is_local_process_zero", 1,
                          "is_world_process_zero", 1, "log_history", s->history, "logging_steps",
                          (json_int_t)c->logging_steps, "max_steps", (json_int_t)c->max_steps, "num_input_tokens_seen",
                          (json_int_t)s->tokens, "num_train_epochs", (json_int_t)c->epochs, "save_steps",
                          (json_int_t)c->save_steps, "total_flos", s->flops, "train_batch_size",
                          (json_int_t)c->batch_size, "trial_name", "trial_params");
    size_t form = JSON_INDENT(2) | JSON_ENSURE_ASCII | JSON_SORT_KEYS | JSON_REAL_PRECISION(15);
    char *text = o ? json_dumps(o, form) : NULL;
    rc = text ? saver_bytes(out, state_file, text, strlen(text), e)
              : err_set(e, ERR_NOMEM, "no memory to write '%s'", state_file);
    free(text);
    json_decref(o);
    return rc;
}

/* Its title is the run's name, else that of its folder. */
static int put_plot(struct saver *out, const struct writing *w, struct err *e)
{
    size_t n = strlen(w->c->output_dir);
    while (n && w->c->output_dir[n - 1] == '/') n--;
    char title[200];
    const char *from = w->c->output_dir + n;
    while (from > w->c->output_dir && from[-1] != '/') from--;
    snprintf(title, sizeof title, "%.*s", (int)(w->c->output_dir + n - from), from);
    if (w->c->title && *w->c->title) snprintf(title, sizeof title, "%s", w->c->title);
    char *text = report_svg(w->s->history, title);
    int rc = text ? saver_bytes(out, "loss.svg", text, strlen(text), e)
                  : err_set(e, ERR_NOMEM, "no memory for a plot");
    free(text);
    return rc;
}

/* {"data": "...", ...} and the kind of training, which must be equal on resuming too. */
static json_t *common(const struct checkpoint *c)
{
    json_t *o = json_pack("{ss}", "kind of training", kinds[c->kind]);
    if (c->same) json_object_update(o, (json_t *)c->same);
    return o;
}

static int put_resume(struct saver *out, const struct writing *w, struct err *e)
{
    const struct checkpoint *c = w->c;
    int rc = saver_tensors(out, tensors_file, c->state, c->n_state, c->fetch, c->ctx, e);
    if (rc < 0) return rc;
    json_t *o = json_pack("{s:s,s:i,s:o,s:o,s:O*}", "written_by", "llava.c " LLAVA_VERSION, "format", FORMAT, "state",
                          standing_numbers(w->s), "same", common(c), "arguments", (json_t *)c->args);
    rc = o ? saver_json(out, resume_file, o, e) : err_set(e, ERR_NOMEM, "no memory to write '%s'", resume_file);
    json_decref(o);
    return rc;
}

/* generation_config.json: the base's, or one from the model's ids. transformers since 4.39 refuses to save one that
 * sets a temperature without sampling, as Vicuna's does, and LLaVA's saving at the end of a training fails on it. */
static int put_generation(struct saver *out, const struct writing *w, struct err *e)
{
    static const char file[] = "generation_config.json";
    const struct llava_config *c = &w->c->m->cfg;
    char path[PATH_BYTES];
    json_t *o = NULL;
    int rc = 0;
    if (w->c->model_dir) TRY(path_put(path, w->c->model_dir, file, e));
    if (w->c->model_dir && access(path, F_OK) == 0) TRY(json_file_load(&o, path, e));
    if (!o)
        o = json_pack("{s:i,s:i,s:i}", "bos_token_id", c->bos, "eos_token_id", c->n_eos ? c->eos[0] : 2,
                      "pad_token_id", c->pad);
    bool samples = json_is_true(json_object_get(o, "do_sample"));
    if (!samples && (json_object_get(o, "temperature") || json_object_get(o, "top_p") || json_object_get(o, "top_k")))
        json_object_set_new(o, "do_sample", json_true());
    rc = save_json(out, file, o, e);
out:
    json_decref(o);
    return rc;
}

static int more(void *ctx, struct saver *out, struct err *e)
{
    const struct writing *w = ctx;
    int rc;
    if (w->c->kind != TRAIN_PROJECTOR) TRY(put_generation(out, w, e));
    if (w->c->tokens && json_object_size(w->c->tokens) && w->c->model_dir)
        TRY(tokens_save(out, w->c->model_dir, w->c->tokens, e));
    TRY(put_trainer_state(out, w, e));
    TRY(put_plot(out, w, e));
    if (!w->last) TRY(put_resume(out, w, e));
out:
    return rc;
}

/* config.json's keys. mm_vision_tower as it was given (ORG/NAME stays), but for places that depend on where the program
 * is started or where the base lies: those become absolute. */
static json_t *config_keys(const struct checkpoint *c)
{
    static const char key[] = "mm_vision_tower";
    json_t *o = c->config ? json_deep_copy(c->config) : json_object();
    const char *given = json_string_value(json_object_get(o, key)), *name = given ? given : c->m->cfg.tower;
    bool place = *name == '.' || !strchr(name, '/') || (*name != '/' && access(name, F_OK) == 0);
    char *real = c->m->clip_dir && place ? realpath(c->m->clip_dir, NULL) : NULL;
    if (real) json_object_set_new(o, key, json_string(real));
    free(real);
    return o;
}

/* s: NULL to look only whether there is room. */
static int write_folder(const struct checkpoint *c, const struct standing *s, const char *dir, bool last,
                        struct err *e)
{
    static const enum save_what what[] = { [TRAIN_PROJECTOR] = SAVE_PROJECTOR, [TRAIN_LORA] = SAVE_ADAPTER,
                                           [TRAIN_FULL] = SAVE_MODEL };
    struct writing w = { c, s, last };
    struct save_options o = { .dir = dir,
                              .into = last,
                              .naming = NAMING_LLAVA,
                              .what = what[c->kind],
                              .lora = c->lora,
                              .dtype = c->dtype,
                              .tower_inside = c->m->cfg.has_clip,
                              .tower_config = c->m->cfg.has_clip && (c->kind == TRAIN_FULL || !*c->m->cfg.tower),
                              .side_dirs = { c->model_dir },
                              .more = more,
                              .ctx = &w,
                              .more_bytes = 1 << 20,
                              .quiet = !last,
                              .probe = !s };
    char path[PATH_BYTES];
    int rc = 0;
    for (size_t i = 0; i < c->n_state && !last; i++) o.more_bytes += (int64_t)tensor_bytes(c->state[i].t);
    if (c->model_dir) rc = path_put(path, c->model_dir, "config.json", e);
    if (rc < 0) return rc;
    if (c->model_dir && !c->m->cfg.hf_layout && access(path, F_OK) == 0) o.config_dir = c->model_dir;
    json_t *keys = config_keys(c);
    o.config = keys;
    rc = llava_model_save(c->m, &o, e);
    json_decref(keys);
    return rc;
}

int checkpoint_room(const struct checkpoint *c, bool last, struct err *e)
{
    return write_folder(c, NULL, c->output_dir, last, e);
}

int checkpoint_save(const struct checkpoint *c, const struct standing *s, struct err *e)
{
    char path[PATH_BYTES], old[PATH_BYTES];
    int rc;
    TRY(folder(path, c->output_dir, s->step, "", e));
    TRY(folder(old, c->output_dir, s->step, ".old", e));
    /* one of an earlier start of the run steps aside; if we fail or are killed it comes back */
    bool again = access(path, F_OK) == 0;
    if (again && rename(path, old) < 0) return err_errno(e, "rename", path);
    rc = write_folder(c, s, path, false, e);
    if (again && rc < 0) rename(old, path);
    else if (again) out_remove_tree(old);
    if (rc >= 0) rotate(c, s->step, c->keep_best ? s->best_step : 0);
out:
    return rc;
}

/* LLaVA: an OUTPUT_DIR named checkpoint-* has its projector beside it. */
static int move_projector(const char *output_dir, struct err *e)
{
    char dir[PATH_BYTES], from[PATH_BYTES], to[PATH_BYTES], name[300];
    size_t n = strlen(output_dir);
    while (n > 1 && output_dir[n - 1] == '/') n--;
    snprintf(dir, sizeof dir, "%.*s", (int)n, output_dir);
    char *slash = strrchr(dir, '/'), *last = slash ? slash + 1 : dir;
    if (strncmp(last, "checkpoint-", 11) != 0) return 0;
    int rc = path_put(from, dir, "mm_projector.bin", e);
    if (rc < 0) return rc;
    snprintf(name, sizeof name, "%.250s.bin", last);
    if (slash) *slash = 0;
    TRY(path_put(to, slash ? dir : ".", "mm_projector", e));
    TRY(out_make_dirs(to, e));
    snprintf(dir, sizeof dir, "%s", to);
    TRY(path_put(to, dir, name, e));
    if (rename(from, to) < 0) rc = err_errno(e, "rename to", to);
    if (rc >= 0) rc = out_sync_dir(dir, e);
out:
    return rc;
}

int checkpoint_finish(const struct checkpoint *c, const struct standing *s, struct err *e)
{
    int rc = write_folder(c, s, c->output_dir, true, e);
    return rc < 0 || c->kind != TRAIN_PROJECTOR ? rc : move_projector(c->output_dir, e);
}

/* ---- reading */

static char *shown(const json_t *v)
{
    return v ? json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(15)) : strdup("not said");
}

/* What a checkpoint of resume.json `o` says of a key: an older one may have it among its arguments only, or not know it
 * yet. */
static const json_t *said(const struct checkpoint *c, const json_t *o, const char *key)
{
    const json_t *const in[] = { json_object_get(o, "same"), json_object_get(o, "arguments"), c->unsaid };
    const json_t *v = NULL;
    for (size_t i = 0; i < sizeof in / sizeof *in && !v; i++) v = json_object_get(in[i], key);
    return v;
}

/* What must be equal and is not: the first of them, by name. o: all of resume.json. */
static int check_same(const struct checkpoint *c, const json_t *o, struct err *e)
{
    const json_t *then = json_object_get(o, "same");
    json_t *now = common(c), *all = json_deep_copy(now), *v;
    const char *key;
    int rc = 0;
    json_object_update_missing(all, (json_t *)then);
    json_object_foreach(all, key, v)
    {
        const json_t *was = said(c, o, key), *is = json_object_get(now, key);
        if (rc < 0 || (was && is && json_equal(was, is))) continue;
        char *a = shown(was), *b = shown(is);
        rc = err_set(e, ERR_USAGE, "%s is %.200s there and %.200s here", key, a ? a : "?", b ? b : "?");
        free(a);
        free(b);
    }
    json_decref(all);
    json_decref(now);
    return rc;
}

static int read_numbers(const struct checkpoint *c, const char *dir, struct standing *s, struct err *e)
{
    char path[PATH_BYTES];
    json_t *o = NULL, *then = NULL, *numbers = NULL;
    int64_t format = 0;
    int rc;
    TRY(path_put(path, dir, resume_file, e));
    if (access(path, F_OK) != 0)
        TRY(err_set(e, ERR_MISSING, "no '%s' in it, so it is not of this program or not whole", resume_file));
    TRY(json_file_load(&o, path, e));
    if (!json_is_object(o)) TRY(err_set(e, ERR_FORMAT, "'%s' does not hold an object", path));
    TRY(json_get_int(o, "format", &format, e));
    if (format != FORMAT)
        TRY(err_set(e, ERR_UNSUPPORTED, "'%s' has format %lld, this program reads %d", path, (long long)format,
                    FORMAT));
    TRY(json_get_object(o, "same", &then, e));
    TRY(json_get_object(o, "state", &numbers, e));
    if (!then || !numbers) TRY(err_set(e, ERR_FORMAT, "'%s' is not whole", path));
    TRY(check_same(c, o, e));
    TRY(standing_numbers_load(s, numbers, e));
out:
    json_decref(o);
    return rc;
}

static int read_history(const char *dir, struct standing *s, struct err *e)
{
    char path[PATH_BYTES];
    json_t *o = NULL, *history = NULL;
    int rc;
    TRY(path_put(path, dir, state_file, e));
    TRY(json_file_load(&o, path, e));
    if (!json_is_object(o)) TRY(err_set(e, ERR_FORMAT, "'%s' does not hold an object", path));
    TRY(json_get_array(o, "log_history", &history, e));
    if (!history) TRY(err_set(e, ERR_FORMAT, "'%s' has no log_history", path));
    json_incref(history);
    json_decref(s->history);
    s->history = history;
out:
    json_decref(o);
    return rc;
}

static int check_tensors(const struct checkpoint *c, const struct weights *w, struct err *e)
{
    char a[TENSOR_SHAPE_MAX], b[TENSOR_SHAPE_MAX];
    for (size_t i = 0; i < c->n_state; i++) {
        const struct weight *want = &c->state[i], *has = weights_find(w, want->name);
        if (!has) return err_set(e, ERR_MISSING, "it has no tensor '%s', which this run trains", want->name);
        if (!tensor_same_shape(has->t, want->t))
            return err_set(e, ERR_SHAPE, "'%s' is %s there and %s here", want->name, tensor_shape(has->t, a),
                           tensor_shape(want->t, b));
        if (has->t.type != want->t.type)
            return err_set(e, ERR_SHAPE, "'%s' is of type %s there and %s here", want->name,
                           dtype_name((enum dtype)has->t.type), dtype_name((enum dtype)want->t.type));
    }
    if (weights_count(w) != c->n_state)
        return err_set(e, ERR_SHAPE, "it has %zu tensors of a run's state, this run has %zu", weights_count(w),
                       c->n_state);
    return 0;
}

static int read_tensors(const struct checkpoint *c, const struct weights *w, struct err *e)
{
    for (size_t i = 0; i < c->n_state; i++) {
        const struct weight *to = &c->state[i];
        const void *from = weights_find(w, to->name)->t.p;
        if (c->put) {
            int rc = c->put(c->ctx, to, from, e);
            if (rc < 0) return rc;
        } else {
            memcpy(to->t.p, from, tensor_bytes(to->t));
        }
    }
    return 0;
}

int checkpoint_load(const struct checkpoint *c, const char *dir, struct standing *s, struct err *e)
{
    struct standing next;
    struct weights *w = NULL;
    char path[PATH_BYTES];
    int rc = standing_init(&next, e);
    if (rc < 0) return rc;
    TRY(read_numbers(c, dir, &next, e));
    TRY(read_history(dir, &next, e));
    TRY(path_put(path, dir, tensors_file, e));
    TRY(weights_open(&w, path, e));
    TRY(check_tensors(c, w, e));
    weights_advise(w);
    TRY(read_tensors(c, w, e));
    struct standing was = *s;
    *s = next;
    next = was;
out:
    weights_close(w);
    standing_fini(&next);
    return rc < 0 ? err_prefix(e, "cannot resume from '%s'", dir), rc : 0;
}
