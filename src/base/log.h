/* Lines for people, on stderr, and the progress bar.
 *
 * log_info prints unless the level is quiet; log_warn always. A line starts with "llava: " (warnings "llava:
 * warning: ") and must not hold a newline of its own.
 */
#pragma once
#include <stdbool.h>
#include <stdint.h>

enum log_level { LOG_QUIET, LOG_INFO };

void log_set_level(enum log_level level);
void log_info(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void log_warn(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

int log_columns(void); /* of the terminal on stderr; 80 where it is none */

/* A progress bar on a terminal (redrawn at most 10 times a second); on a file, a plain line at most every 10 s and
 * one at the end; cut to the terminal's width. unit: "B" prints as MB, anything else as it is. */
struct progress {
    const char *what, *unit;
    int64_t done, total; /* total 0: unknown */
    int64_t first;       /* done when it began: -1 until the first step */
    double start_s, last_s;
    bool tty, shown;
};
void progress_begin(struct progress *p, const char *what, const char *unit, int64_t total);
void progress_step(struct progress *p, int64_t done);
void progress_end(struct progress *p);
