/* See dataset.h. A record is understood in one place, read_record: the index counts the words of the strings that it
 * finds, loading a record turns them into text where they lie. */
#define _GNU_SOURCE
#include "train/dataset.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "train/augment.h"
#include "train/scan.h"

enum { WINDOW_BYTES = 4 << 20 };

/* ---- one record */

struct reader {
    struct scan s;
    struct record *r;
    char bad[120]; /* not "": why the record, though JSON, is none of ours */
    bool no_memory;
};

static const char *kind_at(const struct scan *s)
{
    if (s->p == s->end) return "nothing";
    switch (*s->p) {
    case '"': return "a string";
    case '{': return "an object";
    case '[': return "a list";
    case 't':
    case 'f': return "true or false";
    case 'n': return "null";
    }
    return "a number";
}

/* Skips a value that is not what it should be, and remembers that, if nothing was before. */
static enum scan_rc skip_wrong(struct reader *d, const char *what, const char *want)
{
    if (!d->bad[0]) snprintf(d->bad, sizeof d->bad, "%s is %s, want %s", what, kind_at(&d->s), want);
    return scan_value(&d->s);
}

static bool grow(void **p, int *cap, int n, size_t size, struct reader *d)
{
    if (n < *cap) return true;
    int to = *cap ? *cap * 2 : 16;
    void *more = realloc(*p, (size_t)to * size);
    if (!more) return d->no_memory = true, false;
    *p = more;
    *cap = to;
    return true;
}

/* Calls `one` for each element of a list, and the list may not have more than `most`. */
static enum scan_rc read_list(struct reader *d, enum scan_rc (*one)(struct reader *), const int *n, int most,
                              const char *what)
{
    enum scan_rc rc;
    d->s.p++;
    if ((rc = scan_space(&d->s)) != SCAN_OK) return rc;
    for (bool first = true;; first = false) {
        if (scan_space(&d->s), d->s.p < d->s.end && *d->s.p == ']' && first) break;
        if (d->no_memory) return SCAN_OK;
        if (*n < most) rc = one(d);
        else {
            if (!d->bad[0]) snprintf(d->bad, sizeof d->bad, "%s has more than %d elements", what, most);
            rc = scan_value(&d->s);
        }
        if (rc != SCAN_OK) return rc;
        if ((rc = scan_space(&d->s)) != SCAN_OK) return rc;
        if (d->s.p < d->s.end && *d->s.p == ']') break;
        if ((rc = scan_mark(&d->s, ',', "expected ',' or ']'")) != SCAN_OK) return rc;
    }
    d->s.p++;
    return SCAN_OK;
}

/* Calls `member` with each name of an object, the value next. */
static enum scan_rc read_object(struct reader *d, enum scan_rc (*member)(struct reader *, struct span name))
{
    enum scan_rc rc;
    struct span name;
    d->s.p++;
    for (bool first = true;; first = false) {
        if ((rc = scan_space(&d->s)) != SCAN_OK) return rc;
        if (d->s.p < d->s.end && *d->s.p == '}' && first) break;
        if (d->s.p == d->s.end || *d->s.p != '"') return scan_mark(&d->s, '"', "expected a name in quotes");
        if ((rc = scan_string(&d->s, &name)) != SCAN_OK) return rc;
        if ((rc = scan_mark(&d->s, ':', "expected ':'")) != SCAN_OK) return rc;
        if ((rc = scan_space(&d->s)) != SCAN_OK) return rc;
        if ((rc = member(d, name)) != SCAN_OK || d->no_memory) return rc;
        if ((rc = scan_space(&d->s)) != SCAN_OK) return rc;
        if (d->s.p < d->s.end && *d->s.p == '}') break;
        if ((rc = scan_mark(&d->s, ',', "expected ',' or '}'")) != SCAN_OK) return rc;
    }
    d->s.p++;
    return SCAN_OK;
}

static bool at(const struct reader *d, char c) { return d->s.p < d->s.end && *d->s.p == c; }

/* One more of a list of pictures; `name`: what it is called, for a complaint. */
static enum scan_rc read_picture(struct reader *d, const char *name, struct span **list, int *cap, int *n)
{
    scan_space(&d->s);
    if (!at(d, '"')) return skip_wrong(d, name, "a string");
    if (!grow((void **)list, cap, *n, sizeof **list, d)) return SCAN_OK;
    return scan_string(&d->s, &(*list)[(*n)++]);
}

