/* A tokenizer.json of a SentencePiece model, as transformers 4 makes it (convert_slow_tokenizer.py, LlamaConverter):
 * transformers 5 reads nothing else of a LLaVA model right. tokenizer_bpe.c reads it back. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "text/tokenizer_in.h"

static const char SPACE[] = "\xe2\x96\x81"; /* U+2581, SentencePiece's */

/* A place at which a piece falls into two others: where these stand side by side they may be merged. */
struct cut {
    int32_t whole;
    uint32_t at; /* bytes of the left one */
    float score; /* of the whole: the highest is merged first */
};

struct cuts {
    struct cut *p;
    size_t n, cap;
};

static bool is_part(const struct spm *s, const char *p, size_t n)
{
    const int32_t id = spm_find(s, p, n);
    return id != spm_unk(s) && spm_kind(s, id) == SPM_NORMAL;
}

static bool add_cuts(struct cuts *c, const struct spm *s, int32_t id)
{
    size_t n;
    const char *p = spm_piece(s, id, &n);
    for (size_t at = 1; spm_kind(s, id) == SPM_NORMAL && at < n; at++) {
        if (((unsigned char)p[at] & 0xc0) == 0x80 || !is_part(s, p, at) || !is_part(s, p + at, n - at)) continue;
        if (c->n == c->cap) {
            const size_t cap = c->cap ? 2 * c->cap : 1 << 14;
            struct cut *q = realloc(c->p, cap * sizeof *q);
            if (!q) return false;
            c->p = q;
            c->cap = cap;
        }
        c->p[c->n++] = (struct cut){ id, (uint32_t)at, spm_score(s, id) };
    }
    return true;
}

static int in_order(const void *a, const void *b)
{
    const struct cut *x = a, *y = b;
    if (x->score < y->score || x->score > y->score) return x->score > y->score ? -1 : 1;
    if (x->whole != y->whole) return x->whole < y->whole ? -1 : 1;
    return x->at < y->at ? -1 : 1;
}

/* "left right", the form that all versions read. NULL: no memory. */
static json_t *merges_of(const struct spm *s)
{
    struct cuts c = { 0 };
    struct buf text = buf_make(SIZE_MAX);
    json_t *list = json_array();
    bool ok = list != NULL;
    for (int32_t id = 0; ok && id < spm_size(s); id++) ok = add_cuts(&c, s, id);
    if (ok && c.n) qsort(c.p, c.n, sizeof *c.p, in_order);
    for (size_t i = 0; ok && i < c.n; i++) {
        size_t n;
        const char *p = spm_piece(s, c.p[i].whole, &n);
        buf_reset(&text);
        buf_add(&text, p, c.p[i].at);
        buf_chr(&text, ' ');
        buf_add(&text, p + c.p[i].at, n - c.p[i].at);
        ok = !text.failed && json_array_append_new(list, json_stringn(text.p, text.n)) == 0;
    }
    free(c.p);
    buf_free(&text);
    if (ok) return list;
    json_decref(list);
    return NULL;
}

static json_t *vocabulary_of(const struct spm *s)
{
    json_t *vocab = json_object();
    for (int32_t id = 0; vocab && id < spm_size(s); id++) {
        size_t n;
        json_object_set_new(vocab, spm_piece(s, id, &n), json_integer(id));
    }
    return vocab;
}

static json_t *added_of(const struct tokenizer *t)
{
    json_t *list = json_array();
    for (int32_t id = 0; list && id < t->info.size; id++) {
        const struct added *a = tokenizer_added(t, id);
        if (a)
            json_array_append_new(list, json_pack("{si,ss,sb,sb,sb,sb,sb}", "id", id, "content", a->text,
                                                  "single_word", 0, "lstrip", a->lstrip, "rstrip", a->rstrip,
                                                  "normalized", !a->special, "special", a->special));
    }
    return list;
}

/* U+2581 in front and for spaces. With legacy in front of every part of a text: a normalizer's work. Without, only at
 * its start: a pre-tokenizer's. */
