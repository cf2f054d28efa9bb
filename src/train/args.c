/* Reading and printing the arguments of a training run. See args.h. */
#include "train/args.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/log.h"
#include "base/name.h"
#include "base/plat.h"
#include "base/size.h"
#include "model/config.h"
#include "train/report.h"
#include "train/schedule.h"

/* ---- values */

static bool is_text(const struct arg_row *r) { return r->kind == ARG_STR || r->kind == ARG_LIST; }

static bool is_none(const char *s) { return !s || !strcmp(s, "None"); }

/* Python's str2bool of transformers: yes, true, t, y, 1 and their opposites. */
static int read_bool(const char *s)
{
    static const char *const words[] = { "no", "yes", "false", "true", "f", "t", "n", "y", "0", "1" };
    for (int i = 0; i < 10; i++)
        if (!strcasecmp(s, words[i])) return i % 2;
    return -1;
}

static bool in_choices(const char *choices, const char *s)
{
    for (const char *at = choices; at; at = strchr(at, '|')) {
        at += *at == '|';
        const size_t n = strcspn(at, "|");
        if (n == strlen(s) && !strncmp(at, s, n)) return true;
    }
    return false;
}

/* "a|b" as people write it: "a, b". */
static const char *listed(char out[200], const char *choices)
{
    size_t n = 0;
    for (; *choices && n < 197; choices++) {
        out[n++] = *choices == '|' ? ',' : *choices;
        if (*choices == '|') out[n++] = ' ';
    }
    out[n] = 0;
    return out;
}

static int bad_value(const struct arg_row *r, const char *value, struct err *e)
{
    static const char *const wanted[] = { [ARG_STR] = "text", [ARG_LIST] = "words", [ARG_BOOL] = "True or False",
                                          [ARG_INT] = "a whole number", [ARG_REAL] = "a number" };
    char words[200];
    const bool one = r->choices && !strchr(r->choices, '|'), why = r->use == ARG_ONLY && r->help;
    return err_set(e, ERR_USAGE, "--%s wants %s%s, not '%s'%s%s", r->name, !r->choices ? "" : one ? "" : "one of ",
                   r->choices ? listed(words, r->choices) : wanted[r->kind], value, why ? ": " : "",
                   why ? r->help : "");
}

/* Checks a value against its row; *real and *whole are it. */
static int read_value(const struct arg_row *r, const char *value, double *real, int64_t *whole, struct err *e)
{
    char *end;
    errno = 0;
    *real = NAN;
    *whole = 0;
    if (is_none(value)) return r->def ? bad_value(r, value, e) : 0;
    if (r->kind == ARG_STR && r->choices && !in_choices(r->choices, value)) return bad_value(r, value, e);
    if (is_text(r)) return 0;
    if (r->kind == ARG_BOOL) {
        const int b = read_bool(value);
        *whole = b;
        return b < 0 ? bad_value(r, value, e) : 0;
    }
    if (r->kind == ARG_INT) *whole = strtoll(value, &end, 10);
    else *real = strtod(value, &end);
    if (end == value || *end || errno == ERANGE || (r->kind == ARG_REAL && !isfinite(*real)) ||
        (r->kind == ARG_INT && r->choices && !in_choices(r->choices, value)))
        return bad_value(r, value, e);
    return 0;
}

/* A value of ARG_ONLY as the same thing written otherwise: 0 and 0.0, false and False. */
static bool is_default(const struct arg_row *r, const char *value)
{
    double a, b;
    int64_t i, j;
    if (!r->def || is_none(value)) return is_none(value) && !r->def;
    if (is_text(r)) return !strcmp(value, r->def);
    if (read_value(r, value, &a, &i, NULL) < 0 || read_value(r, r->def, &b, &j, NULL) < 0) return false;
    return r->kind == ARG_REAL ? !(a < b) && !(a > b) : i == j;
}

static int set(struct train_args *a, const struct arg_row *r, const char *value, struct err *e)
{
    double real;
    int64_t whole;
    int rc = read_value(r, value, &real, &whole, e);
    if (rc < 0) return rc;
    if (r->use == ARG_ONLY && !r->choices && !is_default(r, value))
        return err_set(e, ERR_USAGE, "--%s '%s' is not supported: only '%s' is", r->name, value,
                       r->def ? r->def : "None");
    if (r->use != ARG_USED) return 0;
    void *to = (char *)a + r->offset;
    if (is_text(r)) *(const char **)to = is_none(value) ? NULL : value;
    else if (r->kind == ARG_BOOL) *(bool *)to = whole;
    else if (r->kind == ARG_INT) *(int64_t *)to = whole;
    else *(double *)to = real;
    return 0;
}

