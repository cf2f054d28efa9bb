/* See plan.h. */
#include "train/plan.h"

#include <string.h>

#include "base/plat.h"
#include "base/size.h"
#include "kern/ceiling.h"
#include "train/flops.h"
#include "train/muon.h"

void plan_bytes(char out[16], double bytes)
{
    static const char *const units[] = { "B", "kB", "MB", "GB", "TB" };
    int u = 0;
    while (bytes >= 999.5 && u < 4) bytes /= 1000, u++;
    snprintf(out, 16, u && bytes < 99.95 ? "%.1f %s" : "%.0f %s", bytes, units[u]);
}

/* ---- the rows */

enum row {
    FROZEN, TOWER, WEIGHTS, MASTERS, MOMENTS, GRADIENTS, MUON, ACTIVATIONS, WORK, MASTERS_AWAY, MOMENTS_AWAY,
    GRADIENTS_AWAY, ACTIVATIONS_AWAY, BATCHES, PROGRAM,
};
static const struct { const char *name; enum plan_place place; } rows[PLAN_ROWS] = {
    [FROZEN] = { "frozen weights", PLAN_DEVICE },
    [TOWER] = { "vision tower", PLAN_DEVICE },
    [WEIGHTS] = { "trained weights", PLAN_DEVICE },
    [MASTERS] = { "f32 masters", PLAN_DEVICE },
    [MOMENTS] = { "moments", PLAN_DEVICE },
    [GRADIENTS] = { "gradients", PLAN_DEVICE },
    [MUON] = { "work space of Muon", PLAN_DEVICE },
    [ACTIVATIONS] = { "activations", PLAN_DEVICE },
    [WORK] = { "kernels' work space", PLAN_DEVICE },
    [MASTERS_AWAY] = { "f32 masters, away", PLAN_HOST },
    [MOMENTS_AWAY] = { "moments, away", PLAN_HOST },
    [GRADIENTS_AWAY] = { "gradients, away", PLAN_HOST },
    [ACTIVATIONS_AWAY] = { "activations, away", PLAN_HOST },
    [BATCHES] = { "batches read ahead", PLAN_HOST },
    [PROGRAM] = { "program and driver", PLAN_HOST },
};

static enum plan_place place_of(const struct plan *p, int row) { return p->card ? rows[row].place : PLAN_DEVICE; }

static const char *name_of(const struct plan *p, int row)
{
    return row == PROGRAM && !p->card ? "program and work space" : rows[row].name;
}

/* Of the process itself: with a device the program and its driver, without one the program and what its kernels work
 * in (30 to 75 MB were seen). */
static size_t program_bytes(const struct plan *p) { return (size_t)(p->card ? 600 : 80) << 20; }

static struct plan_sizes fixed_sizes(const struct plan *p, struct trainee *t, const struct step *s,
                                     const struct train_args *a)
{
    const struct trainee_bytes b = trainee_count(t);
    const struct batch_limits *most = &s->rule.most;
    const size_t side = t->recipe.vision ? (size_t)t->recipe.side : 0;
    const size_t ahead = (size_t)(most->n_images * (3 + (int)a->dataloader_num_workers));
    return (struct plan_sizes){ .row = {
        [FROZEN] = b.frozen,
        [TOWER] = b.tower,
        [WEIGHTS] = b.weights,
        [MUON] = t->muon ? muon_bytes(t->p, t->n) : 0,
        [WORK] = step_scratch(s),
        [BATCHES] = ahead * 3 * side * side * sizeof(float) + (size_t)most->T * 32,
        [PROGRAM] = program_bytes(p),
    } };
}

/* What the choices are between, and for. */
struct search {
    struct plan *p;
    const struct trainee *t;
    const struct step *s;
    const struct train_args *a;
};