static enum scan_rc read_image(struct reader *d)
{
    return read_picture(d, "an element of 'image'", &d->r->image, &d->r->image_cap, &d->r->n_images);
}

static enum scan_rc read_twin(struct reader *d)
{
    return read_picture(d, "an element of 'twins'", &d->r->twin, &d->r->twin_cap, &d->r->n_twins);
}

static enum scan_rc read_change(struct reader *d)
{
    struct span word;
    scan_space(&d->s);
    if (!at(d, '"')) return skip_wrong(d, "an element of 'augment'", "a string");
    const enum scan_rc rc = scan_string(&d->s, &word);
    const unsigned may = rc != SCAN_OK ? 0 : scan_is(word, "mirror") ? MAY_MIRROR
                       : scan_is(word, "recolour") ? MAY_RECOLOUR : 0;
    if (rc == SCAN_OK && !may && !d->bad[0])
        snprintf(d->bad, sizeof d->bad, "an element of 'augment' is neither 'mirror' nor 'recolour'");
    d->r->may |= may;
    return rc;
}

static enum scan_rc turn_member(struct reader *d, struct span name)
{
    struct turn *t = &d->r->turn[d->r->n_turns - 1];
    struct span *to = scan_is(name, "from") ? &t->from : scan_is(name, "value") ? &t->value : NULL;
    if (!to) return scan_value(&d->s);
    *to = (struct span){ 0 };
    if (at(d, '"')) return scan_string(&d->s, to);
    return skip_wrong(d, to == &t->from ? "the 'from' of a turn" : "the 'value' of a turn", "a string");
}

static enum scan_rc read_turn(struct reader *d)
{
    struct record *r = d->r;
    scan_space(&d->s);
    if (!at(d, '{')) return skip_wrong(d, "a turn", "an object");
    if (!grow((void **)&r->turn, &r->turn_cap, r->n_turns, sizeof *r->turn, d)) return SCAN_OK;
    r->turn[r->n_turns++] = (struct turn){ 0 };
    enum scan_rc rc = read_object(d, turn_member);
    const struct turn *t = &r->turn[r->n_turns - 1];
    if (rc == SCAN_OK && (!t->from.p || !t->value.p) && !d->bad[0])
        snprintf(d->bad, sizeof d->bad, "turn %d has no '%s'", r->n_turns - 1, t->from.p ? "value" : "from");
    return rc;
}

static enum scan_rc record_member(struct reader *d, struct span name)
{
    struct record *r = d->r;
    if (scan_is(name, "id")) {
        const char *from = d->s.p;
        if (at(d, '"')) return scan_string(&d->s, &r->id);
        bool number = from < d->s.end && (*from == '-' || (*from >= '0' && *from <= '9'));
        enum scan_rc rc = scan_value(&d->s);
        r->id = number ? (struct span){ from, (size_t)(d->s.p - from) } : (struct span){ 0 };
        return rc;
    }
    if (scan_is(name, "image")) {
        r->n_images = 0;
        if (at(d, '"')) return read_image(d);
        if (at(d, '[')) return read_list(d, read_image, &r->n_images, RECORD_IMAGES_MAX, "'image'");
        return at(d, 'n') ? scan_value(&d->s) : skip_wrong(d, "'image'", "a string or a list of strings");
    }
    if (scan_is(name, "augment")) {
        static const int none = 0;
        r->may = 0;
        if (!at(d, '[')) return skip_wrong(d, "'augment'", "a list of strings");
        return read_list(d, read_change, &none, 1, "'augment'");
    }
    if (scan_is(name, "twins")) {
        r->n_twins = 0;
        if (!at(d, '[')) return skip_wrong(d, "'twins'", "a list of strings");
        return read_list(d, read_twin, &r->n_twins, RECORD_TWINS_MAX, "'twins'");
    }
    if (scan_is(name, "conversations")) {
        r->n_turns = 0;
        if (!at(d, '[')) return skip_wrong(d, "'conversations'", "a list");
        return read_list(d, read_turn, &r->n_turns, RECORD_TURNS_MAX, "'conversations'");
    }
    return scan_value(&d->s);
}

