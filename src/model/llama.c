/* See llama.h. */
#include "model/llama.h"

#include <math.h>

enum { LLAMA_PLACES = 1 << 16 }; /* of op_join: a tower's are before them */

/* What a layer needs besides its input. */
struct layer_arg {
    const struct llama *m;
    const struct llama_layer *l;
    const struct llama_seq *seq;
    const struct llama_cache *cache;
    bool few; /* seq->few, in the last layer */
};

static struct tensor llama_layer_forward(struct op_ctx *o, const void *arg, struct tensor x)
{
    const struct layer_arg *a = arg;
    const struct llama_config *c = &a->m->cfg;
    const struct llama_layer *l = a->l;
    const int place = LLAMA_PLACES + 2 * (int)(l - a->m->layer);
    struct op_qkv h = op_norm_qkv(o, x, &l->ln1, c->eps, &l->q, &l->k, &l->v);
    const struct llama_seq *s = a->seq;
    struct tensor y = { 0 };
    if (a->few && !s->out.p) {
        op_rope_store(o, &h, s->pos, a->m->rope, a->cache->k, a->cache->v, s->row);
        return y;
    }
    if (a->cache) {
        y = op_rope_attention(o, &h, s->pos, a->m->rope, a->cache->k, a->cache->v, s->row, s->range, s->pages, c->H);
    } else {
        h.q = op_rope(o, h.q, s->pos, a->m->rope);
        h.k = op_rope(o, h.k, s->pos, a->m->rope);
        y = op_attention(o, h.q, h.k, h.v, s->range, s->pages, c->H);
    }
    if (a->few) {
        y = op_gather(o, y, s->out);
        x = op_gather(o, x, s->out);
        o->kc->decode = true;
    }
    x = op_linear_join(o, y, &l->o, x, place);
    return op_norm_glu_add(o, x, &l->ln2, c->eps, &l->gate, &l->up, &l->down, place + 1);
}

struct tensor llama_forward(struct op_ctx *o, const struct llama *m, struct tensor x, const struct llama_seq *seq,
                            const struct llama_cache *cache)
{
    for (int i = 0; i < m->cfg.L; i++) {
        struct layer_arg a = { m, &m->layer[i], seq, cache ? &cache[i] : NULL, seq->few && i + 1 == m->cfg.L };
        if (!o->tape) { /* nothing of the layer is needed but its output, which takes the input's place */
            size_t mark = arena_mark(o->act);
            o->overwrite = true;
            x = llama_layer_forward(o, &a, x);
            o->overwrite = false;
            if (!a.few) arena_rewind(o->act, mark);
            continue;
        }
        op_mark(o, x, i);
        x = op_checkpoint(o, llama_layer_forward, &a, sizeof a, o->kept ? (enum op_kept)o->kept[i] : OP_KEPT_ALL, x);
    }
    op_mark(o, x, m->cfg.L);
    return !x.p ? x : op_rmsnorm(o, x, &m->norm, m->cfg.eps);
}

struct tensor llama_logits(struct op_ctx *o, const struct llama *m, struct tensor h)
{
    return o->tape || m->head.lora ? op_linear(o, h, &m->head) : op_linear_f32(o, h, &m->head);
}

/* Frequencies as transformers' ROPE_INIT_FUNCTIONS compute them, in float32 where it does. */
static float inv_freq(const struct llama_config *c, int i)
{
    float f = 1.0f / (float)pow(c->rope_theta, (double)((float)(2 * i) / (float)c->D));
    if (c->rope_scaling == ROPE_LINEAR) return f / (float)c->rope_factor;
    if (c->rope_scaling != ROPE_LLAMA3) return f;
    double wave = 2 * 3.14159265358979323846 / f;
    if (wave < c->rope_original / c->rope_high) return f;
    if (wave > c->rope_original / c->rope_low) return f / (float)c->rope_factor;
    double smooth = (c->rope_original / wave - c->rope_low) / (c->rope_high - c->rope_low);
    return (float)((1 - smooth) * f / c->rope_factor + smooth * f);
}

void llama_rope_table(const struct llama_config *c, float *t, int n)
{
    int half = c->D / 2;
    for (int i = 0; i < half; i++) {
        float f = inv_freq(c, i);
        for (int64_t p = 0; p < n; p++) {
            float angle = (float)p * f; /* the product is rounded to float32 there too */
            t[p * c->D + i] = cosf(angle);
            t[p * c->D + half + i] = sinf(angle);
        }
    }
}