/* Of a choice. Changes nothing. */
static struct plan_sizes sizes(const struct search *g, const struct states_how *how, struct step_kept kept)
{
    const struct states_bytes k = states_bytes(g->t->p, g->t->n, g->p->layers, g->t->dtype, how);
    const struct step_bytes act = step_bytes(g->s, &kept);
    struct plan_sizes z = g->p->fixed;
    z.row[MASTERS] = k.masters;
    z.row[MOMENTS] = k.moments;
    z.row[GRADIENTS] = k.gradients;
    z.row[MASTERS_AWAY] = k.masters_away;
    z.row[MOMENTS_AWAY] = k.moments_away;
    z.row[GRADIENTS_AWAY] = k.gradients_away;
    z.row[ACTIVATIONS] = act.here + act.places;
    z.row[ACTIVATIONS_AWAY] = act.away;
    for (int i = 0; i < PLAN_ROWS; i++) z.sum[place_of(g->p, i)] += z.row[i];
    return z;
}

static bool within(const struct plan *p, const struct plan_sizes *z)
{
    return z->sum[PLAN_DEVICE] <= p->limit[PLAN_DEVICE] && z->sum[PLAN_HOST] <= p->limit[PLAN_HOST];
}

static bool fits(const struct search *g, const struct states_how *how, struct step_kept kept)
{
    const struct plan_sizes z = sizes(g, how, kept);
    return within(g->p, &z);
}

/* ---- how long a step takes */

/* Where it is not measured: bytes a second over the link to a card, each way, of page-locked memory (PCIe 5, and what
 * is left of it pageable), and operations. Of a step the way back's share, and the share of a product's speed that all
 * of it has: a 13b on an H100, models of 5 M to 1 G numbers on processors. */
static const double link_s = 50e9, pageable_s = 8e9, flops_s = 4e14;
static const double back_share = 0.585, card_share = 0.68, host_share = 0.6;

double plan_share(const struct plan *p) { return p->card ? card_share : host_share; }

struct plan_speed plan_measure(struct step *s, enum dtype weights)
{
    if (s->rule.card && !s->kc.dev) return (struct plan_speed){ 0 }; /* of a device that is not here */
    return (struct plan_speed){ ceiling_product(&s->kern, &s->kc, s->rule.act, weights), ceiling_link(s->kc.dev) };
}

static double link_speed(const struct plan *p, const struct states_how *how)
{
    return how->pageable ? pageable_s : p->speed.link > 0 ? p->speed.link : link_s;
}

static double seconds(const struct plan *p, double flops)
{
    return flops / (plan_share(p) * (p->speed.flops > 0 ? p->speed.flops : flops_s));
}

/* Of a pass there and back, without what runs again. */
static double pass_time(const struct search *g)
{
    return seconds(g->p, flops_pass(g->s->m, g->s->rule.tower_trains, &g->s->rule.most));
}

static double above(double x, double of) { return x > of ? x - of : 0; }

static void estimate(struct plan_choice *c, const struct search *g)
{
    const size_t *bytes = c->bytes.row;
    const double link = link_speed(g->p, &c->how), n = (double)g->a->gradient_accumulation_steps, pass = pass_time(g);
    const double again = seconds(g->p, flops_again(g->s->m, c->kept.none, &g->s->rule.most));
    const double grads = (double)bytes[GRADIENTS_AWAY] / link;
    const double rest = (double)(bytes[MOMENTS_AWAY] + bytes[MASTERS_AWAY]) / link;
    const int places = c->kept.away < STEP_AWAY_PLACES ? c->kept.away : STEP_AWAY_PLACES;
    const double acts = c->kept.away
                      ? (double)bytes[ACTIVATIONS_AWAY] / link * (c->kept.away - places) / c->kept.away : 0;
    c->again_s = n * again;
    c->link_s = n * (above(acts, (1 - back_share) * pass) + above(grads + acts, back_share * pass + again)) + grads +
                rest; /* the optimiser's pass hides little */
    c->s = n * (pass + again) + c->link_s;
}

/* ---- what layers keep */

/* Of n layers the fewest that must be *less, the others *more (of k; NULL: they keep all), so that it fits, as it does
 * if all of them are. */
static void fewest(const struct search *g, const struct states_how *how, struct step_kept *k, int *less, int *more,
                   int n)
{
    int low = -1, high = n;
    while (low + 1 < high) {
        *less = low + (high - low) / 2;
        if (more) *more = n - *less;
        if (fits(g, how, *k)) high = *less;
        else low = *less;
    }
    *less = high;
    if (more) *more = n - high;
}

