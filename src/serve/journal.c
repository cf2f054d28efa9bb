/* See journal.h. */
#include "serve/journal.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/buf.h"

enum { DAY_S = 24 * 3600 };

struct journal {
    char name[32], path[1024];
    pthread_mutex_t lock;
    int fd;          /* -1: none */
    time_t begin;    /* of this file */
};

static int file_open(struct journal *j, struct err *e)
{
    struct stat st;
    j->begin = stat(j->path, &st) == 0 && st.st_size ? st.st_mtime : time(NULL);
    j->fd = open(j->path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    return j->fd < 0 ? err_errno(e, "open", j->path) : 0;
}

int journal_open(struct journal **ret, const char *name, const char *dir, const char *file, struct err *e)
{
    struct journal *j = calloc(1, sizeof *j);
    *ret = NULL;
    if (!j) return err_set(e, ERR_NOMEM, "no memory for a log");
    snprintf(j->name, sizeof j->name, "%s", name);
    snprintf(j->path, sizeof j->path, "%s/%s", dir ? dir : "", file);
    pthread_mutex_init(&j->lock, NULL);
    j->fd = -1;
    int rc = dir ? file_open(j, e) : 0;
    if (rc < 0) journal_close(j);
    else *ret = j;
    return rc;
}

void journal_close(struct journal *j)
{
    if (!j) return;
    if (j->fd >= 0) close(j->fd);
    pthread_mutex_destroy(&j->lock);
    free(j);
}

/* A day is over: the file gets the day's name and a new one begins. */
static void turn(struct journal *j, time_t now)
{
    char aside[1100], day[16];
    struct tm tm;
    if (j->fd < 0 || now - j->begin < DAY_S) return;
    gmtime_r(&j->begin, &tm);
    strftime(day, sizeof day, "%Y-%m-%d", &tm);
    snprintf(aside, sizeof aside, "%s.%s", j->path, day);
    close(j->fd);
    rename(j->path, aside);
    file_open(j, NULL);
}

static void line(struct journal *j, const char *level, const char *fmt, va_list ap)
{
    char text[4096], when[32];
    time_t now = time(NULL);
    struct tm tm;
    localtime_r(&now, &tm);
    strftime(when, sizeof when, "%Y-%m-%d %H:%M:%S", &tm);
    int n = snprintf(text, sizeof text, "%s | %s | %s | ", when, level, j->name);
    vsnprintf(text + n, sizeof text - (size_t)n - 1, fmt, ap);
    text_tame(text);
    size_t len = strlen(text);
    text[len] = '\n';
    pthread_mutex_lock(&j->lock);
    turn(j, now);
    /* One write a line. Where the disk is full the line is lost: there is no better place to say so. */
    if (j->fd >= 0) file_append(j->fd, text, len + 1);
    if (write(STDERR_FILENO, text, len + 1) < 0) (void)0;
    pthread_mutex_unlock(&j->lock);
}

void journal_info(struct journal *j, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    line(j, "INFO", fmt, ap);
    va_end(ap);
}

void journal_error(struct journal *j, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    line(j, "ERROR", fmt, ap);
    va_end(ap);
}
