/* A fuzz target as a test: runs it on nothing at all, and on each file of tests/fuzz/corpus/NAME (NAME is the
 * program's; or of the folder given), whole and cut short. Prints TAP; under sanitizers this keeps old finds fixed. */
#define _DEFAULT_SOURCE
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"

enum { FILE_MAX = 1 << 20 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

/* On a copy of exactly n bytes, so that a sanitizer sees the first byte past the end. */
static void run(const char *p, size_t n)
{
    uint8_t *copy = malloc(n ? n : 1);
    if (!copy) BUG("no memory for %zu bytes", n);
    memcpy(copy, p, n);
    LLVMFuzzerTestOneInput(copy, n);
    free(copy);
}

int main(int argc, char **argv)
{
    const char *name = strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[0];
    char own[512];
    const char *dir = argc > 1 ? argv[1] : own;
    int n = 0;
    snprintf(own, sizeof own, "tests/fuzz/corpus/%s", name);
    run("", 0);
    DIR *d = opendir(dir);
    for (struct dirent *f; d && (f = readdir(d)); ) {
        if (f->d_name[0] == '.') continue;
        char path[1024], *bytes;
        struct err e;
        size_t size;
        snprintf(path, sizeof path, "%s/%s", dir, f->d_name);
        if (file_read(&bytes, &size, path, FILE_MAX, &e) < 0) {
            printf("not ok 1 - %s\n1..1\n", e.msg);
            return 1;
        }
        run(bytes, size);
        for (size_t cut = size / 2; cut > 0; cut /= 2) run(bytes, size - cut);
        free(bytes);
        n++;
    }
    if (d) closedir(d);
    printf("1..1\n%s 1 - %s: %d files replayed\n", n ? "ok" : "not ok", name, n);
    return !n;
}
