/* A projector that comes with an adapter and is used in place of the model's. */
#pragma once
#include "model/lora.h"

/* The projector that was trained with an adapter, for m's tower: it lies beside it (non_lora_trainables.bin) or among
 * its whole tensors. */
struct own_projector {
    struct projector projector;
    bool there; /* else the folder has none: m's own is the adapter's */
    struct weights *weights[2]; /* mapped files that it views, beside the set's */
    int n_weights;
    struct arena mem; /* what had to be converted; of a device everything */
};
/* set, of the same folder, must stay open. UNSUPPORTED: the adapter was trained with other pictures than m reads, or
 * more than a projector came with it. The caller closes *p (zeroed before) in any case. */
int projector_open(struct own_projector *p, const struct llava_model *m, const struct lora_set *set, const char *dir,
                   struct err *e);
void projector_close(struct own_projector *p); /* accepts a zeroed one */
