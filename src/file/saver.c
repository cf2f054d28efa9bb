/* See saver.h. */
#define _GNU_SOURCE
#include "file/saver.h"

#include <dirent.h>
#include <errno.h>
#include <fnmatch.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/map.h"
#include "file/json.h"
#include "file/out.h"
#include "file/safetensors.h"
#include "file/torchbin.h"

enum { SHARDS_MAX = 99999, SIDE_FILE_MAX = 1 << 30 };
static const size_t shard_default = 5000000000u;
static const char *const meta_pt[] = { "format", "pt", NULL };
static const char index_name[] = "model.safetensors.index.json";

struct saver {
    char *dir, *tmp;
    bool fresh;   /* dir does not exist yet: tmp becomes it */
    bool weights; /* saver_weights was called */
    bool failed;  /* something could not be written */
};

static int path_make(char **ret, const char *dir, const char *file, struct err *e)
{
    if (asprintf(ret, "%s/%s", dir, file) >= 0) return 0;
    *ret = NULL;
    return err_set(e, ERR_NOMEM, "no memory for a path");
}

/* Remembers a failure. */
static int done(struct saver *s, int rc)
{
    s->failed = s->failed || rc < 0;
    return rc;
}

static int name_compare(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static void names_free(char **names, size_t n)
{
    for (size_t i = 0; i < n; i++) free(names[i]);
    free(names);
}

/* Names in a folder but . and .., sorted. */
static int names_read(char ***ret, size_t *ret_n, const char *dir, struct err *e)
{
    char **names = NULL;
    size_t n = 0;
    struct dirent *d;
    DIR *f = opendir(dir);
    int rc = 0;
    if (!f) return err_errno(e, "open", dir);
    while (rc >= 0 && (d = readdir(f))) {
        if (!strcmp(d->d_name, ".") || !strcmp(d->d_name, "..")) continue;
        char **more = realloc(names, (n + 1) * sizeof *names), *copy = strdup(d->d_name);
        if (more) names = more;
        if (more && copy) names[n++] = copy;
        else free(copy), rc = err_set(e, ERR_NOMEM, "no memory for a path");
    }
    closedir(f);
    if (rc < 0) names_free(names, n);
    else {
        if (n) qsort(names, n, sizeof *names, name_compare);
        *ret = names;
        *ret_n = n;
    }
    return rc;
}

/* Removes a flat folder; whatever fails stays. */
static void dir_remove(const char *dir)
{
    char **names, *path;
    size_t n;
    if (names_read(&names, &n, dir, NULL) < 0) return;
    for (size_t i = 0; i < n; i++) {
        if (path_make(&path, dir, names[i], NULL) >= 0) unlink(path);
        free(path);
    }
    names_free(names, n);
    rmdir(dir);
}

int saver_open(struct saver **ret, const char *dir, struct err *e)
{
    struct stat st;
    struct saver *s = calloc(1, sizeof *s);
    int rc = 0;
    size_t n = strlen(dir);
    while (n > 1 && dir[n - 1] == '/') n--;
    if (s) s->dir = strndup(dir, n);
    if (!s || !s->dir) {
        saver_close(s);
        return err_set(e, ERR_NOMEM, "no memory to save '%s'", dir);
    }
    s->fresh = stat(dir, &st) < 0;
    if (!s->fresh && !S_ISDIR(st.st_mode))
        rc = err_set(e, ERR_IO, "cannot save into '%s': it is not a folder", dir);
    else if (asprintf(&s->tmp, s->fresh ? "%s.saving" : "%s/.saving", s->dir) < 0) {
        s->tmp = NULL;
        rc = err_set(e, ERR_NOMEM, "no memory to save '%s'", dir);
    } else {
        dir_remove(s->tmp);
        rc = out_make_dirs(s->tmp, e);
    }
    if (rc < 0) saver_close(s);
    else *ret = s;
    return rc;
}

int saver_tensors(struct saver *s, const char *file, const struct weight *w, size_t n, weight_fetch_fn *fetch,
                  void *ctx, struct err *e)
{
    char *path;
    int rc = path_make(&path, s->tmp, file, e);
    if (rc < 0) return done(s, rc);
    rc = !fnmatch("*.bin", file, 0) ? torchbin_write(path, w, n, fetch, ctx, e)
                                    : safetensors_write(path, w, n, meta_pt, fetch, ctx, e);
    free(path);
    return done(s, rc);
}

int saver_json(struct saver *s, const char *file, const json_t *v, struct err *e)
{
    char *path;
    int rc = path_make(&path, s->tmp, file, e);
    if (rc < 0) return done(s, rc);
    rc = json_file_save(path, v, e);
    free(path);
    return done(s, rc);
}

int saver_bytes(struct saver *s, const char *file, const void *p, size_t n, struct err *e)
{
    char *path;
    int rc = path_make(&path, s->tmp, file, e);
    if (rc < 0) return done(s, rc);
    rc = out_file(path, p, n, e);
    free(path);
    return done(s, rc);
}

/* How many tensors from `from` on go into one shard. */
static size_t shard_count(const struct weight *w, size_t n, size_t from, size_t limit)
{
    size_t k = from, bytes = 0;
    while (k < n && (k == from || tensor_bytes(w[k].t) <= limit - bytes)) {
        bytes += tensor_bytes(w[k++].t);
        if (bytes >= limit) break;
    }
    return k - from;
}

static int shards_write(struct saver *s, const struct weight *w, size_t n, size_t limit, size_t n_shard,
                        weight_fetch_fn *fetch, void *ctx, struct err *e)
{
    int rc = 0;
    size_t total = 0, from = 0;
    json_t *map = json_object(), *index;
    for (size_t i = 1; i <= n_shard && rc >= 0; i++) {
        char file[64];
        size_t k = shard_count(w, n, from, limit);
        snprintf(file, sizeof file, "model-%05zu-of-%05zu.safetensors", i, n_shard);
        for (size_t j = from; j < from + k; j++) {
            total += tensor_bytes(w[j].t);
            if (json_object_get(map, w[j].name))
                rc = err_set(e, ERR_USAGE, "cannot save '%s': two tensors are named '%.200s'", s->dir,
                             w[j].name);
            else if (json_object_set_new(map, w[j].name, json_string(file)) < 0)
                rc = err_set(e, ERR_NOMEM, "no memory for an index");
        }
        if (rc >= 0) rc = saver_tensors(s, file, w + from, k, fetch, ctx, e);
        from += k;
    }
    index = json_pack("{s:{s:I}, s:o}", "metadata", "total_size", (json_int_t)total, "weight_map", map);
    if (rc >= 0)
        rc = index ? saver_json(s, index_name, index, e) : err_set(e, ERR_NOMEM, "no memory for an index");
    json_decref(index);
    return done(s, rc);
}

int saver_weights(struct saver *s, const struct weight *w, size_t n, size_t shard_bytes,
                  weight_fetch_fn *fetch, void *ctx, struct err *e)
{
    size_t limit = shard_bytes ? shard_bytes : shard_default, n_shard = 0;
    for (size_t from = 0; from < n; n_shard++) from += shard_count(w, n, from, limit);
    s->weights = true;
    if (n_shard > SHARDS_MAX)
        return done(s, err_set(e, ERR_LIMIT, "cannot save '%s': more than %d files", s->dir, SHARDS_MAX));
    if (n_shard <= 1) return saver_tensors(s, "model.safetensors", w, n, fetch, ctx, e);
    return shards_write(s, w, n, limit, n_shard, fetch, ctx, e);
}

int saver_copy_side_files(struct saver *s, const char *from, struct err *e)
{
    static const char *const names[] = { "tokenizer.model",          "tokenizer.json",
                                         "tokenizer_config.json",    "special_tokens_map.json",
                                         "added_tokens.json",        "generation_config.json",
                                         "preprocessor_config.json", "processor_config.json",
                                         "chat_template.json" };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char *path;
        struct map m = { 0 };
        int rc = path_make(&path, from, names[i], e);
        if (rc < 0) return done(s, rc);
        if (access(path, F_OK) == 0) {
            rc = map_open(&m, path, e);
            if (rc >= 0) rc = saver_bytes(s, names[i], m.p, m.n, e);
        }
        map_close(&m);
        free(path);
        if (rc < 0) return done(s, rc);
    }
    return 0;
}

