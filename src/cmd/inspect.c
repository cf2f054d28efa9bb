/* llava inspect: what is in a checkpoint, what it binds to, and the memory it takes. Every step may fail on
 * its own: what fails is a line of the report, and the rest goes on. See inspect.h. */
#include "cmd/inspect.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "cmd/cmd.h"
#include "cmd/export.h"
#include "file/hub.h"
#include "model/fill.h"
#include "run/engine.h"
#include "tensor/quant.h"

enum { K_PATH = CMD_KEY, K_BASE, K_TOWER, K_TENSORS, K_JSON, K_CHECK };

static const struct argp_option options[] = {
    { "model-path", K_PATH, "DIR|ORG/NAME", 0,
      "Folder of a model, a LoRA adapter or a projector, or its name on the hub", 0 },
    { "model-base", K_BASE, "DIR|ORG/NAME", 0, "Base model of an adapter or a projector", 0 },
    { "vision-tower", K_TOWER, "DIR|ORG/NAME", 0, "Vision tower, instead of the one that config.json names",
      0 },
    { "tensors", K_TENSORS, NULL, 0,
      "One line for each tensor: name, file, type, shape, and the parameter that it is", 0 },
    { "check", K_CHECK, NULL, 0, "Read all weights and look for NaN and infinity", 0 },
    { "json", K_JSON, NULL, 0, "One JSON object instead of tables", 0 },
    { 0 },
};

