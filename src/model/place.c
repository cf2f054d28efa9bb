/* See place.h. */
#include "model/place.h"

#include <stdlib.h>

#include "base/map.h"

enum { BUFFER = 64 << 20, SLICE = 1 << 20 }; /* bytes sent at once; elements that a thread converts at once */

int place_begin(struct placer *p, struct dev *dev, const struct kern *kern, struct kctx *kc, int64_t total,
                struct err *e)
{
    *p = (struct placer){ .dev = dev, .kern = kern, .kc = kc };
    if (!dev) return 0;
    int rc = 0;
    for (int i = 0; i < PLACE_BUFFERS && rc >= 0; i++) {
        rc = dev_pinned(&p->buffer[i], dev, BUFFER, e);
        p->sent[i] = dev_event_new(dev);
    }
    progress_begin(&p->progress, "loading", "B", total);
    return rc;
}

void place_end(struct placer *p)
{
    if (!p->dev) return;
    dev_sync(p->dev);
    progress_end(&p->progress);
    for (int i = 0; i < PLACE_BUFFERS; i++) {
        dev_pinned_free(p->dev, p->buffer[i]);
        dev_event_free(p->sent[i]);
    }
    dev_free(p->dev, p->rows, BUFFER);
    free(p->whole);
    *p = (struct placer){ 0 };
}

static void convert(void *dst, enum dtype to, const char *src, enum dtype from, int64_t n, bool mapped)
{
    const size_t size_to = dtype_bytes(to), size_from = dtype_bytes(from);
#pragma omp parallel for schedule(dynamic)
    for (int64_t at = 0; at < n; at += SLICE) {
        const int64_t k = n - at < SLICE ? n - at : SLICE;
        dtype_convert((char *)dst + (size_t)at * size_to, to, src + (size_t)at * size_from, from, k);
        if (mapped) map_forget(src + (size_t)at * size_from, (size_t)k * size_from);
    }
}

/* *done counts the bytes sent. */
static void send(struct placer *p, struct tensor dst, struct tensor src, bool mapped, int64_t *done)
{
    if (dst.type == src.type) { /* bytes, whatever they mean */
        dst = tensor_1d(dst.p, DT_U8, (int64_t)tensor_bytes(dst));
        src = tensor_1d(src.p, DT_U8, (int64_t)tensor_bytes(src));
    }
    const enum dtype to = (enum dtype)dst.type, from = (enum dtype)src.type;
    const int64_t n = tensor_count(src), most = BUFFER / (int64_t)dtype_bytes(to);
    ASSERT(n == tensor_count(dst));
    for (int64_t at = 0; at < n; at += most) {
        const int64_t k = n - at < most ? n - at : most;
        const size_t bytes = (size_t)k * dtype_bytes(to);
        void *buffer = p->buffer[p->turn];
        dev_event_wait(p->sent[p->turn]);
        convert(buffer, to, (const char *)src.p + (size_t)at * dtype_bytes(from), from, k, mapped);
        dev_send(p->dev, (char *)dst.p + (size_t)at * dtype_bytes(to), buffer, bytes);
        dev_event_record(p->dev, p->sent[p->turn]);
        p->turn = (p->turn + 1) % PLACE_BUFFERS;
        if (done) progress_step(&p->progress, *done += (int64_t)bytes);
    }
}

void place(struct placer *p, struct tensor dst, struct tensor src, bool mapped)
{
    int64_t done = p->progress.done;
    send(p, dst, src, mapped, &done);
}

int place_quantised(struct placer *p, struct tensor dst, struct tensor src, bool mapped, struct err *e)
{
    const enum dtype type = src.type == DT_F64 ? DT_F32 : (enum dtype)src.type;
    const int64_t rows = tensor_rows(dst), cols = tensor_cols(dst), row = (int64_t)dtype_row_bytes(type, cols);
    int rc = p->rows ? 0 : dev_alloc(&p->rows, p->dev, BUFFER, e);
    ASSERT(p->kern && row <= BUFFER);
    dev_use(p->dev);
    for (int64_t at = 0, n; at < rows && rc >= 0; at += n) {
        n = rows - at < BUFFER / row ? rows - at : BUFFER / row;
        const struct tensor there = tensor_2d(p->rows, type, n, cols);
        struct tensor from = tensor_2d(tensor_row(src, at), (enum dtype)src.type, n, cols), to = there;
        send(p, to, from, mapped, NULL);
        to = tensor_2d(tensor_row(dst, at), (enum dtype)dst.type, n, cols);
        p->kern->cast(p->kc, to, there);
        progress_step(&p->progress, p->progress.done + (int64_t)tensor_bytes(to));
    }
    return rc;
}

int place_whole(void **ret, struct placer *p, size_t bytes, struct err *e)
{
    if (bytes > p->whole_bytes) {
        free(p->whole);
        p->whole = malloc(bytes);
        p->whole_bytes = p->whole ? bytes : 0;
    }
    *ret = p->whole;
    return *ret ? 0 : err_set(e, ERR_NOMEM, "no memory for %zu bytes", bytes);
}

int fetched_get(const void **ret, struct fetched *f, struct tensor t, struct err *e)
{
    const size_t bytes = tensor_bytes(t);
    *ret = t.p;
    if (!f->dev) return 0;
    if (bytes > f->bytes) {
        free(f->mem);
        f->mem = malloc(bytes);
        f->bytes = f->mem ? bytes : 0;
    }
    if (!f->mem && bytes) return err_set(e, ERR_NOMEM, "no memory for a tensor of %zu bytes", bytes);
    dev_get(f->dev, f->mem, t.p, bytes);
    *ret = f->mem;
    return 0;
}

void fetched_fini(struct fetched *f)
{
    free(f->mem);
    *f = (struct fetched){ 0 };
}