/* ---- names */

static int unknown(const char *name, const char *typed, struct err *e)
{
    int best = 99;
    const char *nearest = NULL;
    for (int i = 0; i < train_arg_count; i++) {
        const char *known = train_arg_rows[i].name;
        const int d = known ? name_distance(name, known) : best;
        if (d >= best) continue;
        best = d;
        nearest = known;
    }
    if (nearest && best <= 2 + (int)strlen(name) / 4)
        return err_set(e, ERR_USAGE, "unknown option '%s', did you mean '--%s'?", typed, nearest);
    return err_set(e, ERR_USAGE, "unknown option '%s'", typed);
}

/* The row of a name, or of the only one that begins so. Errors: nothing, or several. */
static int find(const struct arg_row **ret, const char *name, const char *typed, struct err *e)
{
    const struct arg_row *found = NULL, *other = NULL;
    static const struct { const char *also, *name; } aliases[] = {
        { "eval_strategy", "evaluation_strategy" },
        { "per_gpu_train_batch_size", "per_device_train_batch_size" },
        { "per_gpu_eval_batch_size", "per_device_eval_batch_size" },
    };
    for (size_t i = 0; i < sizeof aliases / sizeof *aliases; i++)
        if (!strcmp(name, aliases[i].also)) name = aliases[i].name;
    for (int i = 0; i < train_arg_count; i++) {
        const struct arg_row *r = &train_arg_rows[i];
        if (!r->name || strncmp(r->name, name, strlen(name)) != 0) continue;
        if (!strcmp(r->name, name)) return *ret = r, 0;
        if (found) other = r;
        else found = r;
    }
    if (!*name || !found) return unknown(name, typed, e);
    if (other) return err_set(e, ERR_USAGE, "'%s' may be --%s or --%s", typed, found->name, other->name);
    *ret = found;
    return 0;
}

bool train_args_given(const struct train_args *a, const char *name)
{
    for (int i = 0; i < train_arg_count; i++)
        if (train_arg_rows[i].name && !strcmp(train_arg_rows[i].name, name)) return a->given[i];
    BUG("no argument '%s'", name);
}

/* ---- the command line */

/* Is this word a value? Options begin with "-", numbers below 0 do too. */
static bool is_value(const char *s) { return s && (*s != '-' || isdigit((unsigned char)s[1]) || s[1] == '.'); }

/* How many of n words are values, before the next option. */
static int count_values(int n, char **word)
{
    int k = 0;
    while (k < n && is_value(word[k])) k++;
    return k;
}

/* n words with commas between them; NULL: they are too long. */
static const char *join(struct train_args *a, int n, char **word)
{
    size_t at = 0;
    for (int i = 0; i < n && at < sizeof a->list; i++)
        at += (size_t)snprintf(a->list + at, sizeof a->list - at, "%s%s", i ? "," : "", word[i]);
    return at < sizeof a->list ? a->list : NULL;
}

/* The option at argv[i]; returns how many words it took. */
static int parse_one(struct train_args *a, int argc, char **argv, int i, struct err *e)
{
    char name[64];
    const struct arg_row *r = NULL;
    const char *equals = strchr(argv[i], '='), *value = equals ? equals + 1 : NULL;
    int words = 1;
    if (strncmp(argv[i], "--", 2) != 0)
        return err_set(e, ERR_USAGE, "'%s' is not an option and belongs to none", argv[i]);
    const size_t n = equals ? (size_t)(equals - argv[i]) - 2 : strlen(argv[i]) - 2;
    if (n >= sizeof name) return err_set(e, ERR_USAGE, "unknown option '%.80s'", argv[i]);
    for (size_t k = 0; k < n; k++) name[k] = argv[i][2 + k] == '-' ? '_' : argv[i][2 + k];
    name[n] = 0;
    int rc = find(&r, name, argv[i], e);
    const bool off = rc < 0 && !value && !strncmp(name, "no_", 3) && find(&r, name + 3, "", NULL) == 0 &&
                     r->kind == ARG_BOOL;
    if (rc < 0 && !off) return rc;
    if (off) value = "False";
    else if (!value && i + 1 < argc && is_value(argv[i + 1])) value = argv[i + 1], words = 2;
    else if (!value && r->kind == ARG_BOOL) value = "True";
    if (!value) return err_set(e, ERR_USAGE, "--%s wants a value", r->name);
    if (r->kind == ARG_LIST && words == 2) words = 1 + count_values(argc - i - 1, argv + i + 1);
    if (words > 2 && r->use == ARG_USED) value = join(a, words - 1, argv + i + 1);
    if (!value) return err_set(e, ERR_USAGE, "--%s has too many words", r->name);
    rc = set(a, r, value, e);
    a->given[r - train_arg_rows] = true;
    return rc < 0 ? rc : words;
}

