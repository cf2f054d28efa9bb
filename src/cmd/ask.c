/* See ask.h. */
#include "cmd/ask.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/log.h"
#include "file/http.h"
#include "kern/cpu/cpu.h"

enum { FETCH_MAX = 64 << 20 }; /* bytes of a picture behind an address */

static int fetch(struct buf *body, const char *url, struct err *e)
{
    struct http h = { 0 };
    struct http_reply reply;
    struct http_sink sink = { .buf = body, .fd = -1 };
    int rc = http_open(&h, url, NULL, e);
    if (rc >= 0) rc = http_request(&h, url, &sink, &reply, e);
    if (rc >= 0 && reply.status != 200) rc = err_set(e, ERR_IO, "cannot fetch '%s': status %ld", url, reply.status);
    if (rc >= 0) rc = buf_check(body, url, e);
    http_close(&h);
    return rc;
}

static bool is_address(const char *where)
{
    return !strncmp(where, "http://", 7) || !strncmp(where, "https://", 8);
}

int ask_there(const char *where, struct llava_error *e)
{
    if (is_address(where) || access(where, R_OK) == 0) return 0;
    snprintf(e->message, sizeof e->message, "cannot open '%s': %s", where, strerror(errno));
    return e->code = LLAVA_IO;
}

int ask_image_open(struct llava_image **ret, struct llava_engine *engine, const char *where, struct llava_error *e)
{
    if (!is_address(where)) return llava_image_open(ret, engine, where, e);
    struct err err = { 0 };
    struct buf body = buf_make(FETCH_MAX);
    int rc = fetch(&body, where, &err);
    if (rc < 0) {
        e->code = err.code;
        snprintf(e->message, sizeof e->message, "%s", err.msg);
    } else {
        rc = llava_image_decode(ret, engine, body.p, body.n, where, e);
    }
    buf_free(&body);
    return rc;
}

void ask_images_option(struct ask_images *a, char *value, struct argp_state *state)
{
    if (a->n_values == ASK_IMAGES_MAX) argp_error(state, "more than %d --image-file", ASK_IMAGES_MAX);
    a->value[a->n_values++] = value;
}

int ask_images_find(struct ask_images *a, const char *sep, struct llava_error *e)
{
    for (int i = 0; i < a->n_values; i++) {
        bool whole = !sep || !*sep || access(a->value[i], F_OK) == 0;
        for (char *at = a->value[i], *next; at; at = next) {
            next = whole ? NULL : strstr(at, sep);
            if (next) {
                *next = 0;
                next += strlen(sep);
            }
            if (a->n_names == ASK_IMAGES_MAX) {
                snprintf(e->message, sizeof e->message, "more than %d pictures", ASK_IMAGES_MAX);
                return e->code = LLAVA_LIMIT;
            }
            int rc = ask_there(at, e);
            if (rc < 0) return rc;
            a->name[a->n_names++] = at;
        }
    }
    return 0;
}

int ask_images_open(struct ask_images *a, struct llava_engine *engine, struct llava_error *e)
{
    for (; a->n < a->n_names; a->n++) {
        int rc = ask_image_open(&a->image[a->n], engine, a->name[a->n], e);
        if (rc < 0) return rc;
    }
    return 0;
}

void ask_images_close(struct ask_images *a)
{
    for (int i = 0; i < a->n; i++) llava_image_close(a->image[i]);
    a->n = 0;
}

bool ask_on_text(void *ctx, const char *text, size_t n)
{
    struct ask_text *t = ctx;
    while (!t->n && n && isspace((unsigned char)*text)) text++, n--;
    if (t->n + n + 1 > t->cap) {
        size_t cap = 2 * (t->n + n) + 256;
        char *p = realloc(t->text, cap);
        if (!p) return false;
        t->text = p;
        t->cap = cap;
    }
    memcpy(t->text + t->n, text, n);
    t->n += n;
    size_t end = t->n;
    while (end > t->shown && isspace((unsigned char)t->text[end - 1])) end--;
    if (t->to && end > t->shown) {
        fwrite(t->text + t->shown, 1, end - t->shown, t->to);
        if (fflush(t->to) != 0) return false; /* nobody reads: main says so */
        t->shown = end;
    }
    return true;
}

void ask_end(struct ask_text *t)
{
    while (t->n && isspace((unsigned char)t->text[t->n - 1])) t->n--;
    if (t->text) t->text[t->n] = 0;
    if (t->to) {
        fputc('\n', t->to);
        fflush(t->to); /* before anything goes to stderr */
    }
}

void ask_free(struct ask_text *t)
{
    free(t->text);
    *t = (struct ask_text){ .to = t->to };
}

/* Weights that fit the processor's cache are read faster than memory: then a share of memory's speed means nothing. */
enum { CACHED = 64 << 20 };
enum { RATE_TOKENS = 8 }; /* the rate of fewer says nothing */

void ask_statistics(const struct llava_engine *engine, const struct llava_result *r, double *ceiling)
{
    struct llava_info info;
    llava_engine_info(engine, &info);
    double gb = r->bytes_per_s * 1e-9, tok = r->generate_s > 0 ? (r->n_new - 1) / r->generate_s : 0;
    char share[80] = "";
    if (info.weight_bytes > CACHED && r->n_new >= RATE_TOKENS) {
        if (*ceiling <= 0 && !strcmp(info.device, "cpu")) *ceiling = cpu_read_ceiling(info.threads);
        if (*ceiling > 0)
            snprintf(share, sizeof share, " (%.0f%% of the %.1f GB/s that this machine reads)",
                     100 * gb / *ceiling, *ceiling);
    }
    log_info("read %d positions (%d kept) in %.2f s, picture %.2f s; first token after %.2f s", r->n_prompt,
             r->n_cached, r->prompt_s, r->image_s, r->first_s);
    if (r->n_new >= RATE_TOKENS) log_info("%d tokens at %.1f tok/s, %.1f GB/s%s", r->n_new, tok, gb, share);
}
