/* What the JSON files beside a tokenizer.model say: the mode, and which strings are tokens of their own. The
 * order in which files win is transformers 4.37.2's (tokenization_utils_base.py, from_pretrained). */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "text/tokenizer_in.h"

static const char config_file[] = "tokenizer_config.json", map_file[] = "special_tokens_map.json",
                  added_file[] = "added_tokens.json", fast_file[] = "tokenizer.json";

/* The strings that tokenizer_config.json can name, in transformers' order; -1: not kept. */
static const struct special {
    const char *key, *text; /* text: LlamaTokenizer's default */
    long field;             /* offset in struct tokenizer_info */
} specials[] = {
    { "bos_token", "<s>", offsetof(struct tokenizer_info, bos) },
    { "eos_token", "</s>", offsetof(struct tokenizer_info, eos) },
    { "unk_token", "<unk>", offsetof(struct tokenizer_info, unk) },
    { "sep_token", NULL, -1 },
    { "pad_token", NULL, offsetof(struct tokenizer_info, pad) },
    { "cls_token", NULL, -1 },
    { "mask_token", NULL, -1 },
};
enum { N_SPECIALS = sizeof specials / sizeof *specials };

/* What was found out before the tokens are added; the values are borrowed from the files' JSON, and read_token
 * has accepted them. */
struct named {
    json_t *token[N_SPECIALS]; /* a string or an object; NULL: the default; json null: none */
    json_t *more;              /* additional_special_tokens, an array, or NULL */
};

/* *ret stays NULL where dir has no such file. Integers come as reals: model_max_length is often 10^30. */
static int load(json_t **ret, const char *dir, const char *name, struct err *e)
{
    struct buf path = buf_make(1 << 16);
    char *text = NULL;
    size_t n;
    json_error_t je;
    int rc;
    buf_fmt(&path, "%s/%s", dir, name);
    TRY(buf_check(&path, "a path", e));
    if (access(path.p, F_OK) != 0) goto out;
    TRY(file_read(&text, &n, path.p, TOKENIZER_FILE_MAX, e));
    *ret = json_loadb(text, n, JSON_DECODE_INT_AS_REAL, &je);
    if (!*ret) rc = err_set(e, ERR_FORMAT, "cannot parse '%s', line %d: %s", path.p, je.line, je.text);
    else if (!json_is_object(*ret)) rc = err_set(e, ERR_FORMAT, "'%s' is no JSON object", path.p);
out:
    free(text);
    buf_free(&path);
    return rc;
}

static int get_flag(const json_t *o, const char *key, bool *ret, struct err *e)
{
    const json_t *v = json_object_get(o, key);
    if (!v || json_is_null(v)) return 0;
    if (!json_is_boolean(v)) return err_set(e, ERR_FORMAT, "'%s' is neither true nor false", key);
    *ret = json_is_true(v);
    return 0;
}

/* A token written as a string or as an object {content, lstrip, rstrip, single_word, special}. */
static int read_token(struct added *a, const json_t *v, struct err *e)
{
    const json_t *text = json_is_object(v) ? json_object_get(v, "content") : v;
    bool word = false;
    int rc;
    *a = (struct added){ .id = -1 };
    if (!json_is_string(text)) return err_set(e, ERR_FORMAT, "a token has no text");
    a->text = (char *)json_string_value(text); /* borrowed: tokenizer_put copies it */
    a->n = json_string_length(text);
    if (!json_is_object(v)) return 0;
    TRY(get_flag(v, "lstrip", &a->lstrip, e));
    TRY(get_flag(v, "rstrip", &a->rstrip, e));
    TRY(get_flag(v, "special", &a->special, e));
    TRY(get_flag(v, "single_word", &word, e));
    if (word) rc = err_set(e, ERR_UNSUPPORTED, "added token '%s' is marked single_word", a->text);
out:
    return rc;
}

static int read_id(int32_t *id, const json_t *v, const char *token, struct err *e)
{
    double x = json_number_value(v);
    if (!json_is_number(v) || !(x >= 0 && x < TOKENIZER_ID_MAX) || x != (int32_t)x)
        return err_set(e, ERR_FORMAT, "the id of added token '%s' is not in 0..%d", token, TOKENIZER_ID_MAX - 1);
    *id = (int32_t)x;
    return 0;
}

