/* Labels by construction: see supervise.h. */
#include "text/supervise.h"

#include <stdlib.h>
#include <string.h>

enum { SAMPLE_MAX = 64 << 20, TURNS_MAX = 1 << 16 }; /* bytes, turns of a sample */

static const struct span IMAGE = { "<image>", 7 };

/* Adds s with every "<image>" replaced. */
static void add_replaced(struct buf *out, struct span s, const char *by)
{
    for (size_t i = 0, next; i < s.n; i = next + IMAGE.n) {
        next = span_find(s, i, IMAGE);
        buf_add(out, s.p + i, next - i);
        if (next == s.n) break;
        buf_str(out, by);
    }
}

static void move_to_front(struct span value, struct buf *out)
{
    struct buf rest = buf_make(SAMPLE_MAX);
    add_replaced(&rest, value, "");
    struct span text = span_strip((struct span){ rest.p ? rest.p : "", rest.n });
    /* Taking "<image>" out can leave another behind, as in "<im<image>age>": it is replaced as well. */
    buf_str(out, "<image>");
    if (text.n) buf_chr(out, '\n');
    buf_add(out, text.p, text.n);
    out->failed = out->failed || rest.failed;
    buf_free(&rest);
}

void supervise_picture(const struct supervise *s, struct span value, size_t n_images, struct buf *out)
{
    struct buf moved = buf_make(SAMPLE_MAX);
    const bool tag = conv_is_mmtag(s->tpl) && span_find(value, 0, IMAGE) < value.n;
    if (n_images == 1 && span_find(value, 0, IMAGE) < value.n) {
        move_to_front(value, &moved);
        value = (struct span){ moved.p, moved.n };
    }
    const char *by = s->im_start_end ? "<im_start><image><im_end>" : "<image>";
    if (tag) by = s->im_start_end ? "<Image><im_start><image><im_end></Image>" : "<Image><image></Image>";
    add_replaced(out, value, by);
    out->failed = out->failed || moved.failed;
    buf_free(&moved);
}

static bool is(struct span s, const char *word)
{
    return s.n == strlen(word) && memcmp(s.p, word, s.n) == 0;
}

/* As str.lower() == word, for ASCII words. */
static bool is_folded(struct span s, const char *word)
{
    if (s.n != strlen(word)) return false;
    for (size_t i = 0; i < s.n; i++) {
        char c = s.p[i];
        if ((c >= 'A' && c <= 'Z' ? c + 32 : c) != word[i]) return false;
    }
    return true;
}

static int encode_whole(const struct supervise *s, struct span text, size_t n_images, struct ids *out, struct err *e)
{
    return n_images ? tokenizer_encode_prompt(s->tokenizer, text.p, text.n, out, e)
                    : tokenizer_encode(s->tokenizer, text.p, text.n, out, e);
}

/* The ids of a text to the empty list `out`; of those beyond max_length, one at least. */
static int encode(const struct supervise *s, struct span text, size_t n_images, struct ids *out, struct err *e)
{
    size_t enough = text.n;
    if (s->max_length) enough = tokenizer_enough(s->tokenizer, text.p, text.n, s->max_length + 1);
    int rc = encode_whole(s, (struct span){ text.p, enough }, n_images, out, e);
    if (rc < 0 || enough == text.n || out->n > s->max_length) return rc;
    ids_reset(out);
    return encode_whole(s, text, n_images, out, e);
}

/* Labels [from, to) are learned. Returns whether max_length will take some of them. */
static bool learn(const struct supervise *s, const struct ids *ids, struct ids *labels, size_t from, size_t to)
{
    for (size_t i = from; i < to && i < ids->n; i++) labels->p[i] = ids->p[i];
    return s->max_length && to > s->max_length;
}

static int ignore_all(const struct ids *ids, struct ids *labels, struct err *e)
{
    for (size_t i = 0; i < ids->n; i++) ids_add(labels, IDS_IGNORE);
    return ids_check(labels, "the labels", e);
}

/* ---- templates with roles */

/* Builds the conversation; a first turn that is not the user's is left out. */
static int build_conv(struct conv *c, const struct supervise *s, const struct turn *turn, size_t n,
                      size_t n_images, struct err *e)
{
    struct buf text = buf_make(SAMPLE_MAX);
    int rc = 0;
    size_t first = n && is(turn[0].from, "gpt");
    for (size_t i = first; i < n; i++) {
        enum conv_role role = (i - first) % 2 ? CONV_ASSISTANT : CONV_USER;
        if (!is(turn[i].from, role == CONV_USER ? "human" : "gpt")) {
            rc = err_set(e, ERR_FORMAT, "turn %zu is from '%.*s', not from '%s'", i,
                         (int)(turn[i].from.n < 40 ? turn[i].from.n : 40), turn[i].from.p,
                         role == CONV_USER ? "human" : "gpt");
            break;
        }
        buf_reset(&text);
        if (n_images) supervise_picture(s, turn[i].value, n_images, &text);
        else buf_add(&text, turn[i].value.p, turn[i].value.n);
        TRY(buf_check(&text, "a turn", e));
        TRY(conv_add(c, role, text.p ? text.p : "", text.n, false, e));
    }
out:
    buf_free(&text);
    return rc;
}

