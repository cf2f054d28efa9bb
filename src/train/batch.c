/* See batch.h. */
#include "train/batch.h"

#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "train/features.h"

/* Memory for a batch of these sizes; what is there is kept if it is large enough. */
static int batch_room(struct batch *b, int n, size_t T, size_t pixels, struct err *e)
{
    if (T > b->T_cap || !b->token) {
        free(b->token);
        b->token = malloc((T + 1) * 7 * sizeof *b->token);
        b->T_cap = b->token ? T : 0;
    }
    if (n + 1 > b->n_cap) {
        free(b->record);
        free(b->from);
        b->record = malloc((size_t)(n + 1) * sizeof *b->record);
        b->from = malloc((size_t)(n + 1) * sizeof *b->from);
        b->n_cap = b->record && b->from ? n + 1 : 0;
    }
    if (pixels > b->pixels_cap) {
        free(b->pixels);
        b->pixels = malloc(pixels * sizeof *b->pixels);
        b->pixels_cap = b->pixels ? pixels : 0;
    }
    if (!b->token || n + 1 > b->n_cap || pixels > b->pixels_cap)
        return err_set(e, ERR_NOMEM, "no memory for a batch of %d records, %zu positions", n, T);
    b->feature = b->token + T;
    b->target = b->feature + T;
    b->pos = b->target + T;
    b->range = b->pos + T;
    b->weight = (float *)(b->range + 2 * T);
    return 0;
}

static int picture_room(struct batch *b, int n, size_t bytes, struct err *e)
{
    if (n > b->picture_cap) {
        free(b->picture);
        free(b->features);
        free(b->place);
        b->picture = malloc((size_t)n * sizeof *b->picture);
        b->features = malloc((size_t)n * bytes + 1);
        b->place = malloc((size_t)n * sizeof *b->place);
        b->picture_cap = b->picture && b->features && b->place ? n : 0;
    }
    return n <= b->picture_cap ? 0 : err_set(e, ERR_NOMEM, "no memory for %d pictures", n);
}

static int patch_room(struct batch *b, const struct recipe *c, int images, struct err *e)
{
    const size_t n = c->of ? (size_t)images * (size_t)c->rows : 0;
    b->kept = c->of ? c->rows : 0;
    if (n <= b->patch_cap) return 0;
    free(b->patch);
    b->patch = malloc(n * sizeof *b->patch);
    b->patch_cap = b->patch ? n : 0;
    return b->patch ? 0 : err_set(e, ERR_NOMEM, "no memory for the patches of %d pictures", images);
}

/* n of so many, ascending; all sets are equally likely. */
static void draw_patches(int32_t *to, int n, int of, uint64_t key)
{
    struct rng r;
    rng_seed(&r, key);
    for (int i = 0; n; i++) {
        if (rng_unit(&r) * (of - i) >= n) continue;
        *to++ = i;
        n--;
    }
}

/* unseen: patches of the record before this position that are not there. */
static void put(struct batch *b, int from, int unseen, int32_t token, int32_t feature, int32_t label, int window)
{
    int t = b->T++, pos = t - from;
    b->token[t] = token;
    b->feature[t] = feature;
    b->pos[t] = pos + unseen;
    b->range[2 * t] = window > 0 && pos >= window ? t - window + 1 : from;
    b->range[2 * t + 1] = t + 1;
    b->target[t] = -1;
    b->weight[t] = 0;
    if (pos > 0 && label != IDS_IGNORE) b->target[t - 1] = label; /* what the position before is to predict */
}

static bool is_given(const struct sample *s, int picture) { return s->picture && s->picture[picture].given; }

/* The picture's pixels or features; returns its place in the batch. */
static int add_picture(struct batch *b, const struct recipe *c, const struct sample *s, int i, int n_pixels)
{
    const size_t pixels = (size_t)3 * (size_t)c->side * (size_t)c->side;
    if (is_given(s, i)) {
        const size_t bytes = c->features->bytes;
        memcpy(b->features + (size_t)b->n_given * bytes, s->features + (size_t)i * bytes, bytes);
        b->place[n_pixels + b->n_given++] = b->n_images;
        return b->n_images++;
    }
    const int at = b->n_images - b->n_given;
    b->place[at] = b->n_images;
    memcpy(b->pixels + (size_t)at * pixels, s->pixels + (size_t)i * pixels, pixels * sizeof *b->pixels);
    if (c->features) b->picture[at] = s->picture[i];
    return b->n_images++;
}

static void add_sample(struct batch *b, const struct recipe *c, const struct sample *s, float weight, int window,
                       int n_pixels)
{
    const int from = b->T, end = from + s->positions;
    for (int i = 0, picture = 0, unseen = 0; b->T < end; i++) {
        if (s->ids.p[i] != IDS_IMAGE) {
            put(b, from, unseen, s->ids.p[i], -1, s->labels.p[i], window);
            continue;
        }
        const int32_t feature = add_picture(b, c, s, picture, n_pixels) * c->rows;
        int32_t *patch = b->kept ? b->patch + feature : NULL;
        if (patch) draw_patches(patch, c->rows, c->of, s->pick + (uint64_t)picture);
        for (int k = 0; k < c->rows && b->T < end; k++)
            put(b, from, unseen + (patch ? patch[k] - k : 0), -1, feature + k, IDS_IGNORE, window);
        unseen += patch ? c->of - c->rows : 0;
        picture++;
    }
    for (int t = from; t < end; t++)
        if (b->target[t] >= 0) b->weight[t] = weight, b->n_targets++;
    b->record[b->n] = s->record;
    b->from[b->n++] = from;
}

int batch_make(struct batch *b, const struct recipe *c, struct sample *const *s, const float *weight, int n,
               int window, struct err *e)
{
    size_t T = 0;
    int images = 0, given = 0;
    for (int i = 0; i < n; i++) {
        T += (size_t)s[i]->positions;
        images += s[i]->n_images;
        for (int k = 0; k < s[i]->n_images; k++) given += is_given(s[i], k);
    }
    if (T > INT32_MAX / 8) return err_set(e, ERR_LIMIT, "a batch of %zu positions is too large", T);
    int rc = batch_room(b, n, T, (size_t)(images - given) * 3 * (size_t)c->side * (size_t)c->side, e);
    if (rc >= 0) rc = picture_room(b, images, c->features ? c->features->bytes : 0, e);
    if (rc >= 0) rc = patch_room(b, c, images, e);
    if (rc < 0) return rc;
    b->n = b->T = b->n_images = b->n_given = b->n_targets = 0;
    for (int i = 0; i < n; i++) add_sample(b, c, s[i], weight[i], window, images - given);
    ASSERT(b->n_images == images);
    b->from[b->n] = b->T;
    return 0;
}

void batch_fini(struct batch *b)
{
    free(b->token);
    free(b->record);
    free(b->from);
    free(b->pixels);
    free(b->picture);
    free(b->features);
    free(b->place);
    free(b->patch);
    *b = (struct batch){ 0 };
}

struct batch_limits batch_sizes(const struct batch *b)
{
    return (struct batch_limits){ b->n, b->T, b->n_images, b->n_targets, b->n_given, b->kept };
}

void batch_widen(struct batch_limits *most, const struct batch_limits *b)
{
    if (b->n > most->n) most->n = b->n;
    if (b->T > most->T) most->T = b->T;
    if (b->n_images > most->n_images) most->n_images = b->n_images;
    if (b->n_targets > most->n_targets) most->n_targets = b->n_targets;
    if (b->kept > most->kept) most->kept = b->kept;
}
