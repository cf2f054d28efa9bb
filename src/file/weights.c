/* See weights.h. */
#define _GNU_SOURCE
#include "file/weights.h"

#include <dirent.h>
#include <fnmatch.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/map.h"
#include "file/json.h"
#include "file/safetensors.h"
#include "file/torchbin.h"

enum { SHARDS_MAX = 10000 };

/* One mapped file. Heap-allocated, as rows point to its path. */
struct shard {
    struct shard *next;
    struct map map;
    struct weight_list list;
    char path[];
};

struct weights {
    struct shard *shard;
    struct weight *at; /* by name; the newest of each name */
    size_t n;
};

static bool ends_with(const char *s, const char *tail)
{
    size_t n = strlen(s), k = strlen(tail);
    return n >= k && !strcmp(s + n - k, tail);
}

static void shards_free(struct shard *s)
{
    while (s) {
        struct shard *next = s->next;
        weight_list_fini(&s->list);
        map_close(&s->map);
        free(s);
        s = next;
    }
}

static int shard_open(struct shard **ret, const char *dir, const char *name, struct err *e)
{
    static const char lfs[] = "version https://git-lfs";
    size_t n = strlen(dir) + strlen(name) + 2;
    struct shard *s = calloc(1, sizeof *s + n);
    if (!s) return err_set(e, ERR_NOMEM, "no memory to read '%s'", name);
    snprintf(s->path, n, "%s%s%s", dir, *dir ? "/" : "", name);
    int rc = map_open(&s->map, s->path, e);
    const struct map *m = &s->map;
    if (rc >= 0 && m->n >= sizeof lfs - 1 && !memcmp(m->p, lfs, sizeof lfs - 1))
        rc = err_set(e, ERR_FORMAT,
                     "'%s' is a Git LFS pointer and not the file itself: run 'git lfs pull' there", s->path);
    else if (rc >= 0 && ends_with(name, ".safetensors"))
        rc = safetensors_parse(&s->list, m->p, m->n, s->path, e);
    else if (rc >= 0) rc = torchbin_parse(&s->list, m->p, m->n, s->path, e);
    if (rc < 0) shards_free(s);
    else *ret = s;
    return rc;
}

static struct shard *shard_find(struct shard *s, const char *dir, const char *name)
{
    size_t skip = strlen(dir) + 1;
    while (s && strcmp(s->path + skip, name) != 0) s = s->next;
    return s;
}

/* What a shard must hold, by the index. */
struct want {
    const char *name;
    const struct shard *shard;
};

static int want_compare(const void *a, const void *b)
{
    return strcmp(((const struct want *)a)->name, ((const struct want *)b)->name);
}

static int row_compare(const void *a, const void *b)
{
    return strcmp(((const struct weight *)a)->name, ((const struct weight *)b)->name);
}

/* Opens every shard that the map names, into *ret; want[i] says what the i-th tensor's is. */
static int index_shards(struct shard **ret, struct want *want, json_t *map, const char *dir,
                        const char *index, struct err *e)
{
    const char *name;
    json_t *v;
    size_t n = 0, n_shard = 0;
    json_object_foreach(map, name, v) {
        const char *file = json_string_value(v);
        if (!file || !*file || *file == '.' || strchr(file, '/') || strlen(file) > 255)
            return err_set(e, ERR_FORMAT, "'%s/%s': the file of '%.200s' is not a plain file name", dir,
                           index, name);
        struct shard *s = shard_find(*ret, dir, file);
        if (!s) {
            if (++n_shard > SHARDS_MAX)
                return err_set(e, ERR_LIMIT, "'%s/%s' lists more than %d files", dir, index, SHARDS_MAX);
            int rc = shard_open(&s, dir, file, e);
            if (rc == ERR_MISSING)
                return err_set(e, ERR_MISSING, "'%s/%s' is missing, '%s' lists it", dir, file, index);
            if (rc < 0) return rc;
            s->next = *ret;
            *ret = s;
        }
        want[n++] = (struct want){ name, s };
    }
    return 0;
}

