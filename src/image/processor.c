/* Reading preprocessor_config.json into struct clip_processor. See preprocess.h. */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "image/preprocess.h"

enum { CONFIG_BYTES_MAX = 1 << 20, BICUBIC = 3 };

void clip_processor_default(struct clip_processor *p, int side)
{
    *p = (struct clip_processor){
        .do_resize = true, .do_center_crop = true, .do_rescale = true, .do_normalize = true,
        .shortest = side, .size_w = side, .size_h = side, .crop_w = side, .crop_h = side,
        .mean = { 0.48145466, 0.4578275, 0.40821073 }, .std = { 0.26862954, 0.26130258, 0.27577711 },
        .scale = 1 / 255.0,
    };
}

/* Who reads what, for messages. */
struct reader {
    const json_t *root;
    const char *name;
    struct err *e;
};

static int wrong(const struct reader *r, const char *key, const char *want)
{
    return err_set(r->e, ERR_FORMAT, "'%s': %s is not %s", r->name, key, want);
}

/* A value that is absent or null leaves the default. */
static const json_t *get(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    return json_is_null(v) ? NULL : v;
}

static int read_flag(const struct reader *r, const char *key, bool *ret)
{
    const json_t *v = get(r->root, key);
    if (v && !json_is_boolean(v)) return wrong(r, key, "true or false");
    if (v) *ret = json_is_true(v);
    return 0;
}

static int read_side(const struct reader *r, const char *key, const json_t *v, int *ret)
{
    if (!json_is_integer(v) || json_integer_value(v) < 1 || json_integer_value(v) > CLIP_SIDE_MAX)
        return wrong(r, key, "a number of pixels from 1 to 4096");
    *ret = (int)json_integer_value(v);
    return 0;
}

/* N, {"shortest_edge": N} or {"height": H, "width": W}. An N means the shorter side for `size`. */
static int read_size(const struct reader *r, const char *key, int *shortest, int *w, int *h)
{
    const json_t *v = get(r->root, key), *edge = get(v, "shortest_edge");
    int rc = 0, n = 0;
    if (!v) return 0;
    if (json_is_object(v) && !edge) {
        TRY(read_side(r, key, json_object_get(v, "height"), h));
        TRY(read_side(r, key, json_object_get(v, "width"), w));
        *shortest = 0;
    } else {
        TRY(read_side(r, key, edge ? edge : v, &n));
        *shortest = *w = *h = n;
    }
out:
    return rc;
}

static int read_three(const struct reader *r, const char *key, double least, double ret[3])
{
    const json_t *v = get(r->root, key);
    if (!v) return 0;
    for (size_t c = 0; c < 3; c++) {
        const json_t *x = json_array_get(v, c);
        ret[c] = json_number_value(x);
        if (json_array_size(v) != 3 || !json_is_number(x) || !(ret[c] >= least && ret[c] <= 255))
            return wrong(r, key, "three numbers of a colour");
    }
    return 0;
}

static int read_all(struct clip_processor *p, const struct reader *r)
{
    const json_t *scale = get(r->root, "rescale_factor"), *resample = get(r->root, "resample");
    int rc, ignored;
    TRY(read_flag(r, "do_resize", &p->do_resize));
    TRY(read_flag(r, "do_center_crop", &p->do_center_crop));
    TRY(read_flag(r, "do_rescale", &p->do_rescale));
    TRY(read_flag(r, "do_normalize", &p->do_normalize));
    TRY(read_size(r, "size", &p->shortest, &p->size_w, &p->size_h));
    TRY(read_size(r, "crop_size", &ignored, &p->crop_w, &p->crop_h));
    TRY(read_three(r, "image_mean", 0, p->mean));
    TRY(read_three(r, "image_std", 1e-6, p->std));
    if (scale && !json_is_number(scale)) return wrong(r, "rescale_factor", "a number");
    if (scale) p->scale = json_number_value(scale);
    if (resample && !json_is_integer(resample)) return wrong(r, "resample", "a number");
    if (resample && json_integer_value(resample) != BICUBIC)
        return err_set(r->e, ERR_UNSUPPORTED, "'%s': resample is %lld, and only 3 (bicubic) is handled",
                       r->name, (long long)json_integer_value(resample));
out:
    return rc;
}

int clip_processor_parse(struct clip_processor *p, const char *json, size_t n, const char *name,
                         struct err *e)
{
    json_error_t why;
    clip_processor_default(p, 336);
    json_t *root = json_loadb(json, n, JSON_REJECT_DUPLICATES, &why);
    if (!root) return err_set(e, ERR_FORMAT, "'%s' is not JSON: %s at line %d", name, why.text, why.line);
    const json_t *inner = json_object_get(root, "image_processor");
    struct reader r = { json_is_object(inner) ? inner : root, name, e };
    int rc = 0;
    if (json_is_object(root)) rc = read_all(p, &r);
    else rc = err_set(e, ERR_FORMAT, "'%s' is not a JSON object", name);
    json_decref(root);
    return rc;
}

int clip_processor_load(struct clip_processor *p, const char *path, struct err *e)
{
    struct err own;
    char *json = NULL;
    size_t n = 0;
    clip_processor_default(p, 336);
    int rc = file_read(&json, &n, path, CONFIG_BYTES_MAX, &own);
    if (rc == ERR_MISSING) return 1;
    if (rc < 0) return err_set(e, own.code, "%s", own.msg);
    rc = clip_processor_parse(p, json, n, path, e);
    free(json);
    return rc;
}
