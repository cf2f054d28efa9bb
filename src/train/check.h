/* Reads every record before the first step, so that what is wrong with the data is known before hours are spent.
 *
 * Bad is what LLaVA stops at, or would have to: turns that are missing, not alternating, of an unknown role, or all
 * blank; "<image>" for which there is no picture; pictures that are not there; text that is no Unicode. Only noted is
 * what it goes on with: answers that are cut at model_max_length, records of which nothing is learned, pictures that no
 * "<image>" asks for, "<image>" as text. Pictures are not decoded here: that would take as long as training on them.
 */
#pragma once
#include "train/sample.h"

/* A good record; the counts are those of struct sample. */
struct check_row {
    int64_t record; /* index in the dataset */
    int32_t positions, targets, images;
};

enum check_note {
    CHECK_CUT,     /* an answer is cut by model_max_length */
    CHECK_MUTE,    /* nothing is learned of it: its answers are empty or cut off whole */
    CHECK_SPARE,   /* a picture without "<image>" */
    CHECK_LITERAL, /* "<image>" is text */
    N_CHECK_NOTES,
};

struct check_result {
    int64_t n, n_bad, n_text;          /* records; bad ones; good ones without pictures */
    int64_t images, positions, targets; /* of all good records */
    int64_t note[N_CHECK_NOTES];       /* good records with it */
    struct check_row most;             /* the largest of each */
    struct check_row *row;             /* [n_row] owned: the good records, in the order of the file */
    int32_t *length;                   /* [n_row] owned: their dataset_length, for order_options */
    int64_t n_row;
};

enum check_bad { CHECK_FAIL, CHECK_SKIP };

/* Bad records are reported on stderr, one line each (at most CHECK_SHOWN, then their number), notes in one line a kind
 * with the first such record. FAIL: the result is then ERR_FORMAT; SKIP: they are left out, and it is ERR_FORMAT if
 * none is left. ERR_USAGE: pictures in the data, and model_max_length has no room for one. ERR_IO, ERR_NOMEM.
 * threads: at least 1. Same result for any number. */
enum { CHECK_SHOWN = 20 };
int check_run(struct check_result *c, const struct dataset *d, const struct recipe *recipe, int threads,
              enum check_bad bad, struct err *e);
void check_fini(struct check_result *c); /* accepts a zeroed one */
