/* See features.h. A file: the head, then the numbers as they are in memory. */
#include "train/features.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/hash.h"
#include "base/log.h"
#include "file/out.h"

enum { PATH_MAX_BYTES = 4096 };
struct head {
    char magic[16];
    uint64_t bytes;
    uint32_t crc, zero;
};
static const char magic[16] = "llava features1";

/* ---- names */

static int add_tensor(void *ctx, const struct bind_row *r, struct err *e)
{
    struct hash *h = ctx;
    const struct tensor w = r->param->w;
    (void)e;
    if (r->part != PART_CLIP || !w.p) return 0;
    hash_add(h, r->name, strlen(r->name) + 1);
    hash_add(h, &w.type, sizeof w.type);
    hash_add(h, w.n, sizeof w.n);
    hash_add(h, w.p, tensor_bytes(w));
    return 0;
}

/* Numbers in words: a struct's own bytes have gaps. */
static void add_words(struct hash *h, const struct llava_model *m, const struct recipe *c, enum dtype act,
                      const char *kernels)
{
    const struct clip_config *t = &m->cfg.clip;
    const struct clip_processor *p = &c->proc;
    char text[1024];
    const int n = snprintf(
        text, sizeof text,
        "tower %d %d %d %d %d %d %a %d; layer %d cls %d; pictures %d %d %d %d %d %d %d %d %d "
        "%a %a %a %a %a %a %a %d %d; %s %s",
        t->C, t->F, t->L, t->H, t->image, t->patch, (double)t->eps, t->quick_gelu, m->cfg.select_layer,
        m->cfg.select_cls, p->do_resize, p->do_center_crop, p->do_rescale, p->do_normalize, p->shortest, p->size_w,
        p->size_h, p->crop_w, p->crop_h, p->mean[0], p->mean[1], p->mean[2], p->std[0], p->std[1], p->std[2], p->scale,
        c->aspect == ASPECT_PAD, c->side, dtype_name(act), kernels);
    ASSERT(n > 0 && (size_t)n < sizeof text);
    hash_add(h, text, (size_t)n);
}

int features_open(struct features *f, const char *dir, const struct llava_model *m, const struct recipe *c,
                  enum dtype act, const char *kernels, struct err *e)
{
    struct hash h;
    *f = (struct features){ .dir = dir, .bytes = (size_t)c->rows * (size_t)m->cfg.clip.C * dtype_bytes(act) };
    hash_init(&h, HASH_SHA256);
    add_words(&h, m, c, act, kernels);
    const int rc = llava_each((struct llava_model *)(uintptr_t)m, add_tensor, &h, e);
    hash_hex(&h, f->of);
    if (rc < 0 || out_make_dirs(dir, e) < 0) return e->code;
    const int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return err_errno(e, "open", dir);
    return close(fd);
}

void features_name(char name[FEATURES_NAME], const struct features *f, const void *picture, size_t n)
{
    struct hash h;
    hash_init(&h, HASH_SHA256);
    hash_add(&h, f->of, sizeof f->of);
    hash_add(&h, picture, n);
    hash_hex(&h, name);
}

static void path_of(char path[PATH_MAX_BYTES], const struct features *f, const char *name)
{
    snprintf(path, PATH_MAX_BYTES, "%s/%s.features", f->dir, name);
}

/* ---- files */

static bool read_all(int fd, void *to, size_t n)
{
    for (size_t at = 0; at < n;) {
        const ssize_t got = read(fd, (char *)to + at, n - at);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return false;
        at += (size_t)got;
    }
    return true;
}

bool features_get(const struct features *f, const char *name, void *to)
{
    char path[PATH_MAX_BYTES], more;
    struct head head;
    path_of(path, f, name);
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        if (errno != ENOENT)
            log_warn("cannot open '%s': %s; the picture's features are made again", path, strerror(errno));
        return false;
    }
    const bool whole = read_all(fd, &head, sizeof head) && !memcmp(head.magic, magic, sizeof magic) &&
                       head.bytes == f->bytes && read_all(fd, to, f->bytes) && read(fd, &more, 1) == 0 &&
                       crc32c(to, f->bytes) == head.crc;
    close(fd);
    if (!whole) log_warn("'%s' is cut short or was changed: the picture's features are made again", path);
    return whole;
}

int features_put(const struct features *f, const char *name, const void *from, struct err *e)
{
    char path[PATH_MAX_BYTES];
    struct head head = { .bytes = f->bytes, .crc = crc32c(from, f->bytes) };
    struct out o = { .fd = -1 };
    int rc;
    memcpy(head.magic, magic, sizeof magic);
    path_of(path, f, name);
    TRY(out_open(&o, path, e));
    o.loose = true; /* there is the checksum */
    TRY(out_write(&o, &head, sizeof head, e));
    TRY(out_write(&o, from, f->bytes, e));
    TRY(out_commit(&o, e));
out:
    out_drop(&o);
    return rc;
}
