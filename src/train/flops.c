/* See flops.h. */
#include "train/flops.h"

/* Of a product, for each row and number of w: 2 forward, 2 for the input's gradient, 2 for its own. */
static double linear_flops(const struct linear *l, bool dx)
{
    const double n = l->w.w.p ? (double)tensor_count(l->w.w) : 0;
    double f = n * (2 + (dx ? 2 : 0) + (param_trains(&l->w) ? 2 : 0));
    if (l->lora) f += 6 * (double)(tensor_count(l->lora->a.w) + tensor_count(l->lora->b.w));
    return f;
}

/* A token's attention to `keys` others in every one of `width` columns: two products forward, four back. */
static double attention_flops(double keys, int width, bool back) { return (back ? 12.0 : 4.0) * keys * width; }

/* What a token sees of its record: in the mean half of it. */
static double seen(const struct batch_limits *b) { return 0.5 * b->T / (b->n ? b->n : 1); }

static double token_flops(const struct llava_model *m, const struct batch_limits *b)
{
    const struct llama_config *c = &m->cfg.llama;
    double f = c->L * attention_flops(seen(b), c->H * c->D, true);
    for (int i = 0; i < c->L; i++) {
        const struct llama_layer *l = &m->llama.layer[i];
        const struct linear *all[] = { &l->q, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down };
        for (int k = 0; k < 7; k++) f += linear_flops(all[k], true);
    }
    return f;
}

/* A picture's in the tower, of which it sees so many patches and the class token. */
static double tower_flops(const struct llava_model *m, bool trains, int patches)
{
    const struct clip_config *c = &m->cfg.clip;
    const int layers = clip_layers_used(c, m->cfg.select_layer), rows = patches + 1;
    double row = layers * attention_flops(rows, c->C, trains);
    for (int i = 0; i < layers; i++) {
        const struct clip_layer *l = &m->clip.layer[i];
        const struct linear *all[] = { &l->q, &l->k, &l->v, &l->o, &l->fc1, &l->fc2 };
        for (int k = 0; k < 6; k++) row += linear_flops(all[k], trains);
    }
    return row * rows + linear_flops(&m->clip.patch, false) * patches;
}

static double projector_flops(const struct llava_model *m, bool tower_trains)
{
    double row = 0;
    for (int i = 0; i < m->cfg.n_projector; i++)
        row += linear_flops(&m->projector.linear[i], i > 0 || tower_trains);
    return row;
}

double flops_pass(const struct llava_model *m, bool tower_trains, const struct batch_limits *b)
{
    double f = token_flops(m, b) * b->T + linear_flops(&m->llama.head, true) * b->n_targets;
    if (!b->n_images) return f;
    const int patches = b->kept ? b->kept : clip_patches(&m->cfg.clip), rows = b->kept ? b->kept : llava_tile_rows(m);
    f += tower_flops(m, tower_trains, patches) * (b->n_images - b->n_given);
    return f + projector_flops(m, tower_trains) * rows * b->n_images;
}

double flops_again(const struct llava_model *m, int layers, const struct batch_limits *b)
{
    const struct llama_config *c = &m->cfg.llama;
    const struct llama_layer *l = &m->llama.layer[0]; /* all are alike */
    const struct linear *all[] = { &l->q, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down };
    double token = attention_flops(seen(b), c->H * c->D, false);
    for (int k = 0; k < 7; k++) { /* the last one's result is not needed again, but for what its B reads */
        const struct lora *a = all[k]->lora;
        if (k < 6) token += 2.0 * (double)tensor_count(all[k]->w.w);
        if (a) token += 2.0 * (double)(tensor_count(a->a.w) + (k < 6 ? tensor_count(a->b.w) : 0));
    }
    return layers * token * b->T;
}
