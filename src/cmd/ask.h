/* What run and chat share: opening pictures from files and addresses, printing answers as they come, statistics. */
#pragma once
#include <stdio.h>

#include "cmd/cmd.h"

/* A path, or an http(s) address that is fetched into memory. */
int ask_image_open(struct llava_image **ret, struct llava_engine *engine, const char *where, struct llava_error *e);
/* Is there a file or folder of that name, or is it an address? Asked before a model is opened, which may take a
 * download of many gigabytes. */
int ask_there(const char *where, struct llava_error *e);
enum { ASK_IMAGES_MAX = 64 };
/* The values of --image-file, each a picture or several with `sep` between them (NULL: none). A value that is
 * the name of a file is not split. */
struct ask_images {
    char *value[ASK_IMAGES_MAX];
    int n_values;
    const char *name[ASK_IMAGES_MAX]; /* of each picture */
    int n_names;
    struct llava_image *image[ASK_IMAGES_MAX];
    int n;
};
void ask_images_option(struct ask_images *a, char *value, struct argp_state *state);
/* Splits the values; an error where a file is not there. */
int ask_images_find(struct ask_images *a, const char *sep, struct llava_error *e);
/* Opens what was found, in order. */
int ask_images_open(struct ask_images *a, struct llava_engine *engine, struct llava_error *e);
void ask_images_close(struct ask_images *a);

/* Prints an answer as it comes, without white space at its ends; keeps the whole of it. */
struct ask_text {
    FILE *to;
    char *text; /* the answer so far, trimmed at the front; owned */
    size_t n, cap;
    size_t shown; /* bytes printed: white space at the end waits for what follows */
};
bool ask_on_text(void *ctx, const char *text, size_t n);
/* Cuts white space at the end and ends the line. */
void ask_end(struct ask_text *t);
void ask_free(struct ask_text *t);

/* "24 tokens at 45.1 tok/s, 20.3 GB/s (91% of what this machine reads), first after 0.31 s" on stderr.
 * *ceiling is GB/s, measured here when it is 0. */
void ask_statistics(const struct llava_engine *engine, const struct llava_result *r, double *ceiling);
