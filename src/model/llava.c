/* The vision half of LLaVA's forward: tower, projector. See llava.h. */
#include "model/llava.h"

struct tensor projector_forward(struct op_ctx *o, const struct llava_model *m, const struct projector *p,
                                struct tensor x)
{
    for (int i = 0; i < m->cfg.n_projector; i++) x = op_linear(o, i ? op_gelu(o, x) : x, &p->linear[i]);
    return x;
}

struct tensor llava_encode(struct op_ctx *o, const struct llava_model *m, const struct projector *p,
                           const struct clip_seq *seq, struct tensor pixels)
{
    return projector_forward(o, m, p, clip_forward(o, &m->clip, seq, pixels, m->cfg.select_layer, m->cfg.select_cls));
}

int llava_tile_rows(const struct llava_model *m)
{
    return clip_patches(&m->cfg.clip) + (m->cfg.select_cls ? 1 : 0);
}
