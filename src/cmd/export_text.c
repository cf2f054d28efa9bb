/* The tokenizer's files with and without <image> and <pad>, as transformers' processors want them. See
 * export.h. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "cmd/export.h"
#include "file/json.h"

static const char *const marks[] = { "<image>", "<pad>" };

/* The object in the last of the folders that has the file; *ret NULL where none has. */
static int load(json_t **ret, const char *const dirs[2], const char *file, struct err *e)
{
    *ret = NULL;
    for (int i = 2; i-- > 0;) {
        char path[4096];
        if (!dirs[i]) continue;
        snprintf(path, sizeof path, "%s/%s", dirs[i], file);
        if (access(path, F_OK) == 0) return json_file_load_wide(ret, path, e);
    }
    return 0;
}

/* The text of a token given as a string or an object; NULL: neither. */
static const char *content(const json_t *v)
{
    return json_string_value(json_is_object(v) ? json_object_get(v, "content") : v);
}

static bool is_mark(const json_t *v)
{
    const char *s = content(v);
    return s && (!strcmp(s, marks[0]) || !strcmp(s, marks[1]));
}

static void put_decoder(json_t *decoder, const char *text, int id)
{
    char key[16];
    snprintf(key, sizeof key, "%d", id);
    if (id >= 0 && !json_object_get(decoder, key)) json_object_set_new(decoder, key, save_added_token(text));
}

/* tokenizer_config.json. A new added_tokens_decoder must name every added token: readers look nowhere else
 * then. */
static int config_add(struct saver *s, const char *const dirs[2], const struct tokenizer *t, const int ids[2],
                      const json_t *added, struct err *e)
{
    static const char *const named[][2] = { { "unk_token", "<unk>" },
                                            { "bos_token", "<s>" },
                                            { "eos_token", "</s>" } };
    json_t *v;
    int rc = load(&v, dirs, "tokenizer_config.json", e);
    if (rc < 0) return rc;
    if (!v) v = json_pack("{s:b,s:b,s:b}", "add_bos_token", 1, "add_eos_token", 0, "legacy", 1);
    json_t *decoder = json_object_get(v, "added_tokens_decoder");
    if (!decoder) json_object_set_new(v, "added_tokens_decoder", decoder = json_object());
    for (int i = 0; i < 3; i++) {
        const char *text = content(json_object_get(v, named[i][0]));
        if (!text) text = named[i][1];
        put_decoder(decoder, text, tokenizer_find(t, text));
        if (!json_object_get(v, named[i][0])) json_object_set_new(v, named[i][0], json_string(text));
    }
    const char *text;
    json_t *id;
    json_object_foreach((json_t *)added, text, id) put_decoder(decoder, text, (int)json_integer_value(id));
    for (int i = 0; i < 2; i++) put_decoder(decoder, marks[i], ids[i]);
    json_object_set_new(v, "pad_token", json_string("<pad>"));
    if (!json_object_get(v, "tokenizer_class"))
        json_object_set_new(v, "tokenizer_class", json_string("LlamaTokenizer"));
    json_object_set_new(v, "processor_class", json_string("LlavaProcessor"));
    rc = save_json(s, "tokenizer_config.json", v, e);
    json_decref(v);
    return rc;
}

/* tokenizer.json, of the tokenizer where the folders have none: transformers 5 reads tokenizer.model without the space
 * in front of a text. */
static int fast_add(struct saver *s, const char *const dirs[2], const struct tokenizer *t, const int ids[2],
                    struct err *e)
{
    json_t *v, *one;
    size_t i;
    int rc = load(&v, dirs, "tokenizer.json", e);
    if (rc < 0) return rc;
    if (!v && (rc = tokenizer_to_json(&v, t, e)) == ERR_UNSUPPORTED) {
        log_warn("no tokenizer.json is written: %s", e->msg);
        return 0;
    }
    if (rc < 0) return rc;
    json_t *list = json_object_get(v, "added_tokens");
    if (!list) json_object_set_new(v, "added_tokens", list = json_array());
    for (int k = 0; k < 2; k++) {
        bool there = false;
        json_array_foreach(list, i, one) there = there || (content(one) && !strcmp(content(one), marks[k]));
        if (there) continue;
        one = save_added_token(marks[k]);
        json_object_set_new(one, "id", json_integer(ids[k]));
        json_array_append_new(list, one);
    }
    rc = save_json(s, "tokenizer.json", v, e);
    json_decref(v);
    return rc;
}

