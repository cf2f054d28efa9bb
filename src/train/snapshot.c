/* See snapshot.h. */
#include "train/snapshot.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- tensors */

static void name_tensor(struct snapshot *s, const char *prefix, int i, struct tensor t)
{
    const struct trained *p = &s->t->p[i];
    if (!t.p) return;
    struct weight *w = &s->tensors[s->ck.n_state++];
    const size_t size = strlen(prefix) + strlen(p->name) + 1;
    char *name = malloc(size);
    if (!name) BUG("no memory for a name");
    snprintf(name, size, "%s%s", prefix, p->name);
    *w = (struct weight){ .name = name, .t = states_rest(&s->t->states, i, t) };
}

static void name_tensors(struct snapshot *s)
{
    for (int i = 0; i < s->t->n; i++) {
        const struct trained_state *p = &s->t->p[i].state;
        name_tensor(s, "master/", i, p->master.p ? p->master : s->t->p[i].param->w);
        name_tensor(s, "moment1/", i, p->m);
        name_tensor(s, "moment2/", i, p->v);
        name_tensor(s, "scale1/", i, p->ms);
        name_tensor(s, "scale2/", i, p->vs);
    }
}

static int fetch(const void **ret, void *ctx, const struct weight *w, struct err *e)
{
    struct snapshot *s = ctx;
    if (states_on_host(&s->t->states, w->t.p)) {
        states_wait(&s->t->states);
        *ret = w->t.p;
        return 0;
    }
    return fetched_get(ret, &s->fetched, w->t, e);
}

static int put(void *ctx, const struct weight *w, const void *bytes, struct err *e)
{
    struct snapshot *s = ctx;
    (void)e;
    if (states_on_host(&s->t->states, w->t.p)) memcpy(w->t.p, bytes, tensor_bytes(w->t));
    else dev_put(s->t->dev, w->t.p, bytes, tensor_bytes(w->t));
    return 0;
}

/* ---- what it says of the run */

/* What two runs must have in common for one to go on from the other's checkpoint: facts, and arguments. */
static json_t *in_common(const struct trainee *t, const struct train_args *a, uint64_t hash)
{
    char data[20], base[20];
    snprintf(data, sizeof data, "%016llx", (unsigned long long)hash);
    snprintf(base, sizeof base, "%016llx", (unsigned long long)t->base);
    json_t *o = json_pack("{ss, ss, si, ss, ss, sb, sI}", "data", data, "model", base, "world size", 1,
                          "optim", t->muon ? "muon" : "adamw", "precision", dtype_name(t->dtype),
                          "optim of 8 bits", t->states.how.eight,
                          "lora_alpha", (json_int_t)(a->lora_enable ? a->lora_alpha : 0));
    json_t *args = train_args_same(a);
    const bool whole = o && args && json_object_update(o, args) == 0;
    json_decref(args);
    if (whole) return o;
    json_decref(o);
    return NULL;
}

/* Tokens that a run may add to its base's tokenizer, by id; those that the base has already are harmless. */
static json_t *added_tokens(const struct tokenizer *t)
{
    static const char *const names[] = { "[PAD]", "<im_patch>", "<im_start>", "<im_end>" };
    json_t *o = json_object();
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const int id = tokenizer_find(t, names[i]);
        if (id >= 0) json_object_set_new(o, names[i], json_integer(id));
    }
    return o;
}

int snapshot_open(struct snapshot *s, struct trainee *t, const struct train_args *a, uint64_t data, struct err *e)
{
    *s = (struct snapshot){ .t = t, .fetched.dev = t->dev, .args = train_args_json(a), .config = trainee_config(t, a),
                            .same = in_common(t, a, data), .unsaid = train_args_same(NULL),
                            .tokens = added_tokens(t->tokenizer),
                            .tensors = calloc((size_t)t->n * 5, sizeof *s->tensors) };
    if (!s->args || !s->config || !s->same || !s->unsaid || !s->tokens || !s->tensors)
        return err_set(e, ERR_NOMEM, "no memory for a run");
    json_object_set(s->unsaid, "model", json_object_get(s->same, "model")); /* checkpoints that are older take any */
    s->lora = (struct save_lora){ a->model_name_or_path, (int)a->lora_r, (double)a->lora_alpha, a->lora_dropout,
                                  a->lora_bias };
    s->ck = (struct checkpoint){
        .m = &t->model, .kind = t->kind, .output_dir = a->output_dir, .title = a->run_name, .model_dir = t->dir,
        .dtype = t->dtype, .lora = t->kind == TRAIN_LORA ? &s->lora : NULL, .config = s->config, .args = s->args,
        .same = s->same, .unsaid = s->unsaid, .tokens = s->tokens, .state = s->tensors, .fetch = fetch, .put = put,
        .ctx = s, .total_limit = (int)a->save_total_limit, .keep_best = a->load_best_model_at_end,
        .batch_size = a->per_device_train_batch_size,
    };
    name_tensors(s);
    return 0;
}

void snapshot_close(struct snapshot *s)
{
    for (size_t i = 0; i < s->ck.n_state; i++) free((char *)(uintptr_t)s->tensors[i].name);
    free(s->tensors);
    json_decref(s->args);
    json_decref(s->config);
    json_decref(s->same);
    json_decref(s->unsaid);
    json_decref(s->tokens);
    fetched_fini(&s->fetched);
    *s = (struct snapshot){ 0 };
}
