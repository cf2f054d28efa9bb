/* The report of `llava inspect`, as tables for people and as one JSON object. See inspect.h. */
#include <dirent.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cmd/export.h"
#include "cmd/inspect.h"

enum { LABEL = 14 };

const char *inspect_part_name(enum part p)
{
    static const char *const names[] = {
        [PART_LLAMA] = "language model", [PART_CLIP] = "vision tower", [PART_PROJECTOR] = "projector"
    };
    return names[p];
}

const char *inspect_naming(const struct inspect *s)
{
    if (!s->has_config) return "unknown";
    if (!s->m.cfg.hf_layout) return s->m.cfg.has_vision ? "llava" : "llama";
    return s->m.n_weights && export_naming(&s->m) == NAMING_HF5 ? "hf5" : "hf";
}

/* "13.5 GB" into s; returns it. */
static const char *size_text(char s[24], int64_t n)
{
    static const char *const units[] = { "B", "kB", "MB", "GB", "TB" };
    double v = (double)n;
    int u = 0;
    while (v >= 999.5 && u < 4) v /= 1000, u++;
    snprintf(s, 24, u && v < 99.95 ? "%.1f %s" : "%.0f %s", v, units[u]);
    return s;
}

/* "6,738,415,616" into s; returns it. */
static const char *count_text(char s[32], int64_t n)
{
    char digits[24];
    int len = snprintf(digits, sizeof digits, "%lld", (long long)n), k = 0;
    for (int i = 0; i < len; i++) {
        if (i && (len - i) % 3 == 0) s[k++] = ',';
        s[k++] = digits[i];
    }
    s[k] = 0;
    return s;
}

static const char *types_text(char s[64], unsigned types)
{
    s[0] = 0;
    for (int t = 0; t <= DT_Q4; t++)
        if (types & 1u << t)
            snprintf(s + strlen(s), 64 - strlen(s), "%s%s", *s ? " " : "", dtype_name((enum dtype)t));
    return s;
}

static const char *base_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* ---- files */

struct file {
    char *path;
    int64_t bytes;
    bool here; /* in the folder itself: its name is enough */
};
struct files {
    struct file *at;
    size_t n;
};

static void files_add(struct files *f, const char *path, bool here)
{
    struct stat st;
    for (size_t i = 0; i < f->n; i++)
        if (!strcmp(f->at[i].path, path)) return;
    if (stat(path, &st) < 0 || !S_ISREG(st.st_mode)) return;
    struct file *at = realloc(f->at, (f->n + 1) * sizeof *at);
    if (!at) return;
    f->at = at;
    f->at[f->n] = (struct file){ strdup(path), st.st_size, here };
    if (f->at[f->n].path) f->n++;
}

static int file_order(const void *a, const void *b)
{
    const struct file *x = a, *y = b;
    return x->here != y->here ? y->here - x->here : strcmp(x->path, y->path);
}

/* The folder's files, and those that tensors came from elsewhere. */
static struct files files_of(const struct inspect *s)
{
    struct files f = { 0 };
    DIR *d = opendir(s->dir);
    for (struct dirent *x; d && (x = readdir(d));) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", s->dir, x->d_name);
        files_add(&f, path, true);
    }
    if (d) closedir(d);
    for (size_t i = 0; i < s->n_item; i++)
        if (!i || s->item[i].w->file != s->item[i - 1].w->file) files_add(&f, s->item[i].w->file, false);
    if (f.n) qsort(f.at, f.n, sizeof *f.at, file_order);
    return f;
}

static void files_free(struct files *f)
{
    for (size_t i = 0; i < f->n; i++) free(f->at[i].path);
    free(f->at);
}

/* "safetensors", "torch .bin" or both, of the files that hold tensors. */
static const char *format_of(const struct inspect *s)
{
    bool st = false, bin = false;
    for (size_t i = 0; i < s->n_item; i++) {
        size_t n = strlen(s->item[i].w->file);
        if (n > 12 && !strcmp(s->item[i].w->file + n - 12, ".safetensors"))
            st = true;
        else
            bin = true;
    }
    return st && bin ? "safetensors and torch .bin" : st ? "safetensors" : bin ? "torch .bin" : "no weights";
}

/* ---- facts, one a line */

