/* Encoding, and the life of a tokenizer. Reading the JSON files is tokenizer_config.c, decoding detok.c. */
#include "text/tokenizer.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "text/tokenizer_in.h"

static const char SPACE_PIECE[] = "\xe2\x96\x81"; /* U+2581, SentencePiece's space */

/* ---- the model's own settings */

struct wire {
    const unsigned char *p, *end;
};

static bool wire_varint(struct wire *w, uint64_t *v)
{
    *v = 0;
    for (int shift = 0; shift < 64 && w->p < w->end; shift += 7) {
        unsigned char c = *w->p++;
        *v |= (uint64_t)(c & 0x7f) << shift;
        if (!(c & 0x80)) return true;
    }
    return false;
}

/* The next field of a protobuf message: its number, and its value or bytes. */
static bool wire_next(struct wire *w, uint64_t *field, uint64_t *value, struct wire *bytes)
{
    uint64_t key;
    if (w->p == w->end || !wire_varint(w, &key)) return false;
    *field = key >> 3;
    *value = 0;
    *bytes = (struct wire){ w->p, w->p };
    if ((key & 7) == 0) return wire_varint(w, value);
    if ((key & 7) == 2 && !wire_varint(w, value)) return false;
    uint64_t n = (key & 7) == 2 ? *value : (key & 7) == 1 ? 8 : (key & 7) == 5 ? 4 : UINT64_MAX;
    if (n > (uint64_t)(w->end - w->p)) return false;
    *bytes = (struct wire){ w->p, w->p + n };
    w->p += n;
    return true;
}

/* Settings that matter here, by message and field of sentencepiece_model.proto; first as they are if it is silent. */
static void read_settings(struct tokenizer *t, const void *model, size_t n)
{
    enum { TRAINER_SPEC = 2, NORMALIZER_SPEC = 3, BPE = 2 };
    struct wire w = { model, (const unsigned char *)model + n }, in, bytes;
    uint64_t part, field, value;
    uint64_t kind = 1, fallback = 0, suffix = 0, prefix = 1, squeeze = 1, escape = 1;
    const struct { uint64_t part, field, *to; } rows[] = {
        { TRAINER_SPEC, 3, &kind },       { TRAINER_SPEC, 24, &suffix },   { TRAINER_SPEC, 35, &fallback },
        { NORMALIZER_SPEC, 3, &prefix },  { NORMALIZER_SPEC, 4, &squeeze }, { NORMALIZER_SPEC, 5, &escape },
    };
    bool mapped = false;
    while (wire_next(&w, &part, &value, &in)) {
        while ((part == TRAINER_SPEC || part == NORMALIZER_SPEC) && wire_next(&in, &field, &value, &bytes)) {
            for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
                if (rows[i].part == part && rows[i].field == field) *rows[i].to = value;
            mapped = mapped || (part == NORMALIZER_SPEC && field == 2 && bytes.p != bytes.end);
        }
    }
    t->dummy_prefix = prefix;
    t->squeeze = squeeze;
    t->apart = kind == BPE && fallback && !suffix && escape && !squeeze && !mapped;
}

/* Opens the model twice: as it is, and with add_dummy_prefix off. A message that is repeated in a protobuf
 * file is merged field by field, so four bytes at the end change that one setting. */
static int open_models(struct tokenizer *t, const char *model, size_t n, const char *path, struct err *e)
{
    static const char no_prefix[] = { 0x1a, 0x02, 0x18, 0x00 };
    char msg[256];
    struct buf b = buf_make(TOKENIZER_FILE_MAX + sizeof no_prefix);
    int rc = 0;
    buf_add(&b, model, n);
    buf_add(&b, no_prefix, sizeof no_prefix);
    TRY(buf_check(&b, path, e));
    read_settings(t, model, n);
    if (spm_open(&t->spm_prefix, model, n, msg, sizeof msg) < 0
        || spm_open(&t->spm, b.p, b.n, msg, sizeof msg) < 0)
        rc = err_set(e, ERR_FORMAT, "cannot read '%s' as a SentencePiece model: %s", path, msg);
    if (rc == 0 && spm_size(t->spm) > TOKENIZER_ID_MAX)
        rc = err_set(e, ERR_LIMIT, "'%s' has %d pieces, at most %d are accepted", path, spm_size(t->spm),
                     TOKENIZER_ID_MAX);
out:
    buf_free(&b);
    return rc;
}

/* ---- added tokens */

