/* See schedule.h. */
#include "train/schedule.h"

#include <math.h>
#include <string.h>

#include "file/json.h"

static const double pi = 3.14159265358979323846;

static const char *const names[N_SCHEDULE] = { "linear", "cosine", "cosine_with_restarts", "cosine_with_min_lr",
                                               "polynomial", "constant", "constant_with_warmup", "inverse_sqrt" };

/* A keyword of some kinds, and the least that it may be. */
struct keyword {
    const char *key;
    unsigned kinds;
    double least;
};
#define OF(kind) (1u << SCHEDULE_##kind)
static const struct keyword keywords[] = {
    { "num_cycles", OF(COSINE) | OF(COSINE_WITH_RESTARTS) | OF(COSINE_WITH_MIN_LR), 0 },
    { "lr_end", OF(POLYNOMIAL), 0 },
    { "power", OF(POLYNOMIAL), 0 },
    { "timescale", OF(INVERSE_SQRT), 1 },
    { "min_lr", OF(COSINE_WITH_MIN_LR), 0 },
    { "min_lr_rate", OF(COSINE_WITH_MIN_LR), 0 },
};
enum { N_KEYWORD = sizeof keywords / sizeof *keywords };

static void put(struct schedule *s, const char *key, double v, double rate)
{
    if (!strcmp(key, "num_cycles")) s->cycles = v;
    else if (!strcmp(key, "power")) s->power = v;
    else if (!strcmp(key, "timescale")) s->timescale = v;
    else if (!strcmp(key, "min_lr_rate")) s->end = v;
    else s->end = v / rate; /* lr_end, min_lr */
}

/* One member of the object, null left out. */
static int read_keyword(struct schedule *s, const char *key, const json_t *v, double rate, struct err *e)
{
    const double d = json_number_value(v);
    const struct keyword *k = keywords;
    while (k < keywords + N_KEYWORD && (strcmp(k->key, key) != 0 || !(k->kinds & 1u << s->kind))) k++;
    if (k == keywords + N_KEYWORD)
        return err_set(e, ERR_USAGE, "--lr_scheduler_kwargs: '%s' has no '%.60s'", names[s->kind], key);
    if (json_is_null(v)) return 0;
    if (!json_is_number(v) || d < k->least)
        return err_set(e, ERR_USAGE, "--lr_scheduler_kwargs: '%s' wants a number of %g or more", key, k->least);
    put(s, key, d, rate);
    return 0;
}

int schedule_make(struct schedule *s, const char *name, const char *kwargs, double rate, struct err *e)
{
    json_t *o = NULL, *v;
    const char *key;
    int kind = 0, rc = 0;
    while (kind < N_SCHEDULE && strcmp(names[kind], name) != 0) kind++;
    if (kind == N_SCHEDULE) return err_set(e, ERR_USAGE, "no schedule '%s'", name);
    *s = (struct schedule){ .kind = (enum schedule_kind)kind, .cycles = 0.5, .power = 1, .end = 1e-7 / rate };
    if (kind == SCHEDULE_COSINE_WITH_RESTARTS) s->cycles = 1;
    if (kind == SCHEDULE_COSINE_WITH_MIN_LR) s->end = -1;
    if (kwargs && json_text_load(&o, kwargs, strlen(kwargs), "--lr_scheduler_kwargs", e) < 0) rc = ERR_USAGE;
    else if (o && !json_is_object(o)) rc = err_set(e, ERR_USAGE, "--lr_scheduler_kwargs wants a JSON object");
    if (rc >= 0)
        json_object_foreach(o, key, v)
            if ((rc = read_keyword(s, key, v, rate, e)) < 0) break;
    if (rc >= 0 && s->end < 0) rc = err_set(e, ERR_USAGE, "--lr_scheduler_type %s wants --lr_scheduler_kwargs with "
                                            "'min_lr' or 'min_lr_rate'", name);
    if (rc >= 0 && kind == SCHEDULE_POLYNOMIAL && s->end >= 1)
        rc = err_set(e, ERR_USAGE, "--lr_scheduler_kwargs: 'lr_end' must be below --learning_rate");
    json_decref(o);
    return rc;
}

int64_t schedule_warmup(double steps, double ratio, int64_t total)
{
    if (steps >= 1) return (int64_t)steps;
    return (int64_t)ceil((double)total * (steps > 0 ? steps : ratio));
}

double schedule_factor(const struct schedule *s, int64_t step)
{
    const double at = (double)step, w = (double)s->warmup, T = (double)s->total, rest = fmax(1, T - w);
    if (s->kind == SCHEDULE_CONSTANT) return 1;
    if (step < s->warmup) return at / fmax(1, w);
    const double done = (at - w) / rest, wave = 0.5 * (1 + cos(pi * 2 * s->cycles * done));
    const double scale = s->timescale > 0 ? s->timescale : s->warmup > 0 ? w : 10000; /* of inverse_sqrt */
    switch (s->kind) {
    case SCHEDULE_LINEAR: return fmax(0, (T - at) / rest);
    case SCHEDULE_COSINE: return fmax(0, wave);
    case SCHEDULE_COSINE_WITH_MIN_LR: return fmax(0, wave * (1 - s->end) + s->end);
    case SCHEDULE_COSINE_WITH_RESTARTS:
        return done >= 1 ? 0 : fmax(0, 0.5 * (1 + cos(pi * fmod(s->cycles * done, 1))));
    case SCHEDULE_POLYNOMIAL: return step > s->total ? s->end : (1 - s->end) * pow(1 - done, s->power) + s->end;
    case SCHEDULE_INVERSE_SQRT: return 1 / sqrt((at + scale - w) / scale);
    default: return 1;
    }
}