static void print_config(const struct inspect *s)
{
    static const char *const aspects[] = {
        [ASPECT_SQUARE] = "square", [ASPECT_PAD] = "pad", [ASPECT_ANYRES] = "anyres"
    };
    static const char *const merges[] = {
        [MERGE_FLAT] = "flat", [MERGE_SPATIAL] = "spatial", [MERGE_UNPAD] = "spatial_unpad"
    };
    const struct llava_config *c = &s->m.cfg;
    const struct llama_config *l = &c->llama;
    char type[32], n[32];
    printf("%-*s%s (model_type %s), %s\n", LABEL, "layout", inspect_naming(s), c->model_type, format_of(s));
    printf("%-*s%d layers, width %d, feed-forward %d, %d heads of %d (%d key/value)\n", LABEL, "language",
           l->L, l->C, l->F, l->H, l->D, l->K);
    printf("%-*svocabulary %s, context %s%s%s\n", LABEL, "", count_text(n, l->V),
           count_text((char[32]){ 0 }, l->max_pos), l->tied ? ", lm_head tied to embed_tokens" : "",
           l->window ? ", sliding window" : "");
    if (!c->has_vision) return;
    if (c->has_clip)
        printf("%-*s%d layers, width %d, feed-forward %d, %d heads; pictures %dx%d in %d patches\n", LABEL,
               "vision tower", c->clip.L, c->clip.C, c->clip.F, c->clip.H, c->clip.image, c->clip.image,
               clip_patches(&c->clip));
    const char *label = c->has_clip ? "" : "vision tower";
    if (s->m.tower_inside) printf("%-*sin the checkpoint", LABEL, label);
    else if (s->m.clip_dir) printf("%-*sfound in %s", LABEL, label, s->m.clip_dir);
    else printf("%-*s%s'%s'", LABEL, label, s->has_layers ? "not found: " : "", c->tower);
    printf(", hidden state %d%s\n", c->select_layer, c->select_cls ? " with class token" : "");
    save_projector_type(type, sizeof type, c->n_projector);
    printf("%-*s%s, %d -> %d\n", LABEL, "projector", type, c->mm_hidden, l->C);
    printf("%-*s%s", LABEL, "pictures", aspects[c->aspect]);
    if (c->aspect == ASPECT_ANYRES) printf(", %d resolutions, merged %s", c->pinpoints.n, merges[c->merge]);
    printf("%s%s\n", c->im_start_end ? ", between <im_start> and <im_end>" : "",
           c->im_patch ? ", token <im_patch>" : "");
}

static void print_adapter(const struct inspect *s)
{
    const struct lora_set *l = &s->lora;
    if (!l->n) return;
    int64_t low = INT64_MAX, high = 0;
    for (size_t i = 0; i < l->n; i++) {
        int64_t r = l->pair[i].a->t.n[0];
        low = r < low ? r : low;
        high = r > high ? r : high;
    }
    printf("%-*sLoRA of %zu weights, rank %lld", LABEL, "adapter", l->n, (long long)low);
    if (high != low) printf(" to %lld", (long long)high);
    printf(", scale %g\n", l->pair[0].scale);
    if (!s->base) printf("%-*s%s\n", LABEL, "base", *s->wants ? s->wants : "not named");
}

static void print_tokenizer(const struct inspect *s)
{
    static const char *const modes[] = { [TOKENIZER_LEGACY] = "legacy",
                                         [TOKENIZER_NEW] = "not legacy",
                                         [TOKENIZER_431] = "not legacy, as transformers 4.31" };
    if (!s->tok) return;
    const struct tokenizer_info *t = tokenizer_info(s->tok);
    printf("%-*s%d tokens, %s", LABEL, "tokenizer", t->size, modes[t->mode]);
    if (t->image >= 0) printf(", <image> is %d", t->image);
    if (s->has_config && t->size > s->m.cfg.llama.V)
        printf(" (more than the %d rows of the embedding)", s->m.cfg.llama.V);
    printf("\n");
}

/* ---- tables */

static void print_files(const struct inspect *s)
{
    struct files f = files_of(s);
    char b[24];
    printf("\n%10s  %s\n", "size", "file");
    for (size_t i = 0; i < f.n; i++)
        printf("%10s  %s\n", size_text(b, f.at[i].bytes),
               f.at[i].here ? base_of(f.at[i].path) : f.at[i].path);
    files_free(&f);
}

static void print_sum(const char *name, const struct part_sum *p)
{
    char n[32], b[24], t[64];
    if (p->tensors)
        printf("  %-22s %9lld %20s %12s   %s\n", name, (long long)p->tensors, count_text(n, p->params),
               size_text(b, p->bytes), types_text(t, p->types));
}