const struct added *tokenizer_added(const struct tokenizer *t, int32_t id)
{
    if (id < 0 || id >= t->info.size || t->added_of[id] < 0) return NULL;
    return &t->added[t->added_of[id]];
}

static int32_t find_added(const struct tokenizer *t, const char *text, size_t n)
{
    for (size_t i = t->n_added; i-- > 0;)
        if (t->added[i].n == n && memcmp(t->added[i].text, text, n) == 0) return t->added[i].id;
    return -1;
}

static int32_t find_piece(const struct tokenizer *t, const char *text, size_t n)
{
    int32_t id = spm_find(t->spm, text, n);
    size_t m;
    if (id != spm_unk(t->spm)) return id;
    const char *unk = spm_piece(t->spm, id, &m);
    return m == n && memcmp(unk, text, n) == 0 ? id : -1;
}

static int grow_ids(struct tokenizer *t, int32_t size, struct err *e)
{
    int32_t *p = realloc(t->added_of, (size_t)size * sizeof *p);
    if (!p) return err_set(e, ERR_NOMEM, "no memory for %d token ids", size);
    for (int32_t i = t->info.size; i < size; i++) p[i] = -1;
    t->added_of = p;
    t->info.size = size;
    return 0;
}

static int grow_added(struct tokenizer *t, struct err *e)
{
    if (t->n_added == TOKENIZER_ADDED_MAX)
        return err_set(e, ERR_LIMIT, "more than %d added tokens", TOKENIZER_ADDED_MAX);
    if (t->n_added < t->cap_added) return 0;
    size_t cap = t->cap_added ? 2 * t->cap_added : 16;
    struct added *p = realloc(t->added, cap * sizeof *p);
    if (!p) return err_set(e, ERR_NOMEM, "no memory for added tokens");
    t->added = p;
    t->cap_added = cap;
    return 0;
}

int32_t tokenizer_put(struct tokenizer *t, const struct added *a, struct err *e)
{
    int rc;
    int32_t id = a->id >= 0 ? a->id : find_added(t, a->text, a->n);
    if (a->n == 0 || a->n > TOKENIZER_TOKEN_MAX)
        return err_set(e, ERR_LIMIT, "an added token has %zu bytes, 1 to %d are accepted", a->n,
                       TOKENIZER_TOKEN_MAX);
    if (id < 0) id = find_piece(t, a->text, a->n);
    if (id < 0) id = t->info.size;
    if (id >= TOKENIZER_ID_MAX)
        return err_set(e, ERR_LIMIT, "added token '%s' has id %d, ids below %d are accepted", a->text, id,
                       TOKENIZER_ID_MAX);
    if (id >= t->info.size && (rc = grow_ids(t, id + 1, e)) < 0) return rc;
    if ((rc = grow_added(t, e)) < 0) return rc;
    char *text = malloc(a->n + 1);
    if (!text) return err_set(e, ERR_NOMEM, "no memory for added token '%s'", a->text);
    memcpy(text, a->text, a->n + 1);
    if (t->added_of[id] < 0) t->added_of[id] = (int32_t)t->n_added++;
    else free(t->added[t->added_of[id]].text);
    struct added *slot = &t->added[t->added_of[id]];
    *slot = *a;
    slot->text = text;
    slot->id = id;
    if (a->n > t->longest) t->longest = a->n;
    t->whole = t->whole || strchr(text + 1, ' ');
    t->strips = t->strips || a->lstrip || a->rstrip;
    t->starts[(unsigned char)text[0]] = 1;
    return id;
}

int32_t tokenizer_add(struct tokenizer *t, const char *text, bool special, struct err *e)
{
    size_t n = strlen(text);
    int32_t id = find_added(t, text, n);
    if (id >= 0) return id;
    char *copy = malloc(n + 1);
    if (!copy) return err_set(e, ERR_NOMEM, "no memory for added token '%s'", text);
    memcpy(copy, text, n + 1);
    id = tokenizer_put(t, &(struct added){ .text = copy, .n = n, .id = -1, .special = special }, e);
    free(copy);
    return id;
}

int32_t tokenizer_find(const struct tokenizer *t, const char *token)
{
    int32_t id = find_added(t, token, strlen(token));
    return id >= 0 ? id : find_piece(t, token, strlen(token));
}

bool tokenizer_is_special(const struct tokenizer *t, int32_t id)
{
    const struct added *a = tokenizer_added(t, id);
    return a && a->special;
}

const struct tokenizer_info *tokenizer_info(const struct tokenizer *t)
{
    return &t->info;
}

void tokenizer_set_mode(struct tokenizer *t, enum tokenizer_mode mode)
{
    t->info.mode = mode;
}