/* So many layers can leave for the host while the next ones compute, and find room there, besides those that stay in
 * their places; 0: none, or no room for the places on the device. */
static int most_away(const struct search *g, const struct states_how *how)
{
    const int L = g->p->layers;
    const struct step_kept one = { .away = 1 };
    const double each = (double)step_bytes(g->s, &one).away / link_speed(g->p, how);
    const double most = (1 - back_share) * pass_time(g) / each + STEP_AWAY_PLACES;
    int n = most < L ? (int)most : L;
    while (n && !fits(g, how, (struct step_kept){ .away = n, .none = L - n })) n--;
    return n;
}

enum { MAY_ACTIVATIONS = 16, MUST_ACTIVATIONS = 32 };

/* The layers' kinds for which a step is the fastest. What is dear takes half of what all takes and saves nearly as much
 * time; what is away saves as much, as long as the link keeps up. */
static struct step_kept choose_kept(const struct search *g, const struct states_how *how, unsigned may)
{
    const int L = g->p->layers;
    struct step_kept k = { 0 }, away = { 0 };
    if (may & MUST_ACTIVATIONS) return (struct step_kept){ .away = L };
    if (fits(g, how, k)) return k;
    k.dear = L;
    if (fits(g, how, k)) {
        fewest(g, how, &k, &k.dear, NULL, L);
        return k;
    }
    k = (struct step_kept){ .none = L };
    const bool possible = fits(g, how, k);
    if (possible) fewest(g, how, &k, &k.none, &k.dear, L);
    if (!(may & MAY_ACTIVATIONS)) return k;
    away.away = most_away(g, how);
    if (!away.away) return k;
    fewest(g, how, &away, &away.none, &away.dear, L - away.away);
    if (!away.none) fewest(g, how, &away, &away.away, &away.dear, L); /* what there is room for here need not leave */
    return !possible || away.none < k.none ? away : k;
}

/* What --offload and the run allow to be away. Bit i, i < 4: the choice whose bit 0 says gradients, bit 1 moments. */
static unsigned allowed(const struct plan *p, const struct trainee *t, const char *offload)
{
    static const char *const words[] = { "none", "gradients", "moments", "both" };
    for (unsigned i = 0; i < 4; i++)
        if (!strcmp(offload, words[i])) return 1u << i;
    if (!strcmp(offload, "activations")) return 1 | MUST_ACTIVATIONS;
    return !p->card ? 1 : (t->model.llama.cfg.tied || t->muon ? 1 : 15) | MAY_ACTIVATIONS; /* auto */
}

/* Which of the choices is the fastest that fits, the first of equals. */
static void choose(const struct search *g, const struct states_how *how, const char *offload, bool recompute)
{
    struct plan *p = g->p;
    const unsigned may = allowed(p, g->t, offload);
    p->n_choices = 0;
    p->chosen = -1;
    for (unsigned i = 0; i < PLAN_CHOICES; i++) {
        if (!(may >> i & 1)) continue;
        struct plan_choice *c = &p->choice[p->n_choices++];
        *c = (struct plan_choice){ .how = *how };
        c->how.grads_away = i & 1;
        c->how.moments_away = i >> 1;
        if (recompute) c->kept = choose_kept(g, &c->how, may);
        c->bytes = sizes(g, &c->how, c->kept);
        c->fits = within(p, &c->bytes);
        estimate(c, g);
        if (c->fits && (p->chosen < 0 || c->s < p->choice[p->chosen].s)) p->chosen = p->n_choices - 1;
    }
}

static struct states_how how_of(const struct train_args *a)
{
    return (struct states_how){ .eight = strstr(a->optim, "8bit") != NULL, .masters = a->master_weights,
                                .pageable = a->pageable };
}

