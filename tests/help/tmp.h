/* A temporary folder for a test, and files in it. Paths are static buffers, eight in turn. */
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char tmp_dir[] = "/tmp/llava-test-XXXXXX";

static int tmp_begin(void **state)
{
    (void)state;
    return mkdtemp(tmp_dir) ? 0 : -1;
}

static int tmp_end(void **state)
{
    (void)state;
    char cmd[100];
    snprintf(cmd, sizeof cmd, "chmod -R u+w %s; rm -rf %s", tmp_dir, tmp_dir);
    return system(cmd);
}

static inline char *tmp_path(const char *name)
{
    static char path[8][400];
    static int k;
    char *p = path[k++ % 8];
    snprintf(p, sizeof path[0], "%s/%s", tmp_dir, name);
    return p;
}

/* Writes a file, making its folder. */
static inline char *tmp_file(const char *name, const void *p, size_t n)
{
    char *path = tmp_path(name), *slash = strrchr(path, '/');
    *slash = 0;
    mkdir(path, 0777);
    *slash = '/';
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(p, 1, n, f), n);
    fclose(f);
    return path;
}

static inline char *tmp_text(const char *name, const char *text)
{
    return tmp_file(name, text, strlen(text));
}

#define assert_contains(text, part)                                          \
    do {                                                                     \
        if (!strstr(text, part)) fail_msg("'%s' is not in: %s", part, text); \
    } while (0)
