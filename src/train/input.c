/* See input.h. */
#include "train/input.h"

#include <string.h>

/* The next part of a block. */
static struct tensor part(struct tensor t, char *base, size_t *at)
{
    t.p = base + *at;
    *at += arena_aligned(tensor_bytes(t));
    return t;
}

int64_t input_features(const struct llava_model *m)
{
    return m->cfg.has_vision ? (int64_t)llava_tile_rows(m) * m->cfg.clip.C : 0;
}

size_t input_lay_out(struct input *in, const struct llava_model *m, enum dtype act, const struct batch_limits *b,
                     char *base)
{
    const int64_t side = b->n_images ? m->cfg.clip.image : 0, seen = (int64_t)b->n_images * b->kept;
    size_t at = 0;
    *in = (struct input){ .T = b->T, .n_images = b->n_images, .n_given = b->n_given, .n_targets = b->n_targets,
                          .kept = b->kept };
    in->token = part(tensor_1d(NULL, DT_I32, b->T), base, &at);
    in->feature = part(tensor_1d(NULL, DT_I32, b->T), base, &at);
    in->pos = part(tensor_1d(NULL, DT_I32, b->T), base, &at);
    in->range = part(tensor_2d(NULL, DT_I32, b->T, 2), base, &at);
    in->at = part(tensor_1d(NULL, DT_I32, b->n_targets), base, &at);
    in->target = part(tensor_1d(NULL, DT_I32, b->n_targets), base, &at);
    in->weight = part(tensor_1d(NULL, DT_F32, b->n_targets), base, &at);
    in->patch = part(tensor_1d(NULL, DT_I32, seen), base, &at);
    in->patch_pos = part(tensor_1d(NULL, DT_I32, b->kept ? seen + b->n_images : 0), base, &at);
    in->given = part(tensor_2d(NULL, act, b->n_given, input_features(m)), base, &at);
    in->pixels = part((struct tensor){ NULL, DT_F32, 4, 0, { b->n_images - b->n_given, 3, side, side } }, base, &at);
    return at;
}

size_t input_pixel_bytes(const struct input *in) { return arena_aligned(tensor_bytes(in->pixels)); }

/* Pictures are most of a batch, and a device waits meanwhile: one core would copy them at a tenth of a link's speed. */
static void copy_pixels(struct tensor to, const float *from)
{
    enum { CHUNK = 1 << 20 };
    const int64_t n = (int64_t)tensor_bytes(to);
#pragma omp parallel for schedule(static)
    for (int64_t at = 0; at < n; at += CHUNK)
        memcpy((char *)to.p + at, (const char *)from + at, (size_t)(n - at < CHUNK ? n - at : CHUNK));
}

/* Which of all patches are seen, and where they are in their pictures; the class token is there too. patches: of a
 * picture. */
static void fill_patches(const struct input *in, const struct batch *b, int patches)
{
    int32_t *pick = in->patch.p, *pos = in->patch_pos.p;
    const int32_t *from = b->patch;
    for (int i = 0; i < b->n_images; i++) {
        *pos++ = 0;
        for (int k = 0; k < b->kept; k++, from++) {
            *pick++ = i * patches + *from;
            *pos++ = 1 + *from;
        }
    }
}

void input_fill(const struct input *in, const struct llava_model *m, const struct batch *b)
{
    memcpy(in->token.p, b->token, tensor_bytes(in->token));
    memcpy(in->feature.p, b->feature, tensor_bytes(in->feature));
    memcpy(in->pos.p, b->pos, tensor_bytes(in->pos));
    memcpy(in->range.p, b->range, tensor_bytes(in->range));
    if (b->n_given) memcpy(in->given.p, b->features, tensor_bytes(in->given));
    if (b->n_images > b->n_given) copy_pixels(in->pixels, b->pixels);
    if (b->kept) fill_patches(in, b, clip_patches(&m->cfg.clip));
    for (int i = 0, k = 0; i < b->T; i++) {
        if (b->target[i] < 0) continue;
        ((int32_t *)in->at.p)[k] = i;
        ((int32_t *)in->target.p)[k] = b->target[i];
        ((float *)in->weight.p)[k++] = b->weight[i];
    }
}
