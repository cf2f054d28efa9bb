/* What the language model reads of pictures: their features, where it computes, by picture, projector and realm
 * (llava_batch.h). They are made when a prompt needs them, a tile at a time, and stay for the same picture's next time
 * until others need the room.
 *
 * Not safe for several threads: a gallery belongs to one sched. */
#pragma once
#include "run/image.h"

enum { GALLERY_MAX = 256, GALLERY_BYTES = 128 << 20 };

struct gallery {
    struct engine *g;
    struct kept {
        uint64_t key, used;     /* of picture, projector, realm; when it was asked for last */
        struct tensor tiles;    /* until all have been through the tower: [n tiles * rows of one + 1, C] */
        struct tensor features; /* then: [n_rows,C], as the language model reads them */
        int n_done;             /* tiles */
    } kept[GALLERY_MAX];
    int n;
    size_t bytes;
    uint64_t clock, needed;     /* what was asked for since `needed` stays */
};
void gallery_init(struct gallery *y, struct engine *g);
void gallery_fini(struct gallery *y);
/* From here on nothing that is asked for is taken away: before a prompt's pictures are. */
void gallery_begin(struct gallery *y);
/* Features [n_rows,C] on the engine's device; p NULL: it has not been through the tower, or not wholly. */
struct tensor gallery_find(struct gallery *y, const struct image *im, int sight, uint64_t realm);
/* Runs the next tile of a picture through the tower. */
int gallery_add_tile(struct gallery *y, const struct image *im, int sight, uint64_t realm, struct err *e);
