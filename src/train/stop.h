/* A run that is asked to end: SIGINT (Ctrl-C) or SIGTERM (a batch system, a shutdown).
 *
 * Between stop_begin and stop_end the first of them says so on stderr and is remembered, so that the trainer can finish
 * its step and save; the next one ends the program at once. Before and after, both end it as everywhere. */
#pragma once
#include <stdbool.h>

void stop_begin(void);
bool stop_asked(void);
void stop_end(void);
