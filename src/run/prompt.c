/* See prompt.h. */
#include "run/prompt.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"

static int prompt_expand(struct prompt *p, struct image *const *images, struct err *e)
{
    int64_t n = 0;
    int at_image = 0;
    for (size_t i = 0; i < p->ids.n; i++) n += p->ids.p[i] == IDS_IMAGE ? images[at_image++]->n_rows : 1;
    p->at = malloc((size_t)(n + 1) * sizeof *p->at);
    if (!p->at) return err_set(e, ERR_NOMEM, "no memory for a prompt of %lld positions", (long long)n);
    at_image = 0;
    for (size_t i = 0; i < p->ids.n; i++) {
        int32_t id = p->ids.p[i];
        if (id != IDS_IMAGE) {
            p->at[p->n++] = (struct position){ (uint64_t)id, id, 0, 0 };
            continue;
        }
        const struct image *im = images[at_image];
        for (int r = 0; r < im->n_rows; r++)
            p->at[p->n++] = (struct position){ key_mix(im->key, (uint64_t)r + 1) | (uint64_t)1 << 63, -1, at_image, r };
        at_image++;
    }
    return 0;
}

/* p->ids as positions. */
static int prompt_fill(struct prompt *p, const struct engine *g, struct image *const *images, struct err *e)
{
    const struct llava_config *c = &g->model.cfg;
    int rc;
    TRY(prompt_expand(p, images, e));
    p->n_whole = p->n;
    if (c->text_max > 0 && p->n > c->text_max) { /* the reference cuts after splicing, silently */
        log_warn("the prompt of %d positions is cut to the model's %d", p->n, c->text_max);
        p->n = c->text_max;
    }
    if (p->n == 0) TRY(err_set(e, ERR_USAGE, "the prompt is empty"));
out:
    return rc;
}

int prompt_make(struct prompt *p, const struct engine *g, const char *text, struct image *const *images, int n,
                struct err *e)
{
    const struct llava_config *c = &g->model.cfg;
    *p = (struct prompt){ .ids = ids_make(IDS_MAX) };
    int rc, marks = 0;
    if (!g->tok) TRY(err_set(e, ERR_UNSUPPORTED, "the model '%s' has no tokenizer", g->name));
    TRY(tokenizer_encode_prompt(g->tok, text, strlen(text), &p->ids, e));
    TRY(ids_check(&p->ids, "the prompt", e));
    for (size_t i = 0; i < p->ids.n; i++) {
        marks += p->ids.p[i] == IDS_IMAGE;
        if (p->ids.p[i] >= c->llama.V)
            TRY(err_set(e, ERR_SHAPE, "token %d is past the %d rows of the embedding of '%s'", p->ids.p[i], c->llama.V,
                        g->name));
    }
    if (marks != n)
        TRY(err_set(e, ERR_USAGE, "the prompt has %d \"<image>\" and there %s %d picture%s", marks,
                    n == 1 ? "is" : "are", n, n == 1 ? "" : "s"));
    TRY(prompt_fill(p, g, images, e));
out:
    if (rc < 0) prompt_fini(p);
    return rc;
}

int prompt_of_ids(struct prompt *p, const struct engine *g, const int32_t *ids, int n, struct err *e)
{
    const int V = g->model.cfg.llama.V;
    *p = (struct prompt){ .ids = ids_make(IDS_MAX) };
    int rc = 0;
    for (int i = 0; i < n; i++) {
        if (ids[i] < 0 || ids[i] >= V)
            TRY(err_set(e, ERR_USAGE, "token %d of the prompt is none of the %d of '%s'", ids[i], V, g->name));
        ids_add(&p->ids, ids[i]);
    }
    TRY(ids_check(&p->ids, "the prompt", e));
    TRY(prompt_fill(p, g, NULL, e));
out:
    if (rc < 0) prompt_fini(p);
    return rc;
}

int prompt_fits(int n, const struct engine *g, struct err *e)
{
    if (n <= g->context) return 0;
    return err_set(e, ERR_LIMIT, "the prompt has %d positions, the context of '%s' is %d", n, g->name, g->context);
}

int prompt_may_fit(const struct engine *g, const char *text, int n_images, struct err *e)
{
    const size_t marks = (size_t)n_images * strlen("<image>"); /* no more ids than bytes */
    const size_t least = g->tok ? tokenizer_least(g->tok, text, strlen(text)) : 0;
    if (least <= marks + (size_t)g->context) return 0;
    return err_set(e, ERR_LIMIT, "the prompt has %zu positions at least, the context of '%s' is %d", least - marks,
                   g->name, g->context);
}

void prompt_fini(struct prompt *p)
{
    ids_free(&p->ids);
    free(p->at);
    *p = (struct prompt){ 0 };
}