static error_t option(int key, char *arg, struct argp_state *state)
{
    struct inspect *s = state->input;
    switch (key) {
    case K_PATH: s->path = arg; break;
    case K_BASE: s->base_name = arg; break;
    case K_TOWER: s->tower = arg; break;
    case K_TENSORS: s->tensors = true; break;
    case K_CHECK: s->check = true; break;
    case K_JSON: s->json = true; break;
    case ARGP_KEY_ARG:
        if (s->path) argp_error(state, "unexpected argument '%s'", arg);
        s->path = arg;
        break;
    case ARGP_KEY_END:
        if (!s->path) argp_error(state, "--model-path is needed");
        break;
    default: return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

static const struct argp argp = {
    options,
    option,
    "[DIR|ORG/NAME]",
    "Shows what a checkpoint holds: its files and layout, the sizes of the model, where the vision tower was "
    "found, tensors and bytes of each part, tensors that are ignored or that nothing uses, and the memory "
    "that running it takes.\v"
    "An adapter or a projector is shown alone, or with --model-base as the model that it makes.\n\n"
    "What is missing or does not fit is listed as lines that begin with \"missing:\" or \"wrong:\"; the "
    "first of them goes to standard error too, and the exit status is 1.\n\n"
    "Memory is what one conversation of the full context takes at each precision (8 and 4 bits: by --load-8bit and "
    "--load-4bit): weights that are used from the files as they are (pages of the system's cache), copies of weights "
    "that must be converted or merged, the cache of keys and values, and activations.\n\n"
    "Examples:\n"
    "  llava inspect models/demo\n"
    "  llava inspect --model-path liuhaotian/llava-v1.5-7b --tensors\n"
    "  llava inspect my-lora --model-base lmsys/vicuna-7b-v1.5 --check\n"
    "  llava inspect --model-path D --json | jq .memory\n\n" CMD_EXIT_STATUS,
    NULL,
    NULL,
    NULL
};

/* A line of the report; past NOTES_MAX only counted. */
static void note(struct inspect *s, int code, const char *what)
{
    char text[1100];
    snprintf(text, sizeof text, "%s: %s", code == ERR_MISSING ? "missing" : "wrong", what);
    for (int i = 0; i < s->n_note && i < NOTES_MAX; i++)
        if (!strcmp(s->note[i], text)) return;
    if (s->n_note < NOTES_MAX && !(s->note[s->n_note] = strdup(text))) return;
    s->n_note++;
}

static bool exists(const char *dir, const char *file)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", dir, file);
    return access(path, F_OK) == 0;
}

static int locate(char **dir, const char *name, struct err *e)
{
    return hub_find(dir, name, NULL, e);
}

/* ---- opening */

/* A set of files on its own; what cannot be opened is noted. */
static void add_files(struct inspect *s, const char *dir, const char *file)
{
    struct llava_model *m = &s->m;
    struct err e = { 0 };
    char path[4096];
    snprintf(path, sizeof path, "%s%s%s", dir, file ? "/" : "", file ? file : "");
    if (m->n_weights == WEIGHTS_SETS) return;
    int rc = weights_open(&m->weights[m->n_weights], path, &e);
    if (rc >= 0) rc = index_add(&s->ix, m->weights[m->n_weights++], &e);
    if (rc < 0) note(s, e.code, e.msg);
}

static void open_alone(struct inspect *s)
{
    static const char *const files[] = { "mm_projector.bin", "non_lora_trainables.bin",
                                         "non_lora_trainables.safetensors" };
    struct err e = { 0 };
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        if (exists(s->dir, files[i])) add_files(s, s->dir, files[i]);
    s->has_config = exists(s->dir, "config.json") && llava_config_load(&s->m.cfg, s->dir, &e) >= 0;
    if (e.code) note(s, e.code, e.msg);
    if (s->is_adapter && lora_open(&s->lora, s->dir, &e) < 0) note(s, e.code, e.msg);
    if (s->is_adapter) lora_base_name(s->dir, s->wants, sizeof s->wants);
}

static void open_whole(struct inspect *s)
{
    struct llava_source src = { .path = s->dir, .base = s->base, .clip_path = s->tower, .locate = locate };
    struct llava_model *m = &s->m;
    struct err e = { 0 };
    int rc = model_open_files(m, &src, &s->ix, &s->lora, &e);
    s->has_config = m->cfg.llama.V > 0 && m->cfg.llama.D > 0;
    m->bits = m->cfg.bits;
    if (rc < 0) note(s, e.code, e.msg);
    if (rc < 0 && !m->n_weights) add_files(s, s->base ? s->base : s->dir, NULL);
    if (!s->has_config) return;
    if (m->cfg.has_vision && model_open_tower(m, &src, &s->ix, &e) < 0) note(s, e.code, e.msg);
    if (m->cfg.has_vision && !m->cfg.mm_hidden) m->cfg.mm_hidden = m->cfg.clip.C;
    if (model_make_layers(m, &e) < 0)
        note(s, e.code, e.msg);
    else
        s->has_layers = true;
}

static int open_all(struct inspect *s, struct err *e)
{
    int rc;
    TRY(hub_find(&s->dir, s->path, NULL, e));
    if (s->base_name) TRY(hub_find(&s->base, s->base_name, NULL, e));
    s->is_adapter = exists(s->dir, "adapter_config.json");
    s->is_projector =
        !s->is_adapter && exists(s->dir, "mm_projector.bin") &&
        (s->base || !(exists(s->dir, "model.safetensors") || exists(s->dir, "model.safetensors.index.json") ||
                      exists(s->dir, "pytorch_model.bin") || exists(s->dir, "pytorch_model.bin.index.json")));
    if ((s->is_adapter || s->is_projector) && !s->base) {
        open_alone(s);
        return 0;
    }
    open_whole(s);
    struct err text = { 0 };
    if (tokenizer_open(&s->tok, s->dir, &text) < 0) {
        s->tok = NULL;
        if (!s->base || tokenizer_open(&s->tok, s->base, &text) < 0) {
            s->tok = NULL;
            note(s, text.code, text.msg);
        }
    }
out:
    return rc;
}

/* ---- binding */

static struct item *item_of(struct inspect *s, const struct weight *w)
{
    size_t lo = 0, hi = s->n_item;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (s->item[mid].w == w) return &s->item[mid];
        if (s->item[mid].w < w)
            lo = mid + 1;
        else
            hi = mid;
    }
    return NULL;
}

static int item_order(const void *a, const void *b)
{
    const struct weight *x = ((const struct item *)a)->w, *y = ((const struct item *)b)->w;
    return x < y ? -1 : x > y;
}

static void list_set(struct inspect *s, const struct weights *set, enum item_kind kind)
{
    for (size_t i = 0; set && i < weights_count(set); i++) {
        struct item *it = &s->item[s->n_item++];
        *it = (struct item){ .w = weights_at(set, i), .t = weights_at(set, i)->t, .kind = kind };
        char name[NAME_MAX_BYTES];
        if (kind == ITEM_UNBOUND && name_canonical(name, sizeof name, it->w->name) < 0)
            it->kind = ITEM_IGNORED;
    }
}

