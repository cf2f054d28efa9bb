/* loss.svg: the curve of a run, as text. See report.h.
 *
 * Colours are classes, so that one file suits white and dark pages (prefers-color-scheme; what does not know it shows
 * the white one). A long run is thinned to one lowest and one highest point a column of pixels: no spike is lost.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "train/report.h"

enum { W = 880, H = 440, LEFT = 64, RIGHT = 72, TOP = 56, BOTTOM = 48, SVG_MAX = 8 << 20, TICKS_MAX = 16 };
static const double plot_w = W - LEFT - RIGHT, plot_h = H - TOP - BOTTOM;

struct point { double x, y; };
struct series { struct point *at; size_t n; };

/* Values to pixels. */
struct axis {
    double lo, hi; /* of the values, or of their logarithms */
    bool log;
    double tick[TICKS_MAX];
    int n_tick;
};

struct plot {
    struct buf b;
    struct series loss, smooth, eval, rate;
    struct axis x, y, r;
};

static const char style[] =
    "<style>\n"
    "text{font:12px system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;fill:#57606a}\n"
    ".t{font-size:15px;font-weight:600;fill:#1f2328}.bg{fill:#fff}.m{text-anchor:middle}.e{text-anchor:end}\n"
    ".g{stroke:#d0d7de;stroke-width:1}.a{stroke:#8c959f;stroke-width:1}\n"
    "path,polyline{fill:none;stroke-linejoin:round}\n"
    ".raw{stroke:#54aeff;stroke-width:1;opacity:.55}.loss{stroke:#0969da;stroke-width:2}\n"
    ".eval{stroke:#bc4c00;stroke-width:2}.dot{fill:#bc4c00}.rate{stroke:#8250df;stroke-width:1.2;"
    "stroke-dasharray:4 3}.rt{fill:#8250df}\n"
    "@media(prefers-color-scheme:dark){text{fill:#9198a1}.t{fill:#f0f6fc}.bg{fill:#0d1117}.g{stroke:#21262d}"
    ".a{stroke:#656c76}.raw{stroke:#388bfd;opacity:.5}.loss{stroke:#79c0ff}.eval{stroke:#ffa657}"
    ".dot{fill:#ffa657}.rate{stroke:#d2a8ff}.rt{fill:#d2a8ff}}\n"
    "</style>\n";

static bool read_series(struct series *s, const json_t *history, const char *key)
{
    size_t i;
    json_t *line;
    s->at = malloc((json_array_size(history) + 1) * sizeof *s->at);
    if (!s->at) return false;
    json_array_foreach(history, i, line)
    {
        const json_t *v = json_object_get(line, key), *step = json_object_get(line, "step");
        if (json_is_number(v) && json_is_number(step))
            s->at[s->n++] = (struct point){ json_number_value(step), json_number_value(v) };
    }
    return true;
}

/* Mean with weights that fade over some 2% of the run to both sides, so that it does not lag behind. */
static bool smooth_series(struct series *to, const struct series *from)
{
    double reach = (double)from->n / 50, keep = reach > 1 ? 1 - 1 / reach : 0;
    to->at = calloc(from->n + 1, sizeof *to->at);
    if (!to->at) return false;
    to->n = from->n;
    for (int back = 0; back <= 1; back++) {
        double sum = 0, weight = 0;
        for (size_t k = 0; k < from->n; k++) {
            size_t i = back ? from->n - 1 - k : k;
            sum = keep * sum + from->at[i].y;
            weight = keep * weight + 1;
            to->at[i].x = from->at[i].x;
            to->at[i].y += 0.5 * sum / weight;
        }
    }
    return true;
}

static void range(const struct series *s, double *lo, double *hi)
{
    for (size_t i = 0; i < s->n; i++) {
        if (s->at[i].y < *lo) *lo = s->at[i].y;
        if (s->at[i].y > *hi) *hi = s->at[i].y;
    }
}

/* Round steps of 1, 2 or 5; about `want` of them. */
static void ticks_linear(struct axis *a, int want)
{
    double raw = (a->hi - a->lo) / want, power = pow(10, floor(log10(raw))), unit = raw / power;
    double step = power * (unit <= 1 ? 1 : unit <= 2 ? 2 : unit <= 5 ? 5 : 10);
    for (double v = ceil(a->lo / step - 1e-9) * step; v <= a->hi + step * 1e-9 && a->n_tick < TICKS_MAX; v += step)
        a->tick[a->n_tick++] = fabs(v) < step * 1e-9 ? 0 : v;
}

