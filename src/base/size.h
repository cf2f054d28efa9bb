/* Sizes in bytes, as people type them. */
#pragma once
#include <stdbool.h>
#include <stddef.h>

/* "5GB", "48g", "1.5 TiB", "4096": powers of 1000, as memory of cards and disks is sold; with an i of 1024. False: it
 * is none, or is not between 1 byte and 10^18. */
bool size_read(size_t *bytes, const char *text);
