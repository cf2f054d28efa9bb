/* See session.h. */
#include "run/session.h"

#include <stdlib.h>

int session_open(struct session **ret, struct engine *g, struct err *e)
{
    struct session *s = calloc(1, sizeof *s);
    if (!s) return err_set(e, ERR_NOMEM, "no memory for a session");
    s->g = g;
    s->adapter = -1;
    int rc = sched_init(&s->sched, g, 1, g->context, e);
    if (rc < 0) session_close(s);
    else *ret = s;
    return rc;
}

static void forget(struct session *s)
{
    if (s->q) sched_remove(&s->sched, s->q);
    seq_free(s->q);
    s->q = NULL;
}

void session_close(struct session *s)
{
    if (!s) return;
    forget(s);
    sched_fini(&s->sched);
    free(s);
}

int session_read(struct session *s, const struct prompt *p, struct image *const *images, float *all, struct err *e)
{
    forget(s);
    struct seq *q = NULL;
    int rc = seq_new(&q, s->g, p, images, s->g->context, s->adapter, e);
    if (rc < 0) return rc;
    q->all = all;
    q->logits = malloc((size_t)s->g->model.cfg.llama.V * sizeof *q->logits);
    if (!q->logits) {
        seq_free(q);
        return err_set(e, ERR_NOMEM, "no memory for a session");
    }
    s->q = q;
    sched_add(&s->sched, q);
    while (q->state == SEQ_READING) sched_step(&s->sched);
    if (!q->err.code) return 0;
    rc = err_set(e, q->err.code, "%s", q->err.msg);
    forget(s);
    return rc;
}

int session_generate(struct session *s, const struct llava_sampling *o, llava_text_fn on_text, void *ctx,
                     struct llava_result *r, struct err *e)
{
    struct seq *q = s->q;
    if (!q || q->state != SEQ_READY) return err_set(e, ERR_USAGE, "no prompt was read before generating");
    int rc = seq_ask(q, o, e);
    if (rc < 0) return rc;
    q->on_text = on_text;
    q->ctx = ctx;
    q->state = SEQ_WRITING;
    chooser_draw(&q->chooser, q->slot);
    int32_t token;
    while ((token = chooser_choose(&q->chooser, q->logits)) == CHOOSER_LATER) {}
    seq_push(q, token, q->logits);
    while (q->state == SEQ_WRITING) sched_step(&s->sched);
    *r = q->r;
    return q->err.code ? err_set(e, q->err.code, "%s", q->err.msg) : 0;
}
