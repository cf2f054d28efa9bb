/* See hub.h. Blobs come first, then the links, then the ref: a process that stops on the way leaves a cache
 * in which nothing looks complete that is not. */
#define _GNU_SOURCE
#include "file/hub.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/map.h"
#include "base/plat.h"
#include "file/http.h"
#include "file/json.h"
#include "file/out.h"

enum { API_MAX = 32 << 20, FILES_MAX = 10000, SHORT_TRIES = 4 };

struct hub {
    struct http http;
    const char *repo, *revision;
    char *endpoint, *token;
    char *home, *root, *locks; /* HF_HOME, HF_HOME/hub/models--..., HF_HOME/hub/.locks/models--... */
};

/* One file to fetch. */
struct blob {
    const char *file; /* borrowed from the API's reply */
    char etag[200];
    int64_t size;
};

bool hub_wants(const char *file, bool has_safetensors)
{
    enum keep { NEVER, ALWAYS, WITHOUT_SAFETENSORS };
    static const struct {
        const char *pattern; /* of files in the top folder; the first that fits decides */
        enum keep keep;
    } rules[] = {
        { "tf_*", NEVER },
        { "flax_*", NEVER },
        { "*.fp16.*", NEVER },
        { "*.json", ALWAYS },
        { "tokenizer.model", ALWAYS },
        { "*.safetensors", ALWAYS },
        { "mm_projector.bin", ALWAYS },
        { "non_lora_trainables.bin", ALWAYS },
        { "adapter_model.bin", WITHOUT_SAFETENSORS },
        { "pytorch_model*.bin", WITHOUT_SAFETENSORS },
    };
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++)
        if (!fnmatch(rules[i].pattern, file, FNM_PATHNAME | FNM_PERIOD))
            return rules[i].keep == ALWAYS || (rules[i].keep == WITHOUT_SAFETENSORS && !has_safetensors);
    return false;
}

