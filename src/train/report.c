/* See report.h. Event files are event.c's, the plot plot.c's. */
#define _GNU_SOURCE
#include "train/report.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/log.h"
#include "file/out.h"
#include "train/event.h"

enum { PATH_BYTES = 4096, TEXT_MAX = 1 << 20, SCALARS_MAX = 32 };

/* A file that lines are added to; fd -1: none, or given up. */
struct sink {
    int fd;
    char path[PATH_BYTES];
};
struct report {
    unsigned kinds;
    struct sink events, lines;
    char dir[PATH_BYTES]; /* of the event files */
};

/* ---- --report_to */

int report_kinds(unsigned *ret, const char *list, struct err *e)
{
    static const struct { const char *name; unsigned kinds; } rows[] = {
        { "none", 0 },
        { "tensorboard", REPORT_TENSORBOARD },
        { "wandb", REPORT_WANDB },
        { "jsonl", REPORT_JSONL },
        { "all", REPORT_TENSORBOARD | REPORT_JSONL },
    };
    enum { N = sizeof rows / sizeof *rows };
    *ret = 0;
    while (*list) {
        size_t n = strcspn(list, ", []'\""), i = 0; /* commas, blanks, a Python list */
        while (n && i < N && (strlen(rows[i].name) != n || strncmp(rows[i].name, list, n) != 0)) i++;
        if (n && i == N)
            return err_set(e, ERR_USAGE, "no report '%.*s': there are tensorboard, wandb, jsonl, all and none", (int)n,
                           list);
        if (n) *ret |= rows[i].kinds;
        list += n ? n : 1;
    }
    return 0;
}

/* ---- files */

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* A report that cannot be written is given up, with one warning; the training goes on. */
static void sink_write(struct sink *s, const char *p, size_t n)
{
    while (n && s->fd >= 0) {
        ssize_t k = write(s->fd, p, n);
        if (k < 0 && errno == EINTR) continue;
        if (k <= 0) {
            struct err e;
            err_errno(&e, "write", s->path);
            log_warn("%s: the training goes on without this report", e.msg);
            close(s->fd);
            s->fd = -1;
            return;
        }
        p += k;
        n -= (size_t)k;
    }
}

static void sink_buf(struct sink *s, struct buf *b)
{
    if (!b->failed) sink_write(s, b->p, b->n);
    buf_free(b);
}

static void sink_line(struct sink *s, const json_t *v)
{
    char *text = json_dumps(v, JSON_COMPACT | JSON_ENSURE_ASCII | JSON_REAL_PRECISION(15));
    struct buf b = buf_make(TEXT_MAX);
    if (text) {
        buf_fmt(&b, "%s\n", text);
        sink_buf(s, &b);
    }
    free(text);
}

/* The file as the history has it: what a killed run wrote after its checkpoint is not in there. */
static int lines_open(struct report *r, const struct report_options *o, struct err *e)
{
    size_t i;
    json_t *line;
    if (snprintf(r->lines.path, PATH_BYTES, "%s/log.jsonl", o->output_dir) >= PATH_BYTES)
        return err_set(e, ERR_USAGE, "'%.100s...' is too long for a path", o->output_dir);
    r->lines.fd = open(r->lines.path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0666);
    if (r->lines.fd < 0) return err_errno(e, "create", r->lines.path);
    json_array_foreach(o->state->history, i, line) sink_line(&r->lines, line);
    return 0;
}

/* The youngest folder in DIR; 0: none. */
static int youngest(char *ret, const char *dir)
{
    time_t when = 0;
    int found = 0;
    struct dirent *d;
    DIR *f = opendir(dir);
    while (f && (d = readdir(f))) {
        char path[PATH_BYTES];
        struct stat st;
        if (d->d_name[0] == '.' || snprintf(path, sizeof path, "%s/%s", dir, d->d_name) >= PATH_BYTES) continue;
        if (stat(path, &st) < 0 || !S_ISDIR(st.st_mode) || (found && st.st_mtime < when)) continue;
        snprintf(ret, PATH_BYTES, "%s", path);
        when = st.st_mtime;
        found = 1;
    }
    if (f) closedir(f);
    return found;
}

/* LOGGING_DIR, or runs/Nov25_21-40-12_host in OUTPUT_DIR; a resumed run goes on in the folder that it has. */
static int events_dir(struct report *r, const struct report_options *o, const char *host, struct err *e)
{
    char runs[PATH_BYTES], when[32];
    time_t t = time(NULL);
    struct tm tm;
    int n;
    if (o->logging_dir && *o->logging_dir) {
        n = snprintf(r->dir, PATH_BYTES, "%s", o->logging_dir);
    } else {
        n = snprintf(runs, sizeof runs, "%s/runs", o->output_dir);
        if (n < PATH_BYTES && o->state->step && youngest(r->dir, runs)) return 0;
        strftime(when, sizeof when, "%b%d_%H-%M-%S", localtime_r(&t, &tm));
        if (n < PATH_BYTES) n = snprintf(r->dir, PATH_BYTES, "%s/%s_%s", runs, when, host);
    }
    if (n >= PATH_BYTES) return err_set(e, ERR_USAGE, "'%.100s...' is too long for a path", o->output_dir);
    return out_make_dirs(r->dir, e);
}