/* Every wanted tensor is in its shard. */
static int index_check(struct want *want, size_t n, const struct shard *shards, const char *index,
                       struct err *e)
{
    size_t found = 0;
    bool *seen = calloc(n + 1, sizeof *seen);
    if (!seen) return err_set(e, ERR_NOMEM, "no memory to read '%s'", index);
    qsort(want, n, sizeof *want, want_compare);
    for (const struct shard *s = shards; s; s = s->next)
        for (size_t i = 0; i < s->list.n; i++) {
            const struct want *w = bsearch(&(struct want){ s->list.at[i].name, NULL }, want, n, sizeof *want,
                                           want_compare);
            if (!w || w->shard != s || seen[w - want]) continue;
            seen[w - want] = true;
            found++;
        }
    size_t i = 0;
    while (i < n && seen[i]) i++;
    free(seen);
    return found == n ? 0
                      : err_set(e, ERR_FORMAT, "'%s' lacks tensor '%.200s', which '%s' says it holds",
                                want[i].shard->path, want[i].name, index);
}

static int index_open(struct shard **ret, const char *dir, const char *index, struct err *e)
{
    int rc;
    json_t *v = NULL, *map = NULL;
    struct want *want = NULL;
    char *path;
    if (asprintf(&path, "%s/%s", dir, index) < 0) return err_set(e, ERR_NOMEM, "no memory for a path");
    TRY(json_file_load(&v, path, e));
    if ((rc = json_get_object(v, "weight_map", &map, e)) < 0) err_prefix(e, "'%s'", path);
    else if (rc == 0 || json_object_size(map) == 0)
        rc = err_set(e, ERR_FORMAT, "'%s' has no 'weight_map'", path);
    if (rc < 0) goto out;
    want = calloc(json_object_size(map), sizeof *want);
    if (!want) {
        rc = err_set(e, ERR_NOMEM, "no memory to read '%s'", path);
        goto out;
    }
    TRY(index_shards(ret, want, map, dir, index, e));
    TRY(index_check(want, json_object_size(map), *ret, index, e));
out:
    free(want);
    free(path);
    json_decref(v);
    return rc;
}

/* The only *.safetensors in a folder, to free(); *ret is NULL where there is none. */
static int lone_find(char **ret, const char *dir, struct err *e)
{
    int rc = 0;
    struct dirent *d;
    DIR *f = opendir(dir);
    *ret = NULL;
    if (!f) return err_errno(e, "open", dir);
    while ((d = readdir(f)) && rc >= 0) {
        if (fnmatch("*.safetensors", d->d_name, FNM_PERIOD) != 0) continue;
        if (*ret)
            rc = err_set(e, ERR_FORMAT, "'%s' holds several .safetensors files ('%s', '%s') and no index",
                         dir, *ret, d->d_name);
        else if (!(*ret = strdup(d->d_name))) rc = err_set(e, ERR_NOMEM, "no memory for a path");
    }
    closedir(f);
    if (rc < 0) {
        free(*ret);
        *ret = NULL;
    }
    return rc;
}

static int folder_open(struct shard **ret, const char *dir, struct err *e)
{
    static const char *const names[] = { "model.safetensors", "model.safetensors.index.json",
                                         "pytorch_model.bin", "pytorch_model.bin.index.json" };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char *path;
        if (asprintf(&path, "%s/%s", dir, names[i]) < 0) return err_set(e, ERR_NOMEM, "no memory for a path");
        struct stat st;
        int there = stat(path, &st);
        free(path);
        if (there < 0) continue;
        return ends_with(names[i], ".json") ? index_open(ret, dir, names[i], e)
                                            : shard_open(ret, dir, names[i], e);
    }
    char *lone;
    int rc = lone_find(&lone, dir, e);
    if (rc >= 0 && !lone)
        rc = err_set(e, ERR_MISSING,
                     "'%s' holds no weights: neither model.safetensors nor pytorch_model.bin, nor an "
                     "index of either",
                     dir);
    else if (rc >= 0) rc = shard_open(ret, dir, lone, e);
    free(lone);
    return rc;
}

