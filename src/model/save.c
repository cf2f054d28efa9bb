/* See save.h. */
#define _GNU_SOURCE
#include "model/save.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/log.h"
#include "base/map.h"
#include "file/json.h"
#include "file/out.h"
#include "model/fill.h"
#include "model/place.h"
#include "tensor/quant.h"

/* One tensor to write: where it comes from. */
struct origin {
    struct tensor t;        /* as stored, in the shape of its file */
    struct lora_pair *pair; /* to be merged into it, or NULL */
    enum dtype quant;       /* the type to which it is quantised, or t's */
};

struct saving {
    struct llava_model *m;
    const struct save_options *o;
    bool tower;          /* the tower's rows alone, else all that go into the checkpoint */
    bool adapters;       /* the adapters' rows alone */
    struct weight *row;  /* [n] what writers see */
    struct origin *from; /* [n] */
    size_t n, cap;
    struct fetched fetched; /* from the model's device */
    char *mem; /* of the tensor that is being written */
    size_t mem_bytes;
    struct progress bar;
    int64_t done, total; /* bytes */
};

/* ---- folders */

int save_dir_check(const char *dir, struct err *e)
{
    struct stat st;
    if (!*dir) return err_set(e, ERR_USAGE, "the folder to write has no name");
    if (lstat(dir, &st) < 0) return errno == ENOENT ? 0 : err_errno(e, "look at", dir);
    if (!S_ISDIR(st.st_mode)) return err_set(e, ERR_USAGE, "'%s' is there already and is no folder", dir);
    DIR *d = opendir(dir);
    if (!d) return err_errno(e, "open", dir);
    int n = 0;
    for (struct dirent *f; (f = readdir(d));)
        n += strcmp(f->d_name, ".") != 0 && strcmp(f->d_name, "..") != 0;
    closedir(d);
    return n ? err_set(e, ERR_USAGE, "'%s' is not empty: nothing was written", dir) : 0;
}

static int path_make(char **ret, const char *dir, const char *tail, struct err *e)
{
    size_t n = strlen(dir);
    while (n > 1 && dir[n - 1] == '/') n--;
    if (asprintf(ret, "%.*s%s", (int)n, dir, tail) >= 0) return 0;
    *ret = NULL;
    return err_set(e, ERR_NOMEM, "no memory for a path");
}

/* The finished folder gets its name. */
/* What a killed run left there is removed. Two runs that write to one place would take each other's files away. */
static int stage_begin(int *lock, const char *stage, const char *dir, struct err *e)
{
    int rc = out_claim(lock, stage, e);
    if (rc == 0) { /* what was there is ours alone, to be removed; the folder that is written to is a new one */
        out_remove_tree(stage);
        close(*lock);
        rc = out_claim(lock, stage, e);
    }
    return rc > 0 ? err_set(e, ERR_USAGE, "another run is writing '%s'", dir) : rc;
}

static int stage_commit(const char *stage, const char *dir, struct err *e)
{
    char *plain, *parent = NULL;
    int rc = path_make(&plain, dir, "", e);
    if (rc < 0) return rc;
    if (rename(stage, plain) < 0) rc = err_errno(e, "rename to", plain);
    char *slash = strrchr(plain, '/');
    if (rc >= 0 && slash) parent = strndup(plain, slash == plain ? 1 : (size_t)(slash - plain));
    if (rc >= 0) rc = out_sync_dir(parent ? parent : ".", e);
    free(parent);
    free(plain);
    return rc;
}

int save_json(struct saver *s, const char *file, const json_t *v, struct err *e)
{
    char *text = v ? json_dumps(v, JSON_INDENT(2) | JSON_ENSURE_ASCII | JSON_REAL_PRECISION(15)) : NULL;
    if (!text) return err_set(e, ERR_NOMEM, "no memory to write '%s'", file);
    size_t n = strlen(text);
    text[n] = '\n'; /* in the place of the NUL */
    int rc = saver_bytes(s, file, text, n + 1, e);
    free(text);
    return rc;
}

/* ---- tensors */

static bool has_vocab(const char *name)
{
    return !strcmp(name, "model.embed_tokens.weight") || !strcmp(name, "lm_head.weight");
}

/* Has the vocabulary got rows that the file does not have? Then the base alone is not enough to open the result. */
static bool grown(const struct saving *s, const struct bind_row *r)
{
    if (!has_vocab(r->name)) return false;
    for (int i = 0; i < s->m->n_weights; i++)
        for (size_t k = 0; k < weights_count(s->m->weights[i]); k++) {
            const struct weight *w = weights_at(s->m->weights[i], k);
            char name[NAME_MAX_BYTES];
            if (name_canonical(name, sizeof name, w->name) < 0 || strcmp(name, r->name) != 0) continue;
            return w->t.n[0] != r->param->w.n[0];
        }
    return false;
}