static bool is_weights(const char *file)
{
    return !strcmp(file, "model.safetensors") || !strcmp(file, index_name) ||
           !fnmatch("model-[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9].safetensors", file, 0);
}

/* Renames one file from the temporary folder into the other. */
static int file_place(const struct saver *s, const char *file, struct err *e)
{
    char *from = NULL, *to = NULL;
    int rc;
    TRY(path_make(&from, s->tmp, file, e));
    TRY(path_make(&to, s->dir, file, e));
    if (rename(from, to) < 0) rc = err_errno(e, "rename to", to);
out:
    free(from);
    free(to);
    return rc;
}

/* Removes weights in the folder that are not among the new names. */
static int stale_remove(const struct saver *s, char **names, size_t n, struct err *e)
{
    char **old;
    size_t n_old;
    int rc = names_read(&old, &n_old, s->dir, e);
    if (rc < 0) return rc;
    for (size_t i = 0; i < n_old; i++) {
        char *path;
        if (!is_weights(old[i]) || (n && bsearch(&old[i], names, n, sizeof *names, name_compare))) continue;
        if (path_make(&path, s->dir, old[i], NULL) >= 0) unlink(path);
        free(path);
    }
    names_free(old, n_old);
    return 0;
}

int saver_commit(struct saver *s, struct err *e)
{
    char **names;
    size_t n;
    if (s->failed)
        return err_set(e, ERR_USAGE, "cannot save '%s': a part of it could not be written", s->dir);
    int rc = out_sync_dir(s->tmp, e);
    if (rc < 0) return rc;
    if (s->fresh)
        return rename(s->tmp, s->dir) < 0 ? err_errno(e, "rename to", s->dir) : out_sync_parent(s->dir, e);
    if ((rc = names_read(&names, &n, s->tmp, e)) < 0) return rc;
    for (int last = 0; last <= 1; last++)
        for (size_t i = 0; i < n && rc >= 0; i++)
            if ((strcmp(names[i], index_name) == 0) == last) rc = file_place(s, names[i], e);
    if (rc >= 0 && s->weights) rc = stale_remove(s, names, n, e);
    if (rc >= 0) rc = out_sync_dir(s->dir, e);
    names_free(names, n);
    return rc;
}

void saver_close(struct saver *s)
{
    if (!s) return;
    if (s->tmp) dir_remove(s->tmp); /* gone after a commit */
    free(s->tmp);
    free(s->dir);
    free(s);
}