/* JSON as a block of code in Markdown. */
static void text_page(struct buf *b, const char *tag, const json_t *v)
{
    char *text = v ? json_dumps(v, JSON_INDENT(2) | JSON_REAL_PRECISION(15)) : NULL;
    struct buf m = buf_make(TEXT_MAX);
    for (const char *s = text; s && *s;) {
        size_t n = strcspn(s, "\n");
        buf_fmt(&m, "    %.*s\n", (int)n, s);
        s += n + (s[n] == '\n');
    }
    if (text && !m.failed) event_text(b, now_s(), 0, tag, m.p);
    buf_free(&m);
    free(text);
}

static int events_open(struct report *r, const struct report_options *o, struct err *e)
{
    char host[65] = "host";
    gethostname(host, sizeof host - 1);
    int rc = events_dir(r, o, host, e);
    if (rc < 0) return rc;
    double t = now_s();
    for (int i = 0; r->events.fd < 0 && i < 1000; i++) {
        if (snprintf(r->events.path, PATH_BYTES, "%s/events.out.tfevents.%010lld.%s.%ld.%d", r->dir, (long long)t, host,
                     (long)getpid(), i) >= PATH_BYTES)
            return err_set(e, ERR_USAGE, "'%.100s...' is too long for a path", r->dir);
        r->events.fd = open(r->events.path, O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0666);
        if (r->events.fd < 0 && errno != EEXIST) break;
    }
    if (r->events.fd < 0) return err_errno(e, "create", r->events.path);
    struct buf b = buf_make(4 * TEXT_MAX);
    event_version(&b, t);
    if (o->state->step) event_restart(&b, t, o->state->step + 1);
    text_page(&b, "args/text_summary", o->args);
    text_page(&b, "model_config/text_summary", o->config);
    sink_buf(&r->events, &b);
    return 0;
}

int report_open(struct report **ret, const struct report_options *o, struct err *e)
{
    struct report *r = calloc(1, sizeof *r);
    int rc = 0;
    if (!r) return err_set(e, ERR_NOMEM, "no memory for reports");
    *r = (struct report){ .kinds = o->kinds, .events.fd = -1, .lines.fd = -1 };
    if (o->kinds & REPORT_JSONL) TRY(out_make_dirs(o->output_dir, e));
    if (o->kinds & REPORT_JSONL) TRY(lines_open(r, o, e));
    if (o->kinds & (REPORT_TENSORBOARD | REPORT_WANDB)) TRY(events_open(r, o, e));
    *ret = r;
    return rc;
out:
    r->kinds = 0;
    report_close(r);
    return rc;
}

/* transformers' rewrite_logs: eval_loss -> eval/loss, everything else -> train/NAME. */
static void events_line(struct report *r, const json_t *line)
{
    struct scalar v[SCALARS_MAX];
    char names[SCALARS_MAX][80];
    int n = 0;
    const char *key;
    json_t *x;
    struct buf b = buf_make(TEXT_MAX);
    json_object_foreach((json_t *)line, key, x)
    {
        if (!json_is_number(x) || !strcmp(key, "step") || n == SCALARS_MAX) continue;
        bool eval = !strncmp(key, "eval_", 5);
        snprintf(names[n], sizeof names[n], "%s/%s", eval ? "eval" : "train", eval ? key + 5 : key);
        v[n] = (struct scalar){ names[n], json_number_value(x) };
        n++;
    }
    event_scalars(&b, now_s(), json_integer_value(json_object_get(line, "step")), v, n);
    sink_buf(&r->events, &b);
}

void report_line(struct report *r, const struct standing *s)
{
    const json_t *line = json_array_get(s->history, json_array_size(s->history) - 1);
    if (!line) return;
    if (r->lines.fd >= 0) sink_line(&r->lines, line);
    if (r->events.fd >= 0) events_line(r, line);
}

void report_close(struct report *r)
{
    if (!r) return;
    if (r->lines.fd >= 0) close(r->lines.fd);
    if (r->events.fd >= 0) close(r->events.fd);
    if (r->kinds & REPORT_WANDB)
        log_info("to show this run on Weights & Biases: wandb sync --sync-tensorboard '%s'", r->dir);
    free(r);
}