/* {"32000": {"content": "<image>", ...}, ...} */
static int put_decoder(struct tokenizer *t, json_t *decoder, struct err *e)
{
    const char *key;
    json_t *v;
    json_object_foreach(decoder, key, v) {
        struct added a;
        char *end;
        int rc = read_token(&a, v, e);
        if (rc < 0) return rc;
        long id = strtol(key, &end, 10);
        if (end == key || *end || id < 0 || id >= TOKENIZER_ID_MAX)
            return err_set(e, ERR_FORMAT, "added_tokens_decoder: '%s' is not an id in 0..%d", key,
                           TOKENIZER_ID_MAX - 1);
        a.id = (int32_t)id;
        if ((rc = tokenizer_put(t, &a, e)) < 0) return rc;
    }
    return 0;
}

/* added_tokens.json: {"<im_patch>": 32000, ...} */
static int put_added_file(struct tokenizer *t, json_t *file, struct err *e)
{
    const char *key;
    json_t *v;
    json_object_foreach(file, key, v) {
        struct added a = { .text = (char *)key, .n = strlen(key) };
        int rc = read_id(&a.id, v, key, e);
        if (rc < 0 || (rc = tokenizer_put(t, &a, e)) < 0) return rc;
    }
    return 0;
}

/* tokenizer.json: "added_tokens": [{"id": 32000, "content": "<image>", ...}, ...] */
static int put_fast_file(struct tokenizer *t, const json_t *file, struct err *e)
{
    const json_t *list = json_object_get(file, "added_tokens");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *v = json_array_get(list, i);
        struct added a;
        int rc = read_token(&a, v, e);
        if (rc < 0 || (rc = read_id(&a.id, json_object_get(v, "id"), a.text, e)) < 0) return rc;
        if ((rc = tokenizer_put(t, &a, e)) < 0) return rc;
    }
    return 0;
}

static int find_named(struct named *names, const json_t *file, struct err *e)
{
    struct added a;
    int rc;
    for (int i = 0; i < N_SPECIALS; i++) {
        json_t *v = json_object_get(file, specials[i].key);
        if (v && !json_is_null(v) && (rc = read_token(&a, v, e)) < 0) return rc;
        if (v) names->token[i] = v;
    }
    json_t *more = json_object_get(file, "additional_special_tokens");
    if (!more || json_is_null(more)) return 0;
    if (!json_is_array(more)) return err_set(e, ERR_FORMAT, "'additional_special_tokens' is no list");
    for (size_t i = 0; i < json_array_size(more); i++)
        if ((rc = read_token(&a, json_array_get(more, i), e)) < 0) return rc;
    names->more = more;
    return 0;
}

/* Marks a token as special, adding it where it is not there yet: flags that the files gave it already stay.
 * */
static int32_t put_special(struct tokenizer *t, const struct added *wanted, bool named, struct err *e)
{
    const struct added *old = NULL;
    for (size_t i = t->n_added; i-- > 0 && !old;)
        if (t->added[i].n == wanted->n && memcmp(t->added[i].text, wanted->text, wanted->n) == 0)
            old = &t->added[i];
    struct added a = old ? *old : *wanted;
    char *copy = malloc(a.n + 1);
    if (!copy) return err_set(e, ERR_NOMEM, "no memory for added token '%s'", a.text);
    memcpy(copy, a.text, a.n + 1);
    a.text = copy;
    a.special = true;
    a.named = a.named || named;
    int32_t id = tokenizer_put(t, &a, e);
    free(copy);
    return id;
}

static int put_named(struct tokenizer *t, const struct named *names, struct err *e)
{
    struct added a;
    int rc;
    for (int i = 0; i < N_SPECIALS; i++) {
        const json_t *v = names->token[i];
        bool needed = specials[i].field == offsetof(struct tokenizer_info, unk);
        if (json_is_null(v) && !needed) continue;
        if (v && !json_is_null(v)) {
            if ((rc = read_token(&a, v, e)) < 0) return rc;
            if (a.n == 0 && !needed) continue;
        }
        if (!v || json_is_null(v) || a.n == 0) {
            if (!specials[i].text) continue;
            a = (struct added){ .text = (char *)specials[i].text, .n = strlen(specials[i].text), .id = -1 };
        }
        int32_t id = put_special(t, &a, true, e);
        if (id < 0) return id;
        if (specials[i].field >= 0) *(int32_t *)((char *)&t->info + specials[i].field) = id;
    }
    for (size_t i = 0; i < json_array_size(names->more); i++) {
        if ((rc = read_token(&a, json_array_get(names->more, i), e)) < 0) return rc;
        if (a.n && (rc = put_special(t, &a, false, e)) < 0) return rc;
    }
    return 0;
}