static int list_items(struct inspect *s, struct err *e)
{
    size_t n = s->lora.weights ? weights_count(s->lora.weights) : 0;
    for (int i = 0; i < s->m.n_weights; i++) n += weights_count(s->m.weights[i]);
    s->item = calloc(n + 1, sizeof *s->item);
    if (!s->item) return err_set(e, ERR_NOMEM, "no memory for %zu names", n);
    for (int i = 0; i < s->m.n_weights; i++) list_set(s, s->m.weights[i], ITEM_UNBOUND);
    list_set(s, s->lora.weights, ITEM_ADAPTER);
    qsort(s->item, s->n_item, sizeof *s->item, item_order);
    for (size_t i = 0; i < s->lora.n; i++) {
        const struct weight *both[] = { s->lora.pair[i].a, s->lora.pair[i].b };
        for (int k = 0; k < 2; k++)
            if (item_of(s, both[k]))
                snprintf(item_of(s, both[k])->to, NAME_MAX_BYTES, "%s", s->lora.pair[i].name);
    }
    return 0;
}

static void add_sum(struct part_sum *p, struct tensor t)
{
    p->tensors++;
    p->params += tensor_count(t);
    p->bytes += (int64_t)tensor_bytes(t);
    p->types |= 1u << t.type;
}

static int bind_one(void *ctx, const struct bind_row *r, struct err *e)
{
    struct inspect *s = ctx;
    const struct weight *w = index_find(&s->ix, r->name);
    char line[NAME_MAX_BYTES + 80];
    (void)e;
    if (!w) {
        if (r->flags & BIND_OPTIONAL) return 0;
        snprintf(line, sizeof line, "tensor '%s'", r->name);
        if (s->n_absent++ < 8) note(s, ERR_MISSING, line);
        return 0;
    }
    struct err why = { 0 };
    struct tensor t;
    if (bind_read(&t, r, w, &why) < 0 || bind_bits(&s->m, r, w, (enum dtype)t.type, &why) < 0) {
        s->n_absent++;
        note(s, why.code, why.msg);
        return 0;
    }
    struct item *it = item_of(s, w);
    it->kind = ITEM_BOUND;
    it->part = r->part;
    it->t = t;
    snprintf(it->to, sizeof it->to, "%s", r->name);
    add_sum(&s->sum[r->part], t);
    r->param->w = t;
    lora_mark(&s->lora, w);
    struct lora_pair *p = s->lora.n ? lora_find(&s->lora, r->name) : NULL;
    if (p) p->used = true;
    if (p && lora_fits(p, r->param->w, &why) < 0) note(s, why.code, why.msg);
    return 0;
}

/* Tensors that another with the same canonical name stands in for. */
static void mark_replaced(struct inspect *s)
{
    for (size_t i = 0; i < s->n_item; i++) {
        char name[NAME_MAX_BYTES];
        struct item *it = &s->item[i];
        if (it->kind != ITEM_UNBOUND || name_canonical(name, sizeof name, it->w->name) < 0) continue;
        const struct weight *w = index_find(&s->ix, name);
        if (w && w != it->w && item_of(s, w) && item_of(s, w)->kind == ITEM_BOUND) it->kind = ITEM_REPLACED;
    }
}

/* ---- memory */

struct tally {
    const struct inspect *s;
    struct memory *to;
};

static int tally_one(void *ctx, const struct bind_row *r, struct err *e)
{
    struct tally *t = ctx;
    struct tensor w = r->param->w;
    (void)e;
    if (!w.p) return 0;
    enum dtype keep = bind_type(t->to->dtype, r, (enum dtype)w.type);
    bool merged = t->s->lora.n && lora_find((struct lora_set *)&t->s->lora, r->name);
    if (merged && t->to->dtype == DT_F32) keep = DT_F32;
    if (!dtype_is_quant(keep)) keep = bind_quant(r, t->to->bits, keep);
    if (keep == (enum dtype)w.type && !merged) {
        t->to->mapped += (int64_t)tensor_bytes(w);
    } else {
        w.type = (int8_t)keep;
        t->to->copies += (int64_t)tensor_bytes(w);
    }
    return 0;
}

