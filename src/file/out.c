/* See out.h. */
#define _GNU_SOURCE
#include "file/out.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

/* Permissions that the user's files get; mkostemps gives only 0600. */
static mode_t file_mask(void)
{
    mode_t mask = umask(0);
    umask(mask);
    return mask;
}

/* Where the bytes go in the end: behind links, so that a link stays one. */
static char *target_of(const char *path)
{
    char *real = realpath(path, NULL);
    return real ? real : strdup(path);
}

int out_open(struct out *o, const char *path, struct err *e)
{
    *o = (struct out){ .fd = -1 };
    struct stat st;
    o->path = target_of(path);
    if (!o->path) return err_set(e, ERR_NOMEM, "no memory for a path");
    const bool there = stat(o->path, &st) == 0;
    o->direct = there && !S_ISREG(st.st_mode);
    if (o->direct) { /* a device or a pipe is written to, not replaced */
        o->fd = open(o->path, O_WRONLY | O_CLOEXEC);
    } else {
        o->tmp = malloc(strlen(o->path) + sizeof ".XXXXXX.tmp");
        if (!o->tmp) {
            out_drop(o);
            return err_set(e, ERR_NOMEM, "no memory for a path");
        }
        memcpy(o->tmp, o->path, strlen(o->path));
        memcpy(o->tmp + strlen(o->path), ".XXXXXX.tmp", sizeof ".XXXXXX.tmp");
        o->fd = mkostemps(o->tmp, 4, O_CLOEXEC); /* a new name: nobody else's file, no link */
        if (o->fd >= 0) fchmod(o->fd, there ? st.st_mode & 0777 : 0666 & ~file_mask());
    }
    if (o->fd >= 0) return 0;
    int rc = err_errno(e, o->direct ? "open" : "create", o->path);
    out_drop(o);
    return rc;
}

int out_write(struct out *o, const void *p, size_t n, struct err *e)
{
    for (size_t done = 0; done < n;) {
        size_t want = n - done < (size_t)1 << 30 ? n - done : (size_t)1 << 30;
        ssize_t k = write(o->fd, (const char *)p + done, want);
        if (k < 0 && errno == EINTR) continue;
        if (k < 0) return err_errno(e, "write", o->path);
        done += (size_t)k;
        o->at += (uint64_t)k;
    }
    return 0;
}

int out_sync_dir(const char *dir, struct err *e)
{
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return err_errno(e, "open", dir);
    /* some network file systems cannot sync a folder; the rename itself was in order */
    int rc = fsync(fd) < 0 && errno != EINVAL && errno != EROFS ? err_errno(e, "sync", dir) : 0;
    close(fd);
    return rc;
}

int out_sync_parent(const char *path, struct err *e)
{
    const char *slash = strrchr(path, '/');
    if (!slash) return out_sync_dir(".", e);
    char *dir = strndup(path, slash == path ? 1 : (size_t)(slash - path));
    if (!dir) return err_set(e, ERR_NOMEM, "no memory for a path");
    int rc = out_sync_dir(dir, e);
    free(dir);
    return rc;
}

int out_commit(struct out *o, struct err *e)
{
    int rc = 0;
    if (!o->direct && !o->loose && fsync(o->fd) < 0) rc = err_errno(e, "sync", o->path);
    if (close(o->fd) < 0 && rc >= 0) rc = err_errno(e, "close", o->path);
    o->fd = -1;
    if (o->direct) {
        out_drop(o);
        return rc;
    }
    if (rc >= 0 && rename(o->tmp, o->path) < 0) rc = err_errno(e, "rename to", o->path);
    if (rc < 0) unlink(o->tmp);
    else if (!o->loose) rc = out_sync_parent(o->path, e);
    out_drop(o);
    return rc;
}

int out_file(const char *path, const void *p, size_t n, struct err *e)
{
    struct out o;
    int rc = out_open(&o, path, e);
    if (rc >= 0) rc = out_write(&o, p, n, e);
    if (rc >= 0) return out_commit(&o, e);
    out_drop(&o);
    return rc;
}

void out_drop(struct out *o)
{
    if (o->path && o->fd >= 0) {
        close(o->fd);
        if (o->tmp) unlink(o->tmp);
    }
    free(o->path);
    free(o->tmp);
    *o = (struct out){ .fd = -1 };
}

int out_make_dirs(const char *path, struct err *e)
{
    int rc = 0;
    char *p = strdup(path);
    if (!p) return err_set(e, ERR_NOMEM, "no memory for a path");
    for (char *s = p + 1; rc >= 0; s++) {
        char c = *s;
        if (c && c != '/') continue;
        *s = 0;
        if (mkdir(p, 0777) < 0 && errno != EEXIST) rc = err_errno(e, "create", p);
        *s = c;
        if (!c) break;
    }
    free(p);
    return rc;
}

int out_claim(int *lock, const char *dir, struct err *e)
{
    *lock = -1;
    int rc = out_make_dirs(dir, e);
    if (rc < 0) return rc;
    const int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return errno == ENOENT ? 1 : err_errno(e, "open", dir); /* ENOENT: another has just moved it away */
    if (flock(fd, LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK) {
        close(fd);
        return 1;
    }
    *lock = fd;
    return 0;
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *f)
{
    (void)st;
    (void)kind;
    (void)f;
    remove(path);
    return 0;
}

void out_remove_tree(const char *path)
{
    nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}