/* A tokenizer.json made from a legacy tokenizer puts a space in front of every part: by its normalizer, or by
 * a Metaspace step with prepend_scheme "always". */
static bool json_is_legacy(const json_t *fast)
{
    const json_t *norm = json_object_get(fast, "normalizer"), *pre = json_object_get(fast, "pre_tokenizer");
    const json_t *steps = json_object_get(norm, "normalizers");
    for (size_t i = 0; i < json_array_size(steps); i++) {
        const char *type = json_string_value(json_object_get(json_array_get(steps, i), "type"));
        if (type && strcmp(type, "Prepend") == 0) return true;
    }
    const char *scheme = json_string_value(json_object_get(pre, "prepend_scheme"));
    return scheme && strcmp(scheme, "always") == 0;
}

/* Without the field a slow tokenizer is legacy; what transformers 5 writes says it in tokenizer.json alone. */
static int read_settings(struct tokenizer *t, const json_t *cfg, const json_t *fast, struct err *e)
{
    bool is_legacy = fast ? json_is_legacy(fast) : true;
    double max = json_number_value(json_object_get(cfg, "model_max_length"));
    int rc;
    TRY(get_flag(cfg, "legacy", &is_legacy, e));
    t->info.mode = is_legacy ? TOKENIZER_LEGACY : TOKENIZER_NEW;
    TRY(get_flag(cfg, "add_bos_token", &t->info.add_bos, e));
    TRY(get_flag(cfg, "add_eos_token", &t->info.add_eos, e));
    t->info.model_max_length = max >= 1 && max < 1e9 ? (int64_t)max : 0;
    rc = 0;
out:
    return rc;
}

/* Says in which file of dir an error is. */
static int in_file(int rc, const char *dir, const char *name, struct err *e)
{
    return rc < 0 ? err_prefix(e, "'%s/%s'", dir, name), rc : 0;
}

/* The files beside tokenizer_config.json. What stands in them counts only where that has no
 * added_tokens_decoder, but they must be JSON. */
static int read_old_files(struct tokenizer *t, struct named *names, const json_t *map, json_t *added,
                          const json_t *fast, const char *dir, struct err *e)
{
    int rc = in_file(find_named(names, map, e), dir, map_file, e);
    if (rc < 0 || (rc = in_file(put_added_file(t, added, e), dir, added_file, e)) < 0) return rc;
    return in_file(put_fast_file(t, fast, e), dir, fast_file, e);
}

int tokenizer_read_config(struct tokenizer *t, const char *dir, struct err *e)
{
    json_t *cfg = NULL, *map = NULL, *added = NULL, *fast = NULL;
    struct named names = { 0 };
    struct buf model = buf_make(1 << 16);
    int rc = 0;
    if (dir) {
        buf_fmt(&model, "%s/tokenizer.model", dir);
        TRY(buf_check(&model, "a path", e));
        bool from_fast = access(model.p, F_OK) != 0;
        TRY(load(&cfg, dir, config_file, e));
        TRY(load(&map, dir, map_file, e));
        TRY(load(&added, dir, added_file, e));
        TRY(in_file(find_named(&names, cfg, e), dir, config_file, e));
        json_t *decoder = json_object_get(cfg, "added_tokens_decoder");
        if (from_fast || !json_is_object(decoder)) TRY(load(&fast, dir, fast_file, e));
        TRY(in_file(read_settings(t, cfg, fast, e), dir, config_file, e));
        if (json_is_object(decoder)) TRY(in_file(put_decoder(t, decoder, e), dir, config_file, e));
        else TRY(read_old_files(t, &names, map, added, fast, dir, e));
    }
    rc = put_named(t, &names, e);
out:
    json_decref(cfg);
    json_decref(map);
    json_decref(added);
    json_decref(fast);
    buf_free(&model);
    return rc < 0 ? rc : 0;
}