static enum scan_rc read_record(struct reader *d)
{
    d->r->id = (struct span){ 0 };
    d->r->n_images = d->r->n_twins = d->r->n_turns = 0;
    d->r->may = 0;
    d->bad[0] = 0;
    return at(d, '{') ? read_object(d, record_member) : skip_wrong(d, "the record", "an object");
}

/* ---- the index */

struct index {
    struct dataset *d;
    struct reader read;
    char *window;    /* [cap] the bytes [at, at + n) of the file */
    size_t cap, n;
    int64_t at;
    int64_t cap_entries;
    struct err *e;
};

static int read_fully(int fd, void *to, size_t n, int64_t at, size_t *got)
{
    for (*got = 0; *got < n;) {
        ssize_t k = pread(fd, (char *)to + *got, n - *got, (off_t)(at + (int64_t)*got));
        if (k < 0 && errno == EINTR) continue;
        if (k < 0) return -1;
        if (k == 0) break;
        *got += (size_t)k;
    }
    return 0;
}

/* Moves what is left unread to the front of the window and fills it up. If that is all of it, it gets larger. */
static int index_more(struct index *x)
{
    struct scan *s = &x->read.s;
    size_t done = x->window ? (size_t)(s->p - x->window) : 0, left = x->n - done, got;
    if (!done) {
        size_t cap = x->cap ? x->cap * 2 : WINDOW_BYTES;
        if (x->cap > RECORD_BYTES_MAX)
            return err_set(x->e, ERR_LIMIT, "'%s': record number %lld is larger than %d bytes", x->d->path,
                           (long long)x->d->n + 1, RECORD_BYTES_MAX);
        char *p = realloc(x->window, cap);
        if (!p) return err_set(x->e, ERR_NOMEM, "no memory to read '%s'", x->d->path);
        x->window = p;
        x->cap = cap;
    } else {
        memmove(x->window, x->window + done, left);
    }
    x->at += (int64_t)done;
    if (read_fully(x->d->fd, x->window + left, x->cap - left, x->at + (int64_t)left, &got) < 0)
        return err_errno(x->e, "read", x->d->path);
    x->n = left + got;
    *s = (struct scan){ .p = x->window, .end = x->window + x->n, .whole = x->n < x->cap };
    return 0;
}

/* The line of a byte: read again, as nobody counts lines while all is well. */
static long long line_of(const struct index *x, int64_t byte)
{
    char part[1 << 14];
    size_t got;
    long long line = 1;
    for (int64_t at_ = 0; at_ < byte; at_ += (int64_t)got) {
        size_t want = byte - at_ < (int64_t)sizeof part ? (size_t)(byte - at_) : sizeof part;
        if (read_fully(x->d->fd, part, want, at_, &got) < 0 || !got) break;
        for (const char *p = part, *end = part + got; (p = memchr(p, '\n', (size_t)(end - p))); p++) line++;
    }
    return line;
}

static int index_broken(struct index *x)
{
    int64_t byte = x->at + (x->read.s.p - x->window);
    return err_set(x->e, ERR_FORMAT, "cannot parse '%s': byte %lld, line %lld: %s", x->d->path, (long long)byte,
                   line_of(x, byte), x->read.s.why);
}

static uint64_t mix(uint64_t h, uint64_t v)
{
    h = (h ^ v) * 0xff51afd7ed558ccdu;
    return h ^ h >> 32;
}

static uint64_t mix_bytes(uint64_t h, const char *p, size_t n)
{
    uint64_t v;
    for (h = mix(h, n); n >= sizeof v; p += sizeof v, n -= sizeof v) {
        memcpy(&v, p, sizeof v);
        h = mix(h, v);
    }
    for (; n; p++, n--) h = mix(h, (unsigned char)*p);
    return h;
}

