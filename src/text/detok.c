/* Decoding (detok.h): transformers' two layers, and SentencePiece's below, as one state machine.
 *
 * transformers cuts the ids at added tokens that are neither bos, eos, unk nor pad and joins the parts by
 * spaces (_decode); in a part it drops the first piece's space and puts special tokens in literally, each
 * starting a new SentencePiece run (convert_tokens_to_string). SentencePiece drops the space of a run's first
 * piece where the model adds one when encoding, and joins byte pieces.
 */
#include "text/detok.h"

#include <stdlib.h>
#include <string.h>

#include "text/tokenizer_in.h"

static void run_begin(struct detok *d)
{
    d->at_start = true;
    d->space_seen = false;
    d->n_run = 0;
}

void detok_init(struct detok *d, const struct tokenizer *t, bool skip_special)
{
    *d = (struct detok){ .t = t, .skip_special = skip_special };
    run_begin(d);
}

void detok_follow(struct detok *d)
{
    d->any = d->in_segment = true;
    d->n_tokens = d->n_text = 1;
    d->at_start = false;
}

static void emit(struct detok *d, struct buf *out, const char *p, size_t n)
{
    buf_add(out, p, n);
    d->n_text += n;
    d->n_run += n;
}

static void emit_bad(struct detok *d, struct buf *out, size_t n_bytes)
{
    for (size_t i = 0; i < n_bytes; i++) emit(d, out, "\xef\xbf\xbd", 3);
}

void detok_end(struct detok *d, struct buf *out)
{
    emit_bad(d, out, d->n_held);
    d->n_held = 0;
}

static void push_byte(struct detok *d, char byte, struct buf *out)
{
    uint32_t cp;
    size_t len;
    d->held[d->n_held++] = byte;
    while (d->n_held) {
        enum utf8_kind kind = utf8_next(d->held, d->n_held, &cp, &len);
        if (kind == UTF8_SHORT) return;
        if (kind == UTF8_BAD) {
            len = 1;
            emit_bad(d, out, 1);
        } else {
            emit(d, out, d->held, len);
        }
        d->n_held -= len;
        memmove(d->held, d->held + len, d->n_held);
    }
}

/* U+2581 becomes a space. */
static void emit_piece(struct detok *d, struct buf *out, struct span s)
{
    const struct span space = { "\xe2\x96\x81", 3 };
    for (size_t i = 0, next; i < s.n; i = next + 3) {
        next = span_find(s, i, space);
        emit(d, out, s.p + i, next - i);
        if (next == s.n) break;
        emit(d, out, " ", 1);
    }
}

static bool drop_space(struct span *s)
{
    if (s->n < 3 || memcmp(s->p, "\xe2\x96\x81", 3) != 0) return false;
    *s = (struct span){ s->p + 3, s->n - 3 };
    return true;
}

static void push_piece(struct detok *d, int32_t id, struct buf *out)
{
    const struct spm *spm = d->t->spm;
    struct span s, whole;
    s.p = spm_piece(spm, id, &s.n);
    whole = s;
    /* The very first piece loses its space; what is left is another piece, or text as it is. */
    if (d->n_tokens == 0 && drop_space(&s)) id = spm_find(spm, s.p, s.n);
    enum spm_kind kind = spm_kind(spm, id);
    if (kind == SPM_BYTE) {
        push_byte(d, (char)strtol(s.p + 3, NULL, 16), out);
        return;
    }
    detok_end(d, out);
    if (d->space_seen || d->n_run) d->at_start = false;
    d->space_seen = false;
    if (kind == SPM_CONTROL) return;
    if (kind == SPM_UNKNOWN) {
        if (s.p == whole.p) emit_piece(d, out, span_of(spm_unk_text(spm)));
        else emit(d, out, s.p, s.n);
        return;
    }
    bool prefix = d->t->info.mode != TOKENIZER_NEW && d->t->dummy_prefix;
    if (d->at_start && (prefix || d->t->squeeze)) d->space_seen = drop_space(&s) && !d->t->squeeze;
    emit_piece(d, out, s);
}

/* In legacy mode the text between two special tokens gets a space in front. */
static void insert_space(struct detok *d, struct buf *out)
{
    size_t run = d->n_run;
    buf_chr(out, ' ');
    if (out->failed) return;
    memmove(out->p + out->n - run, out->p + out->n - run - 1, run);
    out->p[out->n - 1 - run] = ' ';
    d->n_text++;
}

/* bos, eos, unk and pad among other text. */
static void push_named(struct detok *d, const struct added *a, struct buf *out)
{
    detok_end(d, out);
    if (d->t->info.mode == TOKENIZER_LEGACY && !d->after_special && d->n_tokens) insert_space(d, out);
    emit(d, out, a->text, a->n);
    d->after_special = true;
    run_begin(d);
}

static void push_apart(struct detok *d, const struct added *a, struct buf *out)
{
    detok_end(d, out);
    /* A segment without text leaves no trace; the space in front of it serves the next one. */
    if (d->in_segment ? d->n_text > 0 : d->any) buf_chr(out, ' ');
    buf_add(out, a->text, a->n);
    d->any = true;
    d->in_segment = false;
}

void detok_push(struct detok *d, int32_t id, struct buf *out)
{
    const struct added *a = tokenizer_added(d->t, id);
    if (a ? a->special && d->skip_special : id < 0 || id >= d->t->info.n_pieces) return;
    if (a && !a->named) {
        push_apart(d, a, out);
        return;
    }
    if (!d->in_segment) {
        d->in_segment = true;
        d->n_tokens = d->n_text = 0;
        d->after_special = false;
        run_begin(d);
        if (d->any) buf_chr(out, ' ');
    }
    if (a) {
        push_named(d, a, out);
    } else {
        push_piece(d, id, out);
        d->after_special = false;
    }
    d->n_tokens++;
}

void tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n, bool skip_special,
                      struct buf *out)
{
    struct detok d;
    struct buf text = buf_make(SIZE_MAX);
    detok_init(&d, t, skip_special);
    for (size_t i = 0; i < n; i++) detok_push(&d, ids[i], &text);
    detok_end(&d, &text);
    if (text.n) buf_add(out, text.p, text.n);
    out->failed = out->failed || text.failed;
    buf_free(&text);
}

void tokenizer_bytes(const struct tokenizer *t, int32_t id, struct buf *out)
{
    const struct added *a = tokenizer_added(t, id);
    struct detok d = { .t = t };
    struct span s;
    if (a) {
        buf_add(out, a->text, a->n);
        return;
    }
    if (id < 0 || id >= t->info.n_pieces) return;
    s.p = spm_piece(t->spm, id, &s.n);
    if (spm_kind(t->spm, id) == SPM_BYTE) buf_chr(out, (char)strtol(s.p + 3, NULL, 16));
    else emit_piece(&d, out, s);
}