/* Does this row go into the file that is being written? */
static bool wanted(const struct saving *s, const struct bind_row *r)
{
    bool trains = (r->param->flags & PARAM_TRAIN) != 0 || grown(s, r);
    if (s->tower) return r->part == PART_CLIP;
    if (s->o->what == SAVE_ADAPTER) return trains;
    if (s->o->what == SAVE_PROJECTOR) return r->part == PART_PROJECTOR || (trains && r->part == PART_LLAMA);
    return r->part != PART_CLIP || s->o->naming != NAMING_LLAVA || s->o->tower_inside;
}

/* Takes the name. */
static int put_row(struct saving *s, const char *name, struct tensor file, struct origin from, struct err *e)
{
    if (s->n == s->cap) {
        size_t cap = s->cap ? 2 * s->cap : 256;
        struct weight *row = realloc(s->row, cap * sizeof *row);
        if (row) s->row = row;
        struct origin *from_more = row ? realloc(s->from, cap * sizeof *from_more) : NULL;
        if (!from_more) return err_set(e, ERR_NOMEM, "no memory for the names of weights");
        s->from = from_more;
        s->cap = cap;
    }
    char *copy = strdup(name);
    if (!copy) return err_set(e, ERR_NOMEM, "no memory for the names of weights");
    s->from[s->n] = from;
    if (dtype_is_quant(from.quant)) file = tensor_2d(NULL, DT_U8, file.n[0], quant_row_bytes(from.quant, file.n[1]));
    else if (!s->o->keep_dtype) file.type = (int8_t)s->o->dtype;
    s->row[s->n++] = (struct weight){ .name = copy, .t = file };
    s->total += (int64_t)tensor_bytes(file);
    return 0;
}

static const char peft_prefix[] = "base_model.model."; /* PeftModel.base_model, LoraModel.model */

static int add_row(void *ctx, const struct bind_row *r, struct err *e)
{
    struct saving *s = ctx;
    struct tensor t = r->param->w;
    if (!t.p || !wanted(s, r)) return 0;
    char name[NAME_MAX_BYTES], full[NAME_MAX_BYTES + sizeof peft_prefix];
    if (s->tower)
        snprintf(name, sizeof name, "%s", r->name);
    else
        name_in(s->o->naming, name, sizeof name, r->name);
    snprintf(full, sizeof full, "%s%s", s->o->what == SAVE_ADAPTER ? peft_prefix : "", name);
    t.nd = (int8_t)r->nd;
    memcpy(t.n, r->shape, sizeof t.n);
    struct origin from = { t, s->m->lora ? lora_find(s->m->lora, r->name) : NULL,
                           bind_quant(r, s->o->bits, (enum dtype)t.type) };
    if (has_vocab(r->name) && s->o->vocab) t.n[0] = s->o->vocab;
    return put_row(s, full, t, from, e);
}

/* "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" */
static int add_adapter(void *ctx, const struct bind_row *r, struct err *e)
{
    struct saving *s = ctx;
    const struct lora *l = r->linear ? r->linear->lora : NULL;
    char name[NAME_MAX_BYTES], full[NAME_MAX_BYTES + 64];
    if (!l) return 0;
    name_in(s->o->naming, name, sizeof name, r->name);
    int stem = (int)(strlen(name) - strlen(".weight"));
    for (int i = 0; i < 2; i++) {
        struct tensor t = i ? l->b.w : l->a.w;
        snprintf(full, sizeof full, "%s%.*s.lora_%c.weight", peft_prefix, stem, name, "AB"[i]);
        int rc = put_row(s, full, t, (struct origin){ t, NULL, (enum dtype)t.type }, e);
        if (rc < 0) return rc;
    }
    return 0;
}

static int collect(struct saving *s, struct err *e)
{
    return llava_each(s->m, s->adapters ? add_adapter : add_row, s, e);
}

static void saving_fini(struct saving *s)
{
    for (size_t i = 0; i < s->n; i++) free((void *)s->row[i].name);
    free(s->row);
    free(s->from);
    free(s->mem);
    fetched_fini(&s->fetched);
}