static int index_add(struct index *x, const char *from)
{
    struct dataset *d = x->d;
    const struct record *r = x->read.r;
    size_t bytes = (size_t)(x->read.s.p - from), words = 0;
    if (bytes > RECORD_BYTES_MAX || d->n == DATASET_RECORDS_MAX)
        return err_set(x->e, ERR_LIMIT, "'%s': record number %lld is larger than %d bytes, or one too many", d->path,
                       (long long)d->n + 1, RECORD_BYTES_MAX);
    if (d->n == x->cap_entries) {
        int64_t cap = d->n ? d->n * 2 : 4096;
        struct dataset_entry *more = realloc(d->entry, (size_t)cap * sizeof *more);
        if (!more) return err_set(x->e, ERR_NOMEM, "no memory for the index of '%s'", d->path);
        d->entry = more;
        x->cap_entries = cap;
    }
    for (int i = 0; i < r->n_turns; i++) words += scan_words(r->turn[i].value);
    d->entry[d->n++] = (struct dataset_entry){ .at = x->at + (from - x->window), .bytes = (int32_t)bytes,
                                               .words = (uint32_t)words, .image = r->n_images > 0 };
    d->hash = mix_bytes(d->hash, from, bytes);
    return 0;
}

/* Up to the next record, whose first byte s->p is then: over white space, and in an array the comma. 1: there is one,
 * 0: there is none, < 0: broken. */
static int index_next(struct index *x, bool array)
{
    struct scan *s = &x->read.s;
    for (bool comma = !array || !x->d->n;;) {
        scan_space(s);
        if (s->p == s->end && !s->whole) {
            int rc = index_more(x);
            if (rc < 0) return rc;
            continue;
        }
        if (s->p == s->end) return array ? (scan_bad(s, "the text ends inside the list"), index_broken(x)) : 0;
        if (array && *s->p == ']' && (!comma || !x->d->n)) return s->p++, 0;
        if (comma) return 1;
        if (*s->p != ',') return scan_bad(s, "expected ',' or ']'"), index_broken(x);
        s->p++;
        comma = true;
    }
}

static int index_records(struct index *x, bool array)
{
    struct scan *s = &x->read.s;
    enum scan_rc got;
    int rc;
    while ((rc = index_next(x, array)) > 0) {
        const char *from = s->p;
        while ((got = read_record(&x->read)) == SCAN_MORE && !x->read.no_memory) {
            s->p = from;
            if ((rc = index_more(x)) < 0) return rc;
            from = s->p;
        }
        if (x->read.no_memory) return err_set(x->e, ERR_NOMEM, "no memory to read '%s'", x->d->path);
        if (got == SCAN_BAD) return index_broken(x);
        if ((rc = index_add(x, from)) < 0) return rc;
    }
    return rc;
}

static int index_file(struct index *x)
{
    struct scan *s = &x->read.s;
    int rc = index_more(x);
    if (rc < 0) return rc;
    if (s->end - s->p >= 3 && memcmp(s->p, "\xef\xbb\xbf", 3) == 0) s->p += 3;
    while (scan_space(s) == SCAN_MORE)
        if ((rc = index_more(x)) < 0) return rc;
    if (s->end - s->p >= 2 && (memcmp(s->p, "\xff\xfe", 2) == 0 || memcmp(s->p, "\xfe\xff", 2) == 0))
        return scan_bad(s, "this is UTF-16, want UTF-8"), index_broken(x);
    bool array = s->p < s->end && *s->p == '[';
    if (s->p < s->end && !array && *s->p != '{')
        return scan_bad(s, "expected '[' or '{': a list of records, or one a line"), index_broken(x);
    s->p += array;
    if ((rc = index_records(x, array)) < 0) return rc;
    while (scan_space(s) == SCAN_MORE)
        if ((rc = index_more(x)) < 0) return rc;
    if (s->p < s->end) return scan_bad(s, "expected nothing after the list"), index_broken(x);
    return x->d->n ? 0 : err_set(x->e, ERR_FORMAT, "'%s' has no records", x->d->path);
}