static void print_parts(const struct inspect *s)
{
    static const enum part order[] = { PART_LLAMA, PART_PROJECTOR, PART_CLIP };
    struct part_sum all = { 0 }, kinds[ITEM_UNBOUND + 1] = { 0 };
    if (!s->n_item) return;
    printf("\n%-24s %9s %20s %12s   %s\n", "parts", "tensors", "parameters", "bytes", "types");
    for (size_t i = 0; i < s->n_item; i++) {
        struct part_sum *k = &kinds[s->item[i].kind];
        k->tensors++;
        k->params += tensor_count(s->item[i].w->t);
        k->bytes += (int64_t)tensor_bytes(s->item[i].w->t);
        k->types |= 1u << s->item[i].w->t.type;
    }
    for (int i = 0; i < PARTS; i++) {
        const struct part_sum *p = &s->sum[order[i]];
        print_sum(inspect_part_name(order[i]), p);
        all.tensors += p->tensors, all.params += p->params, all.bytes += p->bytes, all.types |= p->types;
    }
    print_sum("total", &all);
    print_sum("adapter", &s->adapter);
    print_sum("replaced by another", &kinds[ITEM_REPLACED]);
    print_sum("ignored", &kinds[ITEM_IGNORED]);
    const char *rest = s->is_adapter ? "other trained tensors" : "tensors";
    print_sum(s->has_layers ? "bound to nothing" : rest, &kinds[ITEM_UNBOUND]);
    int n = 0;
    if (!s->has_layers || s->tensors) return;
    for (size_t i = 0; i < s->n_item; i++)
        if (s->item[i].kind == ITEM_UNBOUND && n++ < 20) printf("    %s\n", s->item[i].w->name);
    if (n > 20) printf("    and %d more (--tensors lists all)\n", n - 20);
}

static void print_memory(const struct inspect *s)
{
    if (!s->n_memory) return;
    static const struct {
        const char *text;
        size_t offset;
    } rows[] = {
        { "weights, used as they are", offsetof(struct memory, mapped) },
        { "weights, converted copies", offsetof(struct memory, copies) },
        { "keys and values, all", offsetof(struct memory, cache) },
        { "activations and tables", offsetof(struct memory, act) },
        { "total", offsetof(struct memory, total) },
    };
    char b[24], n[32];
    printf("\nmemory to run, context %-10s", count_text(n, s->m.cfg.llama.max_pos));
    for (int i = 0; i < s->n_memory; i++) printf(" %12s", s->memory[i].title);
    printf("\n");
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        printf("  %-31s", rows[r].text);
        for (int i = 0; i < s->n_memory; i++)
            printf(" %12s", size_text(b, *(const int64_t *)((const char *)&s->memory[i] + rows[r].offset)));
        printf("\n");
    }
    printf("  %-31s", "keys and values, one position");
    for (int i = 0; i < s->n_memory; i++) printf(" %12s", size_text(b, s->memory[i].position));
    printf("\n");
}

static const char *kind_text(const struct inspect *s, const struct item *it)
{
    switch (it->kind) {
    case ITEM_BOUND:
    case ITEM_ADAPTER: return it->to;
    case ITEM_IGNORED: return "(ignored)";
    case ITEM_REPLACED: return "(replaced)";
    default: return s->has_layers ? "(nothing)" : "";
    }
}

static int by_file(const void *a, const void *b)
{
    const struct item *x = *(const struct item *const *)a, *y = *(const struct item *const *)b;
    int c = strcmp(x->w->file, y->w->file);
    return c ? c : strcmp(x->w->name, y->w->name);
}

/* Items by file and name; NULL without memory. */
static const struct item **sorted(const struct inspect *s)
{
    const struct item **at = malloc((s->n_item + 1) * sizeof *at);
    for (size_t i = 0; at && i < s->n_item; i++) at[i] = &s->item[i];
    if (at && s->n_item) qsort(at, s->n_item, sizeof *at, by_file);
    return at;
}

static void print_tensors(const struct inspect *s)
{
    const struct item **at = sorted(s);
    int name = 4, file = 4;
    char shape[TENSOR_SHAPE_MAX];
    for (size_t i = 0; at && i < s->n_item; i++) {
        int n = (int)strlen(at[i]->w->name), k = (int)strlen(base_of(at[i]->w->file));
        if (n > name) name = n;
        if (k > file) file = k;
    }
    printf("\n%-*s  %-*s  %-5s %-20s %s\n", name, "name", file, "file", "type", "shape", "parameter");
    for (size_t i = 0; at && i < s->n_item; i++) {
        const struct weight *w = at[i]->w;
        bool same = at[i]->kind == ITEM_BOUND && !strcmp(at[i]->to, w->name);
        printf("%-*s  %-*s  %-5s %-20s %s\n", name, w->name, file, base_of(w->file),
               dtype_name((enum dtype)w->t.type), tensor_shape(w->t, shape),
               same ? "the same" : kind_text(s, at[i]));
    }
    free(at);
}