static void ticks_log(struct axis *a)
{
    static const double parts[] = { 1, 2, 5 };
    bool few = a->hi - a->lo < 3; /* decades */
    for (int k = (int)floor(a->lo); k <= (int)ceil(a->hi); k++)
        for (int i = 0; i < (few ? 3 : 1); i++) {
            double v = parts[i] * pow(10, k);
            if (log10(v) >= a->lo - 1e-9 && log10(v) <= a->hi + 1e-9 && a->n_tick < TICKS_MAX) a->tick[a->n_tick++] = v;
        }
}

static void axis_set(struct axis *a, double lo, double hi, bool logarithmic, int want)
{
    if (!(hi > lo)) {
        double pad = lo ? fabs(lo) * 0.5 : 1;
        hi = lo + pad;
        lo -= logarithmic ? pad * 0.9 : pad;
    }
    a->log = logarithmic;
    a->lo = logarithmic ? log10(lo) : lo;
    a->hi = logarithmic ? log10(hi) : hi;
    if (logarithmic) ticks_log(a);
    else ticks_linear(a, want);
}

/* 0..1 along the axis. */
static double along(const struct axis *a, double v)
{
    double t = a->log ? log10(v > 0 ? v : 1e-300) : v, u = (t - a->lo) / (a->hi - a->lo);
    return u < 0 ? 0 : u > 1 ? 1 : u;
}

static double px(const struct plot *p, double x) { return LEFT + plot_w * along(&p->x, x); }
static double py(const struct axis *a, double y) { return TOP + plot_h * (1 - along(a, y)); }

/* In each column of pixels the first, lowest, highest and last point, in order. */
static void line(struct plot *p, const struct series *s, const struct axis *a, const char *class)
{
    if (s->n < 1) return;
    buf_fmt(&p->b, "<polyline class=\"%s\" points=\"", class);
    for (size_t i = 0; i < s->n;) {
        size_t end = i, low = i, high = i;
        double column = floor(px(p, s->at[i].x));
        for (; end < s->n && floor(px(p, s->at[end].x)) <= column; end++) {
            if (s->at[end].y < s->at[low].y) low = end;
            if (s->at[end].y > s->at[high].y) high = end;
        }
        size_t pick[4] = { i, low < high ? low : high, low < high ? high : low, end - 1 };
        for (int k = 0; k < 4; k++)
            if (!k || pick[k] != pick[k - 1])
                buf_fmt(&p->b, "%.1f,%.1f ", px(p, s->at[pick[k]].x), py(a, s->at[pick[k]].y));
        i = end;
    }
    buf_str(&p->b, "\"/>\n");
}

static void axes(struct plot *p)
{
    struct buf *b = &p->b;
    for (int i = 0; i < p->y.n_tick; i++) {
        double y = py(&p->y, p->y.tick[i]);
        buf_fmt(b, "<line class=\"g\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/>", LEFT, W - RIGHT, y, y);
        buf_fmt(b, "<text class=\"e\" x=\"%d\" y=\"%.1f\">%.6g</text>\n", LEFT - 8, y + 4, p->y.tick[i]);
    }
    for (int i = 0; i < p->x.n_tick; i++) {
        double x = px(p, p->x.tick[i]);
        buf_fmt(b, "<line class=\"a\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\"/>", x, x, H - BOTTOM, H - BOTTOM + 5);
        buf_fmt(b, "<text class=\"m\" x=\"%.1f\" y=\"%d\">%.7g</text>\n", x, H - BOTTOM + 19, p->x.tick[i]);
    }
    for (int i = 0; i < p->r.n_tick && p->rate.n; i++)
        buf_fmt(b, "<text class=\"rt\" x=\"%d\" y=\"%.1f\">%.3g</text>\n", W - RIGHT + 8, py(&p->r, p->r.tick[i]) + 4,
                p->r.tick[i]);
    buf_fmt(b, "<path class=\"a\" d=\"M%d %dV%dH%d\"/>\n", LEFT, TOP, H - BOTTOM, W - RIGHT);
    buf_fmt(b, "<text class=\"m\" x=\"%.0f\" y=\"%d\">step</text>\n", LEFT + plot_w / 2, H - 10);
}