/* ---- opening */

static void put_id(void *ctx, int32_t id)
{
    ids_add(ctx, id);
}

/* What tokenizer_enough and words.c need to know of the pieces. alone: see words_new. */
static void measure_pieces(struct tokenizer *t, bool alone[128])
{
    static const struct span space = { "\u2581", 3 };
    memset(alone, true, 128);
    alone[' '] = false;
    for (int32_t id = 0; id < t->info.n_pieces; id++) {
        struct span s;
        s.p = spm_piece(t->spm, id, &s.n);
        size_t spaces = 0, at = 0;
        for (; (at = span_find(s, at, space)) < s.n; at += space.n) t->whole = t->whole || at != space.n * spaces++;
        if (s.n - 2 * spaces > t->longest) t->longest = s.n - 2 * spaces;
        const enum spm_kind kind = spm_kind(t->spm, id);
        for (size_t i = 0; i < s.n && s.n > 1 && (kind == SPM_NORMAL || kind == SPM_UNUSED); i++)
            if ((unsigned char)s.p[i] < 128) alone[(unsigned char)s.p[i]] = false;
    }
}

size_t tokenizer_enough(const struct tokenizer *t, const char *text, size_t n, size_t n_ids)
{
    const char inside = '\x81'; /* a U+2581 of the text's own is a space too: its last byte */
    if (t->whole || t->squeeze || n / t->longest <= n_ids) return n;
    for (size_t i = n_ids * t->longest; i < n; i++)
        if (text[i] == ' ' && i > 0 && text[i - 1] != ' ' && text[i - 1] != inside) return i;
    return n;
}

size_t tokenizer_least(const struct tokenizer *t, const char *text, size_t n)
{
    static const struct span space = { SPACE_PIECE, 3 };
    size_t bytes = n;
    if (!t->apart || t->strips) return 0;
    /* A U+2581 of the text's own stands for a space, of which `longest` counts one byte; the new mode drops one. */
    for (size_t at = 0; (at = span_find((struct span){ text, n }, at, space)) < n; at += space.n) bytes -= space.n - 1;
    return bytes / t->longest - (bytes >= t->longest);
}

/* The steps that follow once the model's bytes are at hand; dir NULL: no other files. */
static int open_from(struct tokenizer **ret, const char *model, size_t n, const char *path, const char *dir,
                     enum tokenizer_mode mode, struct err *e)
{
    struct ids unk = ids_make(64);
    bool alone[128];
    struct tokenizer *t = calloc(1, sizeof *t);
    int rc;
    if (!t) return err_set(e, ERR_NOMEM, "no memory for a tokenizer");
    t->info =
        (struct tokenizer_info){ .mode = mode, .bos = -1, .eos = -1, .unk = -1, .pad = -1, .add_bos = true };
    TRY(open_models(t, model, n, path, e));
    t->info.n_pieces = spm_size(t->spm);
    TRY(grow_ids(t, t->info.n_pieces, e));
    measure_pieces(t, alone);
    if (t->apart && !t->whole && !(t->words = words_new(t->spm_prefix, t->spm, alone)))
        TRY(err_set(e, ERR_NOMEM, "no memory for a tokenizer"));
    TRY(tokenizer_read_config(t, dir, e));
    t->info.image = find_added(t, "<image>", 7);
    const struct added *a = tokenizer_added(t, t->info.unk);
    if (spm_encode(t->spm, a->text, a->n, put_id, &unk) < 0) {
        rc = err_set(e, ERR_NOMEM, "no memory for a tokenizer");
        goto out;
    }
    TRY(ids_check(&unk, "the unk token", e));
    t->unk_len = unk.n;
    *ret = t;
    t = NULL;
    rc = 0;
out:
    ids_free(&unk);
    tokenizer_close(t);
    return rc;
}

int tokenizer_open_model(struct tokenizer **ret, const char *path, enum tokenizer_mode mode, struct err *e)
{
    char *model = NULL;
    size_t n;
    int rc = file_read(&model, &n, path, TOKENIZER_FILE_MAX, e);
    if (rc < 0) return rc;
    rc = open_from(ret, model, n, path, NULL, mode, e);
    free(model);
    return rc;
}