/* All rows of the new shards, by name; a name may be there once. */
static int rows_make(struct weight **ret, size_t *ret_n, const struct shard *shards, struct err *e)
{
    size_t n = 0;
    for (const struct shard *s = shards; s; s = s->next) n += s->list.n;
    struct weight *at = malloc((n + 1) * sizeof *at);
    if (!at) return err_set(e, ERR_NOMEM, "no memory for the names of weights");
    size_t k = 0;
    for (const struct shard *s = shards; s; s = s->next)
        for (size_t i = 0; i < s->list.n; i++) at[k++] = s->list.at[i];
    qsort(at, n, sizeof *at, row_compare);
    for (size_t i = 1; i < n; i++)
        if (!strcmp(at[i - 1].name, at[i].name)) {
            int rc = err_set(e, ERR_FORMAT, "tensor '%.200s' is twice in '%s' and '%s'", at[i].name,
                             at[i - 1].file, at[i].file);
            free(at);
            return rc;
        }
    *ret = at;
    *ret_n = n;
    return 0;
}

/* Merges two sorted tables; of equal names the one of b stays. */
static size_t rows_merge(struct weight *to, const struct weight *a, size_t n_a, const struct weight *b,
                         size_t n_b)
{
    size_t n = 0, i = 0, k = 0;
    while (i < n_a || k < n_b) {
        int c = i == n_a ? 1 : k == n_b ? -1 : strcmp(a[i].name, b[k].name);
        if (c == 0) i++;
        to[n++] = c < 0 ? a[i++] : b[k++];
    }
    return n;
}

int weights_add(struct weights *w, const char *path, struct err *e)
{
    int rc;
    struct shard *shards = NULL;
    struct weight *at = NULL, *both = NULL;
    size_t n = 0;
    struct stat st;
    if (stat(path, &st) < 0) return err_errno(e, "open", path);
    TRY(S_ISDIR(st.st_mode) ? folder_open(&shards, path, e) : shard_open(&shards, "", path, e));
    TRY(rows_make(&at, &n, shards, e));
    both = malloc((w->n + n + 1) * sizeof *both);
    if (!both) {
        rc = err_set(e, ERR_NOMEM, "no memory for the names of weights");
        goto out;
    }
    w->n = rows_merge(both, w->at, w->n, at, n);
    free(w->at);
    w->at = both;
    struct shard **last = &w->shard;
    while (*last) last = &(*last)->next;
    *last = shards;
    shards = NULL;
out:
    free(at);
    shards_free(shards);
    return rc;
}

int weights_open(struct weights **ret, const char *path, struct err *e)
{
    struct weights *w = calloc(1, sizeof *w);
    if (!w) return err_set(e, ERR_NOMEM, "no memory to open '%s'", path);
    int rc = weights_add(w, path, e);
    if (rc < 0) weights_close(w);
    else *ret = w;
    return rc;
}

void weights_close(struct weights *w)
{
    if (!w) return;
    shards_free(w->shard);
    free(w->at);
    free(w);
}

const struct weight *weights_find(const struct weights *w, const char *name)
{
    return w->n ? bsearch(&(struct weight){ .name = name }, w->at, w->n, sizeof *w->at, row_compare) : NULL;
}

size_t weights_count(const struct weights *w) { return w->n; }

const struct weight *weights_at(const struct weights *w, size_t i)
{
    ASSERT(i < w->n);
    return &w->at[i];
}

size_t weights_bytes(const struct weights *w)
{
    size_t bytes = 0;
    for (size_t i = 0; i < w->n; i++) bytes += tensor_bytes(w->at[i].t);
    return bytes;
}

void weights_advise(const struct weights *w)
{
    for (const struct shard *s = w->shard; s; s = s->next)
        if (s->map.p) posix_madvise((void *)s->map.p, s->map.n, POSIX_MADV_WILLNEED);
}