static void legend(struct plot *p)
{
    const struct { const struct series *s; const char *class, *name; } rows[] = {
        { &p->rate, "rate", "learning rate" },
        { &p->eval, "eval", "loss on evaluation data" },
        { &p->smooth, "loss", "loss" },
    };
    double x = W - RIGHT;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (!rows[i].s->n) continue;
        x -= 6.2 * (double)strlen(rows[i].name);
        buf_fmt(&p->b, "<text x=\"%.0f\" y=\"%d\">%s</text>", x, TOP - 18, rows[i].name);
        buf_fmt(&p->b, "<path class=\"%s\" d=\"M%.0f %dh22\"/>\n", rows[i].class, x - 28, TOP - 22);
        x -= 48;
    }
}

static void text_escaped(struct buf *b, const char *s)
{
    for (; *s; s++)
        if (*s == '<') buf_str(b, "&lt;");
        else if (*s == '&') buf_str(b, "&amp;");
        else if ((unsigned char)*s >= 32) buf_chr(b, *s);
}

static void draw(struct plot *p, const char *title)
{
    struct buf *b = &p->b;
    buf_str(b, "<svg xmlns=\"http://www.w3.org/2000/svg\" ");
    buf_fmt(b, "width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\">\n", W, H, W, H);
    buf_str(b, style);
    buf_fmt(b, "<rect class=\"bg\" width=\"%d\" height=\"%d\"/>\n<text class=\"t\" x=\"%d\" y=\"28\">", W, H, LEFT);
    text_escaped(b, title);
    buf_str(b, "</text>\n");
    axes(p);
    line(p, &p->rate, &p->r, "rate");
    line(p, &p->loss, &p->y, "raw");
    line(p, &p->smooth, &p->y, "loss");
    line(p, &p->eval, &p->y, "eval");
    for (size_t i = 0; i < p->eval.n && p->eval.n <= 60; i++)
        buf_fmt(b, "<circle class=\"dot\" r=\"3\" cx=\"%.1f\" cy=\"%.1f\"/>\n", px(p, p->eval.at[i].x),
                py(&p->y, p->eval.at[i].y));
    if (!p->loss.n && !p->eval.n)
        buf_fmt(b, "<text class=\"m\" x=\"%.0f\" y=\"%.0f\">nothing was logged yet</text>\n", LEFT + plot_w / 2,
                TOP + plot_h / 2);
    legend(p);
    buf_str(b, "</svg>\n");
}

/* A loss that falls by more than 30 times is shown in logarithms. */
static void scale(struct plot *p)
{
    double lo = INFINITY, hi = -INFINITY, x_lo = INFINITY, x_hi = -INFINITY, rate = 0, none = 0;
    const struct series *all[] = { &p->loss, &p->eval };
    for (int i = 0; i < 2; i++) {
        range(all[i], &lo, &hi);
        if (!all[i]->n) continue;
        x_lo = fmin(x_lo, all[i]->at[0].x);
        x_hi = fmax(x_hi, all[i]->at[all[i]->n - 1].x);
    }
    range(&p->rate, &none, &rate);
    if (!(hi >= lo)) lo = 0, hi = 1, x_lo = 0, x_hi = 1;
    bool logarithmic = lo > 0 && hi / lo > 30;
    double pad = (hi - lo) * 0.04;
    axis_set(&p->x, x_hi - x_lo > 10 && x_lo < x_hi / 20 ? 0 : x_lo, x_hi, false, 8);
    axis_set(&p->y, logarithmic ? lo : fmax(0, lo - pad), logarithmic ? hi : hi + pad, logarithmic, 6);
    axis_set(&p->r, 0, rate > 0 ? rate * 1.04 : 1, false, 4);
}

char *report_svg(const json_t *history, const char *title)
{
    struct plot p = { .b = buf_make(SVG_MAX) };
    char *text = NULL;
    if (read_series(&p.loss, history, "loss") && read_series(&p.eval, history, "eval_loss") &&
        read_series(&p.rate, history, "learning_rate") && smooth_series(&p.smooth, &p.loss)) {
        scale(&p);
        draw(&p, title);
        if (!p.b.failed) text = buf_take(&p.b, NULL);
    }
    buf_free(&p.b);
    free(p.loss.at);
    free(p.smooth.at);
    free(p.eval.at);
    free(p.rate.at);
    return text;
}