/* Walks through a prompt: `byte` is the end of a special token, `token` the id that follows it. */
struct cursor {
    size_t byte, token;
    struct span special; /* the token's text; n 0: none yet */
};

/* The token at byte `to` of the prompt, which must be where a token ends: encodes the text since the cursor,
 * behind the special token that the cursor stands after, so that the text comes out as it does in the whole.
 * */
static int token_at(const struct supervise *s, const struct cursor *at, struct span prompt, size_t to,
                    size_t n_images, size_t *ret, struct err *e)
{
    const struct tokenizer_info *info = tokenizer_info(s->tokenizer);
    struct buf text = buf_make(SAMPLE_MAX);
    struct ids ids = ids_make(IDS_MAX);
    int rc;
    buf_add(&text, at->special.p, at->special.n);
    buf_add(&text, prompt.p + at->byte, to - at->byte);
    TRY(buf_check(&text, "a sample", e));
    TRY(encode(s, (struct span){ text.p, text.n }, n_images, &ids, e));
    *ret = at->token + ids.n - (info->add_eos ? 1 : 0);
    /* At the start BOS is part of the prompt; later it is not, and the special token has been counted
     * already. */
    if (at->special.n) *ret -= 1 + (info->add_bos && info->bos >= 0 ? 1 : 0);
out:
    buf_free(&text);
    ids_free(&ids);
    return rc;
}

/* The place behind the stop token that ends an answer, looked up in the ids from `from` on: 0 where max_length has cut
 * it off, or where the answer has the stop's text itself, so that the first is not the last. */
static size_t stop_behind(struct span prompt, const struct conv_span *answer, struct span stop, int32_t stop_id,
                          const struct ids *ids, size_t from)
{
    const struct span said = { prompt.p + answer->begin, answer->end - answer->begin };
    if (said.n < stop.n || span_find(said, 0, stop) != said.n - stop.n) return 0;
    while (from < ids->n && ids->p[from] != stop_id) from++;
    return from < ids->n ? from + 1 : 0;
}

static int learn_answers(const struct supervise *s, const struct conv *c, const struct conv_span *span,
                         struct span prompt, size_t n_images, const struct ids *ids, struct ids *labels,
                         struct err *e)
{
    const struct span stop = span_of(conv_stop(c->tpl));
    const int32_t stop_id = tokenizer_find(s->tokenizer, stop.p);
    const bool special = tokenizer_is_special(s->tokenizer, stop_id);
    struct cursor at = { 0 };
    int cut = 0;
    for (size_t i = 1; i < c->n; i += 2) {
        size_t from, to;
        int rc;
        if (c->message[i].n == 0) continue;
        if ((rc = token_at(s, &at, prompt, span[i].begin, n_images, &from, e)) < 0) return rc;
        to = special ? stop_behind(prompt, &span[i], stop, stop_id, ids, from) : 0;
        if (!to && (rc = token_at(s, &at, prompt, span[i].end, n_images, &to, e)) < 0) return rc;
        cut += learn(s, ids, labels, from, to);
        if (special) at = (struct cursor){ span[i].end, to, stop };
    }
    return cut;
}

static int supervise_roles(const struct supervise *s, const struct turn *turn, size_t n, size_t n_images,
                           struct ids *ids, struct ids *labels, struct err *e)
{
    struct conv c = { .tpl = s->tpl };
    struct buf prompt = buf_make(SAMPLE_MAX);
    struct conv_span *span = NULL;
    int rc;
    TRY(build_conv(&c, s, turn, n, n_images, e));
    span = calloc(c.n + 1, sizeof *span);
    if (!span) {
        rc = err_set(e, ERR_NOMEM, "no memory for a sample");
        goto out;
    }
    TRY(conv_prompt(&c, &prompt, span, e));
    const struct span text = { prompt.p, prompt.n };
    TRY(encode(s, text, n_images, ids, e));
    TRY(ignore_all(ids, labels, e));
    TRY(learn_answers(s, &c, span, text, n_images, ids, labels, e));
out:
    free(span);
    buf_free(&prompt);
    conv_fini(&c);
    return rc;
}

/* ---- plain */