int tokenizer_open(struct tokenizer **ret, const char *dir, struct err *e)
{
    struct buf path = buf_make(1 << 16), json = buf_make(1 << 16), built = buf_make(TOKENIZER_FILE_MAX);
    char *model = NULL;
    size_t n;
    int rc;
    buf_fmt(&path, "%s/tokenizer.model", dir);
    buf_fmt(&json, "%s/tokenizer.json", dir);
    TRY(buf_check(&path, "a path", e));
    TRY(buf_check(&json, "a path", e));
    if (access(path.p, F_OK) == 0) {
        TRY(file_read(&model, &n, path.p, TOKENIZER_FILE_MAX, e));
        rc = open_from(ret, model, n, path.p, dir, TOKENIZER_LEGACY, e);
    } else if (access(json.p, F_OK) == 0) {
        TRY(tokenizer_bpe_model(&built, json.p, e));
        rc = open_from(ret, built.p, built.n, json.p, dir, TOKENIZER_LEGACY, e);
    } else {
        rc = err_set(e, ERR_MISSING, "'%s' has neither tokenizer.model nor tokenizer.json", dir);
    }
out:
    free(model);
    buf_free(&path);
    buf_free(&json);
    buf_free(&built);
    return rc;
}

void tokenizer_close(struct tokenizer *t)
{
    if (!t) return;
    for (size_t i = 0; i < t->n_added; i++) free(t->added[i].text);
    free(t->added);
    free(t->added_of);
    words_free(t->words);
    spm_close(t->spm);
    spm_close(t->spm_prefix);
    free(t);
}

/* ---- encoding */

/* The longest added token at the start of s, NULL: none. */
static const struct added *match_added(const struct tokenizer *t, struct span s)
{
    const struct added *best = NULL;
    if (!t->starts[(unsigned char)s.p[0]]) return NULL;
    for (size_t i = 0; i < t->n_added; i++) {
        const struct added *a = &t->added[i];
        if (a->n <= s.n && memcmp(a->text, s.p, a->n) == 0 && (!best || a->n >= best->n)) best = a;
    }
    return best;
}

static bool starts_with(struct span s, const char *prefix)
{
    size_t n = strlen(prefix);
    return s.n >= n && memcmp(s.p, prefix, n) == 0;
}

/* prefix: with SentencePiece's own space in front */
static int encode_spm(const struct tokenizer *t, bool prefix, struct span s, struct ids *out, struct err *e)
{
    const int rc = t->words ? words_encode(t->words, s, prefix, out)
                            : spm_encode(prefix ? t->spm_prefix : t->spm, s.p, s.n, put_id, out);
    return rc == 0 ? 0 : err_set(e, ERR_NOMEM, "no memory to encode %zu bytes", s.n);
}

/* New mode: SentencePiece may drop or change a space at the start, so one is encoded behind the unk token's
 * text, whose ids are then cut off. */
static int encode_new(const struct tokenizer *t, struct span s, struct ids *out, struct err *e)
{
    if (!starts_with(s, SPACE_PIECE) && !starts_with(s, " ")) return encode_spm(t, false, s, out, e);
    const struct added *unk = tokenizer_added(t, t->info.unk);
    struct buf b = buf_make(SIZE_MAX);
    size_t at = out->n;
    int rc;
    buf_add(&b, unk->text, unk->n);
    buf_add(&b, s.p, s.n);
    TRY(buf_check(&b, "text", e));
    TRY(encode_spm(t, false, (struct span){ b.p, b.n }, out, e));
    if (!out->failed && out->n - at >= t->unk_len) {
        out->n -= t->unk_len;
        memmove(out->p + at, out->p + at + t->unk_len, (out->n - at) * sizeof *out->p);
    }
out:
    buf_free(&b);
    return rc;
}

/* Text after a special token in transformers 4.31: encoded with a space in front that is then cut off the
 * first piece. */
static int encode_431(const struct tokenizer *t, struct span s, struct ids *out, struct err *e)
{
    size_t at = out->n, n;
    bool first = starts_with(s, SPACE_PIECE);
    if (first) s = (struct span){ s.p + 3, s.n - 3 };
    int rc = encode_spm(t, true, s, out, e);
    if (rc < 0 || out->failed || first || starts_with(s, " ") || out->n == at) return rc;
    const char *piece = spm_piece(t->spm, out->p[at], &n);
    if (!starts_with((struct span){ piece, n }, SPACE_PIECE)) return 0;
    if (n > 3) {
        out->p[at] = spm_find(t->spm, piece + 3, n - 3);
        return 0;
    }
    out->n--;
    memmove(out->p + at, out->p + at + 1, (out->n - at) * sizeof *out->p);
    return 0;
}

