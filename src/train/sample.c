/* See sample.h. */
#include "train/sample.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "image/picture.h"
#include "train/augment.h"
#include "train/features.h"

enum { PATH_BYTES_MAX = 1 << 14 };

/* ---- pictures */

/* os.path.join(folder, name) */
static int path_of(const struct recipe *c, struct span name, struct buf *path, struct err *e)
{
    if (name.n == 0) return err_set(e, ERR_FORMAT, "a picture without a name");
    if (memchr(name.p, 0, name.n)) return err_set(e, ERR_FORMAT, "a NUL in the name of a picture");
    if (name.p[0] != '/' && c->image_folder && c->image_folder[0]) {
        buf_str(path, c->image_folder);
        if (path->p[path->n - 1] != '/') buf_chr(path, '/');
    }
    buf_add(path, name.p, name.n);
    return buf_check(path, "the path of a picture", e);
}

/* Is there a file to read? */
static int picture_find(const char *path, struct err *e)
{
    struct stat st;
    if (stat(path, &st) < 0) return err_errno(e, "open", path);
    if (!S_ISREG(st.st_mode)) return err_set(e, ERR_FORMAT, "'%s' is not a regular file", path);
    return st.st_size ? 0 : err_set(e, ERR_FORMAT, "'%s' is empty", path);
}

static int decode(float *to, const struct recipe *c, const char *path, struct span file, struct err *e)
{
    struct picture pic = { 0 };
    struct pixels px = { 0 };
    int rc;
    TRY(picture_decode(&pic, file.p, file.n, path, e));
    TRY(pixels_new(&px, &pic, &c->proc, c->aspect == ASPECT_PAD ? ASPECT_PAD : ASPECT_SQUARE, NULL, e));
    if (px.w != c->side || px.h != c->side)
        TRY(err_set(e, ERR_SHAPE, "the picture processor makes pictures of %dx%d, the vision tower reads %dx%d", px.w,
                    px.h, c->side, c->side));
    memcpy(to, px.data, (size_t)3 * (size_t)c->side * (size_t)c->side * sizeof *to);
out:
    picture_free(&pic);
    pixels_free(&px);
    return rc;
}

/* The pixels of a file to `to`; or, where *p's features are kept, those to `features`. p NULL: pixels. */
static int picture_to(float *to, struct sample_picture *p, char *features, const struct recipe *c, const char *path,
                      struct err *e)
{
    char *file = NULL;
    size_t n = 0;
    int rc;
    TRY(file_read(&file, &n, path, PICTURE_FILE_MAX, e));
    if (p) {
        features_name(p->name, c->features, file, n);
        p->given = features_get(c->features, p->name, features);
        if (p->given) goto out;
    }
    TRY(decode(to, c, path, (struct span){ file, n }, e));
out:
    free(file);
    return rc;
}

/* The record's picture i as it looks under s->look. room: a picture's. */
static int look_otherwise(struct sample *s, const struct recipe *c, const struct record *r, int i, float *pixels,
                          float *room, struct buf *path, struct err *e)
{
    const uint64_t key = s->look + (uint64_t)i;
    const int twin = augment_twin(key, r->n_twins);
    int rc;
    if (twin >= 0) {
        buf_reset(path);
        TRY(path_of(c, r->twin[twin], path, e));
        TRY(picture_to(room, NULL, NULL, c, path->p, e));
        augment_mix(pixels, room, c->side, key);
    }
    rc = augment(pixels, c->side, &c->proc, r->may, key, e);
out:
    return rc;
}

/* Room for the sample's pictures, and one more. */
static int pictures_room(struct sample *s, const struct recipe *c, size_t each, struct err *e)
{
    const size_t need = each * (size_t)(s->n_images + 1);
    if (need > s->pixels_cap) {
        free(s->pixels);
        s->pixels = malloc(need * sizeof *s->pixels);
        s->pixels_cap = s->pixels ? need : 0;
    }
    if (c->features && s->n_images > s->picture_cap) {
        free(s->picture);
        free(s->features);
        s->picture = malloc((size_t)s->n_images * sizeof *s->picture);
        s->features = malloc((size_t)s->n_images * c->features->bytes);
        s->picture_cap = s->picture && s->features ? s->n_images : 0;
    }
    return need <= s->pixels_cap && (!c->features || s->n_images <= s->picture_cap)
               ? 0 : err_set(e, ERR_NOMEM, "no memory for %d pictures", s->n_images);
}

static int pictures_load(struct sample *s, const struct recipe *c, const struct record *r, struct err *e)
{
    const size_t each = (size_t)3 * (size_t)c->side * (size_t)c->side, bytes = c->features ? c->features->bytes : 0;
    struct buf path = buf_make(PATH_BYTES_MAX);
    int rc;
    TRY(pictures_room(s, c, each, e));
    for (int i = 0; i < s->n_images; i++) {
        float *to = s->pixels + (size_t)i * each;
        buf_reset(&path);
        TRY(path_of(c, r->image[i], &path, e));
        if (!c->features) TRY(picture_to(to, NULL, NULL, c, path.p, e));
        else TRY(picture_to(to, &s->picture[i], s->features + (size_t)i * bytes, c, path.p, e));
        if (s->look) TRY(look_otherwise(s, c, r, i, to, s->pixels + (size_t)s->n_images * each, &path, e));
    }
out:
    buf_free(&path);
    return rc;
}