/* `from`, merged with its adapter, as quantised rows. */
static int quantise(void *out, const struct origin *from, const char *name, struct err *e)
{
    struct tensor t = from->t, sum = t;
    int rc = 0;
    sum.type = DT_F32;
    sum.p = malloc(tensor_bytes(sum));
    if (!sum.p) TRY(err_set(e, ERR_NOMEM, "no memory for a tensor of %zu bytes", tensor_bytes(sum)));
    if (from->pair) TRY(lora_merge(from->pair, sum, t, e));
    else tensor_convert(sum, t);
    int64_t fault = -1;
#pragma omp parallel for schedule(static) reduction(max : fault)
    for (int64_t i = 0; i < tensor_count(sum); i++)
        if (!isfinite(((const float *)sum.p)[i])) fault = i;
    if (fault >= 0)
        TRY(err_set(e, ERR_FORMAT, "tensor '%s' holds what is not finite at element %lld", name, (long long)fault));
    t.p = out;
    t.type = (int8_t)from->quant;
    tensor_convert(t, sum);
out:
    free(sum.p);
    return rc;
}

/* dtype_convert on all cores. */
static void convert(struct tensor to, struct tensor from)
{
    int64_t n = tensor_count(from), block = 1 << 18;
    size_t out = dtype_bytes((enum dtype)to.type), in = dtype_bytes((enum dtype)from.type);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i += block)
        dtype_convert((char *)to.p + (size_t)i * out, (enum dtype)to.type, (char *)from.p + (size_t)i * in,
                      (enum dtype)from.type, n - i < block ? n - i : block);
}

/* Rows from..to of t: each the mean of the rows before `from`, summed in f64. */
static int fill_mean(struct tensor t, int64_t from, struct err *e)
{
    int64_t C = t.n[1];
    size_t row_bytes = (size_t)C * dtype_bytes((enum dtype)t.type);
    double *sum = calloc((size_t)C, sizeof *sum);
    float *row = malloc((size_t)C * sizeof *row);
    if (sum && row) {
        for (int64_t i = 0; i < from; i++) {
            dtype_convert(row, DT_F32, (char *)t.p + (size_t)i * row_bytes, (enum dtype)t.type, C);
            for (int64_t j = 0; j < C; j++) sum[j] += row[j];
        }
        for (int64_t j = 0; j < C; j++) row[j] = (float)(sum[j] / (double)from);
        for (int64_t i = from; i < t.n[0]; i++)
            dtype_convert((char *)t.p + (size_t)i * row_bytes, (enum dtype)t.type, row, DT_F32, C);
    }
    int rc = sum && row ? 0 : err_set(e, ERR_NOMEM, "no memory for new rows of the vocabulary");
    free(sum);
    free(row);
    return rc;
}

static int room(struct saving *s, size_t bytes, struct err *e)
{
    if (bytes <= s->mem_bytes) return 0;
    free(s->mem);
    s->mem = malloc(bytes);
    s->mem_bytes = s->mem ? bytes : 0;
    return s->mem ? 0 : err_set(e, ERR_NOMEM, "no memory for a tensor of %zu bytes", bytes);
}

/* weight_fetch_fn: the bytes of a row, straight from its file where nothing has to be done to it. */
static int fetch(const void **ret, void *ctx, const struct weight *w, struct err *e)
{
    struct saving *s = ctx;
    struct origin here = s->from[w - s->row], *from = &here;
    struct tensor t = w->t;
    const void *p;
    int rc;
    const bool more = t.n[0] > from->t.n[0];
    TRY(fetched_get(&p, &s->fetched, from->t, e));
    from->t.p = (void *)(uintptr_t)p; /* only read */
    if (dtype_is_quant(from->quant)) {
        TRY(room(s, tensor_bytes(t), e));
        TRY(quantise(s->mem, from, w->name, e));
        *ret = s->mem;
    } else if (!from->pair && !more && t.type == from->t.type) {
        *ret = from->t.p; /* fewer rows are the first ones */
    } else {
        int64_t count = tensor_count(from->t);
        size_t bytes = tensor_bytes(t), whole = (size_t)count * dtype_bytes((enum dtype)t.type);
        TRY(room(s, bytes > whole ? bytes : whole, e));
        t.p = s->mem;
        if (from->pair)
            TRY(lora_merge(from->pair, t, from->t, e));
        else
            convert(t, from->t);
        if (more) TRY(fill_mean(t, from->t.n[0], e));
        *ret = s->mem;
    }
    s->done += (int64_t)tensor_bytes(w->t);
    if (!s->o->quiet) progress_step(&s->bar, s->done);
out:
    return rc;
}

/* ---- the folder */

