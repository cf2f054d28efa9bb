/* See folder.h. The calling thread decodes pictures, submits them and writes what has ended. */
#include "cmd/folder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/log.h"
#include "llava_batch.h"

enum { DEPTH_MAX = 32, PATH_BYTES = 4096, OUTPUT_MAX = 1 << 30, TEXT_MAX = 1 << 24, PARALLEL = 16 };

struct work;
/* A picture, or a question. */
struct item {
    char *name;          /* of the picture, or NULL */
    char *key;           /* what the output knows it by: the name, or its question_id as JSON */
    json_t *id;          /* question_id; NULL: it is a picture of the folder */
    char *text;          /* the question */
};
/* One under way. */
struct job {
    struct job *next; /* among those that have ended */
    struct work *w;
    const struct item *item;
    struct llava_conversation *conv; /* of a question */
    struct llava_image *image;
    struct buf text;
    struct llava_result r;
    struct llava_error e; /* code 0: none */
};
struct work {
    const struct folder *f;
    struct item *item;   /* [n] pictures by name, or questions in their order */
    size_t n, cap;
    json_t *known;       /* keys that the output has: an object used as a set */
    int fd;
    off_t size;          /* of the output: whole lines */
    struct progress bar;
    int64_t written, failed, before;
    pthread_mutex_t lock;
    pthread_cond_t more;
    struct job *ended;   /* under the lock */
};

/* ---- pictures */

static bool is_picture(const char *name)
{
    static const char *const ends[] = { ".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp" };
    const char *dot = strrchr(name, '.');
    for (size_t i = 0; dot && i < sizeof ends / sizeof *ends; i++)
        if (!strcasecmp(dot, ends[i])) return true;
    return false;
}

static int item_new(struct item **ret, struct work *w, struct err *e)
{
    if (w->n == w->cap) {
        size_t cap = 2 * w->cap + 64;
        struct item *p = realloc(w->item, cap * sizeof *p);
        if (!p) return err_set(e, ERR_NOMEM, "no memory for the names of pictures");
        w->item = p;
        w->cap = cap;
    }
    *ret = &w->item[w->n++];
    **ret = (struct item){ 0 };
    return 0;
}

static int add_name(struct work *w, const char *name, struct err *e)
{
    struct item *x;
    int rc = item_new(&x, w, e);
    if (rc < 0) return rc;
    x->name = strdup(name);
    x->key = strdup(name);
    return x->name && x->key ? 0 : err_set(e, ERR_NOMEM, "no memory for the names of pictures");
}

/* Pictures of the folder and, but for links, its subfolders. below: "" or "sub/". */
static int find(struct work *w, const char *below, int depth, struct err *e)
{
    char path[PATH_BYTES], name[PATH_BYTES];
    struct stat st;
    int rc = 0;
    snprintf(path, sizeof path, "%s/%s", w->f->dir, below);
    DIR *d = opendir(path);
    if (!d) return err_errno(e, "read the folder", path);
    for (struct dirent *x; rc >= 0 && (x = readdir(d));) {
        if (x->d_name[0] == '.') continue;
        if (snprintf(name, sizeof name, "%s%s", below, x->d_name) >= (int)sizeof name ||
            snprintf(path, sizeof path, "%s/%s", w->f->dir, name) >= (int)sizeof path)
            continue;
        if (lstat(path, &st) == 0 && S_ISDIR(st.st_mode) && depth < DEPTH_MAX) {
            strncat(name, "/", sizeof name - strlen(name) - 1);
            rc = find(w, name, depth + 1, e);
        } else if (is_picture(name) && stat(path, &st) == 0 && S_ISREG(st.st_mode)) {
            rc = add_name(w, name, e);
        }
    }
    closedir(d);
    return rc;
}

static int name_order(const void *a, const void *b)
{
    return strcmp(((const struct item *)a)->name, ((const struct item *)b)->name);
}

/* ---- questions */

