/* See map.h. */
#define _GNU_SOURCE
#include "base/map.h"

#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int map_open(struct map *m, const char *path, struct err *e)
{
    *m = (struct map){ 0 };
    int rc = 0, fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK) /* a pipe must not make us wait */;
    if (fd < 0) return err_errno(e, "open", path);
    struct stat st;
    if (fstat(fd, &st) < 0) rc = err_errno(e, "stat", path);
    else if (!S_ISREG(st.st_mode)) rc = err_set(e, ERR_FORMAT, "'%s' is not a regular file", path);
    else if (st.st_size > 0) {
        void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED) rc = err_errno(e, "map", path);
        else *m = (struct map){ p, (size_t)st.st_size };
    }
    close(fd);
    return rc;
}

void map_close(struct map *m)
{
    if (m->p) munmap((void *)m->p, m->n);
    *m = (struct map){ 0 };
}

void map_forget(const void *p, size_t n)
{
    const uintptr_t page = 4096, from = ((uintptr_t)p + page - 1) / page * page, to = ((uintptr_t)p + n) / page * page;
    if (to > from) madvise((void *)from, to - from, MADV_DONTNEED); /* a hint: what fails costs memory only */
}