static int copy_file(struct saver *out, const char *dir, const char *file, struct err *e)
{
    char path[4096];
    struct map m = { 0 };
    snprintf(path, sizeof path, "%s/%s", dir, file);
    if (access(path, F_OK) != 0) return 0;
    int rc = map_open(&m, path, e);
    if (rc >= 0) rc = saver_bytes(out, file, m.p, m.n, e);
    map_close(&m);
    return rc < 0 ? rc : 1;
}

/* preprocessor_config.json: the tower's own, or the one that this kind of tower has. */
static int put_processor(struct saver *out, const struct saving *s, struct err *e)
{
    static const char file[] = "preprocessor_config.json";
    const char *dirs[] = { s->o->side_dirs[1], s->o->side_dirs[0], s->m->clip_dir };
    for (size_t i = 0; i < sizeof dirs / sizeof *dirs; i++) {
        int rc = dirs[i] ? copy_file(out, dirs[i], file, e) : 0;
        if (rc != 0) return rc < 0 ? rc : 0;
    }
    json_t *v = save_processor_config(&s->m->cfg.clip);
    int rc = save_json(out, file, v, e);
    json_decref(v);
    return rc;
}

static enum dtype stored_type(const struct saving *s)
{
    const struct param *p = &s->m->llama.embed;
    return s->o->keep_dtype ? (enum dtype)p->w.type : s->o->dtype;
}

/* What mm_vision_tower says. A path from where the model was leads nowhere from where it goes. */
static const char *tower_name(const struct save_options *o, const char *now)
{
    return o->tower_beside || (o->tower_config && (!*now || *now == '.')) ? "./vision_tower" : now;
}

static int put_config(struct saver *out, const struct saving *s, struct err *e)
{
    const struct save_options *o = s->o;
    struct llava_config c = s->m->cfg;
    json_t *old = NULL, *now = NULL;
    char path[4096];
    int rc = 0;
    c.dtype = stored_type(s);
    if (c.pad >= (o->vocab ? o->vocab : c.llama.V))
        c.pad = 0; /* the <pad> of llava-hf is gone: as LLaVA has it */
    if (o->config_dir) {
        snprintf(path, sizeof path, "%s/config.json", o->config_dir);
        TRY(json_file_load(&old, path, e));
    }
    now = save_config(&c, o, tower_name(o, c.tower), old);
    json_object_del(now, "quantization_config"); /* of the base that an adapter was trained over */
    if (o->bits)
        json_object_set_new(now, "quantization_config",
                            json_pack("{s:s, s:i, s:i}", "quant_method", QUANT_METHOD, "bits", o->bits, "group_size",
                                      QUANT_GROUP));
    TRY(save_json(out, "config.json", now, e));
out:
    json_decref(old);
    json_decref(now);
    return rc;
}

/* Two parts of one folder share a bar. */
static void pass_bar(struct saving *to, const struct saving *from)
{
    to->bar = from->bar;
    to->done = from->done;
}

static int write_adapters(struct saving *s, struct saver *out, struct err *e)
{
    json_t *config = save_adapter_config(s->m, s->o->lora);
    int rc;
    TRY(saver_tensors(out, "adapter_model.safetensors", s->row, s->n, fetch, s, e));
    TRY(save_json(out, "adapter_config.json", config, e));
out:
    json_decref(config);
    return rc;
}

/* adapters: their rows, of SAVE_ADAPTER. */
static int write_model(struct saving *s, struct saving *adapters, const char *stage, struct err *e)
{
    const struct save_options *o = s->o;
    struct saver *out = NULL;
    int rc;
    TRY(saver_open(&out, stage, e));
    if (o->what != SAVE_PROJECTOR)
        for (int i = 0; i < 2; i++)
            if (o->side_dirs[i]) TRY(saver_copy_side_files(out, o->side_dirs[i], e));
    for (int i = 0; i < 2 && o->naming != NAMING_LLAVA; i++)
        if (o->side_dirs[i]) TRY(copy_file(out, o->side_dirs[i], "chat_template.jinja", e));
    if (s->m->cfg.has_vision && o->naming != NAMING_LLAVA) TRY(put_processor(out, s, e));
    TRY(put_config(out, s, e));
    if (o->more) TRY(o->more(o->ctx, out, e));
    if (o->what == SAVE_MODEL)
        TRY(saver_weights(out, s->row, s->n, o->shard_bytes, fetch, s, e));
    else
        TRY(saver_tensors(out, o->what == SAVE_ADAPTER ? "non_lora_trainables.bin" : "mm_projector.bin", s->row,
                          s->n, fetch, s, e));
    if (o->what == SAVE_ADAPTER) {
        pass_bar(adapters, s);
        TRY(write_adapters(adapters, out, e));
    }
    TRY(saver_commit(out, e));
out:
    saver_close(out);
    return rc;
}

