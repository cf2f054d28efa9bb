/* Where the time of kernels goes. With kctx.prof, every kernel that an op calls is timed and counted under its name and
 * the shape of its largest argument: on a device with an event before and after it, so that nothing waits, else with
 * the clock. Kernels recorded into a graph are not: a profile is of eager steps. */
#pragma once
#include <stdio.h>

#include "dev/dev.h"
#include "tensor/tensor.h"

struct prof;
struct prof *prof_new(struct dev *d); /* NULL: no memory */
void prof_free(struct prof *p);

/* args: what the kernel is called with; those that are no tensors have no p. */
void prof_begin(struct prof *p, const char *kernel, const struct tensor *args, int n);
void prof_end(struct prof *p);

/* A table, slowest first: calls, microseconds each, GB/s (bytes of all arguments, of rows_get those of its result
 * twice), share of the time. Waits; then forgets all. */
void prof_print(struct prof *p, FILE *f, const char *title);

/* PROF_ARGS(a, b, ...): an array of tensors and its length, made of a kernel's arguments: numbers become absent
 * tensors, and of an array of tensors (a composite's, three long) the first is taken with the sum of all rows. */
static inline struct tensor prof_tensor(int unused, struct tensor t) { return (void)unused, t; }
static inline struct tensor prof_number(int unused, ...) { return (void)unused, (struct tensor){ 0 }; }
static inline struct tensor prof_three(int unused, const struct tensor *t)
{
    struct tensor sum = t[0];
    for (int i = 1; i < 3 && sum.p; i++) sum.n[0] += t[i].p ? t[i].n[0] : 0;
    return (void)unused, sum;
}
#define PROF_ONE(a) \
    _Generic((a), struct tensor: prof_tensor, struct tensor *: prof_three, const struct tensor *: prof_three, \
             default: prof_number)(0, a),
#define PROF_EACH1(a) PROF_ONE(a)
#define PROF_EACH2(a, ...) PROF_ONE(a) PROF_EACH1(__VA_ARGS__)
#define PROF_EACH3(a, ...) PROF_ONE(a) PROF_EACH2(__VA_ARGS__)
#define PROF_EACH4(a, ...) PROF_ONE(a) PROF_EACH3(__VA_ARGS__)
#define PROF_EACH5(a, ...) PROF_ONE(a) PROF_EACH4(__VA_ARGS__)
#define PROF_EACH6(a, ...) PROF_ONE(a) PROF_EACH5(__VA_ARGS__)
#define PROF_EACH7(a, ...) PROF_ONE(a) PROF_EACH6(__VA_ARGS__)
#define PROF_EACH8(a, ...) PROF_ONE(a) PROF_EACH7(__VA_ARGS__)
#define PROF_EACH9(a, ...) PROF_ONE(a) PROF_EACH8(__VA_ARGS__)
#define PROF_EACH10(a, ...) PROF_ONE(a) PROF_EACH9(__VA_ARGS__)
#define PROF_EACH11(a, ...) PROF_ONE(a) PROF_EACH10(__VA_ARGS__)
#define PROF_EACH12(a, ...) PROF_ONE(a) PROF_EACH11(__VA_ARGS__)
#define PROF_PICK(_1, _2, _3, _4, _5, _6, _7, _8, _9, _10, _11, _12, name, ...) name
#define PROF_EACH(...)                                                                                             \
    PROF_PICK(__VA_ARGS__, PROF_EACH12, PROF_EACH11, PROF_EACH10, PROF_EACH9, PROF_EACH8, PROF_EACH7, PROF_EACH6,  \
              PROF_EACH5, PROF_EACH4, PROF_EACH3, PROF_EACH2, PROF_EACH1, )(__VA_ARGS__)
#define PROF_ARGS(...)                                    \
    (struct tensor[]){ PROF_EACH(__VA_ARGS__) },          \
        (int)(sizeof((struct tensor[]){ PROF_EACH(__VA_ARGS__) }) / sizeof(struct tensor))