/* Each "<image>" of the question, and nothing else of it; then the answer. */
static int supervise_plain(const struct supervise *s, const struct turn *turn, size_t n, size_t n_images,
                           struct ids *ids, struct ids *labels, struct err *e)
{
    struct buf text = buf_make(SAMPLE_MAX), marks = buf_make(SAMPLE_MAX);
    struct ids image = ids_make(IDS_MAX);
    int rc;
    if (n != 2 || span_find(turn[0].value, 0, IMAGE) == turn[0].value.n)
        return err_set(e, ERR_FORMAT,
                       "a sample for template 'plain' needs two turns, the first with '<image>'");
    for (size_t i = 0; (i = span_find(turn[0].value, i, IMAGE)) < turn[0].value.n; i += IMAGE.n)
        if (!marks.n || n_images > 1) buf_add(&marks, IMAGE.p, IMAGE.n);
    buf_add(&text, marks.p, marks.n);
    supervise_picture(s, turn[1].value, n_images, &text);
    buf_str(&text, s->tpl->sep);
    TRY(buf_check(&marks, "a turn", e));
    TRY(buf_check(&text, "a sample", e));
    TRY(tokenizer_encode_prompt(s->tokenizer, text.p, text.n, ids, e));
    TRY(tokenizer_encode_prompt(s->tokenizer, marks.p, marks.n, &image, e));
    TRY(ignore_all(ids, labels, e));
    rc = learn(s, ids, labels, image.n, ids->n);
out:
    buf_free(&text);
    buf_free(&marks);
    ids_free(&image);
    return rc;
}

/* ---- "### Human: " */

/* The reference's tokenized_lens: text-only samples count what is left after cutting, without padding ids. */
static int count_ids(const struct supervise *s, struct span text, size_t n_images, size_t *ret, struct err *e)
{
    const struct tokenizer_info *info = tokenizer_info(s->tokenizer);
    struct ids ids = ids_make(IDS_MAX);
    int rc;
    TRY(encode(s, text, n_images, &ids, e));
    *ret = ids.n;
    if (n_images) goto out;
    if (s->max_length && ids.n > s->max_length) ids.n = s->max_length;
    *ret = 0;
    for (size_t i = 0; i < ids.n; i++) *ret += ids.p[i] != (info->pad >= 0 ? info->pad : info->unk);
out:
    ids_free(&ids);
    return rc;
}

static void write_signal(const struct supervise *s, const struct turn *turn, size_t n_images, struct buf *out)
{
    bool human = is_folded(turn->from, "human"), gpt = is_folded(turn->from, "gpt");
    const char *role = human ? s->tpl->role[CONV_USER] : gpt ? s->tpl->role[CONV_ASSISTANT] : "unknown";
    buf_fmt(out, "### %s: ", role);
    if (n_images) supervise_picture(s, turn->value, n_images, out);
    else buf_add(out, turn->value.p, turn->value.n);
    buf_chr(out, '\n');
}

static int supervise_signals(const struct supervise *s, const struct turn *turn, size_t n, size_t n_images,
                             struct ids *ids, struct ids *labels, struct err *e)
{
    struct buf text = buf_make(SAMPLE_MAX);
    size_t *end = calloc(n + 1, sizeof *end), count, at;
    int rc;
    if (!end) return err_set(e, ERR_NOMEM, "no memory for a sample");
    buf_fmt(&text, "%s\n\n", s->tpl->system);
    end[0] = text.n;
    for (size_t i = 0; i < n; i++) {
        write_signal(s, &turn[i], n_images, &text);
        end[i + 1] = text.n;
    }
    buf_str(&text, "### ");
    TRY(buf_check(&text, "a sample", e));
    TRY(encode(s, (struct span){ text.p, text.n }, n_images, ids, e));
    TRY(ignore_all(ids, labels, e));
    TRY(count_ids(s, (struct span){ text.p, end[0] }, n_images, &at, e));
    learn(s, ids, labels, at, ids->n);
    for (size_t i = 0; i < n; i++) {
        TRY(count_ids(s, (struct span){ text.p + end[i], end[i + 1] - end[i] }, n_images, &count, e));
        bool human = is(turn[i].from, "human");
        for (size_t k = at + 2; human && k < at + count && k < ids->n; k++) labels->p[k] = IDS_IGNORE;
        at += count;
    }
    for (size_t i = s->max_length; s->max_length && i < ids->n; i++) rc |= labels->p[i] != IDS_IGNORE;
out:
    free(end);
    buf_free(&text);
    return rc;
}

int supervise(const struct supervise *s, const struct turn *turn, size_t n, size_t n_images, struct ids *ids,
              struct ids *labels, struct err *e)
{
    int rc;
    ASSERT(ids->n == 0 && labels->n == 0);
    if (n == 0) return err_set(e, ERR_FORMAT, "a conversation without a turn");
    if (n > TURNS_MAX) return err_set(e, ERR_LIMIT, "a conversation of %zu turns, more than %d", n, TURNS_MAX);
    if (s->tpl->style == CONV_PLAIN) rc = supervise_plain(s, turn, n, n_images, ids, labels, e);
    else if (s->tpl->style == CONV_SINGLE) rc = supervise_signals(s, turn, n, n_images, ids, labels, e);
    else rc = supervise_roles(s, turn, n, n_images, ids, labels, e);
    if (s->max_length && ids->n > s->max_length) ids->n = labels->n = s->max_length;
    return rc;
}
