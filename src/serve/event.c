/* See event.h. */
#include "serve/event.h"

#include <ctype.h>
#include <stdlib.h>

enum { EVENT_MAX = 1 << 24 };

void event_send(struct exchange *x, json_t *v) { event_send_as(x, NULL, v); }

void event_send_as(struct exchange *x, const char *name, json_t *v)
{
    char *text = v ? json_dumps(v, JSON_COMPACT) : NULL;
    struct buf line = buf_make(EVENT_MAX);
    if (name) buf_fmt(&line, "event: %s\n", name);
    buf_str(&line, "data: ");
    if (text) buf_str(&line, text);
    buf_str(&line, "\n\n");
    if (text && !line.failed) exchange_write(x, line.p, line.n);
    buf_free(&line);
    free(text);
    json_decref(v);
}

void trim_init(struct trim *t) { *t = (struct trim){ .held = buf_make(EVENT_MAX) }; }
void trim_fini(struct trim *t) { buf_free(&t->held); }

void trim_feed(struct trim *t, struct buf *out, const char *text, size_t n)
{
    while (!t->begun && n && isspace((unsigned char)*text)) text++, n--;
    size_t end = n;
    while (end && isspace((unsigned char)text[end - 1])) end--;
    if (end) {
        t->begun = true;
        if (t->held.n) buf_add(out, t->held.p, t->held.n);
        buf_reset(&t->held);
        buf_add(out, text, end);
    }
    if (t->begun) buf_add(&t->held, text + end, n - end);
}