int inspect_fault(const struct tensor_fault *f, struct err *e)
{
    return err_set(e, ERR_FORMAT, "not finite: '%s' of '%s' holds %s at element %lld", f->w->name, f->w->file,
                   f->nan ? "NaN" : "infinity", (long long)f->at);
}

static void print_check(const struct inspect *s)
{
    if (!s->check) return;
    printf("\n");
    for (int i = 0; i < s->n_fault && i < 20; i++) {
        struct err e;
        inspect_fault(&s->fault[i], &e);
        printf("%s\n", e.msg);
    }
    if (s->n_fault > 20) printf("and %d more tensors\n", s->n_fault - 20);
    if (!s->n_fault) printf("checked: all %zu tensors are finite\n", s->n_item);
}

void inspect_print(const struct inspect *s)
{
    printf("%-*s%s\n", LABEL,
           s->is_adapter     ? "LoRA adapter"
           : s->is_projector ? "projector"
                             : "model",
           s->dir);
    if (s->base) printf("%-*s%s\n", LABEL, "base", s->base);
    if (s->has_config) print_config(s);
    print_adapter(s);
    if (s->is_projector && !s->base) printf("%-*sneeded, with --model-base\n", LABEL, "base");
    print_tokenizer(s);
    print_files(s);
    print_parts(s);
    print_memory(s);
    if (s->tensors) print_tensors(s);
    print_check(s);
    if (s->n_note) printf("\n");
    for (int i = 0; i < s->n_note && i < NOTES_MAX; i++) printf("%s\n", s->note[i]);
}

/* ---- JSON */

static json_t *json_config(const struct inspect *s)
{
    const struct llava_config *c = &s->m.cfg;
    const struct llama_config *l = &c->llama;
    static const char *const aspects[] = { "square", "pad", "anyres" };
    json_t *o = json_pack("{s:s,s:s,s:b}", "model_type", c->model_type, "layout", inspect_naming(s),
                          "multimodal", c->has_vision);
    json_object_set_new(o, "language",
                        json_pack("{s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:b}", "layers", l->L, "width", l->C,
                                  "feed_forward", l->F, "heads", l->H, "kv_heads", l->K, "head_size", l->D,
                                  "vocabulary", l->V, "context", l->max_pos, "tied", l->tied));
    if (!c->has_vision) return o;
    char type[32];
    save_projector_type(type, sizeof type, c->n_projector);
    json_object_set_new(o, "projector",
                        json_pack("{s:s,s:i,s:i}", "type", type, "in", c->mm_hidden, "out", l->C));
    json_object_set_new(o, "image_aspect_ratio", json_string(aspects[c->aspect]));
    json_t *v = json_pack("{s:s,s:b,s:s?,s:i,s:b}", "name", c->tower, "inside", s->m.tower_inside, "folder",
                          s->m.clip_dir, "select_layer", c->select_layer, "class_token", c->select_cls);
    if (c->has_clip)
        json_object_update_new(v, json_pack("{s:i,s:i,s:i,s:i,s:i,s:i,s:i}", "layers", c->clip.L, "width",
                                            c->clip.C, "feed_forward", c->clip.F, "heads", c->clip.H, "image",
                                            c->clip.image, "patch", c->clip.patch, "patches",
                                            clip_patches(&c->clip)));
    json_object_set_new(o, "vision_tower", v);
    return o;
}

static json_t *json_sum(const struct part_sum *p)
{
    char t[64];
    return json_pack("{s:I,s:I,s:I,s:s}", "tensors", (json_int_t)p->tensors, "parameters",
                     (json_int_t)p->params, "bytes", (json_int_t)p->bytes, "types", types_text(t, p->types));
}

static json_t *json_memory(const struct inspect *s)
{
    json_t *o = json_object();
    for (int i = 0; i < s->n_memory; i++) {
        const struct memory *m = &s->memory[i];
        json_object_set_new(o, m->name,
                            json_pack("{s:I,s:I,s:I,s:I,s:I,s:I}", "weights_mapped", (json_int_t)m->mapped,
                                      "weights_converted", (json_int_t)m->copies, "cache_per_position",
                                      (json_int_t)m->position, "cache", (json_int_t)m->cache, "activations",
                                      (json_int_t)m->act, "total", (json_int_t)m->total));
    }
    return o;
}

