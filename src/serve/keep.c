/* See keep.h. */
#include "serve/keep.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/hash.h"
#include "base/log.h"
#include "image/encode.h"

enum { WAITING_MAX = 4096, PIXELS_MAX = 64 << 20, JPEG_QUALITY = 75 };

struct item {
    struct item *next;
    char day[16];
    char *line;            /* or a picture: */
    struct picture picture;
    char md5[65];
};

struct keep {
    char dir[800];
    pthread_t thread;
    pthread_mutex_t lock; /* all below */
    pthread_cond_t more;
    struct item *first, **end;
    int n;
    size_t pixels;        /* bytes of pictures that wait */
    bool closing;
    uint64_t lost;
};

static bool write_file(const char *path, int flags, const void *p, size_t n)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | flags, 0644);
    if (fd < 0) return errno == EEXIST;
    bool ok = flags & O_APPEND ? file_append(fd, p, n) : write(fd, p, n) == (ssize_t)n;
    if (close(fd) != 0) ok = false;
    if (!ok && flags & O_EXCL) unlink(path); /* half a picture is none */
    return ok;
}

static bool write_line(const struct keep *k, const struct item *it)
{
    char path[1000];
    size_t n = strlen(it->line);
    snprintf(path, sizeof path, "%s/%s-conv.json", k->dir, it->day);
    it->line[n] = '\n'; /* the NUL's place; one write a line */
    return write_file(path, O_APPEND, it->line, n + 1);
}

static bool write_picture(const struct keep *k, const struct item *it)
{
    char path[1000];
    struct buf jpeg = buf_make(256 << 20);
    struct err e;
    snprintf(path, sizeof path, "%s/serve_images", k->dir);
    mkdir(path, 0755);
    snprintf(path, sizeof path, "%s/serve_images/%s", k->dir, it->day);
    mkdir(path, 0755);
    snprintf(path, sizeof path, "%s/serve_images/%s/%s.jpg", k->dir, it->day, it->md5);
    bool ok = access(path, F_OK) == 0;
    if (!ok && picture_jpeg(&jpeg, &it->picture, JPEG_QUALITY, &e) >= 0) ok = write_file(path, O_EXCL, jpeg.p, jpeg.n);
    buf_free(&jpeg);
    return ok;
}

static void item_free(struct item *it)
{
    free(it->line);
    picture_free(&it->picture);
    free(it);
}

static size_t pixel_bytes(const struct picture *p) { return (size_t)p->w * (size_t)p->h * 3; }

/* One thing more could not be kept. Under the lock. */
static void lose(struct keep *k)
{
    if (!k->lost++) log_warn("cannot keep what people ask in '%s': the disk is full, slow or forbidden", k->dir);
}

static void *keep_main(void *ctx)
{
    struct keep *k = ctx;
    pthread_mutex_lock(&k->lock);
    while (k->first || !k->closing) {
        struct item *it = k->first;
        if (!it) {
            pthread_cond_wait(&k->more, &k->lock);
            continue;
        }
        k->first = it->next;
        if (!k->first) k->end = &k->first;
        k->n--;
        pthread_mutex_unlock(&k->lock);
        bool ok = it->line ? write_line(k, it) : write_picture(k, it);
        size_t bytes = it->line ? 0 : pixel_bytes(&it->picture);
        item_free(it);
        pthread_mutex_lock(&k->lock);
        k->pixels -= bytes;
        if (!ok) lose(k);
    }
    pthread_mutex_unlock(&k->lock);
    return NULL;
}

int keep_open(struct keep **ret, const char *dir, struct err *e)
{
    struct keep *k = calloc(1, sizeof *k);
    *ret = NULL;
    if (!k) return err_set(e, ERR_NOMEM, "no memory for a log");
    snprintf(k->dir, sizeof k->dir, "%s", dir);
    k->end = &k->first;
    pthread_mutex_init(&k->lock, NULL);
    pthread_cond_init(&k->more, NULL);
    if (pthread_create(&k->thread, NULL, keep_main, k) != 0) {
        pthread_mutex_destroy(&k->lock);
        pthread_cond_destroy(&k->more);
        free(k);
        return err_set(e, ERR_LIMIT, "cannot start a thread for logs");
    }
    *ret = k;
    return 0;
}

void keep_close(struct keep *k)
{
    if (!k) return;
    pthread_mutex_lock(&k->lock);
    k->closing = true;
    pthread_cond_signal(&k->more);
    pthread_mutex_unlock(&k->lock);
    pthread_join(k->thread, NULL);
    if (k->lost) log_warn("%llu answers or pictures are not in '%s'", (unsigned long long)k->lost, k->dir);
    pthread_mutex_destroy(&k->lock);
    pthread_cond_destroy(&k->more);
    free(k);
}

/* Takes it, which has a line or a picture. */
static void add(struct keep *k, struct item *it)
{
    size_t bytes = it->line ? 0 : pixel_bytes(&it->picture);
    time_t now = time(NULL);
    struct tm tm;
    localtime_r(&now, &tm);
    strftime(it->day, sizeof it->day, "%Y-%m-%d", &tm);
    pthread_mutex_lock(&k->lock);
    bool room = k->n < WAITING_MAX && (!bytes || k->pixels + bytes <= PIXELS_MAX || !k->pixels);
    if (room) {
        *k->end = it;
        k->end = &it->next;
        k->n++;
        k->pixels += bytes;
        pthread_cond_signal(&k->more);
    }
    if (!room) lose(k);
    pthread_mutex_unlock(&k->lock);
    if (!room) item_free(it);
}

void keep_line(struct keep *k, char *line)
{
    struct item *it = line ? calloc(1, sizeof *it) : NULL;
    if (it) {
        it->line = line;
        add(k, it);
    } else {
        free(line);
    }
}

void keep_picture_name(const struct picture *p, char md5[65])
{
    struct hash h;
    hash_init(&h, HASH_MD5);
    hash_add(&h, p->rgb, pixel_bytes(p));
    hash_hex(&h, md5);
}

void keep_picture(struct keep *k, struct picture *p, const char md5[65])
{
    struct item *it = calloc(1, sizeof *it);
    if (it) {
        it->picture = *p;
        memcpy(it->md5, md5, sizeof it->md5);
        add(k, it);
    } else {
        picture_free(p);
    }
    *p = (struct picture){ 0 };
}