static void measure(struct inspect *s)
{
    static const struct memory kinds[MEMORY_KINDS] = {
        { .name = "F32", .title = "F32", .dtype = DT_F32 },
        { .name = "BF16", .title = "BF16", .dtype = DT_BF16 },
        { .name = "F16", .title = "F16", .dtype = DT_F16 },
        { .name = "Q8", .title = "8 bits", .dtype = DT_BF16, .bits = 8 },
        { .name = "Q4", .title = "4 bits", .dtype = DT_BF16, .bits = 4 },
    };
    const struct llama_config *l = &s->m.cfg.llama;
    struct err e = { 0 };
    if (l->tied) s->m.llama.head.w = s->m.llama.embed;
    for (int i = 0; i < MEMORY_KINDS && !(s->m.bits && kinds[i].bits); i++) {
        struct memory *to = &s->memory[i];
        struct tally t = { s, to };
        size_t act = 0;
        *to = kinds[i];
        if (to->bits && s->m.llama.embed.w.type == DT_F16) to->dtype = DT_F16; /* as it is stored */
        llava_each(&s->m, tally_one, &t, NULL);
        /* as the engine chooses it: f32 asked for is exact */
        const bool quant = s->m.bits || to->bits;
        const enum dtype kv = quant && to->dtype != DT_F32 && l->D % 16 == 0 ? DT_Q8 : to->dtype;
        to->position = 2 * (int64_t)l->L * (int64_t)dtype_row_bytes(kv, (int64_t)l->K * l->D);
        to->cache = to->position * l->max_pos;
        if (engine_plan(&act, &s->m, to->dtype, l->max_pos, &e) < 0) {
            note(s, e.code, e.msg);
            s->n_memory = 0;
            return;
        }
        s->n_memory = i + 1;
        to->act = (int64_t)act;
        to->total = to->mapped + to->copies + to->cache + to->act;
    }
}

/* ---- check */

/* Is any of n numbers not finite? All bits of the exponent set is what makes one so, in every type. */
#define ANY_FAULT(name, type)                                         \
    static bool name(const void *p, int64_t n, uint64_t exponent)     \
    {                                                                 \
        const type *v = p, mask = (type)exponent;                     \
        int bad = 0;                                                  \
        _Pragma("omp simd reduction(| : bad)")                        \
        for (int64_t i = 0; i < n; i++) bad |= (v[i] & mask) == mask; \
        return bad;                                                   \
    }
ANY_FAULT(any_fault_16, uint16_t)
ANY_FAULT(any_fault_32, uint32_t)
ANY_FAULT(any_fault_64, uint64_t)

static const struct float_kind {
    enum dtype type;
    uint64_t exponent;
    bool (*any)(const void *, int64_t, uint64_t);
} float_kinds[] = {
    { DT_F32, 0x7f800000, any_fault_32 },
    { DT_F16, 0x7c00, any_fault_16 },
    { DT_BF16, 0x7f80, any_fault_16 },
    { DT_F64, 0x7ff0000000000000, any_fault_64 },
};

static const struct float_kind *kind_of(enum dtype t)
{
    for (size_t i = 0; i < sizeof float_kinds / sizeof *float_kinds; i++)
        if (float_kinds[i].type == t) return &float_kinds[i];
    return NULL;
}

/* Place of the first of n numbers of a kind that is not finite, n: none. */
static int64_t find_number(const struct float_kind *k, const char *p, int64_t n, bool *nan)
{
    const size_t size = dtype_bytes(k->type);
    int64_t at = 0;
    uint64_t v = 0;
    if (!k->any(p, n, k->exponent)) return n;
    while (!k->any(p + (size_t)at * size, 1, k->exponent)) at++;
    memcpy(&v, p + (size_t)at * size, size);
    *nan = (v & ((k->exponent & -k->exponent) - 1)) != 0;
    return at;
}

/* What is looked at at once: numbers in a run; of a quantised row its groups' scales, for codes are always finite. */
struct run { const struct float_kind *kind; const char *p; int64_t n; };
enum { RUN = 1 << 16 };
static struct run run_of(struct tensor t, int64_t i)
{
    const enum dtype type = (enum dtype)t.type;
    if (!dtype_is_quant(type)) {
        const int64_t at = i * RUN, n = tensor_count(t) - at;
        return (struct run){ kind_of(type), (char *)t.p + (size_t)at * dtype_bytes(type), n < RUN ? n : RUN };
    }
    const int64_t cols = tensor_cols(t);
    return (struct run){ kind_of(DT_F16), (char *)tensor_row(t, i) + quant_scales_at(type, cols), quant_groups(cols) };
}