static int path_make(char **ret, struct err *e, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static int path_make(char **ret, struct err *e, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int n = vasprintf(ret, fmt, ap);
    va_end(ap);
    if (n < 0) *ret = NULL;
    return n < 0 ? err_set(e, ERR_NOMEM, "no memory for a path") : 0;
}

static bool there(const char *dir, const char *file)
{
    char *path;
    if (asprintf(&path, "%s/%s", dir, file) < 0) return false;
    bool yes = access(path, R_OK) == 0;
    free(path);
    return yes;
}

/* Are all shards of an index there? No index: no. */
static bool index_complete(const char *dir, const char *index)
{
    char *path;
    const char *name;
    json_t *v = NULL, *file;
    struct err e;
    if (asprintf(&path, "%s/%s", dir, index) < 0) return false;
    bool yes = there(dir, index) && json_file_load(&v, path, &e) >= 0;
    if (yes) {
        yes = json_object_size(json_object_get(v, "weight_map")) > 0;
        json_object_foreach(json_object_get(v, "weight_map"), name, file)
            yes = yes && json_is_string(file) && there(dir, json_string_value(file));
    }
    json_decref(v);
    free(path);
    return yes;
}

bool hub_complete(const char *dir)
{
    static const char *const index[] = { "model.safetensors.index.json", "pytorch_model.bin.index.json" };
    static const char *const single[] = { "model.safetensors", "pytorch_model.bin",
                                          "adapter_model.safetensors", "adapter_model.bin",
                                          "mm_projector.bin" };
    bool tokenizer = !there(dir, "tokenizer_config.json") || there(dir, "tokenizer.model") ||
                     there(dir, "tokenizer.json") || there(dir, "vocab.json");
    if (!there(dir, "config.json") && !there(dir, "adapter_config.json")) return false;
    if (index_complete(dir, index[0]) || index_complete(dir, index[1])) return tokenizer;
    if (there(dir, index[0]) || there(dir, index[1])) return false;
    for (size_t i = 0; i < sizeof single / sizeof *single; i++)
        if (there(dir, single[i])) return tokenizer;
    return false;
}

/* ORG/NAME, of letters that are safe in an address and in a path. */
static bool repo_valid(const char *s)
{
    const char *slash = strchr(s, '/');
    if (!slash || slash == s || !slash[1] || strchr(slash + 1, '/') || strstr(s, "..") || strstr(s, "--"))
        return false;
    if (strlen(s) > 200 || *s == '.' || *s == '-' || slash[1] == '.' || slash[1] == '-') return false;
    for (; *s; s++)
        if (!isalnum((unsigned char)*s) && !strchr("._-/", *s)) return false;
    return true;
}

static bool revision_valid(const char *s)
{
    if (!*s || *s == '/' || *s == '.' || strlen(s) > 200 || strstr(s, "..")) return false;
    for (; *s; s++)
        if (!isalnum((unsigned char)*s) && !strchr("._-/", *s)) return false;
    return true;
}

static bool is_hex(const char *s, size_t n) { return strlen(s) == n && strspn(s, "0123456789abcdef") == n; }

/* HF_TOKEN, or what `huggingface-cli login` left. */
static int token_find(struct hub *h, struct err *e)
{
    const char *env = env_get(ENV_HF_TOKEN);
    char *path, *text = NULL;
    if (env) return (h->token = strdup(env)) ? 0 : err_set(e, ERR_NOMEM, "no memory for a token");
    int rc = path_make(&path, e, "%s/token", h->home);
    if (rc < 0) return rc;
    if (file_read(&text, NULL, path, 1000, NULL) >= 0) {
        text[strcspn(text, " \r\n")] = 0;
        if (*text) h->token = text;
        else free(text);
    }
    free(path);
    return 0;
}

static void hub_fini(struct hub *h)
{
    http_close(&h->http);
    free(h->endpoint);
    free(h->token);
    free(h->home);
    free(h->root);
    free(h->locks);
}

static int hub_init(struct hub *h, const char *repo, const char *revision, struct err *e)
{
    const char *home = env_get(ENV_HF_HOME), *user = env_get(ENV_HOME), *at = env_get(ENV_HF_ENDPOINT);
    int rc;
    *h = (struct hub){ .repo = repo, .revision = revision ? revision : "main" };
    if (!revision_valid(h->revision))
        return err_set(e, ERR_USAGE, "'%.200s' is not a revision's name", revision);
    if (!home && !user)
        return err_set(e, ERR_USAGE, "cannot place the cache: neither HF_HOME nor HOME is set");
    TRY(home ? path_make(&h->home, e, "%s", home) : path_make(&h->home, e, "%s/.cache/huggingface", user));
    int n_org = (int)strcspn(repo, "/");
    TRY(path_make(&h->root, e, "%s/hub/models--%.*s--%s", h->home, n_org, repo, repo + n_org + 1));
    TRY(path_make(&h->locks, e, "%s/hub/.locks/models--%.*s--%s", h->home, n_org, repo, repo + n_org + 1));
    TRY(path_make(&h->endpoint, e, "%s", at ? at : "https://huggingface.co"));
    for (size_t n = strlen(h->endpoint); n && h->endpoint[n - 1] == '/'; n--) h->endpoint[n - 1] = 0;
    if (strncasecmp(h->endpoint, "https://", 8) != 0 && strncasecmp(h->endpoint, "http://", 7) != 0)
        rc = err_set(e, ERR_USAGE, "HF_ENDPOINT '%.200s' is not an http address", h->endpoint);
out:
    return rc < 0 ? rc : 0;
}

/* The snapshot that the cache has for the revision, when it is complete: 1; else 0. */
static int local_find(char **dir, const struct hub *h, struct err *e)
{
    char *path = NULL, *text = NULL;
    int rc = 0;
    const char *commit = h->revision;
    if (!is_hex(commit, 40)) {
        if ((rc = path_make(&path, e, "%s/refs/%s", h->root, h->revision)) < 0) return rc;
        if (file_read(&text, NULL, path, 1000, NULL) < 0) commit = NULL;
        else text[strcspn(text, " \r\n")] = 0;
        free(path);
        commit = text && is_hex(text, 40) ? text : NULL;
    }
    path = NULL;
    if (commit) rc = path_make(&path, e, "%s/snapshots/%s", h->root, commit);
    free(text);
    if (path && hub_complete(path)) {
        *dir = path;
        return 1;
    }
    free(path);
    return rc;
}

/* An HTTP status that is not success, in words. */
static int status_error(const struct hub *h, const struct http_reply *r, const char *what, struct err *e)
{
    bool gated = !strcmp(r->error_code, "GatedRepo");
    if (!strcmp(r->error_code, "RevisionNotFound"))
        return err_set(e, ERR_MISSING, "model '%s' has no revision '%s'", h->repo, h->revision);
    if (r->status == 404 || !strcmp(r->error_code, "RepoNotFound"))
        return err_set(e, ERR_MISSING, "no folder and no model '%s' at %s (%s: status %ld)%s", h->repo,
                       h->endpoint, what, r->status, h->token ? "" : "; a private model needs HF_TOKEN");
    if (r->status == 401 || r->status == 403)
        return err_set(
            e, ERR_USAGE,
            "access to '%s' is refused (status %ld): %saccept its terms at %s/%s and set HF_TOKEN to "
            "a token of that account",
            h->repo, r->status, gated ? "it is a gated model; " : "", h->endpoint, h->repo);
    return err_set(e, ERR_IO, "%s answered status %ld for %s of '%s'", h->endpoint, r->status, what, h->repo);
}

/* Percent-encoding of all that is not unreserved in RFC 3986, '/' included. */
static void escape(struct buf *b, const char *s)
{
    for (; *s; s++)
        if (isalnum((unsigned char)*s) || strchr("-._~", *s)) buf_chr(b, *s);
        else buf_fmt(b, "%%%02X", (unsigned)(unsigned char)*s);
}

/* GET /api/models/ORG/NAME/revision/REV; *ret is the parsed reply. */
static int api_get(json_t **ret, struct hub *h, struct err *e)
{
    int rc;
    char *url = NULL;
    struct buf body = buf_make(API_MAX), rev = buf_make(1000);
    struct http_sink sink = { .buf = &body, .fd = -1 };
    struct http_reply r;
    escape(&rev, h->revision);
    TRY(buf_check(&rev, "the revision", e));
    TRY(path_make(&url, e, "%s/api/models/%s/revision/%s", h->endpoint, h->repo, rev.p));
    TRY(http_request(&h->http, url, &sink, &r, e));
    if (r.status != 200) rc = status_error(h, &r, "the list of files", e);
    else rc = json_text_load(ret, body.p ? body.p : "", body.n, url, e);
out:
    free(url);
    buf_free(&body);
    buf_free(&rev);
    return rc;
}

/* A name from the server that stays inside the snapshot. */
static bool file_valid(const char *s)
{
    if (!*s || *s == '/' || strlen(s) > 255 || strchr(s, '\\')) return false;
    for (const char *p = s; *p; p++)
        if ((unsigned char)*p < ' ' || ((p == s || p[-1] == '/') && p[0] == '.' && p[1] == '.')) return false;
    return true;
}

/* The commit, and the files that are wanted, from the API's reply. */
static int list_read(const json_t *api, const char **commit, struct blob **ret, size_t *ret_n, struct err *e)
{
    json_t *files = NULL, *v;
    size_t i, n = 0;
    bool safe = false;
    int rc;
    *commit = NULL;
    if ((rc = json_get_str(api, "sha", commit, e)) < 0 ||
        (rc = json_get_array(api, "siblings", &files, e)) < 0)
        return rc;
    if (!*commit || !is_hex(*commit, 40) || !files || json_array_size(files) > FILES_MAX)
        return err_set(e, ERR_FORMAT, "the hub's list of files has no commit or too many files");
    struct blob *list = calloc(json_array_size(files) + 1, sizeof *list);
    if (!list) return err_set(e, ERR_NOMEM, "no memory for the list of files");
    json_array_foreach(files, i, v) {
        const char *name = json_string_value(json_object_get(v, "rfilename"));
        if (!name || !file_valid(name)) {
            free(list);
            return err_set(e, ERR_FORMAT, "the hub's list of files holds the name '%.200s'",
                           name ? name : "");
        }
        safe = safe || !fnmatch("*.safetensors", name, FNM_PATHNAME);
    }
    json_array_foreach(files, i, v) {
        const char *name = json_string_value(json_object_get(v, "rfilename"));
        if (hub_wants(name, safe)) list[n++].file = name;
    }
    *ret = list;
    *ret_n = n;
    return 0;
}

static int blob_head(struct hub *h, struct blob *b, const char *url, struct err *e)
{
    struct http_reply r;
    int rc = http_request(&h->http, url, NULL, &r, e);
    if (rc < 0) return rc;
    if (r.status >= 400) return status_error(h, &r, b->file, e);
    memcpy(b->etag, r.etag, sizeof b->etag);
    b->size = r.size;
    for (const char *s = b->etag; *s; s++)
        if (!isalnum((unsigned char)*s) && (!strchr("._-", *s) || s == b->etag)) b->etag[0] = 0;
    if (!b->etag[0] || b->size < 0)
        return err_set(e, ERR_FORMAT, "%s says neither version nor size of '%s'", h->endpoint, b->file);
    return 0;
}

/* Compares a blob with its name, which is SHA-256 of its bytes or SHA-1 as git computes it. Other names say
 * nothing. */
static int blob_check(const struct blob *b, const char *path, struct err *e)
{
    struct map m;
    struct hash hash;
    char hex[65], head[40];
    bool git = is_hex(b->etag, 40);
    if (!git && !is_hex(b->etag, 64)) return 0;
    int rc = map_open(&m, path, e);
    if (rc < 0) return rc;
    hash_init(&hash, git ? HASH_SHA1 : HASH_SHA256);
    if (git) hash_add(&hash, head, (size_t)snprintf(head, sizeof head, "blob %zu", m.n) + 1);
    hash_add(&hash, m.p, m.n);
    hash_hex(&hash, hex);
    map_close(&m);
    if (!strcmp(hex, b->etag)) return 0;
    unlink(path);
    return err_set(e, ERR_FORMAT,
                   "'%s' arrived damaged and was deleted: its %s is %s, the hub says %s; try again", b->file,
                   git ? "git SHA-1" : "SHA-256", hex, b->etag);
}

static int room_check(const struct blob *b, const char *path, int64_t have, struct err *e)
{
    struct statvfs v;
    if (statvfs(path, &v) < 0) return 0; /* the write itself will tell */
    double left = (double)v.f_bavail * (double)v.f_frsize, want = (double)(b->size - have);
    return want <= left ? 0
                        : err_set(e, ERR_IO, "no room for '%s': %.1f GB wanted, %.1f GB left where '%s' is",
                                  b->file, want * 1e-9, left * 1e-9, path);
}

/* Downloads until the file has its size. fd: path, open, possibly with a beginning already there. */
static int blob_download(struct hub *h, const struct blob *b, const char *url, const char *path, int fd,
                         struct err *e)
{
    struct progress bar;
    struct http_sink sink = { .fd = fd, .path = path, .bar = &bar };
    struct stat st;
    int rc = 0;
    progress_begin(&bar, b->file, "B", b->size);
    for (int i = 0;; i++) {
        if (fstat(fd, &st) < 0 || (st.st_size > b->size && (ftruncate(fd, 0) < 0 || fstat(fd, &st) < 0)))
            rc = err_errno(e, "write", path);
        else if (st.st_size == b->size) break;
        else if (i == SHORT_TRIES)
            rc = err_set(e, ERR_IO,
                         "%s sent only %lld of %lld bytes of '%s'; start again to go on from there",
                         h->endpoint, (long long)st.st_size, (long long)b->size, b->file);
        else rc = room_check(b, path, st.st_size, e);
        struct http_reply r;
        if (rc >= 0) rc = http_request(&h->http, url, &sink, &r, e);
        if (rc >= 0 && r.status == 416 && ftruncate(fd, 0) < 0) rc = err_errno(e, "write", path);
        if (rc >= 0 && r.status >= 400 && r.status != 416) rc = status_error(h, &r, b->file, e);
        if (rc < 0) break;
    }
    progress_end(&bar);
    return rc < 0 ? rc : fsync(fd) < 0 ? err_errno(e, "sync", path) : 0;
}

/* Under the lock: makes blobs/ETAG, unless it is there. */
static int blob_make(struct hub *h, const struct blob *b, const char *url, struct err *e)
{
    int rc, fd = -1;
    char *path = NULL, *part = NULL;
    TRY(path_make(&path, e, "%s/blobs/%s", h->root, b->etag));
    TRY(path_make(&part, e, "%s.incomplete", path));
    if (access(path, R_OK) == 0) goto out;
    fd = open(part, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0) {
        rc = err_errno(e, "create", part);
        goto out;
    }
    TRY(blob_download(h, b, url, part, fd, e));
    TRY(blob_check(b, part, e));
    if (rename(part, path) < 0) rc = err_errno(e, "rename to", path);
out:
    if (fd >= 0) close(fd);
    free(path);
    free(part);
    return rc;
}

/* Waits for the lock NAME of this model, the same one that huggingface_hub takes. close() gives it back. */
static int lock_take(const struct hub *h, int *fd, const char *name, const char *what, struct err *e)
{
    char *path;
    int rc = path_make(&path, e, "%s/%s.lock", h->locks, name);
    if (rc < 0) return rc;
    *fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (*fd < 0) rc = err_errno(e, "create", path);
    free(path);
    if (rc >= 0 && flock(*fd, LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK) {
        log_info("waiting for another process that downloads '%s'", what);
        while (flock(*fd, LOCK_EX) < 0 && errno == EINTR) continue;
    }
    return rc;
}

static int blob_fetch(struct hub *h, struct blob *b, const char *commit, struct err *e)
{
    int rc, lock = -1;
    char *url = NULL;
    struct buf name = buf_make(1000);
    escape(&name, b->file);
    TRY(buf_check(&name, b->file, e));
    TRY(path_make(&url, e, "%s/%s/resolve/%s/%s", h->endpoint, h->repo, commit, name.p));
    TRY(blob_head(h, b, url, e));
    TRY(lock_take(h, &lock, b->etag, b->file, e));
    TRY(blob_make(h, b, url, e));
out:
    if (lock >= 0) close(lock);
    free(url);
    buf_free(&name);
    return rc;
}

/* snapshots/COMMIT/FILE -> ../../blobs/ETAG */
static int link_make(const char *dir, const struct blob *b, struct err *e)
{
    int rc;
    char *path = NULL, *to = NULL, *tmp = NULL;
    TRY(path_make(&path, e, "%s/%s", dir, b->file));
    TRY(path_make(&to, e, "../../blobs/%s", b->etag));
    TRY(path_make(&tmp, e, "%s/.%s.tmp", dir, b->file));
    unlink(tmp);
    if (symlink(to, tmp) < 0) rc = err_errno(e, "create", tmp);
    else if (rename(tmp, path) < 0) rc = err_errno(e, "rename to", path);
out:
    free(path);
    free(to);
    free(tmp);
    return rc;
}

/* refs/REV holds the commit. A commit given by the user is its own name. */
static int ref_make(const struct hub *h, const char *commit, struct err *e)
{
    char *path;
    if (is_hex(h->revision, 40)) return 0;
    int rc = path_make(&path, e, "%s/refs/%s", h->root, h->revision);
    if (rc < 0) return rc;
    char *slash = strrchr(path, '/');
    *slash = 0;
    rc = out_make_dirs(path, e);
    *slash = '/';
    if (rc >= 0) rc = out_file(path, commit, strlen(commit), e);
    free(path);
    return rc;
}

static int model_fetch(char **dir, struct hub *h, struct err *e)
{
    int rc, lock = -1;
    json_t *api = NULL;
    struct blob *b = NULL;
    size_t n = 0;
    const char *commit;
    char *path = NULL, *blobs = NULL;
    TRY(token_find(h, e));
    TRY(http_open(&h->http, h->endpoint, h->token, e));
    log_info("no folder '%s' here: fetching it from %s", h->repo, h->endpoint);
    TRY(api_get(&api, h, e));
    TRY(list_read(api, &commit, &b, &n, e));
    if (!n) {
        rc = err_set(e, ERR_MISSING, "model '%s' at %s has no files that can be used here", h->repo,
                     h->endpoint);
        goto out;
    }
    TRY(path_make(&path, e, "%s/snapshots/%s", h->root, commit));
    TRY(path_make(&blobs, e, "%s/blobs", h->root));
    TRY(out_make_dirs(blobs, e));
    TRY(out_make_dirs(h->locks, e));
    for (size_t i = 0; i < n; i++) TRY(blob_fetch(h, &b[i], commit, e));
    TRY(lock_take(h, &lock, "snapshot", h->repo, e));
    TRY(out_make_dirs(path, e));
    for (size_t i = 0; i < n; i++) TRY(link_make(path, &b[i], e));
    TRY(ref_make(h, commit, e));
    *dir = path;
    path = NULL;
out:
    if (lock >= 0) close(lock);
    free(b);
    free(path);
    free(blobs);
    json_decref(api);
    return rc;
}

int hub_find(char **dir, const char *name, const char *revision, struct err *e)
{
    struct stat st;
    struct hub h = { 0 };
    int rc;
    if (stat(name, &st) == 0 && S_ISDIR(st.st_mode))
        return (*dir = strdup(name)) ? 0 : err_set(e, ERR_NOMEM, "no memory for a path");
    if (!repo_valid(name))
        return err_set(e, ERR_MISSING, "no folder '%.300s', and that is not a model's name (ORG/NAME) either",
                       name);
    TRY(hub_init(&h, name, revision, e));
    TRY(local_find(dir, &h, e));
    if (rc == 0 && env_flag(ENV_HF_HUB_OFFLINE))
        rc = err_set(e, ERR_MISSING,
                     "'%s' is not whole in the cache '%s', and HF_HUB_OFFLINE forbids to fetch it", name,
                     h.root);
    else if (rc == 0) rc = model_fetch(dir, &h, e);
out:
    hub_fini(&h);
    return rc < 0 ? rc : 0;
}
