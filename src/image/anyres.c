/* See anyres.h. Divisions are in double, as Python's are, so that every truncation falls on the same side. */
#include "image/anyres.h"

#include <string.h>

static bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

/* A cursor over the text of a list of pairs. */
struct scan {
    const char *p, *end;
};

/* The next character that is not white space, 0 at the end; not consumed. */
static char scan_peek(struct scan *s)
{
    while (s->p < s->end && is_space(*s->p)) s->p++;
    return s->p < s->end ? *s->p : 0;
}

/* Consumes one of the characters in `set`; 0 if none is next. */
static char scan_one(struct scan *s, const char *set)
{
    char c = scan_peek(s);
    if (!c || !strchr(set, c)) return 0;
    s->p++;
    return c;
}

/* A number from 1 to PINPOINT_SIDE_MAX, else 0. */
static int scan_side(struct scan *s)
{
    int v = 0;
    for (char c = scan_peek(s); c >= '0' && c <= '9'; c = s->p < s->end ? *s->p : 0) {
        v = v * 10 + (c - '0');
        s->p++;
        if (v > PINPOINT_SIDE_MAX) return 0;
    }
    return v;
}

/* "(336, 672)" or "[336, 672]". */
static bool scan_pair(struct scan *s, int *a, int *b)
{
    char open = scan_one(s, "[(");
    return open && (*a = scan_side(s)) && scan_one(s, ",") && (*b = scan_side(s)) &&
           scan_one(s, open == '(' ? ")" : "]");
}

int pinpoints_parse(struct pinpoints *p, const char *text, size_t n, bool height_first, struct err *e)
{
    struct scan s = { text, text + n };
    *p = (struct pinpoints){ 0 };
    char open = scan_one(&s, "[("), close = open == '(' ? ')' : ']';
    while (open && scan_peek(&s) != close) {
        int a, b;
        if (p->n == PINPOINTS_MAX)
            return err_set(e, ERR_LIMIT, "image_grid_pinpoints has more than %d pairs", PINPOINTS_MAX);
        if (!scan_pair(&s, &a, &b)) break;
        p->at[p->n].w = height_first ? b : a;
        p->at[p->n].h = height_first ? a : b;
        p->n++;
        if (!scan_one(&s, ",")) break;
    }
    if (!p->n || !scan_one(&s, (char[2]){ close }) || scan_peek(&s))
        return err_set(e, ERR_FORMAT,
                       "image_grid_pinpoints is not a list of pairs of sizes from 1 to %d, at byte %zu",
                       PINPOINT_SIDE_MAX, (size_t)(s.p - text));
    return 0;
}

int pinpoints_best(const struct pinpoints *p, int w, int h)
{
    int best = 0;
    int64_t most = -1, least = 0;
    for (int i = 0; i < p->n; i++) {
        double sw = (double)p->at[i].w / w, sh = (double)p->at[i].h / h, s = sh < sw ? sh : sw;
        int64_t kept = (int64_t)(w * s) * (int64_t)(h * s), all = (int64_t)w * h;
        if (kept > all) kept = all;
        int64_t wasted = (int64_t)p->at[i].w * p->at[i].h - kept;
        if (kept < most || (kept == most && wasted >= least)) continue;
        best = i;
        most = kept;
        least = wasted;
    }
    return best;
}

struct grid anyres_grid(const struct pinpoints *p, int w, int h, int tile)
{
    int best = pinpoints_best(p, w, h);
    return (struct grid){ p->at[best].w / tile, p->at[best].h / tile };
}

int merge_parse(enum merge *m, const char *name, struct err *e)
{
    *m = MERGE_FLAT;
    if (!name || !strcmp(name, "flat")) return 0;
    if (strncmp(name, "spatial", 7))
        return err_set(e, ERR_UNSUPPORTED, "mm_patch_merge_type '%s' is neither flat nor spatial", name);
    *m = strstr(name, "unpad") ? MERGE_UNPAD : MERGE_SPATIAL;
    return 0;
}

/* The patches of the grid that are kept: columns [x0, x1) of rows [y0, y1). */
struct span {
    int x0, x1, y0, y1;
};

/* The picture was centred in the grid; the smaller scale tells which axis has padding. Half of the padding,
 * rounded down, is cut from either end. */
static struct span unpad(int cols, int rows, int w, int h)
{
    struct span s = { 0, cols, 0, rows };
    if ((double)w / h > (double)cols / rows) {
        s.y0 = (rows - (int)(h * ((double)cols / w))) / 2;
        s.y1 = rows - s.y0;
    } else {
        s.x0 = (cols - (int)(w * ((double)rows / h))) / 2;
        s.x1 = cols - s.x0;
    }
    return s;
}

int64_t merge_rows(int32_t *to, enum merge m, struct grid grid, int side, int w, int h)
{
    const int64_t tile = (int64_t)side * side;
    const int cols = grid.w * side, rows = grid.h * side;
    int64_t n = 0, first = m == MERGE_FLAT ? tile * (1 + (int64_t)grid.w * grid.h) : tile;
    for (; n < first; n++)
        if (to) to[n] = (int32_t)n;
    if (m == MERGE_FLAT || !cols || !rows) {
        if (m == MERGE_UNPAD && to) to[n] = -1;
        return n + (m == MERGE_UNPAD);
    }
    struct span s = m == MERGE_UNPAD ? unpad(cols, rows, w, h) : (struct span){ 0, cols, 0, rows };
    for (int y = s.y0; y < s.y1; y++) {
        for (int x = s.x0; x < s.x1; x++, n++)
            if (to) to[n] = (int32_t)((1 + y / side * grid.w + x / side) * tile + y % side * side + x % side);
        if (m == MERGE_UNPAD && to) to[n] = -1;
        n += m == MERGE_UNPAD;
    }
    return n;
}
