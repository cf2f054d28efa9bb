/* See state.h. */
#include "train/state.h"

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
    { "step", offsetof(struct train_state, step), false },
    { "pass", offsetof(struct train_state, pass), false },
    { "batch", offsetof(struct train_state, batch), false },
    { "epoch", offsetof(struct train_state, epoch), true },
    { "samples", offsetof(struct train_state, samples), false },
    { "tokens", offsetof(struct train_state, tokens), false },
    { "skipped", offsetof(struct train_state, skipped), false },
    { "flops", offsetof(struct train_state, flops), true },
    { "seconds", offsetof(struct train_state, seconds), true },
    { "loss_sum", offsetof(struct train_state, loss_sum), true },
    { "loss_total", offsetof(struct train_state, loss_total), true },
    { "loss_steps", offsetof(struct train_state, loss_steps), false },
    { "best_metric", offsetof(struct train_state, best_metric), true },
    { "best_step", offsetof(struct train_state, best_step), false },
};
enum { N_ROWS = sizeof rows / sizeof *rows };

int state_init(struct train_state *s, struct err *e)
{
    *s = (struct train_state){ .history = json_array() };
    return s->history ? 0 : err_set(e, ERR_NOMEM, "no memory for the history of a run");
}

void state_fini(struct train_state *s)
{
    json_decref(s->history);
    *s = (struct train_state){ 0 };
}

json_t *state_numbers(const struct train_state *s)
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

int state_numbers_load(struct train_state *s, const json_t *o, struct err *e)
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

int state_log(struct train_state *s, const struct scalar *v, int n, struct err *e)
{
    json_t *line = json_object();
    int bad = json_object_set_new(line, "epoch", number(s->epoch));
    for (int i = 0; i < n; i++) bad |= json_object_set_new(line, v[i].name, number(v[i].value));
    bad |= json_object_set_new(line, "step", json_integer(s->step));
    if (!bad && json_array_append(s->history, line) < 0) bad = -1;
    json_decref(line);
    return bad ? err_set(e, ERR_NOMEM, "no memory for a line of the log") : 0;
}