static json_t *json_tensor(const struct inspect *s, const struct item *it)
{
    json_t *shape = json_array();
    for (int i = 0; i < it->w->t.nd; i++) json_array_append_new(shape, json_integer(it->w->t.n[i]));
    static const char *const kinds[] = { "bound", "adapter", "ignored", "replaced", "unbound" };
    (void)s;
    return json_pack("{s:s,s:s,s:s,s:o,s:s,s:s}", "name", it->w->name, "file", it->w->file, "dtype",
                     dtype_name((enum dtype)it->w->t.type), "shape", shape, "kind", kinds[it->kind],
                     "parameter", it->to);
}

static void json_lists(const struct inspect *s, json_t *o)
{
    json_t *files = json_array(), *ignored = json_array(), *unbound = json_array(), *tensors = json_array();
    struct files f = files_of(s);
    for (size_t i = 0; i < f.n; i++)
        json_array_append_new(files, json_pack("{s:s,s:I}", "name",
                                               f.at[i].here ? base_of(f.at[i].path) : f.at[i].path, "bytes",
                                               (json_int_t)f.at[i].bytes));
    files_free(&f);
    const struct item **at = sorted(s);
    for (size_t i = 0; at && i < s->n_item; i++) {
        if (at[i]->kind == ITEM_IGNORED) json_array_append_new(ignored, json_string(at[i]->w->name));
        if (at[i]->kind == ITEM_UNBOUND) json_array_append_new(unbound, json_string(at[i]->w->name));
        if (s->tensors) json_array_append_new(tensors, json_tensor(s, at[i]));
    }
    free(at);
    json_object_set_new(o, "files", files);
    json_object_set_new(o, "ignored", ignored);
    json_object_set_new(o, "unbound", unbound);
    if (s->tensors)
        json_object_set_new(o, "tensors", tensors);
    else
        json_decref(tensors);
}

static void json_adapter(const struct inspect *s, json_t *o)
{
    if (!s->lora.n) return;
    const struct lora_pair *p = s->lora.pair;
    json_object_set_new(o, "adapter",
                        json_pack("{s:I,s:I,s:f,s:s}", "weights", (json_int_t)s->lora.n, "rank",
                                  (json_int_t)p->a->t.n[0], "scale", p->scale, "base", s->wants));
}

static void json_notes(const struct inspect *s, json_t *o)
{
    json_t *notes = json_array(), *faults = json_array();
    for (int i = 0; i < s->n_note && i < NOTES_MAX; i++)
        json_array_append_new(notes, json_string(s->note[i]));
    json_object_set_new(o, "missing", notes);
    for (int i = 0; i < s->n_fault && i < 20; i++)
        json_array_append_new(faults, json_pack("{s:s,s:s,s:s,s:I}", "name", s->fault[i].w->name, "file",
                                                s->fault[i].w->file, "value", s->fault[i].nan ? "nan" : "inf",
                                                "element", (json_int_t)s->fault[i].at));
    if (s->check) json_object_set(o, "not_finite", faults);
    json_decref(faults);
}

int inspect_print_json(const struct inspect *s)
{
    json_t *o = json_pack("{s:s,s:s?,s:s,s:s}", "path", s->dir, "base", s->base, "kind",
                          s->is_adapter     ? "adapter"
                          : s->is_projector ? "projector"
                                            : "model",
                          "format", format_of(s));
    if (s->has_config) json_object_set_new(o, "config", json_config(s));
    json_adapter(s, o);
    if (s->tok) {
        const struct tokenizer_info *t = tokenizer_info(s->tok);
        json_object_set_new(o, "tokenizer",
                            json_pack("{s:i,s:b,s:i}", "tokens", t->size, "legacy",
                                      t->mode == TOKENIZER_LEGACY, "image", t->image));
    }
    json_t *parts = json_object();
    static const char *const keys[] = { "language", "vision_tower", "projector" };
    for (int i = 0; i < PARTS; i++)
        if (s->sum[i].tensors) json_object_set_new(parts, keys[i], json_sum(&s->sum[i]));
    json_object_set_new(o, "parts", parts);
    if (s->n_memory) json_object_set_new(o, "memory", json_memory(s));
    json_lists(s, o);
    json_notes(s, o);
    int rc = o && json_dumpf(o, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(15)) == 0 ? 0 : -1;
    if (rc >= 0) printf("\n");
    json_decref(o);
    return rc;
}