/* rows: of the tower, or NULL for its configuration alone. */
static int write_tower(struct saving *s, struct saving *rows, const char *stage, struct err *e)
{
    struct saver *out = NULL;
    json_t *v = NULL;
    char *dir;
    int rc;
    TRY(path_make(&dir, stage, "/vision_tower", e));
    TRY(saver_open(&out, dir, e));
    v = save_clip_config(&s->m->cfg.clip, rows && rows->n ? (enum dtype)rows->row[0].t.type : stored_type(s));
    TRY(save_json(out, "config.json", v, e));
    TRY(put_processor(out, s, e));
    if (rows) TRY(saver_weights(out, rows->row, rows->n, 0, fetch, rows, e));
    TRY(saver_commit(out, e));
out:
    saver_close(out);
    json_decref(v);
    free(dir);
    return rc;
}

static int check(const struct llava_model *m, const struct save_options *o, struct err *e)
{
    const struct llava_config *c = &m->cfg;
    char type[32];
    if (o->what == SAVE_PROJECTOR && (!c->has_vision || !c->n_projector))
        return err_set(e, ERR_UNSUPPORTED, "the model has no projector to write");
    if (o->naming == NAMING_LLAVA) return 0;
    if (!c->has_vision)
        return err_set(e, ERR_UNSUPPORTED, "the model has no vision tower: only LLaVA's layout suits it");
    save_projector_type(type, sizeof type, c->n_projector);
    if (c->n_projector != 2)
        return err_set(e, ERR_UNSUPPORTED,
                       "transformers' layout has mlp2x_gelu projectors only, this one is %s", type);
    if (c->aspect == ASPECT_ANYRES && c->merge != MERGE_UNPAD)
        return err_set(e, ERR_UNSUPPORTED, "transformers' llava_next merges tiles as spatial_unpad only");
    return 0;
}

/* A folder that would not fit is refused before anything is written. Some file systems do not know their size. */
static int check_space(const char *dir, int64_t bytes, struct err *e)
{
    struct statvfs fs;
    char *parent = strdup(dir);
    if (!parent) return err_set(e, ERR_NOMEM, "no memory for a path");
    while (statvfs(*parent ? parent : ".", &fs) < 0 && *parent) {
        char *slash = strrchr(parent, '/');
        *(slash == parent && slash[1] ? slash + 1 : slash ? slash : parent) = 0;
    }
    free(parent);
    double room = (double)fs.f_bavail * (double)fs.f_frsize;
    if (!fs.f_blocks || room >= (double)bytes) return 0;
    return err_set(e, ERR_IO, "cannot write '%s': it needs %.1f MB and the disk has %.1f MB free", dir,
                   (double)bytes / 1e6, room / 1e6);
}

static int write_all(struct saving *s, struct saving *second, const char *dir, struct err *e)
{
    const struct save_options *o = s->o;
    if (!o->quiet) progress_begin(&s->bar, o->bits ? "quantising" : "writing", "B", s->total + second->total);
    int rc = write_model(s, second, dir, e);
    if (o->tower_beside && rc >= 0) {
        pass_bar(second, s);
        rc = write_tower(s, second, dir, e);
    } else if (o->tower_config && rc >= 0) {
        rc = write_tower(s, NULL, dir, e);
    }
    if (!o->quiet) progress_end(second->n ? &second->bar : &s->bar);
    return rc;
}

int llava_model_save(struct llava_model *m, const struct save_options *o, struct err *e)
{
    struct saving s = { .m = m, .o = o, .fetched.dev = m->dev }, second = s;
    second.tower = o->tower_beside;
    second.adapters = o->what == SAVE_ADAPTER;
    char *stage = NULL;
    int lock = -1, rc;
    TRY(check(m, o, e));
    TRY(collect(&s, e));
    if (second.tower || second.adapters) TRY(collect(&second, e));
    TRY(check_space(o->dir, s.total + second.total + o->more_bytes, e));
    if (o->probe) goto out;
    if (o->into) {
        rc = write_all(&s, &second, o->dir, e);
        goto out;
    }
    TRY(save_dir_check(o->dir, e));
    TRY(path_make(&stage, o->dir, ".writing", e));
    TRY(stage_begin(&lock, stage, o->dir, e));
    TRY(write_all(&s, &second, stage, e));
    TRY(stage_commit(stage, o->dir, e));
out:
    if (rc < 0 && lock >= 0) out_remove_tree(stage);
    if (lock >= 0) close(lock);
    free(stage);
    saving_fini(&s);
    saving_fini(&second);
    return rc;
}