int export_tokens_add(struct saver *s, const char *const dirs[2], const struct tokenizer *t, int image,
                      int pad, const struct llava_config *c, struct err *e)
{
    int ids[2] = { image, pad }, rc;
    json_t *added = NULL, *map = NULL, *proc = NULL;
    TRY(load(&added, dirs, "added_tokens.json", e));
    if (!added) added = json_object();
    for (int i = 0; i < 2; i++) json_object_set_new(added, marks[i], json_integer(ids[i]));
    TRY(config_add(s, dirs, t, ids, added, e));
    TRY(save_json(s, "added_tokens.json", added, e));
    TRY(load(&map, dirs, "special_tokens_map.json", e));
    if (!map) map = json_pack("{s:s,s:s,s:s}", "bos_token", "<s>", "eos_token", "</s>", "unk_token", "<unk>");
    json_object_set_new(map, "pad_token", json_string("<pad>"));
    TRY(save_json(s, "special_tokens_map.json", map, e));
    TRY(fast_add(s, dirs, t, ids, e));
    TRY(load(&proc, dirs, "processor_config.json", e));
    if (!proc) proc = json_object();
    json_t *want =
        json_pack("{s:s,s:s,s:i,s:s,s:i}", "processor_class",
                  c->aspect == ASPECT_ANYRES ? "LlavaNextProcessor" : "LlavaProcessor", "image_token",
                  "<image>", "patch_size", c->clip.patch, "vision_feature_select_strategy",
                  c->select_cls ? "full" : "default", "num_additional_image_tokens", 1);
    json_object_update(proc, want);
    json_decref(want);
    TRY(save_json(s, "processor_config.json", proc, e));
out:
    json_decref(added);
    json_decref(map);
    json_decref(proc);
    return rc;
}

/* Members of an object or an array that are the two tokens. */
static void drop_marks(json_t *v)
{
    const char *key;
    json_t *x;
    void *next;
    for (size_t i = json_array_size(v); i-- > 0;)
        if (is_mark(json_array_get(v, i))) json_array_remove(v, i);
    if (!json_is_object(v)) return;
    json_object_foreach_safe(v, next, key, x) if (is_mark(x) || !strcmp(key, marks[0]) ||
                                                  !strcmp(key, marks[1])) json_object_del(v, key);
}

/* One file: what names the tokens goes; without <pad>, <unk> pads, as in LLaVA's own folders. */
static int file_drop(struct saver *s, const char *const dirs[2], const char *file, struct err *e)
{
    static const char *const lists[] = { "added_tokens_decoder", "added_tokens", "additional_special_tokens",
                                         "extra_special_tokens" };
    json_t *v;
    int rc = load(&v, dirs, file, e);
    if (rc < 0 || !v) return rc;
    bool padded = is_mark(json_object_get(v, "pad_token"));
    drop_marks(v);
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) drop_marks(json_object_get(v, lists[i]));
    if (padded) json_object_set_new(v, "pad_token", json_string("<unk>"));
    json_object_del(v, "processor_class");
    rc = save_json(s, file, v, e);
    json_decref(v);
    return rc;
}

int export_tokens_drop(struct saver *s, const char *const dirs[2], struct err *e)
{
    static const char *const files[] = { "tokenizer_config.json", "special_tokens_map.json",
                                         "added_tokens.json", "tokenizer.json" };
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        int rc = file_drop(s, dirs, files[i], e);
        if (rc < 0) return rc;
    }
    return 0;
}