static int must_be(bool good, const char *name, const char *what, struct err *e)
{
    return good ? 0 : err_set(e, ERR_USAGE, "--%s must be %s", name, what);
}

int train_args_projector(const char *type, int *n, struct err *e)
{
    int end = 0;
    *n = !strcmp(type, "linear") ? 1 : !strcmp(type, "identity") ? 0 : -1;
    if (*n < 0 && (sscanf(type, "mlp%dx_gelu%n", n, &end) != 1 || !end || type[end] || *n < 1 || *n > PROJECTOR_MAX))
        return err_set(e, ERR_USAGE, "--mm_projector_type '%s' is not linear, identity or mlp1x_gelu to mlp%dx_gelu",
                       type, PROJECTOR_MAX);
    return 0;
}

static const double STEPS_MAX = 1e15; /* whole in a double, and so are sums of some */

/* Texts with a form of their own. */
static int check_words(const struct train_args *a, struct err *e)
{
    const struct { const char *name, *v; } sizes[] = {
        { "memory_limit", a->memory_limit }, { "host_memory_limit", a->host_memory_limit }
    };
    struct schedule schedule;
    unsigned kinds;
    size_t bytes;
    int rc, n;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (sizes[i].v && !size_read(&bytes, sizes[i].v))
            TRY(err_set(e, ERR_USAGE, "--%s wants a size such as 48G, not '%s'", sizes[i].name, sizes[i].v));
    TRY(schedule_make(&schedule, a->lr_scheduler_type, a->lr_scheduler_kwargs, a->learning_rate, e));
    TRY(report_kinds(&kinds, a->report_to, e));
    TRY(train_args_projector(a->mm_projector_type, &n, e));
out:
    return rc;
}

static int check_ranges(const struct train_args *a, struct err *e)
{
    const struct { const char *name; int64_t v; } counts[] = {
        { "per_device_train_batch_size", a->per_device_train_batch_size },
        { "per_device_eval_batch_size", a->per_device_eval_batch_size },
        { "gradient_accumulation_steps", a->gradient_accumulation_steps }, { "lora_r", a->lora_r },
        { "lora_alpha", a->lora_alpha },
    };
    const struct { const char *name; double v; } sizes[] = {
        { "weight_decay", a->weight_decay }, { "max_grad_norm", a->max_grad_norm },
        { "adam_epsilon", a->adam_epsilon }, { "warmup_ratio", a->warmup_ratio }, { "warmup_steps", a->warmup_steps },
        { "dataloader_num_workers", (double)a->dataloader_num_workers }, { "threads", (double)a->threads },
        { "seed", (double)a->seed },
    };
    const struct { const char *name; double v; } rates[] = {
        { "learning_rate", a->learning_rate }, { "mm_projector_lr", a->mm_projector_lr },
        { "mm_vision_tower_lr", a->mm_vision_tower_lr }, { "logging_steps", a->logging_steps },
        { "save_steps", a->save_steps }, { "eval_steps", a->eval_steps },
    };
    const struct { const char *name; double v; } shares[] = {
        { "adam_beta1", a->adam_beta1 }, { "adam_beta2", a->adam_beta2 },
        { "lora_dropout", a->lora_dropout }, { "label_smoothing_factor", a->label_smoothing_factor },
        { "residual_dropout", a->residual_dropout }, { "patch_dropout", a->patch_dropout },
    };
    const struct { const char *name; double v; } steps[] = { /* below 1 they are shares */
        { "logging_steps", a->logging_steps }, { "save_steps", a->save_steps }, { "eval_steps", a->eval_steps },
        { "warmup_steps", a->warmup_steps },
    };
    int rc = 0;
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        TRY(must_be(counts[i].v >= 1 && counts[i].v <= 1 << 24, counts[i].name, "from 1 to 16777216", e));
    TRY(must_be(a->model_max_length >= 1 && a->model_max_length <= 1 << 20, "model_max_length",
                "from 1 to 1048576", e));
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        TRY(must_be(sizes[i].v >= 0, sizes[i].name, "0 or more", e));
    for (size_t i = 0; i < sizeof rates / sizeof *rates; i++)
        TRY(must_be(isnan(rates[i].v) || rates[i].v > 0, rates[i].name, "above 0", e));
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++)
        TRY(must_be(!(steps[i].v >= 1) || (floor(steps[i].v) >= steps[i].v && steps[i].v <= STEPS_MAX), steps[i].name,
                    "whole and at most 1e15, or below 1", e));
    for (size_t i = 0; i < sizeof shares / sizeof *shares; i++)
        TRY(must_be(shares[i].v >= 0 && shares[i].v < 1, shares[i].name, shares[i].v < 0 ? "0 or more" : "below 1", e));
