/* The middle of measured times. */
#pragma once

/* Of v[n], n > 0, which it sorts in place, smallest first. Of an even number, the mean of the two in the middle. */
double median(double *v, int n);
