/* See show.h. */
#include "train/show.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/plat.h"
#include "train/plan.h"

void show_time(char out[24], double seconds)
{
    const long s = seconds < 3.6e8 ? (long)(seconds + 0.5) : 0;
    if (!(seconds < 3.6e8)) snprintf(out, 24, "?");
    else if (s >= 3600) snprintf(out, 24, "%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
    else snprintf(out, 24, "%ld:%02ld", s / 60, s % 60);
}

enum { SHORT = 8, LONG = 30 }; /* of the bar */

void show_begin(struct show *s, int64_t first, int64_t total, double peak, bool bar, bool quiet)
{
    *s = (struct show){ .bar = bar && !quiet && isatty(2), .quiet = quiet, .width = LONG, .first = first,
                        .total = total, .peak = peak, .start_s = plat_now_s() };
}

/* What bar and line say, the weightiest first. */
enum { PARTS = 7, PART_BYTES = 40 };
struct said {
    char part[PARTS][PART_BYTES];
    int n;
};

__attribute__((format(printf, 2, 3))) static void add(struct said *t, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(t->part[t->n++], PART_BYTES, fmt, ap);
    va_end(ap);
}

static void describe(const struct show *s, const struct shown *v, struct said *t)
{
    char left[24], memory[16];
    const double s_done = fmax(plat_now_s() - s->start_s, 1e-9), n = (double)(v->step - s->first);
    show_time(left, n > 0 ? s_done / n * (double)(s->total - v->step) : INFINITY);
    plan_bytes(memory, (double)plat_memory_peak());
    t->n = 0;
    add(t, "loss %.4f", v->loss);
    add(t, "left %s", left);
    add(t, "%.0f tok/s", s->tokens / s_done);
    add(t, "lr %.3g", v->rate);
    add(t, "norm %.3g", v->norm);
    if (s->peak > 0) add(t, "%.0f%% of peak", 100 * s->flops / s_done / s->peak);
    add(t, "%s", memory);
}

void show_clear(struct show *s)
{
    if (s->drawn) fprintf(stderr, "\r\033[K");
    s->drawn = false;
}

/* One line of the terminal, whatever its width: as many parts as fit beside a short bar, which takes what is left. */
void show_step(struct show *s, const struct shown *v)
{
    char text[PARTS * PART_BYTES + 64], bar[LONG + 1];
    struct said t;
    const double now = plat_now_s();
    if (!s->bar || (now - s->last_s < 0.1 && v->step < s->total)) return;
    s->last_s = now;
    describe(s, v, &t);
    const int room = log_columns() - 4; /* brackets, a space, and the last column: some wrap there */
    const int digits = snprintf(text, sizeof text, "%lld", (long long)s->total);
    int n = snprintf(text, sizeof text, "%*lld/%lld", digits, (long long)v->step, (long long)s->total);
    for (int i = 0; i < t.n && n + 2 + (int)strlen(t.part[i]) + SHORT <= room; i++)
        n += snprintf(text + n, sizeof text - (size_t)n, "  %s", t.part[i]);
    if (s->width > room - n) s->width = room - n < 0 ? 0 : room - n;
    for (int i = 0; i < s->width; i++) bar[i] = i * s->total < s->width * v->step ? '#' : '.';
    bar[s->width] = 0;
    fprintf(stderr, "\r\033[K[%s] %s", bar, text);
    fflush(stderr);
    s->drawn = true;
}

void show_line(struct show *s, const struct shown *v)
{
    char text[PARTS * (PART_BYTES + 2)];
    struct said t;
    size_t n = 0;
    if (s->quiet) return;
    show_clear(s);
    describe(s, v, &t);
    for (int i = 0; i < t.n; i++) n += (size_t)snprintf(text + n, sizeof text - n, "  %s", t.part[i]);
    log_info("step %lld/%lld  epoch %.2f%s", (long long)v->step, (long long)s->total, v->epoch, text);
}
