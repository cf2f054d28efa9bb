/* See show.h. */
#include "train/show.h"

#include <math.h>
#include <stdio.h>
#include <sys/ioctl.h>
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

void show_begin(struct show *s, int64_t first, int64_t total, double peak, bool bar, bool quiet)
{
    *s = (struct show){ .bar = bar && !quiet && isatty(2), .quiet = quiet, .first = first, .total = total, .peak = peak,
                        .start_s = plat_now_s() };
}

/* The part that bar and line share. */
static void describe(const struct show *s, const struct shown *v, char *out, size_t size)
{
    char left[24], memory[16];
    const double s_done = fmax(plat_now_s() - s->start_s, 1e-9), n = (double)(v->step - s->first);
    show_time(left, n > 0 ? s_done / n * (double)(s->total - v->step) : INFINITY);
    plan_bytes(memory, (double)plat_memory_peak());
    int k = snprintf(out, size, "loss %.4f  left %s  lr %.3g  norm %.3g  %.0f tok/s", v->loss, left, v->rate, v->norm,
                     s->tokens / s_done);
    if (s->peak > 0) k += snprintf(out + k, size - (size_t)k, "  %.0f%% of peak", 100 * s->flops / s_done / s->peak);
    snprintf(out + k, size - (size_t)k, "  %s", memory);
}

void show_clear(struct show *s)
{
    if (s->drawn) fprintf(stderr, "\r\033[K");
    s->drawn = false;
}

static int columns(void)
{
    struct winsize w;
    return ioctl(2, TIOCGWINSZ, &w) == 0 && w.ws_col > 20 ? w.ws_col : 80;
}

/* One line of the terminal, whatever its width: the bar takes what the numbers leave. */
void show_step(struct show *s, const struct shown *v)
{
    enum { WIDEST = 30 };
    char text[200], numbers[240], bar[WIDEST + 1];
    const double now = plat_now_s();
    if (!s->bar || (now - s->last_s < 0.1 && v->step < s->total)) return;
    s->last_s = now;
    describe(s, v, text, sizeof text);
    const int n = snprintf(numbers, sizeof numbers, "%lld/%lld  %s", (long long)v->step, (long long)s->total, text);
    const int cols = columns(), room = cols - n - 4, width = room < 0 ? 0 : room < WIDEST ? room : WIDEST;
    for (int i = 0; i < width; i++) bar[i] = i * s->total < width * v->step ? '#' : ' ';
    bar[width] = 0;
    fprintf(stderr, "\r\033[K");
    if (width >= 4) fprintf(stderr, "[%s] ", bar);
    fprintf(stderr, "%.*s", width >= 4 ? n : cols - 1, numbers);
    fflush(stderr);
    s->drawn = true;
}

void show_line(struct show *s, const struct shown *v)
{
    char text[200];
    if (s->quiet) return;
    show_clear(s);
    describe(s, v, text, sizeof text);
    log_info("step %lld/%lld  epoch %.2f  %s", (long long)v->step, (long long)s->total, v->epoch, text);
}
