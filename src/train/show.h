/* What a person at the terminal sees of a run: a bar that is redrawn where stderr is a terminal, a line at each logged
 * step in any case. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

struct show {
    bool bar, quiet, drawn;
    int width; /* of the bar: the least so far, that it does not jump with every figure */
    int64_t first, total;   /* steps done when it began; of the whole run */
    double start_s, last_s; /* plat_now_s */
    double peak;            /* FLOP/s of this machine's matrix products, 0: unknown */
    double flops, tokens;   /* done since the beginning */
};
/* One step, as it is shown. */
struct shown {
    int64_t step;
    double loss, rate, norm, epoch;
};

void show_begin(struct show *s, int64_t first, int64_t total, double peak, bool bar, bool quiet);
void show_step(struct show *s, const struct shown *v); /* the bar, at most 10 times a second */
void show_line(struct show *s, const struct shown *v); /* a line that stays */
void show_clear(struct show *s);                       /* before anything else is printed */
/* "1:02:33" */
void show_time(char out[24], double seconds);
