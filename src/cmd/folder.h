/* run --image-folder: one question about every picture of a folder, or the questions of a file about its pictures, many
 * at once, one line of JSON each. */
#pragma once
#include "cmd/cmd.h"

struct folder {
    const char *dir, *output; /* pictures; results, JSON lines */
    const char *prompt;       /* with one "<image>"; of the whole folder */
    const char *questions;    /* or NULL: JSON lines {"question_id", "image", "text"} as LLaVA's evaluations read them;
                                 "image" may be absent */
    const char *conv;         /* template of the questions; NULL: the one that suits the model */
    struct llava_sampling sampling;
    const char *adapter;      /* or NULL */
    int parallel;             /* answers at once; 0: the library's choice */
};
/* Appends {"image": name, "text": ..., "finish": ..., "tokens": n} or {"image": name, "error": ...} for each picture
 * that the output does not name yet; names are relative to the folder, subfolders included. Of questions: for each
 * whose "question_id" the output does not have yet, and lines begin with "question_id", "image" and "prompt". A line
 * that a kill cut short is removed first. Pictures that fail are counted, and are no failure of the whole. */
int folder_run(const struct folder *f, struct llava_engine *engine, struct err *e);
