/* Names that people type, and may mistype. */
#pragma once

/* Letters to add, drop or change to turn one name into the other (Levenshtein 1966), for "did you mean"; 99 where b is
 * longer than 62 bytes. */
int name_distance(const char *a, const char *b);
