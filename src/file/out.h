/* A file being written under a temporary name: it appears under its own name whole and synced, or not at all. One
 * that it replaces leaves it its permissions. What exists and is no regular file (a device, a pipe) is written to as it
 * is. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct out {
    int fd;           /* -1: not open */
    char *path, *tmp; /* the target, behind links; PATH.xxxxxx.tmp beside it */
    bool direct;      /* no regular file: no temporary name */
    bool loose;       /* to be set after out_open: not synced, for files whose readers find out if they are whole */
    uint64_t at;      /* bytes written so far */
};

int out_open(struct out *o, const char *path, struct err *e);
int out_write(struct out *o, const void *p, size_t n, struct err *e);
/* Syncs, renames, syncs the folder. o is closed afterwards, whatever the result. */
int out_commit(struct out *o, struct err *e);
/* A whole small file: open, write, commit. */
int out_file(const char *path, const void *p, size_t n, struct err *e);
void out_drop(struct out *o); /* closes and removes the temporary file; nothing after a commit */

/* fsync of a folder, so that the names in it survive a power cut. */
int out_sync_dir(const char *dir, struct err *e);
int out_sync_parent(const char *path, struct err *e); /* of the folder that a path is in */

/* mkdir -p. */
int out_make_dirs(const char *path, struct err *e);
/* Makes a folder that is not there and keeps others out who claim it too, until *lock is closed. 1, *lock -1: another
 * has it. File systems without locks keep nobody out. */
int out_claim(int *lock, const char *dir, struct err *e);
/* rm -rf, links not followed; whatever fails stays. */
void out_remove_tree(const char *path);