out:
    return rc;
}

/* Ranges, what must be there, and what goes together. */
static int check(const struct train_args *a, struct err *e)
{
    int rc;
    TRY(check_ranges(a, e));
    TRY(check_words(a, e));
    TRY(must_be(a->warmup_ratio <= 1, "warmup_ratio", "at most 1", e));
    TRY(must_be(a->max_steps > 0 || a->num_train_epochs > 0, "num_train_epochs", "above 0", e));
    TRY(must_be(a->num_train_epochs <= 1e9, "num_train_epochs", "at most 1e9", e));
    TRY(must_be((double)a->max_steps <= STEPS_MAX, "max_steps", "at most 1e15", e));
    TRY(must_be(!(a->bf16 && a->fp16), "bf16", "given without --fp16", e));
    if (!a->master_weights && (!a->bf16 || !strstr(a->optim, "8bit")))
        TRY(err_set(e, ERR_USAGE, "--master_weights False wants --bf16 True and --optim adamw_8bit: only 8-bit steps "
                    "round at random"));
    if (!strcmp(a->optim, "muon") && strcmp(a->offload, "auto") != 0 && strcmp(a->offload, "none") != 0)
        TRY(err_set(e, ERR_USAGE, "--offload %s: Muon keeps everything on the device", a->offload));
    if (a->cache_features && (a->unfreeze_mm_vision_tower || a->image_augment))
        TRY(err_set(e, ERR_USAGE, "--cache_features: with %s no picture has the same features twice",
                    a->image_augment ? "--image_augment" : "--unfreeze_mm_vision_tower"));
    TRY(must_be(a->gradient_checkpointing || strcmp(a->offload, "activations") != 0, "gradient_checkpointing",
                "True with --offload activations", e));
    TRY(must_be(a->data_path, "data_path", "given", e));
    TRY(must_be(a->dry_run || (a->output_dir && *a->output_dir), "output_dir", "given", e));
    TRY(must_be(a->model_name_or_path, "model_name_or_path", "given", e));
    if (a->tune_mm_mlp_adapter && a->freeze_mm_mlp_adapter)
        TRY(err_set(e, ERR_USAGE, "--tune_mm_mlp_adapter and --freeze_mm_mlp_adapter together leave nothing to train"));
out:
    return rc;
}

static void set_defaults(struct train_args *a)
{
    *a = (struct train_args){ 0 };
    for (int i = 0; i < train_arg_count; i++)
        if (train_arg_rows[i].use == ARG_USED && train_arg_rows[i].kind != ARG_HEAD) {
            const int rc = set(a, &train_arg_rows[i], train_arg_rows[i].def, NULL);
            ASSERT(rc == 0);
        }
}

int train_args_parse(struct train_args *a, int argc, char **argv, struct err *e)
{
    set_defaults(a);
    for (int i = 1; i < argc;) {
        const int words = parse_one(a, argc, argv, i, e);
        if (words < 0) return words;
        i += words;
    }
    if (!train_args_given(a, "data_seed")) a->data_seed = a->seed;
    if (a->use_cpu || a->no_cuda) a->device = "cpu";
    return check(a, e);
}

/* ---- printing */

