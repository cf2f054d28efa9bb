/* See schedule.h. */
#include "train/schedule.h"

#include <math.h>
#include <string.h>

static const double pi = 3.14159265358979323846;

int schedule_find(const char *name)
{
    static const char *const names[N_SCHEDULE] = { "linear", "cosine", "cosine_with_restarts", "polynomial", "constant",
                                                   "constant_with_warmup", "inverse_sqrt" };
    for (int i = 0; i < N_SCHEDULE; i++)
        if (!strcmp(names[i], name)) return i;
    return -1;
}

int64_t schedule_warmup(int64_t steps, double ratio, int64_t total)
{
    return steps > 0 ? steps : (int64_t)ceil((double)total * ratio);
}

double schedule_factor(const struct schedule *s, int64_t step)
{
    const double at = (double)step, w = (double)s->warmup, T = (double)s->total, rest = fmax(1, T - w);
    if (s->kind == SCHEDULE_CONSTANT) return 1;
    if (step < s->warmup) return at / fmax(1, w);
    const double done = (at - w) / rest, scale = s->warmup > 0 ? w : 10000; /* of inverse_sqrt */
    switch (s->kind) {
    case SCHEDULE_LINEAR: return fmax(0, (T - at) / rest);
    case SCHEDULE_COSINE: return fmax(0, 0.5 * (1 + cos(pi * done)));
    case SCHEDULE_COSINE_WITH_RESTARTS: return done >= 1 ? 0 : fmax(0, 0.5 * (1 + cos(pi * fmod(done, 1))));
    case SCHEDULE_POLYNOMIAL: {
        const double end = 1e-7;
        if (step > s->total) return end / s->rate;
        return ((s->rate - end) * (1 - done) + end) / s->rate;
    }
    case SCHEDULE_INVERSE_SQRT: return 1 / sqrt((at + scale - w) / scale);
    default: return 1;
    }
}
