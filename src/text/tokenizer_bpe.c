/* A tokenizer.json made from a SentencePiece BPE model, turned back into one.
 *
 * Such a file lists pieces with ids, and merges in order of priority. SentencePiece wants a score a piece and
 * merges the pair whose whole has the highest: the negative rank of the first merge that makes a piece is
 * that score. What comes out is a serialized ModelProto (sentencepiece_model.proto), written field by field.
 */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/proto.h"
#include "text/tokenizer_in.h"

enum piece_type { PIECE_NORMAL = 1, PIECE_UNKNOWN = 2, PIECE_CONTROL = 3, PIECE_BYTE = 6 };

struct piece {
    const char *text; /* borrowed from the JSON; NULL: no such id */
    size_t n;
    float score;
    enum piece_type type;
};

struct bpe {
    const char *path;
    struct piece *piece;
    size_t n;
};

static const float SCORE_NONE = -1e7f; /* below any merge's */

static bool is_byte_piece(const char *s, size_t n)
{
    return n == 6 && memcmp(s, "<0x", 3) == 0 && s[5] == '>' && strspn(s + 3, "0123456789ABCDEF") == 2;
}

static int read_vocab(struct bpe *b, json_t *vocab, struct err *e)
{
    const char *key;
    json_t *v;
    b->n = json_object_size(vocab);
    if (b->n == 0 || b->n > TOKENIZER_ID_MAX)
        return err_set(e, ERR_LIMIT, "'%s' has %zu pieces, 1 to %d are accepted", b->path, b->n,
                       TOKENIZER_ID_MAX);
    b->piece = calloc(b->n, sizeof *b->piece);
    if (!b->piece) return err_set(e, ERR_NOMEM, "no memory for %zu pieces", b->n);
    json_object_foreach(vocab, key, v) {
        json_int_t id = json_is_integer(v) ? json_integer_value(v) : -1;
        if (id < 0 || (size_t)id >= b->n || b->piece[id].text)
            return err_set(e, ERR_FORMAT, "'%s': the id of piece '%.60s' is no number below %zu of its own",
                           b->path, key, b->n);
        size_t n = strlen(key);
        b->piece[id] =
            (struct piece){ key, n, SCORE_NONE, is_byte_piece(key, n) ? PIECE_BYTE : PIECE_NORMAL };
    }
    return 0;
}

/* A merge is ["l", "r"], or "l r" in files written before 2024. */
static bool merge_text(struct buf *b, const json_t *v)
{
    const char *l = json_string_value(json_array_get(v, 0)), *r = json_string_value(json_array_get(v, 1));
    buf_reset(b);
    if (json_is_string(v)) {
        l = json_string_value(v);
        r = strchr(l, ' ');
        if (!r) return false;
        buf_add(b, l, (size_t)(r - l));
        r++;
    } else {
        if (!l || !r) return false;
        buf_str(b, l);
    }
    buf_str(b, r);
    return true;
}

static int read_merges(struct bpe *b, const json_t *vocab, const json_t *merges, struct err *e)
{
    struct buf text = buf_make(1 << 20);
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < json_array_size(merges); i++) {
        if (!merge_text(&text, json_array_get(merges, i)) || text.failed) {
            rc = err_set(e, ERR_FORMAT, "'%s': merge %zu is not two pieces", b->path, i);
            break;
        }
        const json_t *id = json_object_get(vocab, text.p);
        if (!id) {
            rc = err_set(e, ERR_FORMAT, "'%s': merge %zu makes '%.60s', which is no piece", b->path, i,
                         text.p);
            break;
        }
        struct piece *p = &b->piece[json_integer_value(id)];
        if (p->score == SCORE_NONE) p->score = -(float)i;
    }
    buf_free(&text);
    return rc;
}

/* Tokens that are matched before the model runs must not come out of it. */
static void mark_added(struct bpe *b, const json_t *added)
{
    for (size_t i = 0; i < json_array_size(added); i++) {
        const json_t *id = json_object_get(json_array_get(added, i), "id");
        json_int_t k = json_is_integer(id) ? json_integer_value(id) : -1;
        if (k >= 0 && (size_t)k < b->n) b->piece[k].type = PIECE_CONTROL;
    }
}

/* Field numbers: ModelProto pieces 1 {piece 1, score 2, type 3}, trainer_spec 2 {model_type 3, vocab_size 4,
 * byte_fallback 35, unk_piece 45}, normalizer_spec 3 {name 1, add_dummy_prefix 3, remove_extra_whitespaces 4,
 * escape_whitespaces 5}. */
