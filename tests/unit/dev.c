/* The dev room: names, memory, order and capture, on the host and on the GPU of the build, if it has one that works. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "dev/dev.h"

/* The devices to test: the host, and the build's own if there is a card. */
static struct dev *devices[2];
static int n_devices = 1;

static void names(void **state)
{
    (void)state;
    static const char *const wrong[] = { "", "cpu:0", "tpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1x", "cuda:99999",
                                         "emu:1", "hip:70" };
    struct dev *d = (struct dev *)state;
    struct err e = { 0 };
    assert_int_equal(dev_open(&d, "cpu", &e), 0);
    assert_null(d);
    assert_string_equal(dev_name(NULL), "cpu");
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        e.msg[0] = 0;
        assert_true(dev_open(&d, wrong[i], &e) < 0);
        assert_null(d);
        assert_true(strlen(e.msg) > 10);
        if (e.code == ERR_USAGE && strncmp(e.msg, "no device '", 11) != 0) fail_msg("'%s': %s", wrong[i], e.msg);
    }
    assert_int_equal(dev_open(&d, "auto", &e), 0);
    dev_close(d);
    dev_close(NULL);
}

static void bytes_come_back(void **state)
{
    (void)state;
    enum { N = 3 << 20 };
    char *host = malloc(2 * N), *back = malloc(N);
    for (int i = 0; i < 2 * N; i++) host[i] = (char)(i * 7 + i / 251);
    for (int i = 0; i < n_devices; i++) {
        struct dev *d = devices[i];
        void *a, *b, *pinned;
        struct err e = { 0 };
        assert_int_equal(dev_alloc(&a, d, N, &e), 0);
        assert_int_equal(dev_alloc(&b, d, N, &e), 0);
        assert_int_equal(dev_pinned(&pinned, d, N, &e), 0);
        assert_int_equal((uintptr_t)a % 64, 0);
        static const size_t sizes[] = { 0, 1, 63, 4096, 100000, N }; /* through the ring, around it, and past it */
        for (size_t k = 0; k < 200 + sizeof sizes / sizeof *sizes; k++) {
            const size_t n = k < 200 ? 77 * k : sizes[k - 200], at = k < 200 ? 13 * k : 0;
            dev_put(d, (char *)a + at, host + k, n);
            dev_copy(d, (char *)b + at, (char *)a + at, n);
            memset(back, 0, N);
            dev_get(d, back, (char *)b + at, n);
            assert_memory_equal(back, host + k, n);
        }
        memcpy(pinned, host, N);
        dev_send(d, a, pinned, N);
        dev_fill(d, (char *)a + 1000, 0x5a, 1000);
        dev_sync(d);
        memset(pinned, 0, N);
        dev_fetch(d, pinned, a, N);
        dev_sync(d);
        assert_memory_equal(pinned, host, 1000);
        for (int k = 1000; k < 2000; k++) assert_int_equal(((char *)pinned)[k], 0x5a);
        assert_memory_equal((char *)pinned + 2000, host + 2000, N - 2000);
        dev_pinned_free(d, pinned);
        dev_free(d, a, N);
        dev_free(d, b, N);
        dev_free(d, NULL, 0);
    }
    free(host), free(back);
}

/* What was sent over one lane is changed on the device and fetched over another, in that order, many times. */
static void lanes_keep_their_order(void **state)
{
    (void)state;
    enum { N = 1 << 20, TIMES = 20 };
    for (int i = 0; i < n_devices; i++) {
        struct dev *d = devices[i];
        struct err e = { 0 };
        void *a, *b, *from, *to;
        assert_true(dev_alloc(&a, d, N, &e) >= 0 && dev_alloc(&b, d, N, &e) >= 0);
        assert_true(dev_pinned(&from, d, N, &e) >= 0 && dev_pinned(&to, d, (size_t)N * TIMES, &e) >= 0);
        struct dev_lane *down = dev_lane_new(d), *up = dev_lane_new(d);
        struct dev_event *sent = dev_event_new(d), *done = dev_event_new(d), *back = dev_event_new(d);
        assert_int_equal(down == NULL, d == NULL);
        for (int k = 0; k < N; k++) ((char *)from)[k] = (char)(k * 3 + k / 255);
        for (int k = 0; k < TIMES; k++) {
            dev_lane_send(down, a, from, N);
            dev_lane_record(down, sent);
            dev_follow(d, sent);
            if (k) dev_follow(d, back);
            dev_copy(d, b, a, N);
            dev_fill(d, (char *)b + 100, k + 1, 100);
            dev_fill(d, a, 0, N);
            dev_event_record(d, done);
            dev_lane_follow(up, done);
            dev_lane_follow(down, done);
            dev_lane_fetch(up, (char *)to + (size_t)k * N, b, N);
            dev_lane_record(up, back);
        }
        dev_lane_free(down);
        dev_lane_free(up); /* waits */
        for (int k = 0; k < TIMES; k++) {
            const char *got = (char *)to + (size_t)k * N, *want = from;
            assert_memory_equal(got, want, 100);
            for (int j = 100; j < 200; j++) assert_int_equal(got[j], k + 1);
            assert_memory_equal(got + 200, want + 200, N - 200);
        }
        dev_event_free(sent), dev_event_free(done), dev_event_free(back);
        dev_pinned_free(d, from), dev_pinned_free(d, to);
        dev_free(d, a, N), dev_free(d, b, N);
    }
}

