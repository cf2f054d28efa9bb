/* The public functions of include/llava.h, over engine.h and session.h. */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "run/adapter.h"
#include "run/api.h"
#include "run/session.h"
#include "text/conv.h"

struct llava_session { struct session *s; };
struct llava_conversation {
    struct conv conv;
    const struct engine *g;
    struct buf prompt;
};

_Static_assert(sizeof((struct err *)0)->msg == sizeof((struct llava_error *)0)->message, "messages have one size");

int api_done(int rc, const struct err *from, struct llava_error *e)
{
    if (rc < 0 && e) {
        e->code = from->code;
        memcpy(e->message, from->msg, sizeof e->message);
    }
    return rc;
}

void *api_object(size_t n, struct err *e)
{
    void *p = calloc(1, n);
    if (!p) err_set(e, ERR_NOMEM, "no memory");
    return p;
}

const char *llava_version(void) { return LLAVA_VERSION; }

/* ---- engine */

struct llava_options llava_options_default(void)
{
    return (struct llava_options){ .device = "auto", .dtype = "auto" };
}

int llava_open(struct llava_engine **ret, const struct llava_options *o, struct llava_error *e)
{
    struct err err = { 0 };
    *ret = NULL;
    if (!o->model_path || !*o->model_path) return api_done(err_set(&err, ERR_USAGE, "no model path"), &err, e);
    if (o->context < 0 || o->threads < 0)
        return api_done(err_set(&err, ERR_USAGE, "context %d and threads %d must not be negative", o->context,
                                o->threads), &err, e);
    log_set_level(o->quiet ? LOG_QUIET : LOG_INFO);
    struct llava_engine *x = api_object(sizeof *x, &err);
    if (!x) return api_done(ERR_NOMEM, &err, e);
    struct engine_options eo = { .lora = o->lora, .n_lora = o->n_lora,
                                 .path = o->model_path, .base = o->model_base, .name = o->model_name, .dtype = o->dtype,
                                 .kv_dtype = o->kv_dtype, .load_8bit = o->load_8bit, .load_4bit = o->load_4bit,
                                 .tower = o->vision_tower, .device = o->device, .context = o->context,
                                 .threads = o->threads };
    int rc = engine_open(&x->g, &eo, &err);
    if (rc < 0) free(x);
    else *ret = x;
    return api_done(rc, &err, e);
}

void llava_close(struct llava_engine *x)
{
    if (!x) return;
    engine_close(x->g);
    free(x);
}

void llava_engine_info(const struct llava_engine *x, struct llava_info *i)
{
    const struct engine *g = x->g;
    *i = (struct llava_info){
        .name = g->name,
        .model_type = g->model.cfg.model_type,
        .dtype = dtype_name(g->dtype),
        .device = dev_name(g->dev),
        .kernels = g->kern.name,
        .threads = g->kc.n_threads,
        .conversation = g->conversation,
        .multimodal = g->model.cfg.has_vision,
        .context = g->context,
        .vocab = g->model.cfg.llama.V,
        .width = g->model.cfg.llama.C,
        .layers = g->model.cfg.llama.L,
        .weight_bytes = engine_weight_bytes(g),
        .cache_bytes_per_position = engine_cache_bytes(g),
        .image_marks = g->model.cfg.im_start_end,
        .image_positions = g->model.cfg.has_vision ? llava_tile_rows(&g->model) : 0,
    };
}

const char *llava_adapter_name(const struct llava_engine *x, int i) { return adapter_name(x->g, i); }

/* ---- pictures */

static int image_make(struct llava_image **ret, struct llava_engine *x, struct picture *pic, const char *name, int rc,
                      struct err *err, struct llava_error *e)
{
    *ret = NULL;
    struct llava_image *im = rc < 0 ? NULL : api_object(sizeof *im, err);
    if (rc >= 0) rc = im ? image_new(&im->im, x->g, pic, err) : ERR_NOMEM;
    if (rc < 0 && pic->rgb) err_prefix(err, "'%s'", name);
    picture_free(pic);
    if (rc < 0) free(im);
    else {
        im->g = x->g;
        *ret = im;
    }
    return api_done(rc, err, e);
}

int llava_image_open(struct llava_image **ret, struct llava_engine *x, const char *path, struct llava_error *e)
{
    struct err err = { 0 };
    struct picture pic = { 0 };
    int rc = picture_open(&pic, path, &err);
    return image_make(ret, x, &pic, path, rc, &err, e);
}

int llava_image_decode(struct llava_image **ret, struct llava_engine *x, const void *bytes, size_t n, const char *name,
                       struct llava_error *e)
{
    struct err err = { 0 };
    struct picture pic = { 0 };
    int rc = picture_decode(&pic, bytes, n, name, &err);
    return image_make(ret, x, &pic, name, rc, &err, e);
}

