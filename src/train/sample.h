/* From a record to what the model learns from: ids, labels and pictures, as LLaVA's LazySupervisedDataset, its
 * collator and prepare_inputs_labels_for_multimodal leave them (llava/train/train.py, llava/model/llava_arch.py).
 *
 * In this order, as there: ids and labels (supervise.h); both cut to model_max_length, a picture counting as one id;
 * ids equal to the padding id dropped; pictures put in for their ids; the positions cut to model_max_length again. A
 * picture that begins behind that cut is not decoded.
 *
 * One picture: "<image>" goes to the front of each turn that has it, once, as there. Several (there: not possible):
 * each "<image>" stays where it is and is the next picture. More "<image>" than pictures is an error, fewer is not.
 * In a record of text "<image>" is text, as there; but where a question begins or ends with it a picture was meant,
 * and its absence is an error.
 */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "image/preprocess.h"
#include "train/dataset.h"

/* What is the same for all records. */
struct recipe {
    struct supervise text;      /* max_length: model_max_length */
    int32_t pad;                /* ids equal to it are dropped: LLaVA pads with <unk>; -1: none are */
    bool vision;                /* the model sees pictures; otherwise they are ignored and "<image>" is text */
    const char *image_folder;   /* NULL: names are relative to where the program runs */
    struct clip_processor proc; /* must make pictures of side x side */
    enum aspect aspect;         /* SQUARE or PAD: LLaVA trains with one tile a picture, with ANYRES as with SQUARE */
    int side;                   /* pixels of the tower's input */
    int rows;                   /* positions that a picture takes (llava_tile_rows) */
    int of;                     /* they are drawn from so many by sample.pick, the others are not seen; 0: all are */
    uint64_t seed;              /* of pick */
    const struct features *features; /* a picture whose features are kept is not decoded; NULL: all are */
};

enum { PICTURE_NAME = 65 };
/* A picture of a sample or a batch: pixels, or features that were kept (features.h). */
struct sample_picture {
    char name[PICTURE_NAME]; /* of its features; "" where none are kept */
    bool given;              /* they were there: no pixels */
};

struct sample {
    uint64_t look;        /* set before sample_make: pictures are augmented (augment.h) with this key; 0: not */
    uint64_t pick;        /* which patches of its pictures are seen, under recipe.of */
    int64_t record;       /* index in the dataset */
    struct ids ids;       /* IDS_IMAGE: the next picture */
    struct ids labels;    /* same length; IDS_IGNORE where nothing is learned */
    int positions;        /* after pictures are put in and all is cut */
    int n_targets;        /* labels that are predicted from the position before them */
    int n_images;         /* pictures that have positions */
    float *pixels;        /* [n_images,3,side,side], owned */
    struct sample_picture *picture; /* [n_images], owned; NULL without recipe.features */
    char *features;       /* [n_images] of features.bytes each, owned */
    bool cut;             /* model_max_length took away something that would be learned */
    int spare_images;     /* pictures of the record that no "<image>" asks for */
    bool literal;         /* "<image>" is text in it */
    /* private */
    size_t pixels_cap;
    int picture_cap;
};

/* Fills s, whose memory is reused, from r. pictures false: everything but the pixels, and a picture's file need only
 * be there. Errors name the record: ERR_FORMAT (turns; "<image>" without picture; a picture that is none),
 * ERR_MISSING, ERR_IO, ERR_NOMEM, ERR_LIMIT. */
int sample_make(struct sample *s, const struct recipe *c, const struct record *r, bool pictures, struct err *e);
void sample_fini(struct sample *s); /* accepts a zeroed one */
