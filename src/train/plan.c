/* See plan.h. */
#include "train/plan.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/plat.h"
#include "train/muon.h"

void plan_bytes(char out[16], double bytes)
{
    static const char *const units[] = { "B", "kB", "MB", "GB", "TB" };
    int u = 0;
    while (bytes >= 999.5 && u < 4) bytes /= 1000, u++;
    snprintf(out, 16, u && bytes < 99.95 ? "%.1f %s" : "%.0f %s", bytes, units[u]);
}

static void add(struct plan *p, const char *name, size_t bytes)
{
    if (!bytes) return;
    ASSERT(p->n < PLAN_ROWS);
    p->row[p->n].name = name;
    p->row[p->n++].bytes = bytes;
    p->sum += bytes;
}

/* "48G": powers of 1000, as the memory of cards is sold; "48Gi" of 1024. */
static int read_limit(size_t *bytes, const char *s, struct err *e)
{
    static const char units[] = "KMGT";
    char *end;
    double v = strtod(s, &end);
    const char *u = *end ? strchr(units, *end >= 'a' ? *end - 32 : *end) : NULL;
    if (u) {
        const double base = end[1] == 'i' ? 1024 : 1000;
        for (const char *k = units; k <= u; k++) v *= base;
        end += end[1] == 'i' ? 2 : 1;
    }
    if (*end == 'B') end++;
    if (end == s || *end || !(v > 0 && v < 1e15))
        return err_set(e, ERR_USAGE, "--memory_limit wants a size such as 48G, not '%s'", s);
    *bytes = (size_t)v;
    return 0;
}

int plan_make(struct plan *p, struct trainee *t, struct step *s, int threads, const char *limit, struct err *e)
{
    const struct trainee_bytes b = trainee_count(t);
    const size_t side = t->recipe.vision ? (size_t)t->recipe.side : 0;
    *p = (struct plan){ .dev = t->dev, .limit = t->dev ? dev_memory_now(t->dev).free : plat_memory_total(),
                        .limited = limit != NULL };
    add(p, "frozen weights", b.frozen);
    add(p, "vision tower", b.tower);
    add(p, "trained weights", b.weights);
    add(p, "f32 masters", b.masters);
    add(p, "moments of AdamW", b.moments);
    add(p, "gradients", b.gradients);
    if (t->muon) add(p, "work space of Muon", muon_bytes(t->p, t->n));
    add(p, "activations", step_plan(s));
    add(p, "kernels' scratch", step_scratch(s));
    if (!t->dev)
        add(p, "batches read ahead",
            (size_t)(s->most.n_images * (3 + threads)) * 3 * side * side * sizeof(float) + (size_t)s->most.T * 32);
    return limit ? read_limit(&p->limit, limit, e) : 0;
}

int plan_check(const struct plan *p, struct err *e)
{
    char sum[16], limit[16], most[16];
    int top = 0;
    if (p->sum <= p->limit) return 0;
    for (int i = 1; i < p->n; i++)
        if (p->row[i].bytes > p->row[top].bytes) top = i;
    plan_bytes(sum, (double)p->sum);
    plan_bytes(limit, (double)p->limit);
    plan_bytes(most, (double)p->row[top].bytes);
    return err_set(e, ERR_NOMEM, "this run needs %s and %s %s; most of it are %s (%s): --dry_run True lists all", sum,
                   p->limited ? "--memory_limit is" : p->dev ? "the device has" : "the machine has", limit,
                   p->row[top].name, most);
}

void plan_print(const struct plan *p, FILE *f)
{
    char text[16];
    for (int i = 0; i < p->n; i++) {
        plan_bytes(text, (double)p->row[i].bytes);
        fprintf(f, "  %-22s %10s\n", p->row[i].name, text);
    }
    plan_bytes(text, (double)p->sum);
    fprintf(f, "  %-22s %10s\n", "together", text);
    plan_bytes(text, (double)p->limit);
    fprintf(f, "  %-22s %10s\n", p->limited ? "--memory_limit" : p->dev ? "the device has" : "the machine has", text);
}