static void set_spaces(json_t *root, const struct tokenizer *t)
{
    const bool legacy = t->info.mode == TOKENIZER_LEGACY;
    json_t *steps = json_array(), *normalizer = NULL, *cutter = NULL;
    if (t->dummy_prefix)
        json_array_append_new(steps, json_pack("{ss,ss}", "type", "Prepend", "prepend", SPACE));
    json_array_append_new(steps, json_pack("{ss,s{ss},ss}", "type", "Replace", "pattern", "String", " ", "content",
                                           SPACE));
    if (legacy) normalizer = json_pack("{ss,sO}", "type", "Sequence", "normalizers", steps);
    else cutter = json_pack("{ss,ss,ss,sb}", "type", "Metaspace", "replacement", SPACE, "prepend_scheme",
                            t->dummy_prefix ? "first" : "never", "split", 0);
    json_object_set_new(root, "normalizer", legacy ? normalizer : json_null());
    json_object_set_new(root, "pre_tokenizer", legacy ? json_null() : cutter);
    json_decref(steps);
}

static void add_special(json_t *steps, json_t *known, const struct tokenizer *t, int32_t id, int part)
{
    size_t n;
    const struct added *a = tokenizer_added(t, id);
    const char *text = a ? a->text : spm_piece(t->spm, id, &n);
    json_array_append_new(steps, json_pack("{s{sssi}}", "SpecialToken", "id", text, "type_id", part));
    json_object_set_new(known, text, json_pack("{ss,s[i],s[s]}", "id", text, "ids", id, "tokens", text));
}

/* BOS and EOS around one text, and around each of two. */
static json_t *around(const struct tokenizer *t)
{
    json_t *known = json_object(), *steps[2] = { json_array(), json_array() };
    for (int pair = 0; pair < 2; pair++)
        for (int part = 0; part <= pair; part++) {
            if (t->info.add_bos && t->info.bos >= 0) add_special(steps[pair], known, t, t->info.bos, part);
            json_array_append_new(steps[pair],
                                  json_pack("{s{sssi}}", "Sequence", "id", part ? "B" : "A", "type_id", part));
            if (t->info.add_eos && t->info.eos >= 0) add_special(steps[pair], known, t, t->info.eos, part);
        }
    return json_pack("{ss,so,so,so}", "type", "TemplateProcessing", "single", steps[0], "pair", steps[1],
                     "special_tokens", known);
}

static json_t *decoder_of(const struct tokenizer *t)
{
    json_t *v = json_pack("{ss,s[{ss,s{ss},ss},{ss},{ss}]}", "type", "Sequence", "decoders", "type", "Replace",
                          "pattern", "String", SPACE, "content", " ", "type", "ByteFallback", "type", "Fuse");
    if (t->dummy_prefix)
        json_array_append_new(json_object_get(v, "decoders"),
                              json_pack("{ss,ss,si,si}", "type", "Strip", "content", " ", "start", 1, "stop", 0));
    return v;
}

int tokenizer_to_json(json_t **ret, const struct tokenizer *t, struct err *e)
{
    size_t n;
    if (!t->apart)
        return err_set(e, ERR_UNSUPPORTED, "a tokenizer.json cannot say what this SentencePiece model does: it is not "
                                           "BPE with byte fallback, or changes text before it is cut");
    json_t *merges = merges_of(t->spm);
    if (!merges) return err_set(e, ERR_NOMEM, "no memory for a tokenizer.json");
    json_t *root = json_pack("{ss,sn,sn,so}", "version", "1.0", "truncation", "padding", "added_tokens", added_of(t));
    set_spaces(root, t);
    json_object_set_new(root, "post_processor", around(t));
    json_object_set_new(root, "decoder", decoder_of(t));
    json_object_set_new(root, "model",
                        json_pack("{ss,sn,ss,sn,sn,sb,sb,so,so}", "type", "BPE", "dropout", "unk_token",
                                  spm_piece(t->spm, spm_unk(t->spm), &n), "continuing_subword_prefix",
                                  "end_of_word_suffix", "fuse_unk", 1, "byte_fallback", 1, "vocab",
                                  vocabulary_of(t->spm), "merges", merges));
    *ret = root;
    return 0;
}