void train_args_report(const struct train_args *a)
{
    char list[900] = "";
    for (int i = 0; i < train_arg_count; i++) {
        const size_t n = strlen(list);
        if (!a->given[i] || train_arg_rows[i].use != ARG_IGNORED || n > sizeof list - 60) continue;
        snprintf(list + n, sizeof list - n, "%s--%s", n ? ", " : "", train_arg_rows[i].name);
    }
    if (*list) log_info("without effect here: %s", list);
}

/* Words of text from column `at`, lines broken before column 80. */
static void print_wrapped(FILE *f, const char *text, int at, int column)
{
    while (*text) {
        const int n = (int)strcspn(text, " ");
        if (column + 1 + n > 79) fprintf(f, "\n%*s", at - 1, ""), column = at - 1;
        fprintf(f, " %.*s", n, text);
        column += 1 + n;
        text += n;
        text += *text == ' ';
    }
    fputc('\n', f);
}

int train_args_threads(const struct train_args *a)
{
    return a->threads ? plat_threads_startable((int)a->threads) : plat_threads();
}

void train_args_help(FILE *f)
{
    enum { COLUMN = 32 };
    static const char *const types[] = { [ARG_STR] = "TEXT", [ARG_LIST] = "TEXT...", [ARG_BOOL] = "[BOOL]",
                                         [ARG_INT] = "N", [ARG_REAL] = "X" };
    for (int i = 0; i < train_arg_count; i++) {
        const struct arg_row *r = &train_arg_rows[i];
        char text[600], words[200] = "";
        if (r->kind == ARG_HEAD) fprintf(f, "\n%s:\n", r->help);
        if (r->kind == ARG_HEAD || r->use != ARG_USED) continue;
        const int n = fprintf(f, "  --%s %s", r->name, types[r->kind]);
        if (n >= COLUMN) fprintf(f, "\n%*s", COLUMN, "");
        else fprintf(f, "%*s", COLUMN - n, "");
        if (r->choices) listed(words, r->choices);
        snprintf(text, sizeof text, "%s%s%s%s%s%s", words, *words ? ". " : "", r->help, r->def ? " (default " : "",
                 r->def ? r->def : "", r->def ? ")" : "");
        print_wrapped(f, text, COLUMN + 1, COLUMN);
    }
    fprintf(f, "\nAccepted, without effect here:\n ");
    int column = 2;
    for (int i = 0; i < train_arg_count; i++) {
        const struct arg_row *r = &train_arg_rows[i];
        if (r->use != ARG_IGNORED) continue;
        const int n = (int)strlen(r->name) + 3;
        if (column + n > 79) fprintf(f, "\n "), column = 2;
        column += fprintf(f, " --%s", r->name);
    }
    fprintf(f, "\n\nAccepted with their default only, as others would change the result:\n ");
    column = 2;
    for (int i = 0; i < train_arg_count; i++) {
        const struct arg_row *r = &train_arg_rows[i];
        if (r->use != ARG_ONLY) continue;
        const int n = (int)strlen(r->name) + 3;
        if (column + n > 79) fprintf(f, "\n "), column = 2;
        column += fprintf(f, " --%s", r->name);
    }
    fputc('\n', f);
}

static json_t *rows_json(const struct train_args *a, bool same_only)
{
    json_t *o = json_object();
    for (int i = 0; o && i < train_arg_count; i++) {
        const struct arg_row *r = &train_arg_rows[i];
        const void *at = (const char *)a + r->offset;
        json_t *v = NULL;
        if (r->use != ARG_USED || r->kind == ARG_HEAD || (same_only && !r->same)) continue;
        if (is_text(r)) v = *(const char *const *)at ? json_string(*(const char *const *)at) : json_null();
        else if (r->kind == ARG_BOOL) v = json_boolean(*(const bool *)at);
        else if (r->kind == ARG_INT) v = json_integer(*(const int64_t *)at);
        else v = isnan(*(const double *)at) ? json_null() : json_real(*(const double *)at);
        if (!v || json_object_set_new(o, r->name, v) < 0) {
            json_decref(o);
            return NULL;
        }
    }
    return o;
}

json_t *train_args_json(const struct train_args *a) { return rows_json(a, false); }

json_t *train_args_same(const struct train_args *a)
{
    struct train_args plain;
    if (!a) set_defaults(&plain);
    return rows_json(a ? a : &plain, true);
}