void llava_image_close(struct llava_image *im)
{
    if (!im) return;
    image_free(im->im);
    free(im);
}

/* ---- conversations */

int llava_conversation_open(struct llava_conversation **ret, const struct llava_engine *x, const char *name,
                            struct llava_error *e)
{
    struct err err = { 0 };
    *ret = NULL;
    const struct conv_template *t = conv_find(name ? name : x->g->conversation);
    if (!t) {
        struct buf names = buf_make(4096);
        for (size_t i = 0; conv_key(i); i++) buf_fmt(&names, "%s%s", i ? ", " : "", conv_key(i));
        err_set(&err, ERR_USAGE, "no conversation template '%s' (there are %s)", name, names.p);
        buf_free(&names);
        return api_done(ERR_USAGE, &err, e);
    }
    struct llava_conversation *c = api_object(sizeof *c, &err);
    if (!c) return api_done(ERR_NOMEM, &err, e);
    c->g = x->g;
    c->prompt = buf_make(1 << 26);
    int rc = conv_init(&c->conv, t, &err);
    if (rc < 0) free(c);
    else *ret = c;
    return api_done(rc, &err, e);
}

void llava_conversation_close(struct llava_conversation *c)
{
    if (!c) return;
    conv_fini(&c->conv);
    buf_free(&c->prompt);
    free(c);
}

/* text with every "<image-placeholder>" replaced, as run_llava does; pictures that it does not place go before it. */
static void place_images(struct buf *out, const char *text, int n_images, bool marks)
{
    static const char holder[] = "<image-placeholder>";
    const char *mark = marks ? "<im_start><image><im_end>" : "<image>";
    bool placed = strstr(text, holder) || strstr(text, "<image>");
    for (int i = 0; i < n_images && !placed; i++) buf_fmt(out, "%s\n", mark);
    for (const char *at; (at = strstr(text, holder)); text = at + sizeof holder - 1) {
        buf_add(out, text, (size_t)(at - text));
        buf_str(out, mark);
    }
    buf_str(out, text);
}

int llava_conversation_ask(struct llava_conversation *c, const char *text, int n_images, struct llava_error *e)
{
    struct err err = { 0 };
    struct buf b = buf_make(1 << 26);
    place_images(&b, text, n_images, c->g->model.cfg.im_start_end);
    int rc = buf_check(&b, "the question", &err);
    if (rc >= 0) rc = conv_add(&c->conv, CONV_USER, b.p ? b.p : "", b.n, false, &err);
    if (rc >= 0) rc = conv_add(&c->conv, CONV_ASSISTANT, NULL, 0, false, &err);
    buf_free(&b);
    return api_done(rc, &err, e);
}

int llava_conversation_answer(struct llava_conversation *c, const char *text, struct llava_error *e)
{
    struct err err = { 0 };
    if (c->conv.n == c->conv.offset) return api_done(err_set(&err, ERR_USAGE, "an answer without a question"), &err, e);
    return api_done(conv_set_last(&c->conv, text, strlen(text), &err), &err, e);
}

void llava_conversation_undo(struct llava_conversation *c)
{
    conv_drop(&c->conv, 2);
}

int llava_conversation_prompt(const char **prompt, struct llava_conversation *c, struct llava_error *e)
{
    struct err err = { 0 };
    buf_reset(&c->prompt);
    int rc = c->conv.n > c->conv.offset ? conv_prompt(&c->conv, &c->prompt, NULL, &err)
                                        : err_set(&err, ERR_USAGE, "a prompt without a question");
    if (rc >= 0) rc = buf_check(&c->prompt, "the prompt", &err);
    *prompt = rc < 0 ? NULL : c->prompt.p;
    return api_done(rc, &err, e);
}

const char *llava_conversation_stop(const struct llava_conversation *c) { return conv_stop(c->conv.tpl); }
const char *llava_conversation_name(int i) { return i < 0 ? NULL : conv_key((size_t)i); }

/* ---- sessions */

int llava_session_open(struct llava_session **ret, struct llava_engine *x, struct llava_error *e)
{
    struct err err = { 0 };
    *ret = NULL;
    struct llava_session *s = api_object(sizeof *s, &err);
    int rc = s ? session_open(&s->s, x->g, &err) : ERR_NOMEM;
    if (rc < 0) free(s);
    else *ret = s;
    return api_done(rc, &err, e);
}

int llava_session_adapter(struct llava_session *s, const char *name, struct llava_error *e)
{
    struct err err = { 0 };
    return api_done(adapter_find(&s->s->adapter, s->s->g, name, &err), &err, e);
}

void llava_session_close(struct llava_session *s)
{
    if (!s) return;
    session_close(s->s);
    free(s);
}