/* The sizes were checked with the arguments. */
static void read_limits(struct plan *p, const struct trainee *t, const struct train_args *a)
{
    p->limited[PLAN_DEVICE] = a->memory_limit != NULL;
    p->limited[PLAN_HOST] = a->host_memory_limit != NULL;
    p->limit[PLAN_DEVICE] = t->dev ? dev_memory_now(t->dev).free / 50 * 49 : plat_memory_total();
    const size_t most = plat_memory_total() / 8 * 7, now = plat_memory_available();
    p->limit[PLAN_HOST] = most < now ? most : now; /* page-locked memory is taken from everybody else */
    if (t->dev && t->model.dev) p->limit[PLAN_DEVICE] += dev_memory_now(t->dev).used; /* the model is there already */
    if (a->memory_limit) size_read(&p->limit[PLAN_DEVICE], a->memory_limit);
    if (a->host_memory_limit) size_read(&p->limit[PLAN_HOST], a->host_memory_limit);
}

const struct plan_choice *plan_taken(const struct plan *p)
{
    return &p->choice[p->chosen < 0 ? p->n_choices - 1 : p->chosen];
}

int plan_make(struct plan *p, struct trainee *t, struct step *s, const struct train_args *a,
              const struct plan_speed *speed, struct err *e)
{
    const struct search g = { p, t, s, a };
    const struct states_how how = how_of(a);
    *p = (struct plan){ .card = t->card, .layers = t->model.cfg.llama.L, .speed = *speed };
    read_limits(p, t, a);
    p->fixed = fixed_sizes(p, t, s, a);
    if (t->model.llama.cfg.tied && (!strcmp(a->offload, "gradients") || !strcmp(a->offload, "both")))
        return err_set(e, ERR_USAGE, "--offload %s: the model's lm_head is its embeddings, whose gradient is needed "
                       "all the way", a->offload);
    choose(&g, &how, a->offload, a->gradient_checkpointing);
    step_keep(s, &plan_taken(p)->kept);
    return trainee_keep(t, &plan_taken(p)->how, e);
}

/* ---- what would fit */

/* In the order in which they change less. */
static const struct wish { bool recompute, offload, eight, bare; } wishes[] = {
    { true, false, false, false }, { true, true, false, false }, { true, false, true, false },
    { true, true, true, false },   { true, false, true, true },  { true, true, true, true },
};

/* Arguments that a wish has and the run has not; false: there is none, or it cannot be had. */
static bool name_wish(char *out, size_t size, const struct plan *p, const struct trainee *t,
                      const struct train_args *a, const struct wish *w)
{
    const struct states_how is = how_of(a);
    const bool recompute = w->recompute && !a->gradient_checkpointing, eight = w->eight && !is.eight;
    const bool offload = w->offload && p->card && !t->model.llama.cfg.tied && !strcmp(a->offload, "none");
    const bool bare = w->bare && is.masters && t->dtype == DT_BF16;
    if (w->bare && t->dtype != DT_BF16) return false;
    snprintf(out, size, "%s%s%s%s", recompute ? " --gradient_checkpointing True" : "", offload ? " --offload auto" : "",
             eight ? " --optim adamw_8bit" : "", bare ? " --master_weights False" : "");
    return *out != 0;
}

/* " with X it takes Y": the first that fits, or nothing. */
static void find_wish(char *out, size_t size, const struct plan *p, const struct trainee *t, const struct step *s,
                      const struct train_args *a)
{
    struct plan try = *p;
    const struct search g = { &try, t, s, a };
    char flags[160], device[16], host[16];
    *out = 0;
    for (size_t i = 0; i < sizeof wishes / sizeof *wishes; i++) {
        const struct wish *w = &wishes[i];
        struct states_how how = how_of(a);
        how.eight |= w->eight;
        how.masters &= !w->bare;
        if (!name_wish(flags, sizeof flags, p, t, a, w)) continue;
        choose(&g, &how, w->offload ? "auto" : a->offload, true);
        if (try.chosen < 0) continue;
        plan_bytes(device, (double)plan_taken(&try)->bytes.sum[PLAN_DEVICE]);
        plan_bytes(host, (double)plan_taken(&try)->bytes.sum[PLAN_HOST]);
        snprintf(out, size, "; with%s it takes %s%s%s", flags, device, p->card ? " and of the host " : "",
                 p->card ? host : "");
        return;
    }
}