int dataset_open(struct dataset *d, const char *path, struct err *e)
{
    struct record r = { 0 };
    struct index x = { .d = d, .read = { .r = &r }, .e = e };
    struct stat st;
    int rc;
    *d = (struct dataset){ .path = strdup(path), .fd = -1 };
    if (!d->path) TRY(err_set(e, ERR_NOMEM, "no memory to open '%s'", path));
    d->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe must not make us wait */
    if (d->fd < 0) TRY(err_errno(e, "open", path));
    if (fstat(d->fd, &st) < 0) TRY(err_errno(e, "stat", path));
    if (!S_ISREG(st.st_mode)) TRY(err_set(e, ERR_FORMAT, "'%s' is not a regular file", path));
    d->bytes = (int64_t)st.st_size;
    posix_fadvise(d->fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    TRY(index_file(&x));
    posix_fadvise(d->fd, 0, 0, POSIX_FADV_RANDOM);
    rc = 0;
out:
    free(x.window);
    record_fini(&r);
    if (rc < 0) dataset_close(d);
    return rc;
}

void dataset_close(struct dataset *d)
{
    if (d->path && d->fd >= 0) close(d->fd);
    free(d->path);
    free(d->entry);
    *d = (struct dataset){ 0 };
}

/* ---- loading a record */

static int record_failed(const struct record *r, const char *why, struct err *e)
{
    char name[RECORD_NAME_MAX];
    record_name(name, r);
    return err_set(e, ERR_FORMAT, "%s: %s", name, why);
}

static bool decode(struct span *s)
{
    if (!s->p) return true;
    ptrdiff_t n = scan_text((char *)s->p, *s); /* the record's own memory */
    if (n >= 0) s->n = (size_t)n;
    return n >= 0;
}

static int record_decode(struct record *r, const char *bad, struct err *e)
{
    bool number = r->id.p && r->id.p[-1] != '"', whole = true;
    if (number) ((char *)r->id.p)[r->id.n] = 0;
    else if (!decode(&r->id)) r->id = (struct span){ 0 };
    if (bad[0]) return record_failed(r, bad, e);
    for (int i = 0; i < r->n_images; i++) whole = decode(&r->image[i]) && whole;
    for (int i = 0; i < r->n_twins; i++) whole = decode(&r->twin[i]) && whole;
    for (int i = 0; i < r->n_turns; i++)
        whole = decode(&r->turn[i].from) && decode(&r->turn[i].value) && whole;
    return whole ? 0 : record_failed(r, "half a surrogate pair (\\ud800 to \\udfff) in a text", e);
}

int record_load(struct record *r, const struct dataset *d, int64_t i, struct err *e)
{
    const struct dataset_entry *en = &d->entry[i];
    size_t n = (size_t)en->bytes, got;
    r->index = i;
    r->id = (struct span){ 0 };
    r->n_images = r->n_twins = r->n_turns = 0;
    if (n + 1 > r->raw_cap) {
        free(r->raw);
        r->raw_cap = n + 1 > 4096 ? n + 1 : 4096;
        r->raw = malloc(r->raw_cap);
        if (!r->raw) {
            r->raw_cap = 0;
            return err_set(e, ERR_NOMEM, "no memory for a record of %zu bytes", n);
        }
    }
    if (read_fully(d->fd, r->raw, n, en->at, &got) < 0) return err_errno(e, "read", d->path);
    struct reader read = { .s = { .p = r->raw, .end = r->raw + got, .whole = true }, .r = r };
    enum scan_rc rc = got == n ? read_record(&read) : SCAN_BAD;
    if (read.no_memory) return err_set(e, ERR_NOMEM, "no memory for a record of %zu bytes", n);
    if (rc != SCAN_OK || read.s.p != read.s.end) {
        r->id = (struct span){ 0 };
        r->n_images = r->n_twins = r->n_turns = 0;
        return err_set(e, ERR_IO, "'%s' has changed since it was opened: record number %lld is no longer at byte %lld",
                       d->path, (long long)i + 1, (long long)en->at);
    }
    return record_decode(r, read.bad, e);
}

void record_fini(struct record *r)
{
    free(r->raw);
    free(r->image);
    free(r->twin);
    free(r->turn);
    *r = (struct record){ 0 };
}

void record_name(char name[RECORD_NAME_MAX], const struct record *r)
{
    enum { SHOWN = 80 };
    int n = r->id.n < SHOWN ? (int)r->id.n : SHOWN;
    while (n > 0 && (size_t)n < r->id.n && ((unsigned char)r->id.p[n] & 0xc0) == 0x80) n--; /* whole characters */
    const char *more = (size_t)n < r->id.n ? "..." : "";
    if (n) snprintf(name, RECORD_NAME_MAX, "record '%.*s%s' (number %lld)", n, r->id.p, more, (long long)r->index + 1);
    else snprintf(name, RECORD_NAME_MAX, "record number %lld", (long long)r->index + 1);
}