/* Are there files to read for all pictures? */
static int pictures_find(const struct recipe *c, const struct record *r, struct err *e)
{
    struct buf path = buf_make(PATH_BYTES_MAX);
    int rc = 0;
    if (r->n_twins && r->n_images != 1)
        TRY(err_set(e, ERR_FORMAT, "'twins' beside %d pictures, want one", r->n_images));
    for (int i = 0; i < r->n_images + r->n_twins; i++) {
        buf_reset(&path);
        TRY(path_of(c, i < r->n_images ? r->image[i] : r->twin[i - r->n_images], &path, e));
        TRY(picture_find(path.p, e));
    }
out:
    buf_free(&path);
    return rc;
}

/* ---- text */

static const struct span MARK = { "<image>", 7 };

/* How many pictures the turns ask for, behind the cut too. Of one picture's marks only one a turn is kept. */
static int count_marks(const struct sample *s, const struct recipe *c, const struct record *r, int n_images)
{
    const enum conv_style style = c->text.tpl->style;
    const bool roles = style != CONV_SINGLE && style != CONV_PLAIN;
    const bool left_out = roles && r->turn[0].from.n == 3 && memcmp(r->turn[0].from.p, "gpt", 3) == 0;
    int marks = 0, made = 0;
    for (int i = left_out; i < r->n_turns && (n_images || style == CONV_PLAIN); i++) {
        struct span v = r->turn[i].value;
        int n = 0;
        for (size_t at = 0; (at = span_find(v, at, MARK)) < v.n; at += MARK.n) n++;
        marks += n_images == 1 && n > 1 ? 1 : n;
    }
    for (size_t i = 0; i < s->ids.n; i++) made += s->ids.p[i] == IDS_IMAGE;
    return made > marks ? made : marks; /* more where taking one out has made another */
}

static void drop_pads(struct sample *s, int32_t pad)
{
    size_t n = 0;
    for (size_t i = 0; i < s->ids.n; i++) {
        if (pad >= 0 && s->ids.p[i] == pad) continue;
        s->ids.p[n] = s->ids.p[i];
        s->labels.p[n++] = s->labels.p[i];
    }
    s->ids.n = s->labels.n = n;
}

/* Counts positions up to the cut, and what of them is learned. A picture of which a part is seen is not cut in two. */
static void measure(struct sample *s, const struct recipe *c)
{
    const size_t most = c->text.max_length ? c->text.max_length : INT32_MAX, rows = (size_t)c->rows;
    size_t at = 0; /* with all that is not seen */
    bool over = false;
    s->n_images = s->n_targets = s->positions = 0;
    for (size_t i = 0; i < s->ids.n; i++) {
        const bool picture = s->ids.p[i] == IDS_IMAGE, learn = !picture && s->labels.p[i] != IDS_IGNORE;
        const size_t size = !picture ? 1 : c->of ? (size_t)c->of : rows, seen = picture ? rows : 1;
        over |= at >= most || (c->of && at + size > most);
        if (over) {
            s->cut |= learn;
            continue;
        }
        s->n_images += picture;
        s->n_targets += learn && at > 0;
        s->positions += (int)(c->of || seen < most - at ? seen : most - at);
        at += size;
    }
}

/* A record of text: is "<image>" in it, and does it look like a picture's place? */
static int find_literal(struct sample *s, const struct record *r, struct err *e)
{
    for (int i = 0; i < r->n_turns; i++) {
        struct span v = span_strip(r->turn[i].value), from = r->turn[i].from;
        if (span_find(v, 0, MARK) == v.n) continue;
        s->literal = true;
        bool place = memcmp(v.p, MARK.p, MARK.n) == 0 || memcmp(v.p + v.n - MARK.n, MARK.p, MARK.n) == 0;
        if (place && from.n == 5 && memcmp(from.p, "human", 5) == 0)
            return err_set(e, ERR_FORMAT, "\"<image>\" in turn %d and no picture", i);
    }
    return 0;
}

static int sample_text(struct sample *s, const struct recipe *c, const struct record *r, int n_images, struct err *e)
{
    int rc, marks;
    if (n_images == 0 && c->vision) TRY(find_literal(s, r, e));
    TRY(supervise(&c->text, r->turn, (size_t)r->n_turns, (size_t)n_images, &s->ids, &s->labels, e));
    s->cut = rc > 0;
    marks = count_marks(s, c, r, n_images);
    if (marks > n_images)
        TRY(err_set(e, ERR_FORMAT, "%d \"<image>\" in the turns and %d picture%s", marks, n_images,
                    n_images == 1 ? "" : "s"));
    s->spare_images = n_images - marks;
    drop_pads(s, c->pad);
    measure(s, c);
    rc = 0;
out:
    return rc;
}

int sample_make(struct sample *s, const struct recipe *c, const struct record *r, bool pictures, struct err *e)
{
    char name[RECORD_NAME_MAX];
    int n_images = c->vision ? r->n_images : 0, rc;
    s->record = r->index;
    s->n_images = s->n_targets = s->positions = s->spare_images = 0;
    s->cut = s->literal = false;
    s->ids.max = s->labels.max = IDS_MAX;
    ids_reset(&s->ids);
    ids_reset(&s->labels);
    TRY(sample_text(s, c, r, n_images, e));
    if (n_images) TRY(pictures ? pictures_load(s, c, r, e) : pictures_find(c, r, e));
    return 0;
out:
    record_name(name, r);
    return err_prefix(e, "%s", name);
}

void sample_fini(struct sample *s)
{
    ids_free(&s->ids);
    ids_free(&s->labels);
    free(s->pixels);
    free(s->picture);
    free(s->features);
    *s = (struct sample){ 0 };
}