/* Place of the first element that is not finite, -1: none. Runs in parallel, then the first bad one again. */
static int64_t find_fault(struct tensor t, bool *nan)
{
    const bool quant = dtype_is_quant((enum dtype)t.type);
    const int64_t n = quant ? tensor_rows(t) : kind_of((enum dtype)t.type) ? (tensor_count(t) + RUN - 1) / RUN : 0;
    int64_t first = n;
#pragma omp parallel for schedule(static) reduction(min : first)
    for (int64_t i = 0; i < n; i++) {
        const struct run r = run_of(t, i);
        if (i < first && r.kind->any(r.p, r.n, r.kind->exponent)) first = i;
    }
    if (first == n) return -1;
    const struct run r = run_of(t, first);
    const int64_t at = find_number(r.kind, r.p, r.n, nan);
    return quant ? first * tensor_cols(t) + at * QUANT_GROUP : first * RUN + at;
}

static void check_values(struct inspect *s)
{
    int64_t done = 0, total = 0;
    for (size_t i = 0; i < s->n_item; i++) total += (int64_t)tensor_bytes(s->item[i].w->t);
    struct progress bar;
    progress_begin(&bar, "checking", "B", total);
    for (size_t i = 0; i < s->n_item; i++) {
        const struct weight *w = s->item[i].w;
        bool nan = false;
        int64_t at = find_fault(s->item[i].t, &nan);
        if (at >= 0 && s->n_fault++ < 20) s->fault[s->n_fault - 1] = (struct tensor_fault){ w, at, nan };
        progress_step(&bar, done += (int64_t)tensor_bytes(w->t));
    }
    progress_end(&bar);
}

/* ---- the command */

static int inspect_all(struct inspect *s, struct err *e)
{
    int rc;
    TRY(open_all(s, e));
    TRY(list_items(s, e));
    if (s->has_layers) llava_each(&s->m, bind_one, s, NULL);
    mark_replaced(s);
    if (s->has_layers && lora_check_used(&s->lora, s->dir, e) < 0) note(s, e->code, e->msg);
    if (s->n_absent > 8) {
        char line[64];
        snprintf(line, sizeof line, "%lld tensors in all", (long long)s->n_absent);
        note(s, ERR_MISSING, line);
    }
    for (size_t i = 0; i < s->n_item; i++)
        if (s->item[i].kind == ITEM_ADAPTER) add_sum(&s->adapter, s->item[i].w->t);
    if (s->has_layers && !s->n_absent && (s->m.cfg.has_clip || !s->m.cfg.has_vision)) measure(s);
    if (s->check) check_values(s);
out:
    return rc;
}

static void inspect_fini(struct inspect *s)
{
    for (int i = 0; i < s->n_note && i < NOTES_MAX; i++) free(s->note[i]);
    tokenizer_close(s->tok);
    lora_close(&s->lora);
    llava_model_close(&s->m);
    free(s->ix.at);
    free(s->item);
    free(s->dir);
    free(s->base);
}

/* Is anything missing, wrong or not finite? The first such thing goes to standard error, because the report may
 * lie in a file. */
static bool complain(const struct inspect *s)
{
    struct err e = { 0 };
    if (s->n_fault) inspect_fault(&s->fault[0], &e);
    if (s->n_note || s->n_fault) fprintf(stderr, "llava: %s\n", s->n_note ? s->note[0] : e.msg);
    return s->n_note || s->n_fault;
}

int cmd_inspect(int argc, char **argv)
{
    struct inspect s = { 0 };
    struct err e = { 0 };
    int rc = cmd_parse(&argp, argc, argv, &s);
    if (rc) return rc;
    rc = inspect_all(&s, &e);
    if (rc >= 0 && s.json && inspect_print_json(&s) < 0)
        rc = err_set(&e, ERR_NOMEM, "no memory for the report");
    else if (rc >= 0 && !s.json)
        inspect_print(&s);
    bool bad = rc >= 0 && complain(&s);
    inspect_fini(&s);
    return rc < 0 ? cmd_fail(e.msg) : bad;
}
