/* Any bytes as a training file: opening it, and every record of it. What the index says must be what the records say,
 * and opening the same bytes again must give the same. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "train/dataset.h"

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);

static char path[] = "/tmp/llava-fuzz-XXXXXX";

static void clean(void) { remove(path); }

static void check_span(struct span s)
{
    struct err e;
    if (s.n && (s.p[s.n] != 0 || text_check_utf8(s.p, s.n, "a record", &e) < 0)) abort();
}

static void check_record(const struct dataset *d, struct record *r, int64_t i)
{
    char name[RECORD_NAME_MAX];
    struct err e = { 0 };
    size_t words = 0;
    int rc = record_load(r, d, i, &e);
    if (rc < 0 && rc != ERR_FORMAT) abort();
    record_name(name, r);
    if (text_check_utf8(name, strlen(name), "a name", &e) < 0) abort();
    check_span(r->id);
    if (rc < 0) return;
    if ((r->n_images > 0) != d->entry[i].image) abort();
    for (int k = 0; k < r->n_images; k++) check_span(r->image[k]);
    for (int k = 0; k < r->n_turns; k++) {
        check_span(r->turn[k].from);
        check_span(r->turn[k].value);
        bool inside = false;
        for (struct span s = r->turn[k].value; s.n;) {
            uint32_t cp;
            size_t len;
            if (utf8_next(s.p, s.n, &cp, &len) != UTF8_OK) abort();
            words += !utf8_is_space(cp) && !inside;
            inside = !utf8_is_space(cp);
            s.p += len, s.n -= len;
        }
    }
    if (words != d->entry[i].words) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
    static int fd = -1;
    struct dataset d, again;
    struct record r = { 0 };
    struct err e = { 0 };
    if (fd < 0) {
        if ((fd = mkstemp(path)) < 0) abort();
        atexit(clean);
    }
    if (ftruncate(fd, 0) < 0 || pwrite(fd, p, n, 0) != (ssize_t)n) abort();
    if (dataset_open(&d, path, &e) < 0) return e.msg[0] ? 0 : (abort(), 0);
    if (dataset_open(&again, path, &e) < 0 || again.n != d.n || again.hash != d.hash || d.n < 1) abort();
    for (int64_t i = 0; i < d.n; i++) check_record(&d, &r, i);
    record_fini(&r);
    dataset_close(&again);
    dataset_close(&d);
    return 0;
}