static const char *limit_name(const struct plan *p, enum plan_place place)
{
    if (p->limited[place]) return place == PLAN_HOST ? "--host_memory_limit is" : "--memory_limit is";
    return place == PLAN_HOST ? "the host can spare" : !p->card ? "the machine has" : "the device has";
}

int plan_check(const struct plan *p, const struct trainee *t, const struct step *s, const struct train_args *a,
               struct err *e)
{
    const struct plan_sizes *z = &plan_taken(p)->bytes;
    const enum plan_place place = z->sum[PLAN_DEVICE] > p->limit[PLAN_DEVICE] ? PLAN_DEVICE : PLAN_HOST;
    char sum[16], limit[16], most[16], wish[240];
    int top = -1;
    if (within(p, z)) return 0;
    for (int i = 0; i < PLAN_ROWS; i++)
        if (place_of(p, i) == place && (top < 0 || z->row[i] > z->row[top])) top = i;
    plan_bytes(sum, (double)z->sum[place]);
    plan_bytes(limit, (double)p->limit[place]);
    plan_bytes(most, (double)z->row[top]);
    find_wish(wish, sizeof wish, p, t, s, a);
    return err_set(e, ERR_NOMEM, "this run needs %s%s and %s %s; most of it are %s (%s)%s: --dry_run True lists all",
                   sum, place == PLAN_HOST ? " of the host's memory" : "", limit_name(p, place), limit,
                   name_of(p, top), most, wish);
}

/* ---- printing */

static void print_row(const char *name, size_t bytes, FILE *f)
{
    char text[16];
    plan_bytes(text, (double)bytes);
    fprintf(f, "  %-22s %10s\n", name, text);
}

static void print_place(const struct plan *p, enum plan_place place, FILE *f)
{
    const struct plan_sizes *z = &plan_taken(p)->bytes;
    if (!z->sum[place]) return;
    if (p->card) fprintf(f, "  on the %s\n", place == PLAN_HOST ? "host" : "device");
    for (int i = 0; i < PLAN_ROWS; i++)
        if (z->row[i] && place_of(p, i) == place) print_row(name_of(p, i), z->row[i], f);
    print_row("together", z->sum[place], f);
    print_row(p->limited[place] ? place == PLAN_HOST ? "--host_memory_limit" : "--memory_limit"
              : place == PLAN_HOST ? "the host can spare" : !p->card ? "the machine has" : "the device has",
              p->limit[place], f);
}

static void print_choices(const struct plan *p, FILE *f)
{
    static const char *const away[] = { "nothing", "gradients", "moments", "gradients, moments" };
    if (p->n_choices > 1)
        fprintf(f, "choices:\n  %-20s %9s %9s %13s %8s %5s %11s\n", "on the host", "device", "host", "layers again",
                "in part", "away", "a step");
    for (int i = 0; i < p->n_choices && p->n_choices > 1; i++) {
        const struct plan_choice *c = &p->choice[i];
        char device[16], host[16], time[24];
        plan_bytes(device, (double)c->bytes.sum[PLAN_DEVICE]);
        plan_bytes(host, (double)c->bytes.sum[PLAN_HOST]);
        snprintf(time, sizeof time, c->fits ? "~%.3g s" : "too large", c->s);
        fprintf(f, "%s %-20s %9s %9s %6d of %3d %8d %5d %11s\n", i == p->chosen ? ">" : " ",
                away[c->how.grads_away + 2 * c->how.moments_away], device, host, c->kept.none, p->layers, c->kept.dear,
                c->kept.away, time);
    }
    if (p->chosen < 0) return;
    const struct plan_choice *c = &p->choice[p->chosen];
    if (p->n_choices > 1)
        fprintf(f, "chosen: the fastest that fits; of a step about %.2g s are layers that run again, %.2g s waiting "
                "for copies\n", c->again_s, c->link_s);
    else fprintf(f, "layers that run again on the way back: %d of %d; in part %d, away %d\n", c->kept.none, p->layers,
                 c->kept.dear, c->kept.away);
}

void plan_print(const struct plan *p, FILE *f)
{
    print_place(p, PLAN_DEVICE, f);
    print_place(p, PLAN_HOST, f);
    print_choices(p, f);
}