int api_images(struct image ***ret, const struct engine *g, struct llava_image *const *images, int n, struct err *err)
{
    *ret = api_object(((size_t)n + 1) * sizeof **ret, err);
    for (int i = 0; i < n && *ret; i++) {
        if (images[i]->g != g) return err_set(err, ERR_USAGE, "picture %d was opened with another engine", i + 1);
        (*ret)[i] = images[i]->im;
    }
    return *ret ? 0 : ERR_NOMEM;
}

int llava_session_prompt(struct llava_session *s, const char *prompt, struct llava_image *const *images, int n,
                         struct llava_error *e)
{
    struct err err = { 0 };
    struct prompt p = { 0 };
    struct image **inner = NULL;
    int rc;
    TRY(api_images(&inner, s->s->g, images, n, &err));
    TRY(adapter_sees(s->s->g, s->s->adapter, n, &err));
    TRY(prompt_make(&p, s->s->g, prompt, inner, n, &err));
    TRY(session_read(s->s, &p, inner, NULL, &err));
out:
    prompt_fini(&p);
    free(inner);
    return api_done(rc, &err, e);
}

struct llava_sampling llava_sampling_default(void)
{
    return (struct llava_sampling){ .temperature = 0.2f, .top_k = 50, .top_p = 1, .max_new_tokens = 512 };
}

int llava_session_generate(struct llava_session *s, const struct llava_sampling *p, llava_text_fn on_text, void *ctx,
                           struct llava_result *r, struct llava_error *e)
{
    struct err err = { 0 };
    struct llava_result mine;
    return api_done(session_generate(s->s, p, on_text, ctx, r ? r : &mine, &err), &err, e);
}

/* ---- forward */

/* The picture through the tower, and its features on the host. */
static int forward_features(float *out, struct gallery *y, const struct image *im, struct err *err)
{
    gallery_begin(y);
    while (!gallery_find(y, im, SIGHT_MODEL, 0).p) {
        int rc = gallery_add_tile(y, im, SIGHT_MODEL, 0, err);
        if (rc < 0) return rc;
    }
    engine_values(y->g, out, gallery_find(y, im, SIGHT_MODEL, 0));
    return 0;
}

static int forward_pictures(struct llava_forward *f, struct gallery *y, struct image *const *images, int n,
                            struct err *err)
{
    f->width = y->g->model.cfg.llama.C;
    for (int i = 0; i < n; i++) {
        f->n_tiles += images[i]->pixels.n;
        f->n_features += images[i]->n_rows;
        f->side = images[i]->pixels.w;
    }
    size_t tile = 3 * (size_t)f->side * (size_t)f->side, width = (size_t)f->width, tiles = 0, rows = 0;
    f->pixels = api_object((size_t)f->n_tiles * tile * sizeof(float) + 1, err);
    f->features = api_object((size_t)f->n_features * width * sizeof(float) + 1, err);
    if (!f->pixels || !f->features) return ERR_NOMEM;
    for (int i = 0; i < n; i++) {
        const struct image *im = images[i];
        memcpy(f->pixels + tiles * tile, im->pixels.data, (size_t)im->pixels.n * tile * sizeof(float));
        int rc = forward_features(f->features + rows * width, y, im, err);
        if (rc < 0) return rc;
        tiles += (size_t)im->pixels.n;
        rows += (size_t)im->n_rows;
    }
    return 0;
}

int llava_engine_forward(struct llava_forward *f, struct llava_engine *x, const char *prompt,
                         struct llava_image *const *images, int n, struct llava_error *e)
{
    struct err err = { 0 };
    struct prompt p = { 0 };
    struct image **inner = NULL;
    struct session *s = NULL;
    int rc;
    *f = (struct llava_forward){ .vocab = x->g->model.cfg.llama.V };
    TRY(api_images(&inner, x->g, images, n, &err));
    TRY(adapter_sees(x->g, -1, n, &err));
    TRY(prompt_make(&p, x->g, prompt, inner, n, &err));
    TRY(session_open(&s, x->g, &err));
    TRY(forward_pictures(f, &s->sched.gallery, inner, n, &err));
    f->n_ids = (int)p.ids.n;
    f->n_positions = p.n;
    f->ids = api_object(p.ids.n * sizeof *f->ids, &err);
    f->logits = api_object((size_t)p.n * (size_t)f->vocab * sizeof *f->logits, &err);
    if (!f->ids || !f->logits) TRY(ERR_NOMEM);
    memcpy(f->ids, p.ids.p, p.ids.n * sizeof *f->ids);
    TRY(session_read(s, &p, inner, f->logits, &err));
out:
    session_close(s);
    prompt_fini(&p);
    free(inner);
    if (rc < 0) llava_forward_free(f);
    return api_done(rc, &err, e);
}

void llava_forward_free(struct llava_forward *f)
{
    free(f->ids);
    free(f->pixels);
    free(f->features);
    free(f->logits);
    *f = (struct llava_forward){ 0 };
}
