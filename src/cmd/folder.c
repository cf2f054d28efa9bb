/* See folder.h. The calling thread decodes pictures, submits them and writes what has ended. */
#define _GNU_SOURCE
#include "cmd/folder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/log.h"
#include "file/out.h"
#include "llava_batch.h"

enum { DEPTH_MAX = 32, PATH_BYTES = 4096, OUTPUT_MAX = 1 << 30, TEXT_MAX = 1 << 24, PARALLEL = 16 };

struct work;
/* A picture, or a question. */
struct item {
    char *name;          /* of the picture, or NULL */
    char *key;           /* what the output knows it by: name_key, or its question_id as JSON */
    json_t *id;          /* question_id; NULL: it is a picture of the folder */
    char *text;          /* the question */
    bool done;           /* the output has its answer */
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
    json_t *place;       /* key -> index in item */
    const char *model;   /* what lines say that they are of */
    int fd;
    off_t size;          /* of the output: whole lines */
    struct progress bar;
    int64_t written, failed, before, again;
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

/* A text that JSON can hold; what is no UTF-8 is replaced. */
static json_t *json_text(const char *text)
{
    json_t *v = json_string(text);
    char *copy = v ? NULL : strdup(text);
    if (copy) text_tame(copy);
    if (copy) v = json_string(copy);
    free(copy);
    return v;
}

/* Names of files are bytes. Those that are no UTF-8 stand in "image_bytes" too, in hexadecimal; NULL: it is UTF-8. */
static char *name_hex(const char *name)
{
    json_t *v = json_string(name);
    char *hex = v ? NULL : malloc(2 * strlen(name) + 1);
    for (size_t i = 0; hex && name[i]; i++) snprintf(hex + 2 * i, 3, "%02x", (unsigned char)name[i]);
    json_decref(v);
    return hex;
}

/* No name begins with a slash. */
static char *name_key(const char *name, const char *hex)
{
    char *key = NULL;
    if (!hex) return strdup(name);
    return asprintf(&key, "/%s", hex) < 0 ? NULL : key;
}

static int add_name(struct work *w, const char *name, struct err *e)
{
    struct item *x;
    int rc = item_new(&x, w, e);
    if (rc < 0) return rc;
    char *hex = name_hex(name);
    x->name = strdup(name);
    x->key = name_key(name, hex);
    free(hex);
    return x->name && x->key ? 0 : err_set(e, ERR_NOMEM, "no memory for the names of pictures");
}

/* Its key leads to it from here on. */
static int item_place(struct work *w, size_t i, struct err *e)
{
    const char *key = w->item[i].key;
    if (json_object_get(w->place, key)) return err_set(e, ERR_FORMAT, "question %s is there already", key);
    return json_object_set_new(w->place, key, json_integer((json_int_t)i)) < 0
               ? err_set(e, ERR_NOMEM, "no memory for the names of pictures") : 0;
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
    if (!id) return err_set(e, ERR_FORMAT, "no 'question_id'");
    if (!json_is_string(id) && !json_is_integer(id))
        return err_set(e, ERR_FORMAT, "'question_id' is neither a text nor a whole number");
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
    if (rc < 0) return rc;
    for (char *at = text, *end; at < text + n && rc >= 0; at = end + 1, line++) {
        end = memchr(at, '\n', n - (size_t)(at - text));
        if (!end) end = text + n;
        if (end - at == (ptrdiff_t)strspn(at, " \t\r")) continue;
        json_error_t why;
        json_t *v = json_loadb(at, (size_t)(end - at), 0, &why);
        rc = v ? add_question(w, v, e) : err_set(e, ERR_FORMAT, "%s", why.text);
        json_decref(v);
        if (rc >= 0) rc = item_place(w, w->n - 1, e);
        if (rc < 0) rc = err_prefix(e, "line %d of '%s'", line, path);
    }
    if (rc >= 0 && !w->n) rc = err_set(e, ERR_FORMAT, "'%s' has no questions", path);
    free(text);
    return rc;
}

/* ---- output */

/* Is this line of the output an answer to what is asked now, by the model that is asked now? */
static int line_check(const struct work *w, const json_t *v, const struct item *x, struct err *e)
{
    const char *question = w->f->questions ? x ? x->text : NULL : w->f->question;
    const char *image = w->f->questions && x ? x->name : NULL;
    const struct { const char *key, *now, *what; } rows[] = {
        { "model_id", w->model, "model" }, { "prompt", question, "question" }, { "image", image, "picture" }
    };
    int rc = 0;
    for (size_t i = 0; i < sizeof rows / sizeof *rows && rc >= 0; i++) {
        const char *then = json_string_value(json_object_get(v, rows[i].key));
        json_t *now = rows[i].now ? json_text(rows[i].now) : NULL;
        if (then && now && strcmp(then, json_string_value(now)) != 0)
            rc = err_set(e, ERR_USAGE, "it is of the %s '%.200s' and not '%.200s': give another --output",
                         rows[i].what, then, json_string_value(now));
        json_decref(now);
    }
    return rc;
}

/* One line of the output: 1 to keep, 0 to make again, since it failed. */
static int line_read(struct work *w, const char *text, size_t n, struct err *e)
{
    json_error_t ignored;
    json_t *v = json_loadb(text, n, 0, &ignored);
    const char *name = json_string_value(json_object_get(v, "image"));
    const bool failed = json_object_get(v, "error") != NULL;
    char *key = w->f->questions ? key_of(json_object_get(v, "question_id"))
                : name          ? name_key(name, json_string_value(json_object_get(v, "image_bytes"))) : NULL;
    const json_t *at = key ? json_object_get(w->place, key) : NULL;
    struct item *x = at ? &w->item[json_integer_value(at)] : NULL;
    int rc = key ? line_check(w, v, x, e) : err_set(e, ERR_FORMAT, "no result of this command");
    if (rc >= 0 && x && !failed) x->done = true;
    json_decref(v);
    free(key);
    return rc < 0 ? rc : !x || !failed;
}

/* Puts the lines that stay in the place of the file; the new file is locked as the old one was. */
static int output_replace(struct work *w, const struct buf *keep, struct err *e)
{
    int rc = out_file(w->f->output, keep->p, keep->n, e);
    int fd = rc < 0 ? -1 : open(w->f->output, O_RDWR | O_APPEND | O_CLOEXEC);
    if (rc >= 0 && fd < 0) rc = err_errno(e, "write", w->f->output);
    if (rc >= 0 && flock(fd, LOCK_EX | LOCK_NB) < 0) rc = err_errno(e, "lock", w->f->output);
    close(w->fd);
    w->fd = fd;
    return rc;
}

/* Which answers are there. What failed is taken out, to be made again; what follows the last line end was cut by a
 * kill, and goes. */
static int output_read(struct work *w, struct err *e)
{
    char *text;
    size_t n, at = 0;
    struct buf keep = buf_make(OUTPUT_MAX);
    int rc = file_read(&text, &n, w->f->output, OUTPUT_MAX, e), line = 1;
    if (rc < 0) return rc;
    for (char *end; rc >= 0 && (end = memchr(text + at, '\n', n - at)); line++) {
        rc = line_read(w, text + at, (size_t)(end - text) - at, e);
        if (rc > 0) buf_add(&keep, text + at, (size_t)(end - text) + 1 - at);
        if (rc < 0) err_prefix(e, "line %d of '%s'", line, w->f->output);
        w->again += rc == 0;
        at = (size_t)(end - text) + 1;
    }
    if (rc >= 0) rc = buf_check(&keep, w->f->output, e);
    w->size = (off_t)keep.n;
    if (rc >= 0 && at < n) log_info("the last line of '%s' was cut short and is made again", w->f->output);
    if (rc >= 0 && w->again) rc = output_replace(w, &keep, e);
    else if (rc >= 0 && at < n && ftruncate(w->fd, w->size) < 0) rc = err_errno(e, "shorten", w->f->output);
    free(text);
    buf_free(&keep);
    return rc;
}

static int output_open(struct work *w, struct err *e)
{
    w->fd = open(w->f->output, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (w->fd < 0) return err_errno(e, "write", w->f->output);
    struct stat st, now;
    if (fstat(w->fd, &st) < 0 || !S_ISREG(st.st_mode))
        return err_set(e, ERR_USAGE, "'%s' is no regular file", w->f->output);
    if (flock(w->fd, LOCK_EX | LOCK_NB) < 0 || stat(w->f->output, &now) < 0 || now.st_ino != st.st_ino)
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
    char *hex = x->name ? name_hex(x->name) : NULL;
    json_t *v = json_object();
    if (x->id) json_object_set(v, "question_id", x->id);
    if (x->name) json_object_set_new(v, "image", json_text(x->name));
    if (hex) json_object_set_new(v, "image_bytes", json_string(hex));
    json_object_set_new(v, "prompt", json_string(x->id ? x->text : w->f->question));
    free(hex);
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
    json_object_set_new(v, "model_id", json_text(w->model));
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
            if (w->item[i].done) {
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
    json_decref(w->place);
    if (w->fd >= 0) close(w->fd);
    pthread_cond_destroy(&w->more);
    pthread_mutex_destroy(&w->lock);
}

/* What is to be asked, with keys. */
static int items_find(struct work *w, struct err *e)
{
    json_t *question = w->f->question ? json_string(w->f->question) : NULL;
    if (w->f->question && !question) return err_set(e, ERR_USAGE, "the question is not UTF-8");
    json_decref(question);
    int rc = w->f->questions ? questions_read(w, e) : find(w, "", 0, e);
    if (rc < 0 || w->f->questions) return rc;
    if (!w->n) return err_set(e, ERR_MISSING, "no picture in '%s'", w->f->dir);
    qsort(w->item, w->n, sizeof *w->item, name_order);
    for (size_t i = 0; i < w->n && rc >= 0; i++) rc = item_place(w, i, e);
    return rc;
}

int folder_run(const struct folder *f, struct llava_engine *engine, struct err *e)
{
    const char *const what = f->questions ? "questions" : "pictures";
    struct work w = { .f = f, .fd = -1, .place = json_object() };
    struct llava_batch_options o = llava_batch_options_default();
    struct llava_batch *b = NULL;
    struct llava_info info;
    struct llava_error le;
    int rc;
    pthread_mutex_init(&w.lock, NULL);
    pthread_cond_init(&w.more, NULL);
    llava_engine_info(engine, &info);
    w.model = f->adapter ? f->adapter : info.name;
    TRY(items_find(&w, e));
    TRY(output_open(&w, e));
    for (size_t i = 0; i < w.n; i++) w.before += w.item[i].done;
    if (w.again) log_info("%lld that failed before are asked again", (long long)w.again);
    o.sequences = f->parallel;
    if (llava_batch_open(&b, engine, &o, &le) < 0) TRY(err_set(e, (enum err_code)le.code, "%s", le.message));
    progress_begin(&w.bar, what, "", (int64_t)w.n);
    progress_step(&w.bar, w.before);
    rc = ask_all(&w, engine, b, e);
    progress_end(&w.bar);
    if (rc < 0) goto out;
    if (fsync(w.fd) < 0) TRY(err_errno(e, "write", f->output));
    log_info("%lld %s answered, %lld failed, %lld were there before", (long long)(w.written - w.failed), what,
             (long long)w.failed, (long long)w.before);
    if (w.failed)
        rc = err_set(e, ERR_FORMAT, "%lld of %zu %s failed: '%s' says why, and the same command asks them again",
                     (long long)w.failed, w.n, what, f->output);
out:
    llava_batch_close(b);
    work_fini(&w);
    return rc;
}
