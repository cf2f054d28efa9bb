/* See log.h. */
#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/err.h"
#include "base/plat.h"

static enum log_level level = LOG_INFO;

void log_set_level(enum log_level l) { level = l; }

static void log_line(const char *head, const char *fmt, va_list ap)
{
    char line[2000];
    vsnprintf(line, sizeof line, fmt, ap);
    text_tame(line);
    fprintf(stderr, "llava: %s%s\n", head, line); /* one call: lines of several threads do not mix */
}

#define LOG_FN(name, min, head)              \
    void name(const char *fmt, ...)          \
    {                                        \
        if (level < (min)) return;           \
        va_list ap;                          \
        va_start(ap, fmt);                   \
        log_line(head, fmt, ap);             \
        va_end(ap);                          \
    }
LOG_FN(log_info, LOG_INFO, "")
LOG_FN(log_warn, LOG_QUIET, "warning: ")

int log_columns(void)
{
    struct winsize w;
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_col > 20 ? w.ws_col : 80;
}

void progress_begin(struct progress *p, const char *what, const char *unit, int64_t total)
{
    double now = plat_now_s();
    *p = (struct progress){ .what = what, .unit = unit, .total = total, .start_s = now, .last_s = now,
                            .tty = isatty(STDERR_FILENO) != 0, .first = -1 };
}

static void progress_draw(struct progress *p, double now)
{
    enum { NAME = 24, BAR = 16, LINE = 200 }; /* with the figures less than 80 columns; of what is narrower, less */
    bool bytes = !strcmp(p->unit, "B");
    size_t n_what = strlen(p->what);
    const char *what = n_what > NAME ? p->what + n_what - NAME : p->what; /* the end of a file's name tells most */
    double k = bytes ? 1e-6 : 1, rate = (double)(p->done - p->first) * k / (now - p->start_s + 1e-9);
    const char *unit = bytes ? "MB" : p->unit;
    char bar[BAR + 1] = "", left[40] = "", line[LINE];
    int len;
    if (p->total > 0) {
        int n = (int)(BAR * p->done / p->total);
        memset(bar, '#', (size_t)n);
        memset(bar + n, '.', (size_t)(BAR - n));
        const double s = rate > 0 ? (double)(p->total - p->done) * k / rate : 0;
        if (s >= 100) snprintf(left, sizeof left, ", %.0f min left", s / 60);
        else if (rate > 0) snprintf(left, sizeof left, ", %.0f s left", s);
    }
    if (p->tty) len = snprintf(line, LINE, "%s [%s] ", what, bar);
    else len = snprintf(line, LINE, "llava: %.100s ", p->what);
    len += snprintf(line + len, (size_t)(LINE - len), "%.0f", (double)p->done * k);
    if (p->total > 0) len += snprintf(line + len, (size_t)(LINE - len), "/%.0f", (double)p->total * k);
    snprintf(line + len, (size_t)(LINE - len), bytes ? "%s%s %.1f MB/s%s" : "%s%s, %.0f/s%s", *unit ? " " : "", unit,
             rate, p->done == p->total ? "" : left);
    if (p->tty) fprintf(stderr, "\r\033[K%.*s", log_columns() - 1, line);
    else fprintf(stderr, "%s\n", line);
    fflush(stderr);
    p->shown = true;
    p->last_s = now;
}

void progress_step(struct progress *p, int64_t done)
{
    if (p->total > 0 && done > p->total) done = p->total;
    p->done = done;
    if (p->first < 0) p->first = done; /* a resumed download starts here */
    double now = plat_now_s();
    if (level > LOG_QUIET && now - p->last_s > (p->tty ? 0.1 : 10)) progress_draw(p, now);
}

void progress_end(struct progress *p)
{
    if (!p->shown) return;
    progress_draw(p, plat_now_s());
    if (p->tty) fputc('\n', stderr);
}
