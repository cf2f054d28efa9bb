/* run --image-folder: one question about every picture of a folder, or the questions of a file about its pictures, many
 * at once, one line of JSON each. */
#pragma once
#include "cmd/cmd.h"

struct folder {
    const char *dir, *output; /* pictures; results, JSON lines */
    const char *prompt;       /* with one "<image>"; of the whole folder */
    const char *question;     /* the same as the user put it */
    const char *questions;    /* or NULL: JSON lines {"question_id", "image", "text"} as LLaVA's evaluations read them;
                                 "image" may be absent */
    const char *conv;         /* template of the questions; NULL: the one that suits the model */
    struct llava_sampling sampling;
    const char *adapter;      /* or NULL */
    int parallel;             /* answers at once; 0: the library's choice */
};
/* Appends {"image": name, "prompt": question, "text": ..., "finish": ..., "tokens": n, "model_id": ...} or {"image":
 * name, "prompt": question, "error": ...} for each picture that the output has no answer for yet; names are relative
 * to the folder, subfolders included, and one that is no UTF-8 is repeated as "image_bytes" in hexadecimal. Of
 * questions: for each whose "question_id" the output has no answer for, and lines begin with "question_id".
 * Of an output that is there: a line that a kill cut short is removed, those of pictures that failed are removed and
 * the pictures asked again; ERR_USAGE if one is of another question or model, and then nothing is changed. When some
 * have failed all others are answered, and then that is an error which says how many. */
int folder_run(const struct folder *f, struct llava_engine *engine, struct err *e);