/* The id of a question or a result: a text or a number, which is told apart by its quotes. */
static char *key_of(const json_t *id)
{
    return json_is_string(id) || json_is_integer(id) ? json_dumps(id, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;
}

static int add_question(struct work *w, json_t *v, struct err *e)
{
    const char *text = json_string_value(json_object_get(v, "text"));
    const json_t *image = json_object_get(v, "image"), *id = json_object_get(v, "question_id");
    struct item *x;
    if (!json_is_string(id) && !json_is_integer(id))
        return err_set(e, ERR_FORMAT, "no 'question_id' that is a text or a number");
    if (!text) return err_set(e, ERR_FORMAT, "no 'text'");
    if (image && !json_is_null(image) && !json_is_string(image)) return err_set(e, ERR_FORMAT, "'image' is no text");
    int rc = item_new(&x, w, e);
    if (rc < 0) return rc;
    x->id = json_deep_copy(id);
    x->key = key_of(id);
    x->text = strdup(text);
    if (json_is_string(image)) x->name = strdup(json_string_value(image));
    return x->id && x->key && x->text && !x->name == !json_is_string(image)
               ? 0 : err_set(e, ERR_NOMEM, "no memory for the questions");
}

static int questions_read(struct work *w, struct err *e)
{
    const char *path = w->f->questions;
    char *text;
    size_t n;
    int rc = file_read(&text, &n, path, OUTPUT_MAX, e), line = 1;
    json_t *seen = json_object();
    if (rc < 0) goto out;
    for (char *at = text, *end; at < text + n && rc >= 0; at = end + 1, line++) {
        end = memchr(at, '\n', n - (size_t)(at - text));
        if (!end) end = text + n;
        if (end - at == (ptrdiff_t)strspn(at, " \t\r")) continue;
        json_error_t why;
        json_t *v = json_loadb(at, (size_t)(end - at), 0, &why);
        rc = v ? add_question(w, v, e) : err_set(e, ERR_FORMAT, "%s", why.text);
        json_decref(v);
        const char *key = rc < 0 ? "" : w->item[w->n - 1].key;
        if (rc >= 0 && json_object_get(seen, key)) rc = err_set(e, ERR_FORMAT, "question %s is there already", key);
        else if (rc >= 0) json_object_set_new(seen, key, json_true());
        if (rc < 0) rc = err_prefix(e, "line %d of '%s'", line, path);
    }
    if (rc >= 0 && !w->n) rc = err_set(e, ERR_FORMAT, "'%s' has no questions", path);
    free(text);
out:
    json_decref(seen);
    return rc;
}

/* ---- output */

/* Takes the names out of the lines that are there; what follows the last line end was cut by a kill, and goes. */
static int output_read(struct work *w, struct err *e)
{
    char *text;
    size_t n;
    int rc = file_read(&text, &n, w->f->output, OUTPUT_MAX, e), line = 1;
    if (rc < 0) return rc;
    size_t at = 0;
    for (char *end; rc >= 0 && (end = memchr(text + at, '\n', n - at)); line++) {
        json_error_t ignored;
        json_t *v = json_loadb(text + at, (size_t)(end - text) - at, 0, &ignored);
        char *id = w->f->questions ? key_of(json_object_get(v, "question_id")) : NULL;
        const char *name = w->f->questions ? id : json_string_value(json_object_get(v, "image"));
        if (!name) rc = err_set(e, ERR_FORMAT, "line %d of '%s' is no result of this command", line, w->f->output);
        else if (json_object_set_new(w->known, name, json_true()) < 0) rc = err_set(e, ERR_NOMEM, "no memory");
        json_decref(v);
        free(id);
        at = (size_t)(end - text) + 1;
    }
    free(text);
    w->size = (off_t)at;
    if (rc >= 0 && at < n) {
        log_info("the last line of '%s' was cut short and is made again", w->f->output);
        if (ftruncate(w->fd, w->size) < 0) rc = err_errno(e, "shorten", w->f->output);
    }
    return rc;
}

static int output_open(struct work *w, struct err *e)
{
    w->fd = open(w->f->output, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (w->fd < 0) return err_errno(e, "write", w->f->output);
    struct stat st;
    if (fstat(w->fd, &st) < 0 || !S_ISREG(st.st_mode))
        return err_set(e, ERR_USAGE, "'%s' is no regular file", w->f->output);
    if (flock(w->fd, LOCK_EX | LOCK_NB) < 0)
        return err_set(e, ERR_IO, "'%s' is being written by another process", w->f->output);
    return output_read(w, e);
}

/* A line at once; one that does not fit on the disk leaves nothing. */
static int output_line(struct work *w, json_t *v, struct err *e)
{
    char *text = v ? json_dumps(v, JSON_COMPACT) : NULL;
    struct buf line = buf_make(TEXT_MAX);
    json_decref(v);
    if (!text) return err_set(e, ERR_NOMEM, "no memory for a result");
    buf_str(&line, text);
    buf_chr(&line, '\n');
    free(text);
    int rc = buf_check(&line, "a result", e);
    if (rc >= 0 && write(w->fd, line.p, line.n) != (ssize_t)line.n) {
        rc = err_errno(e, "write", w->f->output);
        if (ftruncate(w->fd, w->size) < 0) log_warn("'%s' may end with half a line", w->f->output);
    }
    w->size += (off_t)line.n;
    buf_free(&line);
    return rc;
}

static int output_job(struct work *w, const struct job *j, struct err *e)
{
    static const char *const finish[] = { "end", "stop", "length", "cancelled" };
    w->written++;
    w->failed += j->e.code != 0;
    progress_step(&w->bar, w->before + w->written);
    const struct item *x = j->item;
    json_t *v = json_object();
    if (x->id) json_object_set(v, "question_id", x->id);
    if (x->name) json_object_set_new(v, "image", json_string(x->name));
    if (x->id) json_object_set_new(v, "prompt", json_string(x->text));
    if (j->e.code) {
        json_object_set_new(v, "error", json_string(j->e.message));
        return output_line(w, v, e);
    }
    const char *text = j->text.p ? j->text.p : "";
    size_t n = j->text.n;
    while (n && (unsigned char)text[n - 1] <= ' ') n--;
    while (n && (unsigned char)*text <= ' ') text++, n--;
    json_object_set_new(v, "text", json_stringn(text, n));
    json_object_set_new(v, "finish", json_string(finish[j->r.finish]));
    json_object_set_new(v, "tokens", json_integer(j->r.n_new));
    return output_line(w, v, e);
}

/* ---- jobs */

static bool on_text(void *ctx, int choice, const char *text, size_t n)
{
    struct job *j = ctx;
    (void)choice;
    buf_add(&j->text, text, n);
    return true;
}

static void on_end(void *ctx, int choice, const struct llava_result *r, const struct llava_error *e)
{
    struct job *j = ctx;
    (void)choice;
    j->r = *r;
    if (e) j->e = *e;
    pthread_mutex_lock(&j->w->lock);
    j->next = j->w->ended;
    j->w->ended = j;
    pthread_cond_signal(&j->w->more);
    pthread_mutex_unlock(&j->w->lock);
}

static void job_free(struct job *j)
{
    if (!j) return;
    llava_image_close(j->image);
    llava_conversation_close(j->conv);
    buf_free(&j->text);
    free(j);
}

/* 1: under way; 0: it failed at once, and says so; < 0: no memory. */
static int job_begin(struct job **ret, struct work *w, const struct item *item, struct llava_engine *engine,
                     struct llava_batch *b, struct err *e)
{
    char path[PATH_BYTES];
    const char *prompt = w->f->prompt;
    struct job *j = *ret = calloc(1, sizeof *j);
    if (!j) return err_set(e, ERR_NOMEM, "no memory for a picture");
    j->w = w;
    j->item = item;
    j->text = buf_make(TEXT_MAX);
    if (item->name) {
        snprintf(path, sizeof path, "%s/%s", w->f->dir, item->name);
        if (llava_image_open(&j->image, engine, path, &j->e) < 0) return 0;
    }
    if (item->text && (llava_conversation_open(&j->conv, engine, w->f->conv, &j->e) < 0 ||
                       llava_conversation_ask(j->conv, item->text, item->name != NULL, &j->e) < 0 ||
                       llava_conversation_prompt(&prompt, j->conv, &j->e) < 0))
        return 0;
    struct llava_request r = llava_request_default();
    r.prompt = prompt;
    r.images = &j->image;
    r.n_images = item->name != NULL;
    r.sampling = w->f->sampling;
    r.adapter = w->f->adapter;
    r.on_text = on_text;
    r.on_end = on_end;
    r.ctx = j;
    return llava_batch_submit(b, &r, &j->e) < 0 ? 0 : 1;
}

/* Waits until one more has ended, and takes all that have. */
static struct job *take_ended(struct work *w)
{
    pthread_mutex_lock(&w->lock);
    while (!w->ended) pthread_cond_wait(&w->more, &w->lock);
    struct job *j = w->ended;
    w->ended = NULL;
    pthread_mutex_unlock(&w->lock);
    return j;
}

static int ask_all(struct work *w, struct llava_engine *engine, struct llava_batch *b, struct err *e)
{
    const int most = 2 * (w->f->parallel ? w->f->parallel : PARALLEL); /* some wait while others are decoded */
    int running = 0, rc = 0;
    for (size_t i = 0; (i < w->n && rc >= 0) || running;) {
        while (i < w->n && running < most && rc >= 0) {
            struct job *j;
            if (json_object_get(w->known, w->item[i].key)) {
                i++;
                continue;
            }
            int begun = job_begin(&j, w, &w->item[i++], engine, b, e);
            if (begun < 0) rc = begun;
            running += begun > 0;
            if (begun != 0) continue;
            rc = output_job(w, j, e);
            job_free(j);
        }
        for (struct job *j = running ? take_ended(w) : NULL, *next; j; j = next, running--) {
            next = j->next;
            if (rc >= 0) rc = output_job(w, j, e);
            job_free(j);
        }
    }
    return rc;
}

static void work_fini(struct work *w)
{
    for (size_t i = 0; i < w->n; i++) {
        free(w->item[i].name);
        free(w->item[i].key);
        free(w->item[i].text);
        json_decref(w->item[i].id);
    }
    free(w->item);
    json_decref(w->known);
    if (w->fd >= 0) close(w->fd);
    pthread_cond_destroy(&w->more);
    pthread_mutex_destroy(&w->lock);
}

int folder_run(const struct folder *f, struct llava_engine *engine, struct err *e)
{
    struct work w = { .f = f, .fd = -1, .known = json_object() };
    struct llava_batch_options o = llava_batch_options_default();
    struct llava_batch *b = NULL;
    struct llava_error le;
    int rc;
    pthread_mutex_init(&w.lock, NULL);
    pthread_cond_init(&w.more, NULL);
    TRY(f->questions ? questions_read(&w, e) : find(&w, "", 0, e));
    if (!w.n) TRY(err_set(e, ERR_MISSING, "no picture in '%s'", f->dir));
    if (!f->questions) qsort(w.item, w.n, sizeof *w.item, name_order);
    TRY(output_open(&w, e));
    for (size_t i = 0; i < w.n; i++) w.before += json_object_get(w.known, w.item[i].key) != NULL;
    o.sequences = f->parallel;
    if (llava_batch_open(&b, engine, &o, &le) < 0) TRY(err_set(e, (enum err_code)le.code, "%s", le.message));
    progress_begin(&w.bar, f->questions ? "questions" : "pictures", "", (int64_t)w.n);
    progress_step(&w.bar, w.before);
    rc = ask_all(&w, engine, b, e);
    progress_end(&w.bar);
    if (rc < 0) goto out;
    if (fsync(w.fd) < 0) TRY(err_errno(e, "write", f->output));
    log_info("%lld %s answered, %lld failed, %lld were there before", (long long)(w.written - w.failed),
             f->questions ? "questions" : "pictures", (long long)w.failed, (long long)w.before);
out:
    llava_batch_close(b);
    work_fini(&w);
    return rc;
}
