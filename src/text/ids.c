/* The growing list of token ids declared in ids.h. */
#include "text/ids.h"

#include <stdlib.h>
#include <string.h>

void ids_free(struct ids *s)
{
    free(s->p);
    *s = (struct ids){ .max = s->max };
}

static bool ids_room(struct ids *s, size_t n)
{
    if (s->failed || s->n > s->max || n > s->max - s->n) return false;
    size_t want = s->n + n;
    if (want <= s->cap) return true;
    size_t cap = s->cap ? s->cap : 64;
    while (cap < want) cap *= 2;
    if (cap > s->max) cap = s->max;
    if (cap > SIZE_MAX / sizeof *s->p) return false;
    int32_t *p = realloc(s->p, cap * sizeof *p);
    if (!p) return false;
    s->p = p;
    s->cap = cap;
    return true;
}

void ids_add_n(struct ids *s, const int32_t *p, size_t n)
{
    if (n == 0) return;
    if (!ids_room(s, n)) {
        s->failed = true;
        return;
    }
    memcpy(s->p + s->n, p, n * sizeof *p);
    s->n += n;
}

void ids_add(struct ids *s, int32_t id)
{
    ids_add_n(s, &id, 1);
}

void ids_reset(struct ids *s)
{
    s->n = 0;
    s->failed = false;
}

int ids_check(const struct ids *s, const char *what, struct err *e)
{
    if (!s->failed) return 0;
    return err_set(e, ERR_LIMIT, "%s has more than %zu tokens, or memory ran out", what, s->max);
}
