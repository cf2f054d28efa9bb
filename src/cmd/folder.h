/* run --image-folder: one question about every picture of a folder, many at once, one line of JSON each. */
#pragma once
#include "cmd/cmd.h"

struct folder {
    const char *dir, *output; /* pictures; results, JSON lines */
    const char *prompt;       /* with one "<image>" */
    struct llava_sampling sampling;
    const char *adapter;      /* or NULL */
    int parallel;             /* answers at once; 0: the library's choice */
};
/* Appends {"image": name, "text": ..., "finish": ..., "tokens": n} or {"image": name, "error": ...} for each picture
 * that the output does not name yet; names are relative to the folder, subfolders included. A line that a kill cut
 * short is removed first. Pictures that fail are counted, and are no failure of the whole. */
int folder_run(const struct folder *f, struct llava_engine *engine, struct err *e);