static int encode_plain(const struct tokenizer *t, struct span s, struct ids *out, struct err *e)
{
    if (s.n == 0) return 0;
    if (t->info.mode == TOKENIZER_NEW) return encode_new(t, s, out, e);
    if (t->info.mode == TOKENIZER_431) return encode_431(t, s, out, e);
    return encode_spm(t, true, s, out, e);
}

/* Cuts s at added tokens and encodes the parts. A space in front of all the text is no token of its own where
 * a special token follows at once. */
static int encode_parts(const struct tokenizer *t, struct span s, struct ids *out, struct err *e)
{
    const char *begin = s.p, *end = s.p + s.n;
    const struct added *before = NULL, *a = NULL;
    for (const char *p = s.p; p <= end; p += a ? a->n : 1) {
        a = p < end ? match_added(t, (struct span){ p, (size_t)(end - p) }) : NULL;
        if (!a && p < end) continue;
        struct span part = { begin, (size_t)(p - begin) };
        if (before && before->rstrip) part = span_lstrip(part);
        if (a && a->lstrip) part = span_rstrip(part);
        bool lone =
            t->info.mode == TOKENIZER_NEW && begin == s.p && part.n == 3 && starts_with(part, SPACE_PIECE);
        if (!(lone && a && a->special)) {
            int rc = encode_plain(t, part, out, e);
            if (rc < 0) return rc;
        }
        if (!a) break;
        ids_add(out, a->id);
        before = a;
        begin = p + a->n;
    }
    return 0;
}

/* The new modes put a space in front once, and read U+2581 in the text as a space. */
static int add_prefix(struct buf *b, struct span s, struct err *e)
{
    const struct span from = { SPACE_PIECE, 3 };
    buf_add(b, SPACE_PIECE, 3);
    for (size_t i = 0, next; i < s.n; i = next + 3) {
        next = span_find(s, i, from);
        buf_add(b, s.p + i, next - i);
        if (next == s.n) break;
        buf_chr(b, ' ');
    }
    return buf_check(b, "text", e);
}

int tokenizer_encode_text(const struct tokenizer *t, const char *text, size_t n, struct ids *out,
                          struct err *e)
{
    struct buf b = buf_make(SIZE_MAX);
    struct span s = { text, n };
    int rc;
    if (n == 0) return 0;
    TRY(text_check_utf8(text, n, "text", e));
    if (t->info.mode != TOKENIZER_LEGACY) {
        TRY(add_prefix(&b, s, e));
        s = (struct span){ b.p, b.n };
    }
    TRY(encode_parts(t, s, out, e));
    TRY(ids_check(out, "text", e));
out:
    buf_free(&b);
    return rc;
}

int tokenizer_encode(const struct tokenizer *t, const char *text, size_t n, struct ids *out, struct err *e)
{
    if (t->info.add_bos && t->info.bos >= 0) ids_add(out, t->info.bos);
    int rc = tokenizer_encode_text(t, text, n, out, e);
    if (rc < 0) return rc;
    if (t->info.add_eos && t->info.eos >= 0) ids_add(out, t->info.eos);
    return ids_check(out, "text", e);
}

/* llava-hf: "<image>" is a token like others. */
static int encode_own_image(const struct tokenizer *t, const char *text, size_t n, struct ids *out,
                            struct err *e)
{
    size_t at = out->n;
    int rc = tokenizer_encode(t, text, n, out, e);
    for (; rc == 0 && at < out->n; at++)
        if (out->p[at] == t->info.image) out->p[at] = IDS_IMAGE;
    return rc;
}

int tokenizer_encode_prompt(const struct tokenizer *t, const char *text, size_t n, struct ids *out,
                            struct err *e)
{
    if (t->info.image >= 0) return encode_own_image(t, text, n, out, e);
    const struct span s = { text, n }, image = span_of("<image>");
    struct ids part = ids_make(out->max);
    size_t skip = 0;
    int rc = 0;
    TRY(text_check_utf8(text, n, "the prompt", e));
    for (size_t i = 0, next; i <= n; i = next + image.n) {
        next = span_find(s, i, image);
        ids_reset(&part);
        TRY(tokenizer_encode(t, text + i, next - i, &part, e));
        /* As the reference: whether the first part starts with BOS decides what is cut from every part. */
        if (i == 0 && part.n && part.p[0] == t->info.bos) {
            ids_add(out, t->info.bos);
            skip = 1;
        }
        if (i) ids_add(out, IDS_IMAGE);
        if (part.n > skip) ids_add_n(out, part.p + skip, part.n - skip);
        if (next == n) break;
    }
    TRY(ids_check(out, "the prompt", e));
out:
    ids_free(&part);
    return rc;
}
