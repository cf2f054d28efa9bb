/* A file of training records, found by where they stand in it.
 *
 * LLaVA's format: a JSON array of records, or one record a line (JSON Lines); told apart by the first character. A
 * record is {"id": ..., "image": "a.jpg" or ["a.jpg", "b.jpg"], "conversations": [{"from": "human", "value": "..."},
 * ...]}; other members are skipped, but "augment": ["mirror", "recolour"], which says what may be done to its pictures,
 * and "twins": ["c.jpg", ...], other pictures of what its only picture shows. "image" may be absent, null or an empty
 * list: a record of text only.
 *
 * Opening reads the file once, in pieces, and keeps 16 bytes a record: a file of any size costs no more memory than
 * that. A record is read again when it is needed; a dataset is read-only, so any number of threads may do so.
 * Strict where Python's json is: UTF-8, no control characters in strings; as lenient too: NaN and Infinity are
 * values, half a surrogate pair can be read past (but not be trained on), of two members with one name the later
 * counts.
 */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "text/supervise.h"

enum {
    RECORD_BYTES_MAX = 256 << 20,
    RECORD_TURNS_MAX = 1 << 16,
    RECORD_IMAGES_MAX = 256,
    RECORD_TWINS_MAX = 256,
    DATASET_RECORDS_MAX = 100 << 20,
};

struct dataset_entry {
    int64_t at;         /* byte of the file where the record begins */
    int32_t bytes;
    uint32_t words : 31; /* of all values, as str.split() counts them */
    uint32_t image : 1;  /* it has pictures */
};

struct dataset {
    char *path;
    int fd;
    int64_t bytes, n;
    struct dataset_entry *entry; /* [n] */
    uint64_t hash;               /* of the file's bytes: to tell whether a run goes on with the same data */
};

/* Errors name the file, and where it is no JSON the byte (from 0) and the line (from 1). ERR_FORMAT also: no record in
 * it; ERR_LIMIT. */
int dataset_open(struct dataset *d, const char *path, struct err *e);
void dataset_close(struct dataset *d); /* accepts a zeroed one */
/* LLaVA's modality_lengths: words, negative for a record without pictures. */
static inline int32_t dataset_length(const struct dataset *d, int64_t i)
{
    int32_t words = (int32_t)d->entry[i].words;
    return d->entry[i].image ? words : -words;
}

/* A record as it stands in the file. Reusable: loading into one again keeps its memory. */
struct record {
    int64_t index;     /* in its dataset */
    struct span id;    /* text, or a number's digits; n 0: none */
    struct span *image;
    int n_images;
    struct span *twin; /* pictures that --image_augment may mix into the only one */
    int n_twins;
    struct turn *turn;
    int n_turns;
    unsigned may;      /* how its pictures may be changed without making an answer wrong: augment.h */
    /* private */
    char *raw;
    size_t raw_cap;
    int image_cap, twin_cap, turn_cap;
};
/* Reads record i. Spans point into the record, each followed by a NUL, and may hold NULs. Errors name the record
 * (record_name): ERR_FORMAT where a member has another type or text is no Unicode, ERR_IO, ERR_LIMIT, ERR_NOMEM. */
int record_load(struct record *r, const struct dataset *d, int64_t i, struct err *e);
void record_fini(struct record *r); /* accepts a zeroed one */

/* "record 'ID' (number N)", N = index + 1; "record number N" without an id. For messages; shortened. */
enum { RECORD_NAME_MAX = 160 };
void record_name(char name[RECORD_NAME_MAX], const struct record *r);
