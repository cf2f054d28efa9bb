/* The middle of measured times. */
#pragma once

/* Of v[n], which is sorted; n > 0. Of an even number, the upper of the two in the middle. */
double median(double *v, int n);