static int write_model(struct buf *out, const struct bpe *b, const char *unk, struct err *e)
{
    struct buf m = buf_make(TOKENIZER_FILE_MAX);
    for (size_t i = 0; i < b->n; i++) {
        buf_reset(&m);
        proto_bytes(&m, 1, b->piece[i].text, b->piece[i].n);
        proto_float(&m, 2, b->piece[i].score);
        proto_int(&m, 3, b->piece[i].type);
        proto_bytes(out, 1, m.p, m.n);
    }
    buf_reset(&m);
    proto_int(&m, 3, 2);
    proto_int(&m, 4, (int64_t)b->n);
    proto_int(&m, 35, 1);
    proto_text(&m, 45, unk);
    proto_bytes(out, 2, m.p, m.n);
    buf_reset(&m);
    proto_text(&m, 1, "identity");
    proto_int(&m, 3, 1);
    proto_int(&m, 4, 0);
    proto_int(&m, 5, 1);
    proto_bytes(out, 3, m.p, m.n);
    bool failed = m.failed;
    buf_free(&m);
    return failed ? err_set(e, ERR_LIMIT, "'%s' is too large", b->path) : buf_check(out, b->path, e);
}

static bool is_type(const json_t *step, const char *type)
{
    const char *s = json_string_value(json_object_get(step, "type"));
    return s && strcmp(s, type) == 0;
}

/* Only what stands for SentencePiece's own handling of spaces: anything else would change the text. */
static bool is_plain_step(const json_t *step)
{
    const json_t *steps = json_object_get(step, "normalizers");
    if (!step || json_is_null(step) || is_type(step, "Prepend") || is_type(step, "Metaspace")) return true;
    if (is_type(step, "Replace")) {
        const char *from = json_string_value(json_object_get(json_object_get(step, "pattern"), "String"));
        const char *to = json_string_value(json_object_get(step, "content"));
        return from && to && strcmp(from, " ") == 0 && strcmp(to, "\xe2\x96\x81") == 0;
    }
    for (size_t i = 0; i < json_array_size(steps); i++)
        if (!is_plain_step(json_array_get(steps, i))) return false;
    return is_type(step, "Sequence") && json_is_array(steps);
}

static int build(struct buf *out, const json_t *root, const char *path, struct err *e)
{
    const json_t *model = json_object_get(root, "model");
    const char *type = json_string_value(json_object_get(model, "type"));
    const char *unk = json_string_value(json_object_get(model, "unk_token"));
    json_t *vocab = json_object_get(model, "vocab");
    const json_t *id;
    struct bpe b = { .path = path };
    int rc;
    if (!json_is_object(vocab) || !type || strcmp(type, "BPE") != 0
        || !json_is_true(json_object_get(model, "byte_fallback")))
        return err_set(e, ERR_UNSUPPORTED,
                       "'%s' is a tokenizer of kind %.40s%s; only BPE with byte fallback, as made "
                       "from SentencePiece models, is read",
                       path, type ? type : "unknown",
                       type && strcmp(type, "BPE") == 0 ? " without byte fallback" : "");
    if (!is_plain_step(json_object_get(root, "normalizer"))
        || !is_plain_step(json_object_get(root, "pre_tokenizer")))
        return err_set(e, ERR_UNSUPPORTED, "'%s' changes text before it is cut in a way that is not handled",
                       path);
    if (!unk) unk = "<unk>";
    TRY(read_vocab(&b, vocab, e));
    TRY(read_merges(&b, vocab, json_object_get(model, "merges"), e));
    mark_added(&b, json_object_get(root, "added_tokens"));
    id = json_object_get(vocab, unk);
    if (!id) {
        rc = err_set(e, ERR_FORMAT, "'%s' has no piece '%.60s' for unknown text", path, unk);
        goto out;
    }
    b.piece[json_integer_value(id)].type = PIECE_UNKNOWN;
    rc = write_model(out, &b, unk, e);
out:
    free(b.piece);
    return rc;
}

int tokenizer_bpe_model(struct buf *model, const char *path, struct err *e)
{
    char *text;
    size_t n;
    json_error_t je;
    int rc = file_read(&text, &n, path, TOKENIZER_FILE_MAX, e);
    if (rc < 0) return rc;
    json_t *root = json_loadb(text, n, 0, &je);
    if (root) rc = build(model, root, path, e);
    else rc = err_set(e, ERR_FORMAT, "cannot parse '%s', line %d: %s", path, je.line, je.text);
    json_decref(root);
    free(text);
    return rc;
}