static void arenas_count(void **state)
{
    (void)state;
    for (int i = 0; i < n_devices; i++) {
        struct dev *d = devices[i];
        struct arena a;
        struct err e = { 0 };
        const size_t before = dev_memory_now(d).used;
        assert_int_equal(dev_arena(&a, d, 100000, &e), 0);
        char *p = arena_take(&a, 50000), *q = arena_take(&a, 50000), got[2] = { 0 };
        assert_true(q >= p + 50000);
        dev_put(d, q + 49998, "ok", 2);
        dev_get(d, got, q + 49998, 2);
        assert_memory_equal(got, "ok", 2);
        if (d) assert_true(dev_memory_now(d).used >= before + 100000);
        arena_fini(&a);
        assert_int_equal(dev_memory_now(d).used, before);
        assert_int_equal(dev_arena(&a, d, 0, &e), 0);
        arena_fini(&a);
        if (!d) continue;
        void *much;
        assert_int_equal(dev_alloc(&much, d, (size_t)1 << 50, &e), ERR_NOMEM);
        assert_null(much);
        assert_non_null(strstr(e.msg, dev_name(d)));
        assert_true(dev_memory_now(d).peak >= before + 100000);
    }
}

static void graphs_repeat(void **state)
{
    (void)state;
    for (int i = 0; i < n_devices; i++) {
        struct dev *d = devices[i];
        struct err e = { 0 };
        struct dev_graph *g = NULL;
        void *p;
        char got[3] = { 0 };
        assert_int_equal(dev_captures(d), d != NULL);
        if (!d) {
            assert_int_equal(dev_capture_begin(d, &e), ERR_UNSUPPORTED);
            continue;
        }
        assert_int_equal(dev_alloc(&p, d, 3, &e), 0);
        dev_put(d, p, "abc", 3);
        assert_int_equal(dev_capture_begin(d, &e), 0); /* moves the three round by one, when it is run */
        dev_copy(d, (char *)p + 2, p, 1);
        dev_copy(d, p, (char *)p + 1, 1);
        assert_int_equal(dev_capture_end(&g, d, &e), 0);
        assert_int_equal(dev_graph_launches(g), 2);
        dev_get(d, got, p, 3);
        assert_memory_equal(got, "abc", 3);
        struct dev_event *from = dev_event_new(d), *to = dev_event_new(d);
        dev_event_record(d, from);
        dev_graph_run(d, g);
        dev_put(d, (char *)p + 1, "z", 1);
        dev_graph_run(d, g);
        dev_event_record(d, to);
        dev_event_wait(to);
        dev_get(d, got, p, 3);
        assert_memory_equal(got, "zzb", 3);
        assert_true(dev_event_s(from, to) >= 0);
        dev_event_free(from);
        dev_event_free(to);
        dev_graph_free(g);
        dev_free(d, p, 3);
    }
}

int main(void)
{
    struct err e = { 0 };
    const char *kind = strstr(dev_kinds(), ", ");
    if (kind && dev_open(&devices[1], kind + 2, &e) >= 0) n_devices = 2;
    else if (kind) print_message("# only the host: %s\n", e.msg);
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(names), cmocka_unit_test(bytes_come_back), cmocka_unit_test(lanes_keep_their_order),
        cmocka_unit_test(arenas_count), cmocka_unit_test(graphs_repeat),
    };
    const int rc = cmocka_run_group_tests(tests, NULL, NULL);
    dev_close(devices[1]);
    return rc;
}
