/* For fuzz targets whose bytes are a file among others: a temporary folder, which goes with its files when the program
 * ends. */
#pragma once
#include <dirent.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/err.h"

static char fuzz_folder[] = "/tmp/llava-fuzz-XXXXXX";

/* Of a file in the folder; one of four buffers in turn. */
static inline const char *fuzz_path(const char *name)
{
    static char path[4][300];
    static int k;
    char *p = path[k++ % 4];
    snprintf(p, sizeof path[0], "%s/%s", fuzz_folder, name);
    return p;
}

static inline void fuzz_drop(const char *name) { remove(fuzz_path(name)); }

static void fuzz_clean(void)
{
    DIR *d = opendir(fuzz_folder);
    for (struct dirent *f; d && (f = readdir(d)); )
        if (f->d_name[0] != '.') fuzz_drop(f->d_name);
    if (d) closedir(d);
    remove(fuzz_folder);
}

/* Whether this is the first call, which makes the folder: the time to put there what stays. */
static inline bool fuzz_begin(void)
{
    static bool there;
    if (there) return false;
    if (!mkdtemp(fuzz_folder)) BUG("no temporary folder");
    atexit(fuzz_clean);
    return there = true;
}

static inline void fuzz_put(const char *name, const void *p, size_t n)
{
    const char *path = fuzz_path(name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(p, 1, n, f) != n || fclose(f)) BUG("cannot write '%s'", path);
}
