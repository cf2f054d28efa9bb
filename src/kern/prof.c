/* See prof.h. */
#include "kern/prof.h"

#include <stdlib.h>
#include <string.h>

#include "base/plat.h"

enum { ROWS = 128, CALLS = 1 << 14 }; /* kinds; calls that are remembered until the times are read */

struct row {
    char name[64];
    int calls;
    double s, bytes;
};

struct call {
    struct dev_event *from, *to;
    double from_s, to_s;
    int row;
};

struct prof {
    struct dev *dev;
    struct row row[ROWS];
    struct call call[CALLS];
    int n_rows, n_calls, n_events; /* events are made once and used again */
};

struct prof *prof_new(struct dev *d)
{
    struct prof *p = calloc(1, sizeof *p);
    if (p) p->dev = d;
    return p;
}

void prof_free(struct prof *p)
{
    if (!p) return;
    for (int i = 0; i < p->n_events; i++) {
        dev_event_free(p->call[i].from);
        dev_event_free(p->call[i].to);
    }
    free(p);
}

static int row_of(struct prof *p, const char *name)
{
    int i = 0;
    while (i < p->n_rows && strcmp(p->row[i].name, name) != 0) i++;
    if (i == ROWS) return ROWS - 1; /* more kinds than a table shows: with the last */
    if (i == p->n_rows) snprintf(p->row[p->n_rows++].name, sizeof p->row->name, "%s", name);
    return i;
}

/* Reads the times of all calls. */
static void settle(struct prof *p)
{
    dev_sync(p->dev);
    for (int i = 0; i < p->n_calls; i++) {
        const struct call *c = &p->call[i];
        p->row[c->row].s += p->dev ? dev_event_s(c->from, c->to) : c->to_s - c->from_s;
    }
    p->n_calls = 0;
}

void prof_begin(struct prof *p, const char *kernel, const struct tensor *args, int n)
{
    char name[sizeof p->row->name], shape[TENSOR_SHAPE_MAX];
    const struct tensor *most = NULL;
    double bytes = 0;
    for (int i = 0; i < n; i++) {
        if (!args[i].p) continue;
        bytes += (double)tensor_bytes(args[i]);
        if (!most || tensor_bytes(args[i]) > tensor_bytes(*most)) most = &args[i];
    }
    if (!strcmp(kernel, "rows_get")) most = &args[0], bytes = 2 * (double)tensor_bytes(args[0]);
    snprintf(name, sizeof name, "%s %s %s", kernel, most ? tensor_shape(*most, shape) : "",
             most ? dtype_name((enum dtype)most->type) : "");
    if (p->n_calls == CALLS) settle(p);
    struct call *c = &p->call[p->n_calls];
    c->row = row_of(p, name);
    p->row[c->row].calls++;
    p->row[c->row].bytes += bytes;
    if (p->dev && p->n_calls == p->n_events) {
        c->from = dev_event_new(p->dev);
        c->to = dev_event_new(p->dev);
        p->n_events++;
    }
    c->from_s = plat_now_s();
    dev_event_record(p->dev, c->from);
}

void prof_end(struct prof *p)
{
    struct call *c = &p->call[p->n_calls++];
    dev_event_record(p->dev, c->to);
    c->to_s = plat_now_s();
}

static int slower(const void *a, const void *b)
{
    const double x = ((const struct row *)a)->s, y = ((const struct row *)b)->s;
    return (x < y) - (x > y);
}

void prof_print(struct prof *p, FILE *f, const char *title)
{
    settle(p);
    double all = 0;
    int calls = 0;
    qsort(p->row, (size_t)p->n_rows, sizeof *p->row, slower);
    for (int i = 0; i < p->n_rows; i++) all += p->row[i].s, calls += p->row[i].calls;
    fprintf(f, "%s: %.3f ms in %d calls of kernels\n", title, 1e3 * all, calls);
    for (int i = 0; i < p->n_rows; i++) {
        const struct row *r = &p->row[i];
        fprintf(f, "  %5.1f%%  %6d x %9.1f us  %7.0f GB/s  %s\n", all > 0 ? 100 * r->s / all : 0, r->calls,
                1e6 * r->s / r->calls, r->s > 0 ? 1e-9 * r->bytes / r->s : 0, r->name);
    }
    memset(p->row, 0, sizeof p->row);
    p->n_rows = 0;
}
