/* See standing.h. */
#include "train/standing.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include "file/json.h"

/* resume.json's "state": one row a number. */
static const struct {
    const char *key;
    size_t offset;
    bool real;
} rows[] = {
    { "step", offsetof(struct standing, step), false },
    { "pass", offsetof(struct standing, pass), false },
    { "batch", offsetof(struct standing, batch), false },
    { "epoch", offsetof(struct standing, epoch), true },
    { "samples", offsetof(struct standing, samples), false },
    { "tokens", offsetof(struct standing, tokens), false },
    { "skipped", offsetof(struct standing, skipped), false },
    { "flops", offsetof(struct standing, flops), true },
    { "seconds", offsetof(struct standing, seconds), true },
    { "loss_sum", offsetof(struct standing, loss_sum), true },
    { "loss_total", offsetof(struct standing, loss_total), true },
    { "loss_steps", offsetof(struct standing, loss_steps), false },
    { "best_metric", offsetof(struct standing, best_metric), true },
    { "best_step", offsetof(struct standing, best_step), false },
};
enum { N_ROWS = sizeof rows / sizeof *rows };

int standing_init(struct standing *s, struct err *e)
{
    *s = (struct standing){ .history = json_array() };
    return s->history ? 0 : err_set(e, ERR_NOMEM, "no memory for the history of a run");
}

void standing_fini(struct standing *s)
{
    json_decref(s->history);
    *s = (struct standing){ 0 };
}

json_t *standing_numbers(const struct standing *s)
{
    json_t *o = json_object();
    for (size_t i = 0; i < N_ROWS; i++) {
        const char *at = (const char *)s + rows[i].offset;
        json_t *v = rows[i].real ? json_real(*(const double *)at) : json_integer(*(const int64_t *)at);
        if (json_object_set_new(o, rows[i].key, v) < 0) {
            json_decref(o);
            return NULL;
        }
    }
    return o;
}

int standing_numbers_load(struct standing *s, const json_t *o, struct err *e)
{
    for (size_t i = 0; i < N_ROWS; i++) {
        char *at = (char *)s + rows[i].offset;
        int rc = rows[i].real ? json_get_real(o, rows[i].key, (double *)at, e)
                              : json_get_int(o, rows[i].key, (int64_t *)at, e);
        if (rc < 0) return rc;
        if (rc == 0) return err_set(e, ERR_FORMAT, "no number '%s'", rows[i].key);
        if (!rows[i].real && *(int64_t *)at < 0) return err_set(e, ERR_FORMAT, "'%s' is negative", rows[i].key);
    }
    return 0;
}

/* In 12 digits, so that a file shows 0.1 and not 0.10000000000000001. */
static json_t *number(double v)
{
    char text[40];
    if (!isfinite(v)) return json_null();
    snprintf(text, sizeof text, "%.12g", v);
    return json_real(strtod(text, NULL));
}

int standing_log(struct standing *s, const struct scalar *v, int n, struct err *e)
{
    json_t *line = json_object();
    int bad = json_object_set_new(line, "epoch", number(s->epoch));
    for (int i = 0; i < n; i++) bad |= json_object_set_new(line, v[i].name, number(v[i].value));
    bad |= json_object_set_new(line, "step", json_integer(s->step));
    if (!bad && json_array_append(s->history, line) < 0) bad = -1;
    json_decref(line);
    return bad ? err_set(e, ERR_NOMEM, "no memory for a line of the log") : 0;
}
