/* See tokens.h. */
#include "train/tokens.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "file/json.h"
#include "model/save.h"

/* {"32000": {"content": "<im_start>", ...}} of tokenizer_config.json. Without one readers look into added_tokens.json;
 * with one nowhere else. */
static void add_to_config(json_t *file, const json_t *tokens)
{
    json_t *decoder = json_object_get(file, "added_tokens_decoder"), *id;
    const char *text;
    json_object_foreach((json_t *)tokens, text, id)
    {
        char key[24];
        snprintf(key, sizeof key, "%lld", (long long)json_integer_value(id));
        if (decoder) json_object_set_new(decoder, key, save_added_token(text));
    }
}

/* [{"id": 32000, "content": ...}] of tokenizer.json. */
static void add_to_fast(json_t *file, const json_t *tokens)
{
    json_t *list = json_object_get(file, "added_tokens"), *id, *old;
    const char *text;
    size_t i;
    if (!list) json_object_set_new(file, "added_tokens", list = json_array());
    json_object_foreach((json_t *)tokens, text, id)
    {
        bool there = false;
        json_array_foreach(list, i, old) there = there || json_equal(json_object_get(old, "id"), id);
        json_t *one = there ? NULL : save_added_token(text);
        if (one) json_object_set(one, "id", id);
        if (one) json_array_append_new(list, one);
    }
}

static void add_to_map(json_t *file, const json_t *tokens)
{
    json_object_update(file, (json_t *)tokens);
}

int tokens_save(struct saver *s, const char *from, const json_t *tokens, struct err *e)
{
    static const struct {
        const char *file;
        void (*add)(json_t *file, const json_t *tokens);
        bool always;
    } rows[] = {
        { "added_tokens.json", add_to_map, true },
        { "tokenizer_config.json", add_to_config, false },
        { "tokenizer.json", add_to_fast, false },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char path[4096];
        json_t *v = NULL;
        int rc = 0;
        snprintf(path, sizeof path, "%s/%s", from, rows[i].file);
        if (access(path, F_OK) == 0) rc = json_file_load_wide(&v, path, e);
        else if (rows[i].always) v = json_object();
        if (v) rows[i].add(v, tokens);
        if (v && rc >= 0) rc = save_json(s, rows[i].file, v, e);
        json_decref(v);
        if (rc < 0) return rc;
    }
    return 0;
}
